"""Stage 2b of Ming-Tiny: batches of chats that request a picture, and the three trainings of the image head.

An autoencoder learns the pictures of the world. Query tokens and connector learn which picture a chat requests: heads,
for training only, read the scene from every token of the condition. Then the transformer learns to draw scenes from
conditions. The thinker stays frozen.

Shape letters: B pictures, N query tokens of a scale, H width of the language model.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from image_gen.modeling_image_gen import ImageGen
from ming.training.chats import prompt_batch
from ming.training.drawing import AlignmentHead, drawing_loss, encode_scales
from ming.training.loop import SeededBatches

from .dense import CellHeads
from .drawing import render
from .scenes import COLOURS, KINDS, POSITIONS, SIZES, Scene, choose
from .speech import SpeechPool
from .world import Picture, Sample, sample_chat

# A repeated row counts more.
REQUESTS = (
    *("drawing",) * 2,
    *("editing",) * 2,
    *("style",) * 4,
    *("scene_editing",) * 6,
    *("redrawing",) * 2,
    "spoken_drawing",
)
OTHER_SHAPES = 0.4  # share of batches that are not square
AUTOENCODER_SIDES = (48, 64, 64, 96)
OUTLINED = 0.3  # share of the autoencoder's pictures
FINE_SIDES, FINE_OUTLINED = (96, 96, 64), 0.65
FINE_KINDS = ("star", "star", "star", "triangle", "triangle", "circle", "square")  # stars have the thinnest lines
ALIGNMENT_WEIGHT = 0.5
EDGE_WEIGHT, SPREAD_WEIGHT = 1.0, 0.02
SHAPE_WEIGHT = 1.5  # added for shapes: absolute errors tend to the median, which is background near a thin line
CONTRAST = 0.2  # of pixels in -1..1 that counts as an edge
EMPHASIS = 4.0
CELL, PATCH_WEIGHT = 6, 20.0  # CELL: side in pixels of the part of the picture that a token must show
NUM_NOISES = 4  # per chat and step: reading a chat costs as much as drawing

SCENE_ASPECTS: dict[str, tuple[str, ...]] = {"background": tuple(COLOURS), "style": ("filled", "outline")}
for position in POSITIONS:
    SCENE_ASPECTS[f"kind_{position}"] = ("nothing", *KINDS)
    SCENE_ASPECTS[f"colour_{position}"] = ("nothing", *COLOURS)
    SCENE_ASPECTS[f"size_{position}"] = ("nothing", *SIZES)


def scene_labels(pictures: list[Picture]) -> dict[str, torch.Tensor]:
    """The content of pictures: per aspect of `SCENE_ASPECTS` int64 [B]."""
    values = {name: ["nothing"] * len(pictures) for name in SCENE_ASPECTS}
    values["background"] = [picture.scene.background for picture in pictures]
    values["style"] = [SCENE_ASPECTS["style"][picture.outline] for picture in pictures]
    for row, picture in enumerate(pictures):
        for shape in picture.scene.shapes:
            for aspect in ("kind", "colour", "size"):
                values[f"{aspect}_{shape.position}"][row] = getattr(shape, aspect)
    return {name: torch.tensor([SCENE_ASPECTS[name].index(value) for value in values[name]]) for name in SCENE_ASPECTS}


def to_pixels(pictures: list[Picture], height: int, width: int, rng: np.random.Generator) -> torch.Tensor:
    """Clean renderings: float32 [B, 3, height, width] in -1..1."""
    images = [render(picture.scene, width, height, rng, outline=picture.outline, clean=True) for picture in pictures]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


class AutoencoderData(SeededBatches):
    """Item `step`: pictures of scenes, filled and in outline, of one of several sizes.

    Args:
        fine: the size that the image head draws, mostly outlines, mostly stars and triangles; thin lines are learned
            last.
    """

    def __init__(self, steps: int, batch_size: int, seed: int, fine: bool = False):
        super().__init__(steps, batch_size, seed)
        self.sides: tuple[int, ...] = FINE_SIDES if fine else AUTOENCODER_SIDES
        self.outlined = FINE_OUTLINED if fine else OUTLINED
        self.kinds = FINE_KINDS if fine else None

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = self.rng(step)
        chats = [sample_chat("drawing", rng, "train", dense=True) for _ in range(self.batch_size)]
        scenes = [requested_pictures(chat)[0].scene for chat in chats]
        if self.kinds:
            scenes = [_with_kinds(scene, self.kinds, rng) for scene in scenes]
        pictures = [Picture(scene, bool(rng.random() < self.outlined)) for scene in scenes]
        side = choose(rng, self.sides)
        return {"pixels": to_pixels(pictures, side, side, rng)}


def requested_pictures(sample: Sample) -> list[Picture]:
    """The pictures that the turns of a chat request, one per turn.

    Raises:
        ValueError: a turn requests none.
    """
    pictures = [picture for picture in sample.pictures if picture is not None]
    if len(pictures) < len(sample.pictures):
        raise ValueError(f"some turns of a chat of the row {sample.row!r} request no picture; use one of {REQUESTS}")
    return pictures


def _with_kinds(scene: Scene, kinds: tuple[str, ...], rng: np.random.Generator) -> Scene:
    """A scene whose shapes have kinds of `kinds`, except where the result would be a test combination."""
    others = [replace(shape, kind=choose(rng, kinds)) for shape in scene.shapes]
    kept = [other if other.split == "train" else own for own, other in zip(scene.shapes, others, strict=True)]
    return replace(scene, shapes=tuple(kept))


def near_edges(pixels: torch.Tensor) -> torch.Tensor:
    """1.0 within two pixels of an edge, 0.0 elsewhere: [B, 1, height, width]."""
    highest, lowest = F.max_pool2d(pixels, 5, 1, 2), -F.max_pool2d(-pixels, 5, 1, 2)
    return ((highest - lowest).amax(dim=1, keepdim=True) > CONTRAST).float()


def off_background(pixels: torch.Tensor) -> torch.Tensor:
    """1.0 where a picture differs from its corner, which is background, 0.0 elsewhere: [B, 1, height, width]."""
    return ((pixels - pixels[..., :1, :1]).abs().amax(dim=1, keepdim=True) > CONTRAST).float()


class AutoencoderTask(nn.Module):
    """Trains the autoencoder on three losses.

    The mean absolute error covers all pixels. At edges the absolute and the squared error count again: most of a
    picture is background, edges show the kind of a shape, and absolute errors alone would drop lines thinner than a
    pixel. Every channel of the latents is kept near mean 0 and variance 1, since all get noise of the same size.
    """

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        latents = self.vae.encode(pixels, return_dict=False)[0]
        difference = self.vae.decode(latents, return_dict=False)[0] - pixels
        error = difference.abs().mean(dim=1, keepdim=True)
        edges = near_edges(pixels) * (1 + SHAPE_WEIGHT * off_background(pixels))
        sharp = error + difference.square().mean(dim=1, keepdim=True)
        at_edges = (sharp * edges).sum() / edges.sum().clamp_min(1.0)
        variance, mean = torch.var_mean(latents, dim=(0, 2, 3))
        spread = (mean.square() + variance - variance.clamp_min(1e-6).log() - 1).mean()
        loss = error.mean() + EDGE_WEIGHT * at_edges + SPREAD_WEIGHT * spread
        return {"loss": loss, "error": error.mean().detach(), "edges": at_edges.detach(), "spread": spread.detach()}


class RequestData(SeededBatches):
    """Item `step`: chats that end with a request for a picture, and the pictures."""

    def __init__(self, processor, pool: SpeechPool, config, steps: int, batch_size: int, seed: int):
        super().__init__(steps, batch_size, seed)
        self.processor, self.pool, self.config = processor, pool, config

    def __getitem__(self, step: int) -> dict:
        rng = self.rng(step)
        prompts: list[list[dict]] = []
        pictures: list[Picture] = []
        for _ in range(self.batch_size):
            sample = sample_chat(choose(rng, REQUESTS), rng, "train", self.pool, dense=True, max_side=192)
            turn = int(rng.integers(len(sample.pictures)))
            prompts.append(sample.messages[: 2 * turn + 1])
            pictures.append(requested_pictures(sample)[turn])
        chats = prompt_batch(self.processor, prompts)
        size = (self.config.native_side, self.config.native_side)
        if rng.random() < OTHER_SHAPES:
            size = choose(rng, sorted(set(self.config.native_sizes.values())))
        labels = scene_labels(pictures)
        return {"chats": dict(chats), "labels": labels, "pixels": to_pixels(pictures, *size, rng)}


def patches(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Pictures [B, 3, height, width] -> the pixels of the cells of a grid, row by row: [B, side * side, 3 * 6 * 6]."""
    resized = F.interpolate(pixels, (side * CELL, side * CELL), mode="bilinear", antialias=True)
    return F.unfold(resized, CELL, stride=CELL).transpose(1, 2)


