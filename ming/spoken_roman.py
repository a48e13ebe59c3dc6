"""Roman numerals in Chinese or English words, where a noun or a name before them or a word behind them shows that
they are numerals: the letters of "CV", "MIX" and "an IV drip", and the word "I", stay."""

from .spoken_kinds import HAN, OPENER, Kind, Token
from .spoken_numbers import read_integer, read_ordinal

_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_BELOW_FORTY = "X{0,3}(?:IX|IV|V?I{0,3})"
ROMAN = r"(?=[IVXLCDM])M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
_SMALL = rf"(?=[ivx]{{2}}){_BELOW_FORTY.lower()}"  # in small letters; not "i", "v" and "x"
_END = r"(?![\w'’]|-[A-Za-z]|[.]\w)"
_NOUNS = (  # what is numbered
    "Chapter|Part|Volume|Vol\\.|Ch\\.|Chap\\.|Sec\\.|Fig\\.|Art\\.|Ep\\.|Op\\.|Book|Act|Scene|Article|Title|Phase|Stage|Appendix|Annex|Figure|Table|Episode|Canto|"
    "Lesson|Round|Page|War|Vatican|Bowl|WrestleMania|Symphony|Sonata|Opus|Psalm|Section"
)
_LETTERED = (  # what has letters, too, "Class V", "Model X": only "I" and numerals of several letters number it
    "Class|Type|Group|Model|Mark|Level|Grade|Category|Division|Tier|Factor|Schedule|Unit"
)
_SHORT_NOUNS = {
    "vol.": "volume", "ch.": "chapter", "chap.": "chapter", "sec.": "section", "fig.": "figure", "art.": "article",
    "ep.": "episode", "op.": "opus",
}  # fmt: skip
NUMBERED_NOUNS = f"{_NOUNS}|{_LETTERED}"
_RULERS = (  # names of people who are told apart by numerals; also first names, "John Smith III"
    "Abdullah|Adrian|Akbar|Albert|Alexander|Alexios|Alfonso|Amenhotep|Artaxerxes|Augustus|Baldwin|Basil|Benedict|"
    "Boniface|Carlos|Casimir|Catherine|Charles|Christian|Clement|Cleopatra|Constantine|Darius|Edward|Elizabeth|"
    "Emmanuel|Eugene|Felipe|Ferdinand|Francis|Franz|Frederick|Frederik|George|Gregory|Gustav|Gustavus|Haakon|Harald|"
    "Hassan|Henri|Henry|Innocent|Isabella|Ivan|James|Joseph|Juan|Julius|Justinian|Leo|Leopold|Louis|Ludwig|Manuel|"
    "Margaret|Margrethe|Mary|Mehmed|Michael|Mohammed|Murad|Napoleon|Nicholas|Olav|Otto|Paul|Pedro|Peter|Philip|Pius|"
    "Ptolemy|Ramesses|Ramses|Richard|Robert|Rudolf|Selim|Sixtus|Stephen|Suleiman|Theodosius|Thomas|Thutmose|Umberto|"
    "Urban|Victor|Walter|Wilhelm|William|John|David|Edgar|Harry|Hugh"
)
_RANKS = "King|Queen|Pope|Emperor|Empress|Tsar|Czar|Kaiser|Sultan|Shah|Pharaoh|Duke|Prince"
NAMED = f"(?:{_RULERS}|{_RANKS})"
_ZH_RULERS = (
    "路易|亨利|查理|查理曼|乔治|爱德华|威廉|伊丽莎白|腓力|菲利普|叶卡捷琳娜|彼得|尼古拉|尼古拉斯|亚历山大|拿破仑|理查|理查德|"
    "詹姆斯|约翰|保罗|保禄|本笃|庇护|奥托|腓特烈|利奥波德|拉美西斯|托勒密|伊凡"
)
_SAID = (  # a verb behind the word "I": "in the last Chapter I said"
    "am|was|had|have|will|would|can|could|did|do|said|say|saw|see|read|wrote|think|thought|like|liked|love|loved|"
    "know|knew|want|wanted|went|go|got|get|need|found|made|took|met|felt|believe|hope|must|may|might|shall|should|"
    "never|always|also|just|really"
)
_NOT_I = rf"(?!(?<=[ ]I)(?:['’]|[ ](?:{_SAID})\b))"  # no verb behind a single "I"
# Words that are no numerals behind any capitalised word: intravenous, a country code, an editor, sizes.
_OTHER = r"(?!(?:VI|XX|XXX|IV[ ](?:drip|fluids?|line|bag|therapy|antibiotics?|infusion|access|push|catheter))\b)"
_NO_NAME = (
    "The|An|And|Or|Of|In|On|At|To|For|By|With|From|As|This|That|These|Those|Her|His|Its|Our|Your|Their|No|New|Start|"
    "Started|Give|Given|Place|Insert|Use|Via|Is|Are|Was|But|If|When|See|Also|Then|Both|Peripheral|Central"
)
_LINK = "[ ](?:to|and|or|through)[ ]|[-–]"
_MORE = rf"(?:(?P<link1>{_LINK})(?P<more1>(?=[IVX]){_BELOW_FORTY}))?"  # "Parts II and III"
_MORE_SMALL = rf"(?:(?P<link2>{_LINK})(?P<more2>{_SMALL}|(?=[IVX]){_BELOW_FORTY}))?"


_CARDINALS = ("noun", "lettered", "small", "century", "name")


def roman_value(letters: str) -> int:
    """The value of a Roman numeral, in capital or small letters: "XIV" is 14."""
    digits = [_VALUES[letter] for letter in letters.upper()]
    return sum(-digit if digit < after else digit for digit, after in zip(digits, [*digits[1:], 0], strict=True))


