"""Warm-up of Ming-Tiny's encoders on dense labels, before they are trained through the decoder.

A decoder learns little from an untrained encoder. So each encoder, with its projector, is first trained to classify
every token (`dense`). The vision tower also learns silhouettes, which ends the plateau on the kinds of shapes.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import Qwen2VLImageProcessorPil

from ming.training.loop import SeededBatches

from .dense import CellHeads, SpellingHead, joined_cell_labels, spelling
from .drawing import render
from .scenes import Scene, sample_canvas, sample_scene
from .speech import SAMPLE_RATE, SpeechPool, augment

MASK_WEIGHT = 4.0
MASK = 7  # silhouette values per side of a token


def silhouettes(
    scene: Scene, width: int, height: int, rng: np.random.Generator, rows: int, columns: int
) -> np.ndarray:
    """The share of each of MASK x MASK parts of every token that shapes cover: float32 [rows * columns, MASK**2].

    Args:
        rng: in the same state as when the picture was rendered, so that the jitter is the same.
    """
    shapes = tuple(replace(shape, colour="white") for shape in scene.shapes)
    drawn = render(Scene("black", shapes), width, height, rng, clean=True)
    drawn = drawn.convert("L").resize((columns * MASK, rows * MASK), Image.Resampling.BOX)
    cells = np.asarray(drawn, dtype=np.float32).reshape(rows, MASK, columns, MASK).transpose(0, 2, 1, 3) / 255
    return cells.reshape(rows * columns, MASK**2)


class VisionWarmUpData(SeededBatches):
    """Item `step` is a batch of pictures with their cell labels; it depends on the seed only."""

    def __init__(self, image_processor: Qwen2VLImageProcessorPil, steps: int, batch_size: int, seed: int, split: str):
        super().__init__(steps, batch_size, seed)
        self.image_processor, self.split = image_processor, split

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = self.rng(step)
        scenes = [sample_scene(rng, self.split) for _ in range(self.batch_size)]
        sizes = [sample_canvas(rng) for _ in scenes]
        seeds = rng.integers(2**32, size=len(scenes))
        pictures = [
            render(scene, *size, np.random.default_rng(seed))
            for scene, size, seed in zip(scenes, sizes, seeds, strict=True)
        ]
        inputs = self.image_processor(pictures, return_tensors="pt")
        grids = inputs["image_grid_thw"].tolist()
        masks = [
            silhouettes(scene, *size, np.random.default_rng(seed), rows // 2, columns // 2)
            for scene, size, seed, (_, rows, columns) in zip(scenes, sizes, seeds, grids, strict=True)
        ]
        return {
            "pixel_values": inputs["pixel_values"],
            "image_grid_thw": inputs["image_grid_thw"],
            "mask": torch.from_numpy(np.concatenate(masks)),
            **joined_cell_labels(scenes, sizes, inputs["image_grid_thw"]),
        }


class VisionWarmUp(nn.Module):
    """Trains the vision tower and projector of a model with the heads of `dense` and a head for silhouettes."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        hidden_size = model.config.llm_config.hidden_size
        self.dense = CellHeads(hidden_size)
        self.heads = nn.ModuleDict({"mask": nn.Linear(hidden_size, MASK**2)})

    def forward(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, mask: torch.Tensor, **labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Scalars: `loss`, `mask_loss`, and per aspect the share of tokens with the right class.

        Args:
            pixel_values, image_grid_thw: from the image processor.
            mask: from `silhouettes`.
            labels: from `joined_cell_labels`.
        """
        features = torch.cat(self.model.get_image_features(pixel_values, image_grid_thw).pooler_output)
        mask_loss = F.binary_cross_entropy_with_logits(self.heads["mask"](features * self.dense.scale), mask)
        loss, right = self.dense(features, labels)
        return {"loss": loss + MASK_WEIGHT * mask_loss, "mask_loss": mask_loss.detach(), **right}


class HeadsWarmUp(nn.Module):
    """Trains the heads of `dense` alone, on a frozen model: with new heads the encoders would get worse at first.

    `forward` takes the same batches as `StepwiseObjective`.
    """

    def __init__(self, model: nn.Module, dense: nn.Module):
        super().__init__()
        self.model, self.dense = model.requires_grad_(False), dense

    def forward(self, **batches: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        losses = {}
        for name, batch in batches.items():
            batch = {key: value for key, value in batch.items() if key not in ("labels", "attention_mask")}
            labels = batch.pop("dense")
            if labels:
                inputs_embeds, token_types = self.model.embed(**batch)
                losses[name] = self.dense(inputs_embeds, None, token_types, labels)
        return {"loss": sum(losses.values()), **{name: loss.detach() for name, loss in losses.items()}}


class SpeechWarmUpData(SeededBatches):
    """Item `step` is a batch of recordings with the token ids of their words."""

    def __init__(
        self, pool: SpeechPool, processor, steps: int, batch_size: int, seed: int, whisper: bool, noisy: float = 0.3
    ):
        super().__init__(steps, batch_size, seed)
        self.pool, self.processor, self.whisper, self.noisy = pool, processor, whisper, noisy

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = self.rng(step)
        spoken = [self.pool[index] for index in self.pool.alike(rng, self.batch_size)]
        # Mostly clean, sometimes down to 8 dB, which is below the noise that the checkpoint is measured with.
        snrs = [rng.uniform(8.0, 25.0) if rng.random() < self.noisy else None for _ in spoken]
        waves = [
            torch.from_numpy(augment(utterance.waveform, rng, snr))
            for utterance, snr in zip(spoken, snrs, strict=True)
        ]
        extractor = self.processor.feature_extractor
        features = extractor([(wave[None], SAMPLE_RATE) for wave in waves], use_whisper_encoder=self.whisper)
        return {
            "audio_feats": features["audio_feats"],
            "audio_feats_lengths": features["audio_feats_lengths"],
            **spelling(self.processor.tokenizer, [item.text for item in spoken]),
        }


class SpeechWarmUp(nn.Module):
    """Trains one audio encoder and its projector with a CTC head."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        text_config = model.config.llm_config
        self.dense = SpellingHead(text_config.hidden_size, text_config.vocab_size)

    def forward(
        self, audio_feats: torch.Tensor, audio_feats_lengths: torch.Tensor, **labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Scalars: `loss`, and the share `exact` of utterances that are spelled without an error."""
        segments = self.model.get_audio_features(audio_feats, audio_feats_lengths).pooler_output
        lengths = torch.tensor([len(segment) for segment in segments], device=audio_feats.device)
        loss, exact = self.dense(torch.cat(segments), lengths, labels)
        return {"loss": loss, "exact": exact}
