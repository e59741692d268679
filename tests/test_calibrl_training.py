"""CalibRL inside the trainer: its loss and gradient, the experts' log-probs, and what they cost."""

from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from PIL import Image
from support import FAST, Recorder, dataset_of, uneven_reward
from transformers import AutoProcessor

from vlm_entropy.data.examples import build_dataset
from vlm_entropy.data.families import FAMILIES
from vlm_entropy.data.rows import read_rows
from vlm_entropy.data.shapes import make_shapes
from vlm_entropy.data.tiny import build_tiny_vlm
from vlm_entropy.rewards import REWARDS
from vlm_entropy.trainers import EntropyGRPOConfig, EntropyGRPOTrainer, TwoStageConfig, TwoStageTrainer
from vlm_entropy.trainers.__main__ import main as command
from vlm_entropy.trainers.calibrl import CalibrlConfig, CalibrlTrainer
from vlm_entropy.trainers.experts import render_experts

EXPERTS = ["red", "top left square", None, "<answer>[4, 8]</answer>"]
"""2, 4, 0 and 8 tokens with the end of the turn, repeated over the rows."""
OPTIONS = {
    **FAST,
    "gradient_accumulation_steps": 4,
    "max_steps": 1,
    "max_grad_norm": 0.0,
    "learning_rate": 0.0,
    "shuffle_dataset": False,
}
"""One step over four prompts, the first four rows, so that every kind of expert is in it."""
CALIBRL = {"expert_column": "expert", "exploration_weight": 0.5, "negative_slope": 0.25, "correct_threshold": 3.0}


def scripted(prompt_ids, images, fields):
    """Completions of 1 to 8 ordinary tokens, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (len(prompt_ids),), generator=generator).tolist()
    return [torch.randint(5, 200, (length,), generator=generator).tolist() for length in lengths], None


class Recording:
    """Keeps what `prepare_rollout` saw and returned, the loss of every micro-batch, and all gradients."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.prepared, self.rollouts, self.policies, self.extras, self.losses = [], [], [], [], []
        self.recorder = Recorder()
        self.add_callback(self.recorder)

    def sample(self, prompt_ids, images, fields, *, generate):
        return scripted(prompt_ids, images, fields)

    def prepare_rollout(self, rollout, examples, rewards):
        extra = super().prepare_rollout(rollout, examples, rewards)
        self.prepared.append(({**rollout, **extra}, examples, rewards))
        return extra

    def extra_loss(self, policy, rollout):
        self.policies.append(policy)
        self.rollouts.append(rollout)
        extra = super().extra_loss(policy, rollout)
        self.extras.append(extra.item() if isinstance(extra, torch.Tensor) else extra)
        return extra

    def compute_loss(self, model, inputs, **kwargs):
        loss = super().compute_loss(model, inputs, **kwargs)
        self.losses.append(loss.item())
        return loss


class RecordingGRPO(Recording, EntropyGRPOTrainer):
    pass


class RecordingCalibrl(Recording, CalibrlTrainer):
    pass


@pytest.fixture(scope="module")
def data(shapes, tiny_model):
    dataset = dataset_of(shapes, tiny_model)
    return dataset.add_column("expert", [EXPERTS[row % len(EXPERTS)] for row in range(len(dataset))])


def train(trainer_class, tiny_model, data, tmp_path, *, rewards=(uneven_reward,), **options):
    config = trainer_class.config_class(output_dir=str(tmp_path), **{**OPTIONS, **options})
    trainer = trainer_class(model=str(tiny_model), reward_funcs=list(rewards), args=config, train_dataset=data)
    trainer.train()
    trainer.recorder.hook.remove()
    return trainer


@pytest.fixture(scope="module")
def recorded(tiny_model, data, tmp_path_factory):
    """`train` on the common data, once for equal arguments; for tests that change nothing in the trainer."""
    runs = {}

    def run(trainer_class, **options):
        key = (trainer_class, *sorted(options.items()))
        if key not in runs:
            runs[key] = train(trainer_class, tiny_model, data, tmp_path_factory.mktemp("run"), **options)
        return runs[key]

    return run


# the loss


