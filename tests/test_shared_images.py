"""Each different image of a batch is processed once, with the result of processing all of them."""

import numpy as np
import pytest
import torch
from PIL import Image
from sharing import EVERY_FAMILY, PROMPTS, family, picture, processor_of

from vlm_entropy.trainers.shared_images import OncePerImage, processing_images_once, same_images


class CountedProcessor:
    """An image processor that counts the images of each call."""

    def __init__(self, processor):
        self.processor, self.counts = processor, []

    def __getattr__(self, name):
        return getattr(self.processor, name)

    def __call__(self, images, **kwargs):
        flat = [image for some in images for image in (some if isinstance(some, list) else [some])]
        self.counts.append(len(flat))
        return self.processor(images, **kwargs)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert type(actual[name]) is type(value), name
        assert torch.equal(torch.as_tensor(actual[name]), torch.as_tensor(value)), name


@EVERY_FAMILY
def test_the_result_is_that_of_processing_every_image(model_type):
    processor = CountedProcessor(processor_of(family(model_type)).image_processor)
    small, wide, other = picture("small"), picture("wide"), picture("other")
    images = [[small], [small.copy()], [wide, small], [], [wide.copy(), small.copy()], [other]]
    for options in ({"return_tensors": "pt"}, {"return_tensors": "pt", "crop_to_patches": True}):
        if "crop_to_patches" in options and model_type != "internvl":
            continue
        flat = [image for some in images for image in some]
        expected = processor(flat, **options)
        actual = OncePerImage(processor)(images, **options)
        assert_same(actual, expected)
        assert processor.counts[-2:] == [7, 3]


@EVERY_FAMILY
def test_a_whole_processor_gives_the_same_batch_for_an_image_a_prompt(model_type):
    processor = processor_of(family(model_type))
    processor.image_processor = counted = CountedProcessor(processor.image_processor)
    rows = [0] * 4 + [2] * 4 + [1] * 4
    images = [[picture(name) for name in PROMPTS[row][0]] for row in rows]
    turns = [[{"type": "image"}] * len(some) + [{"type": "text", "text": "Find"}] for some in images]
    texts = [processor.apply_chat_template([{"role": "user", "content": turn}], tokenize=False) for turn in turns]
    expected = processor(images=images, text=texts, padding=True, return_tensors="pt")
    with processing_images_once(processor):
        actual = processor(images=images, text=texts, padding=True, return_tensors="pt")
    assert_same(actual, expected)
    assert counted.counts == [16, 3]
    assert processor.image_processor is counted


def test_what_does_not_belong_to_an_image_sends_the_whole_batch_to_the_processor():
    def processor(images, **kwargs):
        return {"pixel_values": torch.zeros(len(images), 3), "of_the_batch": torch.zeros(7)}

    images = [picture("small"), picture("small"), picture("other")]
    assert len(OncePerImage(processor)(images)["pixel_values"]) == 3
    named = CountedProcessor(processor)
    OncePerImage(named)(images)
    assert named.counts == [2, 3]


def grey(mode, levels=(0, 255)):
    image = Image.new(mode, (8, 8), 0)
    if mode == "P":
        image.putpalette([level for level in levels for _ in range(3)])
    return image


@pytest.mark.parametrize(
    ("one", "other", "are_equal"),
    [
        (picture("small"), picture("small"), True),
        (picture("small"), picture("other"), False),
        (grey("L"), grey("L"), True),
        (grey("RGB"), grey("YCbCr"), False),
        (Image.new("L", (4, 16)), Image.new("L", (16, 4)), False),
        (grey("P", (0, 255)), grey("P", (255, 0)), False),  # the same numbers of different colours
        (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), False),  # not looked into
    ],
)
def test_images_are_equal_by_what_they_show(one, other, are_equal):
    numbers, different = same_images([one, other])
    assert numbers == ([0, 0] if are_equal else [0, 1])
    assert len(different) == 2 - are_equal


def test_the_same_array_is_one_image():
    array = np.zeros((8, 8, 3), np.uint8)
    assert same_images([array, array])[0] == [0, 0]


def test_anything_but_a_call_goes_to_the_processor_and_an_error_leaves_it_in_its_place():
    processor = processor_of(family("qwen2_5_vl"))
    inner = processor.image_processor

    def fail():
        with processing_images_once(processor):
            assert processor.image_processor is not inner
            assert processor.image_processor.patch_size == inner.patch_size == 8
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert processor.image_processor is inner


def test_a_tokenizer_has_no_images_to_process():
    tokenizer = processor_of(family("qwen2_5_vl")).tokenizer
    with processing_images_once(tokenizer):
        assert tokenizer("a")["input_ids"]
