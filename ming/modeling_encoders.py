"""Vision tower, SANM and Whisper encoders, and the projectors into the decoder.

The layers of vision and Whisper are those of transformers; the classes here give them the released module names,
variable lengths, and batches without leakage between segments. Those of SANM are here: the library has had them since
5.17, with queries, keys and values apart, and serving engines use releases before it.

Shape letters: N images or segments, P patches, T frames, D encoder width, H decoder hidden size.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
    eager_attention_forward,
)
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoderLayer
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.output_capturing import capture_outputs

from .compat import takes_experts_implementation
from .configuration_bailingmm import BailingMMAudioConfig, BailingMMVisionConfig, BailingMMWhisperConfig

register_checkpoint_conversion_mapping(
    "BailingMMWhisperEncoder",
    [
        WeightRenaming(r"\.attn\.query", r"\.self_attn\.q_proj"),
        WeightRenaming(r"\.attn\.key", r"\.self_attn\.k_proj"),
        WeightRenaming(r"\.attn\.value", r"\.self_attn\.v_proj"),
        WeightRenaming(r"\.attn\.out", r"\.self_attn\.out_proj"),
        WeightRenaming(r"\.attn_ln", r"\.self_attn_layer_norm"),
        WeightRenaming(r"\.mlp\.0", r"\.fc1"),
        WeightRenaming(r"\.mlp\.2", r"\.fc2"),
        WeightRenaming(r"\.mlp_ln", r"\.final_layer_norm"),
    ],
    overwrite=True,
)


def sinusoids(positions: torch.Tensor, width: int) -> torch.Tensor:
    """positions [T] -> [T, width] float32: sines in the first half, cosines in the second, wavelengths 2 pi to 2e4 pi.

    Both audio encoders use this table (Whisper counts from 0, SANM from 1). The function of the same name in the
    library's Whisper follows torch's default dtype; while a model is built in bfloat16 its table is wrong by up to 2.
    """
    increment = math.log(10000) / (width // 2 - 1)
    frequencies = torch.exp(-increment * torch.arange(width // 2, device=positions.device, dtype=torch.float32))
    angles = positions[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def length_mask(lengths: torch.Tensor, max_length: int) -> torch.Tensor:
    """lengths [N] -> bool [N, max_length], True for frames that are not padding."""
    return torch.arange(max_length, device=lengths.device) < lengths[:, None]


def open_to_gradients(encoder: PreTrainedModel, hidden_states: torch.Tensor) -> torch.Tensor:
    """The input of an encoder's layers, so that checkpointed layers are trained.

    Reentrant checkpointing gives gradients to those layers only whose input needs one, and it needs none where nothing
    before the layers is trained: always in SANM, and with adapters in the other encoders.
    """
    if not encoder.training or hidden_states.requires_grad:
        return hidden_states
    is_checkpointed = any(getattr(layer, "gradient_checkpointing", False) for layer in encoder.modules())
    if is_checkpointed and any(weight.requires_grad for weight in encoder.parameters()):
        return hidden_states.detach().requires_grad_()
    return hidden_states


class BailingMMVisionAttention(Qwen2_5_VLVisionAttention):
    """Library attention that runs all windows of equal length as one batch instead of one call per window."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        max_seqlen: int | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """hidden_states [P, D], cu_seqlens [windows + 1] -> [P, D]."""
        if is_flash_attention_requested(self.config):
            return super().forward(hidden_states, cu_seqlens, position_embeddings, max_seqlen, **kwargs)
        assert position_embeddings is not None, "the vision tower computes them once for all of its layers"
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        qkv = self.qkv(hidden_states).view(hidden_states.shape[0], 3, self.num_heads, -1)
        query, key, value = qkv.unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)

        starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
        output = torch.empty_like(query)
        for length in lengths.unique().tolist():
            offsets = torch.arange(length, device=starts.device)
            patches = (starts[lengths == length, None] + offsets).long()  # [windows, length]
            attended, _ = attention_interface(
                self,
                *(states[patches].transpose(1, 2) for states in (query, key, value)),
                attention_mask=None,
                scaling=self.scaling,
                dropout=0.0,
                is_causal=False,
                **kwargs,
            )
            output = output.index_put((patches,), attended.to(output.dtype))  # autocast attends in its own precision
        return self.proj(output.reshape(hidden_states.shape[0], -1))


@takes_experts_implementation
class BailingMMVisionTransformer(Qwen2_5_VisionTransformerPretrainedModel):
    """Qwen2.5-VL's vision tower: pixel patches [P, 3 * 2 * 14 * 14], grid_thw [N, 3] -> `pooler_output` [P / 4, D]."""

    config: BailingMMVisionConfig
    config_class = BailingMMVisionConfig

    def __init__(self, config: BailingMMVisionConfig):
        super().__init__(config)
        for block in self.blocks:
            block.attn = BailingMMVisionAttention(config)
        self.post_init()

    def forward(self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """hidden_states [P, 1176], grid_thw [N, 3] -> `last_hidden_state` [P, D], `pooler_output` [P / 4, D]."""
        return super().forward(open_to_gradients(self, hidden_states), grid_thw, **kwargs)


@takes_experts_implementation
class BailingMMAudioPreTrainedModel(PreTrainedModel):
    """What the two audio encoders have in common for the library."""

    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["BailingMMSanmLayer", "WhisperEncoderLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True


class BailingMMSanmAttention(nn.Module):
    """Self-attention with a memory block: a convolution over time of the values before they are split into heads."""

    def __init__(self, config: BailingMMAudioConfig, input_size: int):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = 1
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.linear_q_k_v = nn.Linear(input_size, 3 * config.hidden_size)
        self.linear_out = nn.Linear(config.hidden_size, config.hidden_size)
        self.fsmn_block = nn.Conv1d(
            config.hidden_size,
            config.hidden_size,
            config.fsmn_kernel_size,
            padding="same",
            groups=config.hidden_size,
            bias=False,
        )

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, frame_mask: torch.Tensor, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden_states [N, T, D], frame_mask bool [N, T] -> ([N, T, D], attention weights if there are any)."""
        input_shape = hidden_states.shape[:-1]
        projected = self.linear_q_k_v(hidden_states)
        heads = projected.view(*input_shape, 3, -1, self.head_dim)
        query, key, value = (states.transpose(1, 2) for states in heads.unbind(2))
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        values = projected.chunk(3, dim=-1)[2] * frame_mask[..., None]
        memory = values + self.fsmn_block(values.transpose(1, 2)).transpose(1, 2)
        memory = F.dropout(memory, self.config.hidden_dropout, self.training)
        return self.linear_out(attended.reshape(*input_shape, -1)) + memory, weights


class BailingMMSanmFeedForward(nn.Module):
    def __init__(self, config: BailingMMAudioConfig):
        super().__init__()
        self.w_1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.w_2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.w_2(self.dropout(F.relu(self.w_1(hidden_states))))


class BailingMMSanmLayer(GradientCheckpointingLayer):
    """One layer; `input_size` is the width of its input, without a residual where that is not the encoder's."""

    def __init__(self, config: BailingMMAudioConfig, input_size: int):
        super().__init__()
        self.has_residual = input_size == config.hidden_size
        self.self_attn = BailingMMSanmAttention(config, input_size)
        self.feed_forward = BailingMMSanmFeedForward(config)
        self.norm1 = nn.LayerNorm(input_size, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, frame_mask: torch.Tensor, **kwargs
    ) -> torch.Tensor:
        """hidden_states [N, T, input size], frame_mask bool [N, T] -> [N, T, D]."""
        attended = self.dropout(self.self_attn(self.norm1(hidden_states), attention_mask, frame_mask, **kwargs)[0])
        hidden_states = hidden_states + attended if self.has_residual else attended
        return hidden_states + self.dropout(self.feed_forward(self.norm2(hidden_states)))


class BailingMMSanmEncoder(BailingMMAudioPreTrainedModel):
    """SenseVoice's encoder: self-attention with a memory block (SAN-M, arXiv 2006.01713).

    The first layer widens 560 to the encoder width and has no attention residual.
    """

    config: BailingMMAudioConfig
    config_class = BailingMMAudioConfig
    _can_record_outputs = {"hidden_states": BailingMMSanmLayer, "attentions": BailingMMSanmAttention}

    def __init__(self, config: BailingMMAudioConfig):
        super().__init__(config)
        self.encoders0 = nn.ModuleList([BailingMMSanmLayer(config, config.input_size)])
        self.encoders = nn.ModuleList(
            [BailingMMSanmLayer(config, config.hidden_size) for _ in range(config.num_hidden_layers - 1)]
        )
        self.after_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @capture_outputs
    def forward(self, input_features: torch.Tensor, lengths: torch.Tensor, **kwargs) -> BaseModelOutput:
        """input_features [N, T, 560], lengths [N] -> `last_hidden_state` [N, T, D], undefined past a length."""
        positions = sinusoids(
            torch.arange(1, input_features.shape[1] + 1, device=lengths.device), self.config.input_size
        )
        hidden_states = input_features * self.config.hidden_size**0.5 + positions.to(input_features.dtype)
        frame_mask = length_mask(lengths, input_features.shape[1])
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=frame_mask
        )
        hidden_states = open_to_gradients(self, hidden_states)
        for layer in (*self.encoders0, *self.encoders):
            hidden_states = layer(hidden_states, attention_mask, frame_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.after_norm(hidden_states))


class BailingMMWhisperEncoder(BailingMMAudioPreTrainedModel):
    """Whisper's encoder (arXiv 2212.04356) for any length up to its position table, at 20 ms per frame."""

    config: BailingMMWhisperConfig
    config_class = BailingMMWhisperConfig
    _can_record_outputs = {"hidden_states": WhisperEncoderLayer, "attentions": WhisperAttention}

    def __init__(self, config: BailingMMWhisperConfig):
        super().__init__(config)
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, padding=1)
        # A persistent buffer, because released checkpoints contain it.
        self.positional_embedding = nn.Buffer(
            sinusoids(torch.arange(config.max_source_positions), config.d_model), persistent=True
        )
        self.blocks = nn.ModuleList([WhisperEncoderLayer(config) for _ in range(config.encoder_layers)])
        self.ln_post = nn.LayerNorm(config.d_model)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self:
            table = sinusoids(torch.arange(self.config.max_source_positions), self.config.d_model)
            init.copy_(self.positional_embedding, table)

    @staticmethod
    def output_lengths(lengths: torch.Tensor) -> torch.Tensor:
        """Mel frames -> encoder frames (the second convolution has stride 2)."""
        return (lengths - 1) // 2 + 1

    @capture_outputs
    def forward(self, input_features: torch.Tensor, lengths: torch.Tensor, **kwargs) -> BaseModelOutput:
        """input_features [N, T, mels], lengths [N] -> `last_hidden_state` [N, (T - 1) // 2 + 1, D].

        With `config.mask_padding` frames past a length are zero, and no other frame depends on them.

        Raises:
            ValueError: a segment longer than the position table.
        """
        hidden_states = F.gelu(self.conv1(input_features.transpose(1, 2)))
        if self.config.mask_padding:
            # Beyond the end of a segment alone, the second convolution reads zero padding.
            hidden_states = hidden_states * length_mask(lengths, hidden_states.shape[-1])[:, None]
        hidden_states = F.gelu(self.conv2(hidden_states)).transpose(1, 2)

        num_frames = hidden_states.shape[1]
        if num_frames > self.config.max_source_positions:
            raise ValueError(
                f"audio of {num_frames * 0.02:.1f} s exceeds the Whisper encoder's "
                f"{self.config.max_source_positions * 0.02:.0f} s; split it"
            )
        hidden_states = hidden_states + self.positional_embedding[:num_frames].to(hidden_states.dtype)
        attention_mask = frame_mask = None
        if self.config.mask_padding:
            frame_mask = length_mask(self.output_lengths(lengths), num_frames)
            attention_mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=hidden_states, attention_mask=frame_mask
            )
        hidden_states = open_to_gradients(self, hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states, attention_mask, **kwargs)
        hidden_states = self.ln_post(hidden_states)
        if frame_mask is not None:
            hidden_states = hidden_states * frame_mask[..., None]
        return BaseModelOutput(last_hidden_state=hidden_states)


