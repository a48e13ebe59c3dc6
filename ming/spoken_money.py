"""Sums of money and other large amounts in Chinese or English words."""

import re
from decimal import Decimal

from .spoken_kinds import Kind, Token
from .spoken_numbers import CONTINENTAL, EXPONENT, NUMBER, read_integer, read_number, read_scientific

CURRENCIES = {  # how it is written -> Chinese, English for one, English for many
    "$": ("美元", "dollar", "dollars"),
    "€": ("欧元", "euro", "euros"),
    "£": ("英镑", "pound", "pounds"),
    "¥": ("元", "yuan", "yuan"),
    "₹": ("卢比", "rupee", "rupees"),
    "₩": ("韩元", "won", "won"),
    "₽": ("卢布", "ruble", "rubles"),
    "₺": ("里拉", "lira", "lira"),
    "฿": ("泰铢", "baht", "baht"),
    "₫": ("越南盾", "dong", "dong"),
    "₴": ("格里夫纳", "hryvnia", "hryvnias"),
    "₦": ("奈拉", "naira", "naira"),
    "₪": ("谢克尔", "shekel", "shekels"),
    "₱": ("比索", "peso", "pesos"),
    "₿": ("比特币", "bitcoin", "bitcoins"),
    "¢": ("美分", "cent", "cents"),
    "US$": ("美元", "US dollar", "US dollars"),
    "HK$": ("港元", "Hong Kong dollar", "Hong Kong dollars"),
    "A$": ("澳元", "Australian dollar", "Australian dollars"),
    "C$": ("加元", "Canadian dollar", "Canadian dollars"),
    "NZ$": ("新西兰元", "New Zealand dollar", "New Zealand dollars"),
    "S$": ("新加坡元", "Singapore dollar", "Singapore dollars"),
    "NT$": ("新台币", "Taiwan dollar", "Taiwan dollars"),
    "R$": ("雷亚尔", "real", "reais"),
    "RMB": ("元人民币", "yuan", "yuan"),
    "JPY": ("日元", "yen", "yen"),
    "CHF": ("瑞士法郎", "Swiss franc", "Swiss francs"),
    "SEK": ("瑞典克朗", "Swedish krona", "Swedish kronor"),
    "NOK": ("挪威克朗", "Norwegian krone", "Norwegian kroner"),
    "DKK": ("丹麦克朗", "Danish krone", "Danish kroner"),
    "MXN": ("墨西哥比索", "Mexican peso", "Mexican pesos"),
    "ZAR": ("南非兰特", "rand", "rand"),
    "PLN": ("兹罗提", "zloty", "zlotys"),
}
SAME = {  # another way to write a currency -> its row in `CURRENCIES`
    "USD": "US$", "EUR": "€", "GBP": "£", "CNY": "RMB", "CN¥": "RMB", "JP¥": "JPY", "KRW": "₩", "INR": "₹", "RUB": "₽",
    "AUD": "A$", "AU$": "A$", "CAD": "C$", "CA$": "C$", "NZD": "NZ$", "SGD": "S$", "HKD": "HK$", "TWD": "NT$",
    "THB": "฿", "BRL": "R$", "BTC": "₿", "Rs": "₹", "Rs.": "₹", "R": "ZAR",
}  # fmt: skip
CENTS = {"$": ("cent", "cents"), "€": ("cent", "cents"), "£": ("penny", "pence")}
POWERS = {  # how a large amount is written, in small letters -> its power of ten
    **dict.fromkeys(("k", "thousand"), 3),
    "w": 4,
    "lakh": 5,
    "thousand crore": 10,
    "lakh crore": 12,
    **dict.fromkeys(("cr", "crore"), 7),
    **dict.fromkeys(("m", "mm", "mn", "mln", "mio", "mil", "million"), 6),
    **dict.fromkeys(("b", "bn", "bln", "bil", "billion"), 9),
    **dict.fromkeys(("t", "tn", "trn", "trillion"), 12),
}
ZH_POWERS = {3: "千", 4: "万", 5: "十万", 6: "百万", 7: "千万", 9: "十亿", 10: "百亿", 12: "万亿"}
EN_POWERS = {3: "thousand", 4: "ten thousand", 5: "lakh", 7: "crore", 6: "million", 9: "billion", 12: "trillion"}
ZH_AMOUNTS = {
    "万": "ten thousand", "百万": "million", "千万": "ten million", "亿": "hundred million", "十亿": "billion",
    "百亿": "ten billion", "千亿": "hundred billion", "万亿": "trillion",
}  # fmt: skip
SYMBOLS = "".join(name for name in CURRENCIES if len(name) == 1 and name != "¢")
_CODES = "|".join(re.escape(name) for name in sorted((*CURRENCIES, *SAME), key=len, reverse=True) if len(name) > 1)
_CODES += "|usd|eur|gbp|cny|rmb|jpy|chf|aud|hkd"  # codes in small letters that are no words
_RAND = r"R(?=[\d.,]+[ ]?(?:m|mn|bn|million|billion)\b)"  # R2 alone is a name
CURRENCY = rf"(?:(?<![A-Za-z])(?:{_CODES}|{_RAND})|[{SYMBOLS}])"
_LONG = r"(?i:(?:thousand|lakh)[ ]crore|thousand|million|billion|trillion|lakh|crore|mil|bil|cr)"
_SHORT = "mln|mio|mn|bln|bn|trn|tn|Mn|Bn|BN|TN"  # those that mean nothing else
_AMOUNT = rf"(?:[ -]?{_LONG}|[ ]?(?:{_SHORT}|MM|mm|[kKmMbBT])|[ ]?(?:万亿|[百千]万|[十百千]亿|[万亿]))(?![A-Za-z])"
COUNTED = (  # what is counted in millions, "2m people", where a letter could mean meters
    "people|users|customers|views|followers|subscribers|downloads|copies|homes|households|jobs|visitors|visits|workers|"
    "children|voters|barrels|tonnes|tons|parameters|tokens|pounds|dollars|euros|yuan|yen|rupees"
)
_COIN = "pounds?|dollars?|[Ee]uros?|yen|yuan|rupees?|francs?|pesos?|kron[ae]r?|rand|quid|bucks"  # "a 2m-pound deal"
_ZH_COUNTED = "用户|人|粉丝|美元|英镑|欧元|元|日元|下载|播放|参数"
_ADJECTIVE = re.compile(
    r"[ -](?!(?:and|or|for|per|each|from|to|than|but|more|less|a|is|in|on|at|if|as|by|was)\b)[a-z]"
)


