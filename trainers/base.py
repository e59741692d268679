"""GRPO with four hooks: the only file that touches the private methods of TRL's ``GRPOTrainer``."""

import functools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from vlm_entropy.data.families import vision_token_ids

from .aggregation import aggregate, row_normalisers
from .checkpoints import RolloutCheckpoints
from .config import EntropyGRPOConfig
from .diagnostics import Diagnostics
from .rollouts import FORWARD_FIELDS, Rollout, Scored, loss_mask, merge_rollout, select_rows
from .sampler import EpochSampler
from .shared_forward import Rows, network_of
from .shared_prompt import PromptSharing, keep_groups
from .vision_inputs import VisionInStep, alike, check_images_alike, images_of, without_empty_images
from .vllm_rollouts import VllmRollouts
from .vlm_r1 import vlm_r1_metric


@dataclass(frozen=True)
class Policy:
    """What the one policy forward of a loss computed. B rows of the micro-batch, T completion tokens."""

    logps: Tensor
    """(B, T) log π_θ(y_t | x, y_<t) of the sampled tokens in nats, differentiable."""
    entropies: Tensor
    """(B, T) full-vocabulary entropy of π_θ(· | x, y_<t) in nats, differentiable."""
    mask: Tensor
    """(B, T) bool, true where a real completion token stands."""
    tokens_per_microbatch: Tensor | None
    """0-d, mean number of true `mask` entries per micro-batch of this optimizer step over all processes; None where an
    optimizer step spans several rollouts, so that the number is not known yet."""


