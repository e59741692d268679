"""Reward-model benches: which of two responses is better, asked in both orders.

`accuracy` is the share of right verdicts over pairs and orders; no verdict, or a tie, is wrong and counted in
`unparsed`. `says_first` is the share of verdicts for the response that stands first: 0.5 without a position bias, less
half of `unparsed`. The other figures are in `order_totals`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

from vlm_entropy.data.noise_files import answer_text
from vlm_entropy.data.pairs import ORDERS, flip, pairwise_question, two_responses
from vlm_entropy.data.prompts import format_question
from vlm_entropy.eval.protocols import Benchmark, Item, Message, Protocol, Reference, Score, View
from vlm_entropy.rewards.parsing import find_final_answer, find_verdict

from .places import user_message

_JUDGEMENT = re.compile("overall judgment|therefore", re.IGNORECASE)
_BETTER = re.compile(r"answer\s*+(\d++)\s*+is\s*+(?:the\s*+)?+(?:slightly\s*+)?+better", re.IGNORECASE)


def both_orders(item: Item) -> list[Item]:
    """Return the pair as it stands and with its responses and its label swapped, ids "7/12" and "7/21".

    The question is the bare one: the column `question` where the data set has the whole pairwise prompt as its text.

    Raises:
        ValueError: for an item without two responses, or a label that is neither 1 nor 2.
    """
    try:
        responses, label = two_responses(item.columns), answer_text(item.answer)
        labels = (label, flip(label))
    except ValueError as error:
        raise ValueError(f"Item {item.id!r}: {error}.") from error
    question = item.columns.get("question", item.question)
    return [
        replace(
            item,
            id=f"{item.id}/{order}",
            question=question,
            answer=answer,
            columns={**item.columns, "responses": responses[::step], "order": order},
            unit=item.id,
        )
        for order, answer, step in zip(ORDERS, labels, (1, -1))
    ]


def find_judgement(text: str) -> str | None:
    """Return the verdict as VL-RewardBench reads it: "1" or "2", or None.

    It is the number of the last "Answer N is better" ("the better", "slightly better") after the first "Overall
    Judgment" or "Therefore", in any case, with `*` and line breaks deleted. The rule reads `Answer 3` too, and takes
    it for agreement; here it is None.
    """
    plain = text.replace("\n", "").replace("*", "")
    start = _JUDGEMENT.search(plain)
    numbers = _BETTER.findall(plain, start.end()) if start else []
    return numbers[-1] if numbers and numbers[-1] in ("1", "2") else None


def find_mark(text: str) -> str | None:
    """Return the verdict as Multimodal RewardBench does: "1" for `[[A]]` anywhere, else "2" for `[[B]]`, or None."""
    return "1" if "[[A]]" in text else "2" if "[[B]]" in text else None


def find_answered(text: str) -> str | None:
    """Return the verdict of the answer as the reward of training reads it, "1" or "2", or None."""
    verdict = find_verdict(find_final_answer(text) or "")
    return None if verdict is None else str(verdict)


def score_verdict(item: Item, text: str, view: View, *, read: Callable[[str], str | None]) -> Score:
    """Compare the verdict that `read` finds with the label."""
    verdict = read(text)
    values = {
        "accuracy": float(verdict == item.answer),
        "unparsed": float(verdict is None),
        "says_first": float(verdict == "1"),
    }
    return Score(values, verdict)


def _share(truths: Iterable[bool]) -> float:
    return fmean(map(float, truths))


def _rights(pairs: Iterable[dict[str, Sequence[Score]]], orders: Sequence[str], sample: int) -> bool:
    """Whether every pair is judged right, in each of the orders, by one sample."""
    return all(pair[order][sample].values["accuracy"] == 1.0 for pair in pairs for order in orders)


def category_cell(item: Item) -> dict[str, str]:
    """Group by the category, where the data has one."""
    return {"category": item.columns["category"]} if "category" in item.columns else {}


def order_totals(items: Sequence[Item], scores: Sequence[Sequence[Score]]) -> dict[str, float]:
    """Figures that need both orders of a pair, or all pairs of a group.

    Sample k of the one order goes with sample k of the other; the figures are means over samples.

    Returns:
        `consistency`: share of pairs whose verdicts name the same response in both orders;
        `both_orders_correct`: share of pairs with two right verdicts;
        `says_first_of_parsed`: `says_first` among the responses with a verdict, if there are any;
        `macro_accuracy`: mean over the categories of their accuracies, where the data has categories;
        `acc_plus`, where several pairs belong to a `question_id`: share of questions whose pairs are all judged right
        in one order, mean over both; `acc_plus_both_orders`: all right in both.
    """
    pairs: dict[str, dict[str, Sequence[Score]]] = defaultdict(dict)
    questions: dict[Any, set[str]] = defaultdict(set)
    categories: dict[str, list[float]] = defaultdict(list)
    for item, of_item in zip(items, scores, strict=True):
        name, _, order = item.id.rpartition("/")
        pairs[name][order] = of_item
        questions[item.columns.get("question_id")].add(name)
        categories[item.columns.get("category", "")] += [score.values["accuracy"] for score in of_item]
    samples = range(len(scores[0]))
    verdicts = [
        (pair["12"][sample].parsed, pair["21"][sample].parsed) for pair in pairs.values() for sample in samples
    ]
    parsed = [verdict for both in verdicts for verdict in both if verdict is not None]
    figures = {
        "consistency": _share(None not in both and both[0] != both[1] for both in verdicts),
        "both_orders_correct": _share(_rights([pair], ORDERS, k) for pair in pairs.values() for k in samples),
    }
    if parsed:
        figures["says_first_of_parsed"] = _share(verdict == "1" for verdict in parsed)
    if "" not in categories:
        figures["macro_accuracy"] = fmean(fmean(values) for values in categories.values())
    if None not in questions:
        groups = [[pairs[name] for name in names] for names in questions.values()]
        figures["acc_plus"] = _share(
            _rights(group, [order], k) for group in groups for order in ORDERS for k in samples
        )
        figures["acc_plus_both_orders"] = _share(_rights(group, ORDERS, k) for group in groups for k in samples)
    return figures


def _asked(item: Item) -> str:
    return pairwise_question(item.question, two_responses(item.columns))


def training_prompt(item: Item, view: View) -> list[Message]:
    """Ask as in training on rows of `data pairs` with the default template: think, then answer in tags."""
    return user_message(format_question(_asked(item)))


def plain_prompt(item: Item, view: View) -> list[Message]:
    """Ask as in training with the task type `plain`: the question alone."""
    return user_message(_asked(item))


def judgement_prompt(item: Item, view: View) -> list[Message]:
    """Ask as VL-RewardBench does: four criteria, and an overall judgment."""
    first, second = two_responses(item.columns)
    return user_message(
        " You are a highly capable multimodal AI assistant tasked with evaluating answers to visual questions. Please "
        "analyze the following image and question, then determine which of the two provided answers is better.\n\n"
        f"Question: {item.question}\n\nAnswer 1: {first}\n\nAnswer 2: {second}\n\n"
        "Please evaluate both answers based on the following criteria:\n"
        "1. Accuracy: How well does the answer align with the visual information in the image?\n"
        "2. Completeness: Does the answer fully address all aspects of the question?\n"
        "3. Clarity: Is the answer easy to understand and well-articulated?\n"
        "4. Relevance: Does the answer directly relate to the question and the image?\n\n"
        "After your evaluation, please:\n"
        "1. Explain your reasoning for each criterion.\n"
        "2. Provide an overall judgment on which answer is better (Answer 1 or Answer 2). For example: Overall "
        "Judgment: Answer X is better.\n\n"
        "Your response should be structured and detailed, demonstrating your understanding of both the visual and "
        "textual elements of the task."
    )


def marks_prompt(item: Item, view: View) -> list[Message]:
    """Ask as Multimodal RewardBench does: MT-bench's pairwise prompt without the tie."""
    first, second = two_responses(item.columns)
    return user_message(
        "Please act as an impartial judge and evaluate the quality of the responses provided by two AI assistants to "
        "the user question displayed below. You should choose the assistant that follows the user's instructions and "
        "answers the user's question better. Your evaluation should consider factors such as the helpfulness, "
        "relevance, accuracy, depth, creativity, and level of detail of their responses. Begin your evaluation by "
        "comparing the two responses and provide a short explanation. Avoid any position biases and ensure that the "
        "order in which the responses were presented does not influence your decision. Do not allow the length of the "
        "responses to influence your evaluation. Do not favor certain names of the assistants. Be as objective as "
        "possible. After providing your explanation, output your final verdict by strictly following this format: "
        '"[[A]]" if assistant A is better, "[[B]]" if assistant B is better.\n\n'
        f"[User Question]\n{item.question}\n\n"
        f"[The Start of Assistant A's Answer]\n{first}\n[The End of Assistant A's Answer]\n\n"
        f"[The Start of Assistant B's Answer]\n{second}\n[The End of Assistant B's Answer]"
    )


