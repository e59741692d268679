"""Pixel tensors of the four families against their own processors (transformers 5.23)."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)
from transformers import GotOcr2ImageProcessor, Qwen2VLImageProcessor

from vlm_entropy.data.tiny import MODEL_TYPES, build_processor
from vlm_entropy.trainers.pixels import (
    amplified_difference,
    get_layout,
    join_rows,
    replace_pictures,
    row_pictures,
    save_comparison,
    split_rows,
    to_image,
)

HALF_A_LEVEL = 0.5 / 255
SIZES = [(32, 32), (50, 33), (90, 40), (7, 61), (300, 20)]


@cache
def processor_of(model_type):
    return build_processor(model_type, image_size=32, patch_size=8, largest_number=9, words=())


def noise_image(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def processed(model_type, batch):
    """The rows of a batch of prompts with these images, as TRL processes them, and all its fields."""
    content = [[{"type": "image", "image": image} for image in images] for images in batch]
    conversations = [[{"role": "user", "content": [*some, {"type": "text", "text": "Find it"}]}] for some in content]
    fields = processor_of(model_type).apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    prompt_ids = fields.pop("input_ids")
    del fields["attention_mask"]
    layout = get_layout(model_type, processor_of(model_type))
    return split_rows(prompt_ids, batch, dict(fields), layout), dict(fields), layout


def levels(picture):
    return (picture * 255).round()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_pixel_values_are_those_of_the_processor_for_its_own_picture(model_type):
    for size in SIZES:
        (row,), _, layout = processed(model_type, [[noise_image(*size)]])
        (picture,) = row_pictures(row, layout)
        assert picture.shape[0] == 3
        torch.testing.assert_close(picture * 255, levels(picture), rtol=0, atol=1e-4)
        rebuilt = layout.pixel_values(picture)
        (expected,) = row.fields["pixel_values"]
        tiles = len(expected) - (model_type == "internvl" and len(expected) > 1)  # the thumbnail is resized anew
        # float32: (k/255 - mean) / std against the processor's (k - 255 mean) / (255 std), values up to 2.7.
        torch.testing.assert_close(rebuilt[:tiles], expected[:tiles], rtol=0, atol=2e-6)
        assert rebuilt.shape == expected.shape


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_picture_is_the_image_that_the_processor_resized(model_type):
    # independent source: an image of a size that the processor keeps is its own picture, pixel by pixel.
    image = noise_image(64, 32)
    (row,), _, layout = processed(model_type, [[image]])
    (picture,) = row_pictures(row, layout)
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    torch.testing.assert_close(levels(picture).to(torch.uint8), expected, rtol=0, atol=0)
    torch.testing.assert_close(np.array(to_image(picture)), np.array(image), rtol=0, atol=0)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_changed_picture_comes_back_from_the_processor_to_half_a_grey_level(model_type):
    rows, _, layout = processed(model_type, [[noise_image(*size, seed)] for seed, size in enumerate(SIZES)])
    clean = [row_pictures(row, layout) for row in rows]
    generator = torch.Generator().manual_seed(0)
    changed = [[torch.rand(picture.shape, generator=generator) for picture in some] for some in clean]
    replaced = replace_pictures(rows, changed, layout)
    for row, old, (picture,) in zip(replaced, rows, changed, strict=True):
        (again,) = row_pictures(row, layout)
        assert (again - picture).abs().max() <= HALF_A_LEVEL + 1e-6
        (attacked,), (fed,) = [layout.pixel_values(picture)], row.fields["pixel_values"]
        tiles = len(fed) - (model_type == "internvl" and len(fed) > 1)
        std = torch.tensor(layout.image_processor.image_std).min()
        assert (attacked[:tiles] - fed[:tiles]).abs().max() <= HALF_A_LEVEL / std + 1e-5
        assert row.prompt_ids == old.prompt_ids
        assert row.grids == old.grids
    # The batch with the new images is what the whole processor makes of them, token counts included.
    _, fields, _ = processed(model_type, [row.images for row in replaced])
    joined = join_rows(replaced)
    expected = fields["pixel_values"]
    expected = torch.stack(expected) if isinstance(expected, list) else expected
    torch.testing.assert_close(joined["pixel_values"], expected, rtol=0, atol=0)
    assert joined.keys() == fields.keys()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_rows_with_no_one_and_two_images_are_split_and_joined_without_loss(model_type):
    batch = [[noise_image(50, 33)], [], [noise_image(32, 32, 1), noise_image(90, 40, 2)], []]
    rows, fields, layout = processed(model_type, batch)
    assert [len(row_pictures(row, layout)) for row in rows] == [1, 0, 2, 0]
    assert [len(row.grids) for row in rows] == [1, 0, 2, 0]
    joined = join_rows(rows)
    assert joined.keys() == fields.keys()
    for name, value in fields.items():
        value = torch.stack(value) if isinstance(value[0], torch.Tensor) and isinstance(value, list) else value
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(joined[name], value, rtol=0, atol=0)
        else:
            assert joined[name] == value
    single, _, _ = processed(model_type, [batch[2][1:]])
    expected = row_pictures(single[0], layout)[0]
    torch.testing.assert_close(row_pictures(rows[2], layout)[1], expected, rtol=0, atol=0)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_both_frames_of_a_temporal_patch_are_equal_and_add_their_gradients(model_type):
    layout = get_layout(model_type, processor_of(model_type))
    picture = torch.rand(3, 32, 48, dtype=torch.float64, requires_grad=True)
    values = layout.pixel_values(picture)
    frames = values.view(24, 3, 2, 8, 8)
    torch.testing.assert_close(frames[:, :, 0], frames[:, :, 1], rtol=0, atol=0)
    weights = torch.rand(values.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((values * weights).sum(), picture)
    # Pixel (y, x) of the first patch is entry 8 y + x of both frames; d value / d picture = 1 / std.
    first = weights.view(24, 3, 2, 8, 8)[0].sum(dim=1)
    std = torch.tensor(layout.image_processor.image_std, dtype=torch.float64).view(3, 1, 1)
    torch.testing.assert_close(gradient[:, :8, :8], first / std, rtol=0, atol=1e-12)


def test_the_thumbnail_of_internvl_follows_the_picture_and_gives_it_its_gradient():
    layout = get_layout("internvl", processor_of("internvl"))
    picture = torch.rand(3, 32, 64, dtype=torch.float64, requires_grad=True)
    values = layout.pixel_values(picture)
    assert values.shape == (3, 3, 32, 32)
    (gradient,) = torch.autograd.grad(values[2].sum(), picture)
    std = torch.tensor(layout.image_processor.image_std, dtype=torch.float64)
    # Halving the width averages: the weights of all pixels add up to those of the thumbnail's 32 · 32.
    torch.testing.assert_close(gradient.sum(dim=(1, 2)), 32 * 32 / std, rtol=1e-6, atol=0)
    # Against the processor's own thumbnail of a smooth picture, which no overshoot of bicubic resizing clips.
    ramp = (torch.arange(64) * 3.0 + 20).expand(3, 32, 64) / 255
    (fields,) = layout.process([to_image(ramp)])
    difference = layout.denormalise(fields["pixel_values"][2]) - layout.denormalise(layout.pixel_values(ramp)[2])
    assert difference.abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("most", range(1, 16))
def test_internvl_cuts_a_grid_of_tiles_into_the_same_tiles_again(most):
    image_processor = GotOcr2ImageProcessor(size={"height": 28, "width": 28}, max_patches=most)
    layout = get_layout("internvl", SimpleNamespace(image_processor=image_processor))
    for rows in range(1, most + 1):
        for columns in range(1, most // rows + 1):
            (fields,) = layout.process([noise_image(28 * columns, 28 * rows)])
            assert len(fields["pixel_values"]) == layout.num_rows((rows, columns))
            picture = layout.picture(fields["pixel_values"], (rows, columns))
            assert picture.shape == (3, 28 * rows, 28 * columns)


def test_limits_under_which_internvl_would_cut_a_picture_anew_are_refused():
    # A square of 3 x 3 tiles has more than half the area of 4 x 4, which the processor then prefers.
    image_processor = GotOcr2ImageProcessor(size={"height": 28, "width": 28}, max_patches=16)
    with pytest.raises(ValueError, match=r"may cut 3 x 3 tiles again into 4 x 4; .* 15 or less"):
        get_layout("internvl", SimpleNamespace(image_processor=image_processor))


def test_a_picture_that_qwen_would_resize_again_is_refused():
    # Exactly 4 cells of 16 x 16: an image of 50 x 30 is shrunk to 2 x 1 cells, and those are enlarged to 3 x 2.
    image_processor = Qwen2VLImageProcessor(patch_size=8, size={"shortest_edge": 1024, "longest_edge": 1024})
    layout = get_layout("qwen2_vl", SimpleNamespace(image_processor=image_processor))
    image = noise_image(50, 30)
    fields = dict(image_processor(images=[image], return_tensors="pt"))
    rows = split_rows([[1]], [[image]], fields, layout)
    with pytest.raises(ValueError, match="and that one into another size"):
        replace_pictures(rows, [row_pictures(rows[0], layout)], layout)


def test_other_families_and_other_scales_are_refused():
    with pytest.raises(ValueError, match="model type 'llama' cannot be changed; supported are qwen2_vl"):
        get_layout("llama", None)
    raw = SimpleNamespace(image_processor=Qwen2VLImageProcessor(do_rescale=False))
    with pytest.raises(ValueError, match=r"multiplies grey levels by 1.0; only 1/255"):
        get_layout("qwen2_vl", raw)


def test_fields_that_do_not_fit_the_rows_are_refused():
    rows, fields, layout = processed("qwen2_vl", [[noise_image(32, 32)]])
    image = rows[0].images
    with pytest.raises(ValueError, match="1 images should take 16 rows of pixel_values, got 15"):
        split_rows([[1]], [image], {**fields, "pixel_values": fields["pixel_values"][1:]}, layout)
    with pytest.raises(ValueError, match="mm_token_type_ids has 2 entries for 1 prompts"):
        split_rows([[1]], [image], {**fields, "mm_token_type_ids": [[0], [0]]}, layout)


def test_a_comparison_is_three_images_with_the_difference_at_full_contrast(tmp_path):
    clean = torch.full((3, 2, 2), 100 / 255)
    changed = clean.clone()
    changed[0, 0, 0] += 2 / 255
    changed[0, 1, 1] -= 1 / 255
    save_comparison(tmp_path / "new", "one", clean, changed)
    read = {path.stem: np.array(Image.open(path)) for path in (tmp_path / "new").iterdir()}
    assert sorted(read) == ["one-adversarial", "one-clean", "one-difference"]
    assert read["one-clean"].tolist() == np.full((2, 2, 3), 100).tolist()
    assert read["one-adversarial"][..., 0].tolist() == [[102, 100], [100, 99]]
    # 0.5 + 0.5 · (2, 0, 0, -1) / 2 = 1, .5, .5, .25 of 255; 127.5 rounds to the even 128.
    assert read["one-difference"][..., 0].tolist() == [[255, 128], [128, 64]]
    assert amplified_difference(clean, clean).unique().tolist() == [0.5]
