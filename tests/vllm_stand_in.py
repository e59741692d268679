"""The few names of vLLM 0.31 that TRL imports, on a CPU: no GPU, no NCCL, the engine of `vllm_server`.

`python tests/vllm_stand_in.py --method grpo --use_vllm True ...` is the training command with them.
"""

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from torch.distributed import TCPStore
from vllm_server import Engine

VERSION = "0.31.0"


class TrainerEndpoint:
    """The trainer's end of the group: `packed` bytes for one worker, in the place of NCCL."""

    def __init__(self, info: dict[str, Any]):
        assert info["packed"] is True
        store = TCPStore(info["master_address"], info["master_port"], None, True, wait_for_workers=False)
        self.group = SimpleNamespace(store=store, socket=None)
        self.sent = 0

    def broadcast(self, packed: bytes) -> None:
        self.group.store.set(f"weights/{self.sent}", packed)
        self.sent += 1


def send_packed(iterator: Any, group: TrainerEndpoint, src: int, post_iter_func: Any) -> None:
    """All weights in one buffer, in the order of the iterator."""
    tensors = [post_iter_func(item).detach().contiguous() for item in iterator]
    group.broadcast(b"".join(tensor.view(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors))


class SamplingParams(SimpleNamespace):
    """The parameters that it gets."""


class Logprob(NamedTuple):
    logprob: float
    rank: int


class LLM:
    """vLLM in the trainer's process: raw images and prompts that it expands itself."""

    def __init__(self, model: str, *, enable_sleep_mode: bool, logprobs_mode: str, **options: Any):
        assert logprobs_mode == "processed_logprobs"
        self.engine = Engine(model, dtype=torch.float64)
        self.prompts: list[dict[str, Any]] = []
        """What was asked."""
        self.expanded: list[list[int]] = []
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=self.engine))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

    def generate(self, prompts: list[dict], *, sampling_params: SamplingParams, use_tqdm: bool) -> list[Any]:
        self.prompts += prompts
        return [self._complete(prompt, vars(sampling_params)) for prompt in prompts]

    def _complete(self, prompt: dict[str, Any], parameters: dict[str, Any]) -> SimpleNamespace:
        images = prompt.get("multi_modal_data", {}).get("image", [])
        tensors = [self.engine.image_tensors(im) for im in (images if isinstance(images, list) else [images])]
        expanded = self.engine.expand(prompt["prompt_token_ids"], tensors)
        self.expanded.append(expanded)
        [(ids, logps)] = self.engine.sample(expanded, tensors, parameters)
        output = SimpleNamespace(token_ids=ids, logprobs=[{id: Logprob(p, 1)} for id, p in zip(ids, logps)])
        return SimpleNamespace(prompt_token_ids=expanded, outputs=[output])

    def reset_prefix_cache(self) -> None:
        pass

    def sleep(self, level: int) -> None:
        """Level 2 discards the weights."""
        assert level == 2
        for parameter in self.engine.model.parameters():
            parameter.data.fill_(torch.nan)

    def wake_up(self, tags: list[str]) -> None:
        pass


def modules() -> dict[str, ModuleType]:
    """The modules by name."""
    contents: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": LLM, "RequestOutput": SimpleNamespace, "SamplingParams": SamplingParams, "__path__": []},
        "vllm.sampling_params": {"StructuredOutputsParams": SimpleNamespace},
        "vllm.utils": {"__path__": []},
        "vllm.utils.network_utils": {"get_ip": lambda: "127.0.0.1"},
        "vllm.distributed": {"__path__": []},
        "vllm.distributed.weight_transfer": {"__path__": []},
        "vllm.distributed.weight_transfer.nccl_common": {"trainer_init": TrainerEndpoint},
        "vllm.distributed.weight_transfer.packed_tensor": {"packed_nccl_broadcast_producer": send_packed},
    }
    made = {}
    for name, names in contents.items():
        made[name] = ModuleType(name)
        vars(made[name]).update(names, __version__=VERSION, __spec__=ModuleSpec(name, None))
    return made


def join_on_cpu(client: Any) -> None:
    """Let TRL's client open the group: it refuses a device on which there is no NCCL, by name."""
    original = client.init_communicator
    client.init_communicator = lambda self, device=0: original(self, device="cuda")


if __name__ == "__main__":
    sys.modules.update(modules())
    from trl.generation.vllm_client import VLLMClient

    from vlm_entropy.trainers.__main__ import main

    join_on_cpu(VLLMClient)
    main()
