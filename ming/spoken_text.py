"""Reading of text aloud: numbers and symbols become words, punctuation becomes pauses.

`TextReader` takes a text in parts. It reads the text in blocks whose borders and reading depend only on the `WINDOW`
characters on either side: this is why a stream reads exactly what the whole text reads.

Kept: every letter of every script, accents, every number (as words; digits of other scripts as they are). Dropped:
symbols and emoji that have no reading here, Markdown marks, link targets, the language of a code fence. Punctuation
and line ends become the pauses `，。！？` and `,.!?`; apostrophes and hyphens inside words stay.
"""

import html
import re
import unicodedata
from collections.abc import Iterable

from .spoken_addresses import IDENTIFIERS, PHONES, URLS
from .spoken_blocks import PAUSE_OF, WIDE_PAUSES, WINDOW, Block, Line, Mark, Writer, begins_line, is_wide
from .spoken_dates import DATES, DECADES, MONTHS, TIMES, TIMESTAMPS
from .spoken_kinds import HAN, LATIN, OPENER, choose
from .spoken_language import IncompleteError
from .spoken_measures import DOTTED, MEASURES, SCIENTIFIC_MEASURES
from .spoken_money import MONEY
from .spoken_names import NAMES, QUANTITIES
from .spoken_numbers import IDIOM, NUMBERS, RELATIONS, SUPERSCRIPTS, VERSIONS, read_integer
from .spoken_roman import NAMED, NUMBERED_NOUNS, ROMAN_NUMERALS
from .spoken_symbols import LETTERS, PUNCTUATION


