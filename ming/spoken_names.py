"""Numbers that name things, aircraft, standards and the like, and numbers whose letter the words around them explain:
"50K", "99c", "30C". In Chinese or English words."""

import re

from .spoken_addresses import read_address
from .spoken_kinds import Kind, Token
from .spoken_measures import SCREEN
from .spoken_money import COUNTED, read_amount
from .spoken_numbers import NUMBER, read_digits, read_integer, read_number, read_year

_LISTED = re.compile(  # what stands before a number with a letter that names it: "Section 5c", "row 12C"
    r"(?:\b(?i:sections?|figures?|figs?|tables?|steps?|parts?|questions?|exercises?|problems?|pages?|lines?|rows?|seats?|"
    r"gates?|rooms?|apartments?|flats?|class|grade|form|units?|rules?|articles?|appendix|exhibits?|buildings?|blocks?|"
    r"types?|models?|versions?|numbers?|no\.|chapters?|platforms?|tracks?|house|aisles?|vitamins?|iphone)[ ]"
    r"|\d[abd-h](?:,|[ ](?:and|or|to))*[ ]|[a-h][-/])\Z"
)
_PAIRED = re.compile(r"(?:,|[ ](?:and|or))?[ ]\d{1,2}[abd-h]\b")
_WARM_BEFORE = re.compile(
    r"(?:\b(?:is|was|are|were|at|to|of|below|above|over|under|around|about|reach(?:ed|es)?|hits?|"
    r"than|from|between|and|or|minus|by|hotter|colder|warm|cold|hot|oven|feels?|like|it's)[ ]"
    r"|(?:气温|水温|体温|室温|温度|高温|低温|零下|约|达到?|是|到|至|为|低于|高于|超过)[ ]?"
    r"|\d[-–~]|[~(]|(?<![A-Za-z0-9])-)\Z"
)
_WARM_BEHIND = re.compile(
    r"[ ](?:outside|inside|today|tomorrow|yesterday|tonight|here|water|heat|weather|oven|temperatures?|in[ ]the|"
    r"degrees|warmer|colder|hotter|or[ ](?:more|less|higher|lower)|for[ ]\d)\b"
)
_LETTER_K = re.compile(
    rf"[ -]?(?:{SCREEN}|runs?|races?|resolution|footage|camera|monitors?|RAM|ROM|memory|context|modem|trail|walk|UHD|"
    rf"HDR|gold)\b"
)
_PAID = re.compile(
    r"(?:\b(?:costs?|paid|pays?|earns?|earned|makes?|made|salary|worth|over|than|spent|spend|sold|about|around|nearly|"
    r"raised|another|up[ ]to)[ ](?:of[ ])?|(?:薪|工资|年?收入|花了?|价格?|约)[ ]?)\Z"
)
_EACH = re.compile(r"[ ](?:each|off|per|a|an|coins?|or|to)\b|/")
_MAKERS = "Boeing|Airbus|Embraer|Bombardier|Cessna|Fokker|Tupolev|ATR|波音|空客|空中客车"
_AFTER_MAKER = "|".join(rf"(?<={name}[ ])|(?<={name})" for name in _MAKERS.split("|"))
_BODIES = "RFC|ISO|IEC|IEEE|DIN|ANSI|ECMA|NIST|FIPS|ASTM|GB|GB/T|JIS"
_AFTER_BODY = "|".join(rf"(?<=\b{name}[ -])" for name in _BODIES.split("|"))


def _plural(words: str) -> str:
    return re.sub("[xs]$", r"\g<0>e", re.sub("y$", "ie", words)) + "s"


def _aircraft(token: Token) -> str:
    """A model in groups: "737-800" is "seven three seven eight hundred"."""
    if re.search(r"\b(?:pages?|pp\.|lines?|from|between|rooms?|numbers?|nos?\.)[ ]\Z", token.left):
        return token.choose("到", " to ").join(read_integer(group, token.lang) for group in token[0].split("-"))
    model, _, variant = token[0].rstrip("s").partition("-")
    words = read_digits(model, token.lang, one="一") if len(model) > 2 else read_integer(model, token.lang)
    if variant:
        words += token.choose("，", " ") + read_integer(variant, token.lang)
    return _plural(words) if token[0][-1] == "s" else words


def _standard(token: Token) -> str:
    """The number of a standard, digit by digit; its year behind a colon."""
    number, _, year = token[0].partition(":")
    groups = [
        token.choose("点", " point ").join(read_digits(part, token.lang, one="一") for part in group.split("."))
        for group in number.split("-")
    ]
    return token.choose("，", ", ").join([*groups, read_year(year, token.lang)] if year else groups)


def _plural_number(token: Token) -> str:
    words = read_integer(token[0][:-1], token.lang)
    return words if token.lang == "zh" else _plural(words)


def _thousands(token: Token) -> str:
    """Thousands, but carats of gold, and the letter of "4K" and "a 10K race"."""
    number = token["kilo"]
    if re.match(r"[ -]gold\b", token.right):
        return f"{read_integer(number, 'en')} carat"
    is_small = number in ("2", "4", "5", "6", "8", "10", "12", "16")
    is_sum = _PAID.search(token.left) or re.match(rf"\+|[ ](?:{COUNTED})\b", token.right)
    if _LETTER_K.match(token.right) or (is_small and not is_sum):
        return f"{read_integer(number, token.lang)} K"
    return read_amount(number, "k", token.lang)


def _coins(token: Token) -> str:
    """Cents and pence, but the letter of "Section 5c" and "3a, 3b and 3c"."""
    number, letter = token[0][:-1], token[0][-1]
    listed = _LISTED.search(token.left) or _PAIRED.match(token.right)
    small = len(number) == 1 and not (_PAID.search(token.left) or _EACH.match(token.right))
    if token.lang == "zh" or listed or small:
        return f"{read_integer(number, token.lang)} {letter}"
    one, many = {"c": ("cent", "cents"), "p": ("penny", "pence")}[letter]
    return f"{read_integer(number, 'en')} {one if number == '1' else many}"


