"""Training loss of the audio detokenizer's flow: conditional flow matching (arXiv 2210.02747).

Shape letters: B batch, L codes, T mel frames, M mel channels.
"""

import torch

from audio_detokenizer.modeling_estimator import masked
from audio_detokenizer.modeling_flow import Flow, length_mask


def draw_known_frames(
    mel: torch.Tensor, mel_lengths: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Known mel for training: in a random half of the rows up to the first 30 % of the frames, zeros elsewhere.

    Args:
        mel: [B, T, M].
        mel_lengths: int [B].
        generator: CPU generator; None is PyTorch's own.

    Returns:
        [B, M, T].
    """
    chance, share = torch.rand(2, len(mel), generator=generator).to(mel.device)
    known = torch.where(chance < 0.5, 0, (share * (0.3 * mel_lengths).int()).long())
    return (mel * length_mask(known, mel.shape[1])[:, :, None]).transpose(1, 2)


def draw_randomness(
    mel: torch.Tensor, mel_lengths: torch.Tensor, generator: torch.Generator | None = None
) -> dict[str, torch.Tensor]:
    """All random numbers of one training step, see `flow_matching_loss`; arguments as of `draw_known_frames`."""
    return {
        "t_uniform": torch.rand(len(mel), 1, 1, generator=generator),
        "z": torch.randn(mel.transpose(1, 2).shape, generator=generator),
        "cfg_uniform": torch.rand(len(mel), generator=generator),
        "cond": draw_known_frames(mel, mel_lengths, generator),
    }


def flow_matching_loss(
    flow: Flow,
    batch: dict[str, torch.Tensor],
    generator: torch.Generator | None = None,
    randomness: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Mean squared error of the velocity on the straight path from noise to mel, over existing frames.

    Args:
        batch: `codes` [B, L], `code_lengths` [B], `mel` [B, T, M], `mel_lengths` [B], `speaker_embedding` [B, 192].
        generator: CPU generator of all random numbers; None is PyTorch's own.
        randomness: random numbers to use instead of drawing them: `t_uniform` [B, 1, 1], `z` [B, M, T] (noise),
            `cfg_uniform` [B] (rows at or below the configured rate are trained without conditions), and `cond`
            [B, M, T] (known frames).

    Returns:
        float32 scalar with gradients.
    """
    mel, decoder = batch["mel"], flow.decoder
    target = mel.transpose(1, 2)  # [B, M, T]
    drawn = draw_randomness(mel, batch["mel_lengths"], generator) if randomness is None else randomness
    drawn = {name: value.to(mel.device) for name, value in drawn.items()}

    mu, mask = flow.condition(batch["codes"], batch["code_lengths"], batch["mel_lengths"])
    speaker = flow.embed_speaker(batch["speaker_embedding"])
    t = 1 - torch.cos(drawn["t_uniform"] * 0.5 * torch.pi)
    noisy = (1 - (1 - decoder.sigma_min) * t) * drawn["z"] + t * target
    velocity = target - (1 - decoder.sigma_min) * drawn["z"]
    keep = (drawn["cfg_uniform"] > decoder.condition_dropout).to(mu.dtype)[:, None]
    predicted = decoder.estimator(
        noisy.to(mu.dtype),
        mask,
        mu * keep[:, :, None],
        t.flatten(),
        speaker * keep,
        drawn["cond"].to(mu.dtype) * keep[:, :, None],
    )
    error = masked((predicted.float() - velocity).square(), None if mask is None else mask.float())
    return error.sum() / (batch["mel_lengths"].sum() * target.shape[1])
