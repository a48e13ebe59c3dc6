"""Warm-up of Ming-Tiny's encoders by dense labels, before they meet the decoder.

A decoder learns little from an encoder that says nothing yet: each encoder, with its projector, first learns to say
per token what is there. Vision tokens draw the silhouette of what they see, name its kind, colour, size and position,
the background and the number of shapes; audio tokens spell the transcript by CTC. The small heads are thrown away
afterwards.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import Qwen2VLImageProcessorPil

from ..objectives import ctc_greedy, ctc_loss
from .drawing import CENTRE, RADIUS, render
from .scenes import COLOURS, KINDS, POSITIONS, SIZES, Scene, sample_canvas, sample_scene
from .speech import SpeechPool, augment

NOTHING = 0  # label of a token that sees no shape
CELL = 28  # pixels a side of one vision token
MASK_WEIGHT = 4.0
MASK = 7  # silhouette values a side of one token
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


def silhouettes(
    scene: Scene, width: int, height: int, rng: np.random.Generator, rows: int, columns: int
) -> np.ndarray:
    """How much of each of MASK x MASK parts of every token is covered by shapes: float32 [rows * columns, MASK**2].

    `rng` must be in the state it was in when the picture was rendered, so that the jitter is the same.
    """
    shapes = tuple(replace(shape, colour="white") for shape in scene.shapes)
    drawn = render(Scene("black", shapes), width, height, rng, clean=True)
    drawn = drawn.convert("L").resize((columns * MASK, rows * MASK), Image.Resampling.BOX)
    cells = np.asarray(drawn, dtype=np.float32).reshape(rows, MASK, columns, MASK).transpose(0, 2, 1, 3) / 255
    return cells.reshape(rows * columns, MASK**2)


class VisionWarmUpData(torch.utils.data.Dataset):
    """Item `step` is a batch of pictures with their cell labels, the same for the same seed."""

    def __init__(self, image_processor: Qwen2VLImageProcessorPil, steps: int, batch_size: int, seed: int, split: str):
        self.image_processor, self.steps, self.batch_size = image_processor, steps, batch_size
        self.seed, self.split = seed, split

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((self.seed, step))
        scenes = [sample_scene(rng, self.split) for _ in range(self.batch_size)]
        sizes = [sample_canvas(rng) for _ in scenes]
        seeds = rng.integers(2**32, size=len(scenes))
        pictures = [
            render(scene, *size, np.random.default_rng(seed))
            for scene, size, seed in zip(scenes, sizes, seeds, strict=True)
        ]
        inputs = self.image_processor(pictures, return_tensors="pt")
        grids = inputs["image_grid_thw"].tolist()
        labels = [
            cell_labels(scene, *size, rows // 2, columns // 2)
            for scene, size, (_, rows, columns) in zip(scenes, sizes, grids, strict=True)
        ]
        joined = {aspect: torch.from_numpy(np.concatenate([item[aspect] for item in labels])) for aspect in ASPECTS}
        masks = [
            silhouettes(scene, *size, np.random.default_rng(seed), rows // 2, columns // 2)
            for scene, size, seed, (_, rows, columns) in zip(scenes, sizes, seeds, grids, strict=True)
        ]
        return {
            "pixel_values": inputs["pixel_values"],
            "image_grid_thw": inputs["image_grid_thw"],
            "mask": torch.from_numpy(np.concatenate(masks)),
            **joined,
        }


class VisionWarmUp(nn.Module):
    """Vision tower and projector of a model under one linear head per aspect."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.hidden_size = model.config.llm_config.hidden_size
        self.heads = nn.ModuleDict(
            {aspect: nn.Linear(self.hidden_size, len(classes)) for aspect, classes in ASPECTS.items()}
        )
        self.heads["mask"] = nn.Linear(self.hidden_size, MASK**2)

    def forward(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, mask: torch.Tensor, **labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Scalar `loss`, and per aspect the share of tokens named right."""
        features = self.model.get_image_features(pixel_values, image_grid_thw) * self.hidden_size**0.5
        mask_loss = F.binary_cross_entropy_with_logits(self.heads["mask"](features), mask)
        loss, output = MASK_WEIGHT * mask_loss, {"mask_loss": mask_loss.detach()}
        for aspect in ASPECTS:
            logits = self.heads[aspect](features)
            loss = loss + F.cross_entropy(logits, labels[aspect])
            output[aspect] = (logits.argmax(dim=-1) == labels[aspect]).float().mean().detach()
        return {"loss": loss, **output}


class SpeechWarmUpData(torch.utils.data.Dataset):
    """Item `step` is a batch of recordings with the token ids of what is said."""

    def __init__(
        self, pool: SpeechPool, processor, steps: int, batch_size: int, seed: int, whisper: bool, noisy: float = 0.3
    ):
        self.pool, self.processor, self.steps, self.batch_size = pool, processor, steps, batch_size
        self.seed, self.whisper, self.noisy = seed, whisper, noisy

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((self.seed, step))
        spoken = [self.pool[int(rng.integers(len(self.pool)))] for _ in range(self.batch_size)]
        # Mostly clean, at times down to 8 dB: below what the checkpoint is measured at.
        snrs = [rng.uniform(8.0, 25.0) if rng.random() < self.noisy else None for _ in spoken]
        waves = [
            torch.from_numpy(augment(utterance.waveform, rng, snr))
            for utterance, snr in zip(spoken, snrs, strict=True)
        ]
        extractor = self.processor.feature_extractor
        features = extractor([(wave[None], 16000) for wave in waves], use_whisper_encoder=self.whisper)
        # The leading space makes the first word the token that the word is elsewhere.
        ids = [self.processor.tokenizer(" " + item.text, add_special_tokens=False)["input_ids"] for item in spoken]
        targets = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True)
        return {
            "audio_feats": features["audio_feats"],
            "audio_feats_lengths": features["audio_feats_lengths"],
            "targets": targets,
            "target_lengths": torch.tensor([len(row) for row in ids]),
        }


class SpeechWarmUp(nn.Module):
    """One audio encoder and its projector under a CTC head over the tokenizer's vocabulary."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.hidden_size = model.config.llm_config.hidden_size
        self.head = nn.Linear(self.hidden_size, model.config.llm_config.vocab_size + 1)

    def forward(
        self,
        audio_feats: torch.Tensor,
        audio_feats_lengths: torch.Tensor,
        targets: torch.Tensor,
        target_lengths: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Scalar `loss` and the share of utterances spelled without an error."""
        features, lengths = self.model.get_audio_features(audio_feats, audio_feats_lengths)
        padded = nn.utils.rnn.pad_sequence(features.split(lengths.tolist()), batch_first=True)
        logits = self.head(padded * self.hidden_size**0.5)
        loss = ctc_loss(logits, lengths, targets, target_lengths)
        spelled = ctc_greedy(logits.detach(), lengths)
        wanted = [row[:length].tolist() for row, length in zip(targets, target_lengths.tolist(), strict=True)]
        right = sum(a == b for a, b in zip(spelled, wanted, strict=True)) / len(wanted)
        return {"loss": loss, "exact": torch.tensor(right)}
