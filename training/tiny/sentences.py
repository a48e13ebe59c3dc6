"""Sentences of the world that need no picture: text questions, spoken sentences, drawing and editing commands.

Split rule. A text prompt and a spoken sentence belong to "train" or "test" by the hash of their words (`split_of`): a
test prompt is a wording of a fact that training never shows, a test sentence a sequence of words it never shows.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np

from .questions import (
    COUNT_KINDS,
    QA_KINDS,
    WORDINGS,
    Fact,
    Question,
    article,
    describe_clip,
    describe_scene,
    describe_shape,
    fill,
    sample_clip_fact,
    sample_count_by,
    sample_fact,
    say,
    unique_by,
    word,
)
from .scenes import (
    COLOURS,
    KINDS,
    MOTIONS,
    NUMBERS,
    POSITIONS,
    SIZES,
    WHERE,
    Scene,
    Shape,
    check_split,
    choose,
    sample_clip,
    sample_scene,
    split_of,
)

CHINESE_COLOURS = dict(zip(COLOURS, ("红色", "绿色", "蓝色", "黄色", "紫色", "橙色", "黑色", "白色"), strict=True))
CHINESE_KINDS = dict(zip(KINDS, ("圆形", "正方形", "三角形", "星形"), strict=True))
CHINESE_NUMBERS = dict(zip(NUMBERS, "零一二三四五六七八九", strict=True))
CHINESE = CHINESE_COLOURS | CHINESE_KINDS | CHINESE_NUMBERS
OPPOSITES = {"left": "right", "top": "bottom", "small": "large", "up": "down", "black": "white", "first": "second"}
OPPOSITES |= {value: key for key, value in OPPOSITES.items()}

SUCCESSOR = (
    "What comes after {a}?",
    "Which number comes after {a}?",
    "What is the number after {a}?",
    "What follows {a}?",
    "{a} is followed by what?",
)
PREDECESSOR = (
    "What comes before {a}?",
    "Which number comes before {a}?",
    "What is the number before {a}?",
    "{a} comes after what?",
)
SUM = (
    "What is {a} plus {b}?",
    "How much is {a} plus {b}?",
    "{a} plus {b} is what?",
    "Add {a} and {b}.",
)
TO_CHINESE = (
    "Say {a} in Chinese.",
    "What is {a} in Chinese?",
    "How do you say {a} in Chinese?",
    "{a} in Chinese, please.",
    "{a}用中文怎么说？",
)
TO_ENGLISH = (
    "Say {a} in English.",
    "What is {a} in English?",
    "How do you say {a} in English?",
    "{a} in English, please.",
    "{a}用英语怎么说？",
)
OPPOSITE = (
    "What is the opposite of {a}?",
    "Say the opposite of {a}.",
    "{a} is the opposite of what?",
    "Name the opposite of {a}.",
    "Which word is the opposite of {a}?",
    "What is the opposite word of {a}?",
)
REPEAT = ("Repeat: {a}", "Repeat this: {a}", "Say this: {a}", "Repeat after me: {a}", "Please repeat: {a}")
CHINESE_SUCCESSOR = ("{a}后面是几？", "{a}的后面是几？", "{a}后面的数字是几？", "{a}加一等于几？")
CHINESE_PREDECESSOR = ("{a}前面是几？", "{a}的前面是几？", "{a}前面的数字是几？", "{a}减一等于几？")
CHINESE_SUM = ("{a}加{b}等于几？", "{a}加{b}是几？", "{a}和{b}加起来是几？", "请问{a}加{b}是几？")

# Wordings that are newer than the tokenizer; its training text leaves them out, so that it stays the same.
ADDED = {
    SUCCESSOR: ("{a} comes before what?", "After {a} comes what?"),
    PREDECESSOR: ("{a} follows what?", "Before {a} comes what?"),
    SUM: ("{a} plus {b} makes what?",),
    OPPOSITE: ("{a} has which opposite?", "The opposite of {a} is what?"),
}

# Wordings for training only: the direction of counting must be read, wherever the number stands.
TRAINED_ONLY = {
    SUCCESSOR: ("{a} is followed by which number?", "{a} is just before what?", "{a} comes right before what?"),
    PREDECESSOR: ("{a} is just after what?", "{a} comes right after what?", "{a} comes after which number?"),
    SUM: ("{a} and {b} is what?", "{a} plus {b} equals what?", "{a} and {b} makes what?"),
    CHINESE_PREDECESSOR: ("{a}减一是几？", "请问{a}减一等于几？"),
}

# A spoken question may start politely; the transcript keeps the words.
SPOKEN_PREFIXES = ("", "", "tell me ", "please say ")


@cache
def text_facts() -> dict[str, tuple[tuple[tuple[str, ...], dict[str, str], str], ...]]:
    """All facts known without a medium, by kind: (wordings, slots, answer)."""
    numbers, digits, chinese = NUMBERS, tuple("0123456789"), tuple(CHINESE_NUMBERS.values())
    facts: dict[str, list[tuple[tuple[str, ...], dict[str, str], str]]] = {}
    scripts = ((numbers, SUCCESSOR, PREDECESSOR), (digits, SUCCESSOR, PREDECESSOR))
    for names, after, before in (*scripts, (chinese, CHINESE_SUCCESSOR, CHINESE_PREDECESSOR)):
        for low, high in zip(names[:-1], names[1:], strict=True):
            facts.setdefault("successor", []).append((after, {"a": low}, high))
            facts.setdefault("predecessor", []).append((before, {"a": high}, low))
    for names, wordings in ((numbers, SUM), (digits, SUM), (chinese, CHINESE_SUM)):
        pairs = [(a, b) for a in range(10) for b in range(10 - a)]
        facts.setdefault("sum", []).extend((wordings, {"a": names[a], "b": names[b]}, names[a + b]) for a, b in pairs)
    facts["to_chinese"] = [(TO_CHINESE, {"a": english}, chinese) for english, chinese in CHINESE.items()]
    facts["to_english"] = [(TO_ENGLISH, {"a": chinese}, english) for english, chinese in CHINESE.items()]
    facts["opposite"] = [(OPPOSITE, {"a": name}, opposite) for name, opposite in OPPOSITES.items()]
    return {kind: tuple(rows) for kind, rows in facts.items()}


def sample_text_question(rng: np.random.Generator, split: str, added: bool = True) -> Question:
    """A question that needs no medium, one of seven kinds, e.g. "What comes after three?" -> "four".

    Args:
        added: whether the wordings of `ADDED` are used.
    """
    check_split(split)
    facts = text_facts()
    kind = choose(rng, (*facts, "repeat"))
    if kind == "repeat":
        answer = sample_sentence(rng, split)
        return Question(kind, choose(rng, REPEAT).format(a=answer), answer)
    while True:
        wordings, slots, answer = choose(rng, facts[kind])
        more = ADDED.get(wordings, ()) + (TRAINED_ONLY.get(wordings, ()) if split == "train" else ())
        wordings += more if added else ()
        text = choose(rng, wordings).format(**slots)
        text = text[0].upper() + text[1:]
        if split_of(f"text: {text}") == split:
            return Question(kind, text, answer)


def _random_words(rng: np.random.Generator) -> str:
    """Two to six words of the world in any order, so that a recogniser cannot guess the next word."""
    words = (*COLOURS, *KINDS, *SIZES, *POSITIONS, *NUMBERS, "up", "down", "yes", "no", "first", "second")
    return " ".join(choose(rng, words) for _ in range(rng.integers(2, 7)))


def _digits(rng: np.random.Generator) -> str:
    return " ".join(choose(rng, NUMBERS) for _ in range(rng.integers(2, 8)))


def _list(rng: np.random.Generator) -> str:
    words = choose(rng, (tuple(COLOURS), KINDS, (*COLOURS, *KINDS)))
    return " ".join(choose(rng, words) for _ in range(rng.integers(2, 6)))


def _shape_phrase(rng: np.random.Generator) -> str:
    return describe_shape(sample_scene(rng, "train", 1).shapes[0])


def _scene_sentence(rng: np.random.Generator) -> str:
    return say(describe_scene(sample_scene(rng, "train", choose(rng, (1, 1, 2)))))


def _clip_sentence(rng: np.random.Generator) -> str:
    return say(describe_clip(sample_clip(rng, "train")))


def _command_sentence(rng: np.random.Generator) -> str:
    scene = sample_scene(rng, "train", 1)
    return say(draw_command(scene, rng) if rng.random() < 0.5 else sample_edit(scene, rng)[0])


def _statement(rng: np.random.Generator) -> str:
    colour, kind, number = choose(rng, tuple(COLOURS)), choose(rng, KINDS), choose(rng, NUMBERS)
    statements = (
        f"the {kind} is {colour}",
        f"the {colour} {kind} is {choose(rng, SIZES)}",
        f"the {kind} is {WHERE[choose(rng, POSITIONS)]}",
        f"the {colour} {kind} is moving {choose(rng, MOTIONS[:4])}",
        f"there are {number} {colour} {kind}s",
        f"i see {number} {kind}s and {article(f'{colour} {choose(rng, KINDS)}')}",
        f"the background is {colour}",
        f"{number} comes after {choose(rng, NUMBERS)}",
        f"{number} plus {choose(rng, NUMBERS)}",
    )
    return choose(rng, statements)


def sample_spoken_question(rng: np.random.Generator, split: str) -> str:
    """A spoken question about a picture or a video, e.g. "tell me what colour is the square"."""
    while True:
        if rng.random() < 0.25:
            fact = sample_clip_fact(sample_clip(rng, "train"), rng)
        else:
            scene = sample_scene(rng, "train")
            fact = sample_fact(scene, rng, QA_KINDS if rng.random() < 0.7 else COUNT_KINDS)
        text = choose(rng, spoken_forms(fact))
        if split_of(text) == split:
            return text


def spoken_forms(fact: Fact) -> list[str]:
    """All spoken wordings of a fact's question."""
    cores = dict.fromkeys(say(fill(wording, fact)) for wording in WORDINGS[fact.kind])
    return [prefix + core for prefix in dict.fromkeys(SPOKEN_PREFIXES) for core in cores]