def logps_alone(model, processor, example, completion):
    """log π of each token of a completion after one prompt: no batch, no padding, no mask, full logits."""
    content = [{"type": "image", "image": image} for image in example["images"]]
    content.append({"type": "text", "text": example["prompt"][0]["content"]})
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    start = prompt["input_ids"].size(1)
    inputs = dict(prompt)
    inputs["input_ids"] = torch.cat([prompt["input_ids"], torch.tensor([completion])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in prompt:
        types = prompt["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat([types, types.new_zeros(1, len(completion))], dim=1)
    logits = model(**inputs).logits[0, start - 1 : -1]
    return logits.log_softmax(dim=-1)[range(len(completion)), completion]


def written_out_terms(trainer, processor, mode):
    """The term of each row, and its length, in plain Python from rewards, texts and full logits."""
    terms, lengths = [], []
    for rollout, examples, rewards in trainer.prepared:
        groups = rewards[:, 0].view(-1, 4)
        advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
        for row, example in enumerate(examples):
            length = int(rollout["completion_mask"][row].sum())
            lengths.append(length)
            if example["expert"] is None:
                terms.append(torch.tensor(0.0))
                continue
            own = logps_alone(trainer.model, processor, example, rollout["completion_ids"][row, :length].tolist())
            text = example["expert"] + "<|im_end|>"
            expert = logps_alone(trainer.model, processor, example, processor.tokenizer(text)["input_ids"]).tolist()
            if mode == "token":
                gaps = [own[t] - (expert[t] if t < len(expert) else 0.0) for t in range(length)]
            elif mode == "sequence_sum":
                gaps = [own.sum() - sum(expert)]
            else:
                gaps = [own.mean() - sum(expert) / len(expert)]
            sign = 1.0 if rewards[row, 0] > 3.0 else -1.0
            inputs = [-sign * gap for gap in gaps]
            terms.append(abs(advantages[row]) * sum(x if x > 0 else 0.25 * x for x in inputs))
    return terms, lengths


@pytest.mark.parametrize(
    ("loss_type", "mode"),
    [
        ("dapo", "token"),
        ("dapo", "sequence_sum"),
        ("grpo", "token"),
        ("dr_grpo", "sequence_mean"),
    ],
)
def test_the_loss_and_gradient_are_those_of_the_written_out_term(tiny_model, recorded, loss_type, mode):
    # Four micro-batches of 4 rows: accumulation 4, 16 rows, lengths 1 to 8.
    plain = recorded(RecordingGRPO, loss_type=loss_type)
    calibrl = recorded(RecordingCalibrl, **CALIBRL, loss_type=loss_type, delta_mode=mode)
    processor = AutoProcessor.from_pretrained(tiny_model)
    terms, lengths = written_out_terms(calibrl, processor, mode)
    assert (len(terms), min(lengths), max(lengths)) == (16, 1, 8)
    if loss_type == "grpo":
        term = sum(term / length for term, length in zip(terms, lengths, strict=True)) / 16
    else:
        term = sum(terms) / (sum(lengths) if loss_type == "dapo" else 16 * 8)
    # TRL's fused head computes in float32 whatever the model's type.
    assert sum(calibrl.losses) - sum(plain.losses) == pytest.approx(0.5 * term.item(), rel=1e-5, abs=1e-6)
    assert calibrl.state.log_history[0]["calibrl/term"] == pytest.approx(term.item(), rel=1e-5, abs=1e-6)
    names = list(plain.recorder.gradients[0])
    gradients = torch.autograd.grad(term, [calibrl.model.get_parameter(name) for name in names])
    assert max(gradient.abs().max() for gradient in gradients) > 1e-2
    for name, gradient in zip(names, gradients, strict=True):
        actual = calibrl.recorder.gradients[0][name] - plain.recorder.gradients[0][name]
        torch.testing.assert_close(actual, 0.5 * gradient, rtol=1e-5, atol=1e-6)


POLICY_LOSSES = {
    **dict.fromkeys(["grpo", "bnpo", "dr_grpo", "dapo", "luspo"], lambda logps, advantages: -advantages),
    "vespo": lambda logps, advantages: -advantages * logps,
    # The ratio is clamped to epsilon_high, 0.2.
    "cispo": lambda logps, advantages: -0.2 * advantages * logps,
    # 4/τ · sigmoid(0) · -A, τ being 1 for A > 0 and 1.05 for A ≤ 0.
    "sapo": lambda logps, advantages: -advantages * torch.where(advantages > 0, 2.0, 2 / 1.05),
}
"""What TRL 1.16 computes of a token at ratio 1."""


@pytest.mark.parametrize("loss_type", POLICY_LOSSES)
def test_the_term_has_the_normaliser_of_the_policy_loss(tiny_model, data, tmp_path, monkeypatch, loss_type):
    # With the policy loss of a token in place of the term, the term is TRL's loss, micro-batch by micro-batch. The
    # rollout is longer than an optimizer step, where TRL's own normalisers differ most.
    options = {**CALIBRL, "loss_type": loss_type, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    term = POLICY_LOSSES[loss_type]
    monkeypatch.setattr("vlm_entropy.trainers.calibrl.log_prob_gap", lambda logps, *args, **kwargs: logps)
    monkeypatch.setattr(
        "vlm_entropy.trainers.calibrl.exploration_term",
        lambda gap, correct, advantages, **kwargs: term(gap, advantages[:, None]).expand_as(gap),
    )
    full = data.filter(lambda row: row["expert"] is not None)
    calibrl = train(RecordingCalibrl, tiny_model, full, tmp_path, **options)
    terms = [extra / 0.5 / 2 for extra in calibrl.extras]
    policy = [loss - extra / 2 for loss, extra in zip(calibrl.losses, calibrl.extras, strict=True)]
    assert len(terms) == 2
    assert min(map(abs, policy)) > 1e-3
    assert terms == pytest.approx(policy, rel=1e-5)


def test_weight_zero_gives_grpo(tiny_model, data, tmp_path):
    options = {"max_steps": 2, "learning_rate": 1e-2}
    plain = train(RecordingGRPO, tiny_model, data, tmp_path / "plain", **options)
    zero = train(
        RecordingCalibrl, tiny_model, data, tmp_path / "zero", **{**CALIBRL, **options, "exploration_weight": 0}
    )
    assert zero.losses == plain.losses
    torch.testing.assert_close(zero.recorder.gradients, plain.recorder.gradients, rtol=0, atol=0)


def test_experts_are_in_no_group_statistic_and_cost_one_forward_row_per_prompt(recorded):
    plain = recorded(RecordingGRPO, loss_type="dapo")
    calibrl = recorded(RecordingCalibrl, **CALIBRL, loss_type="dapo", delta_mode="token")
    for name, value in plain.prepared[0][0].items():
        torch.testing.assert_close(calibrl.prepared[0][0][name], value, rtol=0, atol=0, msg=name)
    for name in ("reward", "reward_std", "frac_reward_zero_std", "completions/mean_length"):
        assert calibrl.state.log_history[0][name] == plain.state.log_history[0][name]
    # Four prompts, one of them without expert; the longest expert has 8 tokens.
    prompt = calibrl.prepared[0][0]["prompt_ids"].size(1)
    assert calibrl.recorder.forwards == [(3, prompt + 8), *plain.recorder.forwards]


def test_the_expert_pass_runs_in_chunks_of_the_batch_size(tiny_model, data, tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}
    calibrl = train(RecordingCalibrl, tiny_model, data, tmp_path, **{**CALIBRL, **options})
    prompt = calibrl.prepared[0][0]["prompt_ids"].size(1)
    assert calibrl.recorder.forwards[:3] == [(2, prompt + 8), (1, prompt + 8), calibrl.recorder.forwards[-1]]


def test_the_term_keeps_the_sampled_advantages_when_another_method_reshapes_them(tiny_model, data, tmp_path, recorded):
    class Reshaping(RecordingCalibrl):
        def shape_advantages(self, advantages, policy, rollout):
            return -7.0 * super().shape_advantages(advantages, policy, rollout)

    plain = recorded(RecordingCalibrl, **CALIBRL, loss_type="dapo", delta_mode="token")
    reshaped = train(Reshaping, tiny_model, data, tmp_path, **CALIBRL)
    assert reshaped.state.log_history[0]["calibrl/term"] == plain.state.log_history[0]["calibrl/term"] != 0


@dataclass
class TwoStageCalibrlConfig(TwoStageConfig, CalibrlConfig):
    pass


class RecordingBoth(Recording, TwoStageTrainer, CalibrlTrainer):
    config_class = TwoStageCalibrlConfig


class RecordingBothReversed(Recording, CalibrlTrainer, TwoStageTrainer):
    config_class = TwoStageCalibrlConfig


class RecordingTwoStage(Recording, TwoStageTrainer):
    pass


@pytest.mark.parametrize("both", [RecordingBoth, RecordingBothReversed])
def test_two_stage_and_calibrl_compose_to_the_sum_of_their_terms(recorded, both):
    runs = {}
    for trainer, options in [
        (RecordingGRPO, {"loss_type": "dapo"}),
        (RecordingCalibrl, {**CALIBRL, "loss_type": "dapo", "delta_mode": "token"}),
        (RecordingTwoStage, {"lambda_max": 0.25}),
        (both, {**CALIBRL, "lambda_max": 0.25}),
    ]:
        runs[trainer] = torch.tensor(recorded(trainer, **options).losses)
    plain = runs[RecordingGRPO]
    added = (runs[RecordingCalibrl] - plain) + (runs[RecordingTwoStage] - plain)
    torch.testing.assert_close(runs[both] - plain, added, rtol=0, atol=1e-6)
    assert added.abs().min() > 1e-2


# correctness, missing and long experts


def test_an_expert_that_is_missing_drops_the_term_of_its_prompt_and_is_counted(recorded):
    calibrl = recorded(RecordingCalibrl, **CALIBRL, loss_type="dapo", delta_mode="token")
    rollout, examples, rewards = calibrl.prepared[0]
    missing = torch.tensor([example["expert"] is None for example in examples])
    assert missing.tolist() == [False] * 8 + [True] * 4 + [False] * 4
    assert rollout["expert_mask"].sum(dim=1).tolist() == [2] * 4 + [4] * 4 + [0] * 4 + [8] * 4
    assert not rollout["exploration_advantages"][missing].any()
    assert torch.equal(rollout["exploration_advantages"][~missing], rollout["advantages"][~missing])
    assert rollout["advantages"][missing].any()
    assert torch.equal(rollout["correct"], rewards[:, 0] > 3)
    log = calibrl.state.log_history[0]
    assert (log["calibrl/without_expert"], log["calibrl/truncated_expert"]) == (0.25, 0.0)
    assert log["calibrl/correct"] == pytest.approx((rewards > 3).float().mean().item())


def test_a_rollout_without_any_expert_trains_as_grpo(tiny_model, data, tmp_path):
    # The first four rows have none; the check of the whole column finds one further down.
    sparse = data.remove_columns(["expert"]).add_column("expert", [None] * 31 + ["red"])
    plain = train(RecordingGRPO, tiny_model, sparse, tmp_path / "plain")
    calibrl = train(RecordingCalibrl, tiny_model, sparse, tmp_path / "calibrl", **CALIBRL)
    assert calibrl.losses == plain.losses
    assert calibrl.recorder.forwards == plain.recorder.forwards
    assert calibrl.state.log_history[0]["calibrl/without_expert"] == 1.0


def long_reward(completion_ids, **kwargs):
    """1 for more than four tokens; no verdict on the rest."""
    return [1.0 if len(ids) > 4 else None for ids in completion_ids]


def test_the_named_reward_decides_on_correctness_and_where_it_cannot_judge_there_is_no_term(
    tiny_model, data, tmp_path
):
    options = {**CALIBRL, "correct_reward": "long_reward", "correct_threshold": 0.5}
    rewards = (uneven_reward, long_reward)
    calibrl = train(RecordingCalibrl, tiny_model, data, tmp_path, rewards=rewards, **options)
    rollout, _, _ = calibrl.prepared[0]
    long = rollout["completion_mask"].sum(dim=1) > 4
    assert torch.equal(rollout["correct"], long)
    assert long.tolist().count(False) > 0
    assert not rollout["exploration_advantages"][~long].any()
    assert rollout["advantages"][~long].any()


def test_the_sum_of_the_rewards_has_to_be_above_the_threshold(tiny_model, data, tmp_path):
    def accuracy(completion_ids, **kwargs):
        return [float(place == 0) for place in range(len(completion_ids))]

    def well_formed(completion_ids, **kwargs):
        return [1.0] * len(completion_ids)

    options = {**CALIBRL, "correct_threshold": 0.1, "reward_weights": [1.0, 0.1]}
    rewards = (accuracy, well_formed)
    calibrl = train(RecordingCalibrl, tiny_model, data, tmp_path, rewards=rewards, **options)
    # Wrong in the right format scores 0.1, which is not above 0.1.
    assert calibrl.prepared[0][0]["correct"].tolist() == [True] + [False] * 15


def test_long_experts_are_cut_and_counted_or_refused(tiny_model, data, tmp_path):
    options = {**CALIBRL, "max_completion_length": 3}
    with pytest.warns(UserWarning, match="16 of 32 experts are cut to max_completion_length 3; the longest has 8"):
        calibrl = train(RecordingCalibrl, tiny_model, data, tmp_path, **options)
    rollout, _, _ = calibrl.prepared[0]
    assert rollout["expert_mask"].sum(dim=1).tolist() == [2] * 4 + [3] * 4 + [0] * 4 + [3] * 4
    assert calibrl.state.log_history[0]["calibrl/truncated_expert"] == 0.5
    with pytest.raises(ValueError, match="The expert of row 2 has 4 tokens"):
        train(RecordingCalibrl, tiny_model, data, tmp_path, **options, long_expert="refuse")


def test_experts_streamed_in_are_refused_when_they_come_up_too_long(tiny_model, data, tmp_path):
    options = {**CALIBRL, "max_completion_length": 3, "long_expert": "refuse"}
    with pytest.raises(ValueError, match="An expert has 8 tokens, more than max_completion_length 3"):
        train(RecordingCalibrl, tiny_model, data.to_iterable_dataset(), tmp_path, **options)


def test_the_experts_of_a_rollout_stay_those_of_the_policy_that_sampled_it(tiny_model, data, tmp_path):
    options = {"num_iterations": 2, "max_steps": 2, "learning_rate": 1.0}
    calibrl = train(RecordingCalibrl, tiny_model, data, tmp_path, **{**CALIBRL, **options})
    assert len(calibrl.prepared) == 1
    assert len(calibrl.rollouts) == 8
    for first, second in zip(calibrl.rollouts[:4], calibrl.rollouts[4:], strict=True):
        torch.testing.assert_close(second["expert_logps"], first["expert_logps"], rtol=0, atol=0)
    assert (calibrl.policies[4].logps - calibrl.policies[0].logps).abs().max() > 1e-3


def test_the_reference_baseline_compares_with_the_reference_model_on_the_same_tokens(tiny_model, data, tmp_path):
    options = {"baseline": "reference", "expert_column": None, "beta": 1e-8, "max_steps": 2, "learning_rate": 1.0}
    calibrl = train(RecordingCalibrl, tiny_model, data, tmp_path, **{**CALIBRL, **options})
    total, tokens = 0.0, 0
    for policy, rollout in zip(calibrl.policies[4:], calibrl.rollouts[4:], strict=True):
        for row, length in enumerate(policy.mask.sum(dim=1).tolist()):
            sign = 1.0 if rollout["correct"][row] else -1.0
            for t in range(length):
                x = -sign * (policy.logps[row, t] - rollout["ref_per_token_logps"][row, t]).item()
                total += abs(rollout["advantages"][row].item()) * (x if x > 0 else 0.25 * x)
            tokens += length
    assert abs(total) > 1e-2
    assert calibrl.state.log_history[1]["calibrl/term"] == pytest.approx(total / tokens, rel=1e-4)
    assert calibrl.state.log_history[0]["calibrl/term"] == pytest.approx(0.0, abs=1e-6)  # policy = reference
    assert "expert_logps" not in calibrl.rollouts[0]


# score


ORDERS = [[0, 4, 8, 12], [13, 5, 1, 8, 0], [4, 6]]
"""Rows to score: one of each prompt; some of them, more than a batch, in no order; the prompt without image alone."""


class Scoring(RecordingGRPO):
    """Scores the experts of some rows of the rollout, with a column of padding too many."""

    def prepare_rollout(self, rollout, examples, rewards):
        self.scored = []
        for order in ORDERS:
            completions = [self.tokens(examples[row]) for row in order]
            ids = torch.full(
                (len(order), max(map(len, completions)) + 1), self.processing_class.tokenizer.pad_token_id
            )
            mask = torch.zeros_like(ids)
            for row, completion in enumerate(completions):
                ids[row, : len(completion)], mask[row, : len(completion)] = torch.tensor(completion), 1
            logps = self.score(rollout, order, ids, mask)
            assert (logps.shape, logps.requires_grad) == (ids.shape, False)
            self.kinds = set(rollout)
            self.scored += zip([examples[row] for row in order], completions, logps, strict=True)
        return super().prepare_rollout(rollout, examples, rewards)

    def tokens(self, example):
        return self.processing_class.tokenizer(example["expert"] + "<|im_end|>")["input_ids"]


@pytest.fixture(scope="module")
def internvl(tmp_path_factory):
    return build_tiny_vlm("internvl", tmp_path_factory.mktemp("internvl") / "tiny", hidden_size=32)


def picture(width, height, seed):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def mixed_rows():
    """Prompts of different lengths with two images, none, one, and one of another size."""
    images = [[picture(32, 32, 0), picture(64, 32, 1)], [], [picture(32, 64, 2)], [picture(32, 32, 3)]]
    questions = ["Find the red square in these two images.", "Find it.", "Find the circle.", "Find a blue triangle."]
    experts = ["red", "top left square", "blue circle", "<answer>[4, 8]</answer>"]
    rows = zip(images, questions, experts, strict=True)
    return [
        {"prompt": [{"role": "user", "content": question}], "images": pictures, "expert": expert}
        for pictures, question, expert in rows
    ]


def text_rows():
    return [{**row, "images": []} for row in mixed_rows()]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("rows", [mixed_rows, text_rows])
def test_a_completion_scored_in_a_rollout_has_the_log_probs_it_has_alone(request, tiny_model, tmp_path, family, rows):
    folder = tiny_model if family == "qwen2_5_vl" else request.getfixturevalue("internvl")
    trainer = train(Scoring, folder, Dataset.from_list(rows()), tmp_path)
    # InternVL cuts the larger images of the mixed rows into tiles.
    assert ("num_tiles" in trainer.kinds) == (family == "internvl" and rows is mixed_rows)
    assert ("image_grid_thw" in trainer.kinds) == (family == "qwen2_5_vl" and rows is mixed_rows)
    model, processor = trainer.model, trainer.processing_class
    for example, completion, scored in trainer.scored:
        alone = logps_alone(model, processor, example, completion).float()
        torch.testing.assert_close(scored[: len(completion)].float(), alone, rtol=0, atol=2e-5)
        assert not scored[len(completion) :].any()
        # Another prompt or another image would be seen.
        other = {"images": [picture(32, 32, 9)] * len(example["images"]), "prompt": [{"content": "Find a red image."}]}
        assert (logps_alone(model, processor, other, completion) - alone).abs().max() > 1e-3


def test_a_process_with_fewer_rows_makes_as_many_forwards_as_the_others(tiny_model, tmp_path, monkeypatch):
    class Uneven(RecordingGRPO):
        def prepare_rollout(self, rollout, examples, rewards):
            ids, mask = rollout["completion_ids"], rollout["completion_mask"]
            calls_elsewhere, self.counts = [1, 3, 1, 0], []
            for count, elsewhere in zip([2, 2, 0, 0], calls_elsewhere, strict=True):
                start = len(self.recorder.forwards)
                with monkeypatch.context() as patch:
                    # Stands in for a second process.
                    gathered = torch.tensor([elsewhere])
                    patch.setattr(
                        self.accelerator, "gather", lambda own, gathered=gathered: torch.cat([own, gathered])
                    )
                    scored = self.score(rollout, list(range(count)), ids[:count], mask[:count])
                self.counts.append([rows for rows, _ in self.recorder.forwards[start:]])
                assert scored.shape == ids[:count].shape
                torch.testing.assert_close(scored, self.score(rollout, [0, 1], ids[:2], mask[:2])[:count])
            return super().prepare_rollout(rollout, examples, rewards)

    trainer = train(Uneven, tiny_model, Dataset.from_list(mixed_rows()), tmp_path)
    assert trainer.counts == [[2], [4, 4, 1], [1], []]


def test_the_hooks_of_calibrl_do_not_act_in_evaluation(tiny_model, data, tmp_path):
    config = CalibrlConfig(output_dir=str(tmp_path), **{**OPTIONS, **CALIBRL})
    arguments = {
        "reward_funcs": [uneven_reward],
        "args": config,
        "train_dataset": data,
        "eval_dataset": data.select([2]),
    }
    trainer = RecordingCalibrl(model=str(tiny_model), **arguments)
    assert "eval_loss" in trainer.evaluate()
    assert trainer.prepared == trainer.policies == []


def test_options_of_another_trainer_are_refused(tmp_path):
    with pytest.raises(TypeError, match="takes args=CalibrlConfig"):
        CalibrlTrainer(model="unused", args=EntropyGRPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True))


# slow


@pytest.fixture(scope="module")
def warm_model(tmp_path_factory):
    """A model of the shapes task after 120 supervised steps, still unsure, and the task with rendered experts."""
    folder = tmp_path_factory.mktemp("warm")
    size = {"hidden_size": 64, "image_size": 32, "patch_size": 8, "largest_number": 32}
    build_tiny_vlm("qwen2_5_vl", folder / "cold", **size)
    make_shapes(folder / "shapes", rows=512, seed=0, held_out=0, objects=1)
    flags = {
        "method": "sft",
        "response_column": "response",
        "task_type": "plain",
        "model_name_or_path": folder / "cold",
        "data_file_paths": folder / "shapes" / "train.jsonl",
        "image_folders": folder / "shapes" / "images",
        "output_dir": folder / "warm",
        "per_device_train_batch_size": 32,
        "max_steps": 120,
        "learning_rate": 3e-3,
        "bf16": "false",
        "use_cpu": "true",
        "gradient_checkpointing": "false",
        "disable_tqdm": "true",
        "save_strategy": "no",
        "report_to": "none",
    }
    command([part for name, value in flags.items() for part in (f"--{name}", str(value))])
    rows, _ = read_rows(str(folder / "shapes" / "train.jsonl"), str(folder / "shapes" / "images"))
    processor = AutoProcessor.from_pretrained(folder / "warm", padding_side="left")
    family = FAMILIES["qwen2_5_vl"]
    dataset = build_dataset(rows, family=family, processor=processor, task_type="plain")
    return folder / "warm", render_experts(rows, dataset, column="response")


def last_entropy_and_reward(trainer_class, warm_model, tmp_path, **options):
    """Means over the last 15 of 60 steps."""
    model, dataset = warm_model
    run = {
        **FAST,
        "model_init_kwargs": None,
        "optim": "adamw_torch",
        "per_device_train_batch_size": 32,
        "num_generations": 8,
        "max_completion_length": 16,
        "max_steps": 60,
        "logging_steps": 15,
        "learning_rate": 3e-4,
        "lr_scheduler_type": "constant",
        "scale_rewards": "none",
        "reward_weights": [1.0, 0.1],
    }
    config = trainer_class.config_class(output_dir=str(tmp_path), **{**run, **options})
    rewards = [REWARDS["iou"], REWARDS["format"]]
    trainer = trainer_class(model=str(model), reward_funcs=rewards, args=config, train_dataset=dataset)
    trainer.train()
    log = trainer.state.log_history[-2]
    return torch.tensor([log["entropy"], log["rewards/iou_reward/mean"]])


@pytest.mark.slow
def test_whether_entropy_ends_above_that_of_grpo(warm_model, tmp_path, capsys):
    """Prints the paired differences over five seeds; fails only if CalibRL ends clearly below GRPO."""
    calibrl = {"expert_column": "response", "correct_reward": "iou", "correct_threshold": 0.5}
    runs = [(EntropyGRPOTrainer, {}), (CalibrlTrainer, calibrl)]
    ends = torch.stack(
        [
            torch.stack(
                [last_entropy_and_reward(c, warm_model, tmp_path, seed=seed, **options) for c, options in runs]
            )
            for seed in range(5)
        ]
    )
    differences = ends[:, 1] - ends[:, 0]
    mean, error = differences.mean(dim=0), differences.std(dim=0) / 5**0.5
    with capsys.disabled():
        for name, place in {"entropy": 0, "IoU": 1}.items():
            print(f"\n{name} of GRPO and CalibRL at the end: {ends[..., place].mean(dim=0).tolist()}")
            print(f"difference per seed {differences[:, place].tolist()}: {mean[place]:+.4f} ± {error[place]:.4f}")
    # 2.78 standard errors are the two-sided 95 % interval of five runs.
    assert mean[0] + 2.78 * error[0] > 0
