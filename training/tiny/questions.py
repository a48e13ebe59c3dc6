"""Questions about scenes and clips, with their exact answers.

Grammar of the answers, all lower case and without a full stop:

    attribute    "red", "circle", "small", "left", "two", "yes", "no", "up", "the first", "the second"
    shape        "a small red circle on the left"          (positions: on the left, on the right, at the top,
                                                            at the bottom, in the center)
    shapes       "A", "A and B", "A, B and C"              (in the order left, right, top, bottom, center)
    picture      "SHAPES, on a white background"
    clip         "a small red circle moving up, on a white background", "... standing still, on ..."

A fact is a question before its wording is chosen: the kind, the words that fill the wording, and the answer.
"""

from dataclasses import dataclass, field

import numpy as np

from .scenes import COLOURS, KINDS, NUMBERS, WHERE, Clip, Scene, Shape, choose

# Wordings are written with "colour"; half of the written questions say "color".
WORDINGS: dict[str, tuple[str, ...]] = {
    "colour_of_shape": (
        "What colour is the {shape}?",
        "Which colour is the {shape}?",
        "What is the colour of the {shape}?",
        "The {shape} is what colour?",
        "Which colour does the {shape} have?",
    ),
    "colour_at": (
        "What colour is the shape {where}?",
        "Which colour is the shape {where}?",
        "What is the colour of the shape {where}?",
        "The shape {where} is what colour?",
    ),
    "shape_at": (
        "What shape is {where}?",
        "Which shape is {where}?",
        "What is {where}?",
        "Which shape do you see {where}?",
    ),
    "shape_of_colour": (
        "What shape is {colour}?",
        "Which shape is {colour}?",
        "What is the {colour} shape?",
        "What kind of shape is the {colour} one?",
    ),
    "position_of_shape": (
        "Where is the {shape}?",
        "Where do you see the {shape}?",
        "In which place is the {shape}?",
        "What is the position of the {shape}?",
    ),
    "position_of_colour_shape": (
        "Where is the {colour} {shape}?",
        "Where do you see the {colour} {shape}?",
        "In which place is the {colour} {shape}?",
        "What is the position of the {colour} {shape}?",
    ),
    "size_of_shape": (
        "What size is the {shape}?",
        "Is the {shape} small or large?",
        "How big is the {shape}?",
        "What is the size of the {shape}?",
    ),
    "size_at": (
        "What size is the shape {where}?",
        "Is the shape {where} small or large?",
        "How big is the shape {where}?",
        "What is the size of the shape {where}?",
    ),
    "background": (
        "What colour is the background?",
        "Which colour is the background?",
        "What is the background colour?",
        "What is the colour of the background?",
    ),
    "count": (
        "How many shapes?",
        "How many shapes are there?",
        "How many shapes do you see?",
        "Count the shapes.",
        "What is the number of shapes?",
    ),
    "count_colour": (
        "How many {colour} shapes?",
        "How many {colour} shapes are there?",
        "How many shapes are {colour}?",
        "Count the {colour} shapes.",
    ),
    "count_kind": (
        "How many {shape}s?",
        "How many {shape}s are there?",
        "How many {shape}s do you see?",
        "Count the {shape}s.",
    ),
    "has_shape": (
        "Is there a {shape}?",
        "Do you see a {shape}?",
        "Can you see a {shape}?",
        "Is one of the shapes a {shape}?",
    ),
    "has_colour": (
        "Is there {a_colour} shape?",
        "Do you see {a_colour} shape?",
        "Can you see {a_colour} shape?",
        "Is one of the shapes {colour}?",
    ),
    "has_colour_shape": (
        "Is there {a_colour} {shape}?",
        "Do you see {a_colour} {shape}?",
        "Can you see {a_colour} {shape}?",
        "Is one of the shapes {a_colour} {shape}?",
    ),
    "describe": (
        "Describe the picture.",
        "Describe the image.",
        "Describe what you see.",
        "What is in the picture?",
        "What do you see?",
    ),
    "it_shape": ("What shape is it?", "Which shape is it?", "What is it?", "What kind of shape is it?"),
    "it_colour": ("What colour is it?", "Which colour is it?", "What is its colour?", "Which colour does it have?"),
    "it_where": ("Where is it?", "Where do you see it?", "In which place is it?", "What is its position?"),
    "it_size": ("What size is it?", "Is it small or large?", "How big is it?", "What is its size?"),
    # About clips.
    "way": (
        "Which way does it move?",
        "Which way does the shape move?",
        "Where does it move?",
        "In which direction does it move?",
        "Which way is the {shape} moving?",
    ),
    "moves": ("Does it move?", "Does the shape move?", "Is it moving?", "Is the {shape} moving?"),
    "moves_way": (
        "Does it move {way}?",
        "Does the shape move {way}?",
        "Is it moving {way}?",
        "Is the {shape} moving {way}?",
    ),
    "describe_clip": (
        "Describe the video.",
        "Describe the clip.",
        "What happens in the video?",
        "What happens?",
    ),
    # About two pictures.
    "which_shape": (
        "Which picture has a {shape}, the first or the second?",
        "Which picture has the {shape}, the first or the second?",
        "In which picture is a {shape}, the first or the second?",
        "Is the {shape} in the first or the second picture?",
    ),
    "which_colour_shape": (
        "Which picture has {a_colour} {shape}, the first or the second?",
        "Which picture has the {colour} {shape}, the first or the second?",
        "In which picture is {a_colour} {shape}, the first or the second?",
        "Is the {colour} {shape} in the first or the second picture?",
    ),
    "which_background": (
        "Which picture has {a_colour} background, the first or the second?",
        "Which picture has the {colour} background, the first or the second?",
        "Which background is {colour}, the first or the second?",
        "Is the {colour} background in the first or the second picture?",
    ),
    "which_more": (
        "Which picture has more shapes, the first or the second?",
        "Which one has more shapes, the first or the second?",
        "In which picture are more shapes, the first or the second?",
        "Are more shapes in the first or the second picture?",
    ),
    "same_background": (
        "Do both pictures have the same background colour?",
        "Do both pictures have the same background?",
        "Is the background colour the same in both pictures?",
        "Are both backgrounds the same colour?",
    ),
    "both_shape": (
        "Do both pictures have a {shape}?",
        "Is there a {shape} in both pictures?",
        "Do you see a {shape} in both pictures?",
        "Can you see a {shape} in both pictures?",
    ),
}

