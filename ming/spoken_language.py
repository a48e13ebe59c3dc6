"""The language in which a number or symbol is read, by the text around it."""

import re

from .spoken_kinds import HAN
from .spoken_measures import PER, UNIT

OF_NUMBER = re.compile(
    rf"\d(?!(?:st|nd|rd|th)s?\b)(?:\s?(?:{UNIT})(?:/(?:{PER}))?(?![A-Za-z])|[A-Za-z]+)|(?<![A-Za-z])[xX](?=\s?\d)"
)  # letters that are not a word; the endings of "1st" and "7/8ths" are English ones
_STOP = re.compile(rf"[，。！？；、：…\n{HAN}]|[.!?;,:](?=\s)")
_HAN = re.compile(f"[{HAN}]")
_LETTER = re.compile(f"[A-Za-z{HAN}]")
_BESIDE = r"[^\w，。！？；、：….!?;,\n]*"  # what may stand between a number and the character that decides
_HAN_BEFORE, _HAN_BEHIND = re.compile(rf"[{HAN}]{_BESIDE}\Z"), re.compile(rf"{_BESIDE}[{HAN}]")


class IncompleteError(Exception):
    """The reading depends on text that is not there yet."""


def choose_language(left: str, right: str, complete: bool, token: str = "0") -> str:
    """zh or en for a number or symbol `token` between `left` and `right`, the text around it.

    Chinese characters next to it decide, then two English words in small letters in the same run of Latin script,
    then Chinese at either end of that run, so that a product name inside Chinese (iPhone 15 Pro) is read in Chinese.

    Raises:
        IncompleteError: `right` ends before it is decided and may still grow (`complete` is False).
    """
    if _HAN_BEFORE.search(left) or _HAN_BEHIND.match(right):
        return "zh"
    if not complete and re.fullmatch(_BESIDE, right):
        raise IncompleteError
    stop = _STOP.search(right)
    head = right[: stop.start()] if stop else right
    if not stop and not complete:
        head = re.sub(r"[A-Za-z]+\Z", "", head)  # that word may go on
    starts = list(_STOP.finditer(left))
    tail = left[starts[-1].end() :] if starts else left
    run = f"{tail} 0 {head}"
    if len(re.findall(r"(?<![A-Za-z\d])[a-z]{2,}(?![A-Za-z])", run)) >= 2:
        return "en"
    if not stop and not complete:
        raise IncompleteError
    edges = [match[0] for match in (*starts[-1:], stop) if match]
    if _HAN.search("".join(edges)):
        return "zh"
    # The token's own letters count, so that all parts of "$3.50/kg" see the same run.
    return _by_sentence(left, right, token, f"{tail}{token}{head}", complete)


def _by_sentence(left: str, right: str, token: str, run: str, complete: bool) -> str:
    """The language where nothing beside the number decides: that of its sentence, or of the letters closest to it."""
    sentence = re.split(r"[。！？\n]|[.!?]\s", left)[-1]
    latin_sentence = not _HAN.search(sentence)
    if latin_sentence and re.search("[A-Za-z]", OF_NUMBER.sub("", run)):
        return "en"
    ahead = right if complete else re.sub(r"[\w/°²³ .]+\Z", "", right)
    before = _LETTER.findall(OF_NUMBER.sub("", f"{left}{token} 0"))[-1:]  # the x of "3 x 4" stands before a digit
    letters = before or _LETTER.findall(OF_NUMBER.sub("", left + token + ahead))[:1]
    if not letters and not complete:
        raise IncompleteError
    return "en" if letters and letters[0].isascii() and latin_sentence else "zh"
