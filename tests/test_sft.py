"""What supervised learning trains on: responses with the gold box, or its middle, in the model's coordinates."""

import pytest

from vlm_entropy.data.rows import Row
from vlm_entropy.trainers.sft import response_text

# 200 x 100 pixels, shown to Qwen2.5-VL as 100 x 50
EXAMPLE = {"image_size": [200, 100], "input_size": [100, 50], "solution_space": "absolute"}
QWEN = {**EXAMPLE, "coordinate_space": "absolute_resized"}
INTERNVL = {**EXAMPLE, "coordinate_space": "relative_1000"}


def respond(response, answer="[20, 10, 60, 50]", example=QWEN):
    row = Row("a.jsonl:1", ("a.png",), ((200, 100),), "Where?", answer, {"response": response})
    return response_text(row, example, response_column="response")


@pytest.mark.parametrize(
    ("example", "box", "point"),
    [
        # half of each side
        (QWEN, "[10, 5, 30, 25]", "[20, 15]"),
        # 1000 / 200 = 5 times x, 1000 / 100 = 10 times y
        (INTERNVL, "[100, 100, 300, 500]", "[200, 300]"),
    ],
)
def test_places_are_written_in_the_coordinates_that_the_row_asks_for(example, box, point):
    assert respond("<answer>{box}</answer>", example=example) == f"<answer>{box}</answer>"
    assert respond("click {point} in {box}", example=example) == f"click {point} in {box}"


def test_a_text_without_a_place_is_taken_as_it_is():
    assert respond("a {curly} text", answer="cat") == "a {curly} text"


@pytest.mark.parametrize(
    ("response", "answer", "example", "message"),
    [
        ("{point}", "cat", QWEN, "a.jsonl:1: the response has {point}, but the answer 'cat' is no box"),
        ("{box}", "[0, 0, 1, 1]", {**QWEN, "image_size": None}, "the response has {box}, but .* on an image"),
        ("  ", "cat", QWEN, "column 'response' holds no response to train on, but '  '"),
        (None, "cat", QWEN, "column 'response' holds no response to train on, but None"),
    ],
)
def test_a_response_that_cannot_be_rendered_is_refused(response, answer, example, message):
    with pytest.raises(ValueError, match=message):
        respond(response, answer=answer, example=example)
