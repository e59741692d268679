"""Examples and datasets, and the token count of a prompt against real processors."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)
from datasets import load_from_disk
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GotOcr2ImageProcessor,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from trl.data_utils import prepare_multimodal_messages

from vlm_entropy.data import (
    BadRow,
    Row,
    build_dataset,
    check_prompt_fits,
    format_question,
    get_family,
    prompt_tokens,
    read_rows,
    to_example,
)

QWEN_SPECIAL = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
INTERNVL_SPECIAL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {% for part in m.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def word_tokenizer(special):
    tokens = ["<unk>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", *special.values()]
    raw = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.add_special_tokens(tokens)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", pad_token="<|im_end|>", extra_special_tokens=special
    )


@pytest.fixture(scope="module")
def qwen():
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(),
        word_tokenizer(QWEN_SPECIAL),
        Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )


@pytest.fixture(scope="module")
def internvl():
    return InternVLProcessor(
        GotOcr2ImageProcessor(size={"height": 28, "width": 28}),
        word_tokenizer(INTERNVL_SPECIAL),
        InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )


@pytest.fixture
def processor(request):
    return request.getfixturevalue(request.param)


FAMILIES = pytest.mark.parametrize(
    ("processor", "model_type"), [("qwen", "qwen2_5_vl"), ("internvl", "internvl")], indirect=["processor"]
)
ROW = Row("a.jsonl:1", ("img/7.jpg",), ((640, 480),), "Where is {the} cat?", "[10, 20, 30, 40]", {"id": 7})
METHOD = {"accu_reward_method": "mcq"}
TEXT_ROW = Row("a.jsonl:2", (), (), "What is 2 + 2?", "4")


def dataset_of(rows, processor, model_type="qwen2_5_vl", **options):
    return build_dataset(rows, family=get_family(model_type), processor=processor, **options)


def test_the_example_of_the_docstring(qwen):
    assert to_example(ROW, family=get_family("qwen2_5_vl"), processor=qwen, task_type="plain") == {
        "prompt": [{"role": "user", "content": "Where is {the} cat?"}],
        "images": ["img/7.jpg"],
        "solution": "[10, 20, 30, 40]",
        "problem": "Where is {the} cat?",
        "image_path": ["img/7.jpg"],
        "image_size": [640, 480],
        "input_size": [644, 476],
        "coordinate_space": "absolute_resized",
        "solution_space": "absolute",
        "id": 7,
    }


def test_a_row_of_text_has_no_images_and_no_sizes(qwen):
    example = to_example(TEXT_ROW, family=get_family("qwen3_vl"), processor=qwen, solution_space="relative_1000")
    assert example["images"] == example["image_path"] == []
    assert example["image_size"] is example["input_size"] is None
    assert (example["coordinate_space"], example["solution_space"]) == ("relative_1000", "relative_1000")


def test_a_row_may_ask_for_a_space_of_its_own(qwen):
    own = replace(ROW, columns={"coordinate_space": "relative_1000"})
    assert to_example(own, family=get_family("qwen2_5_vl"), processor=qwen)["coordinate_space"] == "relative_1000"
    dataset = build_dataset([own, ROW], family=get_family("qwen2_5_vl"), processor=qwen)
    assert dataset["coordinate_space"] == ["relative_1000", "absolute_resized"]
    wrong = replace(ROW, columns={"coordinate_space": "pixels"})
    with pytest.raises(ValueError, match="coordinate_space is 'pixels'; allowed are absolute"):
        to_example(wrong, family=get_family("qwen2_5_vl"), processor=qwen)


@pytest.mark.parametrize("name", ["solution", "images", "completions", "log_metric"])
def test_a_column_with_a_name_the_trainer_uses_is_refused(qwen, name):
    row = Row("a.jsonl:9", (), (), "q", "a", {name: 1})
    with pytest.raises(ValueError, match=f"a.jsonl:9: the column '{name}' has a name that the trainer uses"):
        to_example(row, family=get_family("qwen2_vl"), processor=qwen)


@pytest.mark.parametrize("space", ["pixels", "absolute_resized"])
def test_a_gold_space_that_does_not_exist_or_depends_on_the_model_is_refused(qwen, space):
    with pytest.raises(ValueError, match=f"solution_space is '{space}'; allowed are absolute, relative_1000"):
        to_example(ROW, family=get_family("qwen2_vl"), processor=qwen, solution_space=space)


def test_the_templates_are_those_of_vlm_r1():
    think = "First output the thinking process in <think> </think> tags and then output the final answer in "
    default = f"Q{{}}? {think}<answer> </answer> tags."
    assert format_question("Q{}?") == default
    assert format_question("Q{}?", "rec") == default + " Output the final answer in JSON format."
    assert format_question("Q{Question}?", "plain") == "Q{Question}?"


def test_an_unknown_task_type_is_named():
    with pytest.raises(ValueError, match="Unknown task type 'nope'; allowed are default, rec, "):
        format_question("Q", "nope")


@pytest.fixture
def image_folder(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.new("RGB", (40, 20), "blue")
    turned.paste("red", (0, 0, 10, 20))
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.new("LA", (12, 34)).save(tmp_path / "grey.png")
    return tmp_path


def test_images_are_rgb_upright_and_as_large_as_their_row_says(image_folder, qwen):
    line = {"image": ["turned.jpg", "grey.png"], "conversations": [{"value": "q"}, {"value": "a"}]}
    (image_folder / "data.jsonl").write_text(json.dumps(line))
    rows, _ = read_rows(str(image_folder / "data.jsonl"), str(image_folder))
    example = dataset_of(rows, qwen)[0]
    assert [image.size for image in example["images"]] == list(rows[0].image_sizes) == [(20, 40), (12, 34)]
    assert {image.mode for image in example["images"]} == {"RGB"}
    assert example["image_size"] == [20, 40]
    # the red quarter was on the left; a quarter turn clockwise brings it to the top
    red, _, blue = example["images"][0].getpixel((10, 4))
    assert (red > 200, blue < 60) == (True, True)


def test_reward_methods_of_rows_and_of_files_reach_the_rewards(tmp_path, qwen):
    plain, own = ({"conversations": [{"value": "q"}, {"value": "a"}], **extra} for extra in ({}, METHOD))
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(plain)}\n{json.dumps(own)}")
    rows, _ = read_rows(str(tmp_path / "data.jsonl"), None, reward_methods="od_ap")
    assert dataset_of(rows, qwen)["accu_reward_method"][:] == ["od_ap", "mcq"]


def test_images_are_opened_only_when_read(qwen):
    dataset = dataset_of([ROW, TEXT_ROW], qwen)
    assert dataset["solution"][:] == ["[10, 20, 30, 40]", "4"]
    assert dataset[1]["images"] == []
    assert dataset[1]["image_size"] is None
    with pytest.raises(FileNotFoundError, match=r"img/7\.jpg"):
        dataset[0]


MIXED = [
    "12", 12, 1.5, True, None, "true", "null", "[1, 2]", [1, "a", None], {"a": {"b": []}}, "", "007", "é", '"quoted"',
]  # fmt: skip


def test_columns_of_mixed_types_come_back_as_the_values_of_the_file(qwen, tmp_path):
    rows = [Row(f"a:{i}", (), (), "q", "a", {"extra": value}) for i, value in enumerate(MIXED)]
    dataset = dataset_of(rows, qwen)
    dataset.save_to_disk(tmp_path / "saved")
    for stored in (dataset, load_from_disk(tmp_path / "saved"), dataset.select(range(len(MIXED)))):
        values = [example["extra"] for example in stored]
        assert [(type(value), value) for value in values] == [(type(value), value) for value in MIXED]


@pytest.mark.parametrize(
    "values", [["12", "[1]", "x"], [1, 2, 3], [True, False, True], [0.5, 1.0, 2.0], [[1], [2], [3]]]
)
def test_a_column_missing_in_some_rows_is_none_there(qwen, values):
    rows = [Row(f"a:{i}", (), (), "q", "a", {"extra": value}) for i, value in enumerate(values)]
    dataset = dataset_of([*rows, TEXT_ROW], qwen)
    stored = [example["extra"] for example in dataset.map(lambda example: {"seen": True})]
    assert [(type(value), value) for value in stored] == [(type(value), value) for value in [*values, None]]


@FAMILIES
def test_the_token_count_of_a_prompt_is_that_of_the_real_processor(processor, model_type, tmp_path):
    family = get_family(model_type)
    for sizes in [(), ((30, 20),), ((300, 100),), ((20, 200), (64, 64), (100, 33))]:
        paths = tuple(str(tmp_path / f"{i}.png") for i in range(len(sizes)))
        for path, size in zip(paths, sizes, strict=True):
            Image.new("RGB", size).save(path)
        row = Row("a:1", paths, sizes, "Where is the cat?", "[1, 2, 3, 4]")
        example = dataset_of([row], processor, model_type)[0]
        inputs = processor.apply_chat_template(
            prepare_multimodal_messages(example["prompt"], example["images"]),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
        ids = inputs["input_ids"][0]
        image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        counts = prompt_tokens(row, family=family, processor=processor)
        assert counts == (len(ids), list(ids).count(image_token)), sizes


def test_a_prompt_that_leaves_no_room_for_the_completion_is_a_bad_row(qwen):
    options = {"family": get_family("qwen2_5_vl"), "processor": qwen, "task_type": "plain"}
    needed, images = prompt_tokens(ROW, **options)
    assert images == 23 * 17
    options |= {"max_completion_length": 100}
    assert check_prompt_fits([ROW, TEXT_ROW], **options, context_length=needed + 100) == []
    assert check_prompt_fits([TEXT_ROW, ROW], **options, context_length=needed + 99) == [
        BadRow(
            "a.jsonl:1",
            f"needs {needed} tokens (391 of them image tokens) + 100 for the completion, "
            f"the model's context is {needed + 99}.",
        )
    ]


def test_importing_the_package_imports_no_framework():
    code = "import sys, vlm_entropy.data; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "set()", result.stderr
