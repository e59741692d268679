"""The papers' settings in run_scripts/presets: each parses, is whole, and has its baseline at equal rollouts."""

from pathlib import Path

import pytest
import yaml

from vlm_entropy.data.prompts import TEMPLATES
from vlm_entropy.rewards import get_rewards
from vlm_entropy.trainers.arguments import parse_arguments

FOLDER = Path(__file__).parent.parent / "run_scripts" / "presets"
PRESETS = sorted(FOLDER.glob("*.yaml"))
GIVEN = {"alpha": "0.01", "max_completion_length": "256", "num_train_epochs": "2"}


def parse(preset, tmp_path, *, given=GIVEN):
    settings = yaml.safe_load(preset.read_text(encoding="utf-8"))
    flags = [part for name in settings.get("left_to_user", []) if name in given for part in (f"--{name}", given[name])]
    model = ["--model_name_or_path", "m", "--data_file_paths", "d.jsonl", "--output_dir", str(tmp_path)]
    cpu = ["--bf16", "false", "--use_cpu", "true"]
    return settings, *parse_arguments(["--config", str(preset), *model, *cpu, *flags])


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
@pytest.mark.usefixtures("eight_processes")
def test_every_value_of_a_preset_reaches_the_options(tmp_path, preset):
    settings, method, run, config, model = parse(preset, tmp_path)
    assert type(config) is method.config
    for name, value in settings.items():
        owner = next(options for options in (run, config, model) if hasattr(options, name))
        if name != "bf16":  # off on CPU
            assert getattr(owner, name) == value, name
    assert run.task_type in TEMPLATES
    assert len(get_rewards(run.reward_funcs)) == len(config.reward_weights)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
@pytest.mark.usefixtures("eight_processes")
def test_what_the_paper_does_not_state_has_to_be_given(tmp_path, preset):
    left = yaml.safe_load(preset.read_text(encoding="utf-8")).get("left_to_user", [])
    for name in left:
        with pytest.raises(ValueError, match=f"The paper does not state {name}: give --{name}"):
            parse(preset, tmp_path, given={key: value for key, value in GIVEN.items() if key != name})


@pytest.mark.parametrize("preset", [path for path in PRESETS if not path.stem.endswith("_grpo")], ids=lambda p: p.stem)
@pytest.mark.usefixtures("eight_processes")
def test_the_baseline_differs_only_in_the_method(tmp_path, preset):
    settings, _, _, config, _ = parse(preset, tmp_path)
    baseline = parse(preset.with_name(f"{preset.stem}_grpo.yaml"), tmp_path)
    assert baseline[0].pop("method") == "grpo"
    own = settings.keys() - baseline[0].keys() - {"method"}
    inherited = set(type(baseline[3]).__dataclass_fields__)
    assert not own & inherited, "an option of GRPO that the baseline lacks"
    for name in baseline[0].keys() - {"left_to_user"}:
        assert settings[name] == baseline[0][name], name
    assert config.generation_batch_size == baseline[3].generation_batch_size
    assert config.num_generations == baseline[3].num_generations


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
def test_every_value_says_where_it_comes_from(preset):
    """By a tag of its own, or of the line above for the batch sizes that follow from one another."""
    for line in preset.read_text(encoding="utf-8").splitlines():
        name = line.partition(":")[0]
        if line.startswith("#") or not line.strip() or name in ("method", "left_to_user", "correct_reward"):
            continue
        assert any(tag in line for tag in ("[P]", "[C]", "[I]", "[N]", "our reading")) or name in (
            "gradient_accumulation_steps",
            "steps_per_generation",
        ), line
