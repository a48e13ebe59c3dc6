"""Numbers with a unit in Chinese or English words."""

import re

from .spoken_kinds import Kind, Token
from .spoken_numbers import NUMBER, read_integer, read_number

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
UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))


def _measure(token: Token) -> str:
    number = token["mn"]
    zh, en = UNITS[token["unit"]] if token["unit"] else FACTORS[token["factor"]]
    if token.lang == "zh":
        return read_number(number, "zh", zh) + zh
    if number == "1":
        en = _singular(en)
    return f"{read_number(number, 'en') if '.' in number else read_integer(number, 'en')} {en}"


def _singular(unit: str) -> str:
    return re.sub(r"^((?:square |cubic |kilowatt )?[a-z]+)s\b", r"\1", unit).replace("feet", "foot")


MEASURES = (
    Kind(
        "measure",
        rf"(?P<mn>{NUMBER})(?:[ ]?(?P<unit>{UNIT})|(?P<factor>[kx])(?![ ]?\d))(?![A-Za-z0-9²³/])",
        _measure,
        (
            ("跑了5km，车速100km/h", "跑了五公里，车速一百公里每小时"),
            ("面积50㎡，体重60.5kg", "面积五十平方米，体重六十点五公斤"),
            ("He ran 1 km in 20 min", "He ran one kilometer in twenty minutes"),
            ("It is 1 ft or 2.5x as long", "It is one foot or two point five times as long"),
        ),
    ),
)
