"""Mel to waveform: HiFT-GAN (HiFTNet, arXiv 2309.09493), with the released module names.

A pitch is predicted per frame; harmonics of it are the source signal, whose spectrogram enters an upsampling network;
that predicts magnitude and phase of a short-time Fourier transform, which is inverted (iSTFTNet, arXiv 2203.02395).
All of it is float32, whatever the dtype of the rest: phases need this precision.

Shape letters: B batch, C channels, T mel frames, S samples (T * hop), H harmonics with the fundamental, M mel
channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .configuration_audio_detokenizer import AudioDetokenizerConfig
from .noise import spawn_generators

F0_KERNEL, PRE_KERNEL, POST_KERNEL = 3, 7, 7
F0_LAYERS = 5


class WeightNorm(nn.Module):
    """A convolution's weights as magnitude and direction (arXiv 1602.07868) under the names `weight_g`, `weight_v`.

    PyTorch's parametrization reads these names but saves others; plain parameters keep them.
    """

    def __init__(self, shape: tuple[int, int, int], out_channels: int):
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(shape))
        self.weight_g = nn.Parameter(torch.empty(shape[0], 1, 1))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))
        init.copy_(self.weight_g, torch.norm_except_dim(self.weight_v))
        nn.init.zeros_(self.bias)

    def weight(self) -> torch.Tensor:
        return torch._weight_norm(self.weight_v, self.weight_g)


class WeightNormConv1d(WeightNorm):
    """Convolution that keeps the length."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1):
        super().__init__((out_channels, in_channels, kernel_size), out_channels)
        self.dilation = dilation
        self.padding = dilation * (kernel_size - 1) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, T] -> [B, C', T]."""
        return F.conv1d(x, self.weight(), self.bias, padding=self.padding, dilation=self.dilation)


class WeightNormConvTranspose1d(WeightNorm):
    """Convolution to `stride` times the length."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int):
        super().__init__((in_channels, out_channels, kernel_size), out_channels)
        self.stride = stride
        self.padding = (kernel_size - stride) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, T] -> [B, C', T * stride]."""
        return F.conv_transpose1d(x, self.weight(), self.bias, stride=self.stride, padding=self.padding)


class Snake(nn.Module):
    """x + sin(a x)^2 / a with a learned frequency per channel (arXiv 2006.08195)."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def reset_parameters(self):
        nn.init.ones_(self.alpha)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alpha = self.alpha[:, None]
        return x + torch.sin(alpha * x).square() / (alpha + 1e-9)


class ResidualBlock(nn.Module):
    """For each dilation: snake, dilated convolution, snake, convolution, residual."""

    def __init__(self, channels: int, kernel_size: int, dilations: list[int]):
        super().__init__()
        self.convs1 = nn.ModuleList(WeightNormConv1d(channels, channels, kernel_size, n) for n in dilations)
        self.convs2 = nn.ModuleList(WeightNormConv1d(channels, channels, kernel_size) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, T] -> [B, C, T]."""
        layers = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for first_snake, dilated, second_snake, plain in layers:
            x = x + plain(second_snake(dilated(first_snake(x))))
        return x


class F0Predictor(nn.Module):
    """The pitch of each mel frame."""

    def __init__(self, settings: dict):
        super().__init__()
        width = settings["cond_channels"]
        self.condnet = nn.Sequential()
        for i in range(F0_LAYERS):
            self.condnet.append(WeightNormConv1d(settings["in_channels"] if i == 0 else width, width, F0_KERNEL))
            self.condnet.append(nn.ELU())
        self.classifier = nn.Linear(width, 1)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """mel [B, M, T] -> pitch in Hz [B, T]."""
        return self.classifier(self.condnet(mel).transpose(1, 2))[:, :, 0].abs()


class HarmonicSource(nn.Module):
    """Sines at the pitch and its multiples in voiced frames, noise elsewhere (NSF, arXiv 1904.12088)."""

    def __init__(self, settings: dict):
        super().__init__()
        self.num_harmonics = settings["nb_harmonics"] + 1
        self.sample_rate = settings["sampling_rate"]
        self.amplitude = settings["nsf_alpha"]
        self.noise_scale = settings["nsf_sigma"]
        self.voiced_threshold = settings["nsf_voiced_threshold"]
        self.l_linear = nn.Linear(self.num_harmonics, 1)

    def forward(
        self, f0: torch.Tensor, phase: torch.Tensor, noise: torch.Tensor, cycles: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Source signal of frames, each with a constant pitch.

        Cycles are summed in float64, so that a signal and its continuation fit exactly; the released float32 sum over
        the whole utterance is less exact, by up to 2e-3 cycles per 10 s in the highest harmonics.

        Args:
            f0: pitch [B, T] in Hz.
            phase: [B, H] in radians, added to every sample.
            noise: [B, H, S], standard normal.
            cycles: [B, H], cycles of the harmonics before the first sample; None is zero.

        Returns:
            signal [B, 1, S], and the cycles [B, H] float64 after its last sample.
        """
        hop = noise.shape[2] // f0.shape[1]
        harmonics = torch.arange(1, self.num_harmonics + 1, device=f0.device)
        per_sample = (f0[:, None] * harmonics[:, None] / self.sample_rate).double()  # [B, H, T]
        turned = (per_sample * hop).cumsum(dim=2)
        starts = turned - per_sample * hop + (0 if cycles is None else cycles[:, :, None])
        samples = starts[:, :, :, None] + per_sample[:, :, :, None] * torch.arange(1, hop + 1, device=f0.device)
        angles = 2 * torch.pi * samples.flatten(2).remainder(1).float() + phase[:, :, None]

        voiced = self.voiced(f0).repeat_interleave(hop, dim=1)[:, None]
        noise_scale = voiced * self.noise_scale + (1 - voiced) * self.amplitude / 3
        waves = self.amplitude * torch.sin(angles) * voiced + noise_scale * noise
        signal = torch.tanh(self.l_linear(waves.transpose(1, 2))).transpose(1, 2)
        return signal, (turned[:, :, -1] + (0 if cycles is None else cycles)).remainder(1)

    def voiced(self, f0: torch.Tensor) -> torch.Tensor:
        """f0 [B, T] in Hz -> [B, T], 1.0 where the pitch is above the threshold for voice, else 0.0."""
        return (f0 > self.voiced_threshold).float()


class HiFT(nn.Module):
    """The vocoder. Its parts `f0_predictor`, `m_source` and `decode` are called one by one when streaming."""

    def __init__(self, config: AudioDetokenizerConfig):
        super().__init__()
        settings = config.hift
        width, rates = settings["base_channels"], settings["upsample_rates"]
        kernels, dilations = settings["resblock_kernel_sizes"], settings["resblock_dilation_sizes"]
        self.hop_length = config.hop_length
        self.num_kernels = len(kernels)
        self.slope = settings["lrelu_slope"]
        self.audio_limit = settings["audio_limit"]
        self.n_fft, self.stft_hop = settings["istft_params"]["n_fft"], settings["istft_params"]["hop_len"]

        self.m_source = HarmonicSource(settings)
        self.conv_pre = WeightNormConv1d(settings["in_channels"], width, PRE_KERNEL)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        self.source_downs, self.source_resblocks = nn.ModuleList(), nn.ModuleList()
        source_blocks = zip(
            settings["source_resblock_kernel_sizes"], settings["source_resblock_dilation_sizes"], strict=True
        )
        stages = zip(rates, settings["upsample_kernel_sizes"], source_blocks, strict=True)
        for i, (rate, kernel_size, source_block) in enumerate(stages):
            self.ups.append(WeightNormConvTranspose1d(width, width // 2, kernel_size, rate))
            width //= 2
            self.resblocks.extend(ResidualBlock(width, *block) for block in zip(kernels, dilations, strict=True))
            ratio = math.prod(rates[i + 1 :])  # from the rate of the source's spectrogram to that of the stage
            down = (2 * ratio, ratio, ratio // 2) if ratio > 1 else (1, 1, 0)
            self.source_downs.append(nn.Conv1d(self.n_fft + 2, width, down[0], stride=down[1], padding=down[2]))
            self.source_resblocks.append(ResidualBlock(width, *source_block))
        self.conv_post = WeightNormConv1d(width, self.n_fft + 2, POST_KERNEL)
        self.f0_predictor = F0Predictor(settings["f0_predictor"])

    def _apply(self, fn, recurse=True):
        """Follow the rest of the model to its device, but stay float32."""

        def keep_float32(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            half = moved.is_floating_point() and moved.dtype != torch.float32
            return tensor.to(moved.device, torch.float32) if half else moved

        return super()._apply(keep_float32, recurse)

    def forward(
        self,
        mel: torch.Tensor,
        phase: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """mel [B, M, T] without padding -> waveform [B, S] float32 in [-audio_limit, audio_limit].

        phase [B, H] (radians, 0 for the fundamental) and noise [B, H, S] are drawn from the generator if not given;
        without a generator they differ between calls.
        """
        with torch.autocast(mel.device.type, enabled=False):
            mel = mel.float()
            if phase is None or noise is None:
                (own,) = spawn_generators(generator, 1)
                drawn = [self.draw_phase(own) for _ in mel]
                phase = torch.stack(drawn).to(mel.device) if phase is None else phase
                shape = (len(mel), self.m_source.num_harmonics, mel.shape[2] * self.hop_length)
                noise = torch.randn(shape, generator=own).to(mel.device) if noise is None else noise
            source, _ = self.m_source(self.f0_predictor(mel), phase, noise)
            return self.decode(mel, source)

    def draw_phase(self, generator: torch.Generator) -> torch.Tensor:
        """Initial phases [H] of one row: uniform in [-pi, pi), 0 for the fundamental; on the CPU."""
        phase = (2 * torch.rand(self.m_source.num_harmonics, generator=generator) - 1) * torch.pi
        phase[0] = 0
        return phase

    def decode(self, mel: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """mel [B, M, T], source [B, 1, S] -> waveform [B, S]."""
        spectrogram = self.stft(source[:, 0])
        x = self.conv_pre(mel)
        for i, (up, source_down, source_block) in enumerate(
            zip(self.ups, self.source_downs, self.source_resblocks, strict=True)
        ):
            x = up(F.leaky_relu(x, self.slope))
            if i == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")  # the centred spectrogram has one frame more
            x = x + source_block(source_down(spectrogram))
            blocks = self.resblocks[i * self.num_kernels : (i + 1) * self.num_kernels]
            x = sum(block(x) for block in blocks) / self.num_kernels
        x = self.conv_post(F.leaky_relu(x))  # here with PyTorch's slope, as released
        log_magnitude, angle = x.chunk(2, dim=1)
        waveform = self.istft(log_magnitude.exp(), angle.sin())
        return waveform.clamp(-self.audio_limit, self.audio_limit)

    def stft(self, waveform: torch.Tensor) -> torch.Tensor:
        """waveform [B, S] -> [B, n_fft + 2, S / stft_hop + 1], real parts, then imaginary ones."""
        window = torch.hann_window(self.n_fft, device=waveform.device)
        spectrum = torch.stft(waveform, self.n_fft, self.stft_hop, self.n_fft, window=window, return_complex=True)
        return torch.cat([spectrum.real, spectrum.imag], dim=1)

    def istft(self, magnitude: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
        """magnitude, phase [B, n_fft / 2 + 1, F] -> waveform [B, (F - 1) * stft_hop]; magnitudes are cut at 100."""
        window = torch.hann_window(self.n_fft, device=magnitude.device)
        spectrum = torch.polar(magnitude.clamp(max=100), phase)
        return torch.istft(spectrum, self.n_fft, self.stft_hop, self.n_fft, window=window)
