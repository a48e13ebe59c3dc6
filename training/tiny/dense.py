"""Dense labels of Ming-Tiny's world: what every vision token shows, and which words the audio tokens spell.

They train the encoders before the decoder does, and stay beside the next-token loss afterwards: a reply says little
about an image, a label per token says everything. The heads are discarded after training.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ming.token_types import AUDIO_TYPE, IMAGE_TYPE, VIDEO_TYPE
from ming.training.objectives import ctc_exact, ctc_loss, ctc_targets

from .drawing import CENTRE, RADIUS, Course
from .scenes import COLOURS, KINDS, MOTIONS, POSITIONS, SIZES, Scene
from .world import Sample

REACH = 0.35  # in cells: how far from the edge of a shape the centre of a cell may lie and still count as covered
ASPECTS: dict[str, Sequence] = {
    "kind": ("nothing", *KINDS),
    "colour": ("nothing", *COLOURS),
    "size": ("nothing", *SIZES),
    "position": ("nothing", *POSITIONS),
    "background": tuple(COLOURS),
    "count": (1, 2, 3),
}
ORDER: dict[str, Sequence] = {"order": ("first", "second")}  # of the images of a chat
NUM_PLACES = 8  # along each side, for the centre of the shape of a video
CLIP_ASPECTS: dict[str, Sequence] = {name: ASPECTS[name] for name in ("kind", "colour", "size", "background")} | {
    "motion": MOTIONS,
    "x": range(NUM_PLACES),
    "y": range(NUM_PLACES),
}


def cell_labels(scene: Scene, width: int, height: int, rows: int, columns: int) -> dict[str, np.ndarray]:
    """Labels of the rows x columns vision tokens of an image: per aspect int64 [rows * columns].

    Args:
        scene: what the image shows.
        width, height: size of the image in pixels.
    """
    labels: dict[str, np.ndarray] = {aspect: np.zeros(rows * columns, dtype=np.int64) for aspect in ASPECTS}
    labels["background"][:] = ASPECTS["background"].index(scene.background)
    labels["count"][:] = len(scene.shapes) - 1
    for shape in scene.shapes:
        covered = _covered(CENTRE[shape.position], sum(RADIUS[shape.size]) / 2, (width, height), (rows, columns))
        for aspect in ("kind", "colour", "size", "position"):
            labels[aspect][covered] = ASPECTS[aspect].index(getattr(shape, aspect))
    return labels


def _covered(centre: tuple[float, float], radius: float, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Which tokens of a grid (rows, columns) a shape covers: bool [rows * columns].

    Args:
        centre: in shares of the image size (width, height).
        radius: in shares of the shorter side.
    """
    rows, columns = grid
    y, x = np.mgrid[0:rows, 0:columns]
    tokens = np.stack([(x.ravel() + 0.5) / columns, (y.ravel() + 0.5) / rows], axis=1)
    cell = np.array([size[0] / columns, size[1] / rows])
    return (np.abs(tokens - centre) * size < radius * min(size) + REACH * cell).all(axis=1)


def clip_labels(course: Course, width: int, height: int, steps: int, rows: int, columns: int) -> dict[str, np.ndarray]:
    """Labels of the steps x rows x columns vision tokens of a video: per aspect int64 [steps * rows * columns].

    A step is two frames; an odd last frame is repeated.

    Raises:
        ValueError: `steps` does not fit the number of frames.
    """
    clip, last = course.clip, len(course.xs) - 1
    if steps != last // 2 + 1:
        raise ValueError(f"{last + 1} frames are {last // 2 + 1} steps of two, got {steps}")
    labels: dict[str, np.ndarray] = {
        aspect: np.zeros((steps, rows * columns), dtype=np.int64) for aspect in CLIP_ASPECTS
    }
    labels["background"][:] = ASPECTS["background"].index(clip.background)
    labels["motion"][:] = MOTIONS.index(clip.motion)
    for step in range(steps):
        frames = [2 * step, min(2 * step + 1, last)]
        centre = (course.xs[frames].mean(), course.ys[frames].mean())
        labels["x"][step], labels["y"][step] = (int(NUM_PLACES * place) for place in centre)
        covered = _covered(centre, course.radius, (width, height), (rows, columns))
        for aspect in ("kind", "colour", "size"):
            labels[aspect][step, covered] = ASPECTS[aspect].index(getattr(clip, aspect))
    return {aspect: values.ravel() for aspect, values in labels.items()}


