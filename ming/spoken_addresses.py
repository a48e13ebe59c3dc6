"""Web and mail addresses and telephone numbers in Chinese or English words."""

import re

from .spoken_kinds import Kind, Token
from .spoken_numbers import read_digits

URL_MARKS = {".": ("点", "dot"), "/": ("斜杠", "slash"), "@": ("at", "at")}


def _web_address(token: Token) -> str:
    words = []
    for part in re.findall(r"\d+|[^\W\d_]+|.", token[0].rstrip(".,!?;:)>*_'\"/")):
        if part.isdecimal():
            words.append(read_digits(part, token.lang, one="一"))
        elif part.isalnum():
            words.append(part)
        else:
            words.append(token.choose(*URL_MARKS.get(part, ("", ""))))
    spoken = " ".join(words).replace(" 斜杠 斜杠 ", " ").replace(" slash slash ", " ")  # those of http://
    return re.sub(r" +", " ", spoken).strip()


def _phone(token: Token) -> str:
    digits = read_digits(token[0], token.lang)
    return token.choose("加", "plus ") + digits if "+" in token[0] else digits


URLS = (
    Kind(
        "url",
        r"""(?:(?:https?|ftp)://|\bwww\.)[!-~]*[A-Za-z0-9/]
        |(?<![\w.+-])[\w.+-]{1,64}@[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)+""",
        _web_address,
        (
            ("Visit https://www.example.com/a now", "Visit https www dot example dot com slash a now"),
            ("mail test@example.com now", "mail test at example dot com now"),
            ("网址是www.example.com/12", "网址是www 点 example 点 com 斜杠 一二"),
        ),
    ),
)
PHONES = (
    Kind(
        "phone",
        r"""(?<![\d.\w])(?:\+\d{1,3}[- ]?\d{4,14}(?![\d-])|0\d{2,3}-\d{7,8}(?!\d)
        |1[3-9]\d(?:\d{8}|[- ]\d{4}[- ]\d{4})(?!\d)
        |(?:\+?\d{1,3}[- ])?(?:\(\d{2,4}\)[ ]?|\d{3}-)\d{3,4}-\d{4}(?!\d))""",
        _phone,
        (
            ("电话010-88888888，手机138 1234 5678", "电话零幺零八八八八八八八八，手机幺三八幺二三四五六七八"),
            (
                "please call +44 2079460000 now",
                "please call plus four four, two zero seven nine four six zero zero zero zero now",
            ),
            ("please call 555-123-4567 now", "please call five five five, one two three, four five six seven now"),
        ),
    ),
)
