"""Numbers with what belongs to them (dates, money, units, times, web addresses) in Chinese or English words.

`TOKEN` cuts text into what is read as one, `READINGS` says how each kind that holds digits is read. The library
`wetext` reads whole numbers, ordinals, English years, clock times and fractions. It gets nothing longer, because its
grammars lose content there: "1,234" becomes "thousand two hundred and thirty four", "10%-20%" a negative percentage,
"3 m" three minutes, and English text with Chinese in it has no reading at all. What it says is checked for leftovers.
"""

import re
from functools import lru_cache

MAX_INTEGER_DIGITS = 9  # longer ones are identifiers, and wetext misreads them; those with commas go to 12
MAX_COMMA_DIGITS = 12

HAN = "\u3005-\u3007\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"

ZH_DIGITS = "零一二三四五六七八九"
EN_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
MONTH = rf"(?:{'|'.join(f'{m[:3]}(?:{m[3:]})?' for m in MONTHS)}|Sept)\.?"
ABBREVIATIONS = {
    "Dr.": "Doctor", "Mr.": "Mister", "Mrs.": "Missus", "Prof.": "Professor", "vs.": "versus", "etc.": "et cetera",
    "e.g.": "for example", "i.e.": "that is", "No.": "number",
}  # fmt: skip
MEASURES = (  # first characters of what a Chinese 2 counts
    "个只条件张本次种位名天年周家座台辆双对间层碗杯瓶份顿场句篇段把根棵头匹块片颗粒朵支枝套架艘门项遍回趟步岁倍元点分秒百小人万千亿夜"
    "公厘毫米升平立"
)
CURRENCIES = {
    "$": ("美元", "dollar", "dollars"), "€": ("欧元", "euro", "euros"), "£": ("英镑", "pound", "pounds"),
    "¥": ("元", "yuan", "yuan"),
}  # fmt: skip
EN_AMOUNTS = {
    "k": "thousand",
    "K": "thousand",
    "M": "million",
    "B": "billion",
    "万": "ten thousand",
    "亿": "hundred million",
}
CENTS = {"$": ("cent", "cents"), "€": ("cent", "cents"), "£": ("penny", "pence")}
ZH_AMOUNTS = {
    "k": "千", "K": "千", "M": "百万", "B": "十亿", "thousand": "千", "million": "百万", "billion": "十亿",
    "trillion": "万亿",
}  # fmt: skip
UNITS = {
    "km/h": ("公里每小时", "kilometers per hour"), "m/s": ("米每秒", "meters per second"), "kg": ("公斤", "kilograms"),
    "mg": ("毫克", "milligrams"), "g": ("克", "grams"), "km²": ("平方公里", "square kilometers"),
    "m²": ("平方米", "square meters"), "cm²": ("平方厘米", "square centimeters"), "㎡": ("平方米", "square meters"),
    "m³": ("立方米", "cubic meters"), "cm³": ("立方厘米", "cubic centimeters"), "km": ("公里", "kilometers"),
    "mmHg": ("毫米汞柱", "millimeters of mercury"), "cm": ("厘米", "centimeters"), "mm": ("毫米", "millimeters"),
    "nm": ("纳米", "nanometers"), "μm": ("微米", "micrometers"), "m": ("米", "meters"), "ml": ("毫升", "milliliters"),
    "mL": ("毫升", "milliliters"), "L": ("升", "liters"), "mins": ("分钟", "minutes"), "min": ("分钟", "minutes"),
    "ms": ("毫秒", "milliseconds"), "s": ("秒", "seconds"), "h": ("小时", "hours"), "hrs": ("小时", "hours"),
    "°C": ("摄氏度", "degrees Celsius"), "℃": ("摄氏度", "degrees Celsius"), "°F": ("华氏度", "degrees Fahrenheit"),
    "℉": ("华氏度", "degrees Fahrenheit"), "°": ("度", "degrees"),
    "KB": ("KB", "kilobytes"), "MB": ("MB", "megabytes"), "GB": ("GB", "gigabytes"), "TB": ("TB", "terabytes"),
    "Hz": ("赫兹", "hertz"), "kHz": ("千赫兹", "kilohertz"),
    "MHz": ("兆赫兹", "megahertz"), "GHz": ("吉赫兹", "gigahertz"), "kWh": ("千瓦时", "kilowatt hours"),
    "kW": ("千瓦", "kilowatts"), "W": ("瓦", "watts"), "V": ("伏", "volts"), "mph": ("英里每小时", "miles per hour"),
    "ft": ("英尺", "feet"), "lbs": ("磅", "pounds"), "lb": ("磅", "pounds"), "oz": ("盎司", "ounces"),
}  # fmt: skip
FACTORS = {"k": ("千", "thousand"), "x": ("倍", "times")}
SYMBOLS = {  # spoken between two operands
    "+": ("加", "plus"), "-": ("减", "minus"), "=": ("等于", "equals"), "×": ("乘以", "times"), "*": ("乘以", "times"),
    "x": ("乘以", "times"), "÷": ("除以", "divided by"), "/": ("比", "over"), "<": ("小于", "less than"),
    ">": ("大于", "greater than"), "≤": ("小于等于", "less than or equal to"),
    "≥": ("大于等于", "greater than or equal to"), "≠": ("不等于", "is not equal to"), "≈": ("约等于", "is about"),
    "<=": ("小于等于", "less than or equal to"), ">=": ("大于等于", "greater than or equal to"),
    "!=": ("不等于", "is not equal to"), "±": ("正负", "plus or minus"),
}  # fmt: skip
ALWAYS_SPOKEN = {
    "&": ("和", "and"), "@": ("at", "at"), "%": ("百分号", "percent"), "‰": ("千分号", "per thousand"),
    "²": ("平方", "squared"), "³": ("立方", "cubed"), "℃": ("摄氏度", "degrees Celsius"),
    "℉": ("华氏度", "degrees Fahrenheit"), "°": ("度", "degrees"), "㎡": ("平方米", "square meters"),
}  # fmt: skip
URL_MARKS = {".": ("点", "dot"), "/": ("斜杠", "slash"), "@": ("at", "at")}