class Transpose(nn.Module):
    """Swap the last two dimensions; keeps the released positions inside the audio projectors."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.transpose(-1, -2).contiguous()  # what vLLM's linear layers on a CPU want


def vision_projector(in_features: int, hidden_size: int, depth: int) -> nn.Sequential:
    """[..., in_features] -> [..., hidden_size]: `depth` linear layers with GELU between."""
    layers: list[nn.Module] = [nn.Linear(in_features, hidden_size)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(hidden_size, hidden_size)]
    return nn.Sequential(*layers)


def raise_if_no_audio_batch(audio_feats: torch.Tensor, audio_feats_lengths: torch.Tensor) -> None:
    """Refuse tensors that are not floats [B, frames, D] and counts of frames [B, N], at least one of them above 0."""
    given = (audio_feats, audio_feats_lengths)
    shapes = [tuple(tensor.shape) for tensor in given if tensor is not None]
    if [len(shape) for shape in shapes] != [3, 2] or shapes[0][0] != shapes[1][0]:
        found = " and ".join("None" if tensor is None else str(tuple(tensor.shape)) for tensor in given)
        raise ValueError(f"audio_feats must be [B, frames, width] and audio_feats_lengths [B, N], got {found}")
    if not audio_feats.is_floating_point():
        raise ValueError(f"audio_feats must be floats, got {audio_feats.dtype}")
    is_count = not audio_feats_lengths.is_floating_point() and audio_feats_lengths.dtype != torch.bool
    if not is_count or (audio_feats_lengths < 0).any():
        raise ValueError(f"audio_feats_lengths must be counts of frames, got {audio_feats_lengths.tolist()}")
    if not audio_feats_lengths.any():
        raise ValueError("audio_feats was given but every length in audio_feats_lengths is 0")


def split_audio_segments(
    audio_feats: torch.Tensor, audio_feats_lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, L1 + ... + LN, D] and lengths [B, N] -> segments [S, max length, D] padded with 0, lengths [S].

    The processor pads rows at the end. The library's pipelines treat every input as a prompt and pad it at the start:
    rows with zeros at the start and none at the end.

    Raises:
        ValueError: lengths that exceed the frames; for the others see `raise_if_no_audio_batch`.
    """
    segments = []
    for row, lengths in zip(audio_feats, audio_feats_lengths.tolist(), strict=True):
        padding = row.shape[0] - sum(lengths)
        if padding < 0:
            raise ValueError(f"audio_feats_lengths {lengths} add up to more than the {row.shape[0]} frames given")
        if padding and not row[:padding].any() and row[-padding:].any():
            row = row.roll(-padding, dims=0)
        segments += [segment for segment in row.split([*lengths, padding])[:-1] if len(segment)]
    lengths = torch.tensor([len(segment) for segment in segments], device=audio_feats.device)
    return nn.utils.rnn.pad_sequence(segments, batch_first=True), lengths


def audio_projector(in_features: int, hidden_size: int, depth: int, kernel_size: int, stride: int) -> nn.Sequential:
    """[N, in_features, T] -> [N, T', hidden_size], see `projected_lengths`.

    The released indexes in the state dict are 0 (convolution) and 3 (linear).
    """
    layers: list[nn.Module] = [
        nn.Conv1d(in_features, hidden_size, kernel_size, stride=stride, padding=kernel_size // 2),
        Transpose(),
    ]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(hidden_size, hidden_size)]
    return nn.Sequential(*layers)


def projected_lengths(lengths: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """Frames into an audio projector -> tokens out of it, for lengths [N] of segments."""
    return (lengths - kernel_size + 2 * (kernel_size // 2)) // stride + 1


__all__ = [
    "BailingMMSanmEncoder",
    "BailingMMVisionTransformer",
    "BailingMMWhisperEncoder",
    "audio_projector",
    "projected_lengths",
    "vision_projector",
]