def _temperature(token: Token) -> str:
    """A temperature where the words around it show one, else the letter: "row 30C"."""
    number, letter = token[0][:-1], token[0][-1]
    words = read_number(number, token.lang) if "." in number else read_integer(number, token.lang)
    listed = _LISTED.search(token.left)
    alone = not (token.left + token.right).strip()
    if listed or not (alone or _WARM_BEFORE.search(token.left) or _WARM_BEHIND.match(token.right)):
        return f"{words} {letter}"
    zh, en = {"C": ("摄氏度", "Celsius"), "F": ("华氏度", "Fahrenheit")}[letter]
    degrees = "degree" if number == "1" else "degrees"
    return token.choose(words + zh, f"{words} {degrees} {en}")


NAMES = (
    Kind(
        "telephone_model",
        r"(?<=iPhone[ ])\d{1,2}[sScC]\b",
        lambda token: f"{read_integer(token[0][:-1], token.lang)} {token[0][-1].upper()}",
        (("an iPhone 5s is here", "an iPhone five S is here"),),
    ),
    Kind(
        "doi",
        r"(?<![\w./])10\.\d{4,9}/[!-~]*[A-Za-z0-9]",
        read_address,
        (
            ("the DOI 10.1000/182 is", "the DOI one zero dot one zero zero zero slash one eight two is"),
            ("论文10.1000/182在此", "论文一零 点 一零零零 斜杠 一八二在此"),
        ),
    ),
    Kind(
        "preprint",
        r"(?<=arXiv:)\d{4}\.\d{4,5}(?!\d)",
        read_address,
        (("see arXiv:2301.12345 there", "see arXiv, two three zero one dot one two three four five there"),),
    ),
    Kind(
        "pension",
        r"(?<![\w.,$])401(?:k|K|\([kK]\))(?!\w)",
        lambda token: token.choose("四零一K", "four oh one K"),
        (("a 401(k) or 401k plan", "a four oh one K or four oh one K plan"),),
    ),
    Kind(
        "aircraft",
        rf"""(?<![\w.,$€£¥-])7[0-8]7(?:-(?:[1-9]00|8|9|10)(?:s\b|(?=ER|LR|F|\b)(?!-|\.\d))|s\b
        |(?=[ ](?:MAX|Dreamliner|jets?)\b))
        |(?:{_AFTER_MAKER})(?:7[0-8]7s?(?![\w-])|\d{{2,3}}-\d{{2,3}}(?![\w-]))""",
        _aircraft,
        (
            ("a Boeing 737-800 landed", "a Boeing seven three seven eight hundred landed"),
            ("波音737-800和ATR 72-600", "波音七三七，八百和ATR 七十二，六百"),
            ("see pages 737-800 there", "see pages seven hundred and thirty seven to eight hundred there"),
        ),
    ),
    Kind(
        "standard",
        rf"(?:{_AFTER_BODY})\d{{3,5}}(?:\.\d{{1,2}})?(?:-\d{{1,2}})?(?::(?:19|20)\d\d)?(?!\d|[.,]\d)",
        _standard,
        (
            ("see RFC 2616 or ISO-8859-1 here", "see RFC two six one six or ISO eight eight five nine, one here"),
            ("通过ISO 9001认证", "通过ISO 九零零一认证"),
            ("the IEEE 802.11 network", "the IEEE eight zero two point one one network"),
        ),
    ),
    Kind(
        "codec",
        r"(?<=\bH\.)26\d(?!\d)",
        lambda token: read_digits(token[0], token.lang),
        (("an H.264 video is", "an H dot two six four video is"),),
    ),
    Kind(
        "plural_number",
        r"(?:(?<=by-)|(?<=\d[xX×])|(?<=[A-Z]-)|(?<=(?<![A-Za-z])[A-Z]))\d{1,3}s\b",
        _plural_number,
        (
            ("buy 2-by-4s and 2x4s here", "buy two by fours and two by fours here"),
            ("two F-16s and B52s flew", "two F sixteens and B fifty twos flew"),
        ),
    ),
)
QUANTITIES = (
    Kind(
        "thousands",
        rf"(?P<kilo>(?<![\w.-])(?:{NUMBER}))K(?![\w'’]|-[A-Za-z0-9])",
        _thousands,
        (
            ("we sold 50K or 2.5K here", "we sold fifty thousand or two point five thousand here"),
            ("a 4K film of a 10K race", "a four K film of a ten K race"),
            ("月薪15K，4K视频", "月薪一万五千，四 K视频"),
            ("a ring of 24K gold is", "a ring of twenty four carat gold is"),
        ),
    ),
    Kind(
        "coins",
        r"(?<![\w.,$£€-])\d{1,2}[cp](?![\w'’]|[-.]\w)",
        _coins,
        (
            ("it costs 99c or 20p here", "it costs ninety nine cents or twenty pence here"),
            ("see Section 5c and 3b or 3c there", "see Section five c and three b or three c there"),
        ),
    ),
    Kind(
        "temperature",
        rf"(?<![\w.])(?<![A-Za-z]-)(?:{NUMBER})[CF](?![\w'’+#]|-\w)",
        _temperature,
        (
            ("it is 30C outside, or 86F", "it is thirty degrees Celsius outside, or eighty six degrees Fahrenheit"),
            ("sit in row 30C there", "sit in row thirty C there"),
            ("气温30C，3C产品", "气温三十摄氏度，三 C产品"),
        ),
    ),
)
