"""Stage 2b of Ming-Tiny: what conversations ask to be drawn, as batches, and the three things that are learned.

An autoencoder learns the world's pictures. Query tokens and connector learn what a conversation wants drawn: a head,
for training only, must read the scene from every token of the condition. Then the transformer learns to draw scenes
from conditions. The thinker stays as it is.

Shape letters: B pictures, N query tokens of a scale, H width of the language model.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from image_gen.modeling_image_gen import ImageGen
from ming.training.drawing import AlignmentHead, drawing_loss, encode_scales

from .dense import CellHeads
from .drawing import render
from .scenes import COLOURS, KINDS, POSITIONS, SIZES, Scene, choose
from .speech import SpeechPool
from .world import Picture, sample_chat

# Rows repeat to weigh them.
REQUESTS = ("drawing", "drawing", "drawing", "editing", "editing", "editing", "style", "style", "spoken_drawing")
OTHER_SHAPES = 0.2  # share of batches that are not square
AUTOENCODER_SIDES = (48, 64, 64, 96)
OUTLINED = 0.3  # share of the autoencoder's pictures
FINE_SIDES, FINE_OUTLINED = (96, 96, 64), 0.65
FINE_KINDS = ("star", "star", "star", "triangle", "triangle", "circle", "square")  # the thinnest lines are stars'
ALIGNMENT_WEIGHT = 0.5
EDGE_WEIGHT, SPREAD_WEIGHT = 1.0, 0.02
SHAPE_WEIGHT = 1.5  # more: where a thin line may be is mostly background, and absolute errors ask for the median
CONTRAST = 0.2  # of pixels in -1..1 that counts as an edge
EMPHASIS = 4.0
CELL, PATCH_WEIGHT = 6, 20.0  # pixels of a side that a token tells
NUM_NOISES = 4  # per conversation and step: reading it costs as much as drawing

SCENE_ASPECTS: dict[str, tuple[str, ...]] = {"background": tuple(COLOURS), "style": ("filled", "outline")}
for position in POSITIONS:
    SCENE_ASPECTS[f"kind_{position}"] = ("nothing", *KINDS)
    SCENE_ASPECTS[f"colour_{position}"] = ("nothing", *COLOURS)
    SCENE_ASPECTS[f"size_{position}"] = ("nothing", *SIZES)


def scene_labels(pictures: list[Picture]) -> dict[str, torch.Tensor]:
    """What pictures must show: per aspect of `SCENE_ASPECTS` int64 [B]."""
    values = {name: ["nothing"] * len(pictures) for name in SCENE_ASPECTS}
    values["background"] = [picture.scene.background for picture in pictures]
    values["style"] = [SCENE_ASPECTS["style"][picture.outline] for picture in pictures]
    for row, picture in enumerate(pictures):
        for shape in picture.scene.shapes:
            for aspect in ("kind", "colour", "size"):
                values[f"{aspect}_{shape.position}"][row] = getattr(shape, aspect)
    return {name: torch.tensor([SCENE_ASPECTS[name].index(value) for value in values[name]]) for name in SCENE_ASPECTS}


def to_pixels(pictures: list[Picture], height: int, width: int, rng: np.random.Generator) -> torch.Tensor:
    """Clean renderings [B, 3, height, width] in -1..1."""
    images = [render(picture.scene, width, height, rng, outline=picture.outline, clean=True) for picture in pictures]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


class AutoencoderData(torch.utils.data.Dataset):
    """Item `step`: pictures of scenes, filled and in outline, of one of several sizes.

    `fine`: at the size that is drawn, most of them in outline and most of these stars and triangles; thin lines are
    learned last.
    """

    def __init__(self, steps: int, batch_size: int, seed: int, fine: bool = False):
        self.steps, self.batch_size, self.seed = steps, batch_size, seed
        self.sides, self.outlined = (FINE_SIDES, FINE_OUTLINED) if fine else (AUTOENCODER_SIDES, OUTLINED)
        self.kinds = FINE_KINDS if fine else None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((self.seed, step))
        scenes = [sample_chat("drawing", rng, "train", dense=True).pictures[0].scene for _ in range(self.batch_size)]
        if self.kinds:
            scenes = [self._with_kinds(scene, rng) for scene in scenes]
        pictures = [Picture(scene, bool(rng.random() < self.outlined)) for scene in scenes]
        side = choose(rng, self.sides)
        return {"pixels": to_pixels(pictures, side, side, rng)}

    def _with_kinds(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """A scene with kinds of `self.kinds`, where training may see them."""
        others = [replace(shape, kind=choose(rng, self.kinds)) for shape in scene.shapes]
        kept = [other if other.split == "train" else own for own, other in zip(scene.shapes, others, strict=True)]
        return replace(scene, shapes=tuple(kept))


def near_edges(pixels: torch.Tensor) -> torch.Tensor:
    """Where something begins or ends within two pixels: 1.0, elsewhere 0.0, [B, 1, height, width]."""
    highest, lowest = F.max_pool2d(pixels, 5, 1, 2), -F.max_pool2d(-pixels, 5, 1, 2)
    return ((highest - lowest).amax(dim=1, keepdim=True) > CONTRAST).float()


def off_background(pixels: torch.Tensor) -> torch.Tensor:
    """Where a picture shows something else than in its corner, which is background: 1.0, else 0.0, [B, 1, h, w]."""
    return ((pixels - pixels[..., :1, :1]).abs().amax(dim=1, keepdim=True) > CONTRAST).float()


class AutoencoderTask(nn.Module):
    """Mean absolute error of pixels, once over all and once, with the squared error, where a shape ends: most of a
    picture is background, and what a shape is shows at its edges; absolute errors alone would leave out lines that
    are thinner than a pixel. Every channel of the latents is kept near mean 0 and variance 1, since noise of
    one size is added to all of them."""

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


class RequestData(torch.utils.data.Dataset):
    """Item `step`: conversations that end with a wish for a picture, and the pictures."""

    def __init__(self, processor, pool: SpeechPool, config, steps: int, batch_size: int, seed: int):
        self.processor, self.pool, self.config = processor, pool, config
        self.steps, self.batch_size, self.seed = steps, batch_size, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict:
        rng = np.random.default_rng((self.seed, step))
        prompts, pictures = [], []
        for _ in range(self.batch_size):
            sample = sample_chat(choose(rng, REQUESTS), rng, "train", self.pool, dense=True, max_side=192)
            turn = int(rng.integers(len(sample.pictures)))
            prompts.append(sample.messages[: 2 * turn + 1])
            pictures.append(sample.pictures[turn])
        chats = self.processor.apply_chat_template(
            prompts, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        size = (self.config.native_side, self.config.native_side)
        if rng.random() < OTHER_SHAPES:
            size = choose(rng, sorted(set(self.config.native_sizes.values())))
        labels = scene_labels(pictures)
        return {"chats": dict(chats), "labels": labels, "pixels": to_pixels(pictures, *size, rng)}


def patches(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Pictures [B, 3, height, width] -> what each cell of a grid shows, row by row: [B, side * side, 3 * 6 * 6]."""
    resized = F.interpolate(pixels, (side * CELL, side * CELL), mode="bilinear", antialias=True)
    return F.unfold(resized, CELL, stride=CELL).transpose(1, 2)