# Wordings of follow-up questions, after a first question has named the shape.
FOLLOW_UPS: dict[str, tuple[str, ...]] = {
    "it_shape": ("And what shape?", "And what shape is it?", "What shape is it?", "And which shape is it?"),
    "it_colour": ("And what colour?", "And what colour is it?", "What colour is it?", "And its colour?"),
    "it_where": ("And where is it?", "And where?", "Where is it?", "And its position?"),
    "it_size": ("And how big is it?", "And what size?", "Is it small or large?", "And its size?"),
    "background": (
        "And the background?",
        "And what colour is the background?",
        "What colour is the background?",
        "And which colour is the background?",
    ),
}


@dataclass(frozen=True)
class Fact:
    """A question before its wording is chosen."""

    kind: str
    answer: str
    slots: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A worded question and its exact answer."""

    kind: str
    text: str
    answer: str


def word(fact: Fact, rng: np.random.Generator, wordings: tuple[str, ...] | None = None) -> Question:
    """Choose a wording for a fact; every other one writes "color" instead of "colour"."""
    text = fill(choose(rng, wordings or WORDINGS[fact.kind]), fact)
    if rng.random() < 0.5:
        text = text.replace("colour", "color")
    return Question(fact.kind, text, fact.answer)


def fill(wording: str, fact: Fact) -> str:
    """A wording with the fact's words in their places; `{a_colour}` is the colour with its article."""
    return wording.format(a_colour=article(fact.slots.get("colour", "-")), **fact.slots)


def say(text: str) -> str:
    """The spoken form of a written sentence: lower case, no punctuation."""
    return "".join(letter for letter in text.lower() if letter not in ".,?!")


def article(noun_phrase: str) -> str:
    """The noun phrase with "a" or "an"."""
    return ("an " if noun_phrase[0] in "aeiou" else "a ") + noun_phrase


def describe_shape(shape: Shape) -> str:
    """ "a small red circle on the left"."""
    return f"{article(f'{shape.size} {shape.colour} {shape.kind}')} {WHERE[shape.position]}"


def describe_scene(scene: Scene) -> str:
    """ "A, B and C, on a white background"; the grammar is in the module's docstring."""
    phrases = [describe_shape(shape) for shape in scene.shapes]
    listed = ", ".join(phrases[:-1]) + " and " + phrases[-1] if len(phrases) > 1 else phrases[0]
    return f"{listed}, on {article(scene.background)} background"


