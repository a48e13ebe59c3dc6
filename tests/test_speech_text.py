"""Speech text: reading of numbers and symbols, no lost content, bounded pieces, stream equal to the whole text."""

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ming.spoken_numbers as words
from ming.speech_text import SpeechTextStream, cut_speech_text, normalize_speech_text, speech_units
from ming.spoken_numbers import read_integer
from ming.spoken_text import MARKS, SPOKEN_NUMBERS, TOKEN

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = Path(__file__).parent / "goldens" / "speech_text"
RELEASED = [
    line.split("\t") for line in (GOLDENS / "released_normalizer.tsv").read_text("utf-8").splitlines()[1:]
]  # input, what the released code makes of it, whether that is right
RELEASED_INPUTS = [json.loads(row[0]) for row in RELEASED]
READINGS = [line.split("\t") for line in (GOLDENS / "right_readings.tsv").read_text("utf-8").splitlines()[1:]]
CUT_INPUTS = json.loads((GOLDENS / "released_cut_text_inputs.json").read_text("utf-8"))

CHINESE = {
    "便宜20%": "便宜百分之二十",
    "我有2个苹果，住2楼": "我有两个苹果，住二楼",
    "2个人2天2次第2名2月2日2点": "两个人两天两次第二名二月二日两点",
    "2023年5月1日": "二零二三年五月一日",
    "日期是2024-03-15": "日期是二零二四年三月十五日",
    "2023年10月1日至7日": "二零二三年十月一日至七日",
    "现在是14:05，会议15:30开始。": "现在是十四点零五分，会议十五点三十分开始。",
    "上午9:00:01出发": "上午九点零一秒出发",
    "比分3：2，时间12：30开始": "比分三比二，时间十二点三十分开始",
    "价格：￥1,299.50": "价格，一千二百九十九点五零元",
    "一共1,234,567元": "一共一百二十三万四千五百六十七元",
    "花了$1.5亿": "花了一点五亿美元",
    "温度是-5℃到10℃之间": "温度是负五摄氏度到十摄氏度之间",
    "折扣-15%": "折扣负百分之十五",
    "湿度为60%-70%": "湿度为百分之六十到百分之七十",
    "跑了5km，车速100km/h": "跑了五公里，车速一百公里每小时",
    "面积50㎡，体重60.5kg": "面积五十平方米，体重六十点五公斤",
    "电话010-88888888，手机138 1234 5678": "电话零幺零八八八八八八八八，手机幺三八幺二三四五六七八",
    "拨打110，共110个": "拨打幺幺零，共一百一十个",
    "身份证号110101199001011234": "身份证号幺幺零幺零幺幺九九零零幺零幺幺二三四",
    "房间305室，第12章": "房间三零五室，第十二章",
    "有1和123和12": "有一和一百二十三和十二",
    "20%和120%": "百分之二十和百分之一百二十",
    "7*24小时": "七乘以二十四小时",
    "5 - 3 = 2；3×4=12；2^10=1024": "五减三等于二。三乘以四等于十二。二的十次方等于一千零二十四",
    "占了2½，剩1/3，血压120/80": "占了二又二分之一，剩三分之一，血压一百二十比八十",
    "苹果、香蕉（进口）；很好": "苹果，香蕉，进口。很好",
    "他说：“你好！”然后走了。": "他说，你好！然后走了。",
    "等等……好的~~~": "等等。好的",
    "你好 世界\n下一行": "你好，世界。下一行",
    "你好😀世界🌍": "你好世界",
    "共１２３４５个，Ａ": "共一万二千三百四十五个，A",
    "①第一步，½杯": "一第一步，二分之一杯",
    "繁體字測試龥": "繁體字測試龥",
}
ENGLISH = {
    "iPhone 15 costs $999": "iPhone fifteen costs nine hundred and ninety nine dollars",
    "It's a well-known state-of-the-art model's result.": "It's a well-known state-of-the-art model's result.",
    "He paid $5.00 for 3 apples.": "He paid five dollars for three apples.",
    "It is $1,000, $0.99 or £1.": "It is one thousand dollars, ninety nine cents or one pound.",
    "about $1.5 million": "about one point five million dollars",
    "1,234 people left": "one thousand two hundred and thirty four people left",
    "born in 1999 or 2024": "born in nineteen ninety nine or twenty twenty four",
    "in the 1990s": "in the nineteen nineties",
    "on March 5th, 2024 and 5 May": "on March fifth, twenty twenty four and fifth of May",
    "The meeting is at 10:30 a.m. on 2024-03-15.": "The meeting is at ten thirty AM on March fifteenth, twenty "
    "twenty four.",
    "1st, 2nd and 23rd": "first, second and twenty third",
    "I got 90% of it": "I got ninety percent of it",
    "It was 25°C (77°F) outside.": "It was twenty five degrees Celsius, seventy seven degrees Fahrenheit, outside.",
    "He ran 1 km in 20 min at 15 km/h": "He ran one kilometer in twenty minutes at fifteen kilometers per hour",
    "It is 3 m long": "It is three meters long",
    "10-20 people pay $5-$10 each": "ten to twenty people pay five dollars to ten dollars each",
    "x > 3 and y <= 5": "x greater than three and y less than or equal to five",
    "2 1/2 cups and 3/4 of it": "two and one half cups and three quarters of it",
    "Dr. Smith met Mr. Lee, e.g. in St. Louis.": "Doctor Smith met Mister Lee, for example in Saint Louis.",
    "The U.S. has 50 states. It is big.": "The U.S. has fifty states. It is big.",
    "No. 5 is alive. No. It is not.": "number five is alive. No. It is not.",
    "COVID-19 and GPT-4 and H2O and 5G and MP3.": "COVID nineteen and GPT four and H two O and five G and MP three.",
    "Version 2.0.1 of Node.js and C++ and C#": "Version two point zero point one of Node dot js and C plus plus and "
    "C sharp",
    "mail test@example.com now": "mail test at example dot com now",
    "Visit https://www.example.com/a now": "Visit https www dot example dot com slash a now",
    "A & B @ home #1": "A and B at home number one",
    "world &amp; co, 5 &lt; 7": "world and co, five less than seven",
    "it&#39;s a &quot;caf&eacute;&quot;&nbsp;now; AT&T; R&D; here": "it's a café now, AT and T, R and D, here",
    "₹1.5 lakh crore": "one point five lakh crore rupees",
    "see Ch. IX and sec. iv of WrestleMania XL": "see Chapter nine and section four of WrestleMania forty",
    "at 07:05:09 there": "at seven oh five oh nine there",
    "Really?? Yes!!! OK...": "Really? Yes! OK.",
    "Wait -- what — really": "Wait, what, really",
    "The quick brown fox\njumps over": "The quick brown fox jumps over",
    "naïve café, Привет 5 times": "naïve café, Привет five times",
    "a flight CA1234 left": "a flight CA one two three four left",
    "call +86 138 and dial 911 now": "call plus eighty six, one hundred and thirty eight and dial nine one one now",
}
MIXED = {
    "iPhone 15 costs $999，便宜20%": "iPhone fifteen costs nine hundred and ninety nine dollars，便宜百分之二十",
    "我在2020年买了3台iPhone 12，花了15,000元。": "我在二零二零年买了三台iPhone 十二，花了一万五千元。",
    "今天是Monday，温度是25°C。": "今天是Monday，温度是二十五摄氏度。",
    "我喜欢Windows 11和macOS 14": "我喜欢Windows 十一和macOS 十四",
    "The word 你好 has 2 characters.": "The word 你好has two characters.",
    "Python3.11发布了": "Python三点一一发布了",
    "I got 90% on the test.下次考100分": "I got ninety percent on the test. 下次考一百分",
    "これは5個です": "これは五個です",
}
MARKDOWN = {
    "**重点**：请在*3天*内完成。": "重点，请在三天内完成。",
    "# 标题\n\n- 苹果 5 个\n- 香蕉\n\n1. 打开\n2. 保存": "标题。苹果五个。香蕉。一，打开。二，保存",
    "See [the docs](https://docs.python.org/3/) for `pip install`.": "See the docs for pip install.",
    "![alt text](img.png) here": "alt text here",
    "| 名称 | 价格 |\n|---|:--|\n| 苹果 | ¥5.5 |": "名称，价格。苹果，五点五元",
    "```python\nprint(1)\n```\n结果": "print, one. 结果",
    "***bold italic*** ~~strike~~ `code 5`": "bold italic, strike, code five",
    "> quoted text\n> - [x] done": "quoted text. done",
    "foo_bar __init__": "foo bar init",
    "first<br>second": "first, second",
}
CASES = {**CHINESE, **ENGLISH, **MIXED, **MARKDOWN}