class EntropyGRPOTrainer(RolloutCheckpoints, GRPOTrainer):
    """TRL's `GRPOTrainer` with hooks; without any of them overridden it computes exactly what TRL computes.

    In the order of a training step: `sample`, `resample`, `group_advantages`, `prepare_rollout` once per rollout,
    `prepare_update` once per optimizer step of it, `shape_advantages` and `extra_loss` once per loss. A method
    overrides some of them and calls `super()` in each, so that methods compose by multiple inheritance; each of the
    first three has one owner in a combination. Hooks act in training only: evaluation is plain GRPO.

    Beside the columns of the data, every reward function gets `group`, the number of the row's prompt in the batch of
    all processes, and `group_size`, the number of completions of a prompt.

    Departures from TRL, invisible in the loss of a given batch: the placeholder tokens of images and videos are never
    sampled (one in a completion stops the next forward), a batch may mix rows with and without images, and a resumed
    run gets its weights back and sees the data in the order of the uninterrupted one. Metrics that VLM-R1 has under
    another name are logged under both.
    """

    args: EntropyGRPOConfig
    model: Any
    processing_class: Any
    num_generations: int
    max_completion_length: int
    config_class: type[EntropyGRPOConfig] = EntropyGRPOConfig
    examples: list[dict]
    """Data set rows of the rollout that is being sampled, one per prompt row of this process."""
    _logs: Any

    def __init__(self, model: Any, reward_funcs: Any = None, args: EntropyGRPOConfig | None = None, **kwargs: Any):
        if not isinstance(args, self.config_class):
            raise TypeError(
                f"{type(self).__name__} takes args={self.config_class.__name__}(...), got {type(args).__name__}."
            )
        super().__init__(model, reward_funcs, args, **kwargs)
        self.add_callback(_CheckRun())
        self.examples = []
        self._loss_rollout: Rollout | None = None
        self._loss_policy: Policy | None = None
        self._tokens_per_microbatch: Tensor | None = None
        self._diagnostics = Diagnostics(self.processing_class)
        # TRL gathers the images to log on the processes that have some; the others would not be there.
        self._logs_images, self.log_multimodal = args.log_completions and args.log_multimodal, False
        for network in (self.model, self.ref_model):
            if network is not None:
                network.register_forward_pre_hook(without_empty_images, with_kwargs=True)
                if self.accelerator.num_processes > 1:
                    VisionInStep(network_of(self.accelerator.unwrap_model(network)))
        unwrap = self.accelerator.unwrap_model
        models = [unwrap(network) for network in (self.model, self.ref_model) if network is not None]
        self._sharing = PromptSharing(
            args.share_prompts, models, accelerator=self.accelerator, obstacle=self._why_not_share()
        )
        self._vllm = None
        if self.use_vllm:
            self._vllm = VllmRollouts(self.vllm_generation, processor=self.processing_class, config=self.model.config)
        else:
            suppressed = self.generation_config.suppress_tokens or []
            self.generation_config.suppress_tokens = (
                sorted({*suppressed, *vision_token_ids(self.model.config)}) or None
            )

    def sample(self, prompt_ids: list[list[int]], images: list | None, fields: dict[str, Any], *, generate: Callable):
        """Sample one completion per prompt row.

        Args:
            prompt_ids: token ids of each row, a prompt standing `num_generations` times in a row.
            images: PIL images of each row, or None without images.
            fields: the processor's image tensors (`pixel_values`, ...).
            generate: TRL's own sampler, `generate(prompt_ids, images, fields)` with the same result.

        Returns:
            Token ids of each completion, and their log-probs under the sampler (None with `generate` of transformers).
        """
        return generate(prompt_ids, images, fields)

    def resample(self, scored: Scored, *, score: Callable[[list[dict]], Scored]) -> Scored:
        """The completions to train on, from those first sampled and any more that are wanted.

        Args:
            scored: completions of this process's rows, in groups of `num_generations`, with their rewards.
            score: samples and scores one completion for each data set row that it gets, to be called by all processes
                together with equally many rows, in groups of `num_generations`.

        Returns:
            As many rows as `scored` has.
        """
        return scored

    def group_advantages(self, rollout: Rollout, examples: list[dict], rewards: Tensor) -> Tensor:
        """(N,) advantages of the local rows from the rewards of their groups; arguments as of `prepare_rollout`."""
        return rollout["advantages"]

    def prepare_rollout(self, rollout: Rollout, examples: list[dict], rewards: Tensor) -> dict[str, Tensor]:
        """Add per-row tensors to the rollout after scoring.

        Args:
            rollout: TRL's tensors of the N local rows, in groups of `num_generations`.
            examples: the N data set rows.
            rewards: (rows of all processes, reward functions), unweighted, NaN where a function cannot judge a row;
                `local_rows` cuts out the N local ones.

        Returns:
            New entries, each 0-d or with first dimension N; they are shuffled and split along with TRL's.
        """
        return {}

    def prepare_update(self, microbatches: list[Rollout]) -> list[dict[str, Tensor]]:
        """Add tensors to the micro-batches of an optimizer step, once they are known and before any is trained on.

        Called by all processes together, once per optimizer step of a rollout (not again where `num_iterations`
        repeats it), and never where an optimizer step spans several rollouts.

        Args:
            microbatches: `gradient_accumulation_steps` micro-batches of this process, shuffled.

        Returns:
            New entries of each micro-batch.
        """
        return [{} for _ in microbatches]

    def shape_advantages(self, advantages: Tensor, policy: Policy, rollout: Rollout) -> Tensor:
        """Advantages the policy loss uses, (B,) or (B, T), from TRL's group-normalised ones."""
        return advantages

    def extra_loss(self, policy: Policy, rollout: Rollout) -> Tensor | float:
        """Term to add to the loss. Its mean over the micro-batches and processes of an optimizer step is what counts:
        the base divides by the number of accumulation steps, data parallelism by the number of processes."""
        return 0.0

    def score(self, rollout: Rollout, rows: list[int], completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
        """Log-probs that the policy gives to other completions of some of the rollout's prompts, without gradient.

        To be called by all processes together, before the rollout is shuffled. Each makes as many forwards, of
        `per_device_train_batch_size` rows, as the process with most rows needs: ZeRO-3 and FSDP gather weights in
        every one. A process with fewer rows runs its row 0 with an empty completion.

        Args:
            rollout: TRL's tensors of the N local rows, as `prepare_rollout` gets them. Images count as part of the
                prompt: those that tools return are not supported.
            rows: R row numbers in [0, N) whose prompts and images to take.
            completion_ids: (R, Te) token ids, padded on the right, Te ≥ 1.
            completion_mask: (R, Te) bool or 0/1, true = a real completion token.

        Returns:
            (R, Te) log-probs in nats, 0 where the mask is false.
        """
        size, count = self.args.per_device_train_batch_size, len(rows)
        calls = torch.tensor([math.ceil(count / size)], device=completion_ids.device)
        idle = max(0, (int(self.accelerator.gather(calls).max()) - 1) * size + 1 - count)
        if count + idle == 0:
            return completion_mask.float()
        ids, mask = (F.pad(tensor, (0, 0, 0, idle)) for tensor in (completion_ids, completion_mask.long()))
        rows = [*rows, *[0] * idle]
        fields = select_rows({name: rollout[name] for name in FORWARD_FIELDS if name in rollout}, rows)
        for name in {"token_type_ids", "mm_token_type_ids"} & set(fields):
            prompt_types = fields[name][:, : rollout["prompt_ids"].size(1)]
            fields[name] = torch.cat([prompt_types, prompt_types.new_zeros(ids.shape)], dim=1)
        input_ids = torch.cat([rollout["prompt_ids"][rows], ids], dim=1)
        attention_mask = torch.cat([rollout["prompt_mask"][rows], mask], dim=1)
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        with torch.no_grad(), disable_gradient_checkpointing(self.model, checkpointing):
            logps, _, _ = self._get_per_token_logps_and_entropies(
                self.model, input_ids, attention_mask, ids.size(1), batch_size=size, **fields
            )
        return logps[:count]

    def forward_rollout(self, rollout: Rollout, *, model: Any = None) -> Policy:
        """What the policy of this moment gives the completions of a rollout, without gradient: one forward per row.

        To be called by all processes together, with a rollout or a micro-batch of it.

        Args:
            rollout: TRL's tensors of N local rows.
            model: what to call in place of the policy; it gets the keywords that TRL gives the policy.
        """
        input_ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
        attention_mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
        fields = {name: rollout[name] for name in FORWARD_FIELDS if name in rollout}
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        with torch.no_grad(), disable_gradient_checkpointing(self.model, checkpointing):
            logps, entropies, _ = self._get_per_token_logps_and_entropies(
                self.model if model is None else model,
                input_ids,
                attention_mask,
                rollout["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
                compute_entropy=True,
                **fields,
            )
        return Policy(logps, entropies, loss_mask(rollout), None)

    def forward_answers(self, completion_length: int, *, input_ids: Tensor, attention_mask: Tensor, **fields: Any):
        """(B, T) entropies in nats of the policy on the last T = `completion_length` tokens, differentiable.

        Args:
            completion_length: T.
            input_ids: (B, P + T), prompts padded on the left, completions padded on the right.
            attention_mask: (B, P + T).
            **fields: the entries of `rollouts.FORWARD_FIELDS`.
        """
        _, entropies, _ = self._get_per_token_logps_and_entropies(
            self.model, input_ids, attention_mask, completion_length, compute_entropy=True, **fields
        )
        return entropies

    def aggregate_as_policy_loss(self, term: Tensor, policy: Policy, rollout: Rollout) -> Tensor:
        """A (B, T) or (B, 1) term as one number for `extra_loss`, each token weighing as it does in TRL's policy loss:
        `aggregate` with the `row_normalisers` of the loss type.

        TRL's dapo divides by the tokens of the whole rollout, also where that is longer than an optimizer step.
        """
        microbatches = self.accelerator.num_processes * self.args.steps_per_generation
        normalisers = row_normalisers(
            policy.mask,
            loss_type=self.loss_type,
            tokens_per_microbatch=rollout["num_items_in_batch"].clamp(min=1) / microbatches,
            max_completion_length=self.max_completion_length,
        )
        return aggregate(term, policy.mask, normalisers)

    def local_rows(self, values: Tensor) -> Tensor:
        """This process's part of a tensor gathered over all processes along its first dimension."""
        size = values.size(0) // self.accelerator.num_processes
        start = self.accelerator.process_index * size
        return values[start : start + size]

    def log_scalar(self, name: str, value: Tensor | float) -> None:
        """Log a training metric: its mean over processes, micro-batches and the steps since the last log line."""
        if isinstance(value, Tensor):
            value = self.accelerator.gather(value.detach().float().reshape(1)).mean().item()
        self._metrics["train"][name].append(value)

    def log_ratio(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Log Σ total / Σ count over all processes as a training metric; nothing where no process counts anything.

        What `log_scalar` gives for a mean over tokens depends on how the tokens are spread over processes; this does
        not.
        """
        pair = torch.tensor([float(total), float(count)], device=self.accelerator.device)
        total, count = self.accelerator.reduce(pair, reduction="sum").tolist()
        if count > 0:
            self.log_scalar(name, total / count)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        if self.model.training:
            for name, value in self._diagnostics.take(self.accelerator).items():
                metrics[name].append(value)
        for name, values in list(metrics.items()):
            if alias := vlm_r1_metric(name):
                metrics[alias] = list(values)
        self._logs["prompt"] = deque(alike(self._logs["prompt"]), maxlen=self._logs["prompt"].maxlen)
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, dataset=None) -> Sampler:
        return EpochSampler(super()._get_train_sampler(dataset), completed_epochs=lambda: int(self.state.epoch or 0))

    def _tokenize_prompts(self, prompts):
        prompt_ids, images, fields = super()._tokenize_prompts(prompts)
        # TRL marks a row without images among rows with images by None, at which the processors stop.
        return prompt_ids, images and [row_images or [] for row_images in images], fields

    def _why_not_share(self) -> str | None:
        return "tools may answer with images" if self.tools else None

    def _samples_with_spread_weights(self) -> bool:
        plugin = self.accelerator.state.deepspeed_plugin
        is_zero3 = plugin is not None and plugin.zero_stage == 3
        return self.is_fsdp_enabled or (is_zero3 and not self.args.ds3_gather_for_generation)

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        inherited = super()._generate_single_turn

        def trl_generate(prompt_ids, images, fields, num_generations, has_tool_images):
            def generate(*rows):
                return inherited(*rows, num_generations, has_tool_images)

            if self._vllm is not None:
                return self._vllm.generate(generate, prompt_ids, images, fields)
            if self.use_transformers_continuous_batching:
                return generate(prompt_ids, images, fields)
            if self._samples_with_spread_weights():
                check_images_alike(images, accelerator=self.accelerator)
            return self._sharing.generate(generate, self.generation_config, prompt_ids, images, fields)

        if not self.model.training:
            return trl_generate(prompt_ids, images, multimodal_fields, num_generations, has_tool_images)
        generate = functools.partial(trl_generate, num_generations=num_generations, has_tool_images=has_tool_images)
        return self.sample(prompt_ids, images, multimodal_fields, generate=generate)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        size = self.num_generations if self.model.training else self.num_generations_eval
        offset = self.accelerator.process_index * len(inputs)
        grouped = [
            {**example, "group": (offset + row) // size, "group_size": size} for row, example in enumerate(inputs)
        ]
        self._rewards = super()._calculate_rewards(grouped, prompts, completions, completion_ids_list)
        return self._rewards

    def _generate_and_score_completions(self, inputs):
        if not self.model.training:
            return self._trl_rollout(inputs)
        rollout, examples, local_rewards = self.resample(self._score(inputs), score=self._score)
        rewards = self.accelerator.gather(local_rewards)
        rollout = {**rollout, "advantages": self.group_advantages(rollout, examples, rewards)}
        extra = self.prepare_rollout(rollout, examples, rewards)
        extra = {**extra, **self._diagnostics.describe_rows(rollout, local_rewards)}
        return merge_rollout(rollout, extra, rows=len(examples))

    def _score(self, examples: list[dict]) -> Scored:
        self.examples = examples
        rollout = self._trl_rollout(examples)
        return Scored(rollout, examples, self.local_rows(self._rewards))

    def _trl_rollout(self, examples: list[dict]) -> Rollout:
        with self._sharing.processing(self.processing_class):
            rollout = super()._generate_and_score_completions(examples)
        if self._logs_images:
            self._logs["images"].extend(gather_object([images_of(example) for example in examples]))
        return rollout

    def _prepare_inputs(self, generation_batch):
        buffered = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is buffered:
            return inputs
        if self._sharing.is_on and self.args.keeps_groups():
            self._buffered_inputs = keep_groups(self._buffered_inputs)
        self._tokens_per_microbatch = self._count_tokens(self._buffered_inputs)
        self._buffered_inputs = self._prepare_updates(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _prepare_updates(self, microbatches: list[Rollout]) -> list[Rollout]:
        window = self.args.gradient_accumulation_steps
        if len(microbatches) % window:
            return microbatches
        prepared = []
        for start in range(0, len(microbatches), window):
            update = microbatches[start : start + window]
            for batch, extra in zip(update, self.prepare_update(update), strict=True):
                prepared.append(merge_rollout(batch, extra, rows=batch["completion_ids"].size(0)))
        return prepared

    def _count_tokens(self, microbatches: list[Rollout]) -> Tensor | None:
        """(micro-batches,) mean token count per micro-batch over processes and the optimizer step it belongs to."""
        window = self.args.gradient_accumulation_steps
        if len(microbatches) % window:
            return None
        counts = torch.stack([loss_mask(batch).sum() for batch in microbatches]).float()
        counts = self.accelerator.reduce(counts, reduction="mean")
        return counts.view(-1, window).mean(dim=1).repeat_interleave(window)

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        compute_aux_loss=False,
        **fields,
    ):
        trl_forward = super()._get_per_token_logps_and_entropies

        def plain(rows: Rows):
            ids, mask, length, fields = rows
            return trl_forward(model, ids, mask, length, compute_entropy=compute_entropy, **fields)[:2]

        if self._sharing.is_on and not compute_aux_loss:
            present = {name: value for name, value in fields.items() if value is not None}
            rows = Rows(input_ids, attention_mask, logits_to_keep, present)
            logps, entropies = self._sharing.per_token(plain, model, rows, batch_size=batch_size)
            aux_loss = None
        else:
            rows = (model, input_ids, attention_mask, logits_to_keep)
            logps, entropies, aux_loss = trl_forward(*rows, batch_size, compute_entropy, compute_aux_loss, **fields)
        rollout = self._loss_rollout
        if rollout is not None:
            counts, index = self._tokens_per_microbatch, self._step % self.args.steps_per_generation
            policy = Policy(logps, entropies, loss_mask(rollout), None if counts is None else counts[index])
            sampled = rollout["advantages"]
            rollout["advantages"] = self.shape_advantages(sampled, policy, rollout)
            self._diagnostics.add(rollout, sampled=sampled, logps=logps, entropies=entropies, mask=policy.mask)
            self._loss_policy = policy
        return logps, entropies, aux_loss

    def _compute_loss(self, model, inputs):
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        rollout = self._loss_rollout = dict(inputs)
        try:
            loss = super()._compute_loss(model, rollout)
            policy = self._loss_policy
        finally:
            self._loss_rollout = self._loss_policy = None
        return loss + self.extra_loss(policy, rollout) / self.current_gradient_accumulation_steps


class _CheckRun(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        args.check_run(state.max_steps)
