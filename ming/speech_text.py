"""Reply text for a talker: read as words, and cut into pieces short enough to be spoken in one go.

`normalize_speech_text` reads a text as Chinese or English words, `cut_speech_text` cuts it, and `SpeechTextStream`
does both while the text is still being written. `spoken_text` says what is read and what is dropped.
"""

import re
import unicodedata
from itertools import accumulate

from .spoken_blocks import WINDOW, is_wide
from .spoken_kinds import HAN, OPENER
from .spoken_text import ABBREVIATED, TextReader

LETTERS_PER_UNIT = 4  # about as long to say as one Chinese character
SYLLABLE = HAN + "\uac00-\ud7af"
FOLLOWS = "，。！？、：；…,.!?;:)）]】〉》」』”’\"'"
CLOSING = "\"'”’」』》〉）)】]*"
PAUSE_LEVELS = {**dict.fromkeys("。！？…；.!?;", 4), **dict.fromkeys("，、：,:", 3)}
SPACE, CLAUSE_END, SENTENCE_END = 2, 3, 4  # the strength of a cut at a space, a comma and a sentence end
CONJUNCTIONS = ("and", "or", "but")
JOINED = 2  # times `clause_units`: from there on a conjunction counts as a clause end
_LETTER = rf"(?:(?![{SYLLABLE}])[^\W\d_])"
_ATOM = re.compile(rf"\s+|[{SYLLABLE}]|\d|{_LETTER}(?:{_LETTER}|[\u0300-\u036f]|['’](?={_LETTER}))*|.", re.S)
_NO = re.compile(r"(?<![^\W_])[Nn]o\.\Z")


def _raise_if_no_text(text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"the text to speak is a {type(text).__name__}; give a str")


def _raise_if_no_bound(value: object, name: str = "max_units") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; give a whole number of at least 1")


def normalize_speech_text(text: str) -> str:
    """The words of `text` as they are spoken, with pauses as punctuation; "" where there is nothing to say.

    Speech output normalises by itself. Call this to see how a text will be read, or to write transcripts for
    fine-tuning in the form that the talker reads.

    Raises:
        TypeError: `text` is not a string.
        ImportError: a number was found and `wetext` is not installed.
    """
    _raise_if_no_text(text)
    spoken = TextReader().feed(text, final=True).strip()
    return spoken if speech_units(spoken) else ""


def speech_units(text: str) -> int:
    """Length of spoken text: 1 for a Chinese, Japanese or Korean character or a digit; for every other word a quarter
    of its letters, rounded up; nothing for punctuation and spaces."""
    return sum(_atom_units(atom) for atom in _ATOM.findall(text))