EXAMPLES = [(row.name, text, spoken) for row in (*SPOKEN_NUMBERS, *MARKS) for text, spoken in row.examples]

PLAIN_WORDS = ["apple", "river", "Montréal", "don't", "window", "garden", "happy", "Tokyo", "привет", "yesterday"]
PLAIN_CHINESE = ["你好", "今天天气很好", "我们去公园玩", "因为", "所以", "学习", "飞机", "朋友"]
SYMBOLS = ["😀", "→", "%", " & ", "**", "*", "`", "_", "~", "(", ")", "“", "”", "#", "|", " - ", "$", "\n- ", "\n# "]
PAUSES = ["，", "。", "！", "？", "；", "…", ", ", ". ", "! ", "? ", "\n", "\n\n", " "]


def spoken_only(text):
    return re.sub(r"[\s，。！？,.!?]", "", text)


def random_parts(rng, count):
    """Pieces of a reply, and those of them that have to be in the spoken text as they are."""
    parts, kept = [], []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.6:
            kept.append(rng.choice(PLAIN_WORDS if rng.random() < 0.5 else PLAIN_CHINESE))
            parts.append(kept[-1] if kept[-1] in PLAIN_CHINESE else f" {kept[-1]} ")
        elif kind < 0.75:
            digits = str(rng.randrange(10 ** rng.randint(1, 6)))
            parts.append(rng.choice(["{}", " {} ", "{}%", "${}", "{}.5", "{}年", "{}km", "{}:30"]).format(digits))
        else:
            parts.append(rng.choice(SYMBOLS if kind < 0.85 else PAUSES))
    return parts, kept


