"""Sampling with vLLM: TRL's own client and colocate code, against a server and an engine on a CPU (see `vllm_server`).

vLLM itself is in no test: `vllm_stand_in` gives TRL the names it imports.
"""

import importlib
import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from itertools import chain, count, repeat
from pathlib import Path

import pytest
import requests
import torch
import trl.trainer.grpo_trainer as grpo_trainer
from requests.adapters import HTTPAdapter
from support import FAST, Recording, dataset_of, uneven_reward
from transformers import AutoProcessor
from trl.generation import vllm_client, vllm_generation
from vllm_server import Engine, VllmServer
from vllm_stand_in import join_on_cpu, modules

from vlm_entropy.data.families import FAMILIES, set_pixel_limits, vision_token_ids
from vlm_entropy.data.tiny import build_tiny_vlm
from vlm_entropy.trainers import get_method
from vlm_entropy.trainers.__main__ import main
from vlm_entropy.trainers.vllm_rollouts import image_runs, suppress_tokens, unexpanded

TESTS = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def vllm():
    """TRL with a vLLM to import, for the tests of this file."""
    original = grpo_trainer.VLLMGeneration
    sys.modules.update(modules())
    importlib.reload(vllm_client)
    importlib.reload(vllm_generation)
    grpo_trainer.VLLMGeneration = vllm_generation.VLLMGeneration
    join_on_cpu(vllm_client.VLLMClient)
    yield
    for name in modules():
        del sys.modules[name]
    importlib.reload(vllm_client)
    importlib.reload(vllm_generation)
    grpo_trainer.VLLMGeneration = original


