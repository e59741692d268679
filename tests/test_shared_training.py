"""Trainings that share prompts log what stock TRL logs, at a fraction of its patches and tokens."""

import logging

import pytest
import torch
from distributed_cases import dataset_of
from peft import LoraConfig
from sharing import Counted, family, picture, relative_difference
from support import FAST, Recorder, uneven_reward
from test_shared_images import CountedProcessor
from transformers import AutoConfig, AutoProcessor
from trl import GRPOConfig, GRPOTrainer

from vlm_entropy.data.families import vision_token_ids
from vlm_entropy.trainers import EntropyGRPOConfig, EntropyGRPOTrainer
from vlm_entropy.trainers import shared_prompt as sharing
from vlm_entropy.trainers.shared_forward import network_of

LOSS_TYPES = ["grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
LOGGED = ("loss", "grad_norm", "entropy", "kl", "reward", "clip_ratio/low_mean", "clip_ratio/high_mean")
LOGGED += ("clip_ratio/region_mean", "completions/mean_length", "completions/clipped_ratio")
LORA = LoraConfig(target_modules=["q_proj", "v_proj"], r=4, lora_dropout=0.0)


class Fixed:
    """Completions of 1 to 8 tokens in the place of sampled ones; every second one ends with the end of a turn."""

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        generator = torch.Generator().manual_seed(len(prompt_ids) + self.state.global_step)
        lengths = torch.randint(1, 9, (len(prompt_ids),), generator=generator).tolist()
        rows = [torch.randint(5, 200, (length,), generator=generator).tolist() for length in lengths]
        end = self.processing_class.tokenizer.eos_token_id
        return [[*row[:-1], end] if number % 2 else row for number, row in enumerate(rows)], None


class Kept:
    """Keeps the micro-batches and gradients, and counts what goes through the model and the image processor."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rollouts, self.recorder = [], Recorder()
        self.add_callback(self.recorder)
        self.counted = Counted(network_of(self.model))
        self.counted_reference = None if self.ref_model is None else Counted(self.ref_model)
        inner = self.processing_class.image_processor
        self.processed = self.processing_class.image_processor = CountedProcessor(inner)

    def compute_loss(self, model, inputs, **kwargs):
        self.rollouts.append(dict(inputs))
        return super().compute_loss(model, inputs, **kwargs)


def train(trainer_class, model, shapes, out, *, mixins=(), data=None, held_out=None, peft_config=None, **options):
    """A training on CPU in float32; TRL is told to sample no placeholder tokens, as the base class never does."""
    suppress = {"suppress_tokens": sorted(vision_token_ids(AutoConfig.from_pretrained(model)))}
    is_ours = issubclass(trainer_class, EntropyGRPOTrainer)
    options = {**FAST, "model_init_kwargs": None, "generation_kwargs": suppress, "max_steps": 3, **options}
    if not is_ours:
        del options["share_prompts"]
    trainer = type("KeptTrainer", (Kept, *mixins, trainer_class), {})(
        model=str(model),
        reward_funcs=[uneven_reward],
        args=(EntropyGRPOConfig if is_ours else GRPOConfig)(output_dir=str(out), **options),
        train_dataset=dataset_of(shapes, model) if data is None else data,
        eval_dataset=held_out,
        processing_class=AutoProcessor.from_pretrained(model, padding_side="left"),
        peft_config=peft_config,
    )
    trainer.train()
    return trainer


def logs_of(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]


def assert_same_logs(ours, trl, tolerance=1e-5):
    """All that the two log of loss, gradient, entropy, KL, clipping and reward, up to a part of its size."""
    assert len(logs_of(ours)) == len(logs_of(trl)) == trl.state.max_steps
    for actual, expected in zip(logs_of(ours), logs_of(trl), strict=True):
        assert expected["grad_norm"] > 1e-2
        for name in LOGGED:
            if name in expected:
                # a loss on the policy that sampled is a sum of advantages: 0 up to rounding
                assert actual[name] == pytest.approx(expected[name], rel=tolerance, abs=tolerance / 10), name


def assert_same_gradients(ours, trl, tolerance=1e-5):
    assert len(ours.recorder.gradients) == len(trl.recorder.gradients) > 0
    for actual, expected in zip(ours.recorder.gradients, trl.recorder.gradients, strict=True):
        assert actual.keys() == expected.keys()
        whole = [torch.cat([gradient[name].flatten() for name in expected]) for gradient in (actual, expected)]
        assert whole[1].norm() > 1e-2
        assert (whole[0] - whole[1]).norm() / whole[1].norm() < tolerance


# -- against stock TRL -------------------------------------------------------------------------------------------

SETTINGS = {
    "one group": ({}, {}),
    "two groups": ({"per_device_train_batch_size": 8}, {}),
    "a reference": ({"beta": 0.1}, {}),
    "checkpointing": ({"gradient_checkpointing": True}, {}),
    "reentrant checkpointing": (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {},
    ),
    "two iterations and a reference": ({"num_iterations": 2, "beta": 0.1, "max_steps": 4}, {}),
    "adapters and their base as the reference": ({"beta": 0.1}, {"peft_config": LORA}),
    "micro-batches of whole groups": ({"gradient_accumulation_steps": 2, "learning_rate": 1e-3}, {}),
    "micro-batches of parts of groups": (
        {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, "beta": 0.1},
        {},
    ),
    "several updates on a rollout": ({"steps_per_generation": 4, "gradient_accumulation_steps": 2}, {}),
    "uneven completions": ({"per_device_train_batch_size": 8, "beta": 0.1}, {"mixins": (Fixed,)}),
    "masked completions": (
        {"per_device_train_batch_size": 8, "mask_truncated_completions": True, "loss_type": "bnpo"},
        {"mixins": (Fixed,)},
    ),
    "the most uncertain tokens": ({"top_entropy_quantile": 0.5, "entropy_coef": 0.1}, {}),
}
SLOW = {"one group", "two groups", "reentrant checkpointing", "micro-batches of whole groups"}


@pytest.mark.parametrize(
    "setting", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SETTINGS]
)
def test_a_training_logs_what_stock_trl_logs(tiny_model, shapes, tmp_path, setting, caplog):
    options, others = SETTINGS[setting]
    trl = train(GRPOTrainer, tiny_model, shapes, tmp_path / "trl", **options, **others)
    ours = train(EntropyGRPOTrainer, tiny_model, shapes, tmp_path / "ours", share_prompts="auto", **options, **others)
    assert "not shared" not in caplog.text
    assert ours._sharing.is_on
    assert sum(ours.counted.tokens) < sum(trl.counted.tokens)
    assert_same_logs(ours, trl)
    assert_same_gradients(ours, trl)


def test_an_evaluation_logs_what_stock_trl_logs(tiny_model, shapes, tmp_path):
    options = {"per_device_eval_batch_size": 8, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1, "beta": 0.1}
    held_out = dataset_of(shapes, tiny_model).select(range(8, 12))
    trl, ours = (
        train(trainer_class, tiny_model, shapes, tmp_path, held_out=held_out, **options, share_prompts="auto")
        for trainer_class in (GRPOTrainer, EntropyGRPOTrainer)
    )
    expected, actual = (next(log for log in run.state.log_history if "eval_loss" in log) for run in (trl, ours))
    for name in ("eval_loss", "eval_entropy", "eval_kl", "eval_reward", "eval_completions/mean_length"):
        assert actual[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name
    assert sum(ours.counted.tokens) < sum(trl.counted.tokens)


def test_bfloat16_changes_a_training_no_more_than_it_changes_stock_trl(tiny_model, shapes, tmp_path):
    def first_gradient(trainer_class, **options):
        options = {
            "mixins": (Fixed,),
            "per_device_train_batch_size": 8,
            "max_steps": 1,
            "max_grad_norm": 0.0,
            **options,
        }
        trainer = train(trainer_class, tiny_model, shapes, tmp_path, **options)
        return torch.cat([gradient.flatten() for gradient in trainer.recorder.gradients[0].values()])

    exact = first_gradient(GRPOTrainer)
    usual = (first_gradient(GRPOTrainer, bf16=True) - exact).norm() / exact.norm()
    ours = (first_gradient(EntropyGRPOTrainer, share_prompts="on", bf16=True) - exact).norm() / exact.norm()
    assert 1e-3 < usual < 0.2
    assert ours < 1.25 * usual


# -- counted -----------------------------------------------------------------------------------------------------


def test_a_step_pays_for_each_prompt_and_image_once(tiny_model, shapes, tmp_path):
    copies, width, prompts, patches = 4, 8, 2, 16  # a picture of 32 pixels has 4 x 4 patches of 8
    options = {"per_device_train_batch_size": prompts * copies, "max_completion_length": width, "beta": 0.1}
    options |= {"max_steps": 2, "num_iterations": 1, "steps_per_generation": 1, "shuffle_dataset": False}
    full = {"generation_kwargs": {"min_new_tokens": width, "suppress_tokens": [260, 261, 262, 263]}}
    data = dataset_of(shapes, tiny_model).select([0, 1, 0, 1])
    trl, ours = (
        train(trainer_class, tiny_model, shapes, tmp_path, data=data, **{**options, **full, "share_prompts": "on"})
        for trainer_class in (GRPOTrainer, EntropyGRPOTrainer)
    )
    length = trl.rollouts[0]["prompt_ids"].size(1)
    rows = prompts * copies
    decoded = [rows] * (width - 1)
    # Prefill, then a token at a time; the forward of the reference, which is another network; the policy's.
    assert trl.counted.tokens == [rows * length, *decoded, rows * (length + width)] * 2
    shared = prompts * (length - 1 + copies * width)
    assert ours.counted.tokens == [prompts * length, *decoded, shared] * 2
    assert trl.counted.patches == [rows * patches] * 4
    assert ours.counted.patches == [prompts * patches] * 4
    # The first forward of all, the reference's, is checked: once shared, once row by row.
    assert trl.counted_reference.tokens == [rows * (length + width)] * 2
    assert ours.counted_reference.tokens == [shared, rows * (length + width), shared, shared]
    assert trl.counted_reference.patches == [rows * patches] * 2
    assert ours.counted_reference.patches == [patches * number for number in (prompts, rows, prompts, prompts)]
    # TRL processes the images of a rollout to sample from and again to train on.
    assert trl.processed.counts == [rows, rows] * 2
    assert ours.processed.counts == [prompts, prompts] * 2


def test_tiles_are_counted_and_the_policy_that_sampled_is_kept_at_the_same_price(shapes, tmp_path):
    """InternVL, of whose tiles TRL asks the image processor once more, and a second update on a rollout."""
    model, copies, prompts, tiles = family("internvl"), 4, 2, 3  # 64 x 32 pixels: two tiles and a thumbnail
    data = dataset_of(shapes, model).select([0, 1, 0, 1])
    data = data.map(lambda example: {**example, "images": [picture("wide")]})
    options = {"per_device_train_batch_size": prompts * copies, "num_iterations": 2, "max_steps": 2}
    trl, ours = (
        train(trainer_class, model, shapes, tmp_path, data=data, **options, share_prompts="on")
        for trainer_class in (GRPOTrainer, EntropyGRPOTrainer)
    )
    rows = prompts * copies
    assert trl.processed.counts == [rows] * 3
    assert ours.processed.counts == [1] * 3  # both prompts show the same picture
    # to sample, old log-probs (checked: once more each way), and two updates
    assert trl.counted.patches == [rows * tiles] * 4
    assert ours.counted.patches == [number * tiles for number in (prompts, prompts, rows, prompts, prompts, prompts)]
    assert_same_logs(ours, trl)


def test_parts_of_groups_share_inside_each_micro_batch(tiny_model, shapes, tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2}
    ours = train(EntropyGRPOTrainer, tiny_model, shapes, tmp_path, share_prompts="auto", mixins=(Fixed,), **options)
    length = ours.rollouts[0]["prompt_ids"].size(1)
    widths = [int(batch["completion_mask"].sum(dim=1).max()) for batch in ours.rollouts]
    # A micro-batch of the run's first forward is taken twice more: by the check, shared and row by row.
    whole = ours.rollouts[0]["completion_ids"].size(1)
    expected = [length - 1 + 2 * width for width in widths]
    assert ours.counted.tokens == [expected[0], 2 * (length + whole), *expected]
    assert ours.counted.patches == [16, 2 * 16, 16, 16, 16, 16]


# -- which rows form a micro-batch -------------------------------------------------------------------------------

SCATTERED = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_steps": 1, "max_grad_norm": 0.0}


def prompts_of(trainer):
    """How many different prompts each micro-batch has."""
    return [len({tuple(row) for row in batch["prompt_ids"].tolist()}) for batch in trainer.rollouts]


@pytest.mark.parametrize(
    "loss_type",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("dr_grpo", "cispo", "sapo") else ())
        for name in LOSS_TYPES
    ],
)
def test_keeping_groups_together_changes_no_gradient_of_an_optimizer_step(tiny_model, shapes, tmp_path, loss_type):
    options = {**SCATTERED, "loss_type": loss_type, "mixins": (Fixed,), "beta": 0.1}
    trl = train(GRPOTrainer, tiny_model, shapes, tmp_path / "trl", **options)
    ours = train(EntropyGRPOTrainer, tiny_model, shapes, tmp_path / "ours", share_prompts="auto", **options)
    assert prompts_of(ours) == [1, 1, 1, 1]
    assert max(prompts_of(trl)) > 1
    assert_same_gradients(ours, trl)
    rows = [
        sorted(row for batch in trainer.rollouts for row in batch["completion_ids"].tolist())
        for trainer in (trl, ours)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "bnpo"},
        {"top_entropy_quantile": 0.5},
        {"entropy_coef": 0.1},
        {"use_adaptive_entropy": True},
        {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_steps": 2},
    ],
    ids=str,
)
def test_where_micro_batches_matter_they_stay_those_of_trl_unless_asked_for(tmp_path, options):
    def keeps(mode):
        config = EntropyGRPOConfig(output_dir=str(tmp_path), **{**FAST, **SCATTERED, **options, "share_prompts": mode})
        return config.keeps_groups()

    assert [keeps(mode) for mode in ("off", "auto", "on")] == [False, False, True]


def test_only_on_keeps_groups_together_where_that_changes_the_loss(tiny_model, shapes, tmp_path):
    options = {**SCATTERED, "loss_type": "bnpo", "mixins": (Fixed,)}
    trl = train(GRPOTrainer, tiny_model, shapes, tmp_path / "trl", **options)
    auto, on = (
        train(EntropyGRPOTrainer, tiny_model, shapes, tmp_path / mode, share_prompts=mode, **options)
        for mode in ("auto", "on")
    )
    for ours, theirs in zip(auto.rollouts, trl.rollouts, strict=True):
        assert torch.equal(ours["completion_ids"], theirs["completion_ids"])
    assert_same_gradients(auto, trl)
    assert prompts_of(on) == [1, 1, 1, 1]
    # bnpo divides by the tokens of a micro-batch: the gradient is another one.
    gradients = [torch.cat([g.flatten() for g in run.recorder.gradients[0].values()]) for run in (on, trl)]
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() > 1e-3


def test_groups_of_equal_text_and_different_pictures_stay_apart():
    """Micro-batches of two rows from the groups of two pictures with the same question."""

    def batch(*pictures):
        count = len(pictures)
        return {
            "prompt_ids": torch.tensor([[5, 6]] * count),
            "prompt_mask": torch.ones(count, 2, dtype=torch.long),
            "completion_ids": torch.tensor([[10 * picture] for picture in pictures]),
            "pixel_values": torch.tensor([[float(picture)] for picture in pictures]),
            "image_grid_thw": torch.ones(count, 3, dtype=torch.long),
            "num_images": [1] * count,
            "num_items_in_batch": torch.tensor(6),
        }

    kept = sharing.keep_groups([batch(1, 2), batch(2, 1), batch(1, 2)])
    assert [part["completion_ids"].flatten().tolist() for part in kept] == [[10, 10], [10, 20], [20, 20]]
    assert [part["pixel_values"].flatten().tolist() for part in kept] == [[1, 1], [1, 2], [2, 2]]
    assert all(part["num_items_in_batch"] == 6 for part in kept)


# -- mixed data --------------------------------------------------------------------------------------------------


def mixed(shapes, model):
    """Rows with one picture, two pictures, and none, and two rows that differ in their picture alone."""
    data = dataset_of(shapes, model)
    pictures = data["images"]
    kinds = [pictures[0], [*pictures[0], *pictures[1]], [], pictures[2]]
    question = data[0]["prompt"]
    rows = [{**data[index], "images": kinds[index], "prompt": question} for index in range(4)]
    return data.select(range(4)).map(lambda example, index: rows[index], with_indices=True)


@pytest.mark.parametrize(
    "options", [{}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}], ids=str
)
def test_rows_of_all_kinds_train_as_row_by_row(tiny_model, shapes, tmp_path, options):
    options = {"per_device_train_batch_size": 16, "beta": 0.1, "max_steps": 2, **options}
    off, on = (
        train(
            EntropyGRPOTrainer,
            tiny_model,
            shapes,
            tmp_path / mode,
            data=mixed(shapes, tiny_model),
            **options,
            share_prompts=mode,
        )
        for mode in ("off", "auto")
    )
    assert on._sharing.is_on
    assert_same_logs(on, off)
    assert_same_gradients(on, off)
    assert sum(on.counted.tokens) < sum(off.counted.tokens)


# -- the check of the first forward ------------------------------------------------------------------------------


def wrong_owner(pack):
    """Completions that continue the other one of two prompts."""

    def packed(network, rows, groups):
        return pack(network, rows, groups._replace(owner=[1 - owner for owner in groups.owner]))

    return packed


@pytest.mark.parametrize("options", [{}, {"bf16": True}], ids=["float32", "bfloat16"])
def test_a_wrong_shared_forward_is_noticed_and_the_run_is_that_of_stock_trl(
    tiny_model, shapes, tmp_path, monkeypatch, caplog, options
):
    options = {"per_device_train_batch_size": 8, "mixins": (Fixed,), **options}
    trl = train(GRPOTrainer, tiny_model, shapes, tmp_path / "trl", **options)
    monkeypatch.setattr(sharing, "pack", wrong_owner(sharing.pack))
    with caplog.at_level(logging.WARNING):
        ours = train(EntropyGRPOTrainer, tiny_model, shapes, tmp_path / "ours", share_prompts="auto", **options)
    warned = [record.getMessage() for record in caplog.records if "not shared" in record.getMessage()]
    assert len(warned) == 1
    assert warned[0].startswith("Prompts are not shared in this run: ")
    figure = float(warned[0].split(" differs by ")[1].split(" nats")[0])
    assert 0.1 < figure < 100
    assert not ours._sharing.is_on
    tolerance = 5e-2 if "bf16" in options else 1e-5  # in bfloat16 up to 1.3 % on one processor; why is not known
    assert_same_logs(ours, trl, tolerance)
    assert_same_gradients(ours, trl, tolerance)


def test_a_forward_that_is_not_a_number_is_an_error_too(tiny_model, shapes, tmp_path, monkeypatch, caplog):
    pack = sharing.pack

    def packed(network, rows, groups):
        made = pack(network, rows, groups)
        nothing = torch.zeros_like(made.inputs["shared_prompt"].completion_mask)
        return made._replace(
            inputs={**made.inputs, "shared_prompt": made.inputs["shared_prompt"]._replace(completion_mask=nothing)}
        )

    monkeypatch.setattr(sharing, "pack", packed)
    with caplog.at_level(logging.WARNING):
        ours = train(EntropyGRPOTrainer, tiny_model, shapes, tmp_path, share_prompts="auto", max_steps=1)
    assert "Prompts are not shared in this run" in caplog.text
    assert not ours._sharing.is_on
    assert all(weight.isfinite().all() for weight in ours.model.parameters())


def test_the_check_leaves_dropout_and_every_modules_mode_alone(tiny_model, shapes, tmp_path):
    adapters = LoraConfig(target_modules=["q_proj"], r=4, lora_dropout=0.5)
    ours = train(
        EntropyGRPOTrainer, tiny_model, shapes, tmp_path, share_prompts="on", peft_config=adapters, max_steps=1
    )
    # Without dropout in the check, the forwards agree; with it they would not by far.
    assert ours._sharing.is_on
    assert all(module.training for module in ours.model.modules())


# -- modes -------------------------------------------------------------------------------------------------------


def build(tiny_model, shapes, out, **options):
    config = EntropyGRPOConfig(output_dir=str(out), **{**FAST, **options})
    return EntropyGRPOTrainer(
        model=str(tiny_model), reward_funcs=[uneven_reward], args=config, train_dataset=dataset_of(shapes, tiny_model)
    )


EAGER = {"model_init_kwargs": {"attn_implementation": "eager"}}


def test_on_refuses_what_cannot_be_shared_in_a_sentence(tiny_model, shapes, tmp_path):
    with pytest.raises(
        ValueError, match=r"^share_prompts is 'on', but attention is 'eager', and only 'sdpa' is known"
    ):
        build(tiny_model, shapes, tmp_path, share_prompts="on", **EAGER)


def test_auto_says_once_why_it_does_not_share(tiny_model, shapes, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = build(tiny_model, shapes, tmp_path, share_prompts="auto", **EAGER)
    assert [record.getMessage() for record in caplog.records if "shared" in record.getMessage()] == [
        "Prompts are not shared: attention is 'eager', and only 'sdpa' is known to be exact."
    ]
    assert not trainer._sharing.is_on


def test_auto_does_not_share_dropout(tiny_model, shapes, tmp_path, caplog):
    adapters = LoraConfig(target_modules=["q_proj"], r=4, lora_dropout=0.05)
    with caplog.at_level(logging.WARNING):
        ours = train(
            EntropyGRPOTrainer, tiny_model, shapes, tmp_path, share_prompts="auto", peft_config=adapters, max_steps=1
        )
    assert not ours._sharing.is_on
    assert "dropout would hit the prompt of a whole group alike; share_prompts 'on' allows it." in caplog.text


def test_off_touches_neither_the_model_nor_the_log(tiny_model, shapes, tmp_path, caplog):
    trainer = build(tiny_model, shapes, tmp_path, share_prompts="off")
    assert trainer.model.config.get_text_config()._attn_implementation == "sdpa"
    assert not trainer._sharing.is_on
    assert "shared" not in caplog.text


def test_tools_are_refused(tiny_model, shapes, tmp_path, monkeypatch):
    trainer = build(tiny_model, shapes, tmp_path, share_prompts="on")
    trainer.tools = [len]
    assert trainer._why_not_share() == "tools may answer with images"
    monkeypatch.setattr(EntropyGRPOTrainer, "_why_not_share", lambda self: "tools may answer with images")
    with pytest.raises(ValueError, match=r"^share_prompts is 'on', but tools may answer with images\.$"):
        build(tiny_model, shapes, tmp_path, share_prompts="on")


def test_another_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="share_prompts must be 'auto', 'on' or 'off', got 'always'"):
        EntropyGRPOConfig(output_dir=str(tmp_path), **{**FAST, "share_prompts": "always"})


def test_relative_difference_is_of_the_largest():
    assert relative_difference(torch.tensor([1.0, 10.5]), torch.tensor([1.0, 10.0])) == pytest.approx(0.05)