def random_replies(seed, count):
    rng = random.Random(seed)
    return ["".join(random_parts(rng, rng.randint(1, 40))[0]) for _ in range(count)]


REPLIES = [*random_replies(0, 40), *RELEASED_INPUTS, *CUT_INPUTS, *CASES, *(row[1] for row in READINGS)]


def stream(text, rng, longest, **options):
    cutter, pieces, start = SpeechTextStream(**options), [], 0
    while start < len(text):
        end = start + rng.randint(1, longest)
        pieces += cutter.push(text[start:end])
        start = end
    return pieces + cutter.finish()


@pytest.mark.parametrize(("text", "spoken"), CASES.items(), ids=range(len(CASES)))
def test_reading(text, spoken):
    assert normalize_speech_text(text) == spoken


@pytest.mark.parametrize(("kind", "text", "spoken"), EXAMPLES)
def test_examples_of_the_tables(kind, text, spoken):
    assert normalize_speech_text(text) == spoken
    assert kind in {match.lastgroup for match in TOKEN.finditer(text.translate({0xFF1A: ":", 0xFFE5: "¥"}))}


@pytest.mark.parametrize("kind", sorted({row[0] for row in READINGS}))
def test_right_readings(kind):
    rows = {text: spoken for name, text, spoken in READINGS if name == kind}
    assert {text: normalize_speech_text(text) for text in rows} == rows


def test_right_readings_are_a_grid():
    texts = [row[1] for row in READINGS]
    assert len(set(texts)) == len(texts) > 350
    assert sum(bool(re.search("[\u4e00-\u9fff]", text)) for text in texts) > 100


def test_every_row_of_the_tables_has_examples():
    names = [row.name for row in (*SPOKEN_NUMBERS, *MARKS)]
    assert len(set(names)) == len(names) and {kind for kind, _, _ in EXAMPLES} == set(names)
    assert all(TOKEN.groupindex[name] for name in names)


def test_released_readings_that_are_right_are_kept():
    right = [(json.loads(text), json.loads(spoken)) for text, spoken, is_right in RELEASED if is_right == "yes"]
    assert len(right) > 80
    assert {text: normalize_speech_text(text) for text, _ in right} == dict(right)


@pytest.mark.parametrize("seed", range(4))
def test_no_word_is_lost_or_moved(seed):
    rng = random.Random(seed)
    for _ in range(25):
        parts, kept = random_parts(rng, 30)
        spoken, position = normalize_speech_text("".join(parts)), 0
        for word in kept:
            position = spoken.find(word, position)
            assert position >= 0, (word, parts, spoken)
            position += len(word)
        assert not re.search(r"\d|[，。！？,.!?] ?[，。！？,.!?]|  ", spoken), (parts, spoken)


