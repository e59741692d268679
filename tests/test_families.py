"""Model families against the image processors of transformers (5.23) on real images."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)
from transformers import AutoConfig, AutoTokenizer, Glm4vImageProcessor, GotOcr2ImageProcessor, Qwen2VLImageProcessor

from vlm_entropy.data.families import (
    FAMILIES,
    get_family,
    pixel_limits,
    set_max_tiles,
    set_pixel_limits,
    vision_token_ids,
)
from vlm_entropy.data.tiny import GLM_SPECIAL, INTERNVL_SPECIAL, QWEN_SPECIAL, build_tiny_vlm

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
QWEN_PROCESSORS = {
    "defaults, patch 14": {},
    "patch 16 of Qwen3-VL": {"patch_size": 16, "size": {"shortest_edge": 65_536, "longest_edge": 1_048_576}},
    "tiny": {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 4096}},
    "one cell at most": {"patch_size": 14, "size": {"shortest_edge": 784, "longest_edge": 784}},
    "merge 1": {"patch_size": 7, "merge_size": 1, "size": {"shortest_edge": 49, "longest_edge": 49_000}},
}


def random_sizes(count, largest, seed):
    """Draw sizes of every order of magnitude, no side more than 200 times the other."""
    draw = random.Random(seed)
    sizes = [(round(largest ** draw.random()), round(largest ** draw.random())) for _ in range(count)]
    return [(width, height) for width, height in sizes if max(width, height) <= 200 * min(width, height)]


def blank(size):
    return Image.fromarray(np.zeros((size[1], size[0], 3), dtype=np.uint8))


def processor_with(image_processor, **fields):
    return SimpleNamespace(image_processor=image_processor, **fields)


@pytest.mark.parametrize("options", QWEN_PROCESSORS.values(), ids=QWEN_PROCESSORS)
def test_qwen_sees_the_size_and_the_tokens_that_transformers_makes_of_an_image(options):
    image_processor = Qwen2VLImageProcessor(**options)
    patch, merge = image_processor.patch_size, image_processor.merge_size
    for size in [*random_sizes(40, 900, seed=0), (5, 300), (1, 1), (1, 200), (900, 5), (28, 28), (13, 14)]:
        _, rows, columns = image_processor(images=blank(size))["image_grid_thw"][0].tolist()
        for model_type in QWEN:
            family = FAMILIES[model_type]
            assert family.input_size(size, image_processor) == (columns * patch, rows * patch), size
            assert family.image_tokens(size, processor_with(image_processor)) == rows * columns // merge**2, size


@pytest.mark.parametrize("options", QWEN_PROCESSORS.values(), ids=QWEN_PROCESSORS)
def test_qwen_image_tokens_equal_the_patch_count_of_transformers_for_many_sizes(options):
    # independent source: Qwen2VLImageProcessor.get_number_of_image_patches of transformers 5.23, which opens no image
    image_processor = Qwen2VLImageProcessor(**options)
    for width, height in random_sizes(2000, 5000, seed=1):
        patches = image_processor.get_number_of_image_patches(height, width)
        tokens = FAMILIES["qwen2_5_vl"].image_tokens((width, height), processor_with(image_processor))
        assert tokens == patches // image_processor.merge_size**2, (width, height)


def test_qwen_input_size_of_a_photo_worked_by_hand():
    # cells of 28 pixels: 640 / 28 = 22.9 -> 23, 480 / 28 = 17.1 -> 17
    assert FAMILIES["qwen2_5_vl"].input_size((640, 480), Qwen2VLImageProcessor()) == (644, 476)


def test_qwen_refuses_a_side_more_than_200_times_the_other():
    with pytest.raises(ValueError, match="aspect ratio"):
        FAMILIES["qwen2_5_vl"].input_size((201, 1), Qwen2VLImageProcessor())


GLM_PROCESSORS = {
    "defaults": {},
    "tiny": {"patch_size": 8, "size": {"shortest_edge": 512, "longest_edge": 32_768}},
    "one cell at most": {"patch_size": 14, "size": {"shortest_edge": 1568, "longest_edge": 1568}},
    "one frame": {"temporal_patch_size": 1, "size": {"shortest_edge": 784, "longest_edge": 200_000}},
}


@pytest.mark.parametrize("options", GLM_PROCESSORS.values(), ids=GLM_PROCESSORS)
def test_glm_sees_the_size_and_the_tokens_that_transformers_makes_of_an_image(options):
    image_processor = Glm4vImageProcessor(**options)
    patch, family = image_processor.patch_size, FAMILIES["glm4v"]
    for size in [*random_sizes(40, 900, seed=0), (5, 300), (1, 1), (900, 5), (28, 28), (13, 14)]:
        _, rows, columns = image_processor(images=blank(size))["image_grid_thw"][0].tolist()
        assert family.input_size(size, image_processor) == (columns * patch, rows * patch), size
        assert family.image_tokens(size, processor_with(image_processor)) == rows * columns // 4, size


def test_limits_of_glm_are_areas_of_the_image_though_its_processor_counts_two_frames(tmp_path):
    image_processor = Glm4vImageProcessor()
    # 112 * 112 and 28 * 28 * 15000 pixels of two frames
    assert pixel_limits(image_processor) == (6272, 5_880_000)
    set_pixel_limits(processor_with(image_processor), min_pixels=784, max_pixels=50_176)
    image_processor.save_pretrained(tmp_path)
    # as of Qwen below: 640 x 480 in at most 50176 pixels = 64 cells is 9 x 6 cells
    for one in (image_processor, Glm4vImageProcessor.from_pretrained(tmp_path)):
        assert one(images=blank((640, 480)))["image_grid_thw"].tolist() == [[1, 12, 18]]
        assert pixel_limits(one) == (784, 50_176)
    set_pixel_limits(processor_with(image_processor), max_pixels=100_352)
    assert pixel_limits(image_processor) == (784, 100_352)


@pytest.mark.parametrize(("tile", "max_tiles"), [(28, 12), (28, 1), (28, 2), (56, 6), (448, 12)])
def test_internvl_tokens_are_the_tiles_that_transformers_cuts_times_the_tokens_of_one(tile, max_tiles):
    image_processor = GotOcr2ImageProcessor(size={"height": tile, "width": tile})
    processor = processor_with(image_processor, image_seq_length=7)
    set_max_tiles(processor, max_tiles)
    for size in [*random_sizes(15, 300, seed=2), (1, 1), (28, 28), (300, 20), (60, 300)]:
        tiles = len(image_processor(images=blank(size), crop_to_patches=True)["pixel_values"])
        assert FAMILIES["internvl"].image_tokens(size, processor) == 7 * tiles, size
        assert FAMILIES["internvl"].input_size(size, image_processor) == size


def test_internvl_adds_a_thumbnail_only_to_more_than_one_tile():
    processor = processor_with(GotOcr2ImageProcessor(size={"height": 28, "width": 28}), image_seq_length=4)
    set_max_tiles(processor, 2)
    # 56x28 is two tiles and a thumbnail, 28x28 is one tile
    assert FAMILIES["internvl"].image_tokens((56, 28), processor) == 12
    assert FAMILIES["internvl"].image_tokens((28, 28), processor) == 4


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_rounded_box_comes_back_within_half_a_step_of_its_space(family):
    draw = random.Random(3)
    for image_size in random_sizes(200, 3000, seed=4):
        input_size = tuple(28 * draw.randint(1, 60) for _ in range(2))
        sizes = {"image_size": image_size, "input_size": input_size}
        box = tuple(draw.uniform(0, side) for side in image_size * 2)
        exact = family.from_original(box, **sizes)
        assert family.to_original(exact, **sizes) == pytest.approx(box, rel=1e-12)
        steps = input_size if family.space == "absolute_resized" else (1000, 1000)
        rounded = family.to_original(tuple(map(round, exact)), **sizes)
        for i in range(4):
            assert abs(rounded[i] - box[i]) <= 0.5 * image_size[i % 2] / steps[i % 2] * (1 + 1e-9)


@pytest.mark.parametrize(
    ("model_type", "box"),
    [
        ("qwen2_vl", (100, 100, 500, 500)),
        ("qwen3_vl", (100, 100, 500, 500)),
        ("internvl", (100, 100, 500, 500)),
        ("glm4v", (100, 100, 500, 500)),
        ("qwen2_5_vl", (64.4, 47.6, 322, 238)),  # of 644x476
    ],
)
def test_each_family_answers_in_its_own_space(model_type, box):
    sizes = {"image_size": (640, 480), "input_size": (644, 476)}
    assert get_family(model_type).to_original(box, **sizes) == pytest.approx((64, 48, 320, 240), rel=1e-12)


def test_an_unknown_model_type_is_named():
    with pytest.raises(ValueError, match="Unknown model type 'llava'; supported are qwen2_vl, qwen2_5_vl, qwen3_vl"):
        get_family("llava")


@pytest.mark.parametrize(
    ("model_type", "tokens"),
    [
        ("qwen3_vl", QWEN_SPECIAL.values()),
        ("internvl", [INTERNVL_SPECIAL["context_image_token"]]),
        ("glm4v", GLM_SPECIAL.values()),
    ],
)
def test_the_placeholders_of_a_family_are_those_that_its_config_names(tmp_path, model_type, tokens):
    folder = build_tiny_vlm(model_type, tmp_path, hidden_size=16, layers=1, largest_number=9)
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert vision_token_ids(config) == set(tokenizer.convert_tokens_to_ids(list(tokens)))


def test_pixel_limits_act_at_once_and_survive_saving(tmp_path):
    image_processor = Qwen2VLImageProcessor()
    set_pixel_limits(processor_with(image_processor), max_pixels=50_176)
    set_pixel_limits(processor_with(image_processor), min_pixels=784)
    image_processor.save_pretrained(tmp_path)
    # 640x480 at most 50176 pixels = 64 cells: scale sqrt(307200 / 50176) = 2.474, 258.7 -> 9 and 194.0 -> 6 cells
    for one in (image_processor, Qwen2VLImageProcessor.from_pretrained(tmp_path)):
        assert (one.size["shortest_edge"], one.size["longest_edge"]) == (784, 50_176)
        assert one(images=blank((640, 480)))["image_grid_thw"].tolist() == [[1, 12, 18]]
        assert FAMILIES["qwen2_5_vl"].input_size((640, 480), one) == (252, 168)


def test_the_tile_limit_acts_at_once_and_survives_saving(tmp_path):
    image_processor = GotOcr2ImageProcessor(size={"height": 28, "width": 28})
    set_max_tiles(processor_with(image_processor), 3)
    image_processor.save_pretrained(tmp_path)
    for one in (image_processor, GotOcr2ImageProcessor.from_pretrained(tmp_path)):
        assert one.max_patches == 3
        assert one(images=blank((300, 100)), crop_to_patches=True)["num_patches"] == [4]


def test_a_limit_of_the_other_kind_or_out_of_order_is_refused():
    qwen, internvl = processor_with(Qwen2VLImageProcessor()), processor_with(GotOcr2ImageProcessor())
    with pytest.raises(ValueError, match=r"GotOcr2ImageProcessor has no limits in pixels.*set_max_tiles"):
        set_pixel_limits(internvl, max_pixels=100)
    with pytest.raises(ValueError, match=r"Qwen2VLImageProcessor cuts no tiles; use set_pixel_limits"):
        set_max_tiles(qwen, 6)
    with pytest.raises(ValueError, match="got min_pixels=3136 and max_pixels=100"):
        set_pixel_limits(qwen, max_pixels=100)
    with pytest.raises(ValueError, match="got min_pixels=0"):
        set_pixel_limits(qwen, min_pixels=0)
    with pytest.raises(ValueError, match="At least 1 tiles are needed, got 0"):
        set_max_tiles(internvl, 0)
