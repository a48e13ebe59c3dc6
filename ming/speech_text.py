"""Reply text for a talker: numbers and symbols to words, and pieces short enough to be read in one go.

`normalize_speech_text` reads a text as Chinese or English words, `cut_speech_text` cuts it, and `SpeechTextStream`
does both while the text is still being written. All of them go through `_Reader`, which handles the text in blocks
whose borders and reading depend only on the `WINDOW` characters on either side: this is why a stream reads exactly
what the whole text reads.

Kept: every letter of every script, accents, every number (as words; digits of other scripts as they are). Dropped:
symbols and emoji that have no reading here, Markdown marks, link targets, the language of a code fence. Punctuation
and line ends become the pauses `，。！？` and `,.!?`; apostrophes and hyphens inside words stay.
"""

import re
import unicodedata
from itertools import accumulate

from .spoken_numbers import (
    ABBREVIATIONS,
    ALWAYS_SPOKEN,
    HAN,
    LATIN,
    READINGS,
    SYMBOLS,
    TOKEN,
    URL_MARKS,
    IncompleteError,
    choose_language,
    read_digits,
    read_integer,
    read_number,
)  # fmt: skip

WINDOW = 64  # characters of context on either side of a block
LETTERS_PER_UNIT = 4  # about as long to say as one Chinese character
SYLLABLE = HAN + "\uac00-\ud7af"
PAUSES = {"，": 1, ",": 1, "。": 2, ".": 2, "！": 3, "!": 3, "？": 3, "?": 3}
WIDE_PAUSES = {",": "，", ".": "。", "!": "！", "?": "？"}
PAUSE_OF = {
    **{c: c for c in PAUSES},
    **dict.fromkeys("、：；", "，"),
    **dict.fromkeys(";:|()（）【】〔〕—→⇒", ","),
    **{"；": "。", "…": ".", "｡": "。"},
}
CLOSERS = "”’」』》〉）)】\\]\"'*_~`"
FOLLOWS = "，。！？、：；…,.!?;:)）]】〉》」』”’\"'"
CLOSING = "\"'”’」』》〉）)】]*"
PAUSE_LEVELS = {**dict.fromkeys("。！？…；.!?;", 4), **dict.fromkeys("，、：,:", 3)}
_LINE_START = re.compile(
    r"(?:>[ \t]+)*(?:\#{1,6}[ \t]+|[-*+•·][ \t]+(?:\[[ xX]\][ \t]+)?|`{3,}[\w+#.-]*[ \t]*(?=\n))?"
)
_ITEM = re.compile(r"(\d{1,3})(?:[.)][ \t]+|[、）])")
_NUMBER_NAME = re.compile(r"(?:电话|热线|号码|拨打?|[编学卡账]号|\b[Cc]all|\b[Dd]ial)[是为：:\s]*\Z")
_NEGATIVE = re.compile(r"[$€£¥]?\.?\d")
_WIDE_END = re.compile(rf"[。！？；，、：…][{CLOSERS}。！？；，、：…\s]*\Z")
_NARROW_END = re.compile(rf"[.!?;,][{CLOSERS}.!?;,]*\s+[{CLOSERS}\s]*\Z")
_SENTENCE_NEXT = re.compile(rf"[{CLOSERS}。！？；，、：….!?;,\s]")
_PLAIN_WORDS = re.compile(r"(?:(?<!\S)[^\W\d_]+(?:['’-][^\W\d_]+)*[,;!?]?[ ]+){2}\Z")
_LETTER = rf"(?:(?![{SYLLABLE}])[^\W\d_])"
_ATOM = re.compile(rf"\s+|[{SYLLABLE}]|\d|{_LETTER}(?:{_LETTER}|[\u0300-\u036f]|['’](?={_LETTER}))*|.", re.S)
_ABBREVIATED = re.compile(r"(?<![A-Za-z])(?:[A-Za-z]|(?i:dr|mrs?|ms|prof|st|vs|etc|no|fig|approx)|\w+(?:\.\w)+)\.\Z")
_COMPOSED = {"<circle>": " {} ", "<fraction>": " {}"}


