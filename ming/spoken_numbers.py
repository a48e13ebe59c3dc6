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

# Before a unit, where nothing is counted: "1,5 kg", "1.000,5 kg".
DECIMAL_COMMA = r"(?<![\d.,])(?:\d{1,3}(?:\.\d{3})+|\d{1,3}),\d{1,2}(?![\d,.])"
CONTINENTAL = r"\d{1,3}(?:\.\d{3})+,\d{1,2}(?!\d|[,.]\d)"  # stops between groups of three and a decimal comma
_GROUPED = rf"(?<![\w.,])(?:{CONTINENTAL}|[1-9]\d{{0,2}}(?:\.\d{{3}})+\.000(?!\d|[,.]\d))"
_ENDING = "(?:ths?|rds?|nds?)"  # of "7/8ths"
NUMBER = (  # with commas, apostrophes or, where it ends in zeros, with spaces between groups of three digits
    r"(?:(?<![\d.])(?:(?<!,)\d{1,2}(?:,\d\d)+,\d{3}(?!\d|,\d)"  # in lakhs and crores
    r"|\d{1,3}(?:(?:,\d{3})+(?!\d|,\d)|(?:['’]\d{3})+(?!\d)|(?:[ ]\d{3}){0,4}[ ]000(?!\d|[ ,]\d)))|\d+)"
    r"(?:\.\d+)?(?!\.?\d)|(?<![\w.])\.\d+"
)
EXPONENT = (  # of scientific notation: "e-5", " × 10^8", "×10⁸"
    r"(?:[eE][-+−]?\d{1,3}|[ ]?[x×·][ ]?10(?:\^[-−]?\d{1,3}|[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+))(?!\d|\.\d)"
)
NUMBER_NAME = re.compile(  # what stands before a telephone number and the like
    r"""(?:(?:电话|热线|客服|传真|手机|单号|号码|拨打?|[编学卡账书]号|QQ号|微信号|邮编|邮政编码|验证码|密码|\d转)[是为：:\s]*
    |\b(?:[Cc]all|[Dd]ial)[ ](?:(?:me|us|him|her|them)[ ])?(?:(?:at|on)[ ])?
    |\b(?:[Cc]all|[Dd]ial)[:\s]*
    |(?i:\b(?:tel|phone|fax)\b\.?:[ ]?|\bext(?:\.|ension)?[ ]
    |\b(?:(?:zip|area|postal|access|verification|security)[ ]code|zip|postcode|pin|passcode|phone[ ]number|isbn|issn)
    \b[:\s]*(?:(?:is|was)[ ])?
    |\b(?:account|order|serial|tracking|reference|invoice|case|ticket|policy|member|customer|passport|part|job)
    [ ](?:number|no\.|id|code)[:\s]*(?:(?:is|was)[ ])?))
    (?:\d{3,}(?:[ ]or[ ]|或者?|、|[ ]?/[ ]?))*\Z""",
    re.X,
)
SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_PLAIN_SCRIPT = str.maketrans(SUPERSCRIPTS + "⁻⁺−", "0123456789-+-")
IDIOMS = {  # numbers with a slash that are no fractions
    "24/7/365": ("二十四七三六五", "twenty four seven three sixty five"),
    "24/7": ("二十四七", "twenty four seven"),
    "24x7": ("二十四七", "twenty four seven"),
    "9/11": ("九一一", "nine eleven"),
    "50/50": ("五十五十", "fifty fifty"),
    "20/20": ("二十二十", "twenty twenty"),
}
_RATED = re.compile(r"\b(?:rat(?:ed?|es|ing)|scor(?:ed?|es|ing)|gives?|gave|grade[sd]?|reviews?)\b[^.!?\d]{0,20}\Z")
_ZH_RATED = re.compile(r"(?:[评得打]分|评[级价]|成绩|分数|打了?|得了?)[是为：:\s]*\Z")
RATIO_NAME = re.compile(
    r"(?:(?i:\bratio|\bscale|\bodds|\bscore)(?:[ ](?:is|was|of))?:?\s*|比[例率分]?[是为：:约]?\s*)\Z"
)


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
    plain = re.sub("[, '’]", "", digits)
    limit = MAX_COMMA_DIGITS if plain != digits else MAX_INTEGER_DIGITS
    if len(plain) > limit or (len(plain) > 1 and plain[0] == "0"):
        return read_digits(plain, lang)
    if len(plain) == 1:
        return read_digits(plain, lang, one="一")
    if lang == "en" and re.fullmatch(r"\d{1,2}(?:,\d\d)+,\d{3}", digits):
        return _indian_integer(int(plain))
    # A unit keeps wetext from reading a year or an emergency number.
    words = _ask_wetext(lang, f"{plain}元" if lang == "zh" else f"{plain} kg")
    return re.sub(r"元$| kilograms?$", "", words) if words else read_digits(plain, lang)


