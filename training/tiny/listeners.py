"""The two networks that encode a voice prompt: speech tokenizer and speaker encoder, small enough for a laptop.

Both are exported to ONNX files with the inputs and outputs of the released `speech_tokenizer_v1.onnx` and
`campplus.onnx`, so `ming.voices.VoiceEncoder` runs either. `stage_listeners` trains them.

Shape letters: B batch, T feature frames of 10 ms, N codes of 20 ms, K digits of a code, D width.
"""

import math
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ming.files import replacing
from ming.modeling_encoders import length_mask
from ming.voices import EMBEDDING_SIZE, SPEAKER_BANDS, TOKENIZER_BANDS

LEVELS = (8, 6, 5)  # per digit of a code, 240 codes in all; Mentzer et al. recommend this split for 8 bits
TOKENIZER_WIDTH = 128
SPEAKER_WIDTH = 96
STEM_KERNEL = 5
BLOCK_KERNEL = 7
FRAMES_PER_CODE = 2  # of 10 ms; also the stride of both stems
MAX_FRAMES = 6000  # limit of an exported file; the front end refuses recordings of more than 3,000
MIN_VARIANCE = 1e-5  # keeps the gradient of the square root finite


def code_lengths(lengths: torch.Tensor) -> torch.Tensor:
    """Frames int64 [B] -> codes int64 [B]; an odd frame at the end counts as two."""
    return (lengths + FRAMES_PER_CODE - 1) // FRAMES_PER_CODE


