"""Symbols and punctuation: which of them are spoken, which are pauses, and which are nothing."""

import re
import unicodedata

from .spoken_addresses import URL_MARKS
from .spoken_blocks import PAUSE_OF, PAUSES, Block, Mark, Writer, is_wide
from .spoken_kinds import HAN, LATIN, choose
from .spoken_measures import PER, UNIT, read_per, read_unit
from .spoken_money import CURRENCIES
from .spoken_money import SYMBOLS as SYMBOL_CLASS
from .spoken_numbers import OVER

SYMBOLS = {  # spoken between two operands
    "+": ("加", "plus"), "-": ("减", "minus"), "=": ("等于", "equals"), "×": ("乘以", "times"), "*": ("乘以", "times"),
    "÷": ("除以", "divided by"), "/": OVER, "<": ("小于", "less than"), ">": ("大于", "greater than"),
    "≤": ("小于等于", "less than or equal to"), "≥": ("大于等于", "greater than or equal to"),
    "≠": ("不等于", "is not equal to"), "≈": ("约等于", "is about"), "±": ("正负", "plus or minus"),
    "<=": ("小于等于", "less than or equal to"), ">=": ("大于等于", "greater than or equal to"),
    "!=": ("不等于", "is not equal to"), "==": ("等于", "equals"), "===": ("等于", "equals"),
}  # fmt: skip
ALWAYS_SPOKEN = {
    "&": ("和", "and"), "@": ("at", "at"), "%": ("百分号", "percent"), "‰": ("千分号", "per thousand"),
    "²": ("平方", "squared"), "³": ("立方", "cubed"), "℃": ("摄氏度", "degrees Celsius"),
    "℉": ("华氏度", "degrees Fahrenheit"), "°": ("度", "degrees"), "㎡": ("平方米", "square meters"),
    "√": ("根号", "square root of"), "∞": ("无穷大", "infinity"),
    "№": ("第", "number"), "§": ("第", "section"), "¢": ("美分", "cents"),
}  # fmt: skip
_SMALL = "(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\\b"
_SIZED = re.compile(  # what is measured by two numbers, "a 3x4 grid"
    r"\s?[\d.]+(?:\s?[a-z]{1,2}\b)?[ -](?:grid|matrix|matrices|inch(?:es)?|pixels?|table|array|board|photo|room|"
    r"lumber|images?|tiles?|kernel|filter|window|screen|display|resolution|crop|convolution|drive|truck|vehicle|car|SUV|"
    r"wheel|tensor|feet|meters)\b"
)
_LETTER_BEFORE = re.compile(rf"(?<![A-Za-z</_-])[A-Za-zΑ-ω]\d?\Z|[{HAN}]\Z")
_LETTER_BEHIND = re.compile(rf"[A-Za-zΑ-ω](?![A-Za-z_'’]|[A-Za-z0-9]*/?>[ ]?[A-Za-z]{{2}}|[^<\n]{{0,40}}</)|[{HAN}]")
SILENT = "\"'“”‘’*`「」『』《》"  # quotation marks and Markdown, which do not even part words
_NEGATIVE = re.compile(r"[$€£¥]?\.?\d")
_OPERAND = r"[$€£¥]?\d[\d.,]*"
_SUM = re.compile(rf"\s*{_OPERAND}(?:\s*[-−+*/×÷]\s*{_OPERAND})*\s*(?:=|equals\b|等于)")
_RESULT = re.compile(rf"\s{_OPERAND}\s*(?:(?:is|makes|gives|leaves)\s(?:\d|{_SMALL})|[是得]\d)")
_TERM_BEFORE = re.compile(rf"\d\s*[+×÷*]\s*{_OPERAND}\s*\Z|=\s{_OPERAND}\s\Z")
_ALONE = re.compile(rf"\s*{_OPERAND}\s\Z"), re.compile(rf"\s{_OPERAND}\s*\Z")
_YEAR = re.compile(r"(?:1\d|20)\d\d\s\Z")
_DAY = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_NUMBER_BEFORE = re.compile(
    rf"(?:\d(?:[%‰°℃℉²³A-Za-z/]{{1,5}}|\s?[AaPp]\.?[Mm]\.?|[{HAN}]{{1,2}}|\s?(?:thousand|[mb]illion|trillion))?"
    rf"|\b(?:noon|midnight|{_DAY}))\s?\Z"
)
_WORDS_OF_A_SENTENCE = re.compile(  # behind a full stop without a space, "a circle.a star is"; no file ends like that
    r"(?:an?|the|he|she|we|you|they|this|that|these|those|there|and|but|if|my|your|his|her|its|our|their)[ ]"
)
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec)(?:\.|[a-z]{3,6})?[ ]"
_NUMBER_BEHIND = re.compile(rf"\s?(?:-?[$€£¥]?\.?|{_MONTH})\d|\s?(?:noon|midnight|{_DAY})\b")
_ZH_DAY = "(?:周|星期)[一二三四五六日天]"
_BESIDE_EM_DASH = re.compile(rf"(?:\d[{HAN}]?|{_ZH_DAY})\Z"), re.compile(rf"\d|{_ZH_DAY}")  # 18—25岁, 周一—周五
# What stands behind the result of a match: "4-2获胜" is four to two, in the word for scores.
_RESULTS = re.compile(r"\d+(?:[获战取]胜|[大险完力]胜|击败|淘汰|领先|落后|逆转|负于|不敌|惜败|战平|平局)")