class ConditionTask(nn.Module):
    """Query tokens and connector learn the request: heads, for training only, read it from the condition.

    From every token of every scale they read the scene, the place of the token in its grid, and the pixels there. So a
    place of the condition tells the transformer what to draw at the same place of the picture.
    """

    def __init__(self, thinker: nn.Module, image_gen: ImageGen):
        super().__init__()
        thinker.components.use(image_gen=image_gen)
        self.image_gen = image_gen
        self.frozen = [thinker]  # in a list: not a submodule, so neither trained nor saved with this module
        size = image_gen.config.hidden_size
        self.heads = nn.ModuleDict(
            {
                "scene": CellHeads(size, SCENE_ASPECTS),
                "patch": nn.Linear(size, 3 * CELL * CELL),
                "places": nn.ModuleList(nn.Linear(size, side * side) for side in image_gen.config.scales),
            }
        )

    def forward(
        self, chats: dict, labels: Mapping[str, torch.Tensor], pixels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        losses: list[torch.Tensor] = []
        parts: dict[str, torch.Tensor] = {}
        edges = near_edges(pixels)
        for side, states, place in zip(
            self.image_gen.config.scales, self.frozen[0].drawing.states(**chats), self.heads["places"], strict=True
        ):
            condition = self.image_gen.condition(states)
            per_token = {name: values.repeat_interleave(side * side) for name, values in labels.items()}
            scene, shares = self.heads["scene"](condition.flatten(0, 1), per_token)
            condition = condition * condition.shape[-1] ** 0.5  # heads that regress need a larger norm than 1
            # Squared errors, since absolute ones tend to the median of what may be there, which is background.
            error = (self.heads["patch"](condition) - patches(pixels, side)).square().mean(dim=-1)
            weights = emphasis(edges, (side, side)).flatten(1)
            patch = (weights * error).mean()
            own = torch.arange(side * side).repeat(len(condition))
            where = F.cross_entropy(place(condition).flatten(0, 1), own)
            losses.append(scene + PATCH_WEIGHT * patch + where)
            # Logged for the finest scale; of the scene only the worst aspect.
            parts = {"least": torch.stack(list(shares.values())).min(), "patch": patch, "place": where}
        return {"loss": torch.stack(losses).mean(), **{name: value.detach() for name, value in parts.items()}}


def emphasis(edges: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Weights [B, 1, h, w] of mean 1 on a grid of `size` (h, w), larger at the edges from `near_edges`."""
    weights = 1 + EMPHASIS * F.adaptive_max_pool2d(edges, size)
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True)


class PictureTask(nn.Module):
    """The transformer learns to draw from conditions that are trained already; the loss is `drawing_loss`."""

    def __init__(self, thinker: nn.Module, image_gen: ImageGen):
        super().__init__()
        thinker.components.use(image_gen=image_gen)
        self.image_gen = image_gen
        self.frozen = [thinker]
        self.heads = nn.ModuleDict({"alignment": AlignmentHead(image_gen)})

    def forward(self, chats: dict, labels: dict, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            states = self.frozen[0].drawing.states(**chats)
        latents, edges = encode_scales(self.image_gen, pixels), near_edges(pixels)
        weights = [emphasis(edges, scale.shape[-2:]) for scale in latents]
        losses = drawing_loss(
            self.image_gen,
            states,
            latents,
            self.heads["alignment"],
            ALIGNMENT_WEIGHT,
            weights=weights,
            noises=NUM_NOISES,
        )
        return {
            "loss": losses.loss,
            "finest": losses.flow[-1].detach(),
            "alignment": torch.stack(losses.alignment).mean().detach(),
        }