NUMBER = r"(?:(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d|,\d)|\d+)(?:\.\d+)?(?!\.?\d)|(?<![\w.])\.\d+"
LATIN = rf"(?:(?![{HAN}²³])[^\W\d_]|[\u0300-\u036f])"
UNIT = "|".join(re.escape(u) for u in sorted(UNITS, key=len, reverse=True))
DECADE_CONTEXT = (
    "(?:" + "|".join(f"(?<={w})" for w in ("the[ ]", "'", "’", "his[ ]", "her[ ]", "early[ ]", "late[ ]")) + ")"
)
SHORT = "|".join(re.escape(short) for short in ABBREVIATIONS if short != "No.")
HALF_DAY = r"(?:[aApP][mM]\b|[aApP]\.[mM]\.?(?!\w))"
TOKEN = re.compile(
    rf"""
    (?P<link>\]\((?=[^()\s]*[/.\#:@])(?:[^()\s]|\([^()\s]*\))*(?:[ ]+"[^"\n]*")?\))
    |(?P<br><br[ ]*/?>)
    |(?a:(?P<url>(?:(?:https?|ftp)://|\bwww\.)[!-~]*[A-Za-z0-9/]|(?<![\w.+-])[\w.+-]{{1,64}}@[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)+)
    |(?P<zhdate>(?<!\d)(?P<zy>\d{{2}}|[12]\d{{3}})年(?:(?P<zm>\d{{1,2}})月(?:(?P<zd>\d{{1,2}})(?=[日号]))?)?
        |(?<!\d)(?P<m>1[0-2]|[1-9])月(?P<d>\d{{1,2}})(?=[日号]))
    |(?P<isodate>(?<![\d.])[12]\d{{3}}(?P<sep>[-/.])(?:0?[1-9]|1[0-2])(?P=sep)(?:3[01]|[12]\d|0?[1-9])
        (?!\d|[-/.]\d))
    |(?P<usdate>(?<![\d/])(?:3[01]|[12]\d|0?[1-9])/(?:3[01]|[12]\d|0?[1-9])/[12]\d{{3}}(?![\d/]))
    |(?P<endate>\b{MONTH}[ ]\d{{1,2}}(?:st|nd|rd|th)?\b(?!:|\.\d|[ ]?%)(?:,?[ ][12]\d{{3}}\b(?![%:.,]\d))?)
    |(?P<daymonth>(?<![\w.])\d{{1,2}}(?:st|nd|rd|th)?(?=[ ]{MONTH}(?![A-Za-z])))
    |(?P<time>(?<![\d:.])(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d)?(?![\d:])(?:[ ]?{HALF_DAY})?)
    |(?P<hour>(?<![\d:.])(?:1[0-2]|[1-9])[ ]?{HALF_DAY})
    |(?P<phone>(?<![\d.\w])(?:\+\d{{1,3}}[- ]?\d{{4,14}}(?![\d-])|0\d{{2,3}}-\d{{7,8}}(?!\d)
        |1[3-9]\d(?:\d{{8}}|[- ]\d{{4}}[- ]\d{{4}})(?!\d)
        |(?:\+?\d{{1,3}}[- ])?(?:\(\d{{2,4}}\)[ ]?|\d{{3}}-)\d{{3,4}}-\d{{4}}(?!\d)))
    |(?P<dotted>(?<![\d.])\d+(?:\.\d+){{2,}}(?!\d))
    |(?P<money>(?P<cur>[$€£¥])[ ]?(?P<sum>{NUMBER})
        (?:[ ]?(?P<amount>thousand|million|billion|trillion|万|亿|[kKMB]))?(?![A-Za-z]))
    |(?P<decade>(?<![\d.,])(?:1[1-9]|20)\d0s\b|{DECADE_CONTEXT}\d0s\b)
    |(?P<ordinal>(?<![\w.])\d{{1,9}}(?:st|nd|rd|th)\b)
    |(?P<percent>(?P<pn>{NUMBER})[ ]?(?P<sign>[%‰]))
    |(?P<fraction>(?<![\w./])(?:(?P<whole>\d{{1,3}})[ ])?\d{{1,3}}/[1-9]\d{{0,2}}(?![\w/%]))
    |(?P<ratio>(?<![\w.:])\d{{1,6}}:\d{{1,6}}(?![\w:]))
    |(?P<power>(?P<base>{NUMBER}|(?<![A-Za-z])[A-Za-z])\^(?P<exponent>-?\d{{1,9}})(?![\d.]))
    |(?P<measure>(?P<mn>{NUMBER})(?:[ ]?(?P<unit>{UNIT})|(?P<factor>[kx])(?![ ]?\d))(?![A-Za-z0-9²³/]))
    |(?P<number>{NUMBER}|\d+)
    |(?P<abbreviation>\b(?:{SHORT}|No\.(?=[ ]?\d)))
    |(?P<initials>\b(?:[A-Za-z]\.){{2,}}(?!\w)|\b[A-Za-z](?:\.[A-Za-z])+\b\.?))
    |(?P<han>[{HAN}]+)
    |(?P<word>{LATIN}+(?:['’]{LATIN}+)*)
    |(?P<newline>\s*\n\s*)
    |(?P<space>\s+)
    |(?P<dots>\.+|…+)
    |(?P<run>=+|[-−]+|[–—]+|~+|\*+|[<>!]=)
    |(?P<times>(?<=\d)[xX](?=\d))
    |(?P<other>.)
    """,
    re.X | re.S,
)
_OF_NUMBER = re.compile(rf"\d\s?(?:{UNIT})(?![A-Za-z])|\d[A-Za-z]+")  # letters that are no word
_STOP = re.compile(rf"[，。！？；、：…\n{HAN}]|[.!?;,:](?=\s)")


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
    """Digit by digit; anything that is no digit is a short break between groups."""
    if lang == "zh":
        return "".join(one if d == "1" else ZH_DIGITS[int(d)] for d in digits if d.isdecimal())
    groups = re.findall(r"\d+", digits)
    return ", ".join(" ".join(EN_DIGITS[int(d)] for d in group) for group in groups)


