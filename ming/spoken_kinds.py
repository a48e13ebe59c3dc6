"""What the tables of spoken text share: a row of a table, the token that it reads, and the scripts.

The modules `spoken_numbers`, `spoken_dates`, `spoken_money`, `spoken_measures` and `spoken_addresses` each hold tables
of `Kind`s. `spoken_text` joins their patterns in one expression, in an order that matters.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

HAN = "\u3005-\u3007\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
LATIN = rf"(?:(?![{HAN}²³])[^\W\d_]|[\u0300-\u036f])"

OPENER = (  # words that, with a capital letter, begin a sentence even behind an abbreviation: "the U.S. It is"
    "(?:The|This|That|These|Those|There|Then|It|He|She|We|You|They|His|Her|Its|Our|Your|Their|My|But|And|So|If|When|"
    "While|What|Why|How|Where|Is|Are|Was|Were|Do|Does|Did|Can)"
)


@dataclass(frozen=True)
class Token:
    """A part of a text that is read as one, with its surroundings.

    Attributes:
        match: the match of its kind's pattern; `token["name"]` is the text of a group.
        lang: `"zh"` or `"en"`, the language to read it in.
        left, right: the text before and behind it.
    """

    match: re.Match[str]
    lang: str
    left: str = ""
    right: str = ""

    def __getitem__(self, group: int | str) -> Any:
        return self.match[group]

    def choose(self, zh: str, en: str) -> str:
        """The wording of the token's language."""
        return choose(self.lang, zh, en)


@dataclass(frozen=True)
class Kind:
    """One row of a table: a kind of token and how it is read.

    Attributes:
        name: of the group in the joined expression.
        pattern: what it looks like; a verbose expression (`re.X`) with ASCII classes.
        read: token -> its words.
        examples: pairs (text, words of the whole text); a test reads every one.
    """

    name: str
    pattern: str
    read: Callable[[Token], str]
    examples: tuple[tuple[str, str], ...]


def choose(lang: str, zh: str, en: str) -> str:
    """The wording of a language, `"zh"` or `"en"`."""
    return zh if lang == "zh" else en
