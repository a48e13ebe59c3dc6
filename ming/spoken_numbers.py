"""Numbers in Chinese or English words.

The library `wetext` reads whole numbers, ordinals, English years, clock times and fractions. It gets nothing longer,
because its grammars lose content there: "1,234" becomes "thousand two hundred and thirty four", "10%-20%" a negative
percentage, "3 m" three minutes, and English text with Chinese in it has no reading at all. Its answers are checked for
digits and symbols that it left unread.
"""

import re
from functools import lru_cache

from .spoken_kinds import HAN, Kind, Token, choose

MAX_INTEGER_DIGITS = 9  # longer ones are identifiers, and wetext misreads them
MAX_COMMA_DIGITS = 12  # of numbers with commas, which are no identifiers

ZH_DIGITS = "零一二三四五六七八九"
EN_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COUNT_WORDS = (  # first characters of what a Chinese 2 counts
    "个只条件张本次种位名天年周家座台辆双对间层碗杯瓶份顿场句篇段把根棵头匹块片颗粒朵支枝套架艘门项遍回趟步岁倍元点分秒百小人万千亿夜"
    "公厘毫米升平立"
)
OVER = ("比", "over")  # of 120/80

NUMBER = r"(?:(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d|,\d)|\d+)(?:\.\d+)?(?!\.?\d)|(?<![\w.])\.\d+"
_NUMBER_NAME = re.compile(r"(?:电话|热线|号码|拨打?|[编学卡账]号|\b[Cc]all|\b[Dd]ial)[是为：:\s]*\Z")


@lru_cache(maxsize=2)
def _wetext(lang: str):
    try:
        from wetext import Normalizer
    except ImportError as error:
        raise ImportError("reading numbers aloud needs wetext: pip install wetext") from error
    return Normalizer(lang=lang, operator="tn")


@lru_cache(maxsize=4096)
def _ask_wetext(lang: str, query: str) -> str | None:
    """The words for one number, or None where the grammar failed or left something unread."""
    try:
        words = _wetext(lang).normalize(query)
    except (AssertionError, RuntimeError):  # what its token parser raises for an empty path
        return None
    allowed = rf"[{HAN}]+" if lang == "zh" else r"[A-Za-z' -]+"
    return words if re.fullmatch(allowed, words) else None


def read_digits(digits: str, lang: str, one: str = "幺") -> str:
    """Digit by digit; in English, other characters become a short break between groups.

    Args:
        digits: digits and anything between them.
        lang: `"zh"` or `"en"`.
        one: the Chinese word for 1: 幺 in telephone numbers, 一 in decimals and years.
    """
    if lang == "zh":
        return "".join(one if d == "1" else ZH_DIGITS[int(d)] for d in digits if d.isdecimal())
    groups = re.findall(r"\d+", digits)
    return ", ".join(" ".join(EN_DIGITS[int(d)] for d in group) for group in groups)


def read_integer(digits: str, lang: str) -> str:
    """A whole number in words: "1,234" and "12". "007" and identifiers are read digit by digit."""
    plain = digits.replace(",", "")
    limit = MAX_COMMA_DIGITS if "," in digits else MAX_INTEGER_DIGITS
    if len(plain) > limit or (len(plain) > 1 and plain[0] == "0"):
        return read_digits(plain, lang)
    if len(plain) == 1:
        return read_digits(plain, lang, one="一")
    # A unit keeps wetext from reading a year or an emergency number.
    words = _ask_wetext(lang, f"{plain}元" if lang == "zh" else f"{plain} kg")
    return re.sub(r"元$| kilograms?$", "", words) if words else read_digits(plain, lang)


def read_number(text: str, lang: str, following: str = "", preceding: str = "") -> str:
    """A number with or without decimals; `following` and `preceding` are the text around it."""
    whole, _, decimals = text.partition(".")
    if decimals:
        return read_integer(whole or "0", lang) + choose(lang, "点", " point ") + read_digits(decimals, lang, one="一")
    if lang == "zh" and text == "2" and _counts(following, preceding):
        return "两"
    if lang == "en" and re.fullmatch(r"1[1-9]\d\d|20[1-9]\d", text):
        return read_year(text, lang)
    return read_integer(text, lang)


def _counts(following: str, preceding: str) -> bool:
    """Whether a Chinese 2 is a count (两个), not a name (第二个, 二年级)."""
    following = following.lstrip()
    ordinal = preceding.rstrip()[-1:] in tuple("第月期") or following.startswith(("年级", "分之", "点零"))
    return not ordinal and following[:1] in tuple(COUNT_WORDS)


def read_year(digits: str, lang: str) -> str:
    """A year: digit by digit in Chinese where it has four, in pairs in English."""
    if lang == "zh":
        return read_digits(digits, lang, one="一") if len(digits) == 4 else read_integer(digits, lang)
    return _ask_wetext("en", digits) or read_integer(digits, lang)


def read_ordinal(digits: str) -> str:
    """An English ordinal number: "2" is "second"."""
    number = int(digits)
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return _ask_wetext("en", f"{number}{ending}") or read_integer(str(number), "en")


def read_clock(hours: str, minutes: str) -> str:
    """Hours and minutes in English."""
    return _ask_wetext("en", f"{hours}:{minutes}") or f"{read_integer(hours, 'en')} {read_integer(minutes, 'en')}"


