"""Prompt templates by task type, word for word those of VLM-R1: its checkpoints were trained on them."""

_R1 = (
    "{Question} First output the thinking process in <think> </think> tags and then output the final answer in "
    "<answer> </answer> tags."
)
TEMPLATES: dict[str, str] = {
    "default": _R1,
    "rec": _R1 + " Output the final answer in JSON format.",
    "plain": "{Question}",
}


def format_question(question: str, task_type: str = "default") -> str:
    """Put the question into the template of `task_type`; braces in the question stay as they are.

    Raises:
        ValueError: for a task type that is not in `TEMPLATES`.
    """
    if task_type not in TEMPLATES:
        raise ValueError(f"Unknown task type {task_type!r}; allowed are {', '.join(TEMPLATES)}.")
    return TEMPLATES[task_type].replace("{Question}", question)
