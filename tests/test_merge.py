"""Merging an adapter into its base: the same function as a plain checkpoint, and what is refused."""

import json
from itertools import product

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, ProcessorMixin

from vlm_entropy.data.families import set_pixel_limits
from vlm_entropy.data.generation import conversation, tokenize
from vlm_entropy.data.tiny import MODEL_TYPES, build_tiny_vlm
from vlm_entropy.trainers.merge import main, merge

ADAPTERS = {
    "all layers": {"target_modules": "all-linear"},
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "DoRA, rank-stabilised": {"target_modules": "all-linear", "use_dora": True, "use_rslora": True},
}


def adapter_of(base, folder, *, dtype="auto", **options):
    """An adapter that changes its base, saved in `folder`."""
    torch.manual_seed(1)
    network = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype)
    options = {"r": 4, "init_lora_weights": False, "task_type": "CAUSAL_LM", **ADAPTERS["attention"], **options}
    get_peft_model(network, LoraConfig(**options)).save_pretrained(folder)
    return folder


def logits(model, processor):
    images = [Image.new("RGB", (48, 32), colour) for colour in ("red", "blue")]
    batch = [conversation([{"role": "user", "content": "Find the red square."}], [image]) for image in images]
    inputs = tokenize(processor, batch)
    with torch.no_grad():
        return inputs["input_ids"], model.eval()(**inputs).logits


def parts(folder, **options):
    return AutoModelForImageTextToText.from_pretrained(folder, **options), AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [*product(MODEL_TYPES, ["all layers"]), ("qwen2_5_vl", "attention"), ("qwen2_5_vl", "DoRA, rank-stabilised")],
)
def test_a_merged_checkpoint_computes_what_base_and_adapter_compute(tmp_path, model_type, kind):
    base = build_tiny_vlm(model_type, tmp_path / "base", hidden_size=32)
    adapter = adapter_of(base, tmp_path / "adapter", **ADAPTERS[kind])
    assert merge(str(adapter), str(tmp_path / "merged")) == tmp_path / "merged"
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    network, processor = parts(base)
    ids, plain = logits(network, processor)
    _, expected = logits(PeftModel.from_pretrained(network, adapter), processor)
    merged_ids, actual = logits(*parts(tmp_path / "merged", dtype="auto"))
    assert torch.equal(merged_ids, ids)
    assert (expected - plain).abs().max() > 1e-2
    # float32 sums in another order
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_the_merged_weights_keep_the_dtype_of_the_base(tiny_model, tmp_path):
    base = AutoModelForImageTextToText.from_pretrained(tiny_model, dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    AutoProcessor.from_pretrained(tiny_model).save_pretrained(tmp_path / "base")
    adapter = adapter_of(tmp_path / "base", tmp_path / "adapter")
    merged, _ = parts(merge(str(adapter), str(tmp_path / "merged")), dtype="auto")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    name = "model.language_model.layers.0.self_attn.q_proj"
    adapted = PeftModel.from_pretrained(base, adapter)
    layer = adapted.get_submodule(f"base_model.model.{name}")
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    # W + (alpha / r) B A with peft's alpha of 8 and r = 4, rounded once
    expected = layer.base_layer.weight.float() + 2.0 * up.float() @ down.float()
    torch.testing.assert_close(merged.get_submodule(name).weight.float(), expected, rtol=2**-7, atol=1e-3)


def test_the_processor_is_the_one_that_was_saved_with_the_adapter(tiny_model, tmp_path):
    adapter = adapter_of(tiny_model, tmp_path / "adapter")
    processor = AutoProcessor.from_pretrained(tiny_model)
    set_pixel_limits(processor, max_pixels=1024)
    processor.save_pretrained(adapter)
    _, merged = parts(merge(str(adapter), str(tmp_path / "merged")))
    assert merged.image_processor.size["longest_edge"] == 1024


def refused(*flags):
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert "\n" not in str(stop.value)
    return str(stop.value)


def test_a_folder_that_exists_is_left_alone(tiny_model, tmp_path):
    adapter = adapter_of(tiny_model, tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    message = refused("--adapter", str(adapter), "--out", str(tmp_path / "out"))
    assert message == f"vlm-entropy-merge: --out '{tmp_path}/out' exists already; name a new folder."
    assert not list((tmp_path / "out").iterdir())


def test_what_is_no_adapter_or_lacks_its_base_is_named(tiny_model, tmp_path):
    message = refused("--adapter", str(tiny_model), "--out", str(tmp_path / "out"))
    assert message.endswith("is no folder of an adapter: it has no adapter_config.json.")
    adapter = adapter_of(tiny_model, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere"}))
    message = refused("--adapter", str(adapter), "--out", str(tmp_path / "out"))
    assert message.startswith(f"vlm-entropy-merge: The base '/nowhere' of --adapter '{adapter}' is no vision-language")
    AutoProcessor.from_pretrained(tiny_model).save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_text((tiny_model / "config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(tmp_path / "bare")})
    )
    message = refused("--adapter", str(adapter), "--out", str(tmp_path / "out"))
    assert f"The base '{tmp_path}/bare' of --adapter '{adapter}' cannot be loaded: " in message
    assert not (tmp_path / "out").exists()


def test_a_merge_that_is_cut_off_leaves_no_folder_and_can_be_repeated(tiny_model, tmp_path, monkeypatch):
    adapter = adapter_of(tiny_model, tmp_path / "adapter")
    with monkeypatch.context() as patch:
        patch.setattr(ProcessorMixin, "save_pretrained", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            merge(str(adapter), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    merge(str(adapter), str(tmp_path / "out"))
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "out"}


def test_the_command_says_what_it_wrote(tiny_model, tmp_path, capsys):
    adapter = adapter_of(tiny_model, tmp_path / "adapter")
    main(["--adapter", str(adapter), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == f"wrote {tmp_path}/out: {adapter} merged into {tiny_model}\n"
