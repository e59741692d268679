"""Adapters: what is refused before a model loads, what they train in every method, the reference, and their resume."""

import math
import shutil

import pytest
import torch
from command_runs import all_finite, argv, changed, task_row, trainer_of, weights_of, write_rows
from safetensors.torch import load_file
from support import uneven_reward  # noqa: F401  (the reward of the runs)
from transformers import AutoModelForImageTextToText
from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

from vlm_entropy.trainers import saei
from vlm_entropy.trainers.__main__ import main, prepare
from vlm_entropy.trainers.methods import METHODS

LORA = {"use_peft": "true", "lora_target_modules": "q_proj v_proj", "lora_r": 4}
TOWER = ".*visual.*qkv"


@pytest.fixture
def command(tiny_model, shapes, tmp_path):
    """The command line of a run on 16 rows of the shapes task."""
    rows = [task_row(f"train-{index:06d}.png", index) for index in range(16)]
    data = write_rows(tmp_path / "rows.jsonl", rows)

    def build(model=tiny_model, out=tmp_path / "out", **changes):
        return argv(model, data, shapes / "images", out, **changes)

    return build


# -- refused before a model loads --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"load_in_4bit": "true"}, "--load_in_4bit leaves nothing to train: quantised weights stay as they are. "),
        ({"load_in_8bit": "true"}, "--load_in_8bit leaves nothing to train"),
        ({**LORA, "lora_target_modules": "w_q w_v"}, r"--lora_target_modules \['w_q', 'w_v'\] names no layer of the "),
        (
            {**LORA, "lora_target_modules": "q_proj"},
            "--lora_target_modules 'q_proj' names no layer of the model; a single one is a pattern for the whole name",
        ),
        (
            {**LORA, "lora_target_modules": "q_proj lm_head"},
            "--lora_target_modules names lm_head, where TRL trains no",
        ),
        (
            {**LORA, "lora_target_modules": TOWER, "freeze_vision_modules": "true"},
            "Without the vision tower nothing is left to train; name other lora_target_modules.",
        ),
    ],
)
def test_adapters_that_cannot_be_trained_are_refused_in_a_sentence(command, monkeypatch, changes, sentence):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", pytest.fail)
    with pytest.raises(SystemExit, match=f"^vlm-entropy-train: {sentence}"):
        main(command(**changes))


@pytest.mark.parametrize(
    ("package", "cuda", "sentence"),
    [
        (None, True, "--load_in_4bit needs the package bitsandbytes, which is not installed."),
        ("spec", False, "--load_in_4bit needs a CUDA device, and there is none."),
        ("spec", True, None),
    ],
)
def test_quantised_weights_need_their_package_and_a_cuda_device(command, monkeypatch, package, cuda, sentence):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: package)
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    if sentence is None:
        assert prepare(command(**LORA, load_in_4bit="true")).model.load_in_4bit
    else:
        with pytest.raises(ValueError, match=sentence):
            prepare(command(**LORA, load_in_4bit="true"))


def test_the_check_shares_out_no_weights_under_zero_3(command, monkeypatch):
    monkeypatch.setattr("deepspeed.zero.Init", pytest.fail)
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})  # in force as long as it lives
    assert is_deepspeed_zero3_enabled()
    assert prepare(command(**LORA)).model.lora_r == 4
    del config
    assert not is_deepspeed_zero3_enabled()


def test_an_adapter_is_no_model_to_train(command, tmp_path):
    main(command(**LORA, max_steps=1))
    with pytest.raises(SystemExit, match=r"is an adapter; put it into its base first: .*trainers.merge --adapter"):
        main(command(model=tmp_path / "out", out=tmp_path / "again"))


# -- what is trained ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_the_adapters_alone(command, method):
    trainer = trainer_of(command(method=method, **LORA))
    before = weights_of(trainer)
    trainer.train()
    assert trainer.state.global_step == 2
    assert all_finite(trainer)
    updated = changed(before, weights_of(trainer))
    assert {name for name in updated if ".lora_B." in name} == {name for name in before if ".lora_B." in name}
    assert all(".lora_" in name for name in updated)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"lora_target_modules": TOWER}, lambda name: "visual" in name),
        ({"lora_target_modules": None}, lambda name: "lm_head" not in name),
        ({"lora_target_modules": None, "freeze_vision_modules": "true"}, lambda name: "visual" not in name),
    ],
    ids=["in the tower", "on all linear layers", "on all but the frozen tower"],
)
def test_adapters_are_trained_where_they_are_asked_for(command, changes, where):
    trainer = trainer_of(command(**{**LORA, **changes}))
    before = weights_of(trainer)
    trainer.train()
    linear = {name for name in before if ".base_layer.weight" in name}
    assert any("visual" in name for name in linear)
    assert not any("lm_head" in name for name in linear)
    adapters = {name.replace("base_layer", "lora_B.default") for name in linear if where(name)}
    assert {name for name in changed(before, weights_of(trainer)) if ".lora_A." not in name} == adapters


