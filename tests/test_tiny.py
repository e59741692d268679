"""The tiny models must behave like any checkpoint, and their tokenizer must give every text back."""

import pytest

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_entropy.data.__main__ import COMMANDS, main
from vlm_entropy.data.tiny import INTERNVL_SPECIAL, MODEL_TYPES, QWEN_SPECIAL, build_tiny_vlm, build_tokenizer

COMPLETION = "<think>red square</think><answer>[4, 8, 12, 16]</answer>"
VLM_R1_TEMPLATE = (
    "First output the thinking process in <think> </think> tags and then output the final answer in "
    "<answer> </answer> tags."
)
RED, BLUE = (220, 40, 40), (50, 80, 230)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One checkpoint of each family."""
    return {name: build_tiny_vlm(name, tmp_path_factory.mktemp(name), seed=1) for name in MODEL_TYPES}


@pytest.fixture(params=MODEL_TYPES)
def loaded(request, folders):
    folder = folders[request.param]
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def conversation(*colours, text="Find the red square."):
    images = [{"type": "image", "image": Image.new("RGB", (32, 32), colour)} for colour in colours]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def encode(processor, *conversations):
    return processor.apply_chat_template(
        list(conversations),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True},
    )


@torch.no_grad()
def last_logits(model, inputs):
    return model(**inputs).logits[:, -1]


# -- the tokenizer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        COMPLETION,
        VLM_R1_TEMPLATE,
        "  two  spaces, tabs\tand\nlines\n",
        "héllo 😀 “quoted” 数学",
        "007 1001 3.14 -5 12abc34",
        '```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "cat"}]\n```',
        "",
    ],
)
@pytest.mark.parametrize("special", [QWEN_SPECIAL, INTERNVL_SPECIAL])
def test_decoding_gives_back_every_character(special, text):
    tokenizer = build_tokenizer(special)
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.pad_token_id not in ids


def test_every_number_up_to_1000_is_one_token_of_its_own():
    tokenizer = build_tokenizer(QWEN_SPECIAL)
    ids = [tokenizer(str(number)).input_ids for number in range(1001)]
    assert {len(pieces) for pieces in ids} == {1}
    assert len({pieces[0] for pieces in ids}) == 1001


def test_a_number_above_the_largest_is_spelled_in_digits():
    tokenizer = build_tokenizer(QWEN_SPECIAL, largest_number=32)
    assert tokenizer.tokenize("32") == ["32"]
    assert tokenizer.tokenize("[33, 8]") == ["[", "3", "3", ",Ġ", "8", "]"]


def test_a_completion_costs_one_token_for_each_tag_word_number_and_mark():
    # <think> red square </think> <answer> [ 4 ", " 8 ", " 12 ", " 16 ] </answer>
    assert len(build_tokenizer(QWEN_SPECIAL).tokenize(COMPLETION)) == 15


def test_further_words_become_single_tokens_with_and_without_a_space_before_them():
    tokenizer = build_tokenizer(QWEN_SPECIAL, words=["hexagon"])
    assert tokenizer.tokenize("hexagon hexagon") == ["hexagon", "Ġhexagon"]


# -- the checkpoint ----------------------------------------------------------------------------------------------


def test_it_loads_as_a_float32_checkpoint_of_its_family(loaded):
    model, processor = loaded
    assert model.dtype == torch.float32
    assert model.config.model_type in MODEL_TYPES
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id
    assert model.get_output_embeddings().weight.shape[0] == len(processor.tokenizer)


def test_the_loaded_tokenizer_still_gives_back_every_character(loaded):
    tokenizer = loaded[1].tokenizer
    ids = tokenizer(COMPLETION, add_special_tokens=False).input_ids
    assert (len(ids), tokenizer.decode(ids, skip_special_tokens=True)) == (15, COMPLETION)


def test_a_32_pixel_image_is_kept_and_costs_four_tokens(loaded):
    model, processor = loaded
    inputs = encode(processor, conversation(RED))
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 4
    # 16 flat patches, or one tile of 32 x 32 pixels: the same 3 x 32 x 32 numbers, twice over for Qwen's two frames
    assert inputs["pixel_values"].numel() in (3 * 32 * 32, 2 * 3 * 32 * 32)


def test_the_answer_depends_on_the_image(loaded):
    model, processor = loaded
    red, blue = (last_logits(model, encode(processor, conversation(colour))) for colour in (RED, BLUE))
    assert (red - blue).abs().max() > 1e-4


def test_a_batch_with_left_padding_and_two_images_equals_its_rows_alone(loaded):
    model, processor = loaded
    one, two = conversation(RED), conversation(BLUE, RED, text="Find the red square in the image.")
    batch = encode(processor, one, two)
    assert batch["attention_mask"][0, 0] == 0
    alone = torch.cat([last_logits(model, encode(processor, row)) for row in (one, two)])
    # float32 sums in another order: 1e-4 is far below the 1e-2 or more that a wrong position or mask costs
    torch.testing.assert_close(last_logits(model, batch), alone, rtol=0, atol=1e-4)


def test_saving_and_loading_again_gives_equal_logits(loaded, tmp_path):
    model, processor = loaded
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = (
        AutoModelForImageTextToText.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
    )
    logits = last_logits(again.eval(), encode(processor_again, conversation(RED)))
    assert torch.equal(logits, last_logits(model, encode(processor, conversation(RED))))


def test_generation_stops_at_the_end_of_turn_and_pads(loaded):
    model, processor = loaded
    end = processor.tokenizer.eos_token_id
    inputs = encode(processor, conversation(RED), conversation(BLUE))
    sampled = model.generate(**inputs, max_new_tokens=3, do_sample=True)
    assert sampled.shape == (2, inputs["input_ids"].shape[1] + 3)
    stopped = model.generate(**inputs, max_new_tokens=3, do_sample=False, sequence_bias={(end,): 1e4})
    assert stopped[:, inputs["input_ids"].shape[1] :].tolist() == [[end], [end]]


def test_the_prompt_is_a_token_prefix_of_prompt_and_answer(loaded):
    processor = loaded[1]
    prompt = conversation(RED)
    whole = [*prompt, {"role": "assistant", "content": COMPLETION}]
    prompt_text = processor.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole_text = processor.apply_chat_template(whole, tokenize=False)
    assert whole_text == prompt_text + COMPLETION + "<|im_end|>"
    prompt_ids, whole_ids = (processor.tokenizer(text).input_ids for text in (prompt_text, whole_text))
    assert whole_ids[: len(prompt_ids)] == prompt_ids


def test_a_video_in_the_prompt_is_refused_instead_of_dropped(loaded):
    with pytest.raises(Exception, match="reads text and images, not video"):
        loaded[1].apply_chat_template([{"role": "user", "content": [{"type": "video"}]}], tokenize=False)


# -- seeds and arguments -----------------------------------------------------------------------------------------


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    names = {"a": 1, "b": 1, "c": 2}
    weights = {
        name: (build_tiny_vlm("internvl", tmp_path / name, seed=seed) / "model.safetensors").read_bytes()
        for name, seed in names.items()
    }
    assert torch.equal(torch.rand(3), expected)
    assert weights["a"] == weights["b"]
    assert weights["a"] != weights["c"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"model_type": "llava"},
            "model_type must be one of qwen2_vl, qwen2_5_vl, qwen3_vl, internvl, glm4v, got 'llava'",
        ),
        ({"hidden_size": 40}, "hidden_size must be a multiple of 16, got 40"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"image_size": 40}, "image_size must be a multiple of 2 x patch_size 8, got 40"),
        ({"largest_number": 5}, "largest_number must be at least 9, got 5"),
    ],
)
def test_a_bad_size_is_named(tmp_path, change, sentence):
    options = {"model_type": "qwen2_5_vl"} | change
    with pytest.raises(ValueError, match=sentence):
        build_tiny_vlm(options.pop("model_type"), tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


# -- TRL ---------------------------------------------------------------------------------------------------------


def quiet(tmp_path):
    return {
        "output_dir": str(tmp_path),
        "max_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


@pytest.fixture
def rows():
    from datasets import Dataset

    user = [{"role": "user", "content": "Find the red square."}]
    answer = [{"role": "assistant", "content": COMPLETION}]
    return Dataset.from_list([{"prompt": user, "completion": answer, "image": Image.new("RGB", (32, 32), RED)}] * 4)


def test_sft_learns_from_the_completion_alone(loaded, rows, tmp_path):
    from trl import SFTConfig, SFTTrainer

    model, processor = loaded
    arguments = SFTConfig(**quiet(tmp_path), max_length=None, per_device_train_batch_size=2)
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=processor)
    labels = next(iter(trainer.get_train_dataloader()))["labels"][0]
    assert processor.tokenizer.decode(labels[labels != -100]) == COMPLETION + "<|im_end|>"
    trainer.train()
    assert trainer.state.global_step == 1


def test_grpo_takes_a_step(loaded, rows, tmp_path):
    from trl import GRPOConfig, GRPOTrainer

    model, processor = loaded
    seen = []

    def length(completions, **kwargs):
        seen.extend(completion[0]["content"] for completion in completions)
        return [float(len(text)) for text in seen[-len(completions) :]]

    options = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 3, "beta": 0.0}
    trainer = GRPOTrainer(
        model=model,
        args=GRPOConfig(**quiet(tmp_path), **options),
        train_dataset=rows.remove_columns("completion"),
        processing_class=processor,
        reward_funcs=length,
    )
    trainer.train()
    assert len(seen) == 4
    assert trainer.state.global_step == 1


# -- the command -------------------------------------------------------------------------------------------------


def test_make_writes_the_task_and_says_so(tmp_path, capsys):
    main(["make", "--task", "shapes", "--rows", "8", "--seed", "3", "--out", str(tmp_path / "task")])
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {tmp_path}/task/train.jsonl: 8 rows",
        f"wrote {tmp_path}/task/heldout.jsonl: 2 rows",
    ]


def test_build_reads_its_values_from_a_config_file(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(f"model_type: internvl\nout: {tmp_path}/model\nlayers: 1\n")
    main(["build", "--config", str(tmp_path / "tiny.yaml")])
    assert capsys.readouterr().out == f"wrote {tmp_path}/model: internvl with random weights, and its processor\n"
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert model.config.text_config.num_hidden_layers == 1


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            [],
            f"vlm-entropy-data: unknown command 'no command'; the commands are {', '.join(COMMANDS)}",
        ),
        (
            ["mkae"],
            f"vlm-entropy-data: unknown command 'mkae'; the commands are {', '.join(COMMANDS)}",
        ),
        (["make", "--task", "shapes", "--rows", "0"], "vlm-entropy-data: rows must be at least 1, got 0"),
        (["make", "--config", "no.yaml"], "vlm-entropy-data: [Errno 2] No such file or directory: 'no.yaml'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(tmp_path, argv, sentence):
    flags = ["--out", str(tmp_path / "task")] if len(argv) > 1 else []
    with pytest.raises(SystemExit) as stop:
        main([*argv, *flags])
    assert str(stop.value) == sentence
