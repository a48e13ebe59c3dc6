"""The judge that reads drawings from pixels: right about rendered scenes, and strict about what is wrong."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from training.tiny.drawing import render
from training.tiny.judge import fill, read_picture, shows
from training.tiny.scenes import Scene, Shape, sample_scene

TWO = Scene("white", (Shape("circle", "red", "small", "left"), Shape("star", "blue", "large", "center")))


def drawn(scene: Scene, side: int = 96, seed: int = 0, **options) -> Image.Image:
    return render(scene, side, side, np.random.default_rng(seed), clean=True, **options)


@pytest.mark.parametrize("side", [64, 96, 160])
def test_rendered_scenes_are_read_back(side):
    for seed in range(60):
        scene = sample_scene(np.random.default_rng(seed), "train")
        assert read_picture(drawn(scene, side, seed)) == (scene, False)


def test_outlines_are_told_from_filled_shapes():
    right = [
        shows(drawn(scene, 128, seed, outline=True), scene, outline=True)
        for seed in range(60)
        for scene in [sample_scene(np.random.default_rng(seed), "train")]
    ]
    assert np.mean(right) > 0.95
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


def test_holes_are_filled_and_bays_are_not():
    mask = np.zeros((7, 7), dtype=bool)
    mask[1:6, 1:6] = True
    mask[3, 3] = mask[1, 3] = False
    filled = fill(mask)
    assert filled[3, 3] and not filled[1, 3] and not filled[0, 0]