class _Writer:
    """The words of one block: spaces between words, at most one pause between two words."""

    def __init__(self, last: str):
        self.text = ""
        self.last = last  # what was written before this block, two characters
        self.space = False
        self.apart = False
        self.number = False

    def tail(self) -> str:
        return (self.text or self.last)[-1:]

    def word(self, text: str, apart: bool = False, number: bool = False) -> None:
        """Add a word; `apart` keeps it off a directly preceding or following word: "5G" is "five G"."""
        if not text:
            return
        tail = self.tail()
        joins = tail == "" or tail.isspace() or (_is_wide(tail) and _is_wide(text[0])) or tail in WIDE_PAUSES.values()
        same_script = _is_wide(tail) == _is_wide(text[0])
        if number and self.number and self.space and same_script and not tail.isspace():
            self.text += "，" if _is_wide(tail) else ","  # two numbers would run into one
        if not joins and (self.space or ((apart or number or self.apart) and same_script and tail != "-")):
            self.text += " "
        self.text += text
        self.space, self.apart, self.number = False, apart or number, number

    def pause(self, mark: str) -> None:
        """Add a pause, or make the one at the end stronger; none at the very beginning."""
        tail = (self.text or self.last).rstrip()[-1:]
        if not tail:
            return
        mark = WIDE_PAUSES.get(mark, mark) if _is_wide(tail) or tail in WIDE_PAUSES.values() else mark
        if tail in PAUSES:
            if self.text and PAUSES[mark] > PAUSES[tail]:
                self.text = self.text[:-1] + mark
        else:
            self.text += mark
        self.space, self.apart, self.number = mark in WIDE_PAUSES, False, False


def _is_wide(char: str) -> bool:
    return re.match(f"[{HAN}]", char) is not None


