"""Train Ming-Tiny's tokenizer: a byte-level BPE over the text of the world, then the released special tokens.

    python -m training.tiny.tokenizer --out DIR

The layout is the released one: ordinary tokens first, then 288 special tokens in the released order. The id of a
special token is the released id minus 126080 plus `NUM_BPE_TOKENS`. The result depends on the seed only.
"""

import argparse
import json
import os
import re
from collections.abc import Iterator

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from ming.cli.arguments import seed
from ming.files import saving

from .questions import FOLLOW_UPS, WORDINGS
from .scenes import COLOURS, KINDS, MOTIONS, NUMBERS, POSITIONS, SIZES
from .sentences import CHINESE, CHINESE_NUMBERS, OPPOSITES, sample_text

NUM_BPE_TOKENS = 736
NUM_RESERVED_TOKENS = 256
MODEL_MAX_LENGTH = 4096
BOS_TOKEN = "<|startoftext|>"
EOS_TOKEN = "<|endoftext|>"
CONTROL_TOKENS = (BOS_TOKEN, EOS_TOKEN, "[CLS]", "[gMASK]")
ROLE_TOKENS = ("<role>", "</role>", "<|arithmetic_start|>", "<|arithmetic_end|>", "<|number_start|>", "<|number_end|>")
MEDIA_TOKENS = (
    "<imagePatch>",
    "<image>",
    "</image>",
    "<video>",
    "</video>",
    "<gen_imagePatch>",
    "<gen_image>",
    "</gen_image>",
    "<imageHere>",
    "<end_of_chunk>",
    "<end_of_audio>",
    "<audioPatch>",
    "<audio>",
    "</audio>",
    "<gen_audioPatch>",
    "<gen_audio>",
    "</gen_audio>",
    "<audioHere>",
    "<framePatch>",
    "<text>",
    "<asr>",
    "<tts>",
)
SPECIAL_TOKENS = (
    *CONTROL_TOKENS,
    *(f"<|reserved_token_{index}|>" for index in range(NUM_RESERVED_TOKENS)),
    *ROLE_TOKENS,
    *MEDIA_TOKENS,
)
# An answer follows "</role>" without a space; inside a sentence the same word has a space before it.
WORDS = tuple(
    dict.fromkeys((*COLOURS, *KINDS, *SIZES, *POSITIONS, *NUMBERS, *MOTIONS, *OPPOSITES, "yes", "no", "the"))
)
ROLES = ("HUMAN", "ASSISTANT")  # one token each, since every turn of the chat format has one
CHINESE_NUMBER = f"([{''.join(CHINESE_NUMBERS.values())}])"
# Prompts about the chat itself.
PROMPTS = (
    "Please recognize the language of this speech and transcribe it. Format: oral.",
    "What is said in the audio? Write down the words. Transcribe this recording.",
    "In the first picture, in the second picture, in the picture, in the video, in the audio.",
    "Answer the spoken question about the picture. Listen and answer the question about the video.",
    "SYSTEM: You are a helpful assistant.",
)
NUM_SAMPLES = 4000
WORD_WEIGHT = 400  # how often each single word is repeated, so that it becomes one token in both forms
SEED = 20250614


def corpus(seed: int = SEED, num_samples: int = NUM_SAMPLES) -> Iterator[str]:
    """Lines of training text: sampled prompts and answers, every wording, and single words in both forms."""
    rng = np.random.default_rng(seed)
    for _ in tqdm(range(num_samples), desc="tokenizer text", unit="sample"):
        for text in sample_text(rng):
            # Chinese has no spaces, so its numbers are separated here to become single tokens, like English ones.
            yield from re.split(CHINESE_NUMBER, text)
    for wordings in (*WORDINGS.values(), *FOLLOW_UPS.values(), PROMPTS):
        for wording in wordings:
            text = re.sub(r" ?\{\w+\}", "", wording)
            yield from (text, text.replace("colour", "color")) * 20
    for word in (*WORDS, *CHINESE.values()):
        yield from (word, f" {word}" if word.isascii() else word) * WORD_WEIGHT
    for role in ROLES:
        yield from (role,) * WORD_WEIGHT


def byte_level_bpe(lines: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens, without special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def train_tokenizer(seed: int = SEED, num_samples: int = NUM_SAMPLES) -> Tokenizer:
    """Train the tokenizer: `NUM_BPE_TOKENS` ordinary tokens and `SPECIAL_TOKENS`.

    Raises:
        ValueError: the text is too small for `NUM_BPE_TOKENS` tokens.
    """
    tokenizer = byte_level_bpe(corpus(seed, num_samples), NUM_BPE_TOKENS)
    if tokenizer.get_vocab_size() != NUM_BPE_TOKENS:
        raise ValueError(f"expected {NUM_BPE_TOKENS} tokens, got {tokenizer.get_vocab_size()}; increase num_samples")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, directory: str | os.PathLike[str]) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into a directory."""
    names = {
        "bos_token": BOS_TOKEN,
        "eos_token": EOS_TOKEN,
        "pad_token": EOS_TOKEN,
        "cls_token": "[CLS]",
    }
    added = {
        str(index): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for index, token in enumerate(SPECIAL_TOKENS, start=NUM_BPE_TOKENS)
    }
    config = {
        "added_tokens_decoder": added,
        "additional_special_tokens": list(ROLE_TOKENS),
        **names,
        "gmask_token": "[gMASK]",
        "clean_up_tokenization_spaces": False,
        "model_max_length": MODEL_MAX_LENGTH,
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    special = {"additional_special_tokens": list(ROLE_TOKENS), **names, "gmask_token": "[gMASK]"}
    with saving(directory) as folder:
        tokenizer.save(str(folder / "tokenizer.json"))
        for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (folder / name).write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Train the tokenizer and write it into a directory."""
    parser = argparse.ArgumentParser(prog="python -m training.tiny.tokenizer", description=main.__doc__)
    parser.add_argument("--out", default=".", help="directory to write into")
    parser.add_argument("--seed", type=seed, default=SEED)
    arguments = parser.parse_args()
    write_tokenizer(train_tokenizer(arguments.seed), arguments.out)


if __name__ == "__main__":
    main()
