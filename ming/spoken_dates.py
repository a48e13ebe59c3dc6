"""Dates and clock times in Chinese or English words."""

import re

from .spoken_kinds import OPENER, Kind, Token
from .spoken_numbers import (
    RATIO_NAME,
    read_clock,
    read_digits,
    read_integer,
    read_number,
    read_ordinal,
    read_ratio,
    read_year,
)

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
MONTH = rf"(?:{'|'.join(f'{m[:3]}(?:{m[3:]})?' for m in MONTHS)}|Sept)\.?"
_BEFORE_DECADE = (
    "the[ ]", "'", "’", "his[ ]", "her[ ]", "early[ ]", "late[ ]", "mid[ ]", "early-", "late-", "mid-",
)  # fmt: skip
DECADE_CONTEXT = "(?:" + "|".join(f"(?<={words})" for words in _BEFORE_DECADE) + ")"
HALF_DAY = rf"(?:[aApP][mM]\b|[aApP]\.[mM](?:\.(?!\s+{OPENER}\b))?(?!\w))"
ZH_HALF_DAYS = {"a": "上午", "p": "下午", "": ""}
EN_HALF_DAYS = {"a": " AM", "p": " PM", "": ""}


def _plain_integer(digits: str, lang: str) -> str:
    """A whole number without the zeros in front of it: 03 is three."""
    return read_integer(str(int(digits)), lang)


def _full_date(year: str, month: str, day: str, lang: str) -> str:
    if lang == "zh":
        digits = read_digits(year, lang, one="一")
        return f"{digits}年{_plain_integer(month, lang)}月{_plain_integer(day, lang)}日"
    return f"{MONTHS[int(month) - 1]} {read_ordinal(day)}, {read_year(year, lang)}"


def _chinese_date(token: Token) -> str:
    if token["of"]:
        return read_year(token["of"], "zh")
    year, month, day = token["zy"], token["zm"] or token["m"], token["zd"] or token["d"]
    words = f"{read_year(year, 'zh')}年" if year else ""
    words += f"{_plain_integer(month, 'zh')}月" if month else ""
    return words + (_plain_integer(day, "zh") if day else "")


def _iso_date(token: Token) -> str:
    year, month, day = re.split(r"[-/.]", token[0])
    return _full_date(year, month, day, token.lang)


def _slash_date(token: Token) -> str:
    month, day, year = re.split("[-/.]", token[0])
    if int(month) > 12 or "." in token[0]:  # the day comes first outside the United States
        month, day = day, month
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return read_digits(token[0], token.lang)
    return _full_date(year, month, day, token.lang)


def _timestamp(token: Token) -> str:
    """A date and time of ISO 8601 with its offset from UTC: "2024-05-01T10:30:00Z"."""
    date, clock = token["stamp_date"] or "", token["stamp_clock"] or token["clock_alone"]
    digits = re.sub(r"\D", "", date)
    hours, minutes, seconds = re.findall(r"\d\d", clock.partition(".")[0].ljust(6).replace(":", "") + "00")[:3]
    day = _full_date(digits[:4], digits[4:6], digits[6:], token.lang) if date else ""
    if token.lang == "zh":
        time = _chinese_clock(hours, minutes, seconds)
    else:
        time = _english_clock(hours, minutes, seconds if int(seconds) else "", "")
    offset = _offset(token["stamp_zone"] or token["zone_alone"] or "", token)
    return token.choose("", " at " if day else "").join(part for part in (day, time) if part) + offset


def _offset(zone: str, token: Token) -> str:
    """The words of an offset from UTC: "Z", "+02:00", "-0530"; "" for none."""
    if not zone.strip():
        return ""
    hours, minutes = (re.sub(r"[^\d]", "", zone) + "0000")[:2], (re.sub(r"[^\d]", "", zone) + "0000")[2:4]
    if not int(hours + minutes):
        return token.choose("，", " ") + "UTC"
    sign = token.choose("减", " minus ") if zone.strip()[0] in "-−" else token.choose("加", " plus ")
    words = _plain_integer(hours, token.lang)
    if int(minutes):
        words += token.choose("小时", " ") + _plain_integer(minutes, token.lang) + token.choose("分", "")
    return token.choose("，", " ") + "UTC" + sign + words


def _week(token: Token) -> str:
    year, week, day = token["week_year"], token["week"], token["week_day"]
    words = token.choose(f"{read_year(year, 'zh')}年第", f"{read_year(year, 'en')} week ")
    words += _plain_integer(week, token.lang) + token.choose("周", "")
    return (
        words + token.choose("第", " day ") + read_integer(day, token.lang) + token.choose("天", "") if day else words
    )