def _say(block: Block, match: re.Match[str], writer: Writer, zh: str, en: str) -> None:
    writer.word(choose(block.language(match), zh, en), apart=True)


def _letter_x(block: Block, match: re.Match[str], writer: Writer) -> None:
    """The letter x: "times" or "by" between two numbers, "3x4", else itself."""
    left, right = block.around(match)
    before = re.search(r"(?:(?<![A-Za-z])|(?<=\dx)|(?<=\dX))\d(?:[ ]?[a-z]{1,2})?(\s?)\Z", left)
    after = re.match(r"(\s?)\d", right)
    hexadecimal = re.search(r"(?<![\d.])0\Z", left)
    if not before or not after or bool(before[1]) != bool(after[1]) or hexadecimal:
        writer.word(match[0])
    elif re.search(r"(?:\d{3}|[a-z])\s?\Z", left) or _SIZED.match(right) or re.match(r"\d{1,2}s\b", right):
        _say(block, match, writer, "乘以", "by")
    else:
        _say(block, match, writer, *SYMBOLS["×"])


def _rate(block: Block, match: re.Match[str], writer: Writer) -> None:
    writer.word(read_unit(match[0], block.language(match)), apart=True)


def _per(block: Block, match: re.Match[str], writer: Writer) -> None:
    """The slash of "$5/month"."""
    zh, en = read_per(match["per"])
    left, _ = block.around(match)
    if re.search(rf"\d[ ]?[A-Za-z{SYMBOL_CLASS}%万亿元块千]{{0,9}}\Z", left):
        _say(block, match, writer, f"每{zh}", f"per {en}")
    elif match["per"].isascii():
        writer.space = True
        writer.word(match["per"])
    else:
        writer.pause(",")
        writer.word(match["per"])


def _dots(block: Block, match: re.Match[str], writer: Writer) -> None:
    left, right = block.around(match)
    extension = re.search(r"[A-Za-z0-9_]\Z", left) and re.match(r"[a-z0-9]|[A-Z]{2}", right)  # main.py
    name = not re.search(r"[\w.]\Z", left) and re.match(LATIN, right)  # .NET
    if match[0] == "." and (extension or name) and not _WORDS_OF_A_SENTENCE.match(right):
        _say(block, match, writer, *URL_MARKS["."])
    else:
        writer.pause(".")


def _run(block: Block, match: re.Match[str], writer: Writer) -> None:
    """A run of one symbol that means different things in sums, ranges, words and Markdown."""
    mark = match[0]
    if mark[0] in "-−–—~":
        _dash(block, match, writer)
    elif mark in SYMBOLS and _joins_operands(block, match):
        _say(block, match, writer, *SYMBOLS[mark])
    else:
        writer.space = True


def _joins_operands(block: Block, match: re.Match[str]) -> bool:
    """Whether a run stands between two operands, with spaces on both sides or on none."""
    left, right = block.around(match)
    operand_left = re.search(r"[\w%℃°²³)](\s*)\Z", left)
    operand_right = re.match(r"(\s*)[\w.$€£¥(√-]", right)
    if not operand_left or not operand_right or bool(operand_left[1]) != bool(operand_right[1]):
        return False
    if match[0] != "*":
        return True
    return bool(operand_left[1]) or (left[-1:].isdigit() and right[:1].isdigit())  # 3*4, but not *emphasis*


