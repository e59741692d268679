"""Rows of several rollouts as one rollout: nothing of a row is lost, and the policy finds them as likely as before."""

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pillow
from support import FAST, uneven_reward
from transformers import AutoModelForImageTextToText

from vlm_entropy.data.tiny import build_tiny_vlm
from vlm_entropy.trainers import EntropyGRPOConfig, EntropyGRPOTrainer
from vlm_entropy.trainers.rollouts import join_rollouts

MODEL_TYPES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "glm4v"]
PAD = 99


def toy(prompts, completions, **entries):
    """A rollout of text with the given token ids, padded as TRL pads."""
    widths = max(map(len, prompts)), max(map(len, completions))
    return {
        "prompt_ids": torch.tensor([[PAD] * (widths[0] - len(ids)) + ids for ids in prompts]),
        "prompt_mask": torch.tensor([[0] * (widths[0] - len(ids)) + [1] * len(ids) for ids in prompts]),
        "completion_ids": torch.tensor([ids + [PAD] * (widths[1] - len(ids)) for ids in completions]),
        "completion_mask": torch.tensor([[1] * len(ids) + [0] * (widths[1] - len(ids)) for ids in completions]),
        "num_items_in_batch": torch.tensor(sum(map(len, completions))),
        **entries,
    }


def test_prompts_are_padded_on_the_left_and_everything_of_the_completion_on_the_right():
    short = toy([[1], [2]], [[3], [4]], advantages=torch.tensor([0.5, -0.5]))
    wide = toy([[5, 6, 7]], [[8, 9]], advantages=torch.tensor([0.25]))
    per_token = {
        "tool_mask": (0, 1),
        "old_per_token_logps": (-1.0, 0.0),
        "ref_per_token_logps": (-2.0, 0.0),
        "sampling_per_token_logps": (-3.0, 0.0),
        "importance_sampling_ratio": (2.0, 1.0),
    }
    for name, (value, _) in per_token.items():
        short[name], wide[name] = torch.full((2, 1), value), torch.full((1, 2), value)
    joined = join_rollouts([(wide, [0]), (short, [1])], pad_id=PAD)
    assert joined.pop("prompt_ids").tolist() == [[5, 6, 7], [PAD, PAD, 2]]
    assert joined.pop("prompt_mask").tolist() == [[1, 1, 1], [0, 0, 1]]
    assert joined.pop("completion_ids").tolist() == [[8, 9], [4, PAD]]
    assert joined.pop("completion_mask").tolist() == [[1, 1], [1, 0]]
    assert joined.pop("advantages").tolist() == [0.25, -0.5]
    # The padding is TRL's, so that the mean of a ratio or mask over padding too would be the same.
    expected = {name: [[value, value], [value, padding]] for name, (value, padding) in per_token.items()}
    assert {name: value.tolist() for name, value in joined.items()} == expected


def test_a_ratio_per_sequence_stays_one_number_per_row():
    short = toy([[1]], [[3]], importance_sampling_ratio=torch.tensor([[0.5]]))
    wide = toy([[2]], [[3, 4]], importance_sampling_ratio=torch.tensor([[2.0]]))
    joined = join_rollouts([(short, [0]), (wide, [0])], pad_id=PAD)
    assert joined["completion_ids"].shape == (2, 2)
    assert joined["importance_sampling_ratio"].tolist() == [[0.5], [2.0]]


def test_token_types_are_padded_on_both_sides():
    # Prompts of 2 and 1 tokens, completions of 1 and 2; the types of the rows are told apart by their numbers.
    first = toy([[1, 1]], [[3]], mm_token_type_ids=torch.tensor([[1, 2, 3]]))
    second = toy([[2]], [[3, 4]], mm_token_type_ids=torch.tensor([[4, 5, 6]]))
    joined = join_rollouts([(first, [0]), (second, [0])], pad_id=PAD)
    assert joined["mm_token_type_ids"].tolist() == [[1, 2, 3, 0], [0, 4, 5, 6]]