def read_integer(digits: str, lang: str) -> str:
    """A whole number in words: "1,234" and "12", and digit by digit "007" and identifiers."""
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
    """A plain number; `following` and `preceding` are the text around it."""
    whole, _, decimals = text.partition(".")
    if decimals:
        point = "点" if lang == "zh" else " point "
        return read_integer(whole or "0", lang) + point + read_digits(decimals, lang, one="一")
    if lang == "zh" and text == "2" and _counts(following, preceding):
        return "两"
    if lang == "en" and re.fullmatch(r"1[1-9]\d\d|20[1-9]\d", text):
        return _year(text, lang)
    return read_integer(text, lang)


def _counts(following: str, preceding: str) -> bool:
    """Whether a Chinese 2 is a count (两个), not a name (第二个, 二年级)."""
    following = following.lstrip()
    ordinal = preceding.rstrip()[-1:] in tuple("第月期") or following.startswith(("年级", "分之", "点零"))
    return not ordinal and following[:1] in tuple(MEASURES)


def _year(digits: str, lang: str) -> str:
    if lang == "zh":
        return read_digits(digits, lang, one="一") if len(digits) == 4 else read_integer(digits, lang)
    return _ask_wetext("en", digits) or read_integer(digits, lang)


def _ordinal(digits: str) -> str:
    number = int(digits)
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return _ask_wetext("en", f"{number}{ending}") or read_integer(str(number), "en")


