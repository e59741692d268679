"""What supervised learning trains on: responses with the gold box, or its middle, in the model's coordinates."""

import pytest

from vlm_entropy.data.families import FAMILIES
from vlm_entropy.data.rows import Row
from vlm_entropy.trainers.sft import response_text

# 200 x 100 pixels, shown to Qwen2.5-VL as 100 x 50
EXAMPLE = {"image_size": [200, 100], "input_size": [100, 50], "solution_space": "absolute"}


def respond(response, answer="[20, 10, 60, 50]", model_type="qwen2_5_vl", example=EXAMPLE):
    row = Row("a.jsonl:1", ("a.png",), ((200, 100),), "Where?", answer, {"response": response})
    return response_text(row, example, family=FAMILIES[model_type], response_column="response")


@pytest.mark.parametrize(
    ("model_type", "box", "point"),
    [
        # half of each side
        ("qwen2_5_vl", "[10, 5, 30, 25]", "[20, 15]"),
        # 1000 / 200 = 5 times x, 1000 / 100 = 10 times y
        ("internvl", "[100, 100, 300, 500]", "[200, 300]"),
    ],
)
def test_places_are_written_in_the_coordinates_of_the_family(model_type, box, point):
    assert respond("<answer>{box}</answer>", model_type=model_type) == f"<answer>{box}</answer>"
    assert respond("click {point} in {box}", model_type=model_type) == f"click {point} in {box}"


def test_a_text_without_a_place_is_taken_as_it_is():
    assert respond("a {curly} text", answer="cat") == "a {curly} text"


@pytest.mark.parametrize(
    ("response", "answer", "example", "message"),
    [
        ("{point}", "cat", EXAMPLE, "a.jsonl:1: the response has {point}, but the answer 'cat' is no box"),
        ("{box}", "[0, 0, 1, 1]", {**EXAMPLE, "image_size": None}, "the response has {box}, but .* on an image"),
        ("  ", "cat", EXAMPLE, "column 'response' holds no response to train on, but '  '"),
        (None, "cat", EXAMPLE, "column 'response' holds no response to train on, but None"),
    ],
)
def test_a_response_that_cannot_be_rendered_is_refused(response, answer, example, message):
    with pytest.raises(ValueError, match=message):
        respond(response, answer=answer, example=example)