class ConvBlock(nn.Module):
    """Residual block over time, as in ConvNeXt (Liu et al. 2022): depthwise convolution, then a two-layer MLP."""

    def __init__(self, width: int, dilation: int = 1, expansion: int = 2):
        super().__init__()
        padding = dilation * (BLOCK_KERNEL // 2)
        self.depthwise = nn.Conv1d(width, width, BLOCK_KERNEL, padding=padding, dilation=dilation, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, expansion * width)
        self.contract = nn.Linear(expansion * width, width)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """[B, N, D] -> [B, N, D]; frames outside mask [B, N, 1] are read as zeros, like those beyond the ends."""
        visible = hidden if mask is None else hidden * mask
        mixed = self.depthwise(visible.transpose(1, 2)).transpose(1, 2)
        return hidden + self.contract(F.gelu(self.expand(self.norm(mixed))))


class FiniteScalarQuantizer(nn.Module):
    """Finite scalar quantisation (Mentzer et al., arXiv 2309.15505): each digit is bounded, then rounded.

    A digit k of L levels has the value 2k / (L - 1) - 1, so even and odd L both span -1..1. There is no codebook:
    nothing is learned here, and nothing can collapse.
    """

    def __init__(self, levels: tuple[int, ...] = LEVELS):
        super().__init__()
        steps = torch.tensor(levels) - 1
        places = torch.tensor([math.prod(levels[:digit]) for digit in range(len(levels))])
        self.register_buffer("steps", steps.float(), persistent=False)
        self.register_buffer("places", places, persistent=False)
        self.codebook_size = math.prod(levels)

    def positions(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [..., K] -> positions [..., K] between 0 and L - 1, not yet rounded."""
        return (latents.tanh() + 1) / 2 * self.steps

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [..., K] -> quantised values [..., K] in -1..1; the gradient ignores the rounding."""
        positions = self.positions(latents)
        rounded = positions + (positions.round() - positions).detach()
        return rounded * 2 / self.steps - 1

    def codes(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [..., K] -> codes int64 [...], 0 <= code < codebook_size."""
        return (self.positions(latents).round().long() * self.places).sum(dim=-1)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [...] -> their values [..., K], the ones that `forward` returns."""
        digits = codes[..., None] // self.places % (self.steps.long() + 1)
        return digits * 2 / self.steps - 1


class SpeechTokenizer(nn.Module):
    """Log-mel -> 50 codes a second, in the manner of CosyVoice's supervised tokenizer (Du et al., arXiv 2407.05407).

    There a quantiser cuts a speech recogniser in two. Here the encoder of the recogniser is convolutional, so a code
    depends on 0.4 s around it and a word has the same codes in any sentence.
    """

    def __init__(self, width: int = TOKENIZER_WIDTH, blocks: int = 5, levels: tuple[int, ...] = LEVELS):
        super().__init__()
        self.stem = nn.Conv1d(TOKENIZER_BANDS, width, STEM_KERNEL, FRAMES_PER_CODE, STEM_KERNEL // 2)
        self.blocks = nn.ModuleList(ConvBlock(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.bottleneck = nn.Linear(width, len(levels))
        self.quantizer = FiniteScalarQuantizer(levels)

    def latents(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Whisper's log-mel [B, 128, T], frames [B] -> [B, N, K] before quantisation, N = ceil(T / 2)."""
        features = features * length_mask(lengths, features.shape[2])[:, None]
        hidden = self.stem(features).transpose(1, 2)
        mask = length_mask(code_lengths(lengths), hidden.shape[1])[..., None]
        for block in self.blocks:
            hidden = block(hidden, mask)
        return self.bottleneck(self.norm(hidden))

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Whisper's log-mel [B, 128, T], frames [B] -> codes int64 [B, N], N = ceil(T / 2); zeros beyond a length."""
        codes = self.quantizer.codes(self.latents(features, lengths))
        return codes * length_mask(code_lengths(lengths), codes.shape[1])


class SpeakerEncoder(nn.Module):
    """Filter banks -> speaker embedding: an x-vector network (Snyder et al. 2018) of `ConvBlock`s."""

    def __init__(self, width: int = SPEAKER_WIDTH, dilations: tuple[int, ...] = (1, 2, 3, 4)):
        super().__init__()
        self.stem = nn.Conv1d(SPEAKER_BANDS, width, STEM_KERNEL, FRAMES_PER_CODE, STEM_KERNEL // 2)
        self.blocks = nn.ModuleList(ConvBlock(width, dilation) for dilation in dilations)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.project = nn.Linear(4 * width, EMBEDDING_SIZE)
        # At first all recordings have similar embeddings; only their differences should set the direction.
        self.centre = nn.BatchNorm1d(EMBEDDING_SIZE, affine=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Filter banks minus their mean over time [B, T, 80] -> embedding [B, 192] of length sqrt(192).

        All T frames count, so the rows of a batch must have equal length.
        """
        hidden = self.stem(features.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            hidden = block(hidden)
        hidden = F.gelu(self.widen(self.norm(hidden)))
        mean = hidden.mean(dim=1)
        deviation = (hidden - mean[:, None]).square().mean(dim=1).add(MIN_VARIANCE).sqrt()
        embedding = self.centre(self.project(torch.cat([mean, deviation], dim=1)))
        # About the length of the released embeddings, which reach the talker unscaled.
        return F.normalize(embedding, dim=1) * math.sqrt(EMBEDDING_SIZE)


def _export(
    module: nn.Module, inputs: dict[str, torch.Tensor], output: str, time: int, path: str | os.PathLike
) -> None:
    """Write one ONNX file with its weights; dimension `time` of the first input is free."""
    shapes: dict[str, Any] = dict.fromkeys(inputs)
    shapes[next(iter(inputs))] = {time: torch.export.Dim("frames", min=2, max=MAX_FRAMES)}
    was_training = module.training
    program = torch.onnx.export(
        module.eval(),
        kwargs=inputs,
        input_names=list(inputs),
        output_names=[output],
        dynamic_shapes=shapes,
        verbose=False,
    )
    module.train(was_training)
    model = program.model_proto
    # The exporter records for every node the source file on this machine.
    for item in (model, model.graph, *model.graph.node, *model.graph.value_info):
        item.ClearField("metadata_props")
    with replacing(path) as partial:
        partial.write_bytes(model.SerializeToString())


def export_speech_tokenizer(module: SpeechTokenizer, path: str | os.PathLike) -> None:
    """ONNX: features float32 [1, 128, T] and lengths int32 [1], which is T -> codes int64 [1, ceil(T / 2)]."""
    frames = 101
    inputs = {
        "features": torch.zeros(1, TOKENIZER_BANDS, frames),
        "lengths": torch.tensor([frames], dtype=torch.int32),
    }
    _export(module, inputs, "codes", 2, path)


def export_speaker_encoder(module: SpeakerEncoder, path: str | os.PathLike) -> None:
    """ONNX: features float32 [1, T, 80] -> embedding float32 [1, 192]."""
    _export(module, {"features": torch.zeros(1, 101, SPEAKER_BANDS)}, "embedding", 1, path)