def describe_clip(clip: Clip) -> str:
    """ "a small red circle moving up, on a white background"."""
    motion = "standing still" if clip.motion == "still" else f"moving {clip.motion}"
    return f"{article(f'{clip.size} {clip.colour} {clip.kind}')} {motion}, on {article(clip.background)} background"


def yes_or_no(condition: bool) -> str:
    """ "yes" or "no"."""
    return "yes" if condition else "no"


def unique_by(shapes: tuple[Shape, ...], attribute: str) -> list[Shape]:
    """The shapes whose `attribute` no other shape of the scene shares."""
    values = [getattr(shape, attribute) for shape in shapes]
    return [shape for shape in shapes if values.count(getattr(shape, attribute)) == 1]


def pronoun_facts(shape: Shape) -> list[Fact]:
    """What can be asked about "it"."""
    return [
        Fact("it_shape", shape.kind),
        Fact("it_colour", shape.colour),
        Fact("it_where", shape.position),
        Fact("it_size", shape.size),
    ]


def scene_facts(scene: Scene) -> dict[str, list[Fact]]:
    """The questions about a scene with exactly one right answer, by kind, except yes/no (see `sample_yes_no`)."""
    shapes = scene.shapes
    facts: dict[str, list[Fact]] = {
        "background": [Fact("background", scene.background)],
        "count": [Fact("count", NUMBERS[len(shapes)])],
        "describe": [Fact("describe", describe_scene(scene))],
        "colour_at": [Fact("colour_at", s.colour, {"where": WHERE[s.position]}) for s in shapes],
        "shape_at": [Fact("shape_at", s.kind, {"where": WHERE[s.position]}) for s in shapes],
        "size_at": [Fact("size_at", s.size, {"where": WHERE[s.position]}) for s in shapes],
    }
    for shape in unique_by(shapes, "kind"):
        slots = {"shape": shape.kind}
        facts.setdefault("colour_of_shape", []).append(Fact("colour_of_shape", shape.colour, slots))
        facts.setdefault("position_of_shape", []).append(Fact("position_of_shape", shape.position, slots))
        facts.setdefault("size_of_shape", []).append(Fact("size_of_shape", shape.size, slots))
    for shape in unique_by(shapes, "colour"):
        slots = {"colour": shape.colour, "shape": shape.kind}
        facts.setdefault("shape_of_colour", []).append(Fact("shape_of_colour", shape.kind, slots))
        facts.setdefault("position_of_colour_shape", []).append(
            Fact("position_of_colour_shape", shape.position, slots)
        )
    if len(shapes) == 1:
        facts |= {fact.kind: [fact] for fact in pronoun_facts(shapes[0])}
    return facts


def sample_count_by(scene: Scene, rng: np.random.Generator) -> Fact:
    """ "How many red shapes?" or "How many circles?"; one in four asks for something that may be absent."""
    absent = rng.random() < 0.25
    shape = choose(rng, scene.shapes)
    if rng.random() < 0.5:
        colour = choose(rng, tuple(COLOURS)) if absent else shape.colour
        count = sum(s.colour == colour for s in scene.shapes)
        return Fact("count_colour", NUMBERS[count], {"colour": colour})
    kind = choose(rng, KINDS) if absent else shape.kind
    return Fact("count_kind", NUMBERS[sum(s.kind == kind for s in scene.shapes)], {"shape": kind})


def sample_yes_no(scene: Scene, rng: np.random.Generator) -> Fact:
    """ "Is there a red circle?", with "yes" as likely as "no". Half of the absent ones share a colour or a shape."""
    kind = choose(rng, ("has_shape", "has_colour", "has_colour_shape"))
    wanted = rng.random() < 0.5
    while True:
        shape = choose(rng, scene.shapes)
        slots = {"colour": shape.colour, "shape": shape.kind}
        if not wanted:
            swap = rng.integers(4)  # 0: another shape, 1: another colour, else both
            slots["shape"] = slots["shape"] if swap == 1 else choose(rng, KINDS)
            slots["colour"] = slots["colour"] if swap == 0 else choose(rng, tuple(COLOURS))
        if has(scene, kind, slots) == wanted:
            return Fact(kind, yes_or_no(wanted), slots)


