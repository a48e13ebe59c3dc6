"""The audio encoders against the library's classes of the same widths.

Whisper's layers are the library's, those of SANM our own. The library's Whisper encoder always reads 30 s; ours reads
the length of the recording, and recordings of several lengths in a batch do not attend to each other.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from transformers import FunAsrNanoEncoderConfig, WhisperConfig
from transformers.models.fun_asr_nano.modeling_fun_asr_nano import FunAsrNanoEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from ming.configuration_bailingmm import BailingMMAudioConfig, BailingMMWhisperConfig
from ming.modeling_encoders import BailingMMSanmEncoder, BailingMMWhisperEncoder

from .report import REFERENCE, Case, Versus, versus, versus_plot, versus_table

RECORDINGS = ((5,), (30,), (5, 10, 30))  # seconds of every recording of a batch
WHISPER_SECONDS = 30
REPEATS = 5
SANM_LAYERS, WHISPER_LAYERS = 5, 3  # of 50 and 32


def sanm(device: str, dtype: torch.dtype) -> dict[str, Callable]:
    """Encoders of released widths, called with features [N, T, 560] and lengths [N]."""
    config = BailingMMAudioConfig(audio_encoder_config_sanm={"num_blocks": SANM_LAYERS})
    ours = BailingMMSanmEncoder(config).to(device, dtype).eval()
    sizes = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
    own = FunAsrNanoEncoderConfig(**{size: getattr(config, size) for size in sizes}, num_timestamp_prediction_layers=1)
    library = FunAsrNanoEncoder(own).to(device, dtype).eval()

    def by_library(features: torch.Tensor, lengths: torch.Tensor):
        mask = torch.arange(features.shape[1], device=device) < lengths[:, None]
        return library(features, mask.long())

    return {REFERENCE: by_library, "ours": ours}


def whisper(device: str, dtype: torch.dtype) -> dict[str, Callable]:
    """Encoders of released widths, called with features [N, T, 128] and lengths [N]."""
    config = BailingMMWhisperConfig(whisper_encoder_config={"n_layer": WHISPER_LAYERS})
    ours = BailingMMWhisperEncoder(config).to(device, dtype).eval()
    library = WhisperEncoder(
        WhisperConfig(
            num_mel_bins=config.num_mel_bins,
            d_model=config.d_model,
            encoder_layers=WHISPER_LAYERS,
            encoder_attention_heads=config.num_attention_heads,
            encoder_ffn_dim=4 * config.d_model,
        )
    )
    library = library.to(device, dtype).eval()

    def by_library(features: torch.Tensor, lengths: torch.Tensor):
        return library(F.pad(features.transpose(1, 2), (0, 100 * WHISPER_SECONDS - features.shape[1])))

    return {REFERENCE: by_library, "ours": ours}


def measure(device: str = "cpu", dtype: torch.dtype = torch.float32, recordings=RECORDINGS) -> list[Versus]:
    """Time every encoder on recordings of several lengths."""
    torch.manual_seed(0)
    cases: list[Case] = []
    for part, encoders, rate, width in (("SANM", sanm, 1000 / 60, 560), ("Whisper", whisper, 100, 128)):
        implementations = encoders(device, dtype)
        for seconds in recordings:
            lengths = torch.tensor([int(each * rate) for each in seconds], device=device)
            features = torch.randn(len(seconds), int(lengths.max()), width, device=device, dtype=dtype)
            name = f"{part}, {' + '.join(map(str, seconds))} s"
            for implementation, encoder in implementations.items():
                cases.append((name, implementation, partial(encoder, features, lengths)))
    return versus(cases, REPEATS)


table, plot = versus_table, versus_plot