@pytest.mark.parametrize("seed", range(4))
def test_no_word_beside_a_number_is_lost(seed):
    rng = random.Random(seed)
    for _, text, _ in READINGS:
        first, last = rng.sample(["window", "garden", "yesterday", "flower"], 2)
        other = rng.choice(READINGS)[1]
        spoken = normalize_speech_text(f"{first} {text} {last} {other} {first}")
        assert re.findall(rf"(?<![A-Za-z])(?:{first}|{last})(?![A-Za-z])", spoken) == [first, last, first], (
            text,
            other,
            spoken,
        )
        assert not re.search(r"\d", spoken), (text, other, spoken)


@pytest.mark.parametrize(
    "unit", ["1-", "1k", "1x", "0 12", "120 ", "a.", "a-", "/a", "$1-", "(010) ", "No.", "1e5", "+(1) "]
)
def test_reading_takes_time_in_proportion_to_the_text(unit):
    unit = unit.replace("·", " ")
    normalize_speech_text(unit)
    started = time.perf_counter()
    normalize_speech_text((unit * 4000)[:4000])
    assert time.perf_counter() - started < 10  # 0.1 to 2 s; quadratic patterns take minutes


@pytest.mark.parametrize(
    "letters", ["繁體字測試龥々〇", "кириллица ёж", "ひらがなカタカナー", "한국어 문장", "áèîõü", "हिन्दी", "ไทย"]
)
def test_letters_of_all_scripts_stay(letters):
    assert normalize_speech_text(letters) == letters


@pytest.mark.parametrize("text", ["", " \n", "😀🎉", "。。。", "—— ** ~", "#", "$", "```\n```", "\u0301"])
def test_nothing_to_say(text):
    assert normalize_speech_text(text) == ""
    assert cut_speech_text(normalize_speech_text(text)) == cut_speech_text(text) == []
    assert stream(text, random.Random(0), 1) == []


def chinese_value(text):
    total = section = digit = 0
    for char in text.replace("两", "二"):
        if char in "零一二三四五六七八九":
            digit = "零一二三四五六七八九".index(char)
        elif char in "十百千":
            section += (digit or 1) * 10 ** (1 + "十百千".index(char))
            digit = 0
        else:
            total = (total + section + digit) * 10**8 if char == "亿" else total + (section + digit) * 10**4
            section = digit = 0
    return total + section + digit


def english_value(text):
    small = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    small = (small + "seventeen eighteen nineteen").split()
    tens = dict(
        zip(
            ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"],
            range(20, 100, 10),
            strict=True,
        )
    )
    total = group = 0
    for word in text.replace(" and ", " ").split():
        if word in ("thousand", "million", "billion"):
            total, group = total + group * {"thousand": 10**3, "million": 10**6, "billion": 10**9}[word], 0
        elif word == "hundred":
            group *= 100
        else:
            group += tens[word] if word in tens else small.index(word)
    return total + group


def test_whole_numbers_mean_what_was_written():
    rng = random.Random(0)
    numbers = [*range(120), 1000, 1001, 1100, 2000, 10**9 - 1, *(rng.randrange(10**size) for size in range(3, 10))]
    for number in numbers:
        assert chinese_value(read_integer(str(number), "zh")) == number
        assert english_value(read_integer(str(number), "en")) == number
    for number in (1000, 1_234_567, 10**9, 10**11 + 1, 10**12 - 1):
        assert chinese_value(read_integer(f"{number:,}", "zh")) == number
        assert english_value(read_integer(f"{number:,}", "en")) == number


@pytest.mark.parametrize("max_units", [1, 2, 7, 20, 50])
def test_pieces_are_bounded_and_complete(max_units):
    for text in REPLIES:
        for source in (text, normalize_speech_text(text)):
            pieces = cut_speech_text(source, max_units)
            assert all(0 < speech_units(piece) <= max_units for piece in pieces), (source, pieces)
            if speech_units(source):
                assert "".join("".join(pieces).split()) == "".join(source.split())
            else:
                assert pieces == []


def test_units_bound_both_scripts():
    assert speech_units("你好，世界！") == 4
    assert speech_units("Hi, wonderful world") == 1 + 3 + 2
    assert speech_units("안녕 かな 12") == 6
    assert [len(piece) for piece in cut_speech_text("a" * 1000, 50)] == [200] * 5