SENTENCES: tuple[Callable[[np.random.Generator], str], ...] = (
    _random_words,
    _random_words,
    _digits,
    _list,
    _shape_phrase,
    _scene_sentence,
    _clip_sentence,
    _command_sentence,
    _statement,
    _statement,
)

QUESTION_PROBABILITY = 1 / 6  # share of sentences that are spoken questions


def sample_sentence(rng: np.random.Generator, split: str) -> str:
    """A sentence to speak: lower case, no punctuation, unseen in training if `split` is "test"."""
    check_split(split)
    if rng.random() < QUESTION_PROBABILITY:
        return sample_spoken_question(rng, split)
    # The kind is chosen first, so that both splits have the same mixture of kinds.
    draw = choose(rng, SENTENCES)
    while True:
        text = draw(rng)
        if split_of(text) == split:
            return text


DRAW = (
    "Draw {a}.",
    "Draw a picture of {a}.",
    "Paint {a}.",
    "Please draw {a}.",
    "Make a picture of {a}.",
)
RECOLOUR = ("Make the {shape} {colour}.", "Change the {shape} to {colour}.", "Paint the {shape} {colour}.")
MOVE = ("Move it {to}.", "Move the {shape} {to}.", "Put the {shape} {where}.")
BACKGROUND = (
    "Change the background to {colour}.",
    "Make the background {colour}.",
    "Give it {a} background.",
)
OUTLINE = ("Draw it as an outline.", "Make it an outline.", "Show only the outline.", "Turn it into an outline.")
TO = {
    "left": "to the left",
    "right": "to the right",
    "top": "to the top",
    "bottom": "to the bottom",
    "center": "to the center",
}
PLAIN_NAMES = 0.7  # share of shapes of several that are named by their kind alone, where that is clear