def _date(year: str, month: str, day: str, lang: str) -> str:
    if lang == "zh":
        return f"{_year(year, lang)}年{read_integer(str(int(month)), lang)}月{read_integer(str(int(day)), lang)}日"
    return f"{MONTHS[int(month) - 1]} {_ordinal(day)}, {_year(year, lang)}"


def _clock(text: str, lang: str) -> str:
    hours, minutes, seconds, half = re.fullmatch(r"(\d+):?(\d+)?:?(\d+)? ?([aApP]\.?[mM]\.?)?", text).groups()
    half = half[0].lower() if half else ""
    if lang == "zh":
        spoken = {"a": "上午", "p": "下午", "": ""}[half]
        spoken += ("两" if int(hours) == 2 else read_integer(str(int(hours)), lang)) + "点"
        for part, unit in ((minutes, "分"), (seconds, "秒")):
            if part and int(part):
                spoken += ("零" if part[0] == "0" else "") + read_integer(str(int(part)), lang) + unit
        return spoken
    end = {"a": " AM", "p": " PM", "": ""}[half]
    if seconds or not minutes or (half and minutes == "00"):
        parts = [read_integer(str(int(part)), lang) for part in (hours, minutes, seconds) if part and int(part)]
        return " ".join(parts or ["zero"]) + end
    return (
        _ask_wetext("en", f"{hours}:{minutes}") or f"{read_integer(hours, lang)} {read_integer(minutes, lang)}"
    ) + end


def _money(match: re.Match, lang: str) -> str:
    currency, amount, total = match["cur"], match["amount"], match["sum"]
    zh, one, many = CURRENCIES[currency]
    if lang == "zh":
        return read_number(total, lang, "元") + ZH_AMOUNTS.get(amount, amount or "") + zh
    whole, _, cents = total.partition(".")
    if len(cents) == 2 and not amount and currency in CENTS:
        names = CENTS[currency]
        minor = f"{read_integer(str(int(cents)), lang)} {names[int(cents) != 1]}"
        major = f"{read_integer(whole, lang)} {many if whole != '1' else one}" if whole.strip("0") else ""
        return " and ".join(part for part in (major, minor if int(cents) or not major else "") if part)
    spoken = read_integer(total, lang) if "." not in total else read_number(total, lang)
    amount = f" {EN_AMOUNTS.get(amount, amount)}" if amount else ""
    return f"{spoken}{amount} {one if total == '1' and not amount else many}"


