"""The judge that reads drawings from pixels: right about rendered scenes, and strict about what is wrong."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from training.tiny.drawing import render
from training.tiny.judge import UNCLEAR, read_picture, shows
from training.tiny.scenes import Scene, Shape, sample_scene

TWO = Scene("white", (Shape("circle", "red", "small", "left"), Shape("star", "blue", "large", "center")))


def drawn(scene: Scene, side: int = 96, seed: int = 0, **options) -> Image.Image:
    return render(scene, side, side, np.random.default_rng(seed), clean=True, **options)


@pytest.mark.parametrize("side", [64, 96, 160])
def test_rendered_scenes_are_read_back(side):
    for seed in range(60):
        scene = sample_scene(np.random.default_rng(seed), "train")
        assert read_picture(drawn(scene, side, seed)) == (scene, False)


@pytest.mark.parametrize("side", [64, 96, 128, 160])
def test_outlines_are_read_back(side):
    """Also lines thinner than a pixel: a small star of 64 pixels has strokes of half a pixel."""
    for seed in range(60):
        scene = sample_scene(np.random.default_rng(seed), "train")
        assert read_picture(drawn(scene, side, seed, outline=True)) == (scene, True)
    assert not shows(drawn(TWO, outline=True), TWO) and not shows(drawn(TWO), TWO, outline=True)


@pytest.mark.parametrize(
    "other",
    [
        replace(TWO, background="yellow"),
        replace(TWO, shapes=TWO.shapes[:1]),
        replace(TWO, shapes=(replace(TWO.shapes[0], colour="orange"), TWO.shapes[1])),
        replace(TWO, shapes=(replace(TWO.shapes[0], kind="triangle"), TWO.shapes[1])),
        replace(TWO, shapes=(replace(TWO.shapes[0], size="large"), TWO.shapes[1])),
        replace(TWO, shapes=(replace(TWO.shapes[0], position="right"), TWO.shapes[1])),
    ],
    ids=["background", "missing", "colour", "kind", "size", "position"],
)
def test_any_wrong_attribute_is_seen(other):
    assert shows(drawn(TWO), TWO) and shows(drawn(other), other)
    assert not shows(drawn(other), TWO) and not shows(drawn(TWO), other)


def test_slight_blur_and_noise_do_not_matter():
    right = []
    for seed in range(40):
        scene = sample_scene(np.random.default_rng(seed), "train")
        picture = drawn(scene, 96, seed).filter(ImageFilter.GaussianBlur(0.8))
        noise = np.random.default_rng(seed).normal(0, 8, (96, 96, 3))
        right.append(shows(Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)), scene))
    assert np.mean(right) > 0.9


def test_noise_shows_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    assert not any(shows(Image.fromarray(noise), sample_scene(np.random.default_rng(s), "train")) for s in range(20))


@pytest.mark.parametrize("outline", [False, True], ids=["filled", "outline"])
@pytest.mark.parametrize("kind", ["circle", "square", "star"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_shape_that_lacks_a_quarter_is_none(kind, size, outline):
    scene = Scene("white", (Shape(kind, "blue", size, "center"),))
    pixels = np.asarray(drawn(scene, outline=outline)).copy()
    pixels[:49, :49] = 255
    assert not shows(Image.fromarray(pixels), scene, outline)


@pytest.mark.parametrize("box", [(12, 20), (16, 28), (4, 26)], ids=str)
def test_something_that_is_no_shape_of_the_world_is_seen_as_unclear(box):
    picture = drawn(replace(TWO, shapes=TWO.shapes[:1]))
    width, height = box
    ImageDraw.Draw(picture).rectangle((48 - width / 2, 48 - height / 2, 48 + width / 2, 48 + height / 2), "blue")
    seen, _ = read_picture(picture)
    assert seen.shapes[0] == TWO.shapes[0] and seen.shapes[1].kind == UNCLEAR


def test_a_smear_of_a_second_colour_spoils_a_shape():
    scene = Scene("white", (Shape("square", "blue", "large", "center"),))
    pixels = np.asarray(drawn(scene)).copy()
    pixels[40:56, 50:60] = (255, 165, 0)
    assert not shows(Image.fromarray(pixels), scene)