CUTS = {
    ("短。短。短。短。", 50): ["短。短。短。短。"],
    ("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。", 20): ["春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"],
    ("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。", 12): ["春眠不觉晓，处处闻啼鸟。", "夜来风雨声，花落知多少。"],
    ("春眠不觉晓，处处闻啼鸟。", 8): ["春眠不觉晓，", "处处闻啼鸟。"],
    ("一二三四五六七八九十一二", 10): ["一二三四五六七八九十", "一二"],
    ("一二三四五六12", 7): ["一二三四五六", "12"],
    ("hello 春眠不觉晓处处闻", 8): ["hello", "春眠不觉晓处处闻"],
    ("Yes. one two three four five six", 5): ["Yes. one two three", "four five six"],
    ("Pi is 3.14, as Dr. Wu says. So it is.", 6): ["Pi is 3.14,", "as Dr. Wu says.", "So it is."],
    ("Pi is 3.14, as Dr. Wu says. So it is.", 9): ["Pi is 3.14, as Dr. Wu says.", "So it is."],
    ("See www.example.com, e.g. now! Then go.", 9): ["See www.example.com, e.g. now!", "Then go."],
    ("one two three four five six", 4): ["one two three", "four five six"],
    ("他说：“好的。”然后走了。", 7): ["他说：“好的。”", "然后走了。"],
}


@pytest.mark.parametrize(("case", "pieces"), CUTS.items(), ids=range(len(CUTS)))
def test_cuts_at_the_best_place(case, pieces):
    assert cut_speech_text(*case) == pieces


SENTENCES = {
    "a red circle on the left. a blue star on the right. a green triangle at the top.": [
        "a red circle on the left.", "a blue star on the right.", "a green triangle at the top.",
    ],
    "Yes. I do! Why? Because I can.": ["Yes.", "I do!", "Why?", "Because I can."],
    "短。也短！真的？是的。": ["短。", "也短！", "真的？", "是的。"],
    "It is big.它很大。It is not.": ["It is big.", "它很大。", "It is not."],
    "Dr. Wu of St. Ives, Pi is 3.14, e.g. here. So it is.": [
        "Dr. Wu of St. Ives, Pi is 3.14, e.g. here.", "So it is.",
    ],
    "We live in the U.S. It is big. J. R. Wu has plan B. Then we go.": [
        "We live in the U.S.", "It is big.", "J. R. Wu has plan B.", "Then we go.",
    ],
    "Is it? No. Nobody came. It is at No. 5 there.": ["Is it?", "No.", "Nobody came.", "It is at No. 5 there."],
    "It is not his. No. O'Brien came.": ["It is not his.", "No.", "O'Brien came."],
    "他说：“好的。”然后走了。": ["他说：“好的。”", "然后走了。"],
    "One (really!) is. Two is \"too.\" Three 😀 is. 😀": ["One (really!)", "is.", 'Two is "too."', "Three 😀 is. 😀"],
}  # fmt: skip


@pytest.mark.parametrize(("text", "sentences"), SENTENCES.items(), ids=range(len(SENTENCES)))
def test_one_sentence_a_piece(text, sentences):
    assert cut_speech_text(text, one_sentence=True) == sentences
    assert cut_speech_text(text, 200) != sentences or len(sentences) == 1


@pytest.mark.parametrize("max_units", [3, 8, 50, 1000])
def test_one_sentence_pieces_are_bounded_and_complete(max_units):
    for source in [*SENTENCES, *map(normalize_speech_text, REPLIES)]:
        pieces = cut_speech_text(source, max_units, one_sentence=True)
        assert all(0 < speech_units(piece) <= max_units for piece in pieces), (source, pieces)
        assert "".join("".join(pieces).split()) == ("".join(source.split()) if speech_units(source) else "")
        assert all(cut_speech_text(piece, 10_000, one_sentence=True) == [piece] for piece in pieces), pieces
        assert not [p for p in pieces if re.search(r"[。！？…；](?![”」』）])\w|[!?;] +\w|[a-z]{4}\. +\w", p)], pieces


def test_one_sentence_leaves_longer_sentences_to_the_bound():
    text = "A short one. " + "one two three four five six seven, " * 8 + "end. Last."
    pieces = cut_speech_text(text, 20, one_sentence=True)
    assert (pieces[0], pieces[-1]) == ("A short one.", "Last.")
    assert all(piece.endswith(("seven,", "end.")) for piece in pieces[1:-1])


