"""What each method costs beside GRPO: vision patches and language-model tokens counted, seconds measured."""

import math
import time
from statistics import median

import pytest
from support import FAST, dataset_of, uneven_reward
from transformers import TrainerCallback

from vlm_entropy.trainers import get_method

OPTIONS = {
    "two_stage": {"lambda_max": 0.5},
    "ecvgpo": {"r0": 10.0},
    "calibrl": {"expert_column": "response", "correct_threshold": 3.0},
    "saei": {},
    "noisy_rollout": {},
}
STEPS, ROWS, GENERATIONS = 10, 32, 8


class Counter(TrainerCallback):
    """Vision patches and LM tokens of the forwards with a gradient graph or labels, not of generation; step times."""

    def __init__(self):
        self.patches = self.tokens = 0
        self.seconds = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, args, kwargs):
        if kwargs.get("fused_lm_head"):
            self.tokens += kwargs["input_ids"].numel()
            self.patches += len(kwargs["pixel_values"])

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.start)


def run(name, tiny_model, shapes, tmp_path):
    method = get_method(name)
    sizes = {"per_device_train_batch_size": ROWS, "num_generations": GENERATIONS, "max_steps": STEPS}
    # Completions of full length in every run, so that tokens can be compared.
    length = {"max_completion_length": 12, "generation_kwargs": {"min_new_tokens": 12}, "model_init_kwargs": None}
    config = method.config(output_dir=str(tmp_path), **{**FAST, **sizes, **length, **OPTIONS.get(name, {})})
    counter = Counter()
    trainer = method.trainer(
        model=str(tiny_model),
        reward_funcs=[uneven_reward],
        args=config,
        train_dataset=dataset_of(shapes, tiny_model),
        callbacks=[counter],
    )
    trainer.train()
    return counter


@pytest.mark.slow
def test_a_method_costs_what_its_paper_says(tiny_model, shapes, tmp_path):
    counts = {name: run(name, tiny_model, shapes, tmp_path / name) for name in ["grpo", *OPTIONS]}
    base = counts["grpo"]
    prompts, patches_per_image = ROWS // GENERATIONS, 16
    assert base.patches == STEPS * ROWS * patches_per_image
    print("\n| method | extra patches a step | extra LM tokens a step | median step / GRPO |\n|---|---|---|---|")
    for name, count in counts.items():
        patches, tokens = (count.patches - base.patches) / STEPS, (count.tokens - base.tokens) / STEPS
        ratio = median(count.seconds) / median(base.seconds)
        share = f"{tokens:.0f} ({tokens / (base.tokens / STEPS):.0%})"
        print(f"| {name} | {patches:.0f} ({patches * STEPS / base.patches:.0%}) | {share} | {ratio:.2f} |")
        expected = {"calibrl": prompts, "saei": ROWS // 2}.get(name, 0) * patches_per_image
        assert patches == expected
        assert (tokens > 0) == (expected > 0)
    # Half of the rows are clean: the attack's one forward is half a policy forward.
    assert math.isclose((counts["saei"].tokens - base.tokens) / base.tokens, 0.5, abs_tol=0.02)
