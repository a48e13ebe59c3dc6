"""Speech codes to mel: conformer encoder, length regulator, and conditional flow matching (CosyVoice, arXiv
2407.05407; flow matching arXiv 2210.02747), with the released module names.

The encoder's attention is transformers' (relative positions of Transformer-XL, arXiv 1901.02860); the velocity network
is in `modeling_estimator`, which also says how padding is treated. A mask of None means that nothing is padded.

Shape letters: B batch, L tokens, T mel frames, D encoder width, M mel channels.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.fastspeech2_conformer.modeling_fastspeech2_conformer import FastSpeech2ConformerAttention

from .compiled_parts import Velocity
from .configuration_audio_detokenizer import AudioDetokenizerConfig
from .modeling_estimator import FrameGroupNorm, VelocityEstimator, masked


def length_mask(lengths: torch.Tensor, max_length: int) -> torch.Tensor:
    """lengths [B] -> bool [B, max_length], True where something is."""
    return torch.arange(max_length, device=lengths.device) < lengths[:, None]


def relative_positions(length: int, width: int, device: torch.device) -> torch.Tensor:
    """Sinusoids [1, 2 * length - 1, width] of the distances length - 1 down to -(length - 1); sines at even channels.

    The library's table holds 5,000 positions as a buffer; this one is made for the length at hand.
    """
    distances = torch.arange(length - 1, -length, -1, device=device, dtype=torch.float32)
    frequencies = torch.exp(torch.arange(0, width, 2, device=device).float() * -(math.log(10000.0) / width))
    angles = distances[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]


def nearest_tokens(num_tokens: torch.Tensor, num_frames: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Token of each frame by nearest interpolation: num_tokens, num_frames [B], frames [T] -> int64 [B, T].

    The scale is float32 as in `F.interpolate`; exact arithmetic gives another token in rare cases.
    """
    scale = num_tokens.float() / num_frames.float()
    tokens = (frames.float() * scale[:, None]).long()
    return torch.minimum(tokens, num_tokens[:, None].long() - 1)


def cosine_timesteps(num_steps: int) -> list[float]:
    """Times 0 = t_0 < ... < t_num_steps = 1 of the Euler steps, denser at the start: 1 - cos(pi / 2 * k / steps)."""
    return (1 - torch.cos(torch.linspace(0, 1, num_steps + 1) * 0.5 * torch.pi)).tolist()


class FeedForward(nn.Module):
    """Two linear layers with SiLU in between."""

    def __init__(self, width: int, inner_width: int, dropout: float):
        super().__init__()
        self.w_1 = nn.Linear(width, inner_width)
        self.w_2 = nn.Linear(inner_width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w_2(self.dropout(F.silu(self.w_1(x))))


class EncoderLayer(nn.Module):
    """Pre-norm attention with relative positions, then a feed-forward layer; no convolution module."""

    def __init__(self, width: int, num_heads: int, inner_width: int, dropout: float, attention_dropout: float):
        super().__init__()
        self.norm_mha = nn.LayerNorm(width)
        self.self_attn = FastSpeech2ConformerAttention(
            SimpleNamespace(hidden_size=width),
            {"num_attention_heads": num_heads, "attention_dropout_rate": attention_dropout},
        )
        self.norm_ff = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, inner_width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor) -> torch.Tensor:
        """x [B, L, D], mask [B, 1, L] True for tokens, positions [1, 2L - 1, D] -> [B, L, D]."""
        x = x + self.dropout(self.self_attn(self.norm_mha(x), mask, positions)[0])
        return x + self.dropout(self.feed_forward(self.norm_ff(x)))


