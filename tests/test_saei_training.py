"""SaEI inside the trainer: what is sampled from which image, the gradient, what it costs and what it leaves alone."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from support import FAST, Recorder, uneven_reward
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_entropy.data.examples import build_dataset
from vlm_entropy.data.families import FAMILIES
from vlm_entropy.data.rows import read_rows
from vlm_entropy.data.tiny import MODEL_TYPES, build_tiny_vlm
from vlm_entropy.trainers import EntropyGRPOTrainer, TwoStageConfig, TwoStageTrainer, saei
from vlm_entropy.trainers.noisy_rollout import NoisyRolloutTrainer
from vlm_entropy.trainers.saei import SaeiConfig, SaeiTrainer, select_tokens

ALPHA = 2 / 255
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)  # CLIP's, of all four processors
OPTIONS = {**FAST, "per_device_train_batch_size": 8, "max_steps": 1, "max_grad_norm": 0.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of each family with random weights, sharp enough that entropies differ from token to token."""
    folders = {}
    for model_type in MODEL_TYPES:
        folder = tmp_path_factory.mktemp("models") / model_type
        folders[model_type] = build_tiny_vlm(model_type, folder, hidden_size=32, image_size=16, patch_size=4)
        model = AutoModelForImageTextToText.from_pretrained(folder)
        with torch.no_grad():
            model.get_input_embeddings().weight *= 3
        model.save_pretrained(folder)
    return folders


def dataset_of(shapes, folder, model_type):
    rows, _ = read_rows(str(shapes / "train.jsonl"), str(shapes / "images"))
    processor = AutoProcessor.from_pretrained(folder, padding_side="left")
    return build_dataset(rows, family=FAMILIES[model_type], processor=processor, task_type="plain")


def make(trainer_class, models, shapes, tmp_path, *, model_type="qwen2_5_vl", peft_config=None, **options):
    return trainer_class(
        model=str(models[model_type]),
        reward_funcs=[uneven_reward],
        args=trainer_class.config_class(output_dir=str(tmp_path), **{**OPTIONS, **options}),
        train_dataset=dataset_of(shapes, models[model_type], model_type),
        peft_config=peft_config,
    )


def grey_image(width, height, seed):
    """Noise that stays away from black and white, so that no step is clipped."""
    return Image.fromarray(np.random.default_rng(seed).integers(50, 200, (height, width, 3), dtype=np.uint8))


def batch_of(trainer, prompts):
    """Prompt ids, images and fields of prompts given as (text, images), each `num_generations` times, as TRL's."""
    prompts = [prompt for prompt in prompts for _ in range(trainer.args.num_generations)]
    conversations = [
        [
            {
                "role": "user",
                "content": [*({"type": "image", "image": i} for i in images), {"type": "text", "text": text}],
            }
        ]
        for text, images in prompts
    ]
    fields = trainer.processing_class.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    fields = {name: value for name, value in fields.items() if name != "attention_mask"}
    return fields.pop("input_ids"), [list(images) for _, images in prompts], fields


class Engine:
    """A sampler that remembers what it was asked, and answers row i of call c with tokens that depend on i and c."""

    def __init__(self, logps=False):
        self.calls, self.logps = [], logps

    def __call__(self, prompt_ids, images, fields, *, num_generations):
        self.calls.append((prompt_ids, images, fields, num_generations))
        call = len(self.calls)
        ids = [[100 * call + row] + [5 + (7 * row + k) % 90 for k in range(row % 5)] for row in range(len(prompt_ids))]
        return ids, [[-1.0] * len(row) for row in ids] if self.logps else None


def attack(trainer, prompts, engine=None):
    """One call of `sample`: the engine, which knows both halves, and the result."""
    engine = engine or Engine()
    trainer.model.train()
    ids, images, fields = batch_of(trainer, prompts)
    return engine, trainer.sample(ids, images, fields, generate=engine)


def changed_images(engine):
    return [np.array(image).astype(int) for row in engine.calls[1][1] for image in row]


