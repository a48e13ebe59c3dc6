"""Blocks of text that are read one at a time, and the writer of their words.

A block is read with at most `WINDOW` characters of context on either side, so that a text that arrives in parts is
read as the whole text is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from .spoken_kinds import HAN, Token
from .spoken_language import OF_NUMBER, choose_language

WINDOW = 64  # characters of context on either side of a block
PAUSES = {"，": 1, ",": 1, "。": 2, ".": 2, "！": 3, "!": 3, "？": 3, "?": 3}  # spoken pauses by their strength
WIDE_PAUSES = {",": "，", ".": "。", "!": "！", "?": "？"}
PAUSE_OF = {  # punctuation -> the pause that it becomes
    **{c: c for c in PAUSES},
    **dict.fromkeys("、：；", "，"),
    **dict.fromkeys(";:|()（）【】〔〕—→⇒", ","),
    **{"；": "。", "…": ".", "｡": "。"},
}
_HEADING = re.compile(r"\s*(?:>[ \t]+)*\#{1,6}[ \t]")
OF_LETTERS = ("url", "decade", "network", "code_number")  # kinds of tokens that count as English words
_WIDE = re.compile(f"[{HAN}]")


def is_wide(char: str) -> bool:
    """Whether a text starts with a Chinese or Japanese character."""
    return _WIDE.match(char) is not None


class Writer:
    """The words of one block: spaces between words, at most one pause between two words.

    Args:
        last: the two characters that were written before this block.

    Attributes:
        text: what is written of this block.
        space: a space belongs before the next word.
        apart: the last word keeps off the next one.
        number: the last word is a number.
    """

    def __init__(self, last: str):
        self.text = ""
        self.last = last
        self.space = False
        self.apart = False
        self.number = False

    def tail(self) -> str:
        """The last character, "" at the very beginning."""
        return (self.text or self.last)[-1:]

    def word(self, text: str, apart: bool = False, number: bool = False) -> None:
        """Add a word; `apart` keeps it off a directly preceding or following word: "5G" is "five G"."""
        if not text:
            return
        tail = self.tail()
        same_script = is_wide(tail) == is_wide(text[0])
        if number and self.number and self.space and same_script and not tail.isspace():
            self.text += "，" if is_wide(tail) else ","  # two numbers would run into one
        if self._needs_space(tail, text, apart or number):
            self.text += " "
        self.text += text
        self.space, self.apart, self.number = False, apart or number, number

    def _needs_space(self, tail: str, text: str, apart: bool) -> bool:
        """Whether a space belongs between `tail`, the last character, and the word `text`."""
        if tail == "" or tail.isspace() or tail in WIDE_PAUSES.values() or (is_wide(tail) and is_wide(text[0])):
            return False
        kept_off = (apart or self.apart) and is_wide(tail) == is_wide(text[0]) and tail != "-"
        return self.space or kept_off

    def pause(self, mark: str) -> None:
        """Add a pause, or make the one at the end stronger; none at the very beginning."""
        tail = (self.text or self.last).rstrip()[-1:]
        if not tail:
            return
        if is_wide(tail) or tail in WIDE_PAUSES.values():
            mark = WIDE_PAUSES.get(mark, mark)
        if tail not in PAUSES:
            self.text += mark
        elif self.text and PAUSES[mark] > PAUSES[tail]:
            self.text = self.text[:-1] + mark
        self.space, self.apart, self.number = mark in WIDE_PAUSES, False, False


@dataclass(frozen=True)
class Line:
    """What of a line's beginning decides how its end is read; no block reaches beyond its line.

    Attributes:
        length: characters of the line up to the end of the block.
        heading: it is a heading of Markdown.
    """

    length: int = 0
    heading: bool = False

    def with_block(self, before: str, text: str) -> "Line":
        """The line of the next block, which may begin a new one."""
        if begins_line(before):
            return Line(len(text.rstrip()), _HEADING.match(text) is not None)
        return Line(self.length + len(text.rstrip()), self.heading)


def begins_line(before: str) -> bool:
    """Whether what follows `before` begins a line."""
    return not before or "\n" in before[len(before.rstrip()) :]


class Block:
    """One block of cleaned text and its surroundings.

    Args:
        before, after: the text on either side, at most `WINDOW` characters.
        text: of the block.
        complete: no text can come behind `after`.
        line: the line that the block is part of, as far as it is known.
    """

    def __init__(self, before: str, text: str, after: str, complete: bool, line: "Line"):
        self.before, self.after, self.complete = before, after, complete
        self.line = line
        self.text = re.sub(r"(?<=\d)：(?=\d)", ":", text)

    def around(self, match: re.Match[str]) -> tuple[str, str]:
        """The text on both sides of a token; on the right no further than the one character that a cut waits for."""
        left = (self.before + self.text[: match.start()])[-WINDOW:]
        return left, self.text[match.end() :] + self.after[:1]

    def language(self, match: re.Match[str]) -> str:
        """`"zh"` or `"en"` for a token.

        Raises:
            IncompleteError: it depends on text to come.
        """
        left = (self.before + self.text[: match.start()])[-WINDOW:]
        if match.lastgroup in OF_LETTERS or re.search("[A-Za-z]{4,}", OF_NUMBER.sub("", match[0])):
            left += " www"  # a token that holds a word, like an address, counts as an English word itself
        right = (self.text[match.end() :] + self.after)[:WINDOW]
        return choose_language(left, right, self.complete or len(right) == WINDOW, match[0])

    def token(self, match: re.Match[str]) -> Token:
        """What the readers of numbers take."""
        left, right = self.around(match)
        return Token(match, self.language(match), left, right)


@dataclass(frozen=True)
class Mark:
    """A row of the tables of what holds no digits: words, spaces, punctuation, symbols.

    Attributes:
        name: of the group in the joined expression.
        pattern: what it looks like; a verbose expression (`re.X`).
        write: writes it with the given writer.
        examples: pairs (text, words of the whole text); a test reads every one.
    """

    name: str
    pattern: str
    write: Callable[[Block, re.Match[str], Writer], None]
    examples: tuple[tuple[str, str], ...]
