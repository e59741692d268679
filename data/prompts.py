"""Prompt templates by task type. Those of VLM-R1 are word for word its own: its checkpoints were trained on them."""

_R1 = (
    "{Question} First output the thinking process in <think> </think> tags and then output the final answer in "
    "<answer> </answer> tags."
)
_FIRST_THINKS = (
    "First thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., "
    "<think> reasoning process here </think><answer> {} </answer>"
)
TEMPLATES: dict[str, str] = {
    "default": _R1,
    "rec": _R1 + " Output the final answer in JSON format.",
    "ic": "{Question} " + _FIRST_THINKS.format("json format answer here"),
    "odLength": _FIRST_THINKS.format("answer here") + "\n{Question}",
    "gui": _R1,
    "gui_defect": _R1,
    "plain": "{Question}",
    "think_answer": (
        "{Question} You FIRST think about the reasoning process as an internal monologue and then provide the final "
        "answer. The reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in "
        "<answer> </answer> tags."
    ),
    "think_boxed": (
        "{Question} Think first, inside <think> </think> tags, and then give the final answer in \\boxed{}."
    ),
    "gui_action": (
        "{Question} Choose the next action on this screen: click, open_app, scroll, navigate_back or input_text. "
        "Think first, inside <think> </think> tags, and then answer in the form "
        "<answer>[{'action': 'click', 'coordinate': [x, y]}]</answer>, with whole numbers and a coordinate only for a "
        "click."
    ),
}
"""VLM-R1's: default, rec, ic and odLength; gui and gui_defect are the default there too. think_answer: CalibRL's
(arXiv 2602.20197, Table 9). think_boxed and gui_action: our words for what NoisyRollout and UI-R1 ask. plain: the
question holds everything."""


def format_question(question: str, task_type: str = "default") -> str:
    """Put the question into the template of `task_type`; braces in the question stay as they are.

    Raises:
        ValueError: for a task type that is not in `TEMPLATES`.
    """
    if task_type not in TEMPLATES:
        raise ValueError(f"Unknown task type {task_type!r}; allowed are {', '.join(TEMPLATES)}.")
    return TEMPLATES[task_type].replace("{Question}", question)
