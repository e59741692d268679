"""LUFFY and RL-PLUS inside the trainer: what is sampled, the advantages, the loss and its gradient."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from support import FAST, Recording, dataset_of, uneven_lengths, uneven_reward
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_entropy.data.tiny import build_tiny_vlm
from vlm_entropy.trainers import EcvgpoConfig, EcvgpoTrainer, EntropyGRPOTrainer
from vlm_entropy.trainers.luffy import LuffyConfig, LuffyTrainer
from vlm_entropy.trainers.rl_plus import RlPlusTrainer

EXPERTS = ["red", "top left square", None, "<answer>[4, 8]</answer>"]
"""2, 4, 0 and 8 tokens with the end of the turn, repeated over the rows."""
OPTIONS = {
    **FAST,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "max_steps": 1,
    "max_grad_norm": 0.0,
    "learning_rate": 0.0,
    "shuffle_dataset": False,
    "scale_rewards": "none",
}
"""One step over four prompts, the first four rows, so that every kind of expert is in it."""
MIXED = {"expert_column": "expert"}


class Scripted(Recording, EntropyGRPOTrainer):
    """Remembers what the sampler was asked, what `prepare_rollout` saw, and the policy of every micro-batch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked, self.prepared, self.policies = [], [], []

    def sample(self, prompt_ids, images, fields, *, generate):
        self.asked.append((prompt_ids, images, generate.keywords["num_generations"]))
        return super().sample(prompt_ids, images, fields, generate=generate)

    def prepare_rollout(self, rollout, examples, rewards):
        extra = super().prepare_rollout(rollout, examples, rewards)
        self.prepared.append((rollout, examples, rewards))
        return extra

    def extra_loss(self, policy, rollout):
        self.policies.append(policy)
        return super().extra_loss(policy, rollout)


class ScriptedLuffy(LuffyTrainer, Scripted):
    pass


class ScriptedRlPlus(RlPlusTrainer, Scripted):
    pass


BOTH = [ScriptedLuffy, ScriptedRlPlus]


