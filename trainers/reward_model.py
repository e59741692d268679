"""A trained judge as a reward: `--reward_funcs reward_model:DIR`.

The judge is a pairwise reasoning reward model, as EGT (arXiv 2602.01884) trains one: any checkpoint of our families
that answers `pairwise_question`, asked about pictures and two responses, with 1 or 2.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from datasets import Dataset
from PIL import Image
from transformers.integrations import deepspeed

from vlm_entropy.data.generation import Decoding, answer, conversation, load_model, plan_batches, tokenize
from vlm_entropy.data.models import load_description
from vlm_entropy.data.pairs import pairwise_question
from vlm_entropy.data.prompts import format_question
from vlm_entropy.rewards.agreement import rows_of_groups
from vlm_entropy.rewards.judging import LogMetric
from vlm_entropy.rewards.parsing import completion_text

from .base import EntropyGRPOConfig
from .comparisons import (
    Match,
    both_orders,
    break_up,
    read_verdict,
    settle,
    tournament,
    visible_answer,
    win_shares,
)

Mode = Literal["pairwise", "reference"]


class Question(NamedTuple):
    """What a judge is asked."""

    problem: str
    responses: tuple[str, str]
    images: list[Image.Image]


@dataclass(eq=False)
class RewardModelReward:
    """The share of comparisons that a judge decides for a completion, in [0, 1].

    - `pairwise`: with `opponents` other completions of its group, those of a `tournament`. Their mean over a group is
      1/2 less what unparsable verdicts take, so it says nothing about the progress of training.
    - `reference`: with the text in the row's `reference_column`; 1/2 is as good as the reference. None for a row
      without one.

    Each pair is judged in both orders, so a judge that always says "1" gives everyone 1/2. An unparsable verdict is a
    win for nobody. An empty completion never wins, and equal ones share, both without asking; the same two responses
    to a prompt are asked about once. Cost per completion, at most: K replies of the judge with K opponents, two with a
    reference, each to the prompt's images and two responses; and its weights stay on the device, beside the policy's.
    They are loaded at the first call and never trained.

    The judge sees what `visible_answer` leaves of a completion: no thinking, nothing around the `<answer>`. Special
    tokens that a response spells out are broken up, so that it can neither end its turn nor place an image. Nothing
    else is protected: the judge is a model, and may believe a response that praises itself or writes "Response 2:".

    Logged: `reward_model/empty`, share of empty completions; `reward_model/unparsed`, share of replies without a
    verdict; `reward_model/first`, share of verdicts for response 1, 1/2 for a judge that does not mind the order.
    """

    folder: str
    mode: Mode = "pairwise"
    opponents: int = 2
    max_new_tokens: int = 512
    batch_size: int = 16
    task_type: str = "default"
    reference_column: str = "reference"
    _judge: tuple[Any, Any] | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        self.__name__ = "reward_model"
        if self.mode not in get_args(Mode):
            raise ValueError(f"reward_model_mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}.")
        for name in ("opponents", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"reward_model_{name} must be >= 1, got {getattr(self, name)}.")
        format_question("", self.task_type)
        load_description(self.folder, flag="The reward model")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_judge": None}

    def check_run(self, config: EntropyGRPOConfig, dataset: Dataset) -> None:
        """Raise `ValueError` unless the groups or the references of a run can be judged."""
        if self.mode == "reference":
            check_references(dataset, self.reference_column)
            return
        config.check_whole_groups("With reward_model every process")
        if self.opponents >= (config.num_generations or 0):
            raise ValueError(
                f"reward_model_opponents must be less than num_generations ({config.num_generations}), got "
                f"{self.opponents}."
            )

    def __call__(
        self,
        completions: Sequence[str | list[dict[str, Any]]],
        problem: Sequence[str],
        group: Sequence[int] | None = None,
        group_size: Sequence[int] | None = None,
        images: Sequence[list[Image.Image] | None] | None = None,
        image: Sequence[Image.Image | None] | None = None,
        log_metric: LogMetric | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """Judge the completions.

        Args:
            completions: strings or TRL's lists of messages, one per row.
            problem: the question of each row, without a prompt template.
            group: number of each row's prompt in the batch, as our trainers pass it.
            group_size: number of completions of the row's prompt, likewise.
            images: PIL images of each row, or `image`, one per row.
            image: see there.
            log_metric: TRL's logger.
            **kwargs: other columns, among them `reference_column`.

        Returns:
            One number in [0, 1] per row, None for a row without an opponent.

        Raises:
            ValueError: in `pairwise`, for groups that are not known or not here as a whole.
        """
        count = len(completions)
        answers = [visible_answer(completion_text(completion)) for completion in completions]
        if log_metric is not None:
            log_metric("reward_model/empty", answers.count("") / count)
        if self.mode == "reference":
            references = [reference_text(reference) for reference in kwargs[self.reference_column]]
            pairs = [(row, count + row) for row, reference in enumerate(references) if reference]
        else:
            references, pairs = [], self._opponents(group, group_size)
        entrants, matches = [*answers, *references], both_orders(pairs)
        pictures = images or [[one] if one else [] for one in image or [None] * count]
        questions = []
        for match in matches:
            row = min(match)  # a reference has a larger number than every row
            first, second = (entrants[entrant] for entrant in match)
            questions.append(Question(problem[row], (first, second), pictures[row] or []))
        prompts = [min(match) if group is None else group[min(match)] for match in matches]
        return win_shares(matches, self._verdicts(questions, prompts, log_metric), count=len(entrants))[:count]

    def _opponents(self, group: Sequence[int] | None, group_size: Sequence[int] | None) -> list[Match]:
        if group is None or group_size is None:
            raise ValueError("reward_model compares groups: it needs group and group_size, which our trainers pass.")
        groups = rows_of_groups(group, group_size, who="comparisons by reward_model")
        return [(rows[a], rows[b]) for rows in groups for a, b in tournament(len(rows), self.opponents)]

    def _verdicts(
        self, questions: Sequence[Question], prompts: Sequence[int], log_metric: LogMetric | None
    ) -> list[int | None]:
        """The verdict on each question, those that are alike and about the same prompt asked once."""
        keys: list[Hashable] = [(prompt, question.responses) for prompt, question in zip(prompts, questions)]
        open_questions = {
            key: question
            for key, question in zip(keys, questions)
            if all(question.responses) and len(set(question.responses)) == 2
        }
        replies = self.ask(list(open_questions.values())) if open_questions else []
        verdicts = dict(zip(open_questions, map(read_verdict, replies), strict=True))
        if log_metric is not None and verdicts:
            parsed = [verdict for verdict in verdicts.values() if verdict is not None]
            log_metric("reward_model/unparsed", 1 - len(parsed) / len(verdicts))
            if parsed:
                log_metric("reward_model/first", parsed.count(1) / len(parsed))
        return [
            verdicts[key] if key in verdicts else settle(*question.responses) for key, question in zip(keys, questions)
        ]

    def ask(self, questions: Sequence[Question]) -> list[str]:
        """The judge's greedy reply to each question."""
        with outside_zero3():
            if self._judge is None:
                _, processor = load_description(self.folder, flag="The reward model")
                self._judge = load_model(self.folder).requires_grad_(False), processor
            model, processor = self._judge
            words = token_words(processor)
            prompts = [self._prompt(question, words) for question in questions]
            replies = [""] * len(questions)
            for places in plan_batches([len(prompt) for prompt in prompts], self.batch_size):
                messages = [[{"role": "user", "content": prompts[place]}] for place in places]
                chats = [conversation(message, questions[place].images) for message, place in zip(messages, places)]
                answers = answer(model, processor, tokenize(processor, chats), decoding=Decoding(self.max_new_tokens))
                for place, [reply] in zip(places, answers, strict=True):
                    replies[place] = reply.text
        return replies

    def _prompt(self, question: Question, words: Sequence[str]) -> str:
        responses = [break_up(response, words) for response in question.responses]
        return format_question(pairwise_question(question.problem, responses), self.task_type)