def draw_command(scene: Scene, rng: np.random.Generator) -> str:
    """ "Draw a small red circle on the left, on a white background."."""
    return choose(rng, DRAW).format(a=describe_scene(scene))


@cache
def spoken_command_pattern() -> re.Pattern:
    """A spoken `draw_command` for one shape."""
    starts = "|".join(say(start).replace("{a}", "").strip() for start in DRAW)
    shape = " ".join(
        f"(?P<{name}>{'|'.join(names)})" for name, names in (("size", SIZES), ("colour", COLOURS), ("kind", KINDS))
    )
    places = "|".join(say(WHERE[position]) for position in POSITIONS)
    return re.compile(
        f"(?:{starts}) an? {shape} (?P<where>{places}) on an? (?P<background>{'|'.join(COLOURS)}) background"
    )


def read_command(text: str) -> Scene | None:
    """The scene of one shape that a spoken command asks for; None if the text is anything else."""
    match = spoken_command_pattern().fullmatch(text)
    if match is None:
        return None
    position = next(position for position in POSITIONS if say(WHERE[position]) == match["where"])
    return Scene(match["background"], (Shape(match["kind"], match["colour"], match["size"], position),))


def shape_name(shape: Shape, scene: Scene, rng: np.random.Generator) -> str:
    """What to call a shape so that it is no other of its scene: "circle", "red circle" or "red circle on the left"."""
    if len(scene.shapes) == 1:
        return shape.kind
    same_kind = [other for other in scene.shapes if other.kind == shape.kind]
    if len(same_kind) == 1 and rng.random() < PLAIN_NAMES:
        return shape.kind
    name = f"{shape.colour} {shape.kind}"
    return name if len(unique_by(tuple(same_kind), "colour")) == len(same_kind) else f"{name} {WHERE[shape.position]}"


