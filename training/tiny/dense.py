"""Dense labels of Ming-Tiny's world: what every vision token sees, what a recording's tokens spell.

They warm the encoders up before the decoder listens, and stay beside the next-token loss afterwards: a reply says
little about a picture, a label per token says everything. The heads are thrown away after training.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from modeling_bailing_moe import AUDIO_TYPE, IMAGE_TYPE

from ..objectives import ctc_greedy, ctc_loss
from .drawing import CENTRE, RADIUS
from .scenes import COLOURS, KINDS, POSITIONS, SIZES, Scene
from .world import Sample

REACH = 0.35  # of a cell: how far beyond a shape's edge a cell's centre may lie and still see it
ASPECTS = {
    "kind": ("nothing", *KINDS),
    "colour": ("nothing", *COLOURS),
    "size": ("nothing", *SIZES),
    "position": ("nothing", *POSITIONS),
    "background": tuple(COLOURS),
    "count": (1, 2, 3),
}


def cell_labels(scene: Scene, width: int, height: int, rows: int, columns: int) -> dict[str, np.ndarray]:
    """What each of rows x columns vision tokens sees in the picture of a scene: per aspect int64 [rows * columns]."""
    short, cell = min(width, height), np.array([width / columns, height / rows])
    y, x = np.mgrid[0:rows, 0:columns]
    centres = np.stack([(x.ravel() + 0.5) * cell[0], (y.ravel() + 0.5) * cell[1]], axis=1)
    labels = {aspect: np.zeros(rows * columns, dtype=np.int64) for aspect in ASPECTS}
    labels["background"][:] = ASPECTS["background"].index(scene.background)
    labels["count"][:] = len(scene.shapes) - 1
    for shape in scene.shapes:
        centre = np.array(CENTRE[shape.position]) * (width, height)
        distance = np.abs(centres - centre)
        seen = (distance < np.mean(RADIUS[shape.size]) * short + REACH * cell).all(axis=1)
        for aspect in ("kind", "colour", "size", "position"):
            labels[aspect][seen] = ASPECTS[aspect].index(getattr(shape, aspect))
    return labels


def joined_cell_labels(
    scenes: list[Scene], sizes: list[tuple[int, int]], image_grid_thw: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Labels of the tokens of several pictures, one after another: per aspect int64 [tokens].

    Args:
        scenes, sizes: content and (width, height) in pixels of every picture.
        image_grid_thw: [N, 3], their patches; a token is 2 x 2 patches.
    """
    labels = [
        cell_labels(scene, *size, rows // 2, columns // 2)
        for scene, size, (_, rows, columns) in zip(scenes, sizes, image_grid_thw.tolist(), strict=True)
    ]
    return {aspect: torch.from_numpy(np.concatenate([item[aspect] for item in labels])) for aspect in ASPECTS}


def spelling(tokenizer, texts: list[str]) -> dict[str, torch.Tensor]:
    """CTC targets of spoken texts: `targets` [B, longest], zero-padded, and `target_lengths` [B]."""
    # The leading space makes the first word the token that the word is elsewhere.
    ids = [tokenizer(" " + text, add_special_tokens=False)["input_ids"] for text in texts]
    return {
        "targets": nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True),
        "target_lengths": torch.tensor([len(row) for row in ids]),
    }


def dense_labels(
    samples: list[Sample], tokenizer, image_grid_thw: torch.Tensor | None, use_whisper_encoder: bool
) -> dict[str, dict[str, torch.Tensor]]:
    """Labels for the media of a batch of chats: "vision" and "sanm" or "whisper", as far as there are any.

    A chat has at most one recording. image_grid_thw: [pictures, 3], as from the processor.
    """
    media = [
        (item, label)
        for sample in samples
        for item, label in zip(sample.media, sample.labels, strict=True)
        if label is not None
    ]
    pictures = [(label, item["image"].size) for item, label in media if item["type"] == "image"]
    texts = [label for item, label in media if item["type"] == "audio"]
    labels = {}
    if pictures:
        labels["vision"] = joined_cell_labels(*map(list, zip(*pictures, strict=True)), image_grid_thw)
    if texts:
        labels["whisper" if use_whisper_encoder else "sanm"] = spelling(tokenizer, texts)
    return labels


class CellHeads(nn.Module):
    """One linear head per aspect over vision features [tokens, H] of unit length."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.scale = hidden_size**0.5
        self.heads = nn.ModuleDict({name: nn.Linear(hidden_size, len(classes)) for name, classes in ASPECTS.items()})

    def forward(
        self, features: torch.Tensor, labels: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The scalar loss, summed over aspects, and per aspect the share of tokens named right."""
        logits = {aspect: self.heads[aspect](features * self.scale) for aspect in ASPECTS}
        loss = sum(F.cross_entropy(logits[aspect], labels[aspect]) for aspect in ASPECTS)
        right = {name: (logits[name].argmax(dim=-1) == labels[name]).float().mean().detach() for name in ASPECTS}
        return loss, right


class SpellingHead(nn.Module):
    """A CTC head over the tokenizer's vocabulary on audio features of unit length."""

    def __init__(self, hidden_size: int, vocab_size: int):
        super().__init__()
        self.scale = hidden_size**0.5
        self.head = nn.Linear(hidden_size, vocab_size + 1)

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor, labels: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [sum of lengths, H], lengths [B] -> the scalar loss and the share spelled without an error."""
        padded = nn.utils.rnn.pad_sequence(features.split(lengths.tolist()), batch_first=True)
        logits = self.head(padded * self.scale)
        targets, target_lengths = labels["targets"], labels["target_lengths"]
        loss = ctc_loss(logits, lengths, targets, target_lengths)
        spelled = ctc_greedy(logits.detach(), lengths)
        wanted = [row[:length].tolist() for row, length in zip(targets, target_lengths.tolist(), strict=True)]
        return loss, torch.tensor(np.mean([a == b for a, b in zip(spelled, wanted, strict=True)]))


class DenseLoss(nn.Module):
    """Dense losses of a batch of chats, from the embeddings that its media got."""

    def __init__(self, hidden_size: int, vocab_size: int):
        super().__init__()
        self.vision = CellHeads(hidden_size)
        self.sanm = SpellingHead(hidden_size, vocab_size)
        self.whisper = SpellingHead(hidden_size, vocab_size)

    def forward(
        self, inputs_embeds: torch.Tensor, mm_token_type_ids: torch.Tensor, labels: Mapping[str, Mapping]
    ) -> torch.Tensor:
        """inputs_embeds [B, L, H], mm_token_type_ids [B, L], labels as from `dense_labels` -> scalar loss."""
        loss = inputs_embeds.new_zeros(())
        if "vision" in labels:
            loss = loss + self.vision(inputs_embeds[mm_token_type_ids == IMAGE_TYPE], labels["vision"])[0]
        for name in ("sanm", "whisper"):
            if name in labels:
                is_audio = mm_token_type_ids == AUDIO_TYPE
                lengths = is_audio.sum(dim=1)
                loss = loss + getattr(self, name)(inputs_embeds[is_audio], lengths[lengths > 0], labels[name])[0]
        return loss
