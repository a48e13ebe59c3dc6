"""Web and mail addresses and telephone numbers in Chinese or English words."""

import re

from .spoken_kinds import Kind, Token
from .spoken_numbers import NUMBER_NAME, read_digits, read_integer, read_number, read_year

URL_MARKS = {
    ".": ("点", "dot"), "/": ("斜杠", "slash"), "@": ("at", "at"), "-": ("横杠", "dash"),
    "_": ("下划线", "underscore"),
    "?": ("问号", "question mark"), "=": ("等于", "equals"), "&": ("和", "and"), "#": ("井号", "hash"),
    "%": ("百分号", "percent"), "+": ("加", "plus"), ":": ("冒号", "colon"), "~": ("波浪号", "tilde"),
    "\\": ("反斜杠", "backslash"),
}  # fmt: skip
_ENDING = "com|org|net|edu|gov|io|ai|cn|co|uk|de|fr|jp|dev|app|info|hk|tw|eu|ru|ca|au|ch|nl|se|in|kr"  # of names


def read_address(token: Token) -> str:
    """An address or identifier: words, digits one by one, and its marks by their names."""
    words = []
    address = token[0].rstrip(".,!?;:)>*_'\"/").replace("://", " ")
    for part in re.findall(r"\d+|[^\W\d_]+|.", address):
        if part.isdecimal():
            words.append(read_digits(part, token.lang, one="一"))
        elif part.isalnum():
            words.append(part)
        else:
            words.append(token.choose(*URL_MARKS.get(part, ("", ""))))
    return re.sub(r" +", " ", " ".join(words)).strip()


def _network(token: Token) -> str:
    """An address of IPv6 or of a network card, character by character."""
    words = []
    for part in token[0]:
        if part.isdecimal():
            words.append(read_digits(part, token.lang, one="一"))
        else:
            words.append(token.choose(*URL_MARKS.get(part, (part, part))))
    return token.choose("", " ").join(words)


_NAMED_PART = re.compile(  # what is numbered by an identifier, not counted: "part no. 4711-0815"
    r"(?i:\b(?:part|invoice|serial|account|order|tracking|reference|ref|case|ticket|policy|member|customer|passport|job|"
    r"item|model|card|phone|tel|fax|batch|lot|id|license|licence|product|catalog(?:ue)?)[ ]?)\Z"
)


def _named(token: Token) -> str:
    """An identifier digit by digit; "no. 100-2000" is a range."""
    numbers = re.fullmatch(r"([1-9]\d*)[-–]([1-9]\d*)", token[0])
    name = re.search(r"(?<![A-Za-z])(?i:no\.|number):?[ ]\Z", token.left)
    plain = name and not _NAMED_PART.search(token.left[: name.start()])
    if plain and numbers and int(numbers[1]) < int(numbers[2]):
        return token.choose("到", " to ").join(read_integer(number, token.lang) for number in numbers.groups())
    return read_digits(token[0], token.lang)


def _phone(token: Token) -> str:
    digits = read_digits(token[0], token.lang)
    if token[0][-1] == "X":  # the check digit of a book
        digits += token.choose("X", ", X")
    return token.choose("加", "plus ") + digits if "+" in token[0] else digits


def _hyphenated(token: Token) -> str:
    """Three groups of digits and more: digit by digit from seven digits on (ISBN), else numbers ("a 4-4-2")."""
    groups = token[0].split("-")
    if sum(map(len, groups)) >= 7 or any(len(group) > 1 and group[0] == "0" for group in groups):
        return _phone(token)
    numbers = [read_integer(group, token.lang) for group in groups]
    return token.choose("" if all(len(group) == 1 for group in groups) else "，", " ").join(numbers)


def _two_groups(token: Token) -> str:
    """A telephone number behind a word that says so ("call 555-1234"), else a range ("1998-2000年")."""
    if NUMBER_NAME.search(token.left):
        return read_digits(token[0], token.lang)
    read = read_year if token.lang == "zh" and token.right.startswith(("年", "学年", "赛季", "财年")) else read_number
    return token.choose("到", " to ").join(read(number, token.lang) for number in re.split("[-–]", token[0]))