def _dash(block: Block, match: re.Match[str], writer: Writer) -> None:
    """A dash: "minus" or "to" between numbers, "about" or "minus" before one, a hyphen in a word, else a pause."""
    mark = match[0]
    left, right = block.around(match)
    if _stands_between_numbers(mark, left, right):
        _dash_between_numbers(block, match, writer)
    elif mark in "-−" and re.search(r"\b(?:UTC|GMT)\Z", left) and right[:1].isdigit():
        _say(block, match, writer, "减", "minus")
    elif mark in "-−" and re.search(r"=\s*\Z", left) and re.match(r"[A-Za-z](?![A-Za-z])", right):  # x = -b
        _say(block, match, writer, "负", "minus")
    elif mark == "~" and re.match(r"\s?[$€£¥]?\d", right):
        _say(block, match, writer, "约", "about")
    elif mark in "-−" and _NEGATIVE.match(right) and not re.search(r"[A-Za-z0-9_)]\Z", left):
        _say(block, match, writer, "负", "minus")
    elif mark in "-−–" and left[-1:].isalnum() and right[:1].isalnum():
        _hyphen(left[-1:], right[:1], writer)
    elif (mark == "-" and left[-1:] in "([|") or (mark == "~" and not left[-1:].isalnum()):
        writer.space = True
    elif right.strip():
        writer.pause(",")


def _stands_between_numbers(mark: str, left: str, right: str) -> bool:
    """A Chinese range has the long dash, with nothing around it."""
    before, behind = _BESIDE_EM_DASH if mark == "—" else (_NUMBER_BEFORE, _NUMBER_BEHIND)
    return "——" not in mark and bool(before.search(left) and behind.match(right))


def _dash_between_numbers(block: Block, match: re.Match[str], writer: Writer) -> None:
    left, right = block.around(match)
    if re.search(r"[A-Za-z]-?\d[\d.]*\Z", left) and right[:1].isdigit():  # a name: A320-200, Llama-3.1-8B
        writer.space = True
    elif match[0] in "-−–" and _is_minus(match[0], left, right):
        _say(block, match, writer, *SYMBOLS["-"])
    elif re.search(r"比分[是为：:\s]*\d+\Z", left) or (re.search(r"\d\Z", left) and _RESULTS.match(right)):
        writer.word("比", apart=True)
    else:
        _say(block, match, writer, "到", "to")
    if match[0] in ("--", "−−"):
        _say(block, match, writer, "负", "minus")


def _is_minus(mark: str, left: str, right: str) -> bool:
    """Whether a dash between two numbers subtracts: it is the minus sign, in a sum with a result ("= 2", "is six") or
    another sign, or with spaces and two numbers that are no years as the whole text."""
    if mark == "−" or _SUM.match(right) or _RESULT.match(right) or _TERM_BEFORE.search(left):
        return True
    return bool(_ALONE[0].fullmatch(left) and _ALONE[1].fullmatch(right) and not _YEAR.search(left))


def _hyphen(before: str, after: str, writer: Writer) -> None:
    """A hyphen between two letters or digits: kept inside a word, a space beside a digit or a Chinese character."""
    if before.isalpha() and after.isalpha() and not is_wide(before) and not is_wide(after):
        writer.text += "-"
    else:
        writer.space = True


def _other(block: Block, match: re.Match[str], writer: Writer) -> None:
    """A single character that no other row takes."""
    mark = match[0]
    left, right = block.around(match)
    category = unicodedata.category(mark)[0]
    if mark in PAUSE_OF or (mark == ">" and re.search(r"[-=]\Z", left)):  # that is an arrow
        if mark in PAUSES or right.strip():
            writer.pause(PAUSE_OF.get(mark, ","))
    elif mark in ALWAYS_SPOKEN:
        _say(block, match, writer, *ALWAYS_SPOKEN[mark])
    elif category == "M":
        writer.text += mark
    elif category in "LN":
        writer.word(mark)
    elif mark == "#":
        _hash(block, match, writer)
    else:
        _symbol(block, match, writer)