def _season(token: Token) -> str:
    """Two years that follow each other: "2023/24" is "twenty twenty three to twenty four"."""
    years = re.split("[/–-]", token[0])
    if token.lang == "zh":
        return "到".join(read_digits(year, "zh", one="一") for year in years)
    return " to ".join(read_year(year, "en") if len(year) == 4 else _short_year(year) for year in years)


def _short_year(digits: str) -> str:
    """The last two digits of a year in English: "05" is "oh five"."""
    return f"oh {read_integer(digits[1], 'en')}" if digits[0] == "0" and digits != "00" else read_number(digits, "en")


def _fiscal_year(token: Token) -> str:
    return read_year(token[0], token.lang) if len(token[0]) == 4 else _short_year(token[0])


def _month_of_year(token: Token) -> str:
    """A month with its year, "03/2024", but "2023-24" is a range of years."""
    first, second = re.split("[-/]", token[0])
    year, month = (first, second) if len(first) == 4 else (second, first)
    if len(first) == 4 and int(month) == (int(year) + 1) % 100:
        return token.choose("到", " to ").join((read_number(year, token.lang), read_integer(month, token.lang)))
    if token.lang == "zh":
        return f"{read_year(year, 'zh')}年{_plain_integer(month, 'zh')}月"
    return f"{MONTHS[int(month) - 1]} {read_year(year, 'en')}"


def _month_and_day(token: Token) -> str:
    month, day = token[0].split("/")
    if token.lang == "zh":
        return f"{_plain_integer(month, 'zh')}月{_plain_integer(day, 'zh')}日"
    return f"{MONTHS[int(month) - 1]} {read_ordinal(day)}"


def _english_date(token: Token) -> str:
    parts = re.fullmatch(r"(\D+?)\.? (\d+)\D*(?:,? (\d{4}))?", token[0])
    assert parts is not None, f"{token[0]!r} matched the pattern of English dates"
    month, day, year = parts.groups()
    name = next(m for m in MONTHS if m.startswith(month[:3]))
    return f"{name} {read_ordinal(day)}" + (f", {read_year(year, 'en')}" if year else "")


def _day_of_month(token: Token) -> str:
    """The day before an English month: "5 May" is "fifth of May"."""
    return read_ordinal(re.sub(r"\D", "", token[0])) + " of"


def _clock(token: Token) -> str:
    if RATIO_NAME.search(token.left) and re.fullmatch(r"\d+:\d+", token[0]):
        return read_ratio(token)
    parts = re.fullmatch(r"(\d+)[:.]?(\d+)?:?(\d+)? ?([aApP]\.?[mM]\.?)?", token[0])
    assert parts is not None, f"{token[0]!r} matched the pattern of clock times"
    hours, minutes, seconds, half_day = parts.groups(default="")
    half = half_day[:1].lower()
    if token.lang == "zh":
        return ZH_HALF_DAYS[half] + _chinese_clock(hours, minutes, seconds)
    return _english_clock(hours, minutes, seconds, half) + EN_HALF_DAYS[half]


def _chinese_clock(hours: str, minutes: str, seconds: str) -> str:
    words = ("两" if int(hours) == 2 else _plain_integer(hours, "zh")) + "点"
    for part, unit in ((minutes, "分"), (seconds, "秒")):
        if part and int(part):
            words += ("零" if part[0] == "0" else "") + _plain_integer(part, "zh") + unit
    return words


def _english_clock(hours: str, minutes: str, seconds: str, half: str) -> str:
    if minutes and not seconds and not (half and minutes == "00"):
        return read_clock(hours, minutes)
    named = seconds and not half and not (int(hours) and int(minutes))  # "1:00:05": one and five what?
    units = ("hour", "minute", "second") if named else ("", "", "")
    if seconds and not named:
        words = f"{_plain_integer(hours, 'en')} {_two_digits(minutes)} {_two_digits(seconds)}"
        return words.removesuffix(" zero zero")
    parts = [
        _plain_integer(part, "en") + (f" {unit}{'s' * (int(part) != 1)}" if unit else "")
        for part, unit in zip((hours, minutes, seconds), units, strict=True)
        if part and int(part)
    ]
    return " ".join(parts or ["zero"])


def _two_digits(digits: str) -> str:
    """Minutes or seconds behind an hour: "09" is "oh nine"."""
    if digits[0] != "0":
        return read_integer(digits, "en")
    return "zero zero" if digits == "00" else f"oh {read_integer(digits[1], 'en')}"


def _military(digits: str) -> str:
    """A time of four digits in English: "0830" is "oh eight thirty"."""
    hours = f"oh {read_integer(digits[1], 'en')}" if digits[0] == "0" else read_integer(digits[:2], "en")
    return f"{hours} {'hundred' if digits[2:] == '00' else _short_year(digits[2:])}"


