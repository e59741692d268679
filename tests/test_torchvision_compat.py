"""The torchvision repair, each case in a process of its own because an import happens only once."""

import os
import subprocess
import sys
import textwrap

import pytest

STUB = "print('stub imported')\n"


def run_python(code, *, path=()):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def stub_torchvision(tmp_path):
    def write(body):
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "__init__.py").write_text(STUB + body)
        return tmp_path

    return write


def test_models_and_processors_of_transformers_import_with_whatever_torchvision_is_installed():
    result = run_python(
        """
        from vlm_entropy.data import torchvision_compat
        from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor
        print(torchvision_compat.apply(), Qwen2_5_VLForConditionalGeneration.__name__)
        """
    )
    # the second call finds a healthy torchvision
    assert result.stdout.splitlines()[-1:] == ["False Qwen2_5_VLForConditionalGeneration"], result.stderr


def test_a_torchvision_without_its_operators_is_imported_again_after_they_are_defined(stub_torchvision):
    body = """
import torch
try:
    torch.ops.torchvision.nms
except AttributeError:
    import torchvision.half
    raise RuntimeError("operator torchvision::nms does not exist")
"""
    path = stub_torchvision(body)
    (path / "torchvision" / "half.py").write_text("")
    result = run_python(
        """
        import sys, torch
        from vlm_entropy.data import torchvision_compat
        print(torch.ops.torchvision.nms.default._schema)
        print(torch.ops.torchvision.qnms.default._schema)
        print("torchvision" in sys.modules, "torchvision.half" in sys.modules)
        """,
        path=[path],
    )
    assert result.stdout.splitlines() == [
        "stub imported",
        "stub imported",
        "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "torchvision::qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "True False",
    ], result.stderr


def test_a_healthy_torchvision_is_imported_once_and_no_operator_is_defined(stub_torchvision):
    result = run_python(
        """
        import torch
        from vlm_entropy.data import torchvision_compat
        print(hasattr(torch.ops.torchvision, "nms"), torchvision_compat.apply())
        """,
        path=[stub_torchvision("")],
    )
    assert result.stdout.splitlines() == ["stub imported", "False False"], result.stderr


@pytest.mark.parametrize(
    "error",
    ["RuntimeError('operator torchvision::roi_align does not exist')", "ImportError('libcudart.so not found')"],
)
def test_any_other_error_of_torchvision_is_passed_on(stub_torchvision, error):
    result = run_python("import vlm_entropy.data.torchvision_compat", path=[stub_torchvision(f"raise {error}\n")])
    assert result.returncode == 1
    assert error.partition("'")[2].partition("'")[0] in result.stderr.splitlines()[-1]
    assert result.stdout == "stub imported\n"