def _atom_units(atom: str) -> int:
    return -(-sum(map(str.isalnum, atom)) // LETTERS_PER_UNIT)


def _atoms(text: str, max_units: int) -> list[str]:
    """Characters and words that stay together; words longer than `max_units` come in parts."""
    parts = re.compile(rf"(?:\w\W*){{1,{LETTERS_PER_UNIT * max_units}}}")  # marks stay behind their letter
    return [part for a in _ATOM.findall(text) for part in (parts.findall(a) if a[0].isalpha() else [a])]


def _cut_strength(before: str, following: str) -> int:
    """How good a cut is: 4 sentence end, 3 clause end, 2 space, 1 beside a Chinese character, 0 within a word.

    `following` is the next character, "" at the end of the text. -1: a pause or mark belongs to what is before it.
    """
    stem = before.rstrip()
    spaced = stem != before
    if not stem or (following and (following in FOLLOWS or following.isspace() or _is_mark(following))):
        return -1
    end = stem.rstrip(CLOSING)[-1:]
    level = PAUSE_LEVELS.get(end, 0)
    if level and (end not in ".!?,;:" or spaced or is_wide(following)):
        return 2 if end == "." and ABBREVIATED.search(stem) else level
    if spaced:
        return 2
    return 1 if is_wide(before[-1]) or is_wide(following) else 0


def _ends_sentence(before: str, following: str) -> bool:
    """Whether `before`, which ends like an abbreviation, ends a sentence all the same: "in the U.S. It is", "No. We".

    `following` is the next word.
    """
    is_no = _NO.search(before.rstrip()) and following[:1].isalpha()
    return before[-1].isspace() and bool(is_no or re.fullmatch(OPENER, following))


def _is_mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "M"


def _cuts(atoms: list[str], one_sentence: bool = False) -> list[tuple[int, int, int]]:
    """(number of atoms, their units, strength) of every place to cut at that has something to say before it.

    With `one_sentence`, an abbreviation that ends a sentence counts as its end.
    """
    cuts, units, before = [], 0, ""
    for count, atom in enumerate(atoms, 1):
        units += _atom_units(atom)
        before = (before + atom)[-WINDOW:]
        following = atoms[count] if count < len(atoms) else ""
        strength = _cut_strength(before, following[:1])
        if one_sentence and strength == 2 and _ends_sentence(before, following):
            strength = SENTENCE_END
        if units and strength >= 0:
            cuts.append((count, units, strength))
    return cuts


def _sentences(text: str) -> list[str]:
    """The sentences of a text; what has nothing to say belongs to the sentence before it."""
    atoms, sentences = _ATOM.findall(text), []
    left = sum(map(_atom_units, atoms))
    start = 0
    for count, units, strength in _cuts(atoms, one_sentence=True):
        if strength == SENTENCE_END and units < left and speech_units("".join(atoms[start:count])):
            sentences.append("".join(atoms[start:count]))
            start = count
    return [*sentences, "".join(atoms[start:])]


def cut_speech_text(text: str, max_units: int = 50, one_sentence: bool = False) -> list[str]:
    """Cut normalised text into pieces of at most `max_units` (`speech_units`); [] where there is nothing to say.

    With `one_sentence`, no piece holds more than one sentence, for talkers that stop at the first sentence end. A
    sentence ends at `。！？…；`, and at `.!?;` with a space or a Chinese character behind it, but not behind an
    abbreviation or initial, unless the next word can only begin a sentence ("in the U.S. It is").

    A piece ends at the last sentence end that fits, else at a clause end, a space, a character; a place in the first
    quarter of a piece counts half, because a talker reads very short pieces badly. Joined, the pieces are the text
    without the spaces between them.

    Raises:
        TypeError, ValueError: `text` is not a string, `max_units` is not a positive whole number.
    """
    _raise_if_no_text(text)
    _raise_if_no_bound(max_units)
    if one_sentence:
        return [piece for sentence in _sentences(text) for piece in cut_speech_text(sentence, max_units)]
    atoms = _atoms(text, max_units)
    units = [_atom_units(atom) for atom in atoms]
    pieces, start, left = [], 0, sum(units)
    while left > max_units:
        fits = next(i for i, total in enumerate(accumulate(units[start:])) if total > max_units)  # number of atoms
        cuts = [cut for cut in _cuts(atoms[start : start + fits + 1]) if cut[0] <= fits]
        # Cuts in the first quarter count half; of equal ones the last is taken.
        count = max(cuts, key=lambda cut: (cut[2] * (2 if 4 * cut[1] >= max_units else 1), cut[0]))[0]
        pieces.append("".join(atoms[start : start + count]).strip())
        left -= sum(units[start : start + count])
        start += count
    return [*pieces, "".join(atoms[start:]).strip()] if left else pieces


class SpeechTextStream:
    """Normalises and cuts a reply while it is being written.

    Args:
        max_units: bound of a piece (`speech_units`).
        first_units: the first piece ends at the first clause end that has at least so many units; each further piece
            needs twice as many as the one before, up to `clause_units`.
        one_sentence: no piece holds more than one sentence (`cut_speech_text`), however short it is.
        clause_units: a piece ends at the first clause end that has so many units, or before the first "and", "or" or
            "but" that has twice as many, for talkers that say only so much of a sentence; None: pieces grow to half of
            `max_units`, and conjunctions part nothing.

    Raises:
        ValueError: a bound is not a positive whole number, or `first_units` is above `max_units`.
    """

    def __init__(
        self,
        max_units: int = 50,
        first_units: int = 5,
        one_sentence: bool = False,
        clause_units: int | None = None,
    ):
        _raise_if_no_bound(max_units)
        _raise_if_no_bound(first_units, "first_units")
        if clause_units is not None:
            _raise_if_no_bound(clause_units, "clause_units")
        if first_units > max_units:
            raise ValueError(f"first_units is {first_units}, above max_units, which is {max_units}")
        self.max_units = max_units
        self.one_sentence = one_sentence
        self.conjunctions_part = clause_units is not None
        self.clause_units = max_units // 2 if clause_units is None else clause_units
        self._wanted = first_units if clause_units is None else min(first_units, clause_units)
        self._reader: TextReader | None = TextReader()
        self._spoken = ""  # words that are in no piece yet

    def push(self, delta: str) -> list[str]:
        """Take the next part of the reply, cut anywhere; the pieces that are complete now, often none."""
        _raise_if_no_text(delta)
        if self._reader is None:
            raise ValueError("this stream is finished; make a new one for the next reply")
        spoken = self._reader.feed(delta)
        self._spoken += spoken
        return self._ready() if spoken else []

    def finish(self) -> list[str]:
        """The pieces of all that is left; the stream takes nothing more."""
        if self._reader is None:
            return []
        self._spoken += self._reader.feed("", final=True)
        self._reader = None
        return [*self._ready(), *cut_speech_text(self._spoken, self.max_units, self.one_sentence)]

    def _ready(self) -> list[str]:
        """Take the pieces that no later text can change out of the words."""
        pieces: list[str] = []
        while True:
            atoms, units = self._first_atoms()
            cuts = _cuts(atoms, self.one_sentence)
            count = next((cut[0] for cut in cuts if self._is_piece(*cut[1:], "".join(atoms[cut[0] : cut[0] + 1]))), 0)
            if count:
                text = "".join(atoms[:count])
            elif units > self.max_units:
                whole = "".join(atoms)
                piece = cut_speech_text(whole, self.max_units)[0]
                text = whole[: whole.index(piece) + len(piece)]
            else:
                return pieces
            pieces.append(text.strip())
            self._spoken = self._spoken[len(text) :]
            self._wanted = max(self._wanted, min(2 * self._wanted, self.clause_units))

    def _is_piece(self, units: int, strength: int, following: str) -> bool:
        """Whether a piece may end at a cut of this strength, with so many units before it and a word behind it."""
        if self.conjunctions_part and strength == SPACE and following in CONJUNCTIONS:
            return JOINED * self.clause_units <= units <= self.max_units
        if units > self.max_units or strength < CLAUSE_END:
            return False
        return units >= self._wanted or (self.one_sentence and strength == SENTENCE_END)

    def _first_atoms(self) -> tuple[list[str], int]:
        """The atoms that a piece can hold and the one behind them, and their units."""
        atoms, units = [], 0
        for atom in _ATOM.finditer(self._spoken):
            atoms.append(atom[0])
            units += _atom_units(atom[0])
            if units > self.max_units:
                break
        return atoms, units
