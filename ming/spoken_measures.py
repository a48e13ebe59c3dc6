"""Numbers with a unit in Chinese or English words."""

import re

from .spoken_kinds import HAN, Kind, Token
from .spoken_money import is_adjective, read_amount
from .spoken_numbers import DECIMAL_COMMA, EXPONENT, NUMBER, read_integer, read_number, read_scientific, with_point

UNITS = {  # Chinese, English for many
    "kg": ("公斤", "kilograms"), "mg": ("毫克", "milligrams"), "g": ("克", "grams"), "μg": ("微克", "micrograms"),
    "km²": ("平方公里", "square kilometers"), "m²": ("平方米", "square meters"), "㎡": ("平方米", "square meters"),
    "cm²": ("平方厘米", "square centimeters"), "mm²": ("平方毫米", "square millimeters"),
    "m³": ("立方米", "cubic meters"), "cm³": ("立方厘米", "cubic centimeters"), "km": ("公里", "kilometers"),
    "cm": ("厘米", "centimeters"), "mm": ("毫米", "millimeters"), "nm": ("纳米", "nanometers"),
    "μm": ("微米", "micrometers"), "m": ("米", "meters"), "ml": ("毫升", "milliliters"), "mL": ("毫升", "milliliters"),
    "L": ("升", "liters"), "dL": ("分升", "deciliters"), "mins": ("分钟", "minutes"), "min": ("分钟", "minutes"),
    "ms": ("毫秒", "milliseconds"), "μs": ("微秒", "microseconds"), "ns": ("纳秒", "nanoseconds"),
    "s²": ("二次方秒", "seconds squared"), "s": ("秒", "seconds"), "sec": ("秒", "seconds"), "secs": ("秒", "seconds"),
    "h": ("小时", "hours"), "hr": ("小时", "hours"), "hrs": ("小时", "hours"),
    "°C": ("摄氏度", "degrees Celsius"), "℃": ("摄氏度", "degrees Celsius"), "°F": ("华氏度", "degrees Fahrenheit"),
    "℉": ("华氏度", "degrees Fahrenheit"), "°": ("度", "degrees"),
    "KB": ("KB", "kilobytes"), "kB": ("KB", "kilobytes"), "MB": ("MB", "megabytes"), "GB": ("GB", "gigabytes"),
    "TB": ("TB", "terabytes"), "PB": ("PB", "petabytes"), "Kb": ("千比特", "kilobits"), "Mb": ("兆比特", "megabits"),
    "Gb": ("吉比特", "gigabits"), "Mbit": ("兆比特", "megabits"), "Gbit": ("吉比特", "gigabits"),
    "kbps": ("千比特每秒", "kilobits per second"),
    "Mbps": ("兆比特每秒", "megabits per second"), "Gbps": ("吉比特每秒", "gigabits per second"),
    "Hz": ("赫兹", "hertz"), "kHz": ("千赫兹", "kilohertz"),
    "MHz": ("兆赫兹", "megahertz"), "GHz": ("吉赫兹", "gigahertz"),
    "kWh": ("千瓦时", "kilowatt hours"), "kW": ("千瓦", "kilowatts"), "MW": ("兆瓦", "megawatts"),
    "GW": ("吉瓦", "gigawatts"), "W": ("瓦", "watts"), "mV": ("毫伏", "millivolts"), "kV": ("千伏", "kilovolts"),
    "V": ("伏", "volts"), "mA": ("毫安", "milliamperes"), "mAh": ("毫安时", "milliampere hours"),
    "Ω": ("欧姆", "ohms"),
    "kPa": ("千帕", "kilopascals"), "hPa": ("百帕", "hectopascals"), "MPa": ("兆帕", "megapascals"),
    "Pa": ("帕", "pascals"), "mmHg": ("毫米汞柱", "millimeters of mercury"), "kJ": ("千焦", "kilojoules"),
    "kcal": ("千卡", "kilocalories"), "cal": ("卡", "calories"), "dB": ("分贝", "decibels"), "mol": ("摩尔", "moles"),
    "mmol": ("毫摩尔", "millimoles"), "ppm": ("ppm", "parts per million"),
    "rpm": ("转每分钟", "revolutions per minute"),
    "fps": ("帧每秒", "frames per second"), "px": ("像素", "pixels"), "mph": ("英里每小时", "miles per hour"),
    "kph": ("公里每小时", "kilometers per hour"),
    "mi": ("英里", "miles"), "yd": ("码", "yards"), "ft": ("英尺", "feet"), "lbs": ("磅", "pounds"),
    "lb": ("磅", "pounds"),
    "oz": ("盎司", "ounces"), "gal": ("加仑", "gallons"), "ha": ("公顷", "hectares"), "t": ("吨", "tonnes"),
    "tsp": ("茶匙", "teaspoons"), "tsps": ("茶匙", "teaspoons"), "tbsp": ("汤匙", "tablespoons"),
    "tbsps": ("汤匙", "tablespoons"), "qt": ("夸脱", "quarts"), "fl oz": ("液盎司", "fluid ounces"),
    "yds": ("码", "yards"), "yrs": ("年", "years"), "yr": ("年", "years"), "wks": ("周", "weeks"),
    "hp": ("马力", "horsepower"), "mpg": ("英里每加仑", "miles per gallon"), "psi": ("psi", "P S I"),
    "sq in": ("平方英寸", "square inches"), "sq mi": ("平方英里", "square miles"), "cu ft": ("立方英尺", "cubic feet"),
    "sq ft": ("平方英尺", "square feet"), "sq km": ("平方公里", "square kilometers"),
    "sq m": ("平方米", "square meters"),
}  # fmt: skip
for _sign, _digit in ("²", "2"), ("³", "3"):  # "m^2" and "m2"
    UNITS.update({unit.replace(_sign, "^" + _digit): words for unit, words in UNITS.items() if _sign in unit})
    UNITS.update({unit.replace(_sign, _digit): words for unit, words in UNITS.items() if _sign in unit})