class _Block:
    """One block of cleaned text and its surroundings; `read` gives its words."""

    def __init__(self, before: str, text: str, after: str, complete: bool):
        self.before, self.after, self.complete = before, after, complete
        self.text = re.sub(r"(?<=\d)：(?=\d)", ":", text)

    def around(self, match: re.Match) -> tuple[str, str]:
        """The text on both sides of a token; on the right no further than the one character that a cut waits for."""
        left = (self.before + self.text[: match.start()])[-WINDOW:]
        return left, self.text[match.end() :] + self.after[:1]

    def language(self, match: re.Match) -> str:
        left = (self.before + self.text[: match.start()])[-WINDOW:]
        left += " www" * bool(re.search("[A-Za-z]{4,}", match[0]))  # has words, so is English outside Chinese text
        right = (self.text[match.end() :] + self.after)[:WINDOW]
        return choose_language(left, right, self.complete or len(right) == WINDOW)

    def read(self, last: str) -> str:
        writer = _Writer(last)
        for match in TOKEN.finditer(self.text, self._line_start(writer)):
            _HANDLERS.get(match.lastgroup, _Block.spoken)(self, match, writer)
        ends_open = writer.space and not _is_wide(writer.tail()) and writer.tail() not in WIDE_PAUSES.values()
        return writer.text + " " * (ends_open and writer.tail().strip() != "")

    def _line_start(self, writer: _Writer) -> int:
        """Where the text of this block starts behind the Markdown marks of a new line; reads the number of an item."""
        margin = self.before[len(self.before.rstrip()) :]
        if self.before and "\n" not in margin:
            return 0
        indent = len(self.text) - len(self.text.lstrip())
        start = _LINE_START.match(self.text, indent).end()
        item = _ITEM.match(self.text, start)
        if not item:
            return start
        writer.word(read_integer(item[1], self.language(item)), apart=True)
        writer.pause(",")
        return item.end()

    def spoken(self, match: re.Match, writer: _Writer) -> None:
        """A number with what belongs to it."""
        writer.word(READINGS[match.lastgroup](match, self.language(match)), number=True)

    def number(self, match: re.Match, writer: _Writer) -> None:
        lang = self.language(match)
        left, right = self.around(match)
        model = left[-1:].isascii() and left[-1:].isalpha() and len(match[0]) >= 4  # a flight or a model: CA1234
        named = model or right.startswith("室") or _NUMBER_NAME.search(left)
        digits = named and match[0].isdecimal() and len(match[0]) > 2
        words = read_digits(match[0], lang) if digits else read_number(match[0], lang, right, left)
        writer.word(words, number=True)

    def plain(self, match: re.Match, writer: _Writer) -> None:
        writer.word(match[0].replace("’", "'"))

    def abbreviation(self, match: re.Match, writer: _Writer) -> None:
        writer.word(ABBREVIATIONS[match[0]], apart=True)
        writer.space = True

    def initials(self, match: re.Match, writer: _Writer) -> None:
        writer.word(match[0], apart=True)

    def newline(self, match: re.Match, writer: _Writer) -> None:
        left, right = self.around(match)
        if not right:
            return
        if re.search(r"[a-z,]\Z", left) and re.match("[a-z]", right):  # one line of text, wrapped
            writer.space = True
        else:
            writer.pause(".")

    def gap(self, match: re.Match, writer: _Writer) -> None:
        left, right = self.around(match)
        if match.lastgroup == "space" and _is_wide(left[-1:]) and _is_wide(right[:1]):
            writer.pause(",")
        writer.space = True

    def line_break(self, match: re.Match, writer: _Writer) -> None:
        writer.pause(",")

    def dots(self, match: re.Match, writer: _Writer) -> None:
        left, right = self.around(match)
        extension = re.search(r"[A-Za-z0-9_]\Z", left) and re.match(r"[a-z0-9]|[A-Z]{2}", right)  # main.py
        name = not re.search(r"[\w.]\Z", left) and re.match(LATIN, right)  # .NET
        if match[0] == "." and (extension or name):
            writer.word(URL_MARKS["."][self.language(match) == "en"], apart=True)
        else:
            writer.pause(".")

    def symbols(self, match: re.Match, writer: _Writer) -> None:
        """A run of one symbol that means different things in sums, ranges, words and Markdown."""
        left, right = self.around(match)
        mark = match[0]
        operand_left = re.search(r"[\w%℃°²³)](\s*)\Z", left)
        operand_right = re.match(r"(\s*)[\w.$€£¥(√-]", right)
        both = operand_left and operand_right and bool(operand_left[1]) == bool(operand_right[1])
        sums = operand_left and (operand_left[1] or (left[-1:].isdigit() and right[:1].isdigit()))  # not *emphasis*
        numeric = re.search(rf"\d(?:[%‰°℃℉²³A-Za-z/]{{1,5}}|[{HAN}]{{1,2}})?\s?\Z", left)
        to_number = re.match(r"\s?-?[$€£¥]?\.?\d", right)
        if mark[0] in "-−–—~":
            self._dash(mark, (left, right), bool(numeric and to_number), writer, match)
        elif mark in (*SYMBOLS, "==", "===", "X") and both and (mark != "*" or sums):
            writer.word(SYMBOLS.get(mark, SYMBOLS.get(mark[0].lower()))[self.language(match) == "en"], apart=True)
        else:
            writer.space = True

    def _dash(self, mark: str, around: tuple[str, str], numeric: bool, writer: _Writer, match: re.Match) -> None:
        left, right = around
        before, after = left[-1:], right[:1]
        if numeric and mark[0] != "—":
            total = mark[0] in "-−" and re.match(r"\s*[\d.]+(?:\s*[-+*/×÷]\s*[\d.]+)*\s*=", right)
            lang = self.language(match)
            writer.word(SYMBOLS["-"][lang == "en"] if total else "到" if lang == "zh" else "to", apart=True)
            if mark in ("--", "−−"):
                writer.word("负" if lang == "zh" else "minus", apart=True)
        elif mark == "~" and re.match(r"\s?[$€£¥]?\d", right):
            writer.word("约" if self.language(match) == "zh" else "about", apart=True)
        elif mark in "-−" and _NEGATIVE.match(right) and not re.search(r"[A-Za-z0-9_)]\Z", left):
            writer.word("负" if self.language(match) == "zh" else "minus", apart=True)
        elif mark in "-−–" and before.isalnum() and after.isalnum():
            whole = before.isalpha() and after.isalpha() and not _is_wide(before) and not _is_wide(after)
            if whole:
                writer.text += "-"
            else:
                writer.space = True
        elif mark == "-" and before in "([|" or mark == "~" and not before.isalnum():
            writer.space = True
        elif right.strip():
            writer.pause(",")

    def other(self, match: re.Match, writer: _Writer) -> None:
        mark = match[0]
        left, right = self.around(match)
        category = unicodedata.category(mark)[0]
        spoken = ALWAYS_SPOKEN.get(mark)
        spoken = spoken or (SYMBOLS.get(mark) if mark != "x" and self._compares(mark, left, right) else None)
        if mark in PAUSE_OF or (mark == ">" and re.search(r"[-=]\Z", left)):  # that is an arrow
            if mark in PAUSES or right.strip():
                writer.pause(PAUSE_OF.get(mark, ","))
        elif category == "M":
            writer.text += mark
        elif category in "LN":
            writer.word(mark)
        elif mark == "#":
            self._hash(match, writer)
        elif spoken:
            writer.word(spoken[self.language(match) == "en"], apart=True)
        elif mark == "/" and _is_wide(left[-1:]):
            writer.pause(",")
        elif mark not in "\"'“”‘’*`「」『』《》":
            writer.space = True

    def _compares(self, mark: str, left: str, right: str) -> bool:
        """Whether `mark` stands between two operands, or before a number as in "<5" and "+86"."""
        operand_left, operand_right = re.search(r"[\w%℃)]\s*\Z", left), re.match(r"\s*[\w$€£¥(.-]", right)
        if mark == "+":
            return bool(re.search(r"[A-Za-z0-9+]\Z", left) or re.match(r"\d", right) or operand_left and operand_right)
        if mark == "/":
            return bool(re.search(r"\d\s*\Z", left) and operand_right)
        number = re.match(r"\s*-?\.?\d", right) or (operand_right and re.search(r"\d[%℃]?\s*\Z", left))
        spaced = re.search(r"\w\s+\Z", left) and re.match(r"\s+\w", right)
        return bool(number or spaced or (mark not in "<>" and operand_left and operand_right))

    def _hash(self, match: re.Match, writer: _Writer) -> None:
        left, right = self.around(match)
        if re.match(r"\d", right):
            writer.word("number" if self.language(match) == "en" else "第", apart=True)
        elif re.search(r"(?<![A-Za-z])[CFJ]\Z", left) and not re.match(r"\w", right):
            writer.word("sharp", apart=True)
        else:
            writer.space = True