class TokenEncoder(nn.Module):
    """Conformer encoder over embedded codes, full context, one vector per code."""

    def __init__(self, settings: dict):
        super().__init__()
        self.width = settings["output_size"]
        self.embed = nn.Module()
        self.embed.out = nn.Sequential(
            nn.Linear(settings["input_size"], self.width),
            nn.LayerNorm(self.width),
            nn.Dropout(settings["dropout_rate"]),
        )
        self.position_dropout = nn.Dropout(settings["positional_dropout_rate"])
        self.encoders = nn.ModuleList(
            EncoderLayer(
                self.width,
                settings["attention_heads"],
                settings["linear_units"],
                settings["dropout_rate"],
                settings["attention_dropout_rate"],
            )
            for _ in range(settings["num_blocks"])
        )
        self.after_norm = nn.LayerNorm(self.width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x [B, L, input_size], mask bool [B, L] or None -> [B, L, D]; padded positions are undefined."""
        positions = relative_positions(x.shape[1], self.width, x.device).to(x.dtype)
        positions = self.position_dropout(positions)
        x = self.position_dropout(self.embed.out(x) * math.sqrt(self.width))
        for layer in self.encoders:
            x = layer(x, None if mask is None else mask[:, None], positions)
        return self.after_norm(x)


class LengthRegulator(nn.Module):
    """Encoded codes to the frame rate of the mel: nearest token per frame, then convolutions over frames.

    Only the number of the released sampling ratios matters: there is one convolution block for each.
    """

    def __init__(self, channels: int, num_blocks: int, mask_padding: bool):
        super().__init__()
        self.model = nn.ModuleList()
        for _ in range(num_blocks):
            convolution = nn.Conv1d(channels, channels, 3, padding=1)
            self.model.extend([convolution, FrameGroupNorm(1, channels, mask_padding), nn.Mish()])
        self.model.append(nn.Conv1d(channels, channels, 1))

    def forward(self, x: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x [B, L, M], tokens int64 [B, T] (the token of each frame), mask [B, 1, T] -> [B, M, T], zero where masked.

        With `mask_padding=False`, as released, the convolutions see the padded frames and only the result is masked.
        """
        x = x.gather(1, tokens[:, :, None].expand(-1, -1, x.shape[2])).transpose(1, 2)
        for layer in self.model:
            if isinstance(layer, FrameGroupNorm):
                x = layer(x, mask)
            else:
                x = layer(masked(x, mask) if self.model[1].mask_padding else x)
        return masked(x, mask)


class ConditionalFlowMatching(nn.Module):
    """Mel by integrating a learned velocity from noise (t = 0) to data (t = 1)."""

    def __init__(self, settings: dict, estimator: dict, mask_padding: bool):
        super().__init__()
        cfm = settings["cfm_params"]
        self.sigma_min = cfm["sigma_min"]
        self.condition_dropout = cfm["training_cfg_rate"]
        self.guidance_rate = cfm["inference_cfg_rate"]
        self.estimator = VelocityEstimator(**estimator, mask_padding=mask_padding)

    def forward(
        self,
        noise: torch.Tensor,
        mu: torch.Tensor,
        speaker: torch.Tensor,
        mask: torch.Tensor | None,
        num_steps: int,
        cond: torch.Tensor | None = None,
        estimator: Velocity | None = None,
    ) -> torch.Tensor:
        """Euler integration. noise, mu, cond [B, M, T], speaker [B, M], mask [B, 1, T] -> mel [B, M, T] float32.

        The state stays float32; the estimator computes in its own dtype. Guidance (arXiv 2207.12598) has the form
        v + rate * (v - v_free), where v_free is the velocity with conditions of zero; one call computes both, stacked
        as rows. `estimator` takes the place of the own one.
        """
        estimator = estimator or self.estimator
        cond = torch.zeros_like(mu) if cond is None else cond
        mu, speaker, cond = (torch.cat([x, torch.zeros_like(x)]) for x in (mu, speaker, cond))
        mask = None if mask is None else mask.repeat(2, 1, 1)
        x, schedule = noise.float(), cosine_timesteps(num_steps)
        # As released, a step starts at the time reached so far and not at the entry of the schedule.
        t, step = schedule[0], schedule[1] - schedule[0]
        for k in range(1, num_steps + 1):
            timesteps = torch.full((mu.shape[0],), t, device=mu.device)
            velocity = estimator(x.to(mu.dtype).repeat(2, 1, 1), mask, mu, timesteps, speaker, cond).float()
            guided, free = velocity.chunk(2)
            x = x + step * ((1 + self.guidance_rate) * guided - self.guidance_rate * free)
            t += step
            step = schedule[min(k + 1, num_steps)] - t
        return x


class Flow(nn.Module):
    """Speech codes and a speaker embedding to mel."""

    def __init__(self, config: AudioDetokenizerConfig):
        super().__init__()
        settings = config.flow
        mel = settings["output_size"]
        self.config = config
        self.input_embedding = nn.Embedding(settings["vocab_size"], settings["input_size"])
        self.spk_embed_affine_layer = nn.Linear(settings["spk_embed_dim"], mel)
        self.encoder = TokenEncoder(settings["encoder"])
        self.encoder_proj = nn.Linear(settings["encoder"]["output_size"], mel)
        self.length_regulator = LengthRegulator(
            mel, len(settings["length_regulator"]["sampling_ratios"]), config.mask_padding
        )
        self.decoder = ConditionalFlowMatching(settings["decoder"], settings["estimator"], config.mask_padding)

    def embed_speaker(self, speaker_embedding: torch.Tensor) -> torch.Tensor:
        """[B, 192], of any norm -> [B, M]."""
        layer = self.spk_embed_affine_layer
        return layer(F.normalize(speaker_embedding.float(), dim=1).to(layer.weight.dtype))

    def embed_codes(self, codes: torch.Tensor, code_mask: torch.Tensor | None) -> torch.Tensor:
        """codes [B, L], code_mask bool [B, L] or None -> encoded [B, L, M]. Codes below zero count as zero."""
        embedded = self.input_embedding(codes.clamp(min=0))
        if code_mask is not None:
            embedded = embedded * code_mask[:, :, None]
        return self.encoder_proj(self.encoder(embedded, code_mask))

    def condition(
        self, codes: torch.Tensor, code_lengths: torch.Tensor, frame_lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Condition of each frame: codes [B, L] with both lengths [B] -> mu [B, M, T], mask [B, 1, T] or None."""
        num_frames = int(frame_lengths.max())
        padded = bool((code_lengths < codes.shape[1]).any() or (frame_lengths < num_frames).any())
        encoded = self.embed_codes(codes, length_mask(code_lengths, codes.shape[1]) if padded else None)
        mask = length_mask(frame_lengths, num_frames)[:, None].to(encoded.dtype) if padded else None
        frames = torch.arange(num_frames, device=codes.device)
        if not self.config.mask_padding:
            # Released: the whole padded batch is stretched to the longest row.
            code_lengths = torch.full_like(code_lengths, codes.shape[1])
            frame_lengths = torch.full_like(frame_lengths, num_frames)
        tokens = nearest_tokens(code_lengths, frame_lengths, frames)
        return self.length_regulator(encoded, tokens, mask), mask

    def forward(
        self,
        codes: torch.Tensor,
        code_lengths: torch.Tensor,
        speaker_embedding: torch.Tensor,
        noise: torch.Tensor,
        num_steps: int | None = None,
        estimator: Velocity | None = None,
    ) -> torch.Tensor:
        """codes [B, L] after those of the prompt, code_lengths [B], speaker_embedding [B, 192], noise [B, M, T]
        -> mel [B, M, T] float32, including the frames of the prompt; T is `config.num_frames` of the longest row.

        As in the released code, the estimator does not see the mel of the prompt, which only says how many frames to
        cut.
        """
        frame_lengths = torch.tensor([self.config.num_frames(n) for n in code_lengths.tolist()], device=codes.device)
        mu, mask = self.condition(codes, code_lengths, frame_lengths)
        speaker = self.embed_speaker(speaker_embedding)
        return self.decoder(noise, mu, speaker, mask, num_steps or self.config.num_steps, estimator=estimator)

    def window(
        self,
        codes: torch.Tensor,
        tokens: torch.Tensor,
        speaker_embedding: torch.Tensor,
        noise: torch.Tensor,
        num_steps: int | None = None,
        estimator: Velocity | None = None,
    ) -> torch.Tensor:
        """Part of an utterance: codes [1, L] of the part, tokens [T] (which of them each frame has),
        speaker_embedding [1, 192], noise [1, M, T] -> mel [1, M, T] float32."""
        mu = self.length_regulator(self.embed_codes(codes, None), tokens[None], None)
        speaker = self.embed_speaker(speaker_embedding)
        return self.decoder(noise, mu, speaker, None, num_steps or self.config.num_steps, estimator=estimator)