UNITS.update({unit.replace("μ", "µ"): words for unit, words in UNITS.items()})  # Greek letter and micro sign
TIMES_OF = {  # behind a slash: "$5/month"
    "day": "天", "week": "周", "wk": "周", "month": "月", "mo": "月", "year": "年", "yr": "年", "hour": "小时",
    "minute": "分钟",
    "second": "秒", "person": "人", "night": "晚", "unit": "个", "share": "股", "user": "用户",
    "litre": "升", "liter": "升", "gallon": "加仑", "mile": "英里", "kilo": "公斤",
}  # fmt: skip
LONG = {"wk": "week", "mo": "month", "yr": "year"}
DOTTED = {  # with a full stop behind them, as in "5 in. long"
    **{unit: UNITS[unit] for unit in ("tsp", "tbsp", "tsps", "tbsps", "qt", "yds", "yrs", "yr", "wks", "kg", "km")},
    "sq. ft": UNITS["sq ft"], "sq. in": UNITS["sq in"], "sq. mi": UNITS["sq mi"], "cu. ft": UNITS["cu ft"],
    "fl. oz": UNITS["fl oz"], "pt": ("品脱", "pints"), "pts": ("分", "points"),
    "in": ("英寸", "inches"), "ft": UNITS["ft"], "lb": UNITS["lb"], "lbs": UNITS["lb"], "oz": UNITS["oz"],
    "hr": UNITS["h"], "hrs": UNITS["h"], "min": UNITS["min"], "mins": UNITS["min"], "sec": UNITS["s"],
    "mi": UNITS["mi"], "yd": UNITS["yd"], "gal": UNITS["gal"],
}  # fmt: skip
UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))
PER = "|".join([*sorted(TIMES_OF, key=len, reverse=True), UNIT])
SCIENTIFIC_UNITS = {  # letters that are units only behind a number with an exponent
    "N": ("牛顿", "newtons"), "J": ("焦耳", "joules"), "K": ("开尔文", "kelvins"), "eV": ("电子伏特", "electronvolts"),
}  # fmt: skip
COMPASS = {"N": ("北纬", "north"), "S": ("南纬", "south"), "E": ("东经", "east"), "W": ("西经", "west")}
_LET_IN = re.compile(
    r"\b(?:put|let|got|get|brought|bring|come|came|go|went|moved?|take|took|all|the|top|bottom|first|last|next|of|only|other|another|"
    r"[Tt]here[ ](?:are|were|is|was))[ ]\Z"
)
SCREEN = "runs?\\b|races?\\b|video|tv|TV|screen|monitor|display|resolution|gaming|视频|电视|屏|分辨率|显示器|高清"