def _indian_integer(value: int) -> str:
    """A number whose commas part lakhs and crores, "12,34,567", in the English words of these commas."""
    crores, rest = divmod(value, 10**7)
    lakhs, rest = divmod(rest, 10**5)
    counts = ((crores, " crore"), (lakhs, " lakh"), (rest, ""))
    return " ".join(read_integer(str(count), "en") + name for count, name in counts if count)


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


def with_point(number: str) -> str:
    """A number with a `DECIMAL_COMMA` in the form that is read, "1,5" as "1.5"; others as they are."""
    return number.replace(".", "").replace(",", ".") if re.fullmatch(DECIMAL_COMMA, number) else number


def _grouped(token: Token) -> str:
    """A number whose groups of three are parted by stops: "1.000.000,50"."""
    whole, _, decimals = token[0].partition(",")
    return read_number(whole.replace(".", ",") + (f".{decimals}" if decimals else ""), token.lang, token.right)


def _code_number(token: Token) -> str:
    """A number as programs write it: "1_000" is a thousand, "0x1F" zero, x, one, F."""
    if "_" in token[0]:
        return read_number(token[0].replace("_", ","), token.lang, token.right)
    words = []
    for part in re.findall(r"\d+|[A-Za-z]", token[0]):
        read = read_digits if len(part) > 2 else read_integer
        words.append(read(part, token.lang) if part.isdecimal() else part)
    return token.choose("", " ").join(words)


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
    version, _, prefix = token[0].partition("/")  # the network 10.0.0.0/24
    parts = version.split(".")
    read = [read_digits(part, token.lang) if len(part) > 2 else read_integer(part, token.lang) for part in parts]
    words = token.choose("点", " point ").join(read)
    return words + token.choose("斜杠", " slash ") + read_integer(prefix, token.lang) if prefix else words


def _percent(token: Token) -> str:
    number = read_number(with_point(token["pn"]), token.lang)
    first = read_number(token["from"], token.lang) if token["from"] else ""
    if token.lang == "zh":
        part = "百分之" if token["sign"] == "%" else "千分之"
        return f"{part}{first}到{part}{number}" if first else part + number
    number = f"{first} to {number}" if first else number
    return number + (" percent" if token["sign"] == "%" else " per thousand")


def _idiom(token: Token) -> str:
    is_day = token.right.startswith(("事件", "恐", "袭")) or (
        token.lang == "en" and not token.right.startswith(" of ")
    )
    if token[0] == "9/11" and not is_day:
        return _proper_fraction("9", "11", token.lang)
    return token.choose(*IDIOMS[token[0]])


def _out_of(token: Token) -> str:
    """Points: "4.5/5" is "four point five out of five"."""
    upper, lower = token["points"], token["most"]
    scored = _ZH_RATED if token.lang == "zh" else _RATED
    measured = token.lang == "zh" and re.match(r"[ ]?[A-Za-zμ℃°]", token.right)
    is_score = ("." in upper and not measured) or upper == lower or token["point_unit"] or scored.search(token.left)
    if not (is_score or re.match(r"[ ]?stars?\b|[ ]?\(\d", token.right)):
        if "." in upper:
            return token.choose(OVER[0], f" {OVER[1]} ").join(
                (read_number(upper, token.lang), read_integer(lower, token.lang))
            )
        return _proper_fraction(upper, lower, token.lang)
    upper, lower = (read_number(value, token.lang, "分") for value in (upper, lower))
    return token.choose(f"{upper}分，满分{lower}分", f"{upper} out of {lower}")


def _shares(token: Token) -> str:
    """Two shares of a hundred, "a 70/30 split", and eyesight: "seventy thirty"."""
    return token.choose("比", " ").join(read_integer(number, token.lang) for number in token[0].split("/"))


def _fraction(token: Token) -> str:
    numerator, denominator = re.sub(f"{_ENDING}$", "", token["fraction"]).split(" ")[-1].split("/")
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


def read_ratio(token: Token) -> str:
    return token.choose("比", " to ").join(read_integer(number, token.lang) for number in token[0].split(":"))


def _power(token: Token) -> str:
    base, exponent = token["base"], (token["exponent"] or token["super"]).translate(_PLAIN_SCRIPT)
    base = base if base.isalpha() else read_number(base, token.lang)
    if base.isascii() and base.isalpha() and exponent in ("2", "3") and token["super"]:
        return base + token.choose(*{"2": ("平方", " squared"), "3": ("立方", " cubed")}[exponent])
    return _to_the_power(base, exponent, token.lang)


