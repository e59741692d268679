"""The model `vlm_entropy` of lmms-eval 0.7.3: `--model vlm_entropy --model_args pretrained=DIR`."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from lmms_eval.api.model import lmms

from vlm_entropy.data.generation import Conversation, Decoding, answer, load_model, tokenize
from vlm_entropy.data.models import limit_images, load_description
from vlm_entropy.data.prompts import TEMPLATES
from vlm_entropy.rewards.parsing import find_final_answer

from .adapter import Request, answer_requests


class VlmEntropy(lmms):
    r"""A checkpoint that answers as in `python -m vlm_entropy.eval run`.

    Args:
        pretrained: folder of a checkpoint or of an adapter, or its name on the hub.
        batch_size: requests answered at a time, on each process.
        task_type: prompt template around the task's own text, the one of the training run.
        final_answer: hand lmms-eval only what stands in <answer> or \boxed{}, where there is such: the rules of many
            tasks look for a bare letter.
        min_pixels, max_pixels: area that a Qwen processor resizes images to; its own by default.
        max_anyres_num: tiles that an InternVL processor cuts an image into at most; its own by default.
        seed: of sampled answers.
        device, max_batch_size: what lmms-eval passes to every model; not used, the device is that of the process.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        task_type: str = "plain",
        final_answer: bool = False,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_anyres_num: int | None = None,
        seed: int = 0,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if task_type not in TEMPLATES:
            raise ValueError(f"Unknown task_type {task_type!r}; allowed are {', '.join(TEMPLATES)}.")
        _, self.processor = load_description(pretrained, flag="pretrained")
        limit_images(self.processor, min_pixels=min_pixels, max_pixels=max_pixels, max_anyres_num=max_anyres_num)
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        self.batch_size = int(batch_size)
        self.task_type, self.final_answer, self.seed = task_type, final_answer, seed
        self.model = load_model(pretrained)

    def ask(self, conversations: list[Conversation], *, decoding: Decoding, seed: int) -> list[str]:
        """Answer one batch."""
        inputs = tokenize(self.processor, conversations)
        samples = answer(self.model, self.processor, inputs, decoding=decoding, seed=seed)
        texts = [only.text for (only,) in samples]
        return [find_final_answer(text) or text for text in texts] if self.final_answer else texts

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Answer all requests of a task, in their order."""
        answers = answer_requests(
            requests,
            self.task_dict,
            self.ask,
            batch_size=self.batch_size,
            task_type=self.task_type,
            seed=self.seed,
        )
        for request, text in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), text)
        return answers

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        raise NotImplementedError("The model vlm_entropy answers by generating; this task scores given answers.")

    def generate_until_multi_round(self, requests: Sequence[Request]) -> list[str]:
        raise NotImplementedError("The model vlm_entropy answers one question at a time; this task asks in rounds.")
