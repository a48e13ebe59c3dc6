"""Byte-pair encoding of speech codes: 50 codes per second <-> about a third fewer ids for the talker.

Every speech code has one character. A BPE of `tokenizers`, whose tokens are runs of codes, encodes the string of them.

Letters: T codes, N ids.
"""

import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, trainers

from .files import finish_saving, saving

TOKENIZER_FILE = "tokenizer.json"
MAPPING_FILE = "char_mapping.txt"
FIRST_CHARACTER = 0x4E00  # of trained vocabularies; the CJK block has no spaces, marks or normal forms
MAX_TRAINED_CODES = 0x9FA6 - FIRST_CHARACTER  # 20,902
UNKNOWN_MODES = ("error", "drop")


def read_mapping(path: str | os.PathLike) -> list[str]:
    """Read a `char_mapping.txt`: one line `code TAB character` for every code from 0 -> characters in code order.

    Raises:
        ValueError: a line of another form, or codes that are not 0, 1, 2, ... each once.
    """
    characters = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        line = line.removesuffix("\r")
        if not line:
            continue
        code, tab, character = line.partition("\t")
        if not tab or not code.isdecimal() or len(character) != 1 or int(code) in characters:
            raise ValueError(f"{path}, line {number}: {line!r} is no new 'code<TAB>character'")
        characters[int(code)] = character
    if not characters or sorted(characters) != list(range(len(characters))):
        raise ValueError(f"{path}: the {len(characters)} codes must be 0, 1, 2, ... without a gap")
    return [characters[code] for code in range(len(characters))]


def _integers(values: Sequence[int] | torch.Tensor, what: str) -> list[int]:
    if isinstance(values, torch.Tensor) and values.ndim == 1:
        values = values.tolist()
    try:
        return [operator.index(value) for value in values]
    except TypeError as error:
        shape = f" of shape {tuple(values.shape)}" if hasattr(values, "shape") else ""
        raise ValueError(
            f"{what} must be one flat sequence of integers, got {type(values).__name__}{shape}"
        ) from error