@pytest.fixture(scope="module")
def warm_model(tmp_path_factory):
    """A model that knows the experts a little: their tokens have probabilities of 0.001 to 0.9, no longer 1 / 1352."""
    folder = build_tiny_vlm("qwen2_5_vl", tmp_path_factory.mktemp("warm") / "tiny", hidden_size=32)
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    turn = [{"role": "user", "content": [{"type": "text", "text": "Find the red circle."}]}]
    prompt = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(54):
        text = EXPERTS[(0, 1, 3)[step % 3]]
        ids = processor.tokenizer(prompt + text + "<|im_end|>", return_tensors="pt")["input_ids"]
        start = ids.size(1) - len(processor.tokenizer(text + "<|im_end|>")["input_ids"])
        model(input_ids=ids, labels=ids.masked_fill(torch.arange(ids.size(1)) < start, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(shapes, warm_model):
    dataset = dataset_of(shapes, warm_model)
    return dataset.add_column("expert", [EXPERTS[row % len(EXPERTS)] for row in range(len(dataset))])


def make(trainer_class, model, data, tmp_path, *, rewards=(uneven_reward,), **options):
    config = trainer_class.config_class(output_dir=str(tmp_path), **{**OPTIONS, **options})
    return trainer_class(model=str(model), reward_funcs=list(rewards), args=config, train_dataset=data)


def train(trainer_class, model, data, tmp_path, **options):
    trainer = make(trainer_class, model, data, tmp_path, **options)
    trainer.train()
    if isinstance(trainer, Recording):
        trainer.recorder.hook.remove()
    return trainer


@pytest.fixture(scope="module")
def luffy(warm_model, data, tmp_path_factory):
    """One LUFFY run on the common data, for tests that change nothing in the trainer."""
    return train(ScriptedLuffy, warm_model, data, tmp_path_factory.mktemp("luffy"), **MIXED)


# sampling


def completions(rollout):
    lengths = rollout["completion_mask"].sum(dim=1).tolist()
    return [ids[:length].tolist() for ids, length in zip(rollout["completion_ids"], lengths, strict=True)]


def test_expert_rows_are_not_sampled_and_stand_last_in_their_groups(luffy, warm_model):
    tokenizer = AutoProcessor.from_pretrained(warm_model).tokenizer
    rollout, examples, _ = luffy.prepared[0]
    (first, _, three), (second, _, one) = luffy.asked
    prompts = [prompt.tolist() for prompt in rollout["prompt_ids"]]
    pad = [sum(1 - mask).item() for mask in rollout["prompt_mask"]]
    prompts = [ids[start:] for ids, start in zip(prompts, pad, strict=True)]
    # Three of each of four prompts, and the fourth of the third prompt, which has no expert.
    assert (three, one) == (3, 1)
    assert first == [ids for row, ids in enumerate(prompts) if row % 4 != 3]
    assert second == [prompts[8]]
    sampled, last = uneven_lengths(first, None, None)[0], uneven_lengths(second, None, None)[0]
    expert = [text and tokenizer(text + "<|im_end|>")["input_ids"] for text in EXPERTS]
    expected = [*sampled[:3], expert[0], *sampled[3:6], expert[1], *sampled[6:9], last[0], *sampled[9:], expert[3]]
    assert completions(rollout) == expected
    assert [example["expert"] for example in examples[::4]] == EXPERTS


def test_the_reward_of_an_expert_is_that_of_the_reward_function(luffy):
    rollout, _, rewards = luffy.prepared[0]
    expected = [float(sum(ids) % 7) for ids in completions(rollout)]
    assert rewards[:, 0].tolist() == expected
    log = luffy.state.log_history[0]
    experts = [expected[row] for row in (3, 7, 15)]
    assert log["luffy/reward_expert"] == pytest.approx(sum(experts) / 3)
    assert log["luffy/reward_on_policy"] == pytest.approx((sum(expected) - sum(experts)) / 13)
    assert (log["luffy/without_expert"], log["luffy/truncated_expert"]) == (0.25, 0.0)


def test_where_every_prompt_has_an_expert_the_sampler_is_called_once(warm_model, data, tmp_path):
    full = data.filter(lambda row: row["expert"] is not None)
    trainer = train(ScriptedLuffy, warm_model, full, tmp_path, **MIXED)
    assert [(len(prompts), group) for prompts, _, group in trainer.asked] == [(12, 3)]


def test_a_process_with_fewer_prompts_without_expert_asks_for_as_many_rows_as_the_others(
    warm_model, data, tmp_path, monkeypatch
):
    trainer = make(ScriptedLuffy, warm_model, data, tmp_path, **MIXED)
    trainer.model.train()
    trainer.examples = [{"expert": text} for text in EXPERTS for _ in range(4)]
    prompts = [[7, place] for place in range(4) for _ in range(4)]
    plain = trainer._generate_single_turn(prompts, None, {}, 4)
    with monkeypatch.context() as patch:
        # Stands in for a second process, which has three prompts without expert.
        patch.setattr(trainer.accelerator, "gather", lambda own: torch.cat([own, torch.tensor([3])]))
        padded = trainer._generate_single_turn(prompts, None, {}, 4)
        # None at all has an expert here, some have there.
        trainer.examples = [{"expert": None}] * 16
        trainer._generate_single_turn(prompts, None, {}, 4)
    counts = [(len(prompts), group) for prompts, _, group in trainer.asked]
    assert counts == [(12, 3), (1, 1), (12, 3), (3, 1), (12, 3), (4, 1)]
    assert trainer.asked[3][0] == [[7, 2], [7, 0], [7, 0]]
    # The rows for nobody are dropped.
    assert [len(ids) for ids in padded[0]][8:11] == [len(ids) for ids in plain[0]][8:11]
    assert len(padded[0]) == 16


def test_the_samplers_log_probs_of_an_expert_are_unknown(warm_model, data, tmp_path):
    trainer = make(LuffyTrainer, warm_model, data, tmp_path, **MIXED)
    trainer.examples = [{"expert": text} for text in ["red", None] for _ in range(4)]
    draws = iter([[[1], [2, 2], [3], [4], [5], [6]], [[7]]])

    def sampler(prompt_ids, images, fields, *, num_generations):
        ids = next(draws)
        return ids, [[-0.5] * len(row) for row in ids]

    ids, logps = trainer.sample([[8]] * 4 + [[9]] * 4, None, {}, generate=sampler)
    assert ids[:3] + ids[4:] == [[1], [2, 2], [3], [4], [5], [6], [7]]
    assert len(ids[3]) == 2
    assert [[math.isnan(logp) for logp in row] for row in logps] == [[row == 3] * len(ids[row]) for row in range(8)]
    assert all(logp == -0.5 for row in (0, 1, 2, 4, 5, 6, 7) for logp in logps[row])
    with pytest.raises(ValueError, match="Rows 0 to 3 are not 4 rows of the same prompt"):
        trainer.sample([[8]] * 3 + [[9]] * 5, None, {}, generate=sampler)


def picture(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mixed_rows():
    """Prompts with two images, none, one, and one of another size."""
    images = [[picture(32, 32, 0), picture(64, 32, 1)], [], [picture(32, 64, 2)], [picture(32, 32, 3)]]
    rows = zip(images, ["Find both.", "Find it.", "Find the circle.", "Find a triangle."], EXPERTS, strict=True)
    return [
        {"prompt": [{"role": "user", "content": question}], "images": pictures, "expert": expert}
        for pictures, question, expert in rows
    ]


def text_rows():
    return [{**row, "images": []} for row in mixed_rows()]


class Watched(LuffyTrainer):
    """Samples from the model, and remembers each call."""

    def _generate_single_turn(self, prompt_ids, images, fields, *args, **kwargs):
        self.whole = (prompt_ids, images, fields)
        return super()._generate_single_turn(prompt_ids, images, fields, *args, **kwargs)

    def prepare_rollout(self, rollout, examples, rewards):
        self.rollout = rollout
        return super().prepare_rollout(rollout, examples, rewards)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("rows", [mixed_rows, text_rows])
def test_images_several_images_and_text_go_through_the_real_sampler(warm_model, tmp_path, family, rows):
    folder = warm_model
    if family == "internvl":
        folder = build_tiny_vlm("internvl", tmp_path / "internvl", hidden_size=32)
    trainer = train(Watched, folder, Dataset.from_list(rows()), tmp_path, **MIXED)
    tokenizer = trainer.processing_class.tokenizer
    ids = completions(trainer.rollout)
    for place, text in enumerate(EXPERTS):
        group = ids[4 * place : 4 * place + 4]
        if text is not None:
            assert tokenizer.decode(group[3]) == text + "<|im_end|>"
        assert len({tuple(row) for row in group}) > 1
    assert math.isfinite(trainer.state.log_history[0]["loss"])


# advantages

REWARDS = [1.0, 2.0, 3.0, 10.0, None, 2.0, 4.0, 6.0, 0.0, 1.0, 2.0, 5.0, 1.0, 2.0, 3.0, None]
ADVANTAGES = {
    # Means of the sampled rows: (1+2+3)/3, (2+4)/2, (0+1+2+5)/4 without an expert, (1+2+3)/3.
    "on_policy": [-1.0, 0.0, 1.0, 8.0, 0.0, -1.0, 1.0, 3.0, -2.0, -1.0, 0.0, 3.0, -1.0, 0.0, 1.0, 0.0],
    # Means of all rows: 16/4, 12/3, 8/4, 6/3.
    "union": [-3.0, -2.0, -1.0, 6.0, 0.0, -2.0, 0.0, 2.0, -2.0, -1.0, 0.0, 3.0, -1.0, 0.0, 1.0, 0.0],
}


def fixed_rewards(completion_ids, **kwargs):
    return REWARDS


@pytest.mark.parametrize("baseline", ADVANTAGES)
@pytest.mark.parametrize("trainer_class", BOTH)
def test_the_baseline_is_the_mean_of_the_sampled_rows_or_of_all(warm_model, data, tmp_path, trainer_class, baseline):
    options = {**MIXED, "expert_baseline": baseline}
    trainer = train(trainer_class, warm_model, data, tmp_path, rewards=[fixed_rewards], **options)
    rollout, _, _ = trainer.prepared[0]
    assert rollout["advantages"].tolist() == pytest.approx(ADVANTAGES[baseline], abs=1e-6)
    log, prefix = trainer.state.log_history[0], trainer_class.metric_prefix
    # (1 + 2 + 3) + (2 + 4) + (0 + 1 + 2 + 5) + (1 + 2 + 3) over 12 rows with a reward, and (10 + 6) / 2.
    assert log[f"{prefix}/reward_on_policy"] == pytest.approx(26 / 12)
    assert log[f"{prefix}/reward_expert"] == 8
    found = {}
    for batch in trainer.rollouts:
        for row in range(8):
            found[repr(batch["completion_ids"][row].tolist())] = (
                batch["is_expert"][row].item(),
                batch["expert_advantages"][row].item(),
            )
    for row, ids in enumerate(rollout["completion_ids"].tolist()):
        is_expert = row in (3, 7, 15)
        expected = ADVANTAGES[baseline][row] if is_expert else 0.0
        assert found[repr(ids)] == (is_expert, pytest.approx(expected, abs=1e-6))


def weighted(completion_ids, **kwargs):
    return [float(row) for row in range(16)]


def test_the_baseline_is_of_the_weighted_sum_of_the_rewards(warm_model, data, tmp_path):
    options = {**MIXED, "reward_weights": [1.0, 0.5]}
    trainer = train(ScriptedLuffy, warm_model, data, tmp_path, rewards=[fixed_rewards, weighted], **options)
    # 1 + 0, 2 + 0.5, 3 + 1 with mean 2.5, and 10 + 1.5.
    assert trainer.prepared[0][0]["advantages"][:4].tolist() == pytest.approx([-1.5, 0.0, 1.5, 9.0])
    # 10 + 1.5, 6 + 3.5, and 7.5 from the second reward alone.
    assert trainer.state.log_history[0]["luffy/reward_expert"] == pytest.approx((11.5 + 9.5 + 7.5) / 3)


# loss


def logps_alone(model, processor, example, completion):
    """log π of each token of a completion after one prompt: no batch, no padding, no mask, full logits."""
    content = [{"type": "image", "image": image} for image in example["images"]]
    content.append({"type": "text", "text": example["prompt"][0]["content"]})
    inputs = dict(
        processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    )
    start = inputs["input_ids"].size(1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([completion])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    types = inputs["mm_token_type_ids"]
    inputs["mm_token_type_ids"] = torch.cat([types, types.new_zeros(1, len(completion))], dim=1)
    logits = model(**inputs).logits[0, start - 1 : -1]
    return logits.log_softmax(dim=-1)[range(len(completion)), completion]


def written_out_loss(trainer, processor, shape, *, baseline, loss_type):
    """The whole loss of the step in plain Python: rewards from texts, log-probs from full logits."""
    rollout, examples, _ = trainer.prepared[0]
    ids = completions(rollout)
    rewards = [float(sum(row) % 7) for row in ids]
    total = 0.0
    for start in range(0, 16, 4):
        has_expert = examples[start]["expert"] is not None
        counted = rewards[start : start + (3 if has_expert and baseline == "on_policy" else 4)]
        for row in range(start, start + 4):
            advantage = rewards[row] - sum(counted) / len(counted)
            p = logps_alone(trainer.model, processor, examples[row], ids[row]).exp()
            old = p.detach()
            weights = shape(p, old) if has_expert and row == start + 3 else p / old
            loss = -(advantage * weights).sum()
            total += loss / len(ids[row]) if loss_type == "grpo" else loss
    tokens = sum(map(len, ids))
    assert {len(row) for row in ids} >= {1, 2, 4, 8}
    return total / {"grpo": 16, "dapo": tokens, "dr_grpo": 16 * 8}[loss_type]


def expert_probabilities(trainer, processor):
    rollout, examples, _ = trainer.prepared[0]
    ids = completions(rollout)
    return [logps_alone(trainer.model, processor, examples[row], ids[row]).exp() for row in (3, 7, 15)]


GAMMAS = {ScriptedLuffy: {"luffy_gamma": 0.2}, ScriptedRlPlus: {"rl_plus_gamma": 1.5}}
SHAPES = {
    ScriptedLuffy: lambda p, old: p / (p + 0.2),
    ScriptedRlPlus: lambda p, old: 2 * p / (old + 0.5 * (old + 1)) * (1 - old) ** 1.5,
}
"""What stands in place of the ratio for an expert's token, from arXiv 2504.14945 and 2508.00222; p = p_old here."""


@pytest.mark.parametrize(("loss_type", "baseline"), [("dapo", "on_policy"), ("dr_grpo", "union"), ("grpo", "union")])
@pytest.mark.parametrize("trainer_class", BOTH)
def test_the_loss_and_gradient_of_a_step_are_those_of_the_written_out_formula(
    warm_model, data, tmp_path, trainer_class, loss_type, baseline
):
    # Two micro-batches of 8 rows, lengths 1 to 8.
    options = {**MIXED, **GAMMAS[trainer_class], "loss_type": loss_type, "expert_baseline": baseline}
    trainer = train(trainer_class, warm_model, data, tmp_path, **options)
    processor = AutoProcessor.from_pretrained(warm_model)
    loss = written_out_loss(trainer, processor, SHAPES[trainer_class], baseline=baseline, loss_type=loss_type)
    # The expert's part is of a size that counts, and its tokens are of all kinds.
    probabilities = torch.cat([p.detach() for p in expert_probabilities(trainer, processor)])
    assert probabilities.min() < 0.1
    assert probabilities.max() > 0.5
    assert abs(trainer.state.log_history[0][f"{trainer.metric_prefix}/term"]) > 1e-3
    # TRL's fused head computes in float32 whatever the model's type.
    assert sum(trainer.losses) == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    names = list(trainer.recorder.gradients[0])
    gradients = torch.autograd.grad(loss, [trainer.model.get_parameter(name) for name in names])
    assert max(gradient.abs().max() for gradient in gradients) > 1e-2
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(trainer.recorder.gradients[0][name], gradient, rtol=1e-5, atol=1e-6)


class Replaying(Scripted):
    """Samples what another run trained on, its experts included."""

    def sample(self, prompt_ids, images, fields, *, generate):
        return self.script.pop(0), None


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo"])
def test_with_the_ordinary_surrogate_an_expert_trains_as_a_sampled_response(warm_model, data, tmp_path, loss_type):
    # The rollout is longer than an optimizer step, where TRL's own normalisers differ most.
    class Ordinary(LuffyTrainer, Scripted):
        def expert_term(self, advantages, policy, rollout):
            return -advantages[:, None] * (policy.logps - rollout["old_per_token_logps"]).exp()

    options = {"loss_type": loss_type, "per_device_train_batch_size": 4, "steps_per_generation": 4}
    options |= {"max_steps": 2, "learning_rate": 1e-2, "epsilon": 1e6}
    mixed = train(Ordinary, warm_model, data, tmp_path / "mixed", **options, **MIXED, expert_baseline="union")
    plain = make(Replaying, warm_model, data, tmp_path / "plain", **options)
    plain.script = [completions(rollout) for rollout, _, _ in mixed.prepared]
    plain.train()
    assert len(mixed.losses) == 4
    assert mixed.losses == pytest.approx(plain.losses, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(mixed.recorder.gradients, plain.recorder.gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trainer_class", BOTH)
def test_a_rollout_without_experts_trains_exactly_as_grpo(warm_model, data, tmp_path, trainer_class):
    # The first four rows have none; the check of the whole column finds one further down.
    sparse = data.remove_columns(["expert"]).add_column("expert", [None] * 31 + ["red"])
    plain = train(Scripted, warm_model, sparse, tmp_path / "plain")
    mixed = train(trainer_class, warm_model, sparse, tmp_path / "mixed", **MIXED)
    assert mixed.asked == plain.asked
    assert mixed.losses == plain.losses
    assert mixed.recorder.forwards == plain.recorder.forwards
    torch.testing.assert_close(mixed.recorder.gradients, plain.recorder.gradients, rtol=0, atol=0)
    log = mixed.state.log_history[0]
    assert log[f"{trainer_class.metric_prefix}/without_expert"] == 1.0
    assert f"{trainer_class.metric_prefix}/expert_probability" not in log


def test_the_old_probability_of_rl_plus_is_that_of_the_rollout(warm_model, data, tmp_path):
    options = {"num_iterations": 2, "max_steps": 2, "learning_rate": 1e-2, "epsilon": 1e6}
    trainer = train(ScriptedRlPlus, warm_model, data, tmp_path, **MIXED, **options)
    for first, second, batch in zip(trainer.policies[:2], trainer.policies[2:], trainer.rollouts[2:], strict=True):
        torch.testing.assert_close(batch["old_per_token_logps"], first.logps.detach(), rtol=0, atol=1e-6)
        assert (second.logps - first.logps).abs().max() > 1e-3
    # The terms of the second step, token by token in numpy.
    total, tokens = 0.0, 0
    for policy, batch in zip(trainer.policies[2:], trainer.rollouts[2:], strict=True):
        for row in range(8):
            for t in range(int(batch["completion_mask"][row].sum())):
                p, old = (np.exp(x[row, t].item()) for x in (policy.logps, batch["old_per_token_logps"]))
                weight = 2 * p / (old + 0.5 * (old + 1)) * np.sqrt(1 - p)
                total -= batch["expert_advantages"][row].item() * weight
                tokens += 1
    assert abs(total) > 1e-3
    assert trainer.state.log_history[1]["rl_plus/term"] == pytest.approx(total / tokens, rel=1e-4)


def test_the_probability_of_the_expert_is_logged(luffy):
    total, tokens = 0.0, 0
    for policy, batch in zip(luffy.policies, luffy.rollouts, strict=True):
        for row in batch["is_expert"].nonzero().flatten().tolist():
            length = int(batch["completion_mask"][row].sum())
            total += policy.logps[row, :length].exp().sum().item()
            tokens += length
    assert tokens == 2 + 4 + 8
    # A mean over micro-batches of their means.
    means = []
    for policy, batch in zip(luffy.policies, luffy.rollouts, strict=True):
        among = policy.mask & batch["is_expert"][:, None]
        if among.any():
            means.append(policy.logps[among].exp().mean().item())
    assert luffy.state.log_history[0]["luffy/expert_probability"] == pytest.approx(sum(means) / len(means), rel=1e-5)


# long experts


def test_long_experts_are_cut_and_counted_or_refused(warm_model, data, tmp_path):
    options = {**MIXED, "max_completion_length": 3}
    with pytest.warns(UserWarning, match="16 of 32 experts are cut to max_completion_length 3; the longest has 8"):
        trainer = train(ScriptedLuffy, warm_model, data, tmp_path, **options)
    rollout, _, _ = trainer.prepared[0]
    assert [len(completions(rollout)[row]) for row in (3, 7, 15)] == [2, 3, 3]
    assert trainer.state.log_history[0]["luffy/truncated_expert"] == 0.5
    with pytest.raises(ValueError, match="The expert of row 2 has 4 tokens"):
        make(ScriptedLuffy, warm_model, data, tmp_path, **options, long_expert="refuse")
    streamed = make(ScriptedLuffy, warm_model, data.to_iterable_dataset(), tmp_path, **options, long_expert="refuse")
    with pytest.raises(ValueError, match="An expert has 8 tokens, more than max_completion_length 3"):
        streamed.train()


def test_a_cut_expert_has_no_term_where_truncated_completions_are_masked(warm_model, data, tmp_path):
    long = data.filter(lambda row: row["expert"] == EXPERTS[3])
    options = {**MIXED, "max_completion_length": 3, "mask_truncated_completions": True}
    with pytest.warns(UserWarning, match="8 of 8 experts are cut"):
        trainer = train(ScriptedLuffy, warm_model, long, tmp_path, **options)
    assert sum(batch["is_expert"].sum() for batch in trainer.rollouts) == 4
    assert trainer.state.log_history[0]["luffy/term"] == 0


# company


@dataclass
class LuffyEcvgpoConfig(LuffyConfig, EcvgpoConfig):
    pass


class Shaped:
    """Keeps the advantages that the policy loss gets."""

    config_class = LuffyEcvgpoConfig

    def shape_advantages(self, advantages, policy, rollout):
        shaped = super().shape_advantages(advantages, policy, rollout)
        self.shaped = [*getattr(self, "shaped", []), (shaped, rollout["is_expert"], advantages)]
        return shaped


class LuffyFirst(Shaped, LuffyTrainer, EcvgpoTrainer, Scripted):
    pass


class EcvgpoFirst(Shaped, EcvgpoTrainer, LuffyTrainer, Scripted):
    pass


def test_ecvgpo_reshapes_the_sampled_rows_alone_in_either_order(warm_model, data, tmp_path):
    runs = [
        train(both, warm_model, data, tmp_path / both.__name__, **MIXED, r0=2.0) for both in (LuffyFirst, EcvgpoFirst)
    ]
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-6)
    for trainer in runs:
        assert sum(is_expert.sum() for _, is_expert, _ in trainer.shaped) == 3
        for shaped, is_expert, before in trainer.shaped:
            assert not shaped[is_expert].any()
            assert before[is_expert].all()
            assert (shaped != before[:, None])[~is_expert].any()


class Constant(Scripted):
    def extra_loss(self, policy, rollout):
        return super().extra_loss(policy, rollout) + 3.0


class LuffyAndConstant(LuffyTrainer, Constant):
    pass


def test_the_terms_of_other_methods_stay(luffy, warm_model, data, tmp_path):
    trainer = train(LuffyAndConstant, warm_model, data, tmp_path, **MIXED)
    # Over an accumulation of two.
    assert trainer.losses == pytest.approx([loss + 1.5 for loss in luffy.losses], rel=1e-6)


@pytest.mark.parametrize("trainer_class", BOTH)
def test_evaluation_is_plain(warm_model, data, tmp_path, trainer_class):
    trainer = make(trainer_class, warm_model, data, tmp_path, **MIXED, per_device_eval_batch_size=4)
    assert "eval_loss" in trainer.evaluate(data.select([0]))
    assert trainer.asked == trainer.prepared == trainer.policies == []


def test_what_samples_completions_itself_is_refused(tmp_path):
    for option in ("tools", "environment_factory", "rollout_func"):
        with pytest.raises(
            ValueError, match=f"LuffyTrainer samples whole groups itself and does not support {option}"
        ):
            LuffyTrainer(model="unused", **{option: [print]})


OFFICIAL = {
    "expert_baseline": "union",
    "scale_rewards": "none",
    "epsilon": math.inf,
    "loss_type": "dr_grpo",
    "entropy_coef": 0.001,
    "num_generations": 8,
    "steps_per_generation": 4,
}
PORT = {"scale_rewards": "none", "loss_type": "bnpo", "delta": 3.0, "num_generations": 4}


@pytest.mark.parametrize("preset", [OFFICIAL, PORT], ids=["official", "port"])
@pytest.mark.parametrize("trainer_class", BOTH)
def test_the_official_form_and_the_port_train(warm_model, data, tmp_path, trainer_class, preset):
    full = data.filter(lambda row: row["expert"] is not None)
    options = {**preset, "max_steps": 2, "learning_rate": 1e-2}
    trainer = train(trainer_class, warm_model, full, tmp_path, **MIXED, **options)
    assert all(math.isfinite(loss) for loss in trainer.losses)
    log = trainer.state.log_history[1]
    assert log[f"{trainer_class.metric_prefix}/term"] != 0
    if preset is OFFICIAL:
        assert log["clip_ratio/region_mean"] == 0


# slow


ANSWER = "top left square"


def exact(completions, **kwargs):
    return [float(completion[0]["content"] == ANSWER) for completion in completions]


@pytest.mark.slow
@pytest.mark.parametrize("trainer_class", [LuffyTrainer, RlPlusTrainer, EntropyGRPOTrainer])
def test_an_answer_that_is_never_sampled_is_learned_from_the_expert_and_by_grpo_never(
    shapes, data, tmp_path, trainer_class
):
    cold = build_tiny_vlm("qwen2_5_vl", tmp_path / "cold", hidden_size=32)
    experts = data.remove_columns(["expert"]).add_column("expert", [ANSWER] * len(data))
    options = {**OPTIONS, "max_steps": 80, "learning_rate": 3e-3, "optim": "adamw_torch", "shuffle_dataset": True}
    options |= {"lr_scheduler_type": "constant", "rewards": [exact], "gradient_accumulation_steps": 1}
    if trainer_class is EntropyGRPOTrainer:
        log = train(trainer_class, cold, experts, tmp_path / "run", **options).state.log_history
        assert max(line.get("reward", 0.0) for line in log) == 0
        return
    log = train(trainer_class, cold, experts, tmp_path / "run", **options, **MIXED).state.log_history[:-1]
    prefix = trainer_class.metric_prefix
    assert log[0][f"{prefix}/expert_probability"] < 0.01 < 0.8 < log[-1][f"{prefix}/expert_probability"]
    assert log[0][f"{prefix}/reward_on_policy"] == 0
    assert sum(line[f"{prefix}/reward_on_policy"] for line in log[-10:]) / 10 > 0.5
