"""Who meets whom, what a judge sees of a completion, what its verdicts are worth: `reward_model` without a model."""

from collections.abc import Sequence

from vlm_entropy.rewards.parsing import find_answer, find_final_answer, find_verdict

Match = tuple[int, int]
"""Two entrants by number, the one shown as response 1 first."""


def visible_answer(text: str) -> str:
    """What a judge sees of a completion: its `<answer>`, else all after its thinking.

    Empty for a completion that has begun to think or to answer and never ended it.
    """
    shown = find_answer(text)
    if shown is None:
        shown = text.rpartition("</think>")[2]
        shown = "" if "<think>" in shown or "<answer>" in shown else shown
    return shown.strip()


def break_up(text: str, words: Sequence[str]) -> str:
    """The text with a blank after the first character of each of the words that it holds.

    Args:
        text: any.
        words: two characters or more each, without blanks; a word that holds another one comes before it.
    """
    for word in words:
        text = text.replace(word, f"{word[0]} {word[1:]}")
    return text


def read_verdict(reply: str) -> int | None:
    r"""1 or 2 in a judge's `<answer>` or `\boxed{}`, or as all that follows its thinking; None for anything else."""
    final = find_final_answer(reply)
    return find_verdict(visible_answer(reply) if final is None else final)


def tournament(size: int, rounds: int) -> list[Match]:
    """The first rounds of a round robin: in each, a member meets an opponent that it has not met before.

    The circle method: with n members (one more, who stands for a rest, if their number is odd), round r = 0, 1, ...
    pairs n - 1 with r, and (r + k) mod (n - 1) with (r - k) mod (n - 1) for k = 1 ... n/2 - 1.

    Args:
        size: members, >= 1.
        rounds: >= 0; all pairs have met after n - 1 of them, and there are no more.

    Returns:
        Pairs of members, from 0. With an odd size one member rests in each round, each time another.
    """
    circle = size + size % 2 - 1
    pairs = [
        (circle if k == 0 else (number + k) % circle, (number - k) % circle)
        for number in range(min(rounds, circle))
        for k in range((circle + 1) // 2)
    ]
    return [pair for pair in pairs if max(pair) < size]


def both_orders(pairs: Sequence[Match]) -> list[Match]:
    """Each pair in the order given and in the other one."""
    return [match for first, second in pairs for match in ((first, second), (second, first))]


def settle(first: str, second: str) -> int | None:
    """The verdict on two answers that need no judge, one of them empty or both equal.

    Something wins against nothing. Of equal ones the first wins, so that each has one win in both orders together; of
    two empty ones none does.
    """
    if not first:
        return 2 if second else None
    return 1


def win_shares(matches: Sequence[Match], verdicts: Sequence[int | None], *, count: int) -> list[float | None]:
    """Each entrant's share of its matches that it won.

    Args:
        matches: of entrants in [0, count).
        verdicts: 1 or 2 per match, None where nobody won.
        count: entrants.

    Returns:
        One number in [0, 1] per entrant, None for one without a match.
    """
    played, won = [0] * count, [0] * count
    for match, verdict in zip(matches, verdicts, strict=True):
        for place, entrant in enumerate(match, start=1):
            played[entrant] += 1
            won[entrant] += verdict == place
    return [wins / games if games else None for wins, games in zip(won, played, strict=True)]