_HANDLERS = {
    "link": lambda block, match, writer: None,
    "br": _Block.line_break,
    "number": _Block.number,
    "abbreviation": _Block.abbreviation,
    "initials": _Block.initials,
    "han": _Block.plain,
    "word": _Block.plain,
    "newline": _Block.newline,
    "space": _Block.gap,
    "dots": _Block.dots,
    "run": _Block.symbols,
    "times": _Block.symbols,
    "other": _Block.other,
}


def _clean(text: str) -> str:
    """Half-width letters, digits and symbols; composed numbers (①, ½, Ⅳ) spelled out; invisible characters gone."""
    if text.isascii():
        return text.replace("\r", " ")
    cleaned = []
    for char in text:
        category = unicodedata.category(char)
        composed = unicodedata.decomposition(char).partition(" ")[0]
        if "\uff01" <= char <= "\uff5e" and char not in PAUSE_OF:
            char = chr(ord(char) - 0xFEE0)
        elif category == "Cf" or char in "\ufe0f\u20e3":
            char = ""
        elif (category in ("No", "Nl") and char not in "²³") or composed == "<font>":
            char = _COMPOSED.get(composed, "{}").format(unicodedata.normalize("NFKC", char).replace("⁄", "/"))
        cleaned.append({"￥": "¥", "〜": "~", "\r": " "}.get(char, char))
    return "".join(cleaned)


def _is_cut(text: str, position: int, final: bool) -> bool | None:
    """Whether a block may end before `position`; None if that depends on text to come."""
    if position >= len(text):
        return None
    before, following = text[max(0, position - WINDOW) : position], text[position]
    if _is_wide(following) and _is_wide(before[-1]):
        if len(before) < 5 or not all(map(_is_wide, before[-5:])):
            return False
        for char in text[position : position + 5]:
            if char in PAUSE_OF:
                return True
            if not _is_wide(char):
                return False
        return None if position + 5 > len(text) and not final else position + 5 <= len(text)
    if before[-1] == " " and following.isalpha() and not _is_wide(following) and _PLAIN_WORDS.search(before):
        return True
    if following.isspace() or (_SENTENCE_NEXT.match(following) and "\n" not in before[len(before.rstrip()) :]):
        return False
    if "\n" in before[len(before.rstrip()) :]:
        return True
    return _ends_clause(before, following)


def _ends_clause(before: str, following: str) -> bool:
    if _WIDE_END.search(before):
        return not (before[-1] == "：" and following.isdigit() and before[-2:-1].isdigit())
    narrow = _NARROW_END.search(before)
    if not narrow or _ABBREVIATED.search(before[: narrow.start() + 1]):
        return False
    after_digit = before[: narrow.start()][-1:].isdigit() and narrow[0][0] == ","
    return not (following.isdigit() and (after_digit or narrow[0][0] == "."))


class _Reader:
    """Normalises text that arrives in parts; only what no later text can change is given out."""

    def __init__(self):
        self._text = ""
        self._start = 0  # of the block that is being collected
        self._scan = 1  # the first position that is not known to be inside that block
        self._last = ""

    def feed(self, text: str, final: bool = False) -> str:
        self._text += _clean(text)
        spoken = []
        while self._start < len(self._text):
            end = self._find_end(final)
            if end is None:
                break
            after = self._text[end : end + WINDOW]
            before = self._text[max(0, self._start - WINDOW) : self._start]
            block = _Block(before, self._text[self._start : end], after, final)
            try:
                spoken.append(block.read(self._last))
            except IncompleteError:
                break
            self._last = (self._last + spoken[-1])[-2:]
            self._start, self._scan = end, end + 1
        drop = max(0, self._start - WINDOW)
        self._text, self._start, self._scan = self._text[drop:], self._start - drop, self._scan - drop
        return "".join(spoken)

    def _find_end(self, final: bool) -> int | None:
        for position in range(self._scan, len(self._text)):
            cut = _is_cut(self._text, position, final)
            self._scan = position
            if cut is None:
                return None
            if cut:
                return position
        self._scan = max(self._scan, len(self._text))
        return len(self._text) if final else None