def _symbol(block: Block, match: re.Match[str], writer: Writer) -> None:
    mark = match[0]
    left, right = block.around(match)
    if mark in SYMBOLS and _compares(mark, left, right):
        _say(block, match, writer, *SYMBOLS[mark])
    elif mark in CURRENCIES and re.search(r"\w\s\Z", left) and re.match(r"\s", right):
        _say(block, match, writer, *CURRENCIES[mark][:2])  # "the € rose"
    elif mark == "/" and is_wide(left[-1:]):
        writer.pause(",")
    elif mark not in SILENT:
        writer.space = True


def _compares(mark: str, left: str, right: str) -> bool:
    """Whether `mark` stands between two operands, or before a number as in "<5" and "+86"."""
    operand_left, operand_right = re.search(r"[\w%℃)]\s*\Z", left), re.match(r"\s*[\w$€£¥(.-]", right)
    if mark == "+":
        return bool(re.search(r"[A-Za-z0-9+%]\Z", left) or re.match(r"\d", right) or (operand_left and operand_right))
    if mark == "/":
        return bool(re.search(r"\d\s*\Z", left) and operand_right)
    if mark in "<>" and _LETTER_BEFORE.search(left) and _LETTER_BEHIND.match(right):  # A>B, but not <b>
        return True
    number = re.match(r"\s*-?\.?\d", right) or (operand_right and re.search(r"\d[%℃]?\s*\Z", left))
    spaced = re.search(r"\w\s+\Z", left) and re.match(r"\s+\w", right)
    return bool(number or spaced or (mark not in "<>" and operand_left and operand_right))


def _hash(block: Block, match: re.Match[str], writer: Writer) -> None:
    left, right = block.around(match)
    if re.match(r"\d", right):
        _say(block, match, writer, "第", "number")
    elif re.search(r"(?<![A-Za-z])[CFJ]\Z", left) and not re.match(r"[A-Za-z0-9_]", right):  # C#
        writer.word("sharp", apart=True)
    else:
        writer.space = True


LETTERS = (
    Mark(
        "rate",
        rf"(?<![\w/°-])(?:(?:{UNIT})/(?:{UNIT})|mmHg)(?![\w/²³-])",
        _rate,
        (("speed in km/h is given", "speed in kilometers per hour is given"), ("单位是km/h。", "单位是公里每小时。")),
    ),
    Mark(
        "x",
        r"(?<![A-Za-z])[xX](?![A-Za-z'’\u0300-\u036f])",
        _letter_x,
        (
            ("面积是3x4", "面积是三乘以四"),
            (
                "it is 3 x 4 or a 3x4 grid, x > 3",
                "it is three times four or a three by four grid, x greater than three",
            ),
        ),
    ),
)
PUNCTUATION = (
    Mark(
        "slash",
        rf"/(?P<per>(?:{PER})(?![A-Za-z0-9])|平方?米|小时|公[斤里]|分钟|[年月日天周时秒人次件个台吨米])",
        _per,
        (
            ("it is $5/month there", "it is five dollars per month there"),
            ("每台$5/月", "每台五美元每月"),
            ("day/night here", "day night here"),
        ),
    ),
    Mark(
        "dots",
        r"\.+|…+",
        _dots,
        (
            ("等等……好的", "等等。好的"),
            ("open main.py or .NET now", "open main dot py or dot NET now"),
            ("Wait... it is", "Wait. it is"),
            ("a red circle.a blue star is", "a red circle. a blue star is"),
        ),
    ),
    Mark(
        "run",
        r"=+|[-−]+|[–—]+|~+|\*+|[<>!]=",
        _run,
        (
            ("5 - 3 = 2；7*24小时", "五减三等于二。七乘以二十四小时"),
            ("温度是-5℃到10℃之间", "温度是负五摄氏度到十摄氏度之间"),
            ("10-20 people and y <= 5", "ten to twenty people and y less than or equal to five"),
            ("a well-known fact -- or ~5 of them", "a well-known fact, or about five of them"),
            ("这是**重点**", "这是重点"),
        ),
    ),
    Mark(
        "other",
        r".",
        _other,
        (
            ("苹果、香蕉（进口）；很好", "苹果，香蕉，进口。很好"),
            ("A & B @ home #1", "A and B at home number one"),
            ("so A>B and x<y but not <b>A</b> here", "so A greater than B and x less than y but not b A b here"),
            ("x > 3 and C++ and C# here", "x greater than three and C plus plus and C sharp here"),
            ("他说：“你好！”然后走了。", "他说，你好！然后走了。"),
            ("你好😀世界", "你好世界"),
        ),
    ),
)