def test_each_half_is_sampled_from_its_own_images_and_returned_in_its_own_place(models, shapes, tmp_path):
    trainer = make(SaeiTrainer, models, shapes, tmp_path, clean_generations=3)
    first, second = grey_image(16, 16, 0), grey_image(32, 24, 1)
    prompts = [("Find", [first]), ("Find red", []), ("Find it", [second, first])]
    engine, (completions, logps) = attack(trainer, prompts, Engine(logps=True))
    (clean_ids, clean, _, three), (ids, changed, fields, one) = engine.calls
    assert (three, one) == (3, 1)
    assert clean == [[first]] * 3 + [[]] * 3 + [[second, first]] * 3
    assert ids == clean_ids[::3]
    # Rows 0-2, 4-6, 8-10 are the first call's 0 to 8, rows 3, 7, 11 the second's 0 to 2.
    assert [row[0] for row in completions] == [100, 101, 102, 200, 103, 104, 105, 201, 106, 107, 108, 202]
    assert trainer._is_adversarial == [False] * 3 + [True] + [False] * 4 + [False] * 3 + [True]
    # Log-probs under another image are unknown; those of the prompt without an image are not.
    unknown = [all(math.isnan(logp) for logp in row) for row in logps]
    assert unknown == trainer._is_adversarial
    assert [len(row) for row in logps] == [len(row) for row in completions]
    # What the engine gets is what the processor makes of the images it gets, for the same token ids.
    assert [image.size for row in changed for image in row] == [(16, 16), (32, 24), (16, 16)]
    for row, old in zip(changed, [[first], [], [second, first]], strict=True):
        for new, clean_image in zip(row, old, strict=True):
            assert np.abs(np.array(new).astype(int) - np.array(clean_image)).max() == 2
    again = batch_of(trainer, [(text, row) for (text, _), row in zip(prompts, changed, strict=True)])
    processed = trainer.processing_class.image_processor(
        images=[i for row in changed for i in row], return_tensors="pt"
    )
    assert again[0][::4] == ids
    torch.testing.assert_close(fields["pixel_values"], processed["pixel_values"], rtol=0, atol=0)
    torch.testing.assert_close(fields["image_grid_thw"], processed["image_grid_thw"], rtol=0, atol=0)
    assert fields["mm_token_type_ids"] == again[2]["mm_token_type_ids"][::4]


def written_out_objective(model, row_ids, answers, fields, keep):
    """H of one prompt from full logits, answer by answer, without padding or a mask."""
    means = []
    for answer in answers:
        ids = torch.tensor([row_ids + answer])
        extra = {name: fields[name] for name in ("pixel_values", "image_grid_thw") if name in fields}
        if "mm_token_type_ids" in fields:
            extra["mm_token_type_ids"] = torch.tensor([list(fields["mm_token_type_ids"][0]) + [0] * len(answer)])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits[0, len(row_ids) - 1 : -1]
        entropies = torch.distributions.Categorical(logits=logits).entropy()
        means.append(entropies[keep(entropies.tolist())].mean())
    return sum(means) / len(means)


def middle_third(entropies):
    order = sorted(range(len(entropies)), key=entropies.__getitem__)
    third = len(order) // 3
    return order[third : len(order) - third]


