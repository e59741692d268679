"""Shared by the tests: a tiny checkpoint, a tiny data set, and trainers whose rewards need no training."""

import os

os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

from pathlib import Path

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

import pytest
import torch
from transformers import AutoModelForImageTextToText, TrainingArguments

from vlm_entropy.data.shapes import make_shapes
from vlm_entropy.data.tiny import build_tiny_vlm

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A Qwen2.5-VL of two layers with random weights, sharp enough that entropies differ from token to token."""
    folder = build_tiny_vlm("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny", hidden_size=32)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 8
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A folder with 32 training and 8 held-out rows of the shapes task."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, rows=32, seed=0, held_out=8)
    return folder


@pytest.fixture
def eight_processes(monkeypatch):
    """Options see eight processes, for which the batch sizes of papers and scripts are made."""
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 8))
