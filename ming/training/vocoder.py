"""Vocoder losses: spectra, pitch, and an adversarial loss (HiFi-GAN, arXiv 2010.05646; UnivNet, arXiv 2106.07889).

Shape letters: B waveforms, S samples, F frames.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ming.mel import vocoder_mel

RESOLUTIONS = ((1024, 256), (512, 128), (256, 64))  # n_fft and hop length in samples
CRITIC_RESOLUTIONS = RESOLUTIONS[:2]
LEAKY_SLOPE = 0.1
VOICED_CLARITY = 0.5  # normalised autocorrelation from which a frame counts as voiced
QUIET = 1e-3  # root mean square below which a frame counts as unvoiced


def spectrogram(waveform: torch.Tensor, n_fft: int, hop_length: int) -> torch.Tensor:
    """Magnitudes [B, n_fft / 2 + 1, F] of waveforms [B, S]; the gradient of the square root is finite at silence."""
    window = torch.hann_window(n_fft, device=waveform.device)
    spectrum = torch.stft(waveform, n_fft, hop_length, window=window, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square() + 1e-7).sqrt()


def spectral_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Multi-resolution STFT loss of waveforms [B, S]: spectral convergence + log magnitudes (arXiv 1910.11480)."""
    loss = output.new_zeros(())
    for n_fft, hop_length in RESOLUTIONS:
        ours, theirs = spectrogram(output, n_fft, hop_length), spectrogram(target, n_fft, hop_length)
        loss = loss + (theirs - ours).norm() / theirs.norm() + F.l1_loss(ours.log(), theirs.log())
    return loss / len(RESOLUTIONS)


def mel_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the log-mels of waveforms [B, S] at 22.05 kHz."""
    return F.l1_loss(vocoder_mel(output), vocoder_mel(target))


def pitch(waveform: torch.Tensor, rate: int, hop_length: int, low: float = 60.0, high: float = 500.0) -> torch.Tensor:
    """Pitch in Hz of every frame of waveforms [B, S], 0 where unvoiced: [B, S // hop_length].

    It takes the best peak of the normalised autocorrelation over windows of twice the longest period. Among peaks
    that are almost as good the shortest period wins, which keeps octave errors rare. This is good enough to train the
    pitch predictor of a vocoder.

    Args:
        rate: sampling rate in Hz.
        low, high: limits of the pitch in Hz.
    """
    longest, shortest = int(rate / low), int(rate / high)
    size = 2 * longest
    frames = waveform.shape[1] // hop_length
    padded = F.pad(waveform, (size // 2, size + longest))
    starts = torch.arange(frames, device=waveform.device) * hop_length + hop_length // 2
    windows = padded.unfold(1, size + longest, 1)[:, starts]  # [B, F, size + longest]
    windows = windows - windows.mean(dim=-1, keepdim=True)
    head = windows[..., :size]
    n_fft = 1 << (size + longest - 1).bit_length()
    products = torch.fft.irfft(torch.fft.rfft(head, n_fft).conj() * torch.fft.rfft(windows, n_fft), n_fft)
    energy = F.pad(windows.square().cumsum(dim=-1), (1, 0))
    lags = torch.arange(longest + 1, device=waveform.device)
    lagged = energy[..., lags + size] - energy[..., lags]
    clarity = products[..., : longest + 1] / (lagged[..., :1] * lagged + 1e-9).sqrt()
    clarity[..., :shortest] = 0
    is_peak = (clarity[..., 1:-1] >= clarity[..., :-2]) & (clarity[..., 1:-1] >= clarity[..., 2:])
    clarity = clarity[..., 1:-1] * is_peak
    best = clarity.amax(dim=-1, keepdim=True)
    lag = (clarity >= 0.9 * best).float().argmax(dim=-1) + 1
    voiced = (best[..., 0] >= VOICED_CLARITY) & (head.square().mean(dim=-1).sqrt() >= QUIET)
    return torch.where(voiced, rate / lag, 0.0)


class SpectrogramCritic(nn.Module):
    """Tells generated from recorded waveforms by their magnitudes at one resolution (UnivNet, section 2.2)."""

    def __init__(self, n_fft: int, hop_length: int, channels: int = 16):
        super().__init__()
        self.n_fft, self.hop_length = n_fft, hop_length
        norm = nn.utils.parametrizations.weight_norm
        self.layers = nn.ModuleList(
            [
                norm(nn.Conv2d(1, channels, (3, 9), padding=(1, 4))),
                norm(nn.Conv2d(channels, channels, (3, 9), stride=(1, 2), padding=(1, 4))),
                norm(nn.Conv2d(channels, channels, (3, 9), stride=(1, 2), padding=(1, 4))),
                norm(nn.Conv2d(channels, channels, (3, 3), padding=(1, 1))),
            ]
        )
        self.last = norm(nn.Conv2d(channels, 1, (3, 3), padding=(1, 1)))

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Waveforms [B, S] -> scores [B, 1, F', N'] (1 recorded, 0 generated) and the features of every layer."""
        x = spectrogram(waveform, self.n_fft, self.hop_length).log()[:, None].transpose(2, 3)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), LEAKY_SLOPE)
            features.append(x)
        return self.last(x), features


class Critics(nn.Module):
    """One `SpectrogramCritic` per entry of `CRITIC_RESOLUTIONS`."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.critics = nn.ModuleList(SpectrogramCritic(*resolution, channels) for resolution in CRITIC_RESOLUTIONS)

    def forward(self, waveform: torch.Tensor) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Waveforms [B, S] -> scores and features of every critic."""
        return [critic(waveform) for critic in self.critics]


def critic_loss(critics: Critics, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Least-squares loss of the critics (arXiv 1611.04076) for waveforms [B, S]; `output` gets no gradient."""
    judged = zip(critics(output.detach()), critics(target), strict=True)
    return sum((real - 1).square().mean() + fake.square().mean() for (fake, _), (real, _) in judged)


def adversarial_loss(
    critics: Critics, output: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of the vocoder against the critics: (least-squares loss, feature matching), both scalars."""
    score, matching = output.new_zeros(()), output.new_zeros(())
    with torch.no_grad():
        recorded = critics(target)
    for (fake, fake_features), (_, real_features) in zip(critics(output), recorded, strict=True):
        score = score + (fake - 1).square().mean()
        pairs = zip(fake_features, real_features, strict=True)
        matching = matching + sum(F.l1_loss(ours, theirs) for ours, theirs in pairs) / len(fake_features)
    return score, matching