def joined_clip_labels(
    courses: list[Course], sizes: list[tuple[int, int]], video_grid_thw: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Concatenated labels of the tokens of several videos: per aspect int64 [tokens].

    Args:
        courses, sizes: content and (width, height) in pixels of every video.
        video_grid_thw: int64 [N, 3], the patches; a token is 2 x 2 patches of a step.
    """
    labels = [
        clip_labels(course, *size, steps, rows // 2, columns // 2)
        for course, size, (steps, rows, columns) in zip(courses, sizes, video_grid_thw.tolist(), strict=True)
    ]
    return {aspect: torch.from_numpy(np.concatenate([item[aspect] for item in labels])) for aspect in CLIP_ASPECTS}


def joined_cell_labels(
    scenes: list[Scene], sizes: list[tuple[int, int]], image_grid_thw: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Concatenated labels of the tokens of several images: per aspect int64 [tokens].

    Args:
        scenes, sizes: content and (width, height) in pixels of every image.
        image_grid_thw: int64 [N, 3], the patches; a token is 2 x 2 patches.
    """
    labels = [
        cell_labels(scene, *size, rows // 2, columns // 2)
        for scene, size, (_, rows, columns) in zip(scenes, sizes, image_grid_thw.tolist(), strict=True)
    ]
    return {aspect: torch.from_numpy(np.concatenate([item[aspect] for item in labels])) for aspect in ASPECTS}


def spelling(tokenizer, texts: list[str]) -> dict[str, torch.Tensor]:
    """CTC targets of B spoken texts: `targets` [B, longest], zero-padded, and `target_lengths` [B]."""
    # With a leading space the first word has the same token as anywhere else.
    ids = [tokenizer(" " + text, add_special_tokens=False)["input_ids"] for text in texts]
    return ctc_targets(ids)


def dense_labels(
    samples: list[Sample], tokenizer, inputs: Mapping[str, torch.Tensor], use_whisper_encoder: bool
) -> dict[str, dict[str, torch.Tensor]]:
    """Labels for the media of a batch of chats: "vision" and "order", "clip", and "sanm" or "whisper".

    Args:
        samples: the chats; a kind of label without media is left out.
        inputs: the output of the processor for them.
    """
    media = [(item, label) for sample in samples for item, label in zip(sample.media, sample.labels, strict=True)]
    scenes = [(label, item["image"].size) for item, label in media if isinstance(label, Scene)]
    courses = [(label, item["video"][0].size) for item, label in media if isinstance(label, Course)]
    texts = [label for _, label in media if isinstance(label, str)]
    labels = {}
    if scenes:
        sizes = [size for _, size in scenes]
        labels["vision"] = joined_cell_labels([scene for scene, _ in scenes], sizes, inputs["image_grid_thw"])
        order = [place for sample in samples for place in range(sum(item["type"] == "image" for item in sample.media))]
        tokens = inputs["image_grid_thw"].prod(dim=1) // 4
        labels["order"] = {"order": torch.tensor(order).repeat_interleave(tokens)}
    if courses:
        sizes = [size for _, size in courses]
        labels["clip"] = joined_clip_labels([course for course, _ in courses], sizes, inputs["video_grid_thw"])
    if texts:
        labels["whisper" if use_whisper_encoder else "sanm"] = spelling(tokenizer, texts)
    return labels


def _runs(mask: torch.Tensor) -> torch.Tensor:
    """Lengths of the runs of True in a mask [B, L], row by row; no run continues over the end of a row."""
    values, lengths = torch.unique_consecutive(F.pad(mask, (0, 1)).flatten(), return_counts=True)
    return lengths[values]


class CellHeads(nn.Module):
    """One linear head per aspect over vision features [tokens, H] of unit length."""

    def __init__(self, hidden_size: int, aspects: Mapping[str, Sequence] = ASPECTS):
        super().__init__()
        self.scale = hidden_size**0.5
        self.heads = nn.ModuleDict({name: nn.Linear(hidden_size, len(classes)) for name, classes in aspects.items()})

    def forward(
        self, features: torch.Tensor, labels: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The scalar loss, summed over aspects, and per aspect the share of tokens with the right class.

        Args:
            features: [tokens, H].
            labels: per aspect int64 [tokens].
        """
        logits = {name: head(features * self.scale) for name, head in self.heads.items()}
        loss = sum(F.cross_entropy(logits[name], labels[name]) for name in logits)
        right = {name: (logits[name].argmax(dim=-1) == labels[name]).float().mean().detach() for name in logits}
        return loss, right


class SpellingHead(nn.Module):
    """A CTC head over the vocabulary of the tokenizer, on audio features of unit length."""

    def __init__(self, hidden_size: int, vocab_size: int):
        super().__init__()
        self.scale = hidden_size**0.5
        self.head = nn.Linear(hidden_size, vocab_size + 1)

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor, labels: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The scalar loss, and the share of recordings that are spelled without an error.

        Args:
            features: [sum of lengths, H].
            lengths: int64 [B].
            labels: from `spelling`.
        """
        padded = nn.utils.rnn.pad_sequence(features.split(lengths.tolist()), batch_first=True)
        logits = self.head(padded * self.scale)
        return ctc_loss(logits, lengths, **labels), ctc_exact(logits, lengths, **labels)


class DenseLoss(nn.Module):
    """Dense losses of a batch of chats: on the embeddings of its media, and one on the decoder.

    The loss on the decoder is the order of the images, read from its first layer. Without it "the second picture" is
    hardly learned, since no encoder sees more than one image.
    """

    def __init__(self, hidden_size: int, vocab_size: int):
        super().__init__()
        self.order = CellHeads(hidden_size, ORDER)
        self.vision = CellHeads(hidden_size)
        self.clip = CellHeads(hidden_size, CLIP_ASPECTS)
        self.sanm = SpellingHead(hidden_size, vocab_size)
        self.whisper = SpellingHead(hidden_size, vocab_size)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        first_layer: torch.Tensor | None,
        mm_token_type_ids: torch.Tensor,
        labels: Mapping[str, Mapping],
    ) -> torch.Tensor:
        """The scalar loss.

        Args:
            inputs_embeds: [B, L, H].
            first_layer: states [B, L, H] after the first layer; None leaves out the order of images.
            mm_token_type_ids: int64 [B, L].
            labels: from `dense_labels`.
        """
        loss = inputs_embeds.new_zeros(())
        if "order" in labels and first_layer is not None:
            states = F.normalize(first_layer[mm_token_type_ids == IMAGE_TYPE], dim=-1)
            loss = loss + self.order(states, labels["order"])[0]
        for name, token_type in (("vision", IMAGE_TYPE), ("clip", VIDEO_TYPE)):
            if name in labels:
                loss = loss + getattr(self, name)(inputs_embeds[mm_token_type_ids == token_type], labels[name])[0]
        for name in ("sanm", "whisper"):
            if name in labels:
                is_audio = mm_token_type_ids == AUDIO_TYPE
                loss = loss + getattr(self, name)(inputs_embeds[is_audio], _runs(is_audio), labels[name])[0]
        return loss
