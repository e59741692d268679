"""Entropy, probability and alternatives of every token of an answer, from the logits that it is drawn from."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

TOP = 5
DIGITS = 6


class TokenMeasures(NamedTuple):
    """What a model thought at one token of its answer; all at temperature 1 over the full vocabulary."""

    text: str
    """Of the token alone; a part of a character is U+FFFD."""
    entropy: float
    """Nats."""
    prob: float
    """Of this token."""
    top: list[tuple[str, float]]
    """The likeliest tokens, at most `TOP`, and their probabilities, in descending order."""


class LogitsRecorder:
    """A forward hook, to be registered with kwargs, that measures each step of `generate`.

    The probability of a token is read one step later, when the model is given it, so that the logits of one step are
    all that is kept.
    """

    def __init__(self) -> None:
        self._logps: Tensor | None = None
        self._entropies: list[Tensor] = []
        self._probs: list[Tensor] = []
        self._top: list[tuple[Tensor, Tensor]] = []

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self._logps is not None:
            self._take(kwargs["input_ids"][:, -1])
        self._logps = output.logits[:, -1].float().log_softmax(dim=-1)
        probs = self._logps.exp()
        top = probs.topk(min(TOP, probs.size(-1)), dim=-1)
        self._entropies.append(torch.special.entr(probs).sum(dim=-1).cpu())
        self._top.append((top.values.cpu(), top.indices.cpu()))

    def _take(self, tokens: Tensor) -> None:
        assert self._logps is not None
        self._probs.append(self._logps.gather(1, tokens[:, None].to(self._logps.device))[:, 0].exp().cpu())

    def finish(self, ids: Tensor, lengths: Sequence[int], tokenizer: Any) -> list[list[TokenMeasures]]:
        """The measures of each row's tokens, up to its length.

        Args:
            ids: (B, T) all that was generated, with what follows a row's end.
            lengths: B, tokens that count.
            tokenizer: of the model.

        Raises:
            ValueError: for logits that are not finite.
        """
        self._take(ids[:, -1])
        entropies, probs = (torch.stack(values, dim=1) for values in (self._entropies, self._probs))
        values, indices = (torch.stack(part, dim=1) for part in zip(*self._top, strict=True))
        if not bool(torch.isfinite(entropies).all()):
            raise ValueError("The model's logits are not finite, so its tokens have no entropy.")
        known = sorted({*ids.flatten().tolist(), *indices.flatten().tolist()})
        text = dict(zip(known, tokenizer.batch_decode([[token] for token in known]), strict=True))
        steps = zip(*(part.tolist() for part in (ids, entropies, probs, indices, values)), strict=True)
        return [
            [
                TokenMeasures(
                    text[token],
                    _short(entropy),
                    _short(prob),
                    [(text[other], _short(likely)) for other, likely in zip(others, likelies, strict=True)],
                )
                for token, entropy, prob, others, likelies in list(zip(*row, strict=True))[:length]
            ]
            for row, length in zip(steps, lengths, strict=True)
        ]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
