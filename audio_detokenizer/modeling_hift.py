"""Mel to waveform: HiFT-GAN (HiFTNet, arXiv 2309.09493), with the released module names.

A pitch is predicted per frame; harmonics of it are the source signal, whose spectrogram enters an upsampling network;
that predicts magnitude and phase of a short-time Fourier transform, which is inverted (iSTFTNet, arXiv 2203.02395).
All of it is float32, whatever the dtype of the rest: phases need this precision.

The short transforms are products with real sines and cosines: PyTorch generates no code for complex numbers.

Padding. Frames at the end that only fill a batch or a graph are zero in the input of every convolution, as a
convolution's own padding is, and the spectrograms end where the row does: a row with padding equals the row alone. A
mask of None means that nothing is padded.

Shape letters: B batch, C channels, T mel frames, S samples (T * hop), H harmonics with the fundamental, M mel
channels, F frames of a spectrogram.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .configuration_audio_detokenizer import AudioDetokenizerConfig
from .modeling_estimator import masked
from .noise import spawn_generators

F0_KERNEL, PRE_KERNEL, POST_KERNEL = 3, 7, 7
F0_LAYERS = 5
SMALLEST_WEIGHT = 1e-11  # of windows at a sample; behind the end of a row there is none


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

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """x [B, C, T], zero where mask [B, 1, T] is -> [B, C, T], likewise."""
        layers = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for first_snake, dilated, second_snake, plain in layers:
            hidden = masked(dilated(first_snake(x)), mask)
            x = x + masked(plain(second_snake(hidden)), mask)
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

    def forward(self, mel: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """mel [B, M, T], zero where mask [B, 1, T] is -> pitch in Hz [B, T], of no meaning there."""
        hidden = mel
        for layer in self.condnet:
            hidden = masked(layer(hidden), mask)
        return self.classifier(hidden.transpose(1, 2))[:, :, 0].abs()


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
            signal [B, 1, S], and the cycles [B, H, T + 1] float64 before each frame and after the last one.
        """
        hop = noise.shape[2] // f0.shape[1]
        harmonics = torch.arange(1, self.num_harmonics + 1, device=f0.device)
        per_sample = (f0[:, None] * harmonics[:, None] / self.sample_rate).double()  # [B, H, T]
        turned = F.pad((per_sample * hop).cumsum(dim=2), (1, 0)) + (0 if cycles is None else cycles[:, :, None])
        samples = turned[:, :, :-1, None] + per_sample[:, :, :, None] * torch.arange(1, hop + 1, device=f0.device)
        angles = 2 * torch.pi * samples.flatten(2).remainder(1).float() + phase[:, :, None]

        voiced = self.voiced(f0).repeat_interleave(hop, dim=1)[:, None]
        noise_scale = voiced * self.noise_scale + (1 - voiced) * self.amplitude / 3
        waves = self.amplitude * torch.sin(angles) * voiced + noise_scale * noise
        signal = torch.tanh(self.l_linear(waves.transpose(1, 2))).transpose(1, 2)
        return signal, turned.remainder(1)

    def voiced(self, f0: torch.Tensor) -> torch.Tensor:
        """f0 [B, T] in Hz -> [B, T], 1.0 where the pitch is above the threshold for voice, else 0.0."""
        return (f0 > self.voiced_threshold).float()