@pytest.mark.parametrize("longest", [1, 3, 40])
def test_one_sentence_stream_says_what_the_whole_text_says(longest):
    rng = random.Random(longest)
    for text in [*SENTENCES, *REPLIES]:
        options = rng.choice([{}, {"max_units": 8}, {"max_units": 20, "first_units": 1}, {"max_units": 1000}])
        pieces = stream(text, rng, longest, one_sentence=True, **options)
        whole = cut_speech_text(normalize_speech_text(text), one_sentence=True)
        assert spoken_only("".join(pieces)) == spoken_only("".join(whole)), text
        assert all(0 < speech_units(piece) <= options.get("max_units", 50) for piece in pieces), pieces
        assert all(len(cut_speech_text(piece, 10_000, one_sentence=True)) == 1 for piece in pieces), pieces


@pytest.mark.parametrize("longest", [1, 3, 40])
def test_one_sentence_stream_cuts_short_sentences_as_the_whole_text_is_cut(longest):
    text = "A red circle. Yes! 短的。Is it in the U.S. It is plan B. We? No. We go. "
    sentences = cut_speech_text(normalize_speech_text(text), one_sentence=True)
    assert sentences == [
        "A red circle.", "Yes!", "短的。", "Is it in the U.S.", "It is plan B.", "We?", "No.", "We go.",
    ]  # fmt: skip
    assert stream(text, random.Random(0), longest, one_sentence=True) == sentences
    assert len(stream(text, random.Random(0), longest)) < len(sentences)


LINES = {
    "a red circle\n\na blue star": ["a red circle.", "a blue star"],
    "a red circle,\n \n  a blue star": ["a red circle.", "a blue star"],
    "# all shapes\na red circle\nand a blue star": ["all shapes.", "a red circle and a blue star"],
    "- a red circle\n- a blue star\n  on the left\n* a star": ["a red circle.", "a blue star on the left.", "a star"],
    "a) a red circle\nb) a blue star\nii. a star": ["a, a red circle.", "b, a blue star.", "ii.", "a star"],
    "1. a red circle\n2. a blue star": ["one, a red circle.", "two, a blue star"],
    "Shapes\nThe red circle is here": ["Shapes.", "The red circle is here"],
    "we like\nit. Then we go": ["we like it.", "Then we go"],
    "we walked along the long river until we met our old friend John\nSmith and 12\nothers there": [
        "we walked along the long river until we met our old friend John Smith and twelve.", "others there",
    ],
    "> ## all shapes\n> a red circle\n\n> a star": ["all shapes.", "a red circle.", "a star"],
    "形状\n\n红色的圆\n- 蓝色的星": ["形状。", "红色的圆。", "蓝色的星"],
    "# a long heading that goes on and on and on and on and on and on and on and on and on and on\nred": [
        "a long heading that goes on and on and on and on and on and on and on and on and on and on.",
        "red",
    ],
}  # fmt: skip


@pytest.mark.parametrize("longest", [0, 1, 3, 40])
@pytest.mark.parametrize(("text", "sentences"), LINES.items(), ids=range(len(LINES)))
def test_blank_lines_items_and_headings_end_sentences(text, sentences, longest):
    if longest:
        assert stream(text, random.Random(longest), longest, one_sentence=True, clause_units=40) == sentences
    else:
        assert cut_speech_text(normalize_speech_text(text), one_sentence=True) == sentences


@pytest.mark.parametrize("longest", [1, 3, 40])
def test_stream_reads_lines_as_the_whole_text_is_read(longest):
    rng = random.Random(longest)
    texts = [*LINES, *(text for _, text, _ in READINGS[::7])]
    for _ in range(40):
        text = rng.choice(["\n", "\n\n", "\n- ", "\n# ", "\nb) ", "\n2. ", " \n  "]).join(rng.sample(texts, 3))
        pieces = stream(text, rng, longest, one_sentence=True)
        whole = cut_speech_text(normalize_speech_text(text), one_sentence=True)
        assert "".join("".join(pieces).split()) == "".join("".join(whole).split()), text


CLAUSE_TEXT = "A red circle, a blue star; a green one, yes, and so on. One red circle and a star. A, b, c, d, e, f."


