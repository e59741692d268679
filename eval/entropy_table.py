"""The figures of `eval entropy` as Markdown."""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

from vlm_entropy.rewards.token_parts import PARTS

from .token_kinds import KINDS

Figures = Mapping[str, Any]
SHARES = ("highest_entropy", "share_of_highest")


def entropy_table(summary: Figures) -> str:
    """A column per model: entropies by kind and part, probabilities, covariances, and the most uncertain tokens."""
    models, settings = summary["models"], summary["settings"]
    names = [one["model"] for one in models]
    parts = [
        f"{models[0]['answers']} answers to {settings['data']}, {settings['samples']} to each row, at temperature 1.",
        _table(["", *names], [_line(label, models, path) for label, path in _rows()]),
        'Entropies are means over tokens in nats; "noun" is a content word of the thinking. Probabilities are of the '
        "sampled tokens; positive: answers with a positive advantage.",
    ]
    if summary["differences"]:
        parts.append(_differences(summary["differences"], names[0]))
    for one in models:
        texts = [f"{token['text']!r} {token['entropy']:.2f}" for token in one["highest_entropy"]["tokens"][:10]]
        parts.append(f"Tokens of highest mean entropy in {one['model']}: {', '.join(texts)}.".replace("|", r"\|"))
    return "\n\n".join(parts) + "\n"


def _rows() -> list[tuple[str, tuple[str, ...]]]:
    """A label for each line, and where its figure stands in a model's summary."""
    return [
        ("accuracy", ("accuracy",)),
        ("entropy, all tokens", ("entropy", "all", "mean")),
        *((f"entropy, kind {name}", ("entropy", "kind", name, "mean")) for name in KINDS),
        *((f"entropy, part {name}", ("entropy", "part", name, "mean")) for name in PARTS),
        *((f"entropy, {name} answers", ("entropy", name, "mean")) for name in ("correct", "wrong")),
        *((f"share of {kind} among the highest fifth", (*SHARES, kind)) for kind in KINDS),
        *(
            (f"probability, {what} tokens of {which} answers", ("probability", which, what))
            for which in ("positive", "every")
            for what in ("all", "number")
        ),
        ("Cov(log π, A)", ("covariance", "logp_advantage")),
        ("Cov(log π, π · A)", ("covariance", "logp_prob_advantage")),
    ]


def _line(label: str, models: Sequence[Figures], path: tuple[str, ...]) -> list[str]:
    values = [reduce(getitem, path, one) for one in models]
    return [label, *("" if value is None else f"{value:.3f}" for value in values)]


def _differences(differences: Sequence[Figures], first: str) -> str:
    lines = []
    for one in differences:
        if one["difference"] is not None:
            interval = f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
            verdict = "not shown" if one["low"] <= 0 <= one["high"] else "shown"
            lines.append([one["model"], one["kind"], str(one["prompts"]), interval, verdict])
    header = ["model", "tokens", "prompts", f"entropy - {first}'s [95 %]", "a difference is"]
    return _table(header, lines)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [list(header), ["---"] * len(header), *map(list, lines)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