def read_unit(unit: str, lang: str, is_one: bool = False) -> str:
    """A unit of the tables, also one with a slash ("km/h").

    Raises:
        KeyError: a part of it is not in the tables.
    """
    upper, _, lower = unit.partition("/")
    zh, en = UNITS[upper]
    words = zh if lang == "zh" else (_singular(en) if is_one else en)
    if not lower:
        return words
    zh, en = read_per(lower)
    return f"{words}每{zh}" if lang == "zh" else f"{words} per {en}"


def read_per(unit: str) -> tuple[str, str]:
    """What stands behind a slash, in Chinese and English: "h" is 小时 and "hour"; other words as they are."""
    if unit in UNITS:
        return UNITS[unit][0], _singular(UNITS[unit][1])
    return TIMES_OF.get(unit, unit), LONG.get(unit, unit)


def _measure(token: Token) -> str:
    number = with_point(token["mn"])
    if token["factor"] == "k":
        return read_amount(number, "k", token.lang)
    is_one = number == "1" or is_adjective(token)
    if token["stopped"]:
        zh, en = DOTTED[token["stopped"]]
        unit = token.choose(zh, _singular(en) if is_one else en)
        if token["stopped"] == "in" and token["ended"] is not None and _LET_IN.search(token.left):
            unit = "in"  # the word: "they let 3 in."
    elif token["factor"]:
        unit = token.choose("倍", "time" if is_one else "times")
    else:
        unit = read_unit(token["unit"], token.lang, is_one)
    if token.lang == "zh":
        return read_number(number, "zh", unit) + unit
    return f"{read_number(number, 'en') if '.' in number else read_integer(number, 'en')} {unit}"


def _scientific_measure(token: Token) -> str:
    name = token["sci_unit"].strip()
    unit = token.choose(*SCIENTIFIC_UNITS[name]) if name in SCIENTIFIC_UNITS else read_unit(name, token.lang)
    return read_scientific(token["sci"], token.lang) + token.choose("", " ") + unit


def _singular(unit: str) -> str:
    """The English name of one: "square meter", "foot"."""
    if unit in ("hertz", "kilohertz", "megahertz", "gigahertz"):
        return unit
    one = re.sub(r"^((?:square |cubic |fluid |kilowatt |milliampere )?[a-z]+)s\b", r"\1", unit)
    return one.replace("feet", "foot").replace("inche", "inch")


def _duration(token: Token) -> str:
    """Hours, minutes and seconds, where "m" means minutes: "2h 30m", "3m 20s"."""
    parts = re.findall(r"(\d+)([hms])", token[0])
    words = [
        read_number(number, token.lang, unit := read_unit({"m": "min"}.get(name, name), token.lang, number == "1"))
        + (unit if token.lang == "zh" else " " + unit)
        for number, name in parts
    ]
    return token.choose("", " ").join(words)


def _feet(token: Token) -> str:
    feet = token["f1"] or token["f2"] or token["f3"]
    inches = token["i1"] or token["i2"] or token["i3"] or token["i4"]
    words = (
        [read_integer(feet, token.lang) + token.choose("英尺", " foot" if feet == "1" else " feet")] if feet else []
    )
    if inches:
        is_one = inches == "1" or (not feet and is_adjective(token))
        words += [read_integer(inches, token.lang) + token.choose("英寸", " inch" if is_one else " inches")]
    return token.choose("", " ").join(words)


def _angle(token: Token) -> str:
    """Degrees with minutes and seconds of arc, or with the point of the compass of a coordinate."""
    words = []
    for name, zh, en in (("deg", "度", "degrees"), ("arc", "分", "minutes"), ("arc_s", "秒", "seconds")):
        if number := token[name]:
            read = read_number(number, token.lang) if "." in number else read_integer(number, token.lang)
            words.append(token.choose(read + zh, f"{read} {_singular(en) if number == '1' else en}"))
    zh, en = COMPASS.get(token["deg_to"] or token["deg_at"], ("", ""))
    return token.choose(zh + "".join(words), " ".join([*words, en]).rstrip())