def sample_edit(scene: Scene, rng: np.random.Generator) -> tuple[str, Scene]:
    """An editing command and the edited scene, of one to three shapes.

    Returns:
        ("Make the circle blue." or "Move it to the right." or "Change the background to black.", the new scene)
    """
    shape = scene.shapes[0] if len(scene.shapes) == 1 else choose(rng, scene.shapes)
    edit = choose(rng, (RECOLOUR, MOVE, BACKGROUND))
    taken = [other.colour for other in scene.shapes] if edit is BACKGROUND else [shape.colour]
    colour = choose(rng, [name for name in COLOURS if name not in (scene.background, *taken)])
    places = [other.position for other in scene.shapes]
    position = choose(rng, [place for place in POSITIONS if place not in places])
    wordings = edit if len(places) == 1 or edit is BACKGROUND else [words for words in edit if "{shape}" in words]
    command = choose(rng, wordings).format(
        shape=shape_name(shape, scene, rng), colour=colour, a=article(colour), to=TO[position], where=WHERE[position]
    )
    if edit is BACKGROUND:
        return command, replace(scene, background=colour)
    changed = replace(shape, colour=colour) if edit is RECOLOUR else replace(shape, position=position)
    shapes = [changed if other is shape else other for other in scene.shapes]
    return command, replace(scene, shapes=tuple(sorted(shapes, key=lambda other: POSITIONS.index(other.position))))


def sample_text(rng: np.random.Generator) -> list[str]:
    """Text of all kinds for training the tokenizer: prompts and answers as they stand in a turn."""
    scene, clip = sample_scene(rng, "train"), sample_clip(rng, "train")
    kinds = (*QA_KINDS, *COUNT_KINDS)
    questions = [word(sample_fact(scene, rng, kinds), rng) for _ in range(3)]
    questions += [word(sample_clip_fact(clip, rng), rng), word(sample_count_by(scene, rng), rng)]
    questions += [sample_text_question(rng, "train", added=False) for _ in range(3)]
    one = sample_scene(rng, "train", 1)
    lines = [draw_command(scene, rng), sample_edit(one, rng)[0], choose(rng, OUTLINE), describe_scene(scene)]
    lines += [sample_sentence(rng, "train"), sample_sentence(rng, "train")]
    return lines + [text for question in questions for text in (question.text, question.answer)]
