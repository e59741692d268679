"""The figures of `eval entropy`: where a model is unsure, and how that goes with what it is rewarded for."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from vlm_entropy.rewards.token_parts import PARTS
from vlm_entropy.trainers.advantages import group_advantages

from .statistics import paired_bootstrap
from .token_kinds import KINDS

Token = Mapping[str, Any]
Line = Mapping[str, Any]
"""Of tokens.jsonl: an answer with its tokens, see `entropy`."""
HIGH_SHARE = 0.2
SHOWN_TOKENS = 20
LEAST_COUNT = 3


def advantages(rewards: Sequence[float | None], samples: int) -> list[float]:
    """A_i = (r_i - mean) / (std + 1e-4) inside each prompt's group of answers, 0 for an answer without a reward.

    Source: arXiv 2512.06726, Eq. 1, with TRL's ε and n - 1.

    Args:
        rewards: of all answers, those of a prompt together.
        samples: answers of each prompt.
    """
    values = torch.tensor([math.nan if reward is None else reward for reward in rewards], dtype=torch.float64)
    return group_advantages(values, samples).tolist()


def mean_entropy(tokens: Sequence[Token]) -> dict[str, float | int | None]:
    """Mean token entropy in nats (arXiv 2512.06726, Eq. 6, over tokens) and the number of tokens."""
    return {"mean": _mean([token["entropy"] for token in tokens]), "tokens": len(tokens)}


def entropy_by(lines: Sequence[Line]) -> dict[str, Any]:
    """`mean_entropy` of all tokens, of each kind and part, and of the answers that are correct and wrong.

    Source: arXiv 2512.06726, section 3.2 and Fig. 1, which shades single answers and prints no number.
    """
    tokens = [token for line in lines for token in line["tokens"]]
    of_answers = {"correct": True, "wrong": False}
    return {
        "all": mean_entropy(tokens),
        "kind": {kind: mean_entropy([token for token in tokens if token["kind"] == kind]) for kind in KINDS},
        "part": {part: mean_entropy([token for token in tokens if token["part"] == part]) for part in PARTS},
        **{
            name: mean_entropy([token for line in lines if line["correct"] is verdict for token in line["tokens"]])
            for name, verdict in of_answers.items()
        },
    }


def probability_in_positives(lines: Sequence[Line]) -> dict[str, Any]:
    """Mean probability of all tokens and of the numeric ones in the answers with A > 0, and those of all answers.

    Source: arXiv 2512.06726, Fig. 4, "average probability of all tokens and numeric tokens in positive advantage
    samples", here of a checkpoint's own answers in place of a training's.
    """
    groups = {"positive": [line for line in lines if line["advantage"] > 0], "every": lines}
    figures = {}
    for name, chosen in groups.items():
        tokens = [token for line in chosen for token in line["tokens"]]
        numbers = [token for token in tokens if token["kind"] == "number"]
        figures[name] = {
            "answers": len(chosen),
            "all": _mean([token["prob"] for token in tokens]),
            "number": _mean([token["prob"] for token in numbers]),
        }
    return figures


def highest_entropy(lines: Sequence[Line]) -> dict[str, Any]:
    """Which tokens are the most uncertain.

    `share_of_highest`: the kinds of the `HIGH_SHARE` of all tokens with the highest entropy, beside `share_of_all`.
    `tokens`: the texts of highest mean entropy among those that come `LEAST_COUNT` times or more, digits as one text.

    Source: arXiv 2512.06726, section 1 ("high-entropy tokens are primarily associated with the coordinate values ...
    and the object nouns"), which prints no number; the fifth is that of arXiv 2506.01939.
    """
    tokens = sorted((token for line in lines for token in line["tokens"]), key=lambda token: -token["entropy"])
    highest = tokens[: math.ceil(HIGH_SHARE * len(tokens))]
    by_text: defaultdict[str, list[float]] = defaultdict(list)
    for token in tokens:
        by_text["(number)" if token["kind"] == "number" else token["text"]].append(token["entropy"])
    often = {text: entropies for text, entropies in by_text.items() if len(entropies) >= LEAST_COUNT}
    means = sorted(((fmean(entropies), text) for text, entropies in often.items()), reverse=True)
    return {
        "from": highest[-1]["entropy"] if highest else None,
        "share_of_highest": _shares(highest),
        "share_of_all": _shares(tokens),
        "tokens": [{"text": text, "entropy": mean, "count": len(often[text])} for mean, text in means[:SHOWN_TOKENS]],
    }


def _shares(tokens: Sequence[Token]) -> dict[str, float | None]:
    return {kind: _mean([float(token["kind"] == kind) for token in tokens]) for kind in KINDS}


def covariances(lines: Sequence[Line]) -> dict[str, float | None]:
    """How log-probs go with advantages over all tokens; a step of the policy gradient lowers entropy by them.

    logp_advantage:       Cov(log π, A)       (arXiv 2505.22617, Eq. 10)
    logp_prob_advantage:  Cov(log π, π · A)   (arXiv 2512.06726, Eqs. 8 and 22)

    The theorem's covariance is over the actions at one state; of sampled answers there is one action at each, so both
    are estimated over the tokens of all answers together. In nats times the unit of A.
    """
    pairs = [(token["prob"], line["advantage"]) for line in lines for token in line["tokens"] if token["prob"] > 0]
    logps = [math.log(prob) for prob, _ in pairs]
    return {
        "logp_advantage": _covariance(logps, [advantage for _, advantage in pairs]),
        "logp_prob_advantage": _covariance(logps, [prob * advantage for prob, advantage in pairs]),
    }


def _covariance(first: Sequence[float], second: Sequence[float]) -> float | None:
    if not first:
        return None
    means = fmean(first), fmean(second)
    return fmean([(left - means[0]) * (right - means[1]) for left, right in zip(first, second, strict=True)])


def summarise(lines: Sequence[Line]) -> dict[str, Any]:
    """Every figure of one model."""
    judged = [float(line["correct"]) for line in lines if line["correct"] is not None]
    rewards = [line["reward"] for line in lines if line["reward"] is not None]
    return {
        "answers": len(lines),
        "tokens": sum(len(line["tokens"]) for line in lines),
        "accuracy": _mean(judged),
        "reward": _mean(rewards),
        "entropy": entropy_by(lines),
        "probability": probability_in_positives(lines),
        "highest_entropy": highest_entropy(lines),
        "covariance": covariances(lines),
    }


def _of_prompts(lines: Sequence[Line], keep: Callable[[Token], bool]) -> dict[str, float]:
    """Mean entropy of the tokens to keep in all answers to a prompt, by its id; no prompt without such a token."""
    entropies: defaultdict[str, list[float]] = defaultdict(list)
    for line in lines:
        entropies[line["id"]] += [token["entropy"] for token in line["tokens"] if keep(token)]
    return {prompt: fmean(values) for prompt, values in entropies.items() if values}


def difference(before: Sequence[Line], after: Sequence[Line], kind: str | None = None) -> dict[str, Any]:
    """Mean entropy of the second model minus that of the first over the same prompts, with its paired 95 % interval.

    Each prompt counts once, with the mean over the tokens of its answers; the models answer in their own words.

    Args:
        before, after: lines of the two models.
        kind: of `KINDS`, the only tokens that count; all by default.
    """
    first, second = (_of_prompts(lines, lambda token: kind in (None, token["kind"])) for lines in (before, after))
    prompts = [prompt for prompt in first if prompt in second]
    if len(prompts) < 2:
        return {"prompts": len(prompts), "difference": None, "low": None, "high": None}
    found = paired_bootstrap([first[it] for it in prompts], [second[it] for it in prompts], seed=0)
    return {"prompts": len(prompts), **dict(zip(("difference", "low", "high"), found[:3], strict=True))}


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
