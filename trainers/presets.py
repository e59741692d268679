"""Baselines that are a method with other defaults, by name."""

import math
from typing import Any, NamedTuple


class Preset(NamedTuple):
    """A baseline that is another method with other defaults; options that are given win over them."""

    method: str
    options: dict[str, Any]
    source: str
    changes: str


PRESETS: dict[str, Preset] = {
    "vlm_r1": Preset(
        "grpo",
        {
            "beta": 0.04,
            "loss_type": "grpo",
            "max_completion_length": 256,
            "top_k": 50,
            "gradient_checkpointing": False,
        },
        "VLM-R1, its effective defaults",
        "loss: mean over responses of the mean over tokens, KL term",
    ),
    "grpo_12": Preset(
        "grpo", {"num_generations": 12}, "arXiv 2512.10414", "sampling: GRPO at the rollouts of SaEI, all clean"
    ),
    "dr_grpo": Preset(
        "grpo",
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        "arXiv 2503.20783",
        "loss: sum over tokens / longest length; advantage: not divided by the std",
    ),
    "gspo": Preset(
        "grpo",
        {
            "importance_sampling_level": "sequence",
            "loss_type": "grpo",
            "epsilon": 3e-4,
            "epsilon_high": 4e-4,
            "steps_per_generation": 4,
        },
        "arXiv 2507.18071, section 5.1",
        "loss: one importance ratio per response",
    ),
    "entropy_bonus": Preset(
        "grpo", {"entropy_coef": 0.01}, "arXiv 2602.20197, Table 6", "loss: - 0.01 · mean token entropy (TRL's)"
    ),
    "adaptive_entropy_bonus": Preset(
        "grpo",
        {"use_adaptive_entropy": True},
        "arXiv 2505.22312",
        "loss: an entropy bonus that holds entropy_target (TRL's)",
    ),
    "top_entropy_tokens": Preset(
        "grpo", {"top_entropy_quantile": 0.2}, "arXiv 2506.01939", "loss: only the 20 % most uncertain tokens (TRL's)"
    ),
    "entropy_max": Preset(
        "two_stage", {"switch_fraction": 1.0}, "arXiv 2511.07738, GRPO w. Max", "loss: stage 1 throughout"
    ),
    "entropy_min": Preset(
        "two_stage", {"switch_fraction": 0.0}, "arXiv 2511.07738, GRPO w. Min", "loss: stage 2 throughout"
    ),
    "min_then_max": Preset(
        "two_stage",
        {"entropy_order": "min_then_max"},
        "arXiv 2511.07738, ablation",
        "loss: the two stages in the other order",
    ),
    "lf_max_lt_min": Preset(
        "label_entropy",
        {"raise_on": "false"},
        "arXiv 2511.07738, ablation",
        "loss: entropy up on wrong labels, down on right ones",
    ),
    "lf_min_lt_max": Preset(
        "label_entropy",
        {"raise_on": "true"},
        "arXiv 2511.07738, ablation",
        "loss: entropy down on wrong labels, up on right ones",
    ),
    "egt_high_to_low": Preset(
        "egt", {"egt_order": "high_to_low"}, "arXiv 2602.01884, ablation", "data: rows in descending order of entropy"
    ),
    "egt_random": Preset(
        "egt", {"egt_order": "random"}, "arXiv 2602.01884, ablation", "data: the same rows in random order, one pass"
    ),
    "luffy_official": Preset(
        "luffy",
        {
            "expert_baseline": "union",
            "epsilon": math.inf,
            "loss_type": "dr_grpo",
            "entropy_coef": 0.001,
            "num_generations": 8,
        },
        "arXiv 2504.14945, its authors' form",
        "as luffy; advantages centred on the whole group, no clipping, loss / longest length",
    ),
    "rl_plus_official": Preset(
        "rl_plus",
        {
            "expert_baseline": "union",
            "epsilon": math.inf,
            "loss_type": "dr_grpo",
            "entropy_coef": 0.001,
            "num_generations": 8,
        },
        "arXiv 2508.00222, its authors' form",
        "as rl_plus; advantages centred on the whole group, no clipping, loss / longest length",
    ),
    "ttrl": Preset(
        "grpo",
        {"reward_funcs": ["majority_box"]},
        "arXiv 2504.16084",
        "reward: agreement with the group's majority answer; majority_text and majority_point for other answers",
    ),
    "empo": Preset(
        "grpo",
        {"reward_funcs": ["empo_box"]},
        "arXiv 2504.05812",
        "reward: share of the group that gives the same answer; empo_text and empo_point for other answers",
    ),
    "random_reward": Preset("grpo", {"reward_funcs": ["random"]}, "arXiv 2506.10947", "reward: a fair coin"),
    "format_only": Preset("grpo", {"reward_funcs": ["format"]}, "arXiv 2506.10947", "reward: the format alone"),
}