def _any(words: Iterable[str]) -> str:
    """A pattern of one of the words, the longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


ABBREVIATIONS = {  # without their full stop
    "vs": "versus", "etc": "et cetera", "e.g": "for example", "i.e": "that is", "a.k.a": "also known as", "al": "al",
    "approx": "approximately", "cf": "compare", "viz": "namely", "esp": "especially", "incl": "including",
    "Inc": "Incorporated", "Ltd": "Limited", "Corp": "Corporation", "Co": "Company", "Bros": "Brothers",
    "Jr": "Junior", "ca": "circa",
    "Sr": "Senior", "Dept": "Department", "Univ": "University", "Ave": "Avenue", "Blvd": "Boulevard", "Rd": "Road",
    "dept": "department", "Hwy": "Highway", "Ln": "Lane", "Pkwy": "Parkway", "Expy": "Expressway",
}  # fmt: skip
TITLES = {  # before a name
    "Dr": "Doctor", "Mr": "Mister", "Mrs": "Missus", "Ms": "Miz", "Prof": "Professor", "St": "Saint", "Mt": "Mount",
    "Ft": "Fort", "Gen": "General", "Col": "Colonel", "Capt": "Captain", "Lt": "Lieutenant", "Sgt": "Sergeant",
    "Maj": "Major", "Cmdr": "Commander", "Gov": "Governor", "Sen": "Senator",
    "Rep": "Representative", "Rev": "Reverend",
    "Hon": "Honorable",
    "Pres": "President",
    "Ct": "Court", "Pl": "Place", "Sq": "Square",
}  # fmt: skip
WITHOUT_STOP = "Dr|Mr|Mrs|Ms|Mt|St|Prof"  # titles that are written without their full stop, too
STREETS = {  # what a title means behind a name
    "St": "Street", "Dr": "Drive", "Ct": "Court", "Pl": "Place", "Sq": "Square",
}  # fmt: skip
NUMBERED = {  # before a number
    "no": "number", "nos": "numbers", "fig": "figure", "figs": "figures", "vol": "volume", "vols": "volumes",
    "ch": "chapter", "sec": "section", "eq": "equation", "eqs": "equations", "art": "article", "p": "page",
    "nr": "number",
    "pp": "pages", "tab": "table", "ext": "extension", "pg": "page", "pgs": "pages", "chap": "chapter",
    "para": "paragraph", "ver": "version", "ep": "episode", "op": "opus", "ste": "suite", "apt": "apartment",
    "rm": "room", "bldg": "building", "rte": "route",
}  # fmt: skip
PLACES = "Ste|Apt|Rm|Bldg|Rte"  # before a number or a letter, also without their full stop
DEGREES = {"Ph": "P H D", "M": "M S C", "B": "B S C"}
DAYS = {
    "Mon": "Monday", "Tues": "Tuesday", "Tue": "Tuesday", "Wed": "Wednesday", "Thurs": "Thursday", "Thur": "Thursday",
    "Thu": "Thursday", "Fri": "Friday", "Sat": "Saturday",
    "Sun": "Sunday",
}  # fmt: skip
MONTH_NAMES = {month[:3]: month for month in MONTHS} | {"Sept": "September"}
WITH = {"w/o": "without", "w/": "with", "b/c": "because", "c/o": "care of"}
CLOSERS = "”’」』》〉）)】\\]\"'*_~`"
_LINE_START = re.compile(
    r"(?:>[ \t]+)*(?:\#{1,6}[ \t]+|[-*+•·][ \t]+(?:\[[ xX]\][ \t]+)?|`{3,}[\w+#.-]*[ \t]*(?=\n))?"
)
_ITEM = re.compile(r"(\d{1,3})(?:[.)][ \t]+|[、）])")
WRAPPED = 50  # characters of a line that can be wrapped text before a capital letter, which may begin a sentence, too
_ITEM_WINDOW = 6
_LINE_ITEM = re.compile(r"(?:[A-Za-z]|[ivx]{2,4}|\d{1,3})[.)]\s")
_WIDE_END = re.compile(rf"[。！？；，、：…][{CLOSERS}。！？；，、：…\s]*\Z")
_NARROW_END = re.compile(rf"[.!?;,][{CLOSERS}.!?;,]*\s+[{CLOSERS}\s]*\Z")
_SENTENCE_NEXT = re.compile(rf"[{CLOSERS}。！？；，、：….!?;,\s]")
_PLAIN_WORDS = re.compile(r"(?:(?<!\S)[^\W\d_]+(?:['’-][^\W\d_]+)*[,;!?]?[ ]+){2}\Z")
ABBREVIATED = re.compile(r"(?<![A-Za-z])(?:[A-Za-z]|(?i:dr|mrs?|ms|prof|st|vs|etc|no|fig|approx)|\w+(?:\.\w)+)\.\Z")
_SHORT_END = re.compile(  # as `ABBREVIATED`, with those that can also be words
    rf"(?<![A-Za-z])(?:{_any([*ABBREVIATIONS, *TITLES, *DAYS, *MONTH_NAMES, 'Ph'])}|(?i:{_any(NUMBERED)})"
    rf"|(?<=\d)[ ]?(?:{_any(DOTTED)}|sq|cu|fl)|c|ca)\.\Z"
)
_TITLE_END = re.compile(rf"\b(?:{WITHOUT_STOP}) \Z")
_NUMERAL_END = re.compile(rf"\b(?:[IVXLC]+(?:th|st|nd|rd|e)?(?: of)?|{NAMED}) \Z")
_NUMBERED_NOUN = re.compile(rf"\b(?i:{NUMBERED_NOUNS})s?(?: [ivx]+(?: (?:to|and|or|through))?)? \Z")
_ENDED = re.compile(rf"[{CLOSERS}]*(?:\s*\Z|\s*\n|\s+{OPENER}\b)")  # what follows the last word of a sentence
_ENTITY = re.compile(r"&(?:[A-Za-z]{2,8}|\#\d{1,7}|\#[xX][\da-fA-F]{1,6});")  # of HTML: "&amp;", "&#39;"
_ENTITY_BEGUN = re.compile(r"&\#?\w{0,8}\Z")
_COMPOSED = {"<circle>": " {} ", "<fraction>": " {}"}  # kinds of Unicode compositions -> how their parts are written
_REPLACED = {"￥": "¥", "〜": "~", "\r": " "}


def _skip(block: Block, match: re.Match[str], writer: Writer) -> None:
    """Write nothing."""


def _line_break(block: Block, match: re.Match[str], writer: Writer) -> None:
    writer.pause(",")


def _short(block: Block, match: re.Match[str], writer: Writer, words: str) -> None:
    """Write an abbreviation in full, and the end of the sentence where its full stop is that, too."""
    _, right = block.around(match)
    writer.word(words, apart=True)
    if match[0][-1] == "." and _ENDED.match(right):
        writer.pause(".")
    writer.space = True


def _abbreviation(block: Block, match: re.Match[str], writer: Writer) -> None:
    _, right = block.around(match)
    short = match[0].rstrip(".")
    _short(block, match, writer, ABBREVIATIONS[short])
    if short == "etc" and match[0][-1] == "." and re.match(rf"[{CLOSERS}]*\s+[A-Z]", right):
        writer.pause(".")


def _title(block: Block, match: re.Match[str], writer: Writer) -> None:
    left, right = block.around(match)
    short = match[0].rstrip(".")
    behind_name = re.search(r"(?:\b(?!(?:In|At)\b)[A-Z][\w'’-]*|\d(?:st|nd|rd|th))[ ]\Z", left)
    named = re.match(r"[ ]?[A-Z]", right) and not re.match(rf"\s+(?:{OPENER}|{PLACES}|Suite|Unit|Apartment)\b", right)
    named = named and not re.search(r"\d(?:[ ][NSEW]\.)?(?:[ ][A-Z][a-z]+)+[ ]\Z", left)  # 12 Main St. Springfield
    if short in STREETS and behind_name and not named:
        _short(block, match, writer, STREETS[short])
    elif named or short in ("Dr", "Mr", "Mrs", "Prof"):
        writer.word(TITLES[short], apart=True)
        writer.space = True
    else:
        writer.word(short, apart=True)
        if match[0][-1] == ".":
            writer.text += "."


def _numbered(block: Block, match: re.Match[str], writer: Writer) -> None:
    short = match[0].rstrip(".")
    words = NUMBERED[short.lower()]
    writer.word(words.capitalize() if short[0].isupper() and short not in ("No", "Nos") else words, apart=True)
    writer.space = True


def _degree(block: Block, match: re.Match[str], writer: Writer) -> None:
    letters = DEGREES["Ph" if match[0][0] == "P" else match[0][0]]
    _short(block, match, writer, letters + ("s" if match[0][-1] == "s" else ""))


def _days(block: Block, match: re.Match[str], writer: Writer) -> None:
    first, last = (part.rstrip(".") for part in re.split("[-–]", match[0]))
    names = {**DAYS, **MONTH_NAMES}
    _short(block, match, writer, f"{names[first]} to {names[last]}")


def _weekday(block: Block, match: re.Match[str], writer: Writer) -> None:
    """A weekday, with its full stop or where a preposition or a date shows it: not "the Sun." and "Mon Dieu"."""
    left, right = block.around(match)
    short = match[0].rstrip(".")
    dated = re.match(r",?[ ]\d", right)
    placed = re.search(r"\b(?:[Oo]n|[Tt]his|[Nn]ext|[Ll]ast|[Ee]very)[ ]\Z", left) and not re.match("[ ][A-Z]", right)
    placed = placed and short not in ("Sun", "Sat")
    star = short == "Sun" and re.search(r"\b(?:[Tt]he|[Oo]ur|[Aa])[ ]\Z", left)
    star = star or (short == "Sat" and re.search(r"\b(?:[Hh]e|[Ss]he|[Ii]t|[Tt]hey|[Ww]e|I)[ ]\Z", left))
    if not star and (match[0][-1] == "." or short in ("Tues", "Thurs") or dated or placed):
        _short(block, match, writer, DAYS[short])
    else:
        writer.word(short, apart=True)
        writer.text += "." if match[0][-1] == "." else ""


def _fiscal(block: Block, match: re.Match[str], writer: Writer) -> None:
    writer.word(choose(block.language(match), "FY", "fiscal year"), apart=True)
    writer.space = True


def _month(block: Block, match: re.Match[str], writer: Writer) -> None:
    _short(block, match, writer, MONTH_NAMES[match[0].rstrip(".")])


def _with(block: Block, match: re.Match[str], writer: Writer) -> None:
    writer.word(WITH[match[0]], apart=True)


def _initials(block: Block, match: re.Match[str], writer: Writer) -> None:
    writer.word(match[0], apart=True)


def _word(block: Block, match: re.Match[str], writer: Writer) -> None:
    writer.word(match[0].replace("’", "'"))


def _newline(block: Block, match: re.Match[str], writer: Writer) -> None:
    _, right = block.around(match)
    if not right:
        return
    if _is_wrapped(block, match):
        writer.space = True
    else:
        writer.pause(".")


def _is_wrapped(block: Block, match: re.Match[str]) -> bool:
    """Whether a sentence goes on behind a line end: the line was wrapped, and is no heading, item or paragraph.

    Raises:
        IncompleteError: it depends on text to come.
    """
    left, _ = block.around(match)
    right = (block.text[match.end() :] + block.after)[:_ITEM_WINDOW]
    if match[0].count("\n") > 1 or block.line.heading or not re.search(r"[a-z,]\Z", left):
        return False
    if len(right) < _ITEM_WINDOW and not block.complete:
        raise IncompleteError
    if _LINE_ITEM.match(right):
        return False
    return bool(re.match("[a-z]", right) or (block.line.length >= WRAPPED and re.match(r"[A-Z\d]", right)))


def _space(block: Block, match: re.Match[str], writer: Writer) -> None:
    left, right = block.around(match)
    if is_wide(left[-1:]) and is_wide(right[:1]):
        writer.pause(",")
    writer.space = True


MARKUP = (
    Mark(
        "link",
        r"""\]\((?=[^()\s]*[/.\#:@])(?:[^()\s]|\([^()\s]*\))*(?:[ ]+"[^"\n]*")?\)""",
        _skip,
        (("See [the docs](https://docs.python.org/3/) now", "See the docs now"),),
    ),
    Mark("br", r"<br[ ]*/?>", _line_break, (("first<br>second", "first, second"),)),
)


# The order matters, because the first row that matches takes the text: a date before a sum, all before a plain number.
SPOKEN_NUMBERS = (
    *URLS,
    *IDIOM,
    *ROMAN_NUMERALS,
    *NAMES,
    *IDENTIFIERS,
    *TIMESTAMPS,
    *DATES,
    *TIMES,
    *PHONES,
    *VERSIONS,
    *MONEY,
    *SCIENTIFIC_MEASURES,
    *QUANTITIES,
    *DECADES,
    *RELATIONS,
    *MEASURES,
    *NUMBERS,
)
SHORT_FORMS = (
    Mark(
        "abbreviation",
        rf"\b(?:(?:{_any(ABBREVIATIONS)})\.|vs(?=[ ])|etc\b(?![.'’]))",
        _abbreviation,
        (
            ("cats vs. dogs, e.g. here", "cats versus dogs, for example here"),
            ("apples, etc. Then we go", "apples, et cetera. Then we go"),
            ("Acme Inc. is here", "Acme Incorporated is here"),
        ),
    ),
    Mark(
        "title",
        rf"\b(?:(?:{_any(TITLES)})\.|(?:{WITHOUT_STOP})(?=[ ][A-Z]))",
        _title,
        (
            ("Dr. Smith met Mr. Lee on Mt. Etna", "Doctor Smith met Mister Lee on Mount Etna"),
            ("in St. Ives on Main St. there", "in Saint Ives on Main Street there"),
        ),
    ),
    Mark(
        "numbered",
        rf"\b(?:(?i:{_any(NUMBERED)})\.(?=[ ]?\(?\d)|(?:{PLACES})\.?(?=[ ](?:\d|[A-Z](?![A-Za-z]))))",
        _numbered,
        (
            ("at Apt. 5, Bldg. C, Ste 200 there", "at Apartment five, Building C, Suite two hundred there"),
            ("No. 5 is alive. No. It is not.", "number five is alive. No. It is not."),
            ("see Fig. 2 on p. 3 there", "see Figure two on page three there"),
        ),
    ),
    Mark(
        "degree",
        r"\b(?:Ph\.[ ]?D\b\.?|PhDs?\b|[MB]\.Sc\b\.?|[MB]Sc\b)",
        _degree,
        (("her Ph.D. and M.Sc. are new", "her P H D and M S C are new"),),
    ),
    Mark(
        "days",
        rf"\b(?:(?:{_any(DAYS)})\.?[-–](?:{_any(DAYS)})|(?:{_any(MONTH_NAMES)})\.?[-–](?:{_any(MONTH_NAMES)}))\b\.?(?![A-Z])",
        _days,
        (("open Mon-Fri in Jan-Mar here", "open Monday to Friday in January to March here"),),
    ),
    Mark(
        "weekday",
        rf"\b(?:{_any(DAYS)})\b(?!['’-])\.?",
        _weekday,
        (
            ("on Tues. or Thurs. we left", "on Tuesday or Thursday we left"),
            ("it is Wed, 5 May. The Sun. is hot", "it is Wednesday, fifth of May. The Sun. is hot"),
        ),
    ),
    Mark(
        "fiscal_year",
        r"\bFY(?=[ ]?['’]?\d)",
        _fiscal,
        (("in FY2024 it was", "in fiscal year twenty twenty four it was"),),
    ),
    Mark(
        "month_name",
        rf"\b(?:(?:{_any(MONTH_NAMES)})\.?(?=[ ][12]\d{{3}}\b)|(?:{_any(set(MONTH_NAMES) - {'May'})})\.|Sept\b|"
        rf"(?:(?<=\d[ ])|(?<=(?:st|nd|rd|th)[ ]))(?:{_any(MONTH_NAMES)})\b)",
        _month,
        (("it was 5 Mar. or Jan 2020 then", "it was fifth of March or January twenty twenty then"),),
    ),
    Mark(
        "with",
        r"(?<!/)\b(?:w/o|b/c|c/o)\b(?!/)|\bw/(?=[ ])",
        _with,
        (("tea w/o milk or w/ sugar", "tea without milk or with sugar"),),
    ),
    Mark(
        "initials",
        r"\b(?:[A-Za-z]\.){2,}(?!\w)|\b[A-Za-z](?:\.[A-Za-z])+\b\.?",
        _initials,
        (("The U.S. has states", "The U.S. has states"),),
    ),
)
WORDS = (
    Mark("han", rf"[{HAN}]+", _word, (("繁體字測試龥々〇", "繁體字測試龥々〇"),)),
    Mark("word", rf"{LATIN}+(?:['’]{LATIN}+)*", _word, (("naïve café, it’s Привет", "naïve café, it's Привет"),)),
    Mark(
        "newline",
        r"\s*\n\s*",
        _newline,
        (
            ("The quick fox\njumps over", "The quick fox jumps over"),
            ("你好\n下一行", "你好。下一行"),
            (
                "a red circle\n\na blue star\n# my stars\na green one",
                "a red circle. a blue star. my stars. a green one",
            ),
        ),
    ),
    Mark("space", r"\s+", _space, (("你好 世界", "你好，世界"), ("hello  world", "hello world"))),
)
MARKS = (*MARKUP, *SHORT_FORMS, *LETTERS, *WORDS, *PUNCTUATION)
_READERS = {kind.name: kind.read for kind in SPOKEN_NUMBERS}
_WRITERS = {mark.name: mark.write for mark in MARKS}


def _alternatives(*rows) -> str:
    return "\n|".join(f"(?P<{row.name}>{row.pattern})" for row in rows)


TOKEN = re.compile(
    rf"""{_alternatives(*MARKUP)}
    |(?a:{_alternatives(*SPOKEN_NUMBERS, *SHORT_FORMS, *LETTERS)})
    |{_alternatives(*WORDS, *PUNCTUATION)}""",
    re.X | re.S,
)


def _read_block(block: Block, last: str) -> str:
    """The words of a block; `last` is what was written before it, two characters.

    Raises:
        IncompleteError: they depend on text to come.
    """
    writer = Writer(last)
    for match in TOKEN.finditer(block.text, _line_start(block, writer)):
        name = match.lastgroup
        assert name is not None, "every alternative of TOKEN is a named group"
        if name in _READERS:
            writer.word(_READERS[name](block.token(match)), number=True)
        else:
            _WRITERS[name](block, match, writer)
    tail = writer.tail()
    if writer.space and tail.strip() and not is_wide(tail) and tail not in WIDE_PAUSES.values():
        return writer.text + " "
    return writer.text


def _line_start(block: Block, writer: Writer) -> int:
    """Where the text of a block starts behind the Markdown marks of a new line; reads the number of a list item."""
    if not begins_line(block.before):
        return 0
    indent = len(block.text) - len(block.text.lstrip())
    start = _LINE_START.match(block.text, indent)
    assert start is not None, "the pattern matches the empty text"
    item = _ITEM.match(block.text, start.end())
    if not item:
        return start.end()
    writer.word(read_integer(item[1], block.language(item)), apart=True)
    writer.pause(",")
    return item.end()


def _clean(text: str) -> str:
    """Half-width letters, digits and symbols; composed numbers (①, ½, Ⅳ) spelled out; invisible characters gone."""
    return text.replace("\r", " ") if text.isascii() else "".join(map(_clean_character, text))


def _clean_character(char: str) -> str:
    category = unicodedata.category(char)
    composed = unicodedata.decomposition(char).partition(" ")[0]
    if "\uff01" <= char <= "\uff5e" and char not in PAUSE_OF:
        char = chr(ord(char) - 0xFEE0)
    elif category == "Cf" or char in "\ufe0f\u20e3":
        char = ""
    elif (category in ("No", "Nl") and char not in SUPERSCRIPTS) or composed == "<font>":
        char = _COMPOSED.get(composed, "{}").format(unicodedata.normalize("NFKC", char).replace("⁄", "/"))
    return _REPLACED.get(char, char)


def _is_cut(text: str, position: int, final: bool) -> bool | None:
    """Whether a block may end before `position`; None if that depends on text to come."""
    if position >= len(text):
        return None
    before, following = text[max(0, position - WINDOW) : position], text[position]
    if is_wide(following) and is_wide(before[-1]):
        return _is_cut_in_han(text, position, final)
    word_starts = before[-1] == " " and following.isalpha() and not is_wide(following)
    if word_starts and _PLAIN_WORDS.search(before) and not _is_held(before, following):
        return True
    new_line = "\n" in before[len(before.rstrip()) :]
    if following.isspace() or (_SENTENCE_NEXT.match(following) and not new_line):
        return False
    return new_line or _ends_clause(before, following)


def _is_held(before: str, following: str) -> bool:
    """Whether the word that starts with `following` is read with the words before it: "Louis XIV", "Mt Etna"."""
    numeral = following in "IVXLC" or _NUMBERED_NOUN.search(before)
    return bool(numeral or _NUMERAL_END.search(before) or _TITLE_END.search(before))


def _is_cut_in_han(text: str, position: int, final: bool) -> bool | None:
    """The same between two Chinese characters: five of them on either side, or fewer up to a pause on the right."""
    before, following = text[max(0, position - 5) : position], text[position : position + 5]
    if len(before) < 5 or not all(map(is_wide, before)):
        return False
    for char in following:
        if char in PAUSE_OF:
            return True
        if not is_wide(char):
            return False
    if len(following) == 5:
        return True
    return False if final else None


def _ends_clause(before: str, following: str) -> bool:
    if _WIDE_END.search(before):
        return not (before[-1] == "：" and following.isdigit() and before[-2:-1].isdigit())
    narrow = _NARROW_END.search(before)
    stem = before[: narrow.start() + 1] if narrow else ""
    if not narrow or ABBREVIATED.search(stem) or _SHORT_END.search(stem):
        return False
    after_digit = before[: narrow.start()][-1:].isdigit() and narrow[0][0] == ","
    return not (following.isdigit() and (after_digit or narrow[0][0] == "."))


class TextReader:
    """Reads text that arrives in parts; only words that no later text can change are returned."""

    def __init__(self):
        self._held = ""  # what may become an entity of HTML
        self._text = ""
        self._start = 0  # of the block that is being collected
        self._scan = 1  # the first position that is not known to be inside that block
        self._last = ""
        self._line = Line()

    def feed(self, text: str, final: bool = False) -> str:
        """Take the next part of the text; the words that are certain now. `final` says that nothing follows.

        Raises:
            ImportError: a number was found and `wetext` is not installed.
        """
        text = self._held + text
        begun = None if final else _ENTITY_BEGUN.search(text)
        self._held = begun[0] if begun else ""
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text.removesuffix(self._held))
        self._text += _clean(text)
        spoken = []
        while self._start < len(self._text):
            end = self._find_end(final)
            if end is None:
                break
            after = self._text[end : end + WINDOW]
            before = self._text[max(0, self._start - WINDOW) : self._start]
            line = self._line.with_block(before, self._text[self._start : end])
            try:
                spoken.append(
                    _read_block(Block(before, self._text[self._start : end], after, final, line), self._last)
                )
            except IncompleteError:
                break
            self._line = line
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