@pytest.mark.parametrize("longest", [1, 3, 40])
def test_pieces_of_one_clause(longest):
    rng = random.Random(longest)
    pieces = stream(CLAUSE_TEXT, rng, longest, one_sentence=True, clause_units=3)
    assert pieces == [
        "A red circle,", "a blue star,", "a green one,", "yes, and so on.", "One red circle and a star.",
        "A, b, c,", "d, e, f.",
    ]  # fmt: skip
    joined = "a red circle and a small blue star and a large green square or a star but no dot"
    assert stream(joined, rng, longest, one_sentence=True, clause_units=5) == [
        "a red circle and a small blue star", "and a large green square or a star", "but no dot",
    ]  # fmt: skip
    assert stream(joined, rng, longest, one_sentence=True) == [joined]
    grown = stream(CLAUSE_TEXT, rng, longest, first_units=3, one_sentence=True)
    assert len(grown) < len(pieces)
    assert spoken_only("".join(grown)) == spoken_only("".join(pieces))


@pytest.mark.parametrize("longest", [1, 3, 40])
def test_stream_says_what_the_whole_text_says(longest):
    rng = random.Random(longest)
    for text in REPLIES:
        options = rng.choice([{}, {"max_units": 8}, {"max_units": 20, "first_units": 1}])
        pieces = stream(text, rng, longest, **options)
        whole = cut_speech_text(normalize_speech_text(text))
        assert spoken_only("".join(pieces)) == spoken_only("".join(whole)), text
        assert all(0 < speech_units(piece) <= options.get("max_units", 50) for piece in pieces), pieces


@pytest.mark.parametrize("longest", [1, 2, 7])
def test_stream_puts_entities_together(longest):
    text = "the world &amp; all of it &lt;br&gt; &#39;AT&T&#39; and a last word &amp"
    whole = normalize_speech_text(text)
    assert " ".join(stream(text, random.Random(longest), longest)) == whole
    assert whole == "the world and all of it, AT and T and a last word and amp"


def test_stream_starts_early_and_waits_for_numbers():
    text = "好的，没问题。圆周率约等于3.14"
    cutter = SpeechTextStream()
    pieces = [cutter.push(char) for char in text]
    assert pieces[text.index("圆")] == ["好的，没问题。"]
    assert sum(pieces, []) == ["好的，没问题。"]
    assert cutter.push("159，它") == ["圆周率约等于三点一四一五九，"]
    assert cutter.finish() == ["它"]


def test_stream_pieces_grow():
    text = "这是一个不算太短的句子，" * 30
    sizes = [speech_units(piece) for piece in stream(text, random.Random(0), 2)]
    assert sizes[0] == 11
    assert 25 <= max(sizes) < 25 + 11  # half of `max_units`, and not a clause more than needed
    assert sizes == sorted(sizes[:-1]) + sizes[-1:]


def test_bad_arguments():
    with pytest.raises(TypeError, match="NoneType; give a str"):
        normalize_speech_text(None)
    with pytest.raises(TypeError, match="bytes; give a str"):
        cut_speech_text(b"text")
    with pytest.raises(TypeError, match="int; give a str"):
        SpeechTextStream().push(1)
    for value in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="max_units is"):
            cut_speech_text("text", value)
        with pytest.raises(ValueError, match="max_units is"):
            SpeechTextStream(max_units=value)
    with pytest.raises(ValueError, match="first_units is 0; give a whole number"):
        SpeechTextStream(first_units=0)
    with pytest.raises(ValueError, match="clause_units is 0; give a whole number"):
        SpeechTextStream(clause_units=0)
    with pytest.raises(ValueError, match="first_units is 9, above max_units, which is 5"):
        SpeechTextStream(max_units=5, first_units=9)


def test_finished_stream_takes_nothing_more():
    cutter = SpeechTextStream()
    assert cutter.push("Hello") == []
    assert cutter.finish() == ["Hello"]
    assert cutter.finish() == []
    with pytest.raises(ValueError, match="finished"):
        cutter.push("again")


def test_importing_loads_no_grammar():
    code = "import sys, ming.speech_text as s; s.normalize_speech_text('none'); sys.exit('wetext' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_without_wetext_the_error_says_what_to_install(monkeypatch):
    words._wetext.cache_clear()
    words._ask_wetext.cache_clear()
    monkeypatch.setitem(sys.modules, "wetext", None)
    with pytest.raises(ImportError, match="pip install wetext"):
        normalize_speech_text("有12个")
    words._wetext.cache_clear()