def _measure(match: re.Match, lang: str) -> str:
    number = match["mn"]
    zh, en = UNITS[match["unit"]] if match["unit"] else FACTORS[match["factor"]]
    if lang == "zh":
        return read_number(number, lang, zh) + zh
    if number == "1":
        en = re.sub(r"^((?:square |cubic |kilowatt )?[a-z]+)s\b", r"\1", en).replace("feet", "foot")
    return f"{read_integer(number, lang) if '.' not in number else read_number(number, lang)} {en}"


def _percent(match: re.Match, lang: str) -> str:
    if lang == "zh":
        return ("百分之" if match["sign"] == "%" else "千分之") + read_number(match["pn"], lang)
    return read_number(match["pn"], lang) + (" percent" if match["sign"] == "%" else " per thousand")


def _fraction(match: re.Match, lang: str) -> str:
    numerator, denominator = match["fraction"].split(" ")[-1].split("/")
    if int(numerator) > int(denominator):  # 120/80 is no fraction
        spoken = f" {SYMBOLS['/'][lang == 'en']} ".join(read_integer(part, lang) for part in (numerator, denominator))
        spoken = spoken.replace(" ", "") if lang == "zh" else spoken
    elif lang == "zh":
        spoken = f"{read_integer(denominator, lang)}分之{read_integer(numerator, lang)}"
    else:
        plain = numerator[0] != "0" and 1 < int(denominator) <= 20
        spoken = _ask_wetext("en", f"{numerator}/{denominator}") if plain else None
        spoken = spoken or f"{read_integer(numerator, lang)} over {read_integer(denominator, lang)}"
    whole = read_integer(match["whole"], lang) + ("又" if lang == "zh" else " and ") if match["whole"] else ""
    return whole + spoken


def _english_date(match: re.Match, lang: str) -> str:
    month, day, year = re.fullmatch(r"(\D+?)\.? (\d+)\D*(?:,? (\d{4}))?", match[0]).groups()
    name = next(m for m in MONTHS if m.startswith(month[:3]))
    return f"{name} {_ordinal(day)}" + (f", {_year(year, 'en')}" if year else "")


def _chinese_date(match: re.Match, lang: str) -> str:
    year = f"{_year(match['zy'], lang)}年" if match["zy"] else ""
    month, day = match["zm"] or match["m"], match["zd"] or match["d"]
    month = f"{read_integer(str(int(month)), lang)}月" if month else ""
    return year + month + (read_integer(str(int(day)), lang) if day else "")


def _slash_date(match: re.Match, lang: str) -> str:
    month, day, year = match[0].split("/")
    if int(month) > 12:  # the day comes first outside the United States
        month, day = day, month
    valid = 1 <= int(month) <= 12 and 1 <= int(day) <= 31
    return _date(year, month, day, lang) if valid else read_digits(match[0], lang)


def _web_address(match: re.Match, lang: str) -> str:
    address = match[0].rstrip(".,!?;:)>*_'\"/")
    spoken = []
    for part in re.findall(r"\d+|[^\W\d_]+|.", address):
        word = read_digits(part, lang, one="一") if part.isdecimal() else part
        mark = URL_MARKS.get(part, ("", ""))[lang == "en"]
        spoken.append(mark if not part.isalnum() else word)
    return re.sub(r" +", " ", " ".join(spoken).replace(" 斜杠 斜杠 ", " ").replace(" slash slash ", " ")).strip()


def _power(match: re.Match, lang: str) -> str:
    base, exponent = match["base"], match["exponent"]
    base = base if base.isalpha() else read_number(base, lang)
    spoken = ("负" if lang == "zh" else "minus ") * (exponent[0] == "-") + read_number(exponent.lstrip("-"), lang)
    return f"{base}的{spoken}次方" if lang == "zh" else f"{base} to the power of {spoken}"