# A comma before one or two digits is a decimal comma beside a euro; an exponent belongs to the number.
_DECIMAL_COMMA = r"(?:\d{1,3}(?:\.\d{3})+|\d+),\d{1,2}"
_SUM = rf"(?:(?<=€)|(?<=€[ ])|(?<=EUR[ ])){_DECIMAL_COMMA}(?![\d,])|{CONTINENTAL}|(?:{NUMBER}){EXPONENT}|{NUMBER}"
_EURO_BEHIND = rf"(?<![\d.,]){_DECIMAL_COMMA}(?=[ ]?(?:€|EUR(?![A-Za-z])))"
# What some write once more behind a sum, "$5 dollars" and "¥5元" -> the ends of the names that it repeats.
_AGAIN = {
    **dict.fromkeys(("元", "块钱", "块"), "元"), "人民币": "元", "美元": "美元", "美金": "美元", "欧元": "欧元",
    "英镑": "英镑", "日元": "日元", **dict.fromkeys(("dollars", "dollar"), "美元"),
    **dict.fromkeys(("euros", "euro"), "欧元"), **dict.fromkeys(("pounds", "pound"), "英镑"), "yuan": "元",
    "USD": "美元", "EUR": "欧元", "GBP": "英镑", "CNY": "元", "RMB": "元",
}  # fmt: skip
_REPEATED = rf"(?:[ -]?(?P<again>{'|'.join(sorted(_AGAIN, key=len, reverse=True))})(?![A-Za-z]))?"


def _power(amount: str | None) -> int | None:
    return POWERS.get(amount.strip(" -").lower()) if amount else None


def read_amount(number: str, amount: str | None, lang: str) -> str:
    """A number with its "m", "bn", "million" or 万.

    Args:
        number: digits.
        amount: what follows them, None for nothing.
        lang: `"zh"` or `"en"`. Chinese counts in 万 and 亿, so that "1.5bn" is 十五亿.
    """
    power = _power(amount)
    if re.search("[eE×x·]", number):
        return read_scientific(number, lang)
    if lang == "en":
        words = read_number(number, "en") if "." in number else read_integer(number, "en")
        if not amount:
            return words
        if amount.lower().endswith(" crore"):  # "lakh crore" is no trillion to who writes it
            return f"{words} {amount.strip(' -').lower()}"
        return f"{words} {EN_POWERS[power] if power else ZH_AMOUNTS[amount.strip()]}"
    if power is None:
        return read_number(number, "zh", "元") + (amount or "").strip()
    value = Decimal(re.sub("[, '’]", "", number)) * 10**power
    if power == 12 or value != int(value):
        return read_number(number, "zh", "元") + ZH_POWERS[power]
    return read_integer(f"{int(value):,}", "zh")


def _money(token: Token) -> str:
    if token["cur"]:
        cur, total, amount = token["cur"], token["sum"], token["amount"]
    else:
        cur, total, amount = token["cur_behind"], token["sum_before"], token["amount_before"]
    words = _sum_words(token, cur, total, amount)
    if (again := token["again"]) and not _is_named_again(cur, again):
        words += f" {again}" if again.isascii() else again
    return token.choose("负", "minus ") + words if token["minus"] else words