class ConditionTask(nn.Module):
    """Query tokens and connector learn what is wanted: heads, for training only, must read it from the condition.

    Every token of every scale must tell the scene, its own place in its grid, and what the picture shows there: so the
    transformer finds at a place of the condition what it has to draw at that place of the picture.
    """

    def __init__(self, thinker: nn.Module, image_gen: ImageGen):
        super().__init__()
        thinker.image_gen = image_gen
        self.image_gen = image_gen
        self.frozen = [thinker]  # in a list: no part of this module, so neither trained nor saved with it
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
        losses, parts = [], {}
        edges = near_edges(pixels)
        for side, states, place in zip(
            self.image_gen.config.scales, self.frozen[0].image_states(**chats), self.heads["places"], strict=True
        ):
            condition = self.image_gen.condition(states)
            per_token = {name: values.repeat_interleave(side * side) for name, values in labels.items()}
            scene, shares = self.heads["scene"](condition.flatten(0, 1), per_token)
            condition = condition * condition.shape[-1] ** 0.5  # unit length is short for heads that read numbers
            # Squared: the median of what may stand at a place, which absolute errors ask for, is background.
            error = (self.heads["patch"](condition) - patches(pixels, side)).square().mean(dim=-1)
            weights = emphasis(edges, (side, side)).flatten(1)
            patch = (weights * error).mean()
            own = torch.arange(side * side).repeat(len(condition))
            where = F.cross_entropy(place(condition).flatten(0, 1), own)
            losses.append(scene + PATCH_WEIGHT * patch + where)
            # Of the finest scale; of the scene the worst aspect.
            parts = {"least": torch.stack(list(shares.values())).min(), "patch": patch, "place": where}
        return {"loss": torch.stack(losses).mean(), **{name: value.detach() for name, value in parts.items()}}


def emphasis(edges: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Of `near_edges` -> weights [B, 1, h, w] of mean 1 on a grid of `size` (h, w): where a shape ends counts more."""
    weights = 1 + EMPHASIS * F.adaptive_max_pool2d(edges, size)
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True)


class PictureTask(nn.Module):
    """The transformer learns to draw from conditions that are learned already; the loss is that of `drawing_loss`."""

    def __init__(self, thinker: nn.Module, image_gen: ImageGen):
        super().__init__()
        thinker.image_gen = image_gen
        self.image_gen = image_gen
        self.frozen = [thinker]
        self.heads = nn.ModuleDict({"alignment": AlignmentHead(image_gen)})

    def forward(self, chats: dict, labels: dict, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            states = self.frozen[0].image_states(**chats)
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