_protocol = partial(Protocol, cells=category_cell, totals=order_totals)
OURS = _protocol(
    "our own: the pairwise question and the reward of training, in the default template",
    training_prompt,
    partial(score_verdict, read=find_answered),
    max_new_tokens=1024,
)
PLAIN = _protocol(
    "our own: the pairwise question and the reward of training, with the task type plain",
    plain_prompt,
    partial(score_verdict, read=find_answered),
    max_new_tokens=1024,
)
_VLMEVALKIT = "VLMEvalKit pull request 703; a GPT reads the verdicts, and each pair is asked in one order"
VL_OFFICIAL = _protocol(
    "VL-RewardBench, prompt.py, inference.py and cal.py (github.com/vl-rewardbench/VL_RewardBench), word for word in "
    "the prompt, which its author also gave to VLMEvalKit (Apache-2.0). It draws up to 10 answers of each pair for a "
    "vote (--samples), each in a random order. Departures: both orders are asked; the image stands before the text; "
    "an answer that the pattern does not match is wrong, where the script leaves out the pair or asks a GPT; a vote "
    "without a majority goes to the verdict that came first, where the script counts neither.",
    judgement_prompt,
    partial(score_verdict, read=find_judgement),
    max_new_tokens=2048,
    temperature=0.2,
    top_p=0.2,
    references=(
        Reference("GPT-4o", "accuracy", 0.6616, _VLMEVALKIT),
        Reference("GPT-4o", "macro_accuracy", 0.6168, _VLMEVALKIT),
        Reference("GPT-4o (2024-11-20)", "accuracy", 0.7016, _VLMEVALKIT),
        Reference("GPT-4o (2024-11-20)", "macro_accuracy", 0.6549, _VLMEVALKIT),
    ),
)
_LEADERBOARD = "README of facebookresearch/multimodal_rewardbench, with Hateful Memes, which is not distributed"
MULTIMODAL_OFFICIAL = _protocol(
    "Multimodal RewardBench, scripts 1_run_model_as_judge_gpt4o.py and 2_get_accuracy.py "
    "(github.com/facebookresearch/multimodal_rewardbench); the words of the prompt are those of MT-bench (FastChat, "
    "Apache-2.0) without the tie. Departures: both orders are asked, the script has Output1 first; the image stands "
    "before the text; decoding is greedy, the script leaves it to the API; an answer without a mark is wrong, where "
    "the script draws one. Issue 8 of the repository reports questions and responses that do not belong together.",
    marks_prompt,
    partial(score_verdict, read=find_mark),
    max_new_tokens=1024,
    references=(
        Reference("GPT-4o (Dec 2024)", "accuracy", 0.715, _LEADERBOARD),
        Reference("Llama-3.2-90B-Vision-Instruct", "accuracy", 0.624, _LEADERBOARD),
        Reference("Llama-3.2-11B-Vision-Instruct", "accuracy", 0.524, _LEADERBOARD),
    ),
)
MM_RLHF = replace(
    OURS,
    source="our own prompt and reward of training, as the bench was made for models that give each response a number; "
    "its rules are `accuracy` (a tie is wrong) and `acc_plus`. The 25 pairs about a video are left out.",
)
PREFERENCES: dict[str, Benchmark] = {
    "vl_rewardbench": Benchmark(
        ("vl_rewardbench", "vlm_r1"),
        {"vlm_entropy": OURS, "official": VL_OFFICIAL},
        {None: 1250, "test": 1250},
        both_orders,
    ),
    "multimodal_rewardbench": Benchmark(
        ("multimodal_rewardbench", "vlm_r1"),
        {"vlm_entropy": OURS, "official": MULTIMODAL_OFFICIAL},
        expand=both_orders,
        images=(".",),
    ),
    "mm_rlhf_rewardbench": Benchmark(
        ("mm_rlhf_rewardbench", "vlm_r1"), {"vlm_entropy": MM_RLHF}, {None: 145}, both_orders, images=(".",)
    ),
    "pairs": Benchmark(("vlm_r1", "preference_jsonl"), {"vlm_entropy": OURS, "plain": PLAIN}, expand=both_orders),
}