SCIENTIFIC_MEASURES = (
    Kind(
        "scientific_measure",
        rf"""(?P<sci>(?<![A-Za-z])(?:{NUMBER}){EXPONENT})
        (?P<sci_unit>{"|".join(SCIENTIFIC_UNITS)}
        |(?:{UNIT})(?:/(?:{PER}))?|[ ](?:{UNIT})/(?:{PER}))
        (?![A-Za-z0-9²³^]|/[A-Za-z])""",
        _scientific_measure,
        (
            ("a force of 1e-5N here", "a force of one times ten to the power of minus five newtons here"),
            ("速度是3e8m/s", "速度是三乘以十的八次方米每秒"),
            ("it is 3×10^8m/s there", "it is three times ten to the power of eight meters per second there"),
        ),
    ),
)
MEASURES = (
    Kind(
        "duration",
        r"(?<![\w.])(?:\d+h[ ]?\d+m(?:in)?(?:[ ]?\d+s)?|\d+m[ ]?\d+s)(?![A-Za-z0-9])",
        _duration,
        (("it took 2h 30m or 3m20s there", "it took two hours thirty minutes or three minutes twenty seconds there"),),
    ),
    Kind(
        "angle",
        r"""(?<![\w.])(?P<deg>\d{1,3}(?:\.\d+)?)[ ]?°
        (?:[ ]?(?P<arc>\d{1,2}(?:\.\d+)?)[ ]?['′’](?:[ ]?(?P<arc_s>\d{1,2}(?:\.\d+)?)[ ]?(?:["″”]|''))?
        (?:[ ]?(?P<deg_to>[NSEW])(?![\w'’]))?
        |[ ]?(?P<deg_at>[NSEW])(?![\w'’]))""",
        _angle,
        (
            (
                "48°51′24″N, 2°21′ E",
                "forty eight degrees fifty one minutes twenty four seconds north, two degrees twenty one minutes east",
            ),
            ("turn by 1°30' there", "turn by one degree thirty minutes there"),
            ("在39.9°N，116°23′E", "在北纬三十九点九度，东经一百一十六度二十三分"),
        ),
    ),
    Kind(
        "feet",
        r"""(?<![\w.,'"])(?:(?P<f1>\d{1,3})(?:['′’]|[ ]?ft\.?)[ ]?(?P<i1>\d{1,2})
        (?:["″”]|''|[ ]?in\b(?:\.(?=[ ][a-z(]|[,;:)]))?)
        |(?P<f3>[3-8])['′’](?P<i3>1[01]|\d)(?![\w'′’"″”]|\.\d)
        |(?P<i4>\d{1,3})″
        |(?P<f2>\d{1,3})['′’](?=[ ](?:tall|long|wide|high|deep)\b)
        |(?P<i2>\d{1,3})["″”](?=[ ](?:tall|long|wide|high|deep|screen|monitor|display|laptop|tablet|TV|
        pizza|pipe|ruler|wheel|wheels|vinyl|record)\b))""",
        _feet,
        (
            ("he is 6'2\" tall there", "he is six feet two inches tall there"),
            ("she is 5'10 with a 7″ tablet", "she is five feet ten inches with a seven inch tablet"),
        ),
    ),
    Kind(
        "measure",
        rf"""(?P<mn>{DECIMAL_COMMA}|{NUMBER})(?:[ ]?(?P<stopped>{"|".join(map(re.escape, DOTTED))})
        (?:\.(?=[ ][a-z(]|[{HAN}]|[ ]\d{{1,3}}[ ]?(?:in|oz|min|sec)\b|[,;:)])|(?P<ended>)(?=\.(?:\s|\Z|["”’])))
        |(?:[ ]?(?P<unit>(?:{UNIT})(?:/(?:{PER}))?)
        |(?P<factor>k(?![ ]?(?:{SCREEN}))|x(?![ ]?[+=*/^²³]|[ ]-[ ]))(?![ ]?\d))(?![A-Za-z0-9²³^]|/[A-Za-z]))
        (?!(?<=[ ]t)[-'’])""",
        _measure,
        (
            ("跑了5km，车速100km/h", "跑了五公里，车速一百公里每小时"),
            ("面积50㎡，体重60.5kg", "面积五十平方米，体重六十点五公斤"),
            ("He ran 1 km in 20 min", "He ran one kilometer in twenty minutes"),
            ("It is 1 ft or 2.5x as long", "It is one foot or two point five times as long"),
            ("add 2 tsp. of salt to 12 fl. oz. of it", "add two teaspoons of salt to twelve fluid ounces of it"),
            (
                "a 10 sq. ft. room is 3 in. They let 3 in.",
                "a ten square foot room is three inches. They let three in.",
            ),
            ("it is 5 in. long, 9.8 m/s²", "it is five inches long, nine point eight meters per second squared"),
            ("it weighs 1,5 kg there", "it weighs one point five kilograms there"),
            ("月薪15k，每天2L/人", "月薪一万五千，每天两升每人"),
        ),
    ),
)