def _to_the_power(base: str, exponent: str, lang: str) -> str:
    digits = exponent.lstrip("-+")
    if digits.isdecimal():
        digits = str(int(digits))  # 1e-05
    words = digits if digits.isalpha() else (read_number if "." in digits else read_integer)(digits, lang)
    if exponent[0] == "-":
        words = choose(lang, "负", "minus ") + words
    return choose(lang, f"{base}的{words}次方", f"{base} to the power of {words}")


def read_scientific(text: str, lang: str) -> str:
    """A number with an `EXPONENT`: "3e8" and "3×10^8"."""
    parts = re.fullmatch(r"([\d., ]*\d)(?:[eE]|[ ]?[x×·][ ]?10\^?)(.+)", text.translate(_PLAIN_SCRIPT))
    assert parts is not None, f"{text!r} matched the pattern of scientific numbers"
    power = _to_the_power(choose(lang, "十", "ten"), parts[2], lang)
    return read_number(parts[1], lang) + choose(lang, "乘以", " times ") + power


def _scientific(token: Token) -> str:
    return read_scientific(token[0], token.lang)


def _is_generation(token: Token, number: str) -> bool:
    """Whether a number is a decade of birth: 90后, but not 满70后."""
    born = token.lang == "zh" and token.right.startswith("后") and re.fullmatch("[0789]0", number)
    return bool(born) and token.left[-1:] not in ("满", "过", "到", ".")


def _plain(token: Token) -> str:
    number = token[0].translate(_PLAIN_SCRIPT)
    if token[0] in ("²", "³") and re.search(r"[A-Za-z]\Z", token.left):  # mc²
        return token.choose("平方", "squared") if token[0] == "²" else token.choose("立方", "cubed")
    if _is_generation(token, number):
        return read_digits(number, "zh")
    of_size = re.match(r"\s?[xX×]\s?\d", token.right) or re.search(r"\d\s?[xX×]\s?\Z", token.left)  # 1920x1080
    if number.isdecimal() and of_size:
        return read_integer(number, token.lang)
    if number.isdecimal() and len(number) > 2 and _is_identifier(token):
        return read_digits(number, token.lang)
    return read_number(number, token.lang, token.right, token.left)


def _is_identifier(token: Token) -> bool:
    """Whether a number names something: a flight or model (CA1234), a room, a telephone or card number."""
    before = token.left[-1:]
    if token.right.startswith(("报警", "急救", "火警")):
        return True
    model = before.isascii() and before.isalpha() and len(token[0]) >= 4
    plate = re.search("[A-Z]·\\Z", token.left)  # 京A·12345
    return bool(model or plate or token.right.startswith("室") or NUMBER_NAME.search(token.left))