READINGS = {
    "zhdate": lambda m, lang: _chinese_date(m, "zh"),
    "isodate": lambda m, lang: _date(*re.split(r"[-/.]", m[0]), lang),
    "usdate": _slash_date,
    "endate": _english_date,
    "daymonth": lambda m, lang: _ordinal(re.match(r"\d+", m[0])[0]) + " of",
    "time": lambda m, lang: _clock(m[0], lang),
    "hour": lambda m, lang: _clock(m[0], lang),
    "phone": lambda m, lang: ("加" if lang == "zh" else "plus ") * ("+" in m[0]) + read_digits(m[0], lang),
    "dotted": lambda m, lang: ("点" if lang == "zh" else " point ").join(
        read_digits(part, lang) if len(part) > 2 else read_integer(part, lang) for part in m[0].split(".")
    ),
    "money": _money,
    "decade": lambda m, lang: read_integer(m[0][:-1], lang) + "年代" if lang == "zh" else _plural_decade(m[0][:-1]),
    "ordinal": lambda m, lang: _ordinal(m[0][:-2]),
    "percent": _percent,
    "fraction": _fraction,
    "ratio": lambda m, lang: ("比" if lang == "zh" else " to ").join(read_integer(n, lang) for n in m[0].split(":")),
    "power": _power,
    "measure": _measure,
    "url": _web_address,
}


def _plural_decade(digits: str) -> str:
    return re.sub(r"y$", "ies", re.sub(r"(?<=[^y])$", "s", _year(digits, "en")))


class IncompleteError(Exception):
    """The reading depends on text that is not there yet."""


def choose_language(left: str, right: str, complete: bool) -> str:
    """zh or en for a number or symbol between `left` and `right`, the text around it.

    Chinese characters next to it decide, then two English words in small letters in the same run of Latin script,
    then Chinese at either end of that run, so that a product name inside Chinese (iPhone 15 Pro) is read in Chinese.

    Raises:
        IncompleteError: `right` ends before it is decided and may still grow (`complete` is False).
    """
    if re.search(rf"[{HAN}][^\w，。！？；、：….!?;,\n]*\Z", left) or re.match(
        rf"[^\w，。！？；、：….!?;,\n]*[{HAN}]", right
    ):
        return "zh"
    if not complete and re.fullmatch(r"[^\w，。！？；、：….!?;,\n]*", right):
        raise IncompleteError
    stop = _STOP.search(right)
    head = right[: stop.start()] if stop else right
    head = head if stop or complete else re.sub(r"[A-Za-z]+\Z", "", head)  # that word may go on
    starts = [match.end() for match in _STOP.finditer(left)]
    tail = left[starts[-1] :] if starts else left
    run = f"{tail} 0 {head}"
    if len(re.findall(r"(?<![A-Za-z])[a-z]{2,}(?![A-Za-z])", run)) >= 2:
        return "en"
    if not stop and not complete:
        raise IncompleteError
    edges = left[starts[-1] - 1 : starts[-1]] if starts else ""
    if re.search(f"[{HAN}]", edges + (stop[0] if stop else "")):
        return "zh"
    sentence = re.split(r"[。！？\n]|[.!?]\s", left)[-1]
    if re.search("[A-Za-z]", _OF_NUMBER.sub("", run)) and not re.search(f"[{HAN}]", sentence):
        return "en"
    ahead = right if complete else re.sub(r"[\w/°²³ .]+\Z", "", right)
    letters = re.findall(f"[A-Za-z{HAN}]", _OF_NUMBER.sub("", left))[-1:]
    letters = letters or re.findall(f"[A-Za-z{HAN}]", _OF_NUMBER.sub("", ahead))[:1]
    if not letters and not complete:
        raise IncompleteError
    return "en" if letters and letters[0].isascii() and not re.search(f"[{HAN}]", sentence) else "zh"
