"""The processor: a batch of chats with images against one chat after another, audio features against torchaudio's.

A batch has no reason to cost more than its rows. The features of SANM are a filter bank, as Kaldi computes it, and the
joining of frames; torchaudio's filter bank alone is the reference.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchaudio.compliance.kaldi import fbank

from ming.processing_bailingmm import BailingMMProcessor

from .report import REFERENCE, Case, Versus, versus, versus_plot, versus_table

ROOT = Path(__file__).resolve().parents[1]
CHATS, SIDE = 32, 96  # images of SIDE x SIDE pixels
RECORDINGS, SECONDS = 16, 3
REPEATS = 5


def image_cases(processor: BailingMMProcessor) -> list[Case]:
    """One image and a question a chat; as one batch, and one by one (the reference)."""
    pixels = np.random.default_rng(0).integers(0, 256, (CHATS, SIDE, SIDE, 3), dtype=np.uint8)
    text = {"type": "text", "text": "?"}
    images = [{"type": "image", "image": Image.fromarray(each)} for each in pixels]
    chats = [[{"role": "user", "content": [image, text]}] for image in images]
    prepare = partial(processor.apply_chat_template, tokenize=True, return_dict=True, return_tensors="pt")
    name = f"{CHATS} images"
    return [(name, REFERENCE, lambda: [prepare(chat) for chat in chats]), (name, "one batch", lambda: prepare(chats))]


def audio_cases(processor: BailingMMProcessor) -> list[Case]:
    """Features of recordings; torchaudio's filter bank of each (the reference)."""
    generator = torch.Generator().manual_seed(0)
    waves = [0.1 * torch.randn(1, 16000 * SECONDS, generator=generator) for _ in range(RECORDINGS)]
    name, extractor = f"{RECORDINGS} x {SECONDS} s", processor.feature_extractor
    return [
        (name, REFERENCE, lambda: [fbank(32768 * wave, num_mel_bins=80, window_type="hamming") for wave in waves]),
        (name, "SANM", lambda: extractor(waves)),
        (name, "Whisper", lambda: extractor(waves, use_whisper_encoder=True)),
    ]


def measure(device: str = "cpu") -> list[Versus]:
    """Time the processor of the bundled checkpoint, which works on the CPU whatever the device."""
    processor = BailingMMProcessor.from_pretrained(ROOT)
    return versus([*image_cases(processor), *audio_cases(processor)], REPEATS)


table, plot = versus_table, versus_plot