class CodecBPE:
    """Speech codes <-> ids of runs of codes; lossless for the codes that the vocabulary holds.

    Args:
        tokenizer: BPE over the characters, without spaces inside its tokens.
        characters: the character of every code, in code order.

    Raises:
        ValueError: a character used twice, ids with gaps, or a token with a character that no code has.
    """

    def __init__(self, tokenizer: Tokenizer, characters: Sequence[str]):
        self.tokenizer = tokenizer
        self.characters = list(characters)
        code_of = {character: code for code, character in enumerate(self.characters)}
        if len(code_of) != len(self.characters):
            twice = sorted({c for c in self.characters if self.characters.count(c) > 1})
            raise ValueError(f"the characters {twice} stand for more than one code; every code needs its own")
        vocabulary = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda entry: entry[1])
        if [index for _, index in vocabulary] != list(range(len(vocabulary))):
            raise ValueError(f"the {len(vocabulary)} ids of the speech vocabulary must be 0, 1, 2, ... without a gap")
        special = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._codes_of_ids: list[list[int]] = [[] for _ in vocabulary]  # special tokens stand for no code
        for token, index in vocabulary:
            if index in special:
                continue
            unknown = [character for character in token if character not in code_of]
            if unknown:
                raise ValueError(f"token {token!r} (id {index}) holds {unknown}, which {MAPPING_FILE} has no code for")
            self._codes_of_ids[index] = [code_of[character] for character in token]
        self._lengths = torch.tensor([len(codes) for codes in self._codes_of_ids], dtype=torch.int64)
        self._encodable = torch.zeros(len(self.characters), dtype=torch.bool)
        self._encodable[[codes[0] for codes in self._codes_of_ids if len(codes) == 1]] = True

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self._codes_of_ids)

    @property
    def num_codes(self) -> int:
        """Number of codes that have a character; not all of them need be in the vocabulary, see `encodable`."""
        return len(self.characters)

    @property
    def lengths(self) -> torch.Tensor:
        """int64 [vocab_size]: number of codes (20 ms each) that an id stands for; 0 for special tokens."""
        return self._lengths.clone()

    @property
    def encodable(self) -> torch.Tensor:
        """bool [num_codes]: whether the vocabulary holds a code. The released one holds 894 of 5,862."""
        return self._encodable.clone()

    def encode(self, codes: Sequence[int] | torch.Tensor, unknown: str = "error") -> list[int]:
        """Speech codes [T] -> ids [N], N <= T.

        Args:
            codes: integers in 0..num_codes - 1, a list or an integer tensor [T].
            unknown: what to do with codes that the vocabulary does not hold: `"error"` refuses them, `"drop"` leaves
                them out as the released code does. Real recordings have a few of them with the released vocabulary.

        Raises:
            ValueError: no flat sequence of integers, a code without a character, or (`"error"`) without an id.
        """
        if unknown not in UNKNOWN_MODES:
            raise ValueError(f"unknown={unknown!r} is not supported; accepted are {', '.join(UNKNOWN_MODES)}")
        codes = _integers(codes, "speech codes")
        outside = sorted({code for code in codes if not 0 <= code < self.num_codes})
        if outside:
            raise ValueError(f"speech codes {outside} are unknown; accepted are 0..{self.num_codes - 1}")
        missing = sorted({code for code in codes if not self._encodable[code]})
        if missing and unknown == "error":
            raise ValueError(
                f"speech codes {missing} are not in the vocabulary, which holds {int(self._encodable.sum())} of "
                f"{self.num_codes} codes; encode with unknown='drop' to leave them out"
            )
        dropped = set(missing)
        text = "".join(self.characters[code] for code in codes if code not in dropped)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int] | torch.Tensor) -> list[int]:
        """Ids [N] -> speech codes [T]; special tokens stand for none.

        Raises:
            ValueError: no flat sequence of integers, or an id outside the vocabulary.
        """
        ids = _integers(ids, "speech ids")
        outside = sorted({index for index in ids if not 0 <= index < self.vocab_size})
        if outside:
            raise ValueError(f"speech ids {outside} are outside the vocabulary; accepted are 0..{self.vocab_size - 1}")
        return [code for index in ids for code in self._codes_of_ids[index]]

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike | tuple[str | os.PathLike, str | os.PathLike]) -> "CodecBPE":
        """Read `tokenizer.json` and `char_mapping.txt`.

        Args:
            source: the folder of the two files, or the paths of the two in this order.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: a file is malformed.
        """
        if isinstance(source, (tuple, list)):
            tokenizer_file, mapping_file = map(Path, source)
        else:
            finish_saving(source)
            tokenizer_file, mapping_file = Path(source) / TOKENIZER_FILE, Path(source) / MAPPING_FILE
        for path in (mapping_file, tokenizer_file):
            if not path.is_file():
                raise FileNotFoundError(
                    f"there is no {path}; a speech vocabulary is {TOKENIZER_FILE} and {MAPPING_FILE} in one folder"
                )
        characters = read_mapping(mapping_file)
        text = tokenizer_file.read_text(encoding="utf-8")
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"{tokenizer_file} is no tokenizer: {error}") from error
        return cls(tokenizer, characters)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write `tokenizer.json` and `char_mapping.txt` into a folder, which is made if need be."""
        lines = (f"{code}\t{character}\n" for code, character in enumerate(self.characters))
        with saving(directory) as folder:
            self.tokenizer.save(str(folder / TOKENIZER_FILE))
            (folder / MAPPING_FILE).write_text("".join(lines), encoding="utf-8", newline="\n")

    @classmethod
    def train(cls, sequences: Iterable[Sequence[int] | torch.Tensor], num_codes: int, vocab_size: int) -> "CodecBPE":
        """Learn the most frequent runs of codes. Id c < num_codes is code c; equal input gives an equal vocabulary.

        Args:
            sequences: speech codes [T] of many utterances; no run crosses the end of one.
            num_codes: codes are 0..num_codes - 1; all of them become encodable.
            vocab_size: `num_codes` plus the number of runs.

        Raises:
            ValueError: sizes that do not fit, unknown codes, or too little data for that many runs.
        """
        if not 1 <= num_codes <= MAX_TRAINED_CODES:
            raise ValueError(f"num_codes={num_codes} must be in 1..{MAX_TRAINED_CODES}")
        if vocab_size < num_codes:
            raise ValueError(f"vocab_size={vocab_size} must be at least num_codes={num_codes}")
        characters = [chr(FIRST_CHARACTER + code) for code in range(num_codes)]
        texts = []
        for sequence in sequences:
            codes = _integers(sequence, "speech codes")
            outside = sorted({code for code in codes if not 0 <= code < num_codes})
            if outside:
                raise ValueError(f"speech codes {outside} are unknown; accepted are 0..{num_codes - 1}")
            texts.append("".join(characters[code] for code in codes))
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=characters, show_progress=False)
        tokenizer.train_from_iterator(texts, trainer, length=len(texts))
        if tokenizer.get_vocab_size() != vocab_size:
            raise ValueError(
                f"{len(texts)} sequences give {tokenizer.get_vocab_size()} ids, fewer than vocab_size={vocab_size}; "
                "pass more sequences or a smaller vocab_size"
            )
        return cls(tokenizer, characters)