@pytest.mark.parametrize("scope", ["response", "all"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_step_is_alpha_per_channel_along_the_sign_of_the_written_out_gradient(
    models, shapes, tmp_path, model_type, scope
):
    trainer = make(SaeiTrainer, models, shapes, tmp_path, model_type=model_type, token_scope=scope)
    prompts = [("Find", [grey_image(16, 16, 0)]), ("Find the red circle", [grey_image(16, 16, 1)])]
    engine, _ = attack(trainer, prompts)
    keep = middle_third if scope == "response" else lambda entropies: list(range(len(entropies)))
    objectives = []
    for place, prompt in enumerate(prompts):
        ids, _, fields = batch_of(trainer, [prompt])
        pixels = fields["pixel_values"]
        pixels = (torch.stack(pixels) if isinstance(pixels, list) else pixels).double()
        pixels = pixels[: len(pixels) // 4].requires_grad_()
        fields = {**fields, "pixel_values": pixels}
        if "image_grid_thw" in fields:
            fields["image_grid_thw"] = fields["image_grid_thw"][:1]
        answers = Engine()(range(4), None, None, num_generations=2)[0][2 * place : 2 * place + 2]
        objective = written_out_objective(trainer.model, ids[0], answers, fields, keep)
        (gradient,) = torch.autograd.grad(objective, pixels)
        given = engine.calls[1][2]["pixel_values"]
        step = given[: len(given) // 2] if place == 0 else given[len(given) // 2 :]
        step = step[: len(step) // 2].double() - pixels.detach()
        if model_type == "internvl":
            sizes = ALPHA / STD.view(3, 1, 1)
        else:
            # (patches, channel, frame, pixel): both frames move by the sign of the sum of their gradients.
            gradient = gradient.view(16, 3, 2, 16).sum(dim=2, keepdim=True).expand(-1, -1, 2, -1)
            step = step.view(16, 3, 2, 16)
            sizes = ALPHA / STD.view(3, 1, 1)
        # TRL's fused head is float32: gradients far below the largest have no certain sign.
        certain = gradient.abs() > 1e-3 * gradient.abs().max()
        assert certain.float().mean() > 0.95
        expected = sizes * gradient.sign()
        # float32 pixel values of size 2
        torch.testing.assert_close(step[certain], expected.expand_as(step)[certain], rtol=0, atol=1e-6)
        objectives.append(objective.item())
    assert trainer._metrics["train"]["saei/clean_entropy"] == [pytest.approx(sum(objectives) / 2, rel=1e-5)]


def freeze_vision(trainer):
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad_("visual" not in name and "vision" not in name)


SETTINGS = {
    "gradient checkpointing": {"gradient_checkpointing": True},
    "reentrant checkpointing": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "vision tower frozen": {},
    "LoRA": {"lora": "all-linear"},
    "LoRA and checkpointing": {"lora": ["q_proj", "v_proj"], "gradient_checkpointing": True},
    "one prompt at a time": {"per_device_train_batch_size": 4, "clean_generations": 3, "steps_per_generation": 2},
}


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "internvl"])
def test_the_attack_is_the_same_in_every_setting_and_leaves_the_weights_alone(models, shapes, tmp_path, model_type):
    prompts = [("Find", [grey_image(16, 16, 0)]), ("Find red", [grey_image(48, 16, 1)])]
    plain = make(SaeiTrainer, models, shapes, tmp_path, model_type=model_type, clean_generations=3)
    expected = changed_images(attack(plain, prompts)[0])
    for name, setting in SETTINGS.items():
        options = {"clean_generations": 3, **setting}
        if "lora" in options:
            lora = LoraConfig(r=2, target_modules=options.pop("lora"), exclude_modules=["lm_head"])
            options["peft_config"] = lora
        trainer = make(SaeiTrainer, models, shapes, tmp_path, model_type=model_type, **options)
        if name == "vision tower frozen":
            freeze_vision(trainer)
        flags = {name: parameter.requires_grad for name, parameter in trainer.model.named_parameters()}
        assert all(flags.values()) == (name not in ("vision tower frozen", "LoRA", "LoRA and checkpointing"))
        with torch.no_grad():
            actual = changed_images(attack(trainer, prompts)[0])
        for ours, theirs in zip(actual, expected, strict=True):
            assert (ours != theirs).mean() < 2e-3, name  # gradients of nearly 0 in another order of summation
        assert all(parameter.grad is None for parameter in trainer.model.parameters()), name
        assert {name: parameter.requires_grad for name, parameter in trainer.model.named_parameters()} == flags


def test_flags_come_back_when_the_attack_fails(models, shapes, tmp_path):
    trainer = make(SaeiTrainer, models, shapes, tmp_path)
    trainer._entropies = lambda *args, **kwargs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        attack(trainer, [("Find", [grey_image(16, 16, 0)])])
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_alpha_zero_gives_the_clean_image(models, shapes, tmp_path, model_type):
    trainer = make(SaeiTrainer, models, shapes, tmp_path, model_type=model_type, alpha=0.0)
    image = grey_image(48, 16, 0)  # one that the processors keep, in three tiles for InternVL
    engine, _ = attack(trainer, [("Find", [image])])
    assert all((new == np.array(image)).all() for new in changed_images(engine))
    clean, changed = (call[2]["pixel_values"] for call in engine.calls)
    torch.testing.assert_close(changed, clean, rtol=0, atol=0)
    assert trainer._metrics["train"]["saei/clipped_pixels"] == [0]


@pytest.mark.parametrize("model_type", ["qwen2_vl", "internvl"])
def test_the_attacked_forward_sees_the_clean_pixels_thumbnail_included(models, shapes, tmp_path, model_type):
    trainer = make(SaeiTrainer, models, shapes, tmp_path, model_type=model_type)
    seen = []
    trainer.model.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True)
    engine, _ = attack(trainer, [("Find", [grey_image(50, 33, 0)])])
    # float32 of size 2
    torch.testing.assert_close(seen[0].detach(), engine.calls[0][2]["pixel_values"], rtol=0, atol=3e-7)


def test_answers_without_a_token_leave_the_image_as_it_is(models, shapes, tmp_path):
    class Silent(Engine):
        def __call__(self, prompt_ids, images, fields, *, num_generations):
            super().__call__(prompt_ids, images, fields, num_generations=num_generations)
            return [[]] * len(prompt_ids), None

    trainer, image = make(SaeiTrainer, models, shapes, tmp_path), grey_image(16, 16, 0)
    engine, _ = attack(trainer, [("Find", [image])], Silent())
    assert all((new == np.array(image)).all() for new in changed_images(engine))
    assert trainer._metrics["train"]["saei/clean_entropy"] == [0.0]


def test_white_pixels_are_clipped_and_counted(models, shapes, tmp_path):
    trainer = make(SaeiTrainer, models, shapes, tmp_path)
    white = Image.fromarray(np.full((16, 16, 3), 255, dtype=np.uint8))
    engine, _ = attack(trainer, [("Find", [white])])
    new = changed_images(engine)[0]
    assert set(np.unique(new)) == {253, 255}
    assert trainer._metrics["train"]["saei/clipped_pixels"] == [pytest.approx((new == 255).mean(), abs=1e-6)]


def test_a_second_step_starts_where_the_first_ended_and_keeps_the_tokens(models, shapes, tmp_path, monkeypatch):
    prompts = [("Find", [grey_image(16, 16, 0)])]
    trainer = make(SaeiTrainer, models, shapes, tmp_path, attack_steps=2, alpha=8 / 255)
    calls = []
    monkeypatch.setattr(saei, "select_tokens", lambda *a, **k: calls.append(1) or select_tokens(*a, **k))
    twice = changed_images(attack(trainer, prompts)[0])[0]
    steps = np.unique(twice - np.array(prompts[0][1][0]))
    assert set(steps) == {-16, 0, 16}
    assert len(calls) == 1


def count_work(trainer):
    """Hooks that count rows and tokens of the model, patches of the vision tower, and backward passes through it."""
    counts = {"model": [], "patches": [], "backward": 0}

    def model_hook(module, args, kwargs):
        counts["model"].append(tuple(kwargs["input_ids"].shape))

    def vision_hook(module, args, kwargs):
        pixels = args[0] if args else next(value for value in kwargs.values() if torch.is_tensor(value))
        counts["patches"].append(len(pixels))

    def backward_hook(module, grad_input, grad_output):
        counts["backward"] += 1

    trainer.model.register_forward_pre_hook(model_hook, with_kwargs=True)
    tower = next(m for n, m in trainer.model.named_modules() if n.endswith(("visual", "vision_tower")))
    tower.register_forward_pre_hook(vision_hook, with_kwargs=True)
    # InternVL's tower is patchified inside; both end in blocks of attention.
    last = [module for name, module in tower.named_modules() if name.endswith(("norm2", "layernorm_after"))][-1]
    last.register_full_backward_hook(backward_hook)
    return counts


@pytest.mark.parametrize(("model_type", "rows_per_image"), [("qwen2_5_vl", 16), ("qwen3_vl", 16), ("internvl", 1)])
def test_the_attack_costs_one_forward_and_one_backward_over_the_clean_answers(
    models, shapes, tmp_path, model_type, rows_per_image
):
    trainer = make(SaeiTrainer, models, shapes, tmp_path, model_type=model_type, clean_generations=3)
    counts = count_work(trainer)
    prompts = [("Find", [grey_image(16, 16, 0)]), ("Find red", []), ("Find it", [grey_image(16, 16, 1)])]
    engine, (completions, _) = attack(trainer, prompts)
    # 3 answers to each of the two prompts with an image, 8 rows at a time; the longest answer has 5 tokens.
    longest = max(len(ids) for ids in engine.calls[0][0])
    answers = [completions[i] for i in (0, 1, 2, 8, 9, 10)]
    tokens = longest + max(map(len, answers))
    assert counts == {"model": [(6, tokens)], "patches": [6 * rows_per_image], "backward": 1}


@pytest.mark.parametrize(("options", "passes"), [({"attack_steps": 2}, 2), ({"per_device_train_batch_size": 4}, 2)])
def test_more_steps_or_smaller_batches_are_more_passes(models, shapes, tmp_path, options, passes):
    options |= {"clean_generations": 3, "gradient_accumulation_steps": 2}
    trainer = make(SaeiTrainer, models, shapes, tmp_path, **options)
    counts = count_work(trainer)
    attack(trainer, [("Find", [grey_image(16, 16, seed)]) for seed in range(2)])
    assert len(counts["model"]) == counts["backward"] == passes
    # 2 prompts of 3 answers with 16 patches each, every step.
    assert sum(counts["patches"]) == 96 * options.get("attack_steps", 1)


def test_prompts_without_images_cost_nothing_and_are_sampled_in_halves_all_the_same(models, shapes, tmp_path):
    trainer = make(SaeiTrainer, models, shapes, tmp_path)
    counts = count_work(trainer)
    ids, _, fields = batch_of(trainer, [("Find", [])])
    engine = Engine()
    trainer.sample(ids, None, fields, generate=engine)
    assert [(len(call[0]), call[1], call[3]) for call in engine.calls] == [(2, None, 2), (2, None, 2)]
    assert "pixel_values" not in engine.calls[1][2]
    assert counts["model"] == []
    assert trainer._metrics["train"]["saei/text_only_prompts"] == [1.0]
    assert "saei/clean_entropy" not in trainer._metrics["train"]


def test_unequal_work_under_spread_weights_is_refused(models, shapes, tmp_path, monkeypatch):
    trainer = make(SaeiTrainer, models, shapes, tmp_path)
    monkeypatch.setattr(trainer.accelerator, "gather", lambda tensor: torch.tensor([1, 0]))
    trainer._check_equal_work(1)  # each process on its own weights
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match=r"equally many prompts; .* images are \[1, 0\]"):
        trainer._check_equal_work(1)


def test_noise_has_saeis_interface_and_never_asks_the_model(models, shapes, tmp_path):
    prompts = [("Find", [grey_image(16, 16, 0)]), ("Find it", [grey_image(32, 16, 1), grey_image(16, 16, 2)])]
    clean = [np.array(image).astype(int) for _, images in prompts for _ in range(2) for image in images]
    for noise in ("sign", "gaussian"):
        trainer = make(NoisyRolloutTrainer, models, shapes, tmp_path, noise=noise, noise_step=100)
        trainer.state.max_steps = 10
        counts = count_work(trainer)
        engine, (completions, _) = attack(trainer, prompts)
        assert counts["model"] == []
        assert [row[0] for row in completions] == [100, 101, 200, 201, 102, 103, 202, 203]
        steps = [new - old for new, old in zip(changed_images(engine), clean, strict=True)]
        if noise == "sign":
            assert all(set(np.unique(step)) == {-2, 2} for step in steps)
            assert max(abs(step.mean()) for step in steps) < 0.5
        else:
            # t = 99 (int of 100 · 0.99999): 1 - ᾱ = .0024, a deviation of 12.5 of 255, little clipped.
            assert all(9 < step.std() < 16 for step in steps)
            assert trainer._metrics["train"]["noisy_rollout/noise_step"] == [99]
        assert trainer._is_adversarial == [False, False, True, True] * 2


class Scripted(EntropyGRPOTrainer):
    """Completions that depend on the prompt and the place among the rows sampled together, and no engine."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rollouts, self.losses, self.recorder = [], [], Recorder()
        self.add_callback(self.recorder)

    def sample(self, prompt_ids, images, fields, *, generate):
        return [[5 + sum(ids) % 50, 7 + place % 2, 9][: 2 + place % 2] for place, ids in enumerate(prompt_ids)], None

    def compute_loss(self, model, inputs, **kwargs):
        self.rollouts.append(dict(inputs))
        loss = super().compute_loss(model, inputs, **kwargs)
        self.losses.append(loss.item())
        return loss


class ScriptedSaei(SaeiTrainer, Scripted):
    config_class = SaeiConfig


class ScriptedTwoStage(TwoStageTrainer, Scripted):
    config_class = TwoStageConfig


@dataclass
class Both(TwoStageConfig, SaeiConfig):
    pass


class ScriptedBoth(TwoStageTrainer, SaeiTrainer, Scripted):
    config_class = Both


TRAINING = {"alpha": 0.25, "gradient_accumulation_steps": 2, "max_steps": 2}


def trained(trainer_class, models, shapes, tmp_path, **options):
    trainer = make(trainer_class, models, shapes, tmp_path, **options)
    trainer.train()
    return trainer


def test_training_sees_clean_images_only_and_equals_grpo_on_the_same_answers(models, shapes, tmp_path):
    saei = trained(ScriptedSaei, models, shapes, tmp_path / "saei", **TRAINING)
    plain = {name: value for name, value in TRAINING.items() if name != "alpha"}
    grpo = trained(Scripted, models, shapes, tmp_path / "grpo", **plain)
    assert saei.losses == grpo.losses
    assert len(saei.losses) == 4
    torch.testing.assert_close(saei.recorder.gradients, grpo.recorder.gradients, rtol=0, atol=0)
    for ours, theirs in zip(saei.rollouts, grpo.rollouts, strict=True):
        torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], rtol=0, atol=0)
        torch.testing.assert_close(ours["completion_ids"], theirs["completion_ids"], rtol=0, atol=0)
        assert ours["is_adversarial"].dtype == torch.bool
    flags = torch.cat([rollout["is_adversarial"] for rollout in saei.rollouts])
    assert flags.sum() == flags.numel() / 2
    logs = saei.state.log_history[0]
    assert logs["saei/clean_entropy"] > 0
    assert 0 <= logs["saei/clipped_pixels"] <= 1
    assert (logs["saei/reward_clean"] + logs["saei/reward_adversarial"]) / 2 == pytest.approx(logs["reward"])


def test_with_two_stage_the_loss_is_the_sum_of_the_parts(models, shapes, tmp_path):
    options = {**TRAINING, "learning_rate": 0.0, "max_steps": 1}
    plain = {name: value for name, value in options.items() if name != "alpha"}
    term = {"lambda_max": 0.5, "switch_step": 1}
    saei = trained(ScriptedSaei, models, shapes, tmp_path / "saei", **options)
    both = trained(ScriptedBoth, models, shapes, tmp_path / "both", **options, **term)
    two_stage = trained(ScriptedTwoStage, models, shapes, tmp_path / "two", **plain, **term)
    grpo = trained(Scripted, models, shapes, tmp_path / "grpo", **plain)
    for composed, first, second, base in zip(both.losses, saei.losses, two_stage.losses, grpo.losses, strict=True):
        assert composed - base == pytest.approx((first - base) + (second - base), rel=0, abs=1e-12)
        assert abs(second - base) > 0.1
    assert both.state.log_history[0]["saei/clean_entropy"] == saei.state.log_history[0]["saei/clean_entropy"]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_trains_with_the_sampler_of_transformers(models, shapes, tmp_path, model_type):
    options = {"model_type": model_type, "gradient_checkpointing": True, "save_adversarial_images": 3}
    trainer = trained(SaeiTrainer, models, shapes, tmp_path, **options, max_steps=1 + (model_type == "internvl"))
    names = sorted(path.name for path in (tmp_path / "adversarial_images").iterdir())
    kinds = ("adversarial", "clean", "difference")
    stems = ["step-000001-00", "step-000001-01", "step-000002-00"]
    stems = stems[: 2 + (model_type == "internvl")]
    assert names == [f"{stem}-{kind}.png" for stem in stems for kind in kinds]
    clean, changed = (
        np.array(Image.open(tmp_path / "adversarial_images" / f"{stems[0]}-{kind}.png")).astype(int)
        for kind in ("clean", "adversarial")
    )
    assert np.abs(changed - clean).max() == 2
    assert all(math.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)
    assert trainer.model.training


def test_rewards_that_judge_no_row_are_left_out_of_the_means(models, shapes, tmp_path):
    trainer = make(SaeiTrainer, models, shapes, tmp_path)
    trainer._is_adversarial = [False, False, True, True]
    rewards = torch.tensor([[1.0], [math.nan], [3.0], [5.0]])
    added = trainer.prepare_rollout({}, [{}] * 4, rewards)
    assert added["is_adversarial"].tolist() == [False, False, True, True]
    metrics = trainer._metrics["train"]
    assert (metrics["saei/reward_clean"], metrics["saei/reward_adversarial"]) == ([1.0], [4.0])


def test_a_model_of_another_family_is_refused(models, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_entropy.trainers.pixels.LAYOUTS", {})
    with pytest.raises(ValueError, match="model type 'qwen2_5_vl' cannot be changed"):
        make(SaeiTrainer, models, shapes, tmp_path)


def test_noisy_rollout_trains(models, shapes, tmp_path):
    trainer = trained(NoisyRolloutTrainer, models, shapes, tmp_path, max_steps=3, decay_midpoint=0.5)
    steps = [log["noisy_rollout/noise_step"] for log in trainer.state.log_history if "loss" in log]
    # 500 · (1 - sigmoid(30 · (0, 1/3, 2/3 - 1/2))) = 499.9, 496.6, 3.3
    assert steps == [499, 496, 3]
