"""Warm-up of Ming-Tiny's encoders by dense labels, before they meet the decoder.

A decoder learns little from an encoder that says nothing yet: each encoder, with its projector, first learns to say
per token what is there (`dense`), and to draw the silhouette of what it sees, which ends the plateau on shape kinds.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import Qwen2VLImageProcessorPil

from .dense import CellHeads, SpellingHead, joined_cell_labels, spelling
from .drawing import render
from .scenes import Scene, sample_canvas, sample_scene
from .speech import SpeechPool, augment

MASK_WEIGHT = 4.0
MASK = 7  # silhouette values a side of one token


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
    """Vision tower and projector of a model under the heads of `dense`, and one that draws silhouettes."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        hidden_size = model.config.llm_config.hidden_size
        self.dense = CellHeads(hidden_size)
        self.heads = nn.ModuleDict({"mask": nn.Linear(hidden_size, MASK**2)})

    def forward(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, mask: torch.Tensor, **labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Scalar `loss`, and per aspect the share of tokens named right."""
        features = self.model.get_image_features(pixel_values, image_grid_thw)
        mask_loss = F.binary_cross_entropy_with_logits(self.heads["mask"](features * self.dense.scale), mask)
        loss, right = self.dense(features, labels)
        return {"loss": loss + MASK_WEIGHT * mask_loss, "mask_loss": mask_loss.detach(), **right}


class HeadsWarmUp(nn.Module):
    """The heads of `dense` alone, on what the encoders of a trained model say: fresh heads would spoil them at first.

    `forward` takes what `StepwiseObjective` does; the model beside it only looks and listens.
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
        spoken = [self.pool[index] for index in self.pool.alike(rng, self.batch_size)]
        # Mostly clean, at times down to 8 dB: below what the checkpoint is measured at.
        snrs = [rng.uniform(8.0, 25.0) if rng.random() < self.noisy else None for _ in spoken]
        waves = [
            torch.from_numpy(augment(utterance.waveform, rng, snr))
            for utterance, snr in zip(spoken, snrs, strict=True)
        ]
        extractor = self.processor.feature_extractor
        features = extractor([(wave[None], 16000) for wave in waves], use_whisper_encoder=self.whisper)
        return {
            "audio_feats": features["audio_feats"],
            "audio_feats_lengths": features["audio_feats_lengths"],
            **spelling(self.processor.tokenizer, [item.text for item in spoken]),
        }


class SpeechWarmUp(nn.Module):
    """One audio encoder and its projector under a CTC head."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        text_config = model.config.llm_config
        self.dense = SpellingHead(text_config.hidden_size, text_config.vocab_size)

    def forward(
        self, audio_feats: torch.Tensor, audio_feats_lengths: torch.Tensor, **labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Scalar `loss` and the share of utterances spelled without an error."""
        features, lengths = self.model.get_audio_features(audio_feats, audio_feats_lengths)
        loss, exact = self.dense(features, lengths, labels)
        return {"loss": loss, "exact": exact}