def has(scene: Scene, kind: str, slots: dict[str, str]) -> bool:
    """Whether a scene holds what a question of kind has_shape, has_colour or has_colour_shape asks for."""
    return any(
        (kind == "has_colour" or shape.kind == slots["shape"])
        and (kind == "has_shape" or shape.colour == slots["colour"])
        for shape in scene.shapes
    )


QA_KINDS = (
    "colour_of_shape",
    "colour_at",
    "shape_at",
    "shape_of_colour",
    "position_of_shape",
    "position_of_colour_shape",
    "size_of_shape",
    "size_at",
    "background",
    "it_shape",
    "it_colour",
    "it_where",
    "it_size",
)
COUNT_KINDS = ("count", "count_by", "yes_no", "describe")


def sample_fact(scene: Scene, rng: np.random.Generator, kinds: tuple[str, ...]) -> Fact:
    """A random fact about a scene, of a kind drawn uniformly from those of `kinds` that the scene answers.

    Args:
        kinds: keys of `scene_facts`, "count_by" and "yes_no"; at least one must apply to every scene.
    """
    facts = scene_facts(scene)
    while True:
        kind = choose(rng, kinds)
        if kind == "yes_no":
            return sample_yes_no(scene, rng)
        if kind == "count_by":
            return sample_count_by(scene, rng)
        if kind in facts:
            return choose(rng, facts[kind])


def clip_facts(clip: Clip, rng: np.random.Generator) -> dict[str, Fact]:
    """One fact of each kind about a clip; "way" only when it moves, "moves_way" with yes as likely as no."""
    moving = clip.motion != "still"
    slots = {"shape": clip.kind}
    facts = {
        "it_shape": Fact("it_shape", clip.kind),
        "it_colour": Fact("it_colour", clip.colour),
        "it_size": Fact("it_size", clip.size),
        "background": Fact("background", clip.background),
        "moves": Fact("moves", yes_or_no(moving), slots),
        "describe_clip": Fact("describe_clip", describe_clip(clip)),
    }
    if moving:
        facts["way"] = Fact("way", clip.motion, slots)
        wanted = rng.random() < 0.5
        others = [way for way in ("left", "right", "up", "down") if way != clip.motion]
        way = clip.motion if wanted else choose(rng, others)
        facts["moves_way"] = Fact("moves_way", yes_or_no(wanted), slots | {"way": way})
    return facts


def sample_clip_fact(clip: Clip, rng: np.random.Generator) -> Fact:
    """A random fact about a clip. Two clips of three move, so "does it move" is asked twice as often of still ones."""
    kinds: tuple[str, ...] = (
        "way",
        "way",
        "it_shape",
        "it_colour",
        "it_size",
        "background",
        "moves",
        "moves_way",
        "describe_clip",
    )
    if clip.motion == "still":
        kinds = ("it_shape", "it_colour", "it_size", "background", "moves", "moves", "describe_clip")
    return clip_facts(clip, rng)[choose(rng, kinds)]


def pair_facts(first: Scene, second: Scene, rng: np.random.Generator) -> list[Fact]:
    """Facts about two pictures: which of them has something, and what they have in common."""
    facts = [
        Fact("same_background", yes_or_no(first.background == second.background)),
        _both_fact(first, second, rng),
    ]
    names = ("the first", "the second")
    if first.background != second.background:
        index = int(rng.integers(2))
        facts.append(Fact("which_background", names[index], {"colour": (first, second)[index].background}))
    if len(first.shapes) != len(second.shapes):
        facts.append(Fact("which_more", names[int(len(second.shapes) > len(first.shapes))]))
    for kind, presence in (("which_shape", "has_shape"), ("which_colour_shape", "has_colour_shape")):
        options = []
        for index, (scene, other) in enumerate(((first, second), (second, first))):
            asked = [{"colour": shape.colour, "shape": shape.kind} for shape in scene.shapes]
            options += [Fact(kind, names[index], slots) for slots in asked if not has(other, presence, slots)]
        if options:
            facts.append(choose(rng, options))
    return facts


def _both_fact(first: Scene, second: Scene, rng: np.random.Generator) -> Fact:
    """ "Do both pictures have a circle?", with "yes" in half of the cases where both share a shape."""
    shared = {shape.kind for shape in first.shapes} & {shape.kind for shape in second.shapes}
    kinds = [kind for kind in KINDS if kind in shared] if shared and rng.random() < 0.6 else KINDS
    kind = choose(rng, kinds)
    return Fact("both_shape", yes_or_no(kind in shared), {"shape": kind})