def _cardinal(token: Token) -> str:
    letters = next(token[f"roman_{group}"] for group in _CARDINALS if token[f"roman_{group}"])
    return read_integer(str(roman_value(letters)), token.lang)


def _numbered(token: Token) -> str:
    noun = token["noun"] or token["lettered"] or token["noun_small"]
    if (full := _SHORT_NOUNS.get(noun.lower())) is not None:
        noun = full.capitalize() if noun[0].isupper() else full
    words = f"{noun} {_cardinal(token)}"
    more, link = token["more1"] or token["more2"], token["link1"] or token["link2"]
    if not more:
        return words
    joined = token.choose("到", " to ") if link in "-–" else link
    return f"{words}{joined}{read_integer(str(roman_value(more)), token.lang)}"


def _ruler(token: Token) -> str:
    if token.lang == "zh":
        return f"{token['ruler']} {read_integer(str(roman_value(token['roman_ruler'])), 'zh')}世"
    return f"{token['ruler']} the {read_ordinal(str(roman_value(token['roman_ruler'])))}"


def _chinese(token: Token) -> str:
    value = roman_value(token["roman_zh"] or token["roman_age"] or token["roman_king"])
    words = read_integer(str(value), "zh")
    is_king = token["roman_king"] and not token.left.endswith("路易") and not token.right.startswith("世")
    return words + "世" if is_king else words  # Louis XIV is 路易十四


def _century(token: Token) -> str:
    return token.choose(_cardinal(token), read_ordinal(str(roman_value(token["roman_century"]))))


ROMAN_NUMERALS = (
    Kind(
        "numbered_part",
        rf"""(?<![A-Za-z.-])(?:(?P<noun>(?:{_NOUNS})s?)[ ](?P<roman_noun>(?=[LC]*[IVX]){ROMAN}){_MORE}{_NOT_I}
        |(?P<lettered>{_LETTERED})[ ](?P<roman_lettered>(?=I|[VX][IVX]){_BELOW_FORTY}){_NOT_I}
        |(?P<noun_small>(?i:{NUMBERED_NOUNS})s?)[ ]
        (?P<roman_small>{_SMALL}|(?=[IVX]{{2}}){_BELOW_FORTY}){_MORE_SMALL}){_END}""",
        _numbered,
        (
            ("Ch. IX, fig. iv and vol. II there", "Chapter nine, figure four and volume two there"),
            ("see Chapter IV and part ii there", "see Chapter four and part two there"),
            ("in World War I and World War II there", "in World War one and World War two there"),
            ("Super Bowl LVIII, chapters iv to vi", "Super Bowl fifty eight, chapters four to six"),
            ("World Wars I and II, Chapters I–III", "World Wars one and two, Chapters one to three"),
        ),
    ),
    Kind(
        "world_war",
        r"(?<![A-Za-z])WW(?P<roman_war>I{1,2}|1|2)(?![\w-])",
        lambda token: token.choose(
            *{1: ("一战", "World War one"), 2: ("二战", "World War two")}[len(token["roman_war"].replace("2", "II"))]
        ),
        (("in WWII and WW1 there", "in World War two and World War one there"),),
    ),
    Kind(
        "regnal",
        rf"""(?<![A-Za-z.-])(?P<ruler>(?:(?:{_RULERS})|(?:{_RANKS})[ ][A-Z][a-zé]+)(?:[ ][A-Z][a-z]+)??)[ ]
        (?P<roman_ruler>(?=[IVX]){_BELOW_FORTY})(?:(?<![ ]I)|(?<=[ ]I)(?=[ ]of[ ][A-Z]|[ ]\(|\.?\s*\Z|\.\s+{OPENER}\b))
        {_END}""",
        _ruler,
        (
            ("Louis XIV and Henry VIII met", "Louis the fourteenth and Henry the eighth met"),
            ("Pope John Paul II, Elizabeth I of England", "Pope John Paul the second, Elizabeth the first of England"),
        ),
    ),
    Kind(
        "century",
        rf"""(?<![\w.-])(?P<roman_century>(?=[IVX]){_BELOW_FORTY})(?:th|st|nd|rd|e)?
        (?=[ ](?:century|centuries|Century|Olympiad|Olympic|Congress|dynasty|Dynasty)\b)(?!(?<=I)[ ]c)""",
        _century,
        (("the XIX century and the XXth century", "the nineteenth century and the twentieth century"),),
    ),
    Kind(
        "named_numeral",
        rf"""(?<![\w.-])(?P<name>(?!(?:{_NO_NAME})[ ])[A-Z][a-z]{{2,}})[ ]{_OTHER}
        (?P<roman_name>(?=[IVX]{{2}}){_BELOW_FORTY}){_END}""",
        lambda token: f"{token['name']} {_cardinal(token)}",
        (("play Final Fantasy VII or Rocky III now", "play Final Fantasy seven or Rocky three now"),),
    ),
    Kind(
        "chinese_roman",
        rf"""(?<=第)(?P<roman_zh>{ROMAN})(?=[ ]?[{HAN}])
        |(?<![A-Za-z.-])(?P<roman_age>(?=I|[VX][IVX]){_BELOW_FORTY})(?=[ ]?(?:世纪?|[型期级类度卷章]))
        |(?:{"|".join(f"(?<={name})" for name in _ZH_RULERS.split("|"))})(?P<roman_king>(?=[IVX]){_BELOW_FORTY})
        (?![A-Za-z0-9-])""",
        _chinese,
        (
            ("第XVIII章，XIX世纪", "第十八章，十九世纪"),
            ("路易XIV和乔治VI", "路易十四和乔治六世"),
            ("II型糖尿病，Ⅳ期", "二型糖尿病，四期"),
        ),
    ),
)