def _is_named_again(cur: str, again: str) -> bool:
    zh = CURRENCIES[SAME.get(cur, cur)][0]
    return zh.endswith(_AGAIN[again]) or (zh == "元人民币" and _AGAIN[again] == "元")


def _sum_words(token: Token, cur: str, total: str, amount: str | None) -> str:
    cur = cur if cur in CURRENCIES or cur in SAME else cur.upper()
    currency = SAME.get(cur, cur)
    zh, one, many = CURRENCIES[currency]
    if (currency == "€" and re.fullmatch(_DECIMAL_COMMA, total)) or re.fullmatch(CONTINENTAL, total):
        total = total.replace(".", "").replace(",", ".")
    more, more_amount = token["more"], token["more_amount"]
    if more:
        first = read_amount(total, amount or (more_amount if token.lang == "zh" else None), token.lang)
        second = read_amount(more, more_amount, token.lang)
        return token.choose(f"{first}到{second}{zh}", f"{first} to {second} {many}")
    if token.lang == "zh":
        return read_amount(total, amount, "zh") + zh
    _, _, cents = total.partition(".")
    if len(cents) == 2 and not amount and currency in CENTS:
        return _dollars_and_cents(total, currency)
    is_one = (total == "1" and not amount) or is_adjective(token)
    return f"{read_amount(total, amount, 'en')} {one if is_one else many}"


def is_adjective(token: Token) -> bool:
    """Whether a sum or measure stands before a noun: "a $5 fee" is "a five dollar fee"."""
    return bool(re.search(r"\b[Aa]n?[ ]\Z", token.left) and _ADJECTIVE.match(token.right))


def _dollars_and_cents(total: str, currency: str) -> str:
    whole, _, cents = total.partition(".")
    _, one, many = CURRENCIES[currency]
    major = f"{read_integer(whole, 'en')} {one if whole == '1' else many}" if whole.strip("0") else ""
    penny, pence = CENTS[currency]
    minor = f"{read_integer(str(int(cents)), 'en')} {penny if int(cents) == 1 else pence}"
    if not major:
        return minor
    return f"{major} and {minor}" if int(cents) else major


MONEY = (
    Kind(
        "money",
        rf"""(?P<cur>{CURRENCY})[ ]?(?P<minus>[-−](?=\.?\d))?(?P<sum>{_SUM})(?P<amount>{_AMOUNT})?
        (?:[-–—~](?P<more>{NUMBER})(?P<more_amount>{_AMOUNT})?(?![A-Za-z]|[ ]?[%‰°]|[-:/]\d))?{_REPEATED}
        |(?P<sum_before>{_EURO_BEHIND}|(?<![A-Za-z])(?:{NUMBER}){EXPONENT}|{NUMBER})(?P<amount_before>{_AMOUNT})?
        [ ]?(?P<cur_behind>(?:{_CODES})(?![A-Za-z])|[{SYMBOLS}¢])
        (?!\w|[ ]?\.?\d)""",
        _money,
        (
            ("价格：￥1,299.50", "价格，一千二百九十九点五零元"),
            ("花了$1.5亿，或€1.5bn", "花了一点五亿美元，或十五亿欧元"),
            ("It is $1,000, $0.99 or £1.", "It is one thousand dollars, ninety nine cents or one pound."),
            ("He paid £2.01 or about $5M then", "He paid two pounds and one penny or about five million dollars then"),
            ("一共￥199元或$20 dollars", "一共一百九十九元或二十美元"),
            ("₹1.5 lakh crore is it there", "one point five lakh crore rupees is it there"),
            ("CHF 1.500,50 is it there", "one thousand five hundred point five zero Swiss francs is it there"),
            ("₹1.5 lakh crore的钱", "一点五万亿卢比的钱"),
            ("It was 1.200,56 € there", "It was one thousand two hundred euros and fifty six cents there"),
            ("He paid 20€ or GBP 1m-2m then", "He paid twenty euros or one million to two million pounds then"),
        ),
    ),
    Kind(
        "magnitude",
        rf"""(?P<an>{NUMBER})(?:[ ]?(?P<aw>{_SHORT})(?![A-Za-z])
        |(?P<al>[kKmMbB](?=[ ](?:{COUNTED})\b|[ -](?:{_COIN})\b
        |\+[ ](?:{_COIN}|{_CODES})\b)|[kKmMbBwW](?=(?:{_ZH_COUNTED}))))""",
        lambda token: read_amount(token["an"], token["aw"] or token["al"], token.lang),
        (
            ("about 1.5bn people or 2m users", "about one point five billion people or two million users"),
            ("有5M用户，10w粉丝", "有五百万用户，十万粉丝"),
        ),
    ),
)