VERSIONS = (
    Kind(
        "code_number",
        r"(?<![\w.])(?:0(?:[xX][\da-fA-F]+|[bB][01]+|o[0-7]+)|[1-9]\d{0,2}(?:_\d{3})+(?:\.\d+)?)(?![\w.])",
        _code_number,
        (
            ("0x1F, 1_000", "zero x one F, one thousand"),
            ("the values 0b10 and 1_000.5 are", "the values zero b ten and one thousand point five are"),
            ("值是0x1F和1_000", "值是零x一F和一千"),
        ),
    ),
    Kind(
        "dotted",
        rf"(?!{_GROUPED})(?<![\d.])\d+(?:\.\d+){{2,}}(?!\d)(?:(?<=\d)/\d{{1,2}}(?![\w/]))?",
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
        r"(?<![\w.,])(?:\d{1,3}(?:,\d{3}){1,2}|\d{1,9})(?:st|nd|rd|th)\b",
        lambda token: read_ordinal(token[0][:-2].replace(",", "")),
        (("the 1st, 2nd and 23rd", "the first, second and twenty third"),),
    ),
    Kind(
        "percent",
        rf"(?:(?P<from>{NUMBER})[-–~])?(?P<pn>{DECIMAL_COMMA}|{NUMBER})[ ]?(?P<sign>[%‰])",
        _percent,
        (
            ("便宜20%", "便宜百分之二十"),
            ("含盐3.5‰", "含盐千分之三点五"),
            ("I got 90 % of it", "I got ninety percent of it"),
            ("有5-10%的人", "有百分之五到百分之十的人"),
            ("it is 12,5 % of 1'000'000 here", "it is twelve point five percent of one million here"),
        ),
    ),
    Kind(
        "out_of",
        r"""(?<![\w./])(?:(?P<points>\d{1,3}(?:\.\d{1,2})?)/(?P<most>(?:5|10|20|100)(?:\.0)?
        |(?:(?<=\.\d/)|(?<=\.\d\d/))4(?:\.0)?)(?P<point_unit>分(?![钟之]))?)(?![\w/%]|\.\d)""",
        _out_of,
        (
            ("评分4.5/5分，考了85/100分", "评分四点五分，满分五分，考了八十五分，满分一百分"),
            (
                "a GPA of 3.8/4.0 and 10/10 there",
                "a GPA of three point eight out of four point zero and ten out of ten there",
            ),
            ("it was rated 4.5/5 or 8/10 here", "it was rated four point five out of five or eight tenths here"),
        ),
    ),
    Kind(
        "fraction",
        rf"(?<![\w./])(?:(?P<whole>\d{{1,3}})[ ])?\d{{1,3}}/[1-9]\d{{0,2}}{_ENDING}?(?![\w/%])",
        _fraction,
        (
            ("剩1/3，血压120/80", "剩三分之一，血压一百二十比八十"),
            ("2 1/2 cups and 3/4 of it", "two and one half cups and three quarters of it"),
            ("about 7/25 of it", "about seven over twenty five of it"),
            ("1/3, 7/8ths, 2/3rds, 1st", "one third, seven eighths, two thirds, first"),
        ),
    ),
    Kind(
        "ratio",
        r"(?<![\w.:])\d{1,6}:\d{1,6}(?![\w:])",
        read_ratio,
        (("比分3：2", "比分三比二"), ("we won 3:2 there", "we won three to two there")),
    ),
    Kind(
        "power",
        rf"""(?P<base>{NUMBER}|(?<![A-Za-z])[A-Za-z])(?:(?:\^|(?<=\d)(?<!\*\d)\*\*(?=-?\d))
        (?P<exponent>[-−]?\d{{1,9}}(?:\.\d+)?|[a-z](?![A-Za-z]))(?!\d|\.\d)|(?P<super>[⁻⁺]?[{SUPERSCRIPTS}]+))""",
        _power,
        (
            ("2^10等于1024", "二的十次方等于一千零二十四"),
            ("it is x^2 or 10^-3 here", "it is x to the power of two or ten to the power of minus three here"),
            ("it is x² or 10⁻⁵ here", "it is x squared or ten to the power of minus five here"),
        ),
    ),
    Kind(
        "scientific",
        rf"(?P<mantissa>(?<![A-Za-z])(?:{NUMBER}))[eE](?P<e>[-+−]?\d{{1,3}})(?![\w]|\.\d)",
        _scientific,
        (
            ("it is 1e-5 here", "it is one times ten to the power of minus five here"),
            ("约6.02e23个", "约六点零二乘以十的二十三次方个"),
        ),
    ),
)
_SHARES = "|".join(f"{100 - part}/{part}" for part in range(5, 50, 5))
IDIOM = (
    Kind(
        "shares",
        rf"""(?<![\w./])(?:(?:{_SHARES}|5/95|10/90|20/80|30/70|40/60)(?=[ ](?:rule|split|principle|mix|chance|blend|
        allocation|portfolio|ratio|power|deal|partnership)\b|法则|定律|原则)
        |(?:{_SHARES})(?=[ ][a-z])(?![ ](?:of|mm)\b)
        |20/(?:15|[2-9]0|[1-4]00)(?=[ ](?:vision|eyesight)\b))""",
        _shares,
        (
            ("the 80/20 rule or a 70/30 split is", "the eighty twenty rule or a seventy thirty split is"),
            ("80/20法则", "八十比二十法则"),
        ),
    ),
    Kind(
        "idiom",
        r"(?<![\w./])(?:24/7/365|24/7|24x7|9/11|50/50|20/20)(?![\w/%]|\.\d)",
        _idiom,
        (("open 24/7 since 9/11 here", "open twenty four seven since nine eleven here"), ("剩9/11", "剩十一分之九")),
    ),
)
NUMBERS = (
    Kind(
        "grouped",
        _GROUPED,
        _grouped,
        (
            (
                "it is 1.000.000,50 or 1.250.000 here",
                "it is one million point five zero or one million two hundred fifty thousand here",
            ),
            ("共1.000.000,50个", "共一百万点五零个"),
        ),
    ),
    Kind(
        "number",
        rf"{NUMBER}|\d+|[{SUPERSCRIPTS}]+",
        _plain,
        (
            ("我有2个苹果，住2楼", "我有两个苹果，住二楼"),
            ("拨打110，共110个", "拨打幺幺零，共一百一十个"),
            ("房间305室，90后", "房间三零五室，九零后"),
            ("Pi is 3.14, born in 1999", "Pi is three point one four, born in nineteen ninety nine"),
            ("a flight CA1234 left", "a flight CA one two three four left"),
        ),
    ),
)
