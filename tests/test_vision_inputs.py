"""Forwards without images: the vision tower takes part and changes nothing, and what is logged has one form."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_entropy.data.tiny import MODEL_TYPES, build_tiny_vlm
from vlm_entropy.trainers.vision_inputs import VisionInStep, alike, blank_image, check_images_alike, images_of


@pytest.fixture(scope="module", params=MODEL_TYPES)
def folder(request, tmp_path_factory):
    return build_tiny_vlm(request.param, tmp_path_factory.mktemp("models") / request.param, hidden_size=32)


def inputs(folder, image):
    content = [{"type": "text", "text": "Find the red square."}]
    if image is not None:
        content.insert(0, {"type": "image", "image": image})
    processor = AutoProcessor.from_pretrained(folder)
    chat = [[{"role": "user", "content": content}]]
    return processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def step(folder, fields, *, in_step):
    """Logits of a forward, and the gradients of their sum of squares."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64).train()
    if in_step:
        VisionInStep(model)
    logits = model(**fields).logits
    logits.square().sum().backward()
    return logits.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_text_alone_gives_every_weight_a_gradient_and_no_weight_another_one(folder):
    text, pictured = inputs(folder, None), inputs(folder, Image.new("RGB", (28, 28), "red"))
    logits, gradients = step(folder, text, in_step=True)
    plain_logits, plain = step(folder, text, in_step=False)
    torch.testing.assert_close(logits, plain_logits, rtol=0, atol=0)
    torch.testing.assert_close({name: gradients[name] for name in plain}, plain, rtol=0, atol=0)
    # The weights that DDP waits for: those that an image gives a gradient.
    tower = set(step(folder, pictured, in_step=False)[1]) - set(plain)
    assert tower
    assert set(gradients) - set(plain) == tower
    assert not any(gradients[name].any() for name in tower)


def test_an_image_is_encoded_once_with_its_own_tensors_and_text_once_before_its_first_token(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    VisionInStep(model)
    encode, sizes = model.base_model.get_image_features, []

    def counted(*args, **kwargs):
        pixels = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
        sizes.append(tuple(pixels.shape))
        return encode(*args, **kwargs)

    model.base_model.get_image_features = counted
    blank = tuple(blank_image(model.config, torch.device("cpu"))["pixel_values"].shape)
    text, pictured = inputs(folder, None), inputs(folder, Image.new("RGB", (28, 28), "red"))
    model(**pictured)
    assert sizes == [tuple(pictured["pixel_values"].shape)]
    sizes.clear()
    model.generate(**text, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert sizes == [blank]


def test_prompts_get_parts_where_some_have_them():
    def chat(content):
        return [{"role": "user", "content": content}]

    parts = chat([{"type": "image", "image": "a"}, {"type": "text", "text": "Where?"}])
    assert alike([chat("Who?"), parts]) == [chat([{"type": "text", "text": "Who?"}]), parts]
    assert alike([chat("Who?"), chat("Why?")]) == [chat("Who?"), chat("Why?")]
    assert alike(["Who?"]) == ["Who?"]


def test_images_of_a_row():
    assert images_of({"images": ["a", "b"]}) == ["a", "b"]
    assert images_of({"images": None}) == images_of({"image": None}) == images_of({}) == []
    assert images_of({"image": "a"}) == ["a"]


@pytest.mark.parametrize(
    ("others", "refused"), [([True, True], False), ([False, False], False), ([True, False], True)]
)
def test_processes_with_and_without_images_do_not_sample_together(others, refused):
    accelerator = SimpleNamespace(device="cpu", num_processes=2, gather=lambda own: torch.tensor(others))
    if not refused:
        check_images_alike(None, accelerator=accelerator)
        return
    with pytest.raises(ValueError, match="1 of 2 processes sample text alone"):
        check_images_alike([["a"]], accelerator=accelerator)