def _check(text: object, max_units: int, name: str = "max_units") -> None:
    if not isinstance(text, str):
        raise TypeError(f"the text to speak is a {type(text).__name__}; give a str")
    if isinstance(max_units, bool) or not isinstance(max_units, int) or max_units < 1:
        raise ValueError(f"{name} is {max_units!r}; give a whole number of at least 1")


def normalize_speech_text(text: str) -> str:
    """The words of `text` as they are spoken, with pauses as punctuation; "" where there is nothing to say.

    Raises:
        TypeError: `text` is not a string.
        ImportError: a number was found and `wetext` is not installed.
    """
    _check(text, 1)
    spoken = _Reader().feed(text, final=True).strip()
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
    if level and (end not in ".!?,;:" or spaced or _is_wide(following)):
        return 2 if end == "." and _ABBREVIATED.search(stem) else level
    return 2 if spaced else int(_is_wide(before[-1]) or _is_wide(following))


def _is_mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "M"


def _cuts(atoms: list[str]) -> list[tuple[int, int, int]]:
    """(number of atoms, their units, strength) of every place to cut at that has something to say before it."""
    cuts, units, before = [], 0, ""
    for count, atom in enumerate(atoms, 1):
        units += _atom_units(atom)
        before = (before + atom)[-WINDOW:]
        following = atoms[count][0] if count < len(atoms) else ""
        strength = _cut_strength(before, following)
        if units and strength >= 0:
            cuts.append((count, units, strength))
    return cuts


def cut_speech_text(text: str, max_units: int = 50) -> list[str]:
    """Cut normalised text into pieces of at most `max_units` (`speech_units`); [] where there is nothing to say.

    A piece ends at the last sentence end that fits, else at a clause end, a space, a character; a place in the first
    quarter of a piece counts half, because a talker reads very short pieces badly. Joined, the pieces are the text
    without the spaces between them.

    Raises:
        TypeError, ValueError: `text` is not a string, `max_units` is not a positive whole number.
    """
    _check(text, max_units)
    atoms = _atoms(text, max_units)
    units = [_atom_units(atom) for atom in atoms]
    pieces, start, left = [], 0, sum(units)
    while left > max_units:
        fits = next(i for i, total in enumerate(accumulate(units[start:])) if total > max_units)  # number of atoms
        cuts = [cut for cut in _cuts(atoms[start : start + fits + 1]) if cut[0] <= fits]
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
            needs twice as many as the one before, up to half of `max_units`.

    Raises:
        ValueError: a bound is not a positive whole number, or `first_units` is above `max_units`.
    """

    def __init__(self, max_units: int = 50, first_units: int = 5):
        _check("", max_units)
        _check("", first_units, "first_units")
        if first_units > max_units:
            raise ValueError(f"first_units is {first_units}, above max_units, which is {max_units}")
        self.max_units = max_units
        self._wanted = first_units
        self._reader: _Reader | None = _Reader()
        self._spoken = ""  # words that are in no piece yet

    def push(self, delta: str) -> list[str]:
        """Take the next part of the reply, cut anywhere; the pieces that are complete now, often none."""
        _check(delta, 1)
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
        pieces = [*self._ready(), *cut_speech_text(self._spoken, self.max_units)]
        self._spoken = ""
        return pieces

    def _ready(self) -> list[str]:
        pieces = []
        while True:
            atoms, units = [], 0
            for atom in _ATOM.finditer(self._spoken):  # no more than a piece can hold, and what comes next
                atoms.append(atom[0])
                units += _atom_units(atom[0])
                if units > self.max_units:
                    break
            cuts = [cut for cut in _cuts(atoms) if cut[2] >= 3 and self._wanted <= cut[1] <= self.max_units]
            if not cuts and units <= self.max_units:
                return pieces
            text = "".join(atoms)
            if cuts:
                text = "".join(atoms[: cuts[0][0]])
            else:
                piece = cut_speech_text(text, self.max_units)[0]
                text = text[: text.index(piece) + len(piece)]
            pieces.append(text.strip())
            self._spoken = self._spoken[len(text) :]
            self._wanted = max(self._wanted, min(2 * self._wanted, self.max_units // 2))
