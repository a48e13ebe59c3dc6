"""Sums of money in Chinese or English words."""

from .spoken_kinds import Kind, Token
from .spoken_numbers import NUMBER, read_integer, read_number

CURRENCIES = {  # symbol -> Chinese, English for one, English for many
    "$": ("美元", "dollar", "dollars"),
    "€": ("欧元", "euro", "euros"),
    "£": ("英镑", "pound", "pounds"),
    "¥": ("元", "yuan", "yuan"),
}
CENTS = {"$": ("cent", "cents"), "€": ("cent", "cents"), "£": ("penny", "pence")}
EN_AMOUNTS = {
    "k": "thousand",
    "K": "thousand",
    "M": "million",
    "B": "billion",
    "万": "ten thousand",
    "亿": "hundred million",
}
ZH_AMOUNTS = {
    "k": "千", "K": "千", "M": "百万", "B": "十亿", "thousand": "千", "million": "百万", "billion": "十亿",
    "trillion": "万亿",
}  # fmt: skip


def _money(token: Token) -> str:
    currency, amount, total = token["cur"], token["amount"] or "", token["sum"]
    if token.lang == "zh":
        return read_number(total, "zh", "元") + ZH_AMOUNTS.get(amount, amount) + CURRENCIES[currency][0]
    _, _, cents = total.partition(".")
    if len(cents) == 2 and not amount and currency in CENTS:
        return _dollars_and_cents(total, currency)
    words = read_number(total, "en") if "." in total else read_integer(total, "en")
    if amount:
        words += f" {EN_AMOUNTS.get(amount, amount)}"
    return f"{words} {_name(currency, total == '1' and not amount)}"


def _dollars_and_cents(total: str, currency: str) -> str:
    whole, _, cents = total.partition(".")
    major = f"{read_integer(whole, 'en')} {_name(currency, whole == '1')}" if whole.strip("0") else ""
    one, many = CENTS[currency]
    minor = f"{read_integer(str(int(cents)), 'en')} {one if int(cents) == 1 else many}"
    if not major:
        return minor
    return f"{major} and {minor}" if int(cents) else major


def _name(currency: str, is_one: bool) -> str:
    _, one, many = CURRENCIES[currency]
    return one if is_one else many


MONEY = (
    Kind(
        "money",
        rf"""(?P<cur>[$€£¥])[ ]?(?P<sum>{NUMBER})
        (?:[ ]?(?P<amount>thousand|million|billion|trillion|万|亿|[kKMB]))?(?![A-Za-z])""",
        _money,
        (
            ("价格：￥1,299.50", "价格，一千二百九十九点五零元"),
            ("花了$1.5亿", "花了一点五亿美元"),
            ("It is $1,000, $0.99 or £1.", "It is one thousand dollars, ninety nine cents or one pound."),
            ("He paid £2.01 or about $5M then", "He paid two pounds and one penny or about five million dollars then"),
        ),
    ),
)
