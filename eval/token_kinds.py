"""What kind of token each token of an answer is: a number, a noun of the thinking, a tag, or none of these."""

import re
from collections.abc import Sequence
from itertools import accumulate

from vlm_entropy.rewards.token_parts import token_parts

KINDS = ("number", "noun", "tag", "other")
"""number: a token with a digit. noun: a part of a content word of the thinking. tag: a part of <think>, </think>,
<answer> or </answer>. other: all else."""

_TAG = re.compile(r"</?(?:think|answer)>")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_DIGIT = re.compile("[0-9]")
_NO_CONTENT = """
a an the this that these those some any each every all both either neither no none another other such same own i me my
we us our you your he him his she her it its they them their theirs itself himself herself themselves who whom whose
which what where when why how there here one ones two three four five six seven eight nine ten first second third last
next only in on at of to from by with without within into onto over under above below between among behind beside
besides before after near next off out up down along across around through about against toward towards per for than as
like inside outside during until since upon and or but nor so yet if then else because while though although whereas
unless whether however therefore thus hence also too very more most less least much many few several just still even
already again once not n't is are was were be been being am has have had having do does did done doing can could will
would shall should may might must need let lets ok okay yes well now see sees seen look looks looked looking find finds
finding found identify identifies identified identifying locate locates located locating appear appears appeared
appearing seem seems seemed show shows showed shown showing describe describes described describing mention mentions
mentioned refer refers referred referring match matches matched matching contain contains contained containing include
includes included including correspond corresponds corresponding determine determines determined determining consider
considers considered considering check checks checking think thinks thinking know knows known make makes made take
takes taken give gives given get gets got go goes going come comes coming use uses used using say says said want wants
ask asks asked provide provides provided stand stands standing sit sits sitting wear wears wearing hold holds holding
lie lies lying place placed based visible given called named clear likely possible
"""
NO_CONTENT = frozenset(_NO_CONTENT.split())
"""Words that are no nouns: the closed classes of English, and the verbs that thinking about a picture is full of."""


def is_content_word(word: str) -> bool:
    """Whether a word may name a thing: two letters or more, not in `NO_CONTENT`, and no adverb in -ly."""
    lower = word.lower()
    return len(word) > 1 and lower not in NO_CONTENT and not lower.endswith("ly")


def token_kinds(pieces: Sequence[str]) -> list[str]:
    """The kind, one of `KINDS`, of each token of an answer; the first that fits of number, tag, noun.

    The source, arXiv 2512.06726, section 1, speaks of "coordinate values" and "object nouns that appear in the model's
    reasoning", and does not say how it tells them. Telling nouns needs a tagger; here they are the content words of
    the thinking (`is_content_word`), which also hold its adjectives ("red", "left") and rarer verbs: read "noun" as
    "content word". English only; a word of another script counts as one.

    token_kinds(["<", "think>", "the", " red", " umb", "rella", "</think>", "<answer>", "[", "7"]) is
    ["tag", "tag", "other", "noun", "noun", "noun", "tag", "tag", "other", "number"].

    Args:
        pieces: the text of each token in order.
    """
    text, starts = "".join(pieces), list(accumulate(map(len, pieces), initial=0))
    tags = _covered(text, [found.span() for found in _TAG.finditer(text)])
    nouns = _covered(text, [found.span() for found in _WORD.finditer(text) if is_content_word(found[0])])
    kinds = []
    for piece, part, start in zip(pieces, token_parts(pieces), starts):
        places = range(start, start + len(piece))
        if _DIGIT.search(piece):
            kinds.append("number")
        elif any(tags[place] for place in places):
            kinds.append("tag")
        else:
            is_noun = part == "think" and any(nouns[place] for place in places)
            kinds.append("noun" if is_noun else "other")
    return kinds


def _covered(text: str, spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each character lies in one of the spans."""
    covered = [False] * len(text)
    for start, end in spans:
        covered[start:end] = [True] * (end - start)
    return covered