@pytest.fixture(autouse=True)
def same_environment():
    """Colocated, TRL sets what `torch.distributed` reads at its start."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]


@contextmanager
def serving(folder, **options):
    server = VllmServer(Engine(folder, dtype=torch.float64), **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server(tiny_model):
    with serving(tiny_model) as running:
        yield running


class Sampling(Recording):
    """A trainer that keeps what it samples, or takes the samples of another run."""

    def __init__(self, *args, samples=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.samples, self.given = [], iter(samples)

    def sample(self, prompt_ids, images, fields, *, generate):
        ids, logps = next(self.given, None) or super(Recording, self).sample(
            prompt_ids, images, fields, generate=generate
        )
        self.samples.append((ids, None))
        self.prompt_ids = prompt_ids
        return ids, logps


def make_trainer(model, dataset, out, *, method="grpo", samples=(), processor=None, **options):
    found = get_method(method)
    trainer_class = type("Sampled", (Sampling, found.trainer), {})
    settings = {**FAST, "max_steps": 2, "max_grad_norm": 0.0, "output_dir": str(out), **options}
    return trainer_class(
        model=str(model),
        reward_funcs=uneven_reward,
        args=found.config(**settings),
        train_dataset=dataset,
        processing_class=processor or AutoProcessor.from_pretrained(model, padding_side="left"),
        samples=samples,
    )


def on(server):
    return {
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_server_base_url": server.url,
        "vllm_group_port": free_port(),
        "vllm_server_timeout": 5.0,
    }


COLOCATE = {"use_vllm": True, "vllm_mode": "colocate"}


def assert_same_gradients(one, other, *, atol):
    for mine, theirs in zip(one.recorder.gradients, other.recorder.gradients, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=atol, msg=name)


def rows(trainer, name):
    """An entry of all rollouts, where there is a completion token."""
    return torch.cat([r[name][r["completion_mask"].bool()] for r in trainer.rollouts])


@pytest.mark.parametrize(("correction", "share_prompts"), [(False, "off"), (True, "on")])
def test_steps_with_a_server_are_those_of_generate(correction, share_prompts, server, shapes, tiny_model, tmp_path):
    data = dataset_of(shapes, tiny_model)
    options = {"vllm_importance_sampling_correction": correction, "share_prompts": share_prompts}
    ours = make_trainer(tiny_model, data, tmp_path / "vllm", **options, **on(server))
    ours.train()
    plain = make_trainer(tiny_model, data, tmp_path / "hf", samples=ours.samples, share_prompts=share_prompts)
    plain.train()
    assert any(gradient.abs().max() > 1e-3 for gradient in plain.recorder.gradients[1].values())
    # The head computes log-probs in float32, and the correction weighs with exp of their difference.
    assert_same_gradients(ours, plain, atol=1e-4 if correction else 0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_server_samples_with_the_weights_after_the_last_step(temperature, server, shapes, tiny_model, tmp_path):
    options = {"temperature": temperature, "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    trainer = make_trainer(tiny_model, dataset_of(shapes, tiny_model), tmp_path, **options, **on(server))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    sampled = rows(trainer, "sampling_per_token_logps")
    served = torch.tensor([logp for _, logps in server.completions for logp in logps])
    assert sorted(sampled.tolist()) == sorted(served.tolist())
    torch.testing.assert_close(sampled, rows(trainer, "old_per_token_logps").float(), rtol=0, atol=2e-5)
    # At the end the server holds the weights that sampled the second rollout: one step of SGD, w - 0.1 g, old.
    first = trainer.recorder.gradients[0]
    assert max(gradient.abs().max() for gradient in first.values()) > 1e-2
    for name, weight in server.engine.model.named_parameters():
        expected = before[name] - 0.1 * first.get(name, 0)
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-12, msg=name)
    [sent, _] = [body["update_info"]["names"] for path, body in server.requests if path == "/update_weights"]
    assert set(sent) == set(before)


def test_placeholders_are_never_sampled(server, shapes, tiny_model, tmp_path):
    bias = {"generation_kwargs": {"logit_bias": {7: 3.0}}}
    trainer = make_trainer(tiny_model, dataset_of(shapes, tiny_model), tmp_path, max_steps=1, **bias, **on(server))
    trainer.train()
    placeholders = vision_token_ids(trainer.model.config)
    [asked, *_] = [body["sampling_params"] for path, body in server.requests if path == "/inference/v1/generate"]
    assert len(placeholders) >= 4
    assert asked["logit_bias"] == {**{str(token): -100.0 for token in placeholders}, "7": 3.0}
    assert suppress_tokens({"seed": 1}, []) == {"seed": 1}
    assert suppress_tokens({"logit_bias": {5: 2.0}}, [5, 6]) == {"logit_bias": {5: 2.0, 6: -100.0}}


def test_a_prompt_gets_its_placeholders_back():
    # Image token 9, InternVL's frame 7 and 8 around each run.
    assert image_runs([9, 9, 1, 9], 9) == [(0, 2), (3, 4)]
    assert image_runs([1, 2], 9) == []
    assert unexpanded([1, 9, 9, 9, 2, 9, 9, 3], 9, FAMILIES["qwen2_5_vl"]) == [1, 9, 2, 9, 3]
    assert unexpanded([1, 7, 9, 9, 9, 8, 7, 9, 9, 8, 3], 9, FAMILIES["internvl"]) == [1, 9, 9, 3]
    assert unexpanded([1, 2], 9, FAMILIES["internvl"]) == [1, 2]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
def test_a_vllm_of_the_process_sees_the_prompts_of_the_trainer(family, shapes, tiny_model, tmp_path):
    model, data = build_tiny_vlm(family, tmp_path / "model", hidden_size=32), dataset_of(shapes, tiny_model)
    options = {**COLOCATE, "vllm_importance_sampling_correction": False}
    ours = make_trainer(model, data, tmp_path / "vllm", **options)
    ours.train()
    engine = ours.vllm_generation.llm
    token = ours.model.config.image_token_id
    assert [row["prompt_token_ids"].count(token) for row in engine.prompts] == [1] * 8
    assert engine.expanded[-4:] == ours.prompt_ids
    plain = make_trainer(model, data, tmp_path / "hf", samples=ours.samples)
    plain.train()
    assert_same_gradients(ours, plain, atol=0)


def test_a_sleeping_vllm_gets_its_weights_back(shapes, tiny_model, tmp_path):
    data = dataset_of(shapes, tiny_model)
    trainer = make_trainer(tiny_model, data, tmp_path, vllm_enable_sleep_mode=True, **COLOCATE)
    trainer.train()
    sampled = rows(trainer, "sampling_per_token_logps")
    torch.testing.assert_close(sampled, rows(trainer, "old_per_token_logps").float(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("mode", ["server", "colocate"])
def test_rows_of_text_stand_beside_rows_with_images(mode, server, shapes, tiny_model, tmp_path):
    data = dataset_of(shapes, tiny_model)
    data = data.map(lambda row, index: {"images": row["images"] if index % 2 else []}, with_indices=True)
    options = on(server) if mode == "server" else COLOCATE
    sizes = {"per_device_train_batch_size": 8, "max_steps": 3}
    trainer = make_trainer(tiny_model, data, tmp_path, **sizes, **options)
    trainer.train()
    assert {count for r in trainer.rollouts for count in r.get("num_images", [0])} == {0, 1}
    sampled = rows(trainer, "sampling_per_token_logps")
    torch.testing.assert_close(sampled, rows(trainer, "old_per_token_logps").float(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", ["saei", "noisy_rollout"])
def test_a_server_samples_from_the_changed_images_and_no_changed_row_is_masked(
    method, server, shapes, tiny_model, tmp_path
):
    options = {"alpha": 16 / 255, **({"noise": "sign"} if method == "noisy_rollout" else {})}
    # TRL masks sequences whose ratio leaves [1 - 1e-4, 1 + 1e-4]: all changed ones, were they compared.
    limits = {"vllm_importance_sampling_clip_min": 0.9999, "vllm_importance_sampling_clip_max": 1.0001}
    trainer = make_trainer(
        tiny_model, dataset_of(shapes, tiny_model), tmp_path, method=method, **options, **limits, **on(server)
    )
    trainer.train()
    clean_answers, changed_answers = server.completions[:2], server.completions[2:4]
    assert [ids for ids, _ in clean_answers + changed_answers] == trainer.samples[0][0]
    checked, clean, changed = server.images[:3]  # the first one is the check of the server's limits
    assert checked.tobytes() == clean.tobytes()
    pixels = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int() for image in (clean, changed)]
    difference = (pixels[0] - pixels[1]).abs()
    assert 8 <= difference.max() <= 16
    rollout = trainer.rollouts[0]
    is_changed, mask = rollout["is_adversarial"], rollout["completion_mask"].bool()
    assert is_changed.sum() == 2
    assert rollout["sampling_per_token_logps"][is_changed][mask[is_changed]].isnan().all()
    assert (rollout["importance_sampling_ratio"][is_changed] == 1).all()
    assert (rollout["importance_sampling_ratio"] > 0).all()
    # What would have been compared: the policy on the clean image against the sampler on the changed one.
    policy = torch.cat([row[m] for row, m in zip(rollout["old_per_token_logps"][is_changed], mask[is_changed])])
    sampler = torch.tensor([logp for _, logps in changed_answers for logp in logps])
    assert abs(float(policy.sum() - sampler.sum())) > 1e-3
    assert all(torch.isfinite(g).all() for step in trainer.recorder.gradients for g in step.values())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("calibrl", {"expert_column": "expert"}),
        ("luffy", {"expert_column": "expert"}),
        ("kl_cov", {"num_iterations": 2}),
    ],
)
def test_methods_get_the_samplers_log_probs(method, options, server, shapes, tiny_model, tmp_path):
    data = dataset_of(shapes, tiny_model)
    data = data.add_column("expert", ["<think>red circle</think><answer>3</answer>"] * len(data))
    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_generations": 4}
    options = {**options, "max_steps": 2, **sizes}
    trainer = make_trainer(tiny_model, data, tmp_path, method=method, **options, **on(server))
    trainer.train()
    for rollout in trainer.rollouts[:2]:
        mask = rollout["completion_mask"].bool()
        sampled, old = rollout["sampling_per_token_logps"], rollout["old_per_token_logps"].float()
        unknown = sampled.isnan()
        expert = rollout.get("is_expert", torch.zeros(len(mask), dtype=torch.bool))
        assert torch.equal(unknown.any(dim=1), expert)
        known = mask & ~unknown
        torch.testing.assert_close(sampled[known], old[known], rtol=0, atol=2e-5)
        ratio = rollout["importance_sampling_ratio"]
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=2e-4)
    assert all(torch.isfinite(g).all() for step in trainer.recorder.gradients for g in step.values())


def test_dynamic_sampling_joins_rollouts_of_a_server(server, shapes, tiny_model, tmp_path):
    calls = count()

    def equal_in_the_first_group(completion_ids, group, **kwargs):
        first = next(calls) == 0
        return [0.0 if first and g == 0 else float(row) for row, g in enumerate(group)]

    data = dataset_of(shapes, tiny_model)
    lengths = chain([3] * 8, repeat(6))
    server.engine.until = lambda row, ends: row[: next(lengths)]
    sizes = {"per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 1}
    options = {"vllm_importance_sampling_mode": "token_truncate", "max_resamples": 3, **sizes}
    trainer = make_trainer(tiny_model, data, tmp_path, method="dapo", **options, **on(server))
    trainer.reward_funcs = [equal_in_the_first_group]
    trainer.train()
    lengths = trainer.rollouts[0]["completion_mask"].sum(dim=1)
    assert sorted(lengths.tolist()) == [3] * 4 + [6] * 4
    sampled, old = rows(trainer, "sampling_per_token_logps"), rows(trainer, "old_per_token_logps").float()
    torch.testing.assert_close(sampled, old, rtol=0, atol=2e-5)
    ratio = rows(trainer, "importance_sampling_ratio")
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=2e-5)


def test_a_token_that_the_server_could_not_score_is_not_corrected(server, shapes, tiny_model, tmp_path):
    server.unknown_logps = {0, 3}
    data = dataset_of(shapes, tiny_model)
    ours = make_trainer(tiny_model, data, tmp_path / "vllm", **on(server))
    ours.train()
    unknown = rows(ours, "sampling_per_token_logps").isnan()
    assert 0 < unknown.sum() < len(unknown)
    ratio = torch.cat([r["importance_sampling_ratio"].flatten() for r in ours.rollouts])
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=2e-4)
    plain = make_trainer(tiny_model, data, tmp_path / "hf", samples=ours.samples)
    plain.train()
    assert_same_gradients(ours, plain, atol=1e-4)


def command_line(shapes, model, out, *, method="grpo"):
    return [
        *("--method", method, "--model_name_or_path", str(model), "--output_dir", str(out), "--use_vllm", "True"),
        *("--data_file_paths", str(shapes / "train.jsonl"), "--image_folders", str(shapes / "images")),
        *("--reward_funcs", "format", "--per_device_train_batch_size", "4", "--num_generations", "4"),
        *("--max_completion_length", "8", "--max_steps", "2", "--logging_steps", "1", "--report_to", "none"),
        *("--bf16", "False", "--use_cpu", "True", "--gradient_checkpointing", "False", "--vllm_mode", "server"),
    ]


def test_a_server_that_is_not_there_is_named(shapes, tiny_model, tmp_path):
    absent = ["--vllm_server_base_url", f"http://127.0.0.1:{free_port()}", "--vllm_server_timeout", "0"]
    with pytest.raises(SystemExit, match=r"train: The vLLM server can't be reached at http://127.0.0.1:\d+ "):
        main([*command_line(shapes, tiny_model, tmp_path), *absent])


def test_a_server_that_dies_is_one_sentence(tiny_model, shapes, tmp_path):
    with serving(tiny_model) as server:
        trainer = make_trainer(tiny_model, dataset_of(shapes, tiny_model), tmp_path, **on(server))
        trainer.vllm_generation.vllm_client.session.mount("http://", HTTPAdapter(max_retries=0))
    trainer.vllm_generation.vllm_client.session.close()
    with pytest.raises(requests.ConnectionError, match=r"server stopped answering\. Start it again, then the same"):
        trainer.train()


def test_a_server_with_other_limits_on_images_is_refused(server, shapes, tiny_model, tmp_path):
    processor = AutoProcessor.from_pretrained(tiny_model, padding_side="left")
    set_pixel_limits(processor, min_pixels=256, max_pixels=512)
    data = dataset_of(shapes, tiny_model)
    trainer = make_trainer(tiny_model, data, tmp_path, processor=processor, **on(server))
    with pytest.raises(ValueError, match=r"makes 4 tokens of an image of 32 x 32 pixels, the run 1: start the serv"):
        trainer.train()
    with pytest.raises(ValueError, match=r"checkpoint's own limits .*16384.*, the run at .*512"):
        make_trainer(tiny_model, data, tmp_path, processor=processor, **COLOCATE)


def test_a_missing_vllm_is_one_sentence(shapes, tiny_model, tmp_path, monkeypatch):
    for name in modules():
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit, match="train: use_vllm needs the package vllm, which is not installed"):
        main(command_line(shapes, tiny_model, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_training_command_runs_on_a_server_of_its_own(processes, shapes, tiny_model, tmp_path):
    port = free_port()
    serve = [sys.executable, str(TESTS / "vllm_server.py"), "--model", str(tiny_model), "--port", str(port)]
    train = [
        sys.executable,
        str(TESTS / "vllm_stand_in.py"),
        *command_line(shapes, tiny_model, tmp_path, method="saei"),
    ]
    train += ["--vllm_server_base_url", f"http://127.0.0.1:{port}", "--vllm_group_port", str(free_port())]
    with subprocess.Popen(serve) as running:
        try:
            done = subprocess.run(train, capture_output=True, text=True, timeout=200)
        finally:
            running.terminate()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    differences = [json.loads(line)["sampling/sampling_logp_difference/max"] for line in lines[:2]]
    assert max(differences) < 1e-4
