"""A server that answers as `vllm serve` does, with transformers on a CPU: what TRL's client of vLLM 0.31 needs of it.

`python tests/vllm_server.py --model DIR --port N`; stop it with Ctrl-C. Requests are answered one after the other, the
weights arrive through a store on the group port that the trainer opens, and there is no cache.
"""

import argparse
import base64
import hashlib
import inspect
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

import safetensors.torch
import torch
from PIL import Image
from torch.distributed import TCPStore
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

KNOWN_PARAMETERS = {
    *("n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "logprobs"),
    *("logit_bias", "seed", "output_kind"),
}


class Engine:
    """A checkpoint that takes token ids with images and gives token ids with log-probs, as vLLM's engine does.

    Args:
        folder: of the checkpoint.
        dtype: of its weights.
    """

    def __init__(self, folder: str, *, dtype: torch.dtype = torch.float32):
        self.processor: Any = AutoProcessor.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
        self.random = torch.Generator().manual_seed(0)
        self.takes_types = "mm_token_type_ids" in inspect.signature(self.model.forward).parameters

    def image_tensors(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """What the processor makes of an image."""
        return dict(self.processor.image_processor(image, return_tensors="pt"))

    def replacement(self, image: dict[str, torch.Tensor]) -> list[int]:
        """The tokens that stand for an image in a prompt, in the place of the one of the chat template."""
        if "image_grid_thw" in image:
            merged = self.processor.image_processor.merge_size**2
            return [self.processor.image_token_id] * (int(image["image_grid_thw"].prod()) // merged)
        count = len(image["pixel_values"]) * self.processor.image_seq_length
        frame = (self.processor.start_image_token, self.processor.end_image_token)
        start, end = self.processor.tokenizer.convert_tokens_to_ids(frame)
        return [start, *[self.processor.image_token_id] * count, end]

    def expand(self, prompt: list[int], images: list[dict[str, torch.Tensor]]) -> list[int]:
        """A prompt with each image's tokens in the place of the first image token that is left."""
        done: list[int] = []
        for image in images:
            place = prompt.index(self.processor.image_token_id)
            done, prompt = [*done, *prompt[:place], *self.replacement(image)], prompt[place + 1 :]
        return done + prompt

    @torch.no_grad()
    def sample(
        self, prompt: list[int], images: list[dict[str, torch.Tensor]], parameters: dict[str, Any]
    ) -> list[tuple[list[int], list[float]]]:
        """n completions of an expanded prompt, and their tokens' log-probs as sampled (`processed_logprobs`)."""
        if unknown := set(parameters) - KNOWN_PARAMETERS:
            raise ValueError(f"Sampling parameters that this server does not know: {', '.join(sorted(unknown))}.")
        count, process = parameters["n"], warpers(parameters)
        fields = {name: torch.cat([im[name] for im in images] * count) for name in (images[0] if images else {})}
        bias = torch.zeros(self.model.config.get_text_config().vocab_size)
        for token, value in (parameters.get("logit_bias") or {}).items():
            bias[int(token)] = value
        ids, logps = torch.tensor([prompt] * count), torch.empty(count, 0)
        for _ in range(parameters["max_tokens"]):
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if self.takes_types:
                inputs["mm_token_type_ids"] = (ids == self.processor.image_token_id).long()
            scores = self.model(**inputs, **fields).logits[:, -1].double() + bias
            log_probs = process(ids, scores).log_softmax(dim=-1)
            tokens = torch.multinomial(log_probs.exp(), 1, generator=self.random)
            ids, logps = torch.cat([ids, tokens], dim=1), torch.cat([logps, log_probs.gather(1, tokens)], dim=1)
        ends = self.model.generation_config.eos_token_id
        rows = [self.until(row[len(prompt) :], ends if isinstance(ends, list) else [ends]) for row in ids.tolist()]
        return [(row, of_row[: len(row)]) for row, of_row in zip(rows, logps.tolist())]

    def until(self, row: list[int], ends: list[int]) -> list[int]:
        """A completion up to its first token that ends it."""
        places = [place for place, token in enumerate(row) if token in ends]
        return row[: places[0] + 1] if places else row

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        """Replace weights by name; one of an unknown name is an error."""
        own = dict(self.model.named_parameters())
        for name, value in weights:
            own[name].data.copy_(value)


def warpers(parameters: dict[str, Any]) -> LogitsProcessorList:
    """Sampling parameters of vLLM in transformers' words, in vLLM's order."""
    steps = LogitsProcessorList()
    if parameters.get("repetition_penalty", 1.0) != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(parameters["repetition_penalty"]))
    if parameters["temperature"] != 1.0:
        steps.append(TemperatureLogitsWarper(parameters["temperature"]))
    if parameters.get("min_p", 0.0) > 0:
        steps.append(MinPLogitsWarper(parameters["min_p"]))
    if parameters.get("top_k", 0) > 0:
        steps.append(TopKLogitsWarper(parameters["top_k"]))
    if parameters.get("top_p", 1.0) < 1:
        steps.append(TopPLogitsWarper(parameters["top_p"]))
    return steps


class VllmServer(ThreadingHTTPServer):
    """The endpoints; `requests` keeps what was asked and `completions` what was answered.

    Args:
        engine: that answers.
        port: on the loopback interface; 0 takes a free one.
    """

    daemon_threads = True

    def __init__(self, engine: Engine, *, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.engine = engine
        self.lock = threading.Lock()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.completions: list[tuple[list[int], list[float]]] = []
        self.images: list[Image.Image] = []
        self.unknown_logps: set[int] = set()
        """Places in a completion whose log-prob is answered as NaN."""
        self.store: TCPStore | None = None
        self.is_updating, self.updates = False, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What an endpoint says to a request.

        Raises:
            KeyError: for an endpoint that there is not.
            ValueError: for a request that vLLM would refuse.
        """
        self.requests.append((path, body))
        return ENDPOINTS[method, path](self, body)

    def models(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "tiny", "object": "model"}]}

    def server_info(self, body: dict[str, Any]) -> dict[str, Any]:
        model = {"logprobs_mode": "processed_logprobs"}
        return {"vllm_config": {"weight_transfer_config": {"backend": "nccl"}, "model_config": model}}

    def join_group(self, body: dict[str, Any]) -> dict[str, Any]:
        info = body["init_info"]
        if (info["rank_offset"], info["world_size"], info["packed"]) != (1, 2, True):
            raise ValueError(f"Not the group of one trainer and one worker: {info}.")
        self.store = TCPStore(info["master_address"], info["master_port"], None, False)
        self.updates = 0
        return {"message": "Weight transfer initialized"}

    def start_update(self, body: dict[str, Any]) -> dict[str, Any]:
        self.is_updating = True
        return {"message": "Weight update started"}

    def update(self, body: dict[str, Any]) -> dict[str, Any]:
        if not self.is_updating or self.store is None:
            raise ValueError("update_weights outside of a weight update.")
        info = body["update_info"]
        packed = self.store.get(f"weights/{self.updates}")
        weights, start = [], 0
        for name, dtype, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True):
            empty = torch.empty(shape, dtype=getattr(torch, dtype))
            size = empty.numel() * empty.element_size()
            weights.append((name, torch.frombuffer(bytearray(packed[start : start + size]), dtype=empty.dtype)))
            weights[-1] = (name, weights[-1][1].view(shape))
            start += size
        self.engine.load_weights(weights)
        self.updates += 1
        return {"message": "Weights updated"}

    def finish_update(self, body: dict[str, Any]) -> dict[str, Any]:
        self.is_updating = False
        return {"message": "Weight update finished"}

    def render(self, body: dict[str, Any]) -> dict[str, Any]:
        parts = [part for message in body["messages"] for part in message["content"]]
        files = [base64.b64decode(part["image_url"]["url"].split(",", 1)[1]) for part in parts]
        images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        self.images += images
        tensors = [self.engine.image_tensors(image) for image in images]
        lengths = [len(self.engine.replacement(image)) for image in tensors]
        offsets = [sum(lengths[:index]) + 2 * index for index in range(len(lengths))]
        features = {
            "mm_hashes": {"image": [hashlib.sha256(file).hexdigest() for file in files]},
            "mm_placeholders": {"image": [{"offset": o, "length": n} for o, n in zip(offsets, lengths)]},
            "kwargs_data": {"image": [base64.b64encode(safetensors.torch.save(t)).decode() for t in tensors]},
        }
        return {"request_id": "render", "token_ids": [], "features": features, "sampling_params": {}}

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, features, parameters = body["token_ids"], body["features"], body["sampling_params"]
        if parameters["output_kind"] != 2:
            raise ValueError("Without output_kind FINAL_ONLY only the last of n completions would come back.")
        images = []
        if features is not None:
            images = [safetensors.torch.load(base64.b64decode(d)) for d in features["kwargs_data"]["image"]]
            self.check_places(prompt, images, features["mm_placeholders"]["image"])
        choices = []
        for index, (ids, logps) in enumerate(self.complete(prompt, images, parameters)):
            tokens = [{"token": f"token_id:{id}", "logprob": logp} for id, logp in zip(ids, logps)]
            content = [{**token, "top_logprobs": [token]} for token in tokens]
            choices.append({"index": index, "token_ids": ids, "logprobs": {"content": content}})
        return {"request_id": body["request_id"], "choices": choices}

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        own = ("model", "prompt", "return_token_ids", "return_tokens_as_token_ids")
        parameters = {name: value for name, value in body.items() if name not in own}
        choices = []
        for prompt in body["prompt"]:
            for ids, logps in self.complete(prompt, [], parameters):
                tokens = [f"token_id:{id}" for id in ids]
                top = [{token: logp} for token, logp in zip(tokens, logps)]
                logprobs = {"tokens": tokens, "token_logprobs": logps, "top_logprobs": top}
                choices.append({"prompt_token_ids": prompt, "token_ids": ids, "logprobs": logprobs})
        return {"choices": choices}

    def complete(
        self, prompt: list[int], images: list, parameters: dict[str, Any]
    ) -> list[tuple[list[int], list[float]]]:
        if self.is_updating:
            raise ValueError("A request in the middle of a weight update.")
        completions = self.engine.sample(prompt, images, parameters)
        self.completions += completions
        unknown = self.unknown_logps
        return [
            (ids, [float("nan") if place in unknown else logp for place, logp in enumerate(logps)])
            for ids, logps in completions
        ]

    def check_places(self, prompt: list[int], images: list, places: list[dict[str, int]]) -> None:
        token = self.engine.processor.image_token_id
        for image, place in zip(images, places, strict=True):
            wanted = self.engine.replacement(image).count(token)
            found = prompt[place["offset"] : place["offset"] + place["length"]]
            if found != [token] * wanted:
                raise ValueError(
                    f"Attempted to assign {wanted} multimodal tokens to {found.count(token)} placeholders"
                )


def nothing(server: VllmServer, body: dict[str, Any]) -> dict[str, Any]:
    return {}


ENDPOINTS = {
    ("GET", "/health"): nothing,
    ("GET", "/v1/models"): VllmServer.models,
    ("GET", "/server_info"): VllmServer.server_info,
    ("GET", "/get_world_size"): lambda server, body: {"world_size": 1},
    ("POST", "/init_weight_transfer_engine"): VllmServer.join_group,
    ("POST", "/start_weight_update"): VllmServer.start_update,
    ("POST", "/update_weights"): VllmServer.update,
    ("POST", "/finish_weight_update"): VllmServer.finish_update,
    ("POST", "/reset_prefix_cache"): lambda server, body: {"success": True},
    ("POST", "/v1/chat/completions/render"): VllmServer.render,
    ("POST", "/inference/v1/generate"): VllmServer.generate,
    ("POST", "/v1/completions"): VllmServer.completion,
}


class Handler(BaseHTTPRequestHandler):
    """JSON over HTTP, one request at a time."""

    protocol_version = "HTTP/1.1"
    server: VllmServer

    def do_GET(self) -> None:
        self.respond("GET", {})

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        self.respond("POST", json.loads(self.rfile.read(size) or b"{}"))

    def respond(self, method: str, body: dict[str, Any]) -> None:
        path = self.path.split("?")[0]
        try:
            with self.server.lock:
                status, answer = 200, self.server.answer(method, path, body)
        except (KeyError, ValueError) as error:
            known = (method, path) in ENDPOINTS
            status, answer = (400 if known else 404), {"error": {"message": str(error)}}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Folder of a checkpoint.")
    parser.add_argument("--port", type=int, default=8000, help="Port on the loopback interface.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with VllmServer(Engine(arguments.model), port=arguments.port) as server:
        print(f"Serving {arguments.model} at {server.url}.", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