class HiFT(nn.Module):
    """The vocoder. A stream calls `render`, which continues what was said before."""

    UNKNOWN_F0 = -1.0  # where a pitch is to be predicted

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
        self.rates = rates

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
        if phase is None or noise is None:
            (own,) = spawn_generators(generator, 1)
            drawn = [self.draw_phase(own) for _ in mel]
            phase = torch.stack(drawn).to(mel.device) if phase is None else phase
            shape = (len(mel), self.m_source.num_harmonics, mel.shape[2] * self.hop_length)
            noise = torch.randn(shape, generator=own).to(mel.device) if noise is None else noise
        return self.render(mel, phase, noise)[0]

    def render(
        self,
        mel: torch.Tensor,
        phase: torch.Tensor,
        noise: torch.Tensor,
        known_f0: torch.Tensor | None = None,
        cycles: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Frames, perhaps in the middle of an utterance.

        Args:
            mel: [B, M, T].
            phase, noise, cycles: see `HarmonicSource`.
            known_f0: [B, T], the pitch of frames that were said before in Hz, `UNKNOWN_F0` elsewhere; None knows none.
            mask: [B, 1, T], ones, then zeros where frames only fill; there mel is zero.

        Returns:
            waveform [B, S] float32 in [-audio_limit, audio_limit], pitch [B, T] in Hz, and the cycles
            [B, H, T + 1] float64 before each frame and after the last one.
        """
        with torch.autocast(mel.device.type, enabled=False):
            mel = mel.float()
            f0 = self.f0_predictor(mel, mask)
            if known_f0 is not None:
                f0 = torch.where(known_f0 >= 0, known_f0, f0)
            source, cycles = self.m_source(f0, phase, noise, cycles)
            return self.decode(mel, source, mask), f0, cycles

    def draw_phase(self, generator: torch.Generator) -> torch.Tensor:
        """Initial phases [H] of one row: uniform in [-pi, pi), 0 for the fundamental; on the CPU."""
        phase = (2 * torch.rand(self.m_source.num_harmonics, generator=generator) - 1) * torch.pi
        phase[0] = 0
        return phase

    def decode(self, mel: torch.Tensor, source: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """mel [B, M, T], source [B, 1, S], mask [B, 1, T] -> waveform [B, S]."""
        # The centred spectrogram has one frame more than its hops.
        fine_mask = None if mask is None else F.pad(upsampled(mask, math.prod(self.rates)), (1, 0), value=1.0)
        num_samples = None if mask is None else mask.sum(dim=(1, 2)).long() * self.hop_length
        spectrogram = masked(self.stft(source[:, 0], num_samples), fine_mask)
        x = masked(self.conv_pre(mel), mask)
        for i, (rate, up, source_down, source_block) in enumerate(
            zip(self.rates, self.ups, self.source_downs, self.source_resblocks, strict=True)
        ):
            mask = None if mask is None else upsampled(mask, rate)
            x = masked(up(F.leaky_relu(x, self.slope)), mask)
            if i == len(self.ups) - 1:
                x, mask = F.pad(x, (1, 0), mode="reflect"), fine_mask
            x = x + source_block(masked(source_down(spectrogram), mask), mask)
            blocks = self.resblocks[i * self.num_kernels : (i + 1) * self.num_kernels]
            x = sum(block(x, mask) for block in blocks) / self.num_kernels
        x = self.conv_post(F.leaky_relu(x))  # here with PyTorch's slope, as released
        log_magnitude, angle = x.chunk(2, dim=1)
        waveform = self.istft(log_magnitude.exp(), angle.sin(), fine_mask)
        return waveform.clamp(-self.audio_limit, self.audio_limit)

    def stft(self, waveform: torch.Tensor, num_samples: torch.Tensor | None = None) -> torch.Tensor:
        """waveform [B, S], num_samples [B] (None: all) -> [B, n_fft + 2, S / stft_hop + 1], real parts, then imaginary
        ones. The signal is mirrored at its ends; frames behind the end of a row have no meaning."""
        frames = mirrored(waveform, self.n_fft // 2, num_samples).unfold(1, self.n_fft, self.stft_hop)
        window = torch.hann_window(self.n_fft, device=waveform.device)
        cosines, sines = fourier_basis(self.n_fft, waveform.device)
        return ((frames * window) @ torch.cat([cosines, -sines], dim=1)).transpose(1, 2)

    def istft(self, magnitude: torch.Tensor, phase: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """magnitude, phase [B, n_fft / 2 + 1, F], mask [B, 1, F] -> waveform [B, (F - 1) * stft_hop]; magnitudes are
        cut at 100."""
        window = torch.hann_window(self.n_fft, device=magnitude.device)
        magnitude = magnitude.clamp(max=100)
        spectrum = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=1).transpose(1, 2)
        cosines, sines = fourier_basis(self.n_fft, magnitude.device)
        # All frequencies but the first and the last stand for two, which are conjugates.
        weights = F.pad(torch.full((self.n_fft // 2 - 1,), 2.0, device=magnitude.device), (1, 1), value=1.0)
        synthesis = torch.cat([cosines * weights, -sines * weights], dim=1).T / self.n_fft
        is_frame = torch.ones_like(magnitude[:, :1]) if mask is None else mask
        frames = masked(((spectrum @ synthesis) * window).transpose(1, 2), mask)
        envelope = is_frame * window.square()[:, None]
        half, length = self.n_fft // 2, (magnitude.shape[2] - 1) * self.stft_hop
        signal, weight = (overlapped(each, self.stft_hop)[:, half : half + length] for each in (frames, envelope))
        return signal / weight.clamp(min=SMALLEST_WEIGHT)


def upsampled(mask: torch.Tensor, rate: int) -> torch.Tensor:
    """[B, 1, T] -> [B, 1, T * rate]."""
    return mask.repeat_interleave(rate, dim=2)


def mirrored(signal: torch.Tensor, margin: int, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """signal [B, S] -> [B, margin + S + margin], continued by its mirror image at both ends; those of a row of
    lengths [B] are its own."""
    if lengths is None:
        return F.pad(signal[:, None], (margin, margin), mode="reflect")[:, 0]
    places = torch.arange(-margin, signal.shape[1] + margin, device=signal.device).abs()
    last = lengths[:, None] - 1
    return signal.gather(1, torch.minimum(places, 2 * last - places).clamp(min=0))


def fourier_basis(n_fft: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [n_fft, n_fft / 2 + 1], a column for every frequency."""
    samples, frequencies = torch.arange(n_fft, device=device), torch.arange(n_fft // 2 + 1, device=device)
    angles = (samples[:, None] * frequencies % n_fft).double() * (2 * torch.pi / n_fft)
    return angles.cos().float(), angles.sin().float()


def overlapped(frames: torch.Tensor, hop: int) -> torch.Tensor:
    """Frames [B, N, F] that start `hop` samples after each other -> their sum, [B, at least (F - 1) * hop + N]."""
    frames = F.pad(frames, (0, 0, 0, -frames.shape[1] % hop)).unflatten(1, (-1, hop))  # [B, N / hop, hop, F]
    last = frames.shape[1] - 1
    parts = [F.pad(frames[:, part], (part, last - part)) for part in range(last + 1)]
    return sum(parts[1:], parts[0]).transpose(1, 2).flatten(1)