def test_flat_image_tensors_follow_their_rows_beside_rows_of_text():
    # Qwen: row 0 has an image of 1 x 1 patches, row 1 none, row 2 one of 1 x 2 and one of 1 x 1.
    images = toy(
        [[1], [2], [3]],
        [[4], [5], [6]],
        pixel_values=torch.tensor([[10.0], [20.0], [21.0], [22.0]]),
        image_grid_thw=torch.tensor([[1, 1, 1], [1, 1, 2], [1, 1, 1]]),
        num_images=[1, 0, 2],
        mm_token_type_ids=torch.tensor([[1, 0], [0, 0], [1, 0]]),
    )
    text = toy([[7, 8]], [[9]])
    joined = join_rollouts([(images, [2]), (text, [0]), (images, [1, 0])], pad_id=PAD)
    assert joined["num_images"] == [2, 0, 0, 1]
    assert joined["pixel_values"].flatten().tolist() == [20.0, 21.0, 22.0, 10.0]
    assert joined["image_grid_thw"].tolist() == [[1, 1, 2], [1, 1, 1], [1, 1, 1]]
    assert joined["mm_token_type_ids"].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_internvl_tiles_follow_their_rows_also_where_trl_left_their_numbers_out():
    tiled = toy([[1], [2]], [[3], [4]], pixel_values=torch.arange(4.0).view(4, 1, 1, 1))
    tiled |= {"num_images": [1, 1], "num_tiles": [3, 1]}
    plain = toy([[5], [6]], [[7], [8]], pixel_values=torch.arange(10.0, 12).view(2, 1, 1, 1), num_images=[2, 0])
    text = toy([[9]], [[9]])
    joined = join_rollouts([(plain, [0]), (text, [0]), (tiled, [1, 0]), (plain, [1])], pad_id=PAD)
    assert joined["pixel_values"].flatten().tolist() == [10.0, 11.0, 3.0, 0.0, 1.0, 2.0]
    assert joined["num_tiles"] == [2, 0, 1, 3, 0]
    assert joined["num_images"] == [2, 0, 1, 1, 0]


def test_an_entry_that_only_some_rollouts_have_is_refused():
    with pytest.raises(ValueError, match="Only some of the rollouts to join have the entry 'scale'"):
        join_rollouts([(toy([[1]], [[2]], scale=torch.ones(1)), [0]), (toy([[1]], [[2]]), [0])], pad_id=PAD)


class Joining(EntropyGRPOTrainer):
    """Samples the prompts at hand, others with more images, and others without any, and joins some of each."""

    def __init__(self, *args, others, **kwargs):
        super().__init__(*args, **kwargs)
        self.others = others

    def resample(self, scored, *, score):
        parts = [scored, *(score([row for row in rows for _ in range(2)]) for rows in self.others)]
        before = [self.forward_rollout(part.rollout) for part in parts]
        order = [(1, [3, 0]), (0, [1]), (2, [0, 1]), (0, [0, 3])]
        pad_id = self.processing_class.tokenizer.pad_token_id
        joined = join_rollouts([(parts[part].rollout, rows) for part, rows in order], pad_id=pad_id)
        after = self.forward_rollout(joined)
        rows = [(before[part], row) for part, chosen in order for row in chosen]
        self.differences = [
            (after.logps[place][after.mask[place]] - policy.logps[row][policy.mask[row]]).abs().max().item()
            for place, (policy, row) in enumerate(rows)
        ]
        for name in ("old_per_token_logps", "ref_per_token_logps"):
            self.differences.append((after.logps - joined[name])[after.mask].abs().max().item())
        self.parts, self.joined = [part.rollout for part in parts], joined
        return scored


def example(question, *sizes):
    images = [Pillow.effect_noise(size, 64).convert("RGB") for size in sizes]
    return {"prompt": [{"role": "user", "content": question}], "images": images}


@pytest.fixture(scope="module", params=MODEL_TYPES)
def joining(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("joining")
    build_tiny_vlm(request.param, folder / "model", hidden_size=32)
    model = AutoModelForImageTextToText.from_pretrained(folder / "model")
    with torch.no_grad():
        model.get_input_embeddings().weight *= 8
    model.save_pretrained(folder / "model")
    text = Value("string")
    features = Features({"prompt": List({"role": text, "content": text}), "images": List(Image())})
    data = Dataset.from_list([example("Find red.", (32, 32)), example("Find the blue square.")], features=features)
    options = {"max_steps": 1, "num_generations": 2, "shuffle_dataset": False, "num_iterations": 2, "beta": 0.1}
    trainer = Joining(
        model=str(folder / "model"),
        reward_funcs=[uneven_reward],
        args=EntropyGRPOConfig(output_dir=str(folder / "out"), **{**FAST, **options}),
        train_dataset=data,
        others=[
            [example("Point at it, the circle.", (64, 32), (32, 32)), example("Find.", (32, 96))],
            [example("Is this an object where the blue circle is?")],
        ],
    )
    trainer.train()
    return trainer


def test_joined_rows_are_as_likely_as_before(joining):
    assert "pixel_values" not in joining.parts[2]
    assert "num_tiles" not in joining.parts[0]  # InternVL has it in the second part alone
    assert len(joining.differences) == 7 + 2
    # float64; a wrong picture, position or mask moves log-probs by 1e-3 and more.
    assert max(joining.differences) < 1e-9


def test_two_halves_of_a_rollout_make_the_rollout(joining):
    for rollout in [*joining.parts, joining.joined]:
        rows = list(range(rollout["prompt_ids"].size(0)))
        half = len(rows) // 2
        joined = join_rollouts([(rollout, rows[:half]), (rollout, rows[half:])], pad_id=PAD)
        assert list(joined) == [name for name in rollout if name != "num_items_in_batch"]
        for name, value in joined.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, rollout[name], rtol=0, atol=0)
            else:
                assert value == rollout[name]
