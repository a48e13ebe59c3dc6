"""The content of the world: shapes, scenes and clips, the words for them, and the train/test split.

Split rule. Every (size, colour, shape, position) tuple, and for clips every (size, colour, shape, motion) tuple,
belongs to "train" or "test" by a stable hash of its name; about one in ten is test-only. A training scene holds
training tuples only. A test scene holds at least one test-only tuple. Voices, spoken sentences and text prompts use
the same hash (see `speech.py` and `sentences.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import product
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# CSS values.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 128, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "purple": (128, 0, 128),
    "orange": (255, 165, 0),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}
KINDS = ("circle", "square", "triangle", "star")
SIZES = ("small", "large")
POSITIONS = ("left", "right", "top", "bottom", "center")  # also the order in which shapes are described
MOTIONS = ("left", "right", "up", "down", "still")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = ("train", "test")

WHERE = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "center": "in the center",
}

MIN_SIDE = 64  # pixels
MAX_SIDE = 256  # pixels
MAX_ASPECT_RATIO = 2.0
MIN_FRAMES = 4
MAX_FRAMES = 16
TEST_ONE_IN = 10  # one name in this many is test-only
STILL_PROBABILITY = 1 / 3


@dataclass(frozen=True)
class Shape:
    """One shape of a scene; `kind`, `colour`, `size` and `position` are words of the constants above."""

    kind: str
    colour: str
    size: str
    position: str

    @property
    def split(self) -> str:
        """The split this combination of attributes belongs to."""
        return split_of(f"{self.size} {self.colour} {self.kind} {self.position}")


@dataclass(frozen=True)
class Scene:
    """A picture's content: a background colour and 1 to 3 shapes at distinct positions, in describing order."""

    background: str
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Clip:
    """A video's content: one shape and its motion, over `num_frames` frames."""

    kind: str
    colour: str
    size: str
    motion: str
    background: str
    num_frames: int

    @property
    def split(self) -> str:
        """The split this combination of attributes belongs to."""
        return split_of(f"{self.size} {self.colour} {self.kind} moving {self.motion}")


def split_of(name: str) -> str:
    """ "train" or "test" for a name (a tuple of attributes, a voice, a sentence), the same on every machine."""
    digest = blake2b(name.encode("utf-8"), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_ONE_IN == 0 else "train"


def check_split(split: str) -> None:
    """Raise `ValueError` unless `split` is one of `SPLITS`."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")


@cache
def shapes_of_split(split: str) -> tuple[Shape, ...]:
    """All shapes of a split; 320 in both together."""
    shapes = (Shape(k, c, s, p) for s, c, k, p in product(SIZES, COLOURS, KINDS, POSITIONS))
    return tuple(shape for shape in shapes if shape.split == split)


def choose(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One item of a sequence, uniformly. (`rng.choice` returns numpy scalars and is ten times slower.)"""
    return items[int(rng.integers(len(items)))]


def sample_scene(
    rng: np.random.Generator,
    split: str,
    num_shapes: int | None = None,
    background: str | None = None,
    alike: float = 0.0,
) -> Scene:
    """A random scene of a split.

    Args:
        rng: source of randomness.
        split: "train" (training tuples only) or "test" (at least one test-only tuple).
        num_shapes: 1 to 3, or None for a random number.
        background: a colour word, or None for a random one.
        alike: probability that a further shape must share its colour or its kind with the first one.
    """
    check_split(split)
    num_shapes = int(rng.integers(1, 4)) if num_shapes is None else num_shapes
    background = choose(rng, tuple(COLOURS)) if background is None else background
    shapes: dict[str, Shape] = {}
    first, must_match = None, False
    while len(shapes) < num_shapes:
        # The first shape decides that the scene is unseen; the others of a test scene may be anything.
        source = split if not shapes or split == "train" else choose(rng, ("train", "train", "train", "test"))
        shape = choose(rng, shapes_of_split(source))
        matches = first is None or not must_match or shape.colour == first.colour or shape.kind == first.kind
        if shape.position not in shapes and shape.colour != background and matches:
            shapes[shape.position] = shape
            first = first or shape
            must_match = alike > 0 and rng.random() < alike
    return Scene(background, tuple(shapes[position] for position in POSITIONS if position in shapes))


def sample_clip(rng: np.random.Generator, split: str, num_frames: int | None = None) -> Clip:
    """A random clip of a split; `num_frames` is 4 to 16, or None for a random number."""
    check_split(split)
    num_frames = int(rng.integers(MIN_FRAMES, MAX_FRAMES + 1)) if num_frames is None else num_frames
    colours = tuple(COLOURS)
    while True:
        motion = "still" if rng.random() < STILL_PROBABILITY else choose(rng, MOTIONS[:4])
        clip = Clip(
            choose(rng, KINDS), choose(rng, colours), choose(rng, SIZES), motion, choose(rng, colours), num_frames
        )
        if clip.colour != clip.background and clip.split == split:
            return clip


def sample_canvas(rng: np.random.Generator, max_side: int = MAX_SIDE) -> tuple[int, int]:
    """A random picture size (width, height) in pixels: sides 64 to `max_side`, aspect ratio 1:2 to 2:1."""
    limit = min(MAX_ASPECT_RATIO, max_side / MIN_SIDE)
    ratio = limit ** rng.uniform(0.0, 1.0)
    long_side = int(round(rng.uniform(MIN_SIDE * ratio, max_side)))
    short_side = max(MIN_SIDE, int(np.ceil(long_side / ratio)))
    return (long_side, short_side) if rng.random() < 0.5 else (short_side, long_side)