def _decade(token: Token) -> str:
    digits = token[0][:-1].rstrip("'’")
    if token.lang == "zh":
        return read_integer(digits, token.lang) + "年代"
    return re.sub(r"y$", "ies", re.sub(r"(?<=[^y])$", "s", read_year(digits, "en")))


_OFFSET = r"Z(?![A-Za-z])|[+−-]\d\d:?\d\d(?!\d|:\d)|[+−-]\d\d(?![\d:])"
_CLOCK = r"(?:[01]\d|2[0-4]):?[0-5]\d(?::?[0-5]\d(?:[.,]\d{1,9})?)?"
_NEXT = "|".join(f"{d}[-/–](?:(?P=hundred))?(?P=tens){d + 1}" for d in range(9))  # 2023/24, 2023/2024
_NEXT_TEN = "|".join(f"{d}9[-/–](?:(?P=hundred))?{d + 1}0" for d in range(9)) + "|99[-/–](?:20)?00"
_YEARS_NEXT = rf"(?P<hundred>19|20)(?:(?P<tens>\d)(?:{_NEXT})|{_NEXT_TEN})(?![\w%]|[-./]\d)"
TIMESTAMPS = (
    Kind(
        "timestamp",
        rf"""(?<![\w.-])(?P<stamp_date>[12]\d{{3}}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])(?=[Tt]\d\d:)
        |[12]\d{{3}}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?=T\d{{4}}))
        (?:[Tt](?P<stamp_clock>{_CLOCK})(?P<stamp_zone>[ ]?(?:{_OFFSET}))?)(?![\w:]|[.]\d)
        |(?<![\w.:-])(?P<clock_alone>(?:[01]\d|2[0-4]):[0-5]\d(?::[0-5]\d(?:[.]\d{{1,9}})?)?)
        (?P<zone_alone>Z(?![A-Za-z])|\+\d\d:?\d\d(?![\d:])|(?<=:\d\d:\d\d)-\d\d:\d\d(?!\d|:)
        |(?<=:\d\d:\d\d)[ ][+-]\d{{4}}(?!\d))""",
        _timestamp,
        (
            ("at 2024-05-01T10:30:00Z there", "at May first, twenty twenty four at ten thirty UTC there"),
            (
                "at 2024-05-01T10:30:00+05:30 there",
                "at May first, twenty twenty four at ten thirty UTC plus five thirty there",
            ),
            ("时间2024-05-01T10:30:15-08:00", "时间二零二四年五月一日十点三十分十五秒，UTC减八"),
            (
                "at 10:30Z or 20240501T103000Z there",
                "at ten thirty UTC or May first, twenty twenty four at ten thirty UTC there",
            ),
        ),
    ),
    Kind(
        "week_date",
        r"(?<![\w.-])(?P<week_year>[12]\d{3})-W(?P<week>0[1-9]|[1-4]\d|5[0-3])(?:-(?P<week_day>[1-7]))?(?![\w-])",
        _week,
        (("in 2024-W18 there", "in twenty twenty four week eighteen there"), ("在2024-W18", "在二零二四年第十八周")),
    ),
)
DATES = (
    Kind(
        "fiscal_number",
        r"(?:(?<=\bFY)|(?<=\bFY[ ]))(?:(?:19|20)\d\d|0\d)(?![\w./-])",
        _fiscal_year,
        (("in FY2024 and FY05 we", "in fiscal year twenty twenty four and fiscal year oh five we"),),
    ),
    Kind(
        "season",
        rf"""(?:(?<![\w./-])|(?<=\bFY))(?=\d{{4}}/|\d{{4}}[-–]\d\d(?:赛季|学年|财年)){_YEARS_NEXT}
        |(?<![\w./-])\d\d/\d\d(?=[ ]season\b|赛季)""",
        _season,
        (
            (
                "the 2023/24 or 1999/2000 season is",
                "the twenty twenty three to twenty four or nineteen ninety nine to two thousand season is",
            ),
            ("in FY2023/24 we", "in fiscal year twenty twenty three to twenty four we"),
            ("2023/24赛季", "二零二三到二四赛季"),
        ),
    ),
    Kind(
        "zhdate",
        r"""(?<!\d)(?P<zy>\d{2}|[12]\d{3})年(?:(?P<zm>\d{1,2})月(?:(?P<zd>\d{1,2})(?=[日号]))?)?
        |(?<![\d.,])(?P<of>[12]\d{3})(?=[款届]|[—~至到][12]\d{3}年)
        |(?<!\d)(?P<m>1[0-2]|[1-9])月(?P<d>\d{1,2})(?=[日号])""",
        _chinese_date,
        (
            ("2023年10月1日至7日", "二零二三年十月一日至七日"),
            ("98年出生，2月2日", "九十八年出生，二月二日"),
            ("2024款，2020—2023年", "二零二四款，二零二零到二零二三年"),
        ),
    ),
    Kind(
        "isodate",
        r"""(?<![\d.])[12]\d{3}(?P<sep>[-/.])(?:0?[1-9]|1[0-2])(?P=sep)(?:3[01]|[12]\d|0?[1-9])
        (?!\d|[-/.]\d)""",
        _iso_date,
        (
            ("日期是2024-03-15", "日期是二零二四年三月十五日"),
            ("It was on 2024.3.5 then", "It was on March fifth, twenty twenty four then"),
        ),
    ),
    Kind(
        "usdate",
        r"""(?<![\d/.-])(?:3[01]|[12]\d|0?[1-9])(?P<us>[-/.])(?:3[01]|[12]\d|0?[1-9])(?P=us)(?:[12]\d{3}|(?<=/)\d\d)
        (?!\d|[-/.]\d)""",
        _slash_date,
        (
            ("It was on 3/15/2024 then", "It was on March fifteenth, twenty twenty four then"),
            ("It was on 15/03/2024 then", "It was on March fifteenth, twenty twenty four then"),
            ("15.3.2024 is not it there", "March fifteenth, twenty twenty four is not it there"),
            ("It was on 3/15/24 then", "It was on March fifteenth, twenty four then"),
        ),
    ),
    Kind(
        "month",
        r"""(?<![\d/.-])(?:(?:1[0-2]|0?[1-9])/(?:19|20)\d\d|(?:19|20)\d\d(?:-(?:1[0-2]|0[1-9])|/(?:1[0-2]|0?[1-9])))
        (?![\w/%]|[-.]\d|-\w)""",
        _month_of_year,
        (
            ("it was 03/2024 then", "it was March twenty twenty four then"),
            ("2024-03，2011-12", "二零二四年三月，两千零一十一到十二"),
        ),
    ),
    Kind(
        "monthday",
        r"""(?:(?<=\bon[ ])|(?<=\bby[ ])|(?<=\buntil[ ])|(?<=\bsince[ ]))
        (?:1[0-2]|0?[1-9])/(?:3[01]|[12]\d|0?[1-9])(?![\w/%]|\.\d|[ ]of\b)""",
        _month_and_day,
        (("due on 3/15 it was", "due on March fifteenth it was"),),
    ),
    Kind(
        "endate",
        rf"\b{MONTH}[ ]\d{{1,2}}(?:st|nd|rd|th)?\b(?!:|\.\d|[ ]?%)(?:,?[ ][12]\d{{3}}\b(?![%:.,]\d))?",
        _english_date,
        (("on March 5th, 2024 or Sept. 3", "on March fifth, twenty twenty four or September third"),),
    ),
    Kind(
        "daymonth",
        rf"(?<![\w.])\d{{1,2}}(?:st|nd|rd|th)?(?=[ ]{MONTH}(?![A-Za-z]))",
        _day_of_month,
        (("it was 5 May or 22nd June", "it was fifth of May or twenty second of June"),),
    ),
)
TIMES = (
    Kind(
        "time",
        rf"""(?<![\d:.])(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d)?(?![\d:])(?:[ ]?{HALF_DAY})?
        |(?<![\d:.])(?:1[0-2]|[1-9])\.[0-5]\d[ ]?{HALF_DAY}""",
        _clock,
        (
            ("现在是14:05，上午9:00:01出发", "现在是十四点零五分，上午九点零一秒出发"),
            ("The meeting is at 10:30 a.m. on", "The meeting is at ten thirty AM on"),
            ("at 07:05:09 or 10:30:00 there", "at seven oh five oh nine or ten thirty there"),
            ("it lasts 1:00:05 or 0:05:00 there", "it lasts one hour five seconds or five minutes there"),
        ),
    ),
    Kind(
        "military",
        r"(?<![\w.,:-])(?:0\d|(?<=\bat[ ])(?:1\d|2[0-3]))[0-5]\d(?=[ ](?:hours|hrs?)\b)",
        lambda token: _military(token[0]) if token.lang == "en" else read_digits(token[0], "zh"),
        (("at 0830 hours or at 1700 hours there", "at oh eight thirty hours or at seventeen hundred hours there"),),
    ),
    Kind(
        "hour",
        rf"(?<![\d:.])(?:1[0-2]|[1-9])[ ]?{HALF_DAY}",
        _clock,
        (("we meet at 7pm or 8 a.m. there", "we meet at seven PM or eight AM there"),),
    ),
)
DECADES = (
    Kind(
        "decade",
        rf"(?<![\d.,])(?:1[1-9]|20)\d0['’]?s\b|{DECADE_CONTEXT}\d0s\b",
        _decade,
        (("in the 1990s or the 80s", "in the nineteen nineties or the eighties"),),
    ),
)