def reference_text(reference: str | None) -> str:
    """What a judge sees of a reference, "" for none."""
    return visible_answer(reference or "")


def check_references(dataset: Dataset, column: str) -> None:
    """Raise `ValueError` unless the column holds texts, and one that a judge can see."""
    if column not in dataset.column_names:
        raise ValueError(
            f"reward_model_reference {column!r} is no column of the data, which has {sorted(dataset.column_names)}."
        )
    references = list(dataset[column])
    for row, reference in enumerate(references, start=1):
        if not isinstance(reference, str | None):
            raise ValueError(f"reward_model_reference {column!r} of row {row} is {reference!r}, not a text.")
    if not any(map(reference_text, references)):
        raise ValueError(f"reward_model_reference {column!r} holds a response in none of the {len(references)} rows.")


def token_words(processor: Any) -> list[str]:
    """The texts that a tokenizer reads as one token of its own, places of images among them, longest first."""
    words = [word for word in processor.tokenizer.get_added_vocab() if len(word) > 1 and not word.isspace()]
    return sorted(words, key=lambda word: (-len(word), word))


@contextmanager
def outside_zero3() -> Iterator[None]:
    """Load and run a model that DeepSpeed has no part in, in a run where it has one in the policy.

    With ZeRO-3 transformers shares out the weights of every model that it loads over the processes, and keeps all of
    them generating until the last one is done; but here each process asks as many questions as it has.
    """
    active = deepspeed._hf_deepspeed_config_weak_ref
    config = None if active is None else active()
    if config is None:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(config)
