"""Measures from pixels whether a picture shows a scene: what the rows drawing, editing and style of the table count.

No network looks here: colours are told by the nearest of the world's, kinds and sizes by overlap with drawn templates.
"""

from functools import cache

import numpy as np
from PIL import Image

from .drawing import CENTRE, OUTLINE_INNER, RADIUS, draw_shape
from .scenes import COLOURS, KINDS, POSITIONS, SIZES, Scene, Shape

SIDE = 128  # pixels; pictures are judged at this size
PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
BORDER = 3  # pixels at the edges, where no shape reaches
REACH = 0.165  # of a side: half of the distance between two places
MIN_AREA = 0.003  # share of the picture; the smallest shape, a small star in outline, has 0.004
PURE = 0.85  # of the strongest difference from the background: a pixel that no background is mixed into
COVERED = 0.45  # share of a pixel
MIN_OVERLAP = 0.6  # intersection over union with the best template
RADII = np.linspace(0.055, 0.17, 24)
SMALL_BELOW = (RADIUS["small"][1] + RADIUS["large"][0]) / 2


def centred(mask: np.ndarray) -> np.ndarray:
    """A mask [n, n] moved so that its bounding box is in the middle."""
    half = len(mask) // 2
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    shift = (half - (rows[0] + rows[-1]) // 2, half - (columns[0] + columns[-1]) // 2)
    return np.roll(mask, shift, axis=(0, 1))


@cache
def template(kind: str, radius: float) -> np.ndarray:
    """Filled shape, centred in a square of side 2 * REACH: bool [n, n]."""
    side = 2 * round(REACH * SIDE) + 1
    image = Image.new("RGB", (side, side))
    draw_shape(image, kind, "white", (side / 2, side / 2), radius * SIDE, outline=False)
    return centred(np.asarray(image.convert("L")) > 127)


def nearest_colour(pixels: np.ndarray, other_than: str | None = None) -> str:
    """The world's colour that is nearest to the median of pixels [N, 3]."""
    distance = np.abs(PALETTE - np.median(pixels.astype(np.float32), axis=0)).sum(axis=1)
    if other_than is not None:
        distance[list(COLOURS).index(other_than)] = np.inf
    return list(COLOURS)[int(distance.argmin())]


def cover(pixels: np.ndarray, background: str) -> tuple[np.ndarray, str]:
    """What of a window [H, W, 3] a shape covers, bool [H, W], and the shape's colour.

    The pixels that differ most from the background tell the colour; the others are mixtures of the two.
    """
    origin = np.float32(COLOURS[background])
    offsets = pixels.astype(np.float32) - origin
    strength = np.abs(offsets).sum(axis=-1)
    pure = strength >= PURE * np.percentile(strength, 99)
    colour = nearest_colour(pixels[pure], other_than=background)
    line = np.float32(COLOURS[colour]) - origin
    return offsets @ line / (line @ line) > COVERED, colour


def read_shape(pixels: np.ndarray, background: str, position: str) -> tuple[Shape | None, bool]:
    """What stands at a position of a picture [SIDE, SIDE, 3]: a shape or None, and whether it is hollow."""
    half = round(REACH * SIDE)
    x, y = (min(max(round(place * SIDE), half), SIDE - half - 1) for place in CENTRE[position])
    mask, colour = cover(pixels[y - half : y + half + 1, x - half : x + half + 1], background)
    if mask.sum() < MIN_AREA * SIDE * SIDE:
        return None, False
    filled = fill(centred(mask))
    overlaps = {(kind, radius): _overlap(filled, kind, radius) for kind in KINDS for radius in RADII}
    kind, radius = max(overlaps, key=overlaps.get)
    if overlaps[kind, radius] < MIN_OVERLAP:
        return None, False
    hollow = mask.sum() < (1 - 0.5 * OUTLINE_INNER**2) * filled.sum()
    return Shape(kind, colour, SIZES[int(radius > SMALL_BELOW)], position), bool(hollow)


def _overlap(mask: np.ndarray, kind: str, radius: float) -> float:
    """Intersection over union of a centred mask with a template."""
    drawn = template(kind, radius)
    return float((mask & drawn).sum() / max((mask | drawn).sum(), 1))


def fill(mask: np.ndarray) -> np.ndarray:
    """A mask [H, W] with its holes closed: all that cannot be reached from outside."""
    outside = np.zeros_like(mask)
    outside[[0, -1], :], outside[:, [0, -1]] = ~mask[[0, -1], :], ~mask[:, [0, -1]]
    while True:
        grown = outside.copy()
        grown[1:] |= outside[:-1]
        grown[:-1] |= outside[1:]
        grown[:, 1:] |= outside[:, :-1]
        grown[:, :-1] |= outside[:, 1:]
        grown &= ~mask
        if (grown == outside).all():
            return ~outside
        outside = grown


def read_picture(image: Image.Image) -> tuple[Scene, bool]:
    """The scene that a picture shows, as far as it can be told, and whether all its shapes are hollow."""
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    edges = np.concatenate([pixels[:BORDER].reshape(-1, 3), pixels[-BORDER:].reshape(-1, 3)])
    background = nearest_colour(np.concatenate([edges, pixels[:, :BORDER].reshape(-1, 3)]))
    found = [read_shape(pixels, background, position) for position in POSITIONS]
    shapes = tuple(shape for shape, _ in found if shape is not None)
    hollow = bool(shapes) and all(is_hollow for shape, is_hollow in found if shape is not None)
    return Scene(background, shapes), hollow


def shows(image: Image.Image, scene: Scene, outline: bool = False) -> bool:
    """Whether a picture shows exactly a scene: every named attribute, nothing else, filled or in outline."""
    seen, hollow = read_picture(image)
    return seen == scene and hollow == outline
