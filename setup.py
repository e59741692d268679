"""Packaging: each top-level folder is one room of the import package ``vlm_entropy``."""

from pathlib import Path

from setuptools import find_packages, setup

ROOMS = ["trainers", "rewards", "data", "eval"]
found = find_packages(".", include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")])

setup(
    name="vlm-entropy",
    version="0.1.0",
    description="Entropy-controlled reinforcement learning for vision-language models on top of TRL's GRPOTrainer",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=["vlm_entropy." + name for name in found],
    package_dir={f"vlm_entropy.{room}": room for room in ROOMS},
    package_data={f"vlm_entropy.{room}": ["py.typed"] for room in ROOMS}
    | {
        "vlm_entropy.eval.lmms_eval": ["tasks/*.yaml"],
        "vlm_entropy.eval.report": ["templates/*", "vendor/*"],
    },
    install_requires=[
        "accelerate>=1.15,<2",
        "datasets>=5.2,<6",
        "deepspeed>=0.19.8",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "math-verify>=0.9,<1",
        "matplotlib>=3.10",
        "peft>=0.21.2,<1",
        "pillow>=11",
        "pycocotools>=2.0.8",
        "pyyaml>=6",
        "qwen-vl-utils>=0.0.14,<0.1",
        "requests>=2.32",
        "scipy>=1.14",
        "torch>=2.10",
        "torchvision>=0.25",
        "transformers>=5.20,<6",
        "trl>=1.16,<1.17",
    ],
    extras_require={
        "test": [
            "build",
            "hypothesis",
            "mypy",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "setuptools",
            "tensorboardx",
            "wheel",
        ],
    },
    entry_points={
        "console_scripts": [
            "vlm-entropy-train=vlm_entropy.trainers.__main__:main",
            "vlm-entropy-data=vlm_entropy.data.__main__:main",
            "vlm-entropy-eval=vlm_entropy.eval.__main__:main",
        ],
        "lmms_eval.models": ["vlm_entropy=vlm_entropy.eval.lmms_eval.manifest:MANIFEST"],
    },
)
