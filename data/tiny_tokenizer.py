"""The tokenizer of the tiny models: the words of the synthetic tasks, numbers, and bytes for everything else."""

import re
from collections.abc import Sequence

import vlm_entropy.data.torchvision_compat  # noqa: F401  isort: skip  (must come before transformers)

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .shapes import COLOURS, COLUMNS_OF_IMAGE, ROWS_OF_IMAGE, SHAPES

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "system\n", "user\n", "assistant\n", ", ", "Find")
PROMPT_WORDS = (
    "First output the thinking process in tags and then the final answer Please provide bounding box coordinate of "
    "region this sentence describes object image where is a an point click Output JSON format"
)
WORDS = (*COLOURS, *SHAPES, *ROWS_OF_IMAGE, *COLUMNS_OF_IMAGE, *PROMPT_WORDS.split())


def vocabulary(words: Sequence[str], largest_number: int) -> tuple[list[str], list[str]]:
    """The token strings, all in byte-level spelling, and those of them that are longer than a byte.

    Each of `words` is known with and without the space before it; the 256 bytes cover everything else.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    texts = [*TAGS, *(space + word for word in words for space in ("", " "))]
    pieces = [byte_level.pre_tokenize_str(text)[0][0] for text in dict.fromkeys(texts)]
    numbers = [str(number) for number in range(largest_number + 1)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return list(dict.fromkeys([*letters, *numbers, *pieces])), [piece for piece in pieces if len(piece) > 1]


def build_tokenizer(
    special: dict[str, str], *, largest_number: int = 1000, words: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a byte fallback: any text in, no unknown token, the same text out.

    Bytes are spelled as printable letters first (as in GPT-2), then the text is cut into known words, numbers and,
    where nothing else fits, single bytes. Tags such as `<think>` are ordinary words, so they survive
    `decode(skip_special_tokens=True)` and rewards can parse them.

    Args:
        special: the family's image tokens, attribute name -> token.
        largest_number: numbers above it are spelled digit by digit.
        words: further words worth a single token each, for other tasks.
    """
    tokens, pieces = vocabulary([*WORDS, *words], largest_number)
    longest_first = sorted(map(re.escape, pieces), key=len, reverse=True)
    numbers = "|".join(map(str, range(largest_number, -1, -1)))
    pattern = "|".join([*longest_first, f"(?<![0-9])(?:{numbers})(?![0-9])", "."])
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = [PAD, TURN_START, TURN_END, *special.values()]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens=special,
    )
