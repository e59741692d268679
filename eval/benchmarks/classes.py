"""Fine-grained classes as Visual-RFT evaluates them: the answer is the name of the class, of 37 to 196 classes.

Both protocols report the published number and the strict one. The published rule takes containment either way for
right, so an empty answer, "e" and a list of all classes are right; the strict one wants the name itself, but for case,
blanks and underscores.
"""

from vlm_entropy.eval.protocols import Benchmark, Item, Protocol, Reference, Score, View
from vlm_entropy.rewards.classes import class_match, published_class_match, squeeze
from vlm_entropy.rewards.parsing import find_final_answer

from .answers import ask, without_text

QUESTION = (
    "This is an image containing {}. Please identify {} based on the image.\n"
    "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
    "The output answer format should be as follows:\n"
    "<think> ... </think> <answer>species name</answer>\n"
    "Please strictly follow the format."
)
QUESTIONS = {
    "flowers": QUESTION.format("a plant", "the species of the plant"),
    "aircraft": QUESTION.format("an aircraft", "the model of the aircraft"),
    "cars": QUESTION.format("a car", "the model of the car"),
    "pets": QUESTION.format("a pet", "the species of the pet"),
}
SIZES = {"flowers": 2_463, "aircraft": 3_333, "cars": 8_041, "pets": 3_669}
"""Images of the validation sets; those of flowers are CoOp's split, not the 6 149 of the official test."""
PUBLISHED = {
    "Qwen2-VL-2B-Instruct": {"flowers": 0.548, "pets": 0.664, "aircraft": 0.459, "cars": 0.568},
    "Qwen2-VL-2B-Instruct + SFT, 4-shot": {"flowers": 0.585, "pets": 0.555, "aircraft": 0.679, "cars": 0.405},
    "Qwen2-VL-2B-Instruct + Visual-RFT, 4-shot": {"flowers": 0.714, "pets": 0.861, "aircraft": 0.748, "cars": 0.953},
}


def published_answer(response: str) -> str | None:
    """Return what Visual-RFT's `<answer>(.*?)</answer>` finds first, where `.` is no line end; None is its error."""
    for line in response.split("\n"):
        answer, end, _ = line.partition("<answer>")[2].partition("</answer>")
        if end:
            return answer
    return None


def _vote(answer: str | None) -> str | None:
    return squeeze(answer or "") or None


def published_score(item: Item, response: str, view: View) -> Score:
    """Score by Visual-RFT's rule; `strict` wants the same answer to be the name itself."""
    answer = published_answer(response)
    right = answer is not None and published_class_match(answer, item.answer)
    strict = answer is not None and class_match(answer, item.answer)
    values = {"accuracy": float(right), "strict": float(strict), "no_answer": float(answer is None)}
    return Score(values, _vote(answer))


def strict_score(item: Item, response: str, view: View) -> Score:
    r"""Score the name itself, from an `<answer>` or `\boxed{}` after the thinking; `visual_rft` as published."""
    found = find_final_answer(response)
    answer = None if found is None else without_text(found)
    published = published_answer(response)
    values = {
        "accuracy": float(answer is not None and class_match(answer, item.answer)),
        "visual_rft": float(published is not None and published_class_match(published, item.answer)),
        "no_answer": float(_vote(answer) is None),
    }
    return Score(values, _vote(answer))


def class_benchmark(name: str) -> Benchmark:
    """Return the benchmark of one of the four sets."""
    published = Protocol(
        source=(
            "Visual-RFT's classification_infere: its prompt with the literal <image> line, and containment either way "
            "in the first <answer> on one line, over all items. Departure: blanks of every kind are taken out, not "
            "only spaces"
        ),
        prompt=ask("<image>\n" + QUESTIONS[name]),
        score=published_score,
        max_new_tokens=1024,
        references=tuple(
            Reference(model, "accuracy", values[name], "Visual-RFT, arXiv 2503.01785, Table 2")
            for model, values in PUBLISHED.items()
        ),
    )
    ours = Protocol(
        source="ours: Visual-RFT's prompt without the literal <image> line, and the name itself as the answer",
        prompt=ask(QUESTIONS[name]),
        score=strict_score,
        max_new_tokens=1024,
    )
    return Benchmark(
        formats=("visual_rft_val", "visual_rft_classes"),
        sizes={None: SIZES[name]},
        protocols={"visual_rft": published, "vlm_entropy": ours},
    )


CLASSES: dict[str, Benchmark] = {name: class_benchmark(name) for name in QUESTIONS}
