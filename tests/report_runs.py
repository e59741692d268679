"""Run folders for the tests of the report: log lines of any length, answers with tokens, and text that means harm."""

import json
import math

from PIL import Image

HOSTILE = [
    "</script ><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</p></article><svg onload=document.title='owned'>",
    "\"'><b onmouseover=document.title='owned'>",
    "{{ 7 * 7 }} {% raw %} ${7*7} <!-- --> &lt; &amp;",
    "\u202egnirts desrever\u202c \u2066\u2067 \u0000 \u2028 \ud800",
    "W" * 3000,
]


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def log_line(step, steps, *, seed=0, two_stage=False):
    """A line of metrics.jsonl with the names that a run logs."""
    share = step / steps
    wave = math.sin(step * 0.7 + seed) * 0.05
    entropy = 0.9 - 0.5 * share + (0.3 * math.sin(3 * share) if two_stage else 0) + wave
    parts = {"think": 1.2, "answer": 0.3, "coordinate": 0.9, "correct": 0.8, "wrong": 1.3}
    line = {
        "step": step,
        "epoch": share,
        "loss": 0.01 * wave,
        "grad_norm": 1 + wave,
        "learning_rate": 1e-6 * (1 - share),
        "reward": 0.4 + 0.5 * share + wave,
        "reward_std": 0.3 - 0.2 * share,
        "frac_reward_zero_std": 0.2 + 0.5 * share,
        "accuracy": 0.3 + 0.5 * share + wave,
        "entropy": entropy,
        **{f"entropy/{part}": factor * entropy for part, factor in parts.items()},
        "advantage/covariance": 0.01 - 0.01 * share,
        "advantage/sampled_abs": 0.8,
        "advantage/used_abs": 0.7 + wave,
        "clip_ratio/region_mean": 0.001,
        "clip_ratio/low_mean": 0.0005,
        "clip_ratio/high_mean": 0.0005,
        "kl": 0.01 * share,
        "completions/mean_length": 120 + 40 * share,
        "completions/max_length": 256,
        "completions/clipped_ratio": 0.02,
        "step_time": 2.5 + wave,
        "num_tokens": 12000 * step,
        "memory/peak_gib": 41.0,
        "rewards/iou_reward/mean": 0.5 + wave,
    }
    if two_stage:
        line |= {"two_stage/coefficient": 0.01 if share < 0.8 else -0.01, "two_stage/stage": 1 if share < 0.8 else 2}
    return line


def write_run(folder, *, steps=3, seed=0, method="grpo", bench="shapes", **options):
    """A run of `steps` log lines, evaluated, with its options."""
    write_lines(
        folder / "metrics.jsonl",
        [
            *(log_line(step, steps, seed=seed, two_stage=method == "two_stage") for step in range(1, steps + 1)),
            {"step": steps, "train_runtime": 1.0},
        ],
    )
    share = {"value": 0.5 + 0.01 * seed, "low": 0.4, "high": 0.6, "items": 100}
    result = {"bench": bench, "metrics": {"accuracy@0.5": share, "iou": {**share, "value": 0.45}}}
    (folder / "result.json").write_text(json.dumps(result))
    config = {"method": method, "seed": seed, "output_dir": str(folder), "learning_rate": 1e-6, **options}
    (folder / "run_config.json").write_text(json.dumps(config))
    return folder


def token(text, *, entropy=0.2, part="think", top=(("yes", 0.7), ("no", 0.2))):
    """A token of entropy/tokens.jsonl."""
    top = [list(alternative) for alternative in top]
    return {"text": text, "kind": "other", "part": part, "entropy": entropy, "prob": 0.7, "top": top}


def write_answers(folder, images, texts, *, missing=False):
    """entropy/tokens.jsonl with an answer per text, each on a picture of its own; of the first one `missing` in fact.

    The first answer's model carries its text in its name.
    """
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for place, text in enumerate(texts):
        path = images / f"{place}.png"
        if place or not missing:
            Image.new("RGB", (640, 480), (40 * place % 255, 120, 180)).save(path)
        words = [token(f" {text}", entropy=0.1 * place, top=((text, 0.5), ("b", 0.3))), token(" left", entropy=0.9)]
        answer = [token("<answer>", part="other", entropy=0.0), token("[", part="answer", entropy=0.01)]
        numbers = [token(number, part="coordinate", entropy=0.4) for number in ("80", ",", "60")]
        lines.append(
            {
                "model": f"model {text[:40]}" if place == 0 else "model",
                "id": f"{place} {text[:60]}",
                "images": [str(path)],
                "question": f"Where is {text}?",
                "solution": "[100, 80, 300, 240]",
                "correct": place % 2 == 0,
                "reward": 0.5,
                "prediction": [80, 60, 280, 250] if place % 3 else [150, 120],
                "tokens": words + answer + numbers,
            }
        )
    write_lines(folder / "entropy" / "tokens.jsonl", lines)