URLS = (
    Kind(
        "url",
        r"""(?:(?:https?|ftp)://|\bwww\.)[!-~]*[A-Za-z0-9/]
        |(?<![\w.+-])[\w.+-]{1,64}@[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)+
        |(?<![\w.@/-])(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?\.)+(?<![0-9]\.)(?:{_ENDING})
        (?:(?::\d{1,5})?(?:/[!-~]*[A-Za-z0-9/]|(?![\w/-]|\.\w)))
        |(?<![A-Za-z])[A-Za-z]:(?:\\[\w.-]+)+
        |(?<![\w./~])(?:~|\.{1,2})?(?:/[A-Za-z_][\w.-]*){2,}""".replace("{_ENDING}", _ENDING),
        read_address,
        (
            ("Visit https://www.example.com/a now", "Visit https www dot example dot com slash a now"),
            ("mail test@example.com now", "mail test at example dot com now"),
            ("网址是www.example.com/12", "网址是www 点 example 点 com 斜杠 一二"),
            ("see my-site.com/a?b=1 now", "see my dash site dot com slash a question mark b equals one now"),
            ("open /usr/bin/env now", "open slash usr slash bin slash env now"),
        ),
    ),
)
_NAMES = ("phone", "tel", "tel.", "call", "fax", "zip", "code", "invoice", "sku", "id", "isbn", "no.", "number")
_NAMED = "|".join(f"(?<={re.escape(name + end)})" for name in _NAMES for end in (" ", ": "))
IDENTIFIERS = (
    Kind(
        "network",
        r"""(?<![\w:.])(?=[\da-fA-F:]*\d)(?:(?:[\da-fA-F]{1,4}:){7}[\da-fA-F]{1,4}|(?:[\da-fA-F]{2}:){5}[\da-fA-F]{2}
        |(?:[\da-fA-F]{1,4}(?::[\da-fA-F]{1,4}){0,6})?::(?:[\da-fA-F]{1,4}(?::[\da-fA-F]{1,4}){0,6}))
        (?:/\d{1,3})?(?![\w:])""",
        _network,
        (
            (
                "the address 2001:db8::1 is",
                "the address two zero zero one colon d b eight colon colon one is",
            ),
            ("地址是::1", "地址是冒号冒号一"),
            (
                "MAC 00:1a:2b:3c:4d:5e is",
                "MAC zero zero colon one a colon two b colon three c colon four d colon five e is",
            ),
        ),
    ),
    Kind(
        "identifier",
        rf"""(?=\d)(?:(?:(?i:{_NAMED})(?=(?:[-/ ]?\d){{5}})
        (?!\d{{4}}-\d\d-\d\d(?!\d)|(?i:(?<=call[ ]))\d{{3}}-(?:\d{{3}}-)?\d{{4}}(?!\d))\d+
        (?:[-/]\d+|[ ]\d+(?=[ ]\d|\b)){{1,5}}
        |(?<=CVE-)\d{{4}}-\d{{4,7}})(?![\w-]|[.,/]\d))""",
        _named,
        (
            (
                "see no. 100-2000 or part no. 100-2000 there",
                "see number one hundred to two thousand or part number one zero zero, two zero zero zero there",
            ),
            ("the zip code 90210-1234 is", "the zip code nine zero two one zero, one two three four is"),
            ("the bug CVE-2024-3094 is", "the bug CVE two zero two four, three zero nine four is"),
            ("see part no. 4711-0815 there", "see part number four seven one one, zero eight one five there"),
        ),
    ),
)
PHONES = (
    Kind(
        "phone",
        r"""(?<![\d.\w])(?:\+(?=(?:[ ().-]{0,2}\d){7,15}(?!\d))
        \d{1,3}(?:[ .-]?(?:\(\d{1,4}\)|\d{1,11}))*?[ .-]?\d{2,14}(?![\d-]|[ .]\d|[ ]?\(\d)
        |0\d{2,3}-\d{7,8}(?:-\d{1,5})?(?!\d)|(?=(?:[ -]?\d){7,15}(?!\d))0\d{1,4}(?:[ -]\d{2,8}){1,4}(?![\d-]|[ ]\d)
        |1[3-9]\d(?:\d{8}|[- ]\d{4}[- ]\d{4})(?!\d)
        |(?:\+?\d{1,3}[- ])?(?:[(（]\d{2,4}[)）][ ]?|\d{3}-)\d{3,4}-\d{4}(?!\d)
        |[(（]0\d{2,3}[)）][ ]?\d{7,8}(?!\d)
        |[(（]0\d[)）][ ]?\d{4}[ ]\d{4}(?!\d)|\d{3}(?P<gap>[ .])\d{3}(?P=gap)\d{4}(?![\d.]\d|\d)
        |\d{4}(?:[ ]\d{4}){3}(?!\d)|1-8\d\d(?=-[A-Z]{3}))""",
        _phone,
        (
            ("电话010-88888888，手机138 1234 5678", "电话零幺零八八八八八八八八，手机幺三八幺二三四五六七八"),
            (
                "please call +44 2079460000 now",
                "please call plus four four, two zero seven nine four six zero zero zero zero now",
            ),
            ("please call 555-123-4567 now", "please call five five five, one two three, four five six seven now"),
            (
                "please dial 020 7946 0958 now",
                "please dial zero two zero, seven nine four six, zero nine five eight now",
            ),
        ),
    ),
    Kind(
        "hyphenated",
        r"(?<![\w.+-])\d+(?:-\d+){2,}(?:-X)?(?![\w-]|[ ]?=|\.\d)",
        _hyphenated,
        (
            ("we play 4-4-2 there", "we play four four two there"),
            ("书号978-7-111-11111-1", "书号九七八七幺幺幺幺幺幺幺幺幺"),
        ),
    ),
    Kind(
        "groups",
        r"(?<![\w.-])\d{3,4}[-–]\d{4}(?![\w%-]|[ ]?=|[.,:/]\d)",
        _two_groups,
        (
            ("please call 555-1234 now", "please call five five five, one two three four now"),
            ("it was 1990-2000 then", "it was nineteen ninety to two thousand then"),
            ("1998-2000年", "一九九八到二零零零年"),
        ),
    ),
)