def test_low_precision_weights_stay_as_they_are_under_float32_adapters(command, tiny_model, tmp_path):
    trainer = trainer_of(command(**LORA), dtype=torch.bfloat16)
    base = {name: value for name, value in weights_of(trainer).items() if ".lora_" not in name}
    kinds = {name: parameter.dtype for name, parameter in trainer.model.named_parameters()}
    assert {kind for name, kind in kinds.items() if ".lora_" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if ".lora_" not in name} == {torch.bfloat16}
    trainer.train()
    assert all_finite(trainer)
    after = weights_of(trainer)
    assert not changed(base, after)
    assert all(value.abs().max() > 0 for name, value in after.items() if ".lora_B." in name)
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}


# -- the reference -----------------------------------------------------------------------------------------------


def written_out_logps(model, rollout):
    """(B, T) log-probs of the completions, by a plain forward and a log-softmax of all logits."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
    mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
    names = ("pixel_values", "image_grid_thw", "mm_token_type_ids")
    fields = {name: rollout[name] for name in names if name in rollout}
    logits = model(input_ids=ids, attention_mask=mask, **fields).logits[:, :-1].log_softmax(dim=-1)
    return logits.gather(2, ids[:, 1:, None])[..., 0][:, -rollout["completion_ids"].size(1) :]


@pytest.mark.parametrize("share_prompts", ["off", "auto"])
def test_the_reference_of_an_adapter_is_its_base(command, tiny_model, share_prompts):
    changes = {**LORA, "beta": 0.1, "max_steps": 3, "share_prompts": share_prompts, "lora_dropout": 0.0}
    trainer = trainer_of(command(**changes))
    trainer.train()
    assert trainer.ref_model is None
    kl = [log["kl"] for log in trainer.state.log_history if "kl" in log]
    assert abs(kl[0]) < 1e-12  # adapters start as nothing
    assert min(kl[1:]) > 1e-6
    rollout = trainer.rollouts[-1]
    base = AutoModelForImageTextToText.from_pretrained(tiny_model, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = written_out_logps(base, rollout), rollout["ref_per_token_logps"]
    real = rollout["completion_mask"].bool()
    # log-probs in float64, entropies and log-probs of TRL's head in float32
    torch.testing.assert_close(actual.double()[real], expected[real], rtol=0, atol=1e-5)
    with torch.no_grad():
        adapted = written_out_logps(trainer.model, rollout)
    assert (adapted - expected)[real].abs().max() > 1e-3


# -- SaEI's attack -----------------------------------------------------------------------------------------------

SETTINGS = {
    "all weights trained": {},
    "vision tower frozen": {"freeze_vision_modules": "true"},
    "LoRA": LORA,
    "LoRA, tower frozen": {**LORA, "lora_target_modules": None, "freeze_vision_modules": "true"},
    "LoRA in the tower": {**LORA, "lora_target_modules": TOWER},
}


def test_the_attack_has_the_same_gradient_and_raises_entropy_through_frozen_and_adapted_towers(command, monkeypatch):
    gradients, entropies = {}, {}
    for name, setting in SETTINGS.items():
        seen, objectives = gradients.setdefault(name, []), entropies.setdefault(name, [])
        with monkeypatch.context() as patch:
            step, objective = saei.perturb, saei.attacked_entropy
            patch.setattr(saei, "perturb", lambda p, g, s=step, seen=seen, **k: seen.append(g) or s(p, g, **k))
            patch.setattr(
                saei, "attacked_entropy", lambda *a, o=objective, kept=objectives: kept.append(o(*a)) or kept[-1]
            )
            # Two steps, so that the entropy is also measured after the first.
            changes = {"method": "saei", "max_steps": 1, "attack_steps": 2, "lora_dropout": 0.0}
            trainer_of(command(**changes, **setting)).train()
        # Two prompts, in one chunk: values 0 and 1 before the first step, 2 and 3 after it.
        before, after = (sum(value.item() for value in objectives[start : start + 2]) for start in (0, 2))
        assert after > before + 1e-4, name
        assert min(gradient.abs().max() for gradient in seen) > 1e-6, name
    plain = gradients.pop("all weights trained")[:2]
    for name, others in gradients.items():
        for expected, actual in zip(plain, others[:2], strict=True):
            scale = expected.abs().max()
            torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=1e-5, msg=name)


# -- resuming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"beta": 0.1},
        {"lora_target_modules": None, "freeze_vision_modules": "true", "method": "two_stage"},
        {"dtype": "bfloat16", "use_dora": "true"},
    ],
    ids=["reference", "tower frozen", "bfloat16 base, DoRA"],
)
def test_a_resumed_adapter_has_the_weights_of_the_uninterrupted_run(command, tmp_path, changes):
    flags = {**LORA, **changes, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    main(command(**flags, out=tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "killed" / "checkpoint-2")
    main(command(**flags, out=tmp_path / "killed"))
    paths = ("killed/checkpoint-2", "whole", "killed")
    half, whole, resumed = (load_file(tmp_path / path / "adapter_model.safetensors") for path in paths)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    moved = changed(half, whole)
    assert moved
    assert not ("freeze_vision_modules" in changes and any("visual" in name for name in moved))
    assert all(math.isfinite(value.abs().max()) for value in whole.values())
