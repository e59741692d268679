"""The installed package holds `vlm_entropy.*` and nothing else, and never a second copy of itself."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("trainers", "rewards", "data", "eval")


def run(*command, cwd, **kwargs):
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = ["setup.py", "pyproject.toml", "README.md", "LICENSE", *ROOMS]
    run("-c", COPY, ROOT, source, *tracked, cwd=ROOT)
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", out, source, cwd=out)
    (path,) = out.glob("*.whl")
    return path


COPY = """
import shutil, sys
from pathlib import Path
root, out, *names = sys.argv[1:]
for name in names:
    source = Path(root, name)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, Path(out, name), ignore=ignore) if source.is_dir() else shutil.copy(source, out)
"""


def test_the_wheel_holds_every_module_under_vlm_entropy_and_nothing_else(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    files = [path for room in ROOMS for kind in ("*.py", "*.yaml") for path in (ROOT / room).rglob(kind)]
    files += [path for room in ("templates", "vendor") for path in (ROOT / "eval" / "report" / room).iterdir()]
    expected = [f"vlm_entropy/{path.relative_to(ROOT)}" for path in files]
    assert sorted(names) == sorted([*expected, *(f"vlm_entropy/{room}/py.typed" for room in ROOMS)])


def test_the_wheel_imports_from_an_empty_directory(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    # The editable install is a finder on sys.meta_path; without it only the unpacked wheel is there.
    code = f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__ + str(finder)]
sys.path_hooks = [hook for hook in sys.path_hooks if "editable" not in str(hook)]
sys.path.insert(0, {str(tmp_path / "site")!r})
import vlm_entropy.data, vlm_entropy.eval, vlm_entropy.rewards, vlm_entropy.trainers
print(vlm_entropy.trainers.__file__)
"""
    printed = run("-c", code, cwd=tmp_path / "empty").splitlines()
    assert printed[-1] == str(tmp_path / "site" / "vlm_entropy" / "trainers" / "__init__.py")


def test_the_types_of_the_wheel_are_sound(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    packages = [part for room in ROOMS for part in ("-p", f"vlm_entropy.{room}")]
    flags = ["--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache"]
    run("-m", "mypy", *flags, *packages, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(tmp_path)})


def test_importing_puts_no_top_level_room_into_sys_modules(tmp_path):
    code = f"""
import sys
import vlm_entropy.data.__main__, vlm_entropy.eval.__main__, vlm_entropy.trainers.__main__
print(sorted(set(sys.modules) & set({ROOMS!r})))
"""
    assert run("-c", code, cwd=tmp_path).splitlines()[-1] == "[]"
