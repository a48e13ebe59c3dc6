"""The velocity network of the flow: a 1-D U-Net of residual convolutions and transformer blocks (Matcha-TTS,
arXiv 2309.03199), with the released module names.

Padding. At its end, an unpadded row sees the zero padding of a convolution too, so for convolutions it is enough to
mask every input. Group norms and attention see the whole length: by default their statistics and keys are restricted
to the frames of the row, so that each row of a batch equals the row alone. `mask_padding=False` is the released code:
statistics over the padded length, and the outer product of the mask (1 or 0) added to the attention scores, so that
padded keys are attended. Both agree where nothing is padded; then no mask is passed.

Shape letters: B batch, C channels, T frames, D width of the time embedding.
"""

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.downsampling import Downsample1D
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.upsampling import Upsample1D
from torch import nn


def masked(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """x [B, C, T], mask [B, 1, T] of ones and zeros, or None for all ones."""
    return x if mask is None else x * mask


class FrameGroupNorm(nn.GroupNorm):
    """Group norm over the channels of a group and the frames that are not padding (see the module's docstring)."""

    def __init__(self, num_groups: int, num_channels: int, mask_padding: bool):
        super().__init__(num_groups, num_channels)
        self.mask_padding = mask_padding

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """x [B, C, T], mask [B, 1, T] or None -> [B, C, T]."""
        if mask is None or not self.mask_padding:
            return super().forward(x)
        groups = x.float().unflatten(1, (self.num_groups, -1))  # [B, G, C / G, T]
        mask = mask.float()[:, None]
        count = mask.sum(dim=(2, 3), keepdim=True) * groups.shape[2]
        centred = groups - (groups * mask).sum(dim=(2, 3), keepdim=True) / count
        variance = (centred.square() * mask).sum(dim=(2, 3), keepdim=True) / count
        normed = (centred * (variance + self.eps).rsqrt()).flatten(1, 2).to(x.dtype)
        return normed * self.weight[:, None] + self.bias[:, None]


class ConvBlock(nn.Module):
    """Convolution over three frames, group norm, Mish."""

    def __init__(self, in_channels: int, out_channels: int, mask_padding: bool, num_groups: int = 8):
        super().__init__()
        self.block = nn.ModuleList(
            [
                nn.Conv1d(in_channels, out_channels, 3, padding=1),
                FrameGroupNorm(num_groups, out_channels, mask_padding),
            ]
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """x [B, C, T], mask [B, 1, T] -> [B, C', T], zero where masked."""
        convolution, norm = self.block
        return masked(F.mish(norm(convolution(masked(x, mask)), mask)), mask)


class ResnetBlock(nn.Module):
    """Two convolution blocks with the time embedding added in between, and a residual."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int, mask_padding: bool):
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_width, out_channels))
        self.block1 = ConvBlock(in_channels, out_channels, mask_padding)
        self.block2 = ConvBlock(out_channels, out_channels, mask_padding)
        self.res_conv = nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, time_embedding: torch.Tensor) -> torch.Tensor:
        """x [B, C, T], mask [B, 1, T], time_embedding [B, D] -> [B, C', T]; masked frames are undefined."""
        hidden_states = self.block1(x, mask) + self.mlp(time_embedding)[:, :, None]
        return self.block2(hidden_states, mask) + self.res_conv(masked(x, mask))


class VelocityEstimator(nn.Module):
    """The velocity of the noisy mel at a time, conditioned on codes, speaker and known mel.

    Args:
        in_channels: channels of noisy mel, encoded codes, speaker and known mel, stacked.
        channels: width of each resolution; every resolution but the last halves the frame rate for the next.
        n_blocks: transformer blocks per residual block.
        num_mid_blocks: residual blocks at the lowest resolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: list[int],
        dropout: float,
        attention_head_dim: int,
        n_blocks: int,
        num_mid_blocks: int,
        num_heads: int,
        act_fn: str,
        mask_padding: bool = True,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.mask_padding = mask_padding
        self.frame_multiple = 2 ** (len(channels) - 1)  # frames per step of the lowest resolution
        time_width = 4 * channels[0]
        self.time_mlp = TimestepEmbedding(in_channels, time_width, act_fn="silu")

        def stage(width_in: int, width_out: int, *resampling: nn.Module) -> nn.ModuleList:
            transformers = [
                BasicTransformerBlock(width_out, num_heads, attention_head_dim, dropout=dropout, activation_fn=act_fn)
                for _ in range(n_blocks)
            ]
            resnet = ResnetBlock(width_in, width_out, time_width, mask_padding)
            return nn.ModuleList([resnet, nn.ModuleList(transformers), *resampling])

        def same_rate(width: int) -> nn.Conv1d:
            return nn.Conv1d(width, width, 3, padding=1)

        self.down_blocks = nn.ModuleList()
        for i, (width_in, width) in enumerate(zip([in_channels, *channels[:-1]], channels, strict=True)):
            last = i == len(channels) - 1
            resample = same_rate(width) if last else Downsample1D(width, use_conv=True)
            self.down_blocks.append(stage(width_in, width, resample))
        self.mid_blocks = nn.ModuleList([stage(channels[-1], channels[-1]) for _ in range(num_mid_blocks)])
        self.up_blocks = nn.ModuleList()
        for i, (width_in, width) in enumerate(zip(channels[::-1], [*channels[-2::-1], channels[0]], strict=True)):
            last = i == len(channels) - 1
            resample = same_rate(width) if last else Upsample1D(width, use_conv_transpose=True)
            self.up_blocks.append(stage(2 * width_in, width, resample))
        self.final_block = ConvBlock(channels[0], channels[0], mask_padding)
        self.final_proj = nn.Conv1d(channels[0], out_channels, 1)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        mu: torch.Tensor,
        timesteps: torch.Tensor,
        speaker: torch.Tensor,
        cond: torch.Tensor,
    ) -> torch.Tensor:
        """x, mu, cond [B, n_mels, T], mask [B, 1, T] or None, timesteps [B] in [0, 1], speaker [B, n_mels]
        -> velocity [B, n_mels, T], zero where masked."""
        sinusoid = get_timestep_embedding(1000 * timesteps.float(), self.in_channels, downscale_freq_shift=1)
        time_embedding = self.time_mlp(sinusoid.to(x.dtype))
        x = torch.cat([x, mu, speaker[:, :, None].expand(-1, -1, x.shape[2]), cond], dim=1)

        masks: list[torch.Tensor | None] = [mask]
        skips: list[torch.Tensor] = []
        for resnet, transformers, resample in self.down_blocks:
            stage_mask = masks[-1]
            x = self.transform(resnet(x, stage_mask, time_embedding), stage_mask, transformers)
            skips.append(x)
            x = resample(masked(x, stage_mask))
            masks.append(None if stage_mask is None else stage_mask[:, :, ::2])
        masks.pop()  # the last stage keeps its rate
        for resnet, transformers in self.mid_blocks:
            x = self.transform(resnet(x, masks[-1], time_embedding), masks[-1], transformers)
        for resnet, transformers, resample in self.up_blocks:
            stage_mask, skip = masks.pop(), skips.pop()
            x = torch.cat([x[:, :, : skip.shape[2]], skip], dim=1)
            x = self.transform(resnet(x, stage_mask, time_embedding), stage_mask, transformers)
            x = resample(masked(x, stage_mask))
        return masked(self.final_proj(self.final_block(x, mask)), mask)

    def transform(self, x: torch.Tensor, mask: torch.Tensor | None, blocks: nn.ModuleList) -> torch.Tensor:
        """x [B, C, T] through transformer blocks over its frames -> [B, C, T]."""
        x = x.transpose(1, 2)
        bias = self.attention_bias(mask)
        for block in blocks:
            x = block(x, attention_mask=bias)
        return x.transpose(1, 2)

    def attention_bias(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """mask [B, 1, T] -> the blocks' mask: bool [B, 1, T] (True: attend), or as released [B, T, T] to add."""
        if mask is None:
            return None
        return mask.bool() if self.mask_padding else mask.transpose(1, 2) * mask
