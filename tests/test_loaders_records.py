"""The record that the loaders share: question, answer and images."""

import pytest
from loader_files import turns

from vlm_entropy.data.loaders.records import make_record


def test_an_image_marker_stands_in_front_for_each_image_whatever_the_question_had():
    record = make_record("Is <image> in <image>, or <image>?", "yes", image=["b.jpg", "a.jpg"], id=1)
    assert record["image"] == ["b.jpg", "a.jpg"]
    assert record["conversations"][0]["value"] == "<image><image>Is  in , or ?"
    assert "image" not in make_record("<image>Is it?", "yes")
    assert make_record("<image>Is it?", "yes", image=[])["conversations"] == turns("Is it?", "yes")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("<image> ", "yes", None), "the question is ' '"),
        ((None, "yes", None), "the question is None"),
        (("Is it?", "  ", None), "the answer is '  '"),
        (("Is it?", 3, None), "the answer is 3"),
        (("Is it?", "yes", ["a.jpg", None]), "the image is None"),
        (("Is it?", "yes", [b""]), "the image is b''"),
        (("Is it?", "yes", {"url": "x"}), "the image is {'url': 'x'}"),
    ],
)
def test_a_record_needs_a_question_an_answer_and_whole_images(arguments, reason):
    question, answer, image = arguments
    with pytest.raises(ValueError, match=reason):
        make_record(question, answer, image=image)