def _version(token: Token) -> str:
    parts = token[0].split(".")
    read = [read_digits(part, token.lang) if len(part) > 2 else read_integer(part, token.lang) for part in parts]
    return token.choose("点", " point ").join(read)


def _percent(token: Token) -> str:
    number = read_number(token["pn"], token.lang)
    if token.lang == "zh":
        return ("百分之" if token["sign"] == "%" else "千分之") + number
    return number + (" percent" if token["sign"] == "%" else " per thousand")


def _fraction(token: Token) -> str:
    numerator, denominator = token["fraction"].split(" ")[-1].split("/")
    whole = ""
    if token["whole"]:
        whole = read_integer(token["whole"], token.lang) + token.choose("又", " and ")
    return whole + _proper_fraction(numerator, denominator, token.lang)


def _proper_fraction(numerator: str, denominator: str, lang: str) -> str:
    upper, lower = read_integer(numerator, lang), read_integer(denominator, lang)
    if int(numerator) > int(denominator):  # 120/80 is no fraction
        return f"{upper}{OVER[0]}{lower}" if lang == "zh" else f"{upper} {OVER[1]} {lower}"
    if lang == "zh":
        return f"{lower}分之{upper}"
    plain = numerator[0] != "0" and 1 < int(denominator) <= 20
    words = _ask_wetext("en", f"{numerator}/{denominator}") if plain else None
    return words or f"{upper} over {lower}"


def _ratio(token: Token) -> str:
    return token.choose("比", " to ").join(read_integer(number, token.lang) for number in token[0].split(":"))


def _power(token: Token) -> str:
    base, exponent = token["base"], token["exponent"]
    base = base if base.isalpha() else read_number(base, token.lang)
    words = read_number(exponent.lstrip("-"), token.lang)
    if exponent[0] == "-":
        words = token.choose("负", "minus ") + words
    return token.choose(f"{base}的{words}次方", f"{base} to the power of {words}")


def _plain(token: Token) -> str:
    number = token[0]
    if number.isdecimal() and len(number) > 2 and _is_identifier(token):
        return read_digits(number, token.lang)
    return read_number(number, token.lang, token.right, token.left)


def _is_identifier(token: Token) -> bool:
    """Whether a number names something: a flight or model (CA1234), a room, a telephone or card number."""
    before = token.left[-1:]
    model = before.isascii() and before.isalpha() and len(token[0]) >= 4
    return bool(model or token.right.startswith("室") or _NUMBER_NAME.search(token.left))


VERSIONS = (
    Kind(
        "dotted",
        r"(?<![\d.])\d+(?:\.\d+){2,}(?!\d)",
        _version,
        (
            ("Version 2.0.1 of it", "Version two point zero point one of it"),
            ("版本2.0.1", "版本二点零点一"),
            ("the address 192.168.0.1 is", "the address one nine two point one six eight point zero point one is"),
        ),
    ),
)
RELATIONS = (
    Kind(
        "ordinal",
        r"(?<![\w.])\d{1,9}(?:st|nd|rd|th)\b",
        lambda token: read_ordinal(token[0][:-2]),
        (("the 1st, 2nd and 23rd", "the first, second and twenty third"),),
    ),
    Kind(
        "percent",
        rf"(?P<pn>{NUMBER})[ ]?(?P<sign>[%‰])",
        _percent,
        (
            ("便宜20%", "便宜百分之二十"),
            ("含盐3.5‰", "含盐千分之三点五"),
            ("I got 90 % of it", "I got ninety percent of it"),
        ),
    ),
    Kind(
        "fraction",
        r"(?<![\w./])(?:(?P<whole>\d{1,3})[ ])?\d{1,3}/[1-9]\d{0,2}(?![\w/%])",
        _fraction,
        (
            ("剩1/3，血压120/80", "剩三分之一，血压一百二十比八十"),
            ("2 1/2 cups and 3/4 of it", "two and one half cups and three quarters of it"),
            ("about 7/25 of it", "about seven over twenty five of it"),
        ),
    ),
    Kind(
        "ratio",
        r"(?<![\w.:])\d{1,6}:\d{1,6}(?![\w:])",
        _ratio,
        (("比分3：2", "比分三比二"), ("we won 3:2 there", "we won three to two there")),
    ),
    Kind(
        "power",
        rf"(?P<base>{NUMBER}|(?<![A-Za-z])[A-Za-z])\^(?P<exponent>-?\d{{1,9}})(?![\d.])",
        _power,
        (
            ("2^10等于1024", "二的十次方等于一千零二十四"),
            ("it is x^2 or 10^-3 here", "it is x to the power of two or ten to the power of minus three here"),
        ),
    ),
)
NUMBERS = (
    Kind(
        "number",
        rf"{NUMBER}|\d+",
        _plain,
        (
            ("我有2个苹果，住2楼", "我有两个苹果，住二楼"),
            ("拨打110，共110个", "拨打幺幺零，共一百一十个"),
            ("房间305室", "房间三零五室"),
            ("Pi is 3.14, born in 1999", "Pi is three point one four, born in nineteen ninety nine"),
            ("a flight CA1234 left", "a flight CA one two three four left"),
        ),
    ),
)
