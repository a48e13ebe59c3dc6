"""The speaker encoder learns to know a voice again in what the detokenizer makes of it.

It was trained on recordings, where every voice is told by fine detail that a small flow and vocoder do not keep. A
copy of it learns, from recordings spoken again by the detokenizer, to give what the first one gave for the recording
itself; half of what it hears are still recordings, so that what flow and talker were told about voices stays true.
"""

import copy
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torchaudio.functional import resample
from tqdm import tqdm

from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from ming.voices import MelSettings, prompt_mel, speaker_features

from .listeners import SpeakerEncoder
from .speaking import HeardPool, long_enough
from .speech import SAMPLE_RATE
from .stage_listeners import random_part, sample_duration

LONGEST = 200  # codes of an utterance that is spoken again
CLEAN = 0.5  # share of recordings in a batch; the others were spoken again
WAYS = ("a", "b")  # by the vocoder from the recording's mel; by flow and vocoder from its codes


@torch.no_grad()
def speak_again(
    heard: HeardPool, detokenizer: AudioDetokenizer, path: str | os.PathLike, count: int, seed: int
) -> dict[str, torch.Tensor]:
    """Utterances that a detokenizer speaks again at 16 kHz, kept in a file: for number n "a<n>" and "b<n>" float16
    [samples], see `WAYS`, and in "index" which utterances of the pool they are."""
    path = Path(path)
    if path.is_file():
        return load_file(path)
    rng, tensors = np.random.default_rng(seed), {}
    short = [index for index, codes in enumerate(heard.codes) if len(codes) <= LONGEST]
    chosen = rng.permutation(short)[:count].tolist()
    for number, index in enumerate(tqdm(chosen, desc="speaking again", unit="utterance")):
        mel = prompt_mel(torch.from_numpy(heard.pool[index].waveform))
        generator = torch.Generator().manual_seed(number)
        embedding = heard.embeddings[index][None]
        spoken = (
            detokenizer.vocode([mel.T], [generator]),
            detokenizer.decode([heard.codes[index].long()], embedding, generator=generator),
        )
        for way, (waveform,) in zip(WAYS, spoken, strict=True):
            tensors[f"{way}{number}"] = resample(waveform, MelSettings.rate, SAMPLE_RATE).half()
    tensors["index"] = torch.tensor(chosen)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)
    return tensors


class RevoicedData(torch.utils.data.Dataset):
    """Item `step`: equally long parts of recordings or of what was made of them, and the utterances' numbers."""

    def __init__(self, heard: HeardPool, again: dict[str, torch.Tensor], steps: int, batch_size: int, seed: int):
        self.heard, self.again, self.index = heard, again, again["index"].tolist()
        self.steps, self.batch_size, self.seed = steps, batch_size, seed

    def __len__(self) -> int:
        return self.steps

    def waveform(self, number: int, way: str | None = None) -> np.ndarray:
        """An utterance in one of `WAYS`, or its recording."""
        if way is None:
            return self.heard.pool[self.index[number]].waveform
        return self.again[f"{way}{number}"].float().numpy()

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((self.seed, step))
        numbers = rng.integers(len(self.index), size=self.batch_size)
        samples = sample_duration(rng)
        features = []
        for number in numbers.tolist():
            waveform = self.waveform(number, None if rng.random() < CLEAN else WAYS[rng.integers(len(WAYS))])
            features.append(speaker_features(torch.from_numpy(random_part(waveform, samples, rng))))
        return {"features": torch.stack(features), "numbers": torch.from_numpy(numbers)}


class RevoicedTask(nn.Module):
    """One minus the cosine to what the first encoder gives for the whole recording.

    Args:
        first: the encoder that was trained on recordings.
        data: whose recordings it hears.
    """

    def __init__(self, first: SpeakerEncoder, data: RevoicedData):
        super().__init__()
        self.encoder = copy.deepcopy(first)
        wanted = []
        with torch.no_grad():
            for number in range(len(data.index)):
                waveform = long_enough(torch.from_numpy(data.waveform(number)))
                wanted.append(F.normalize(first(speaker_features(waveform)[None])[0], dim=0))
        self.wanted = [torch.stack(wanted)]  # in a list: no part of the module

    def train(self, mode: bool = True) -> "RevoicedTask":
        """The encoder keeps the statistics of the recordings."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, features: torch.Tensor, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        embeddings = F.normalize(self.encoder(features), dim=1)
        cosines = (embeddings * self.wanted[0].to(embeddings.device)[numbers]).sum(dim=1)
        return {"loss": 1 - cosines.mean(), "cosine": cosines.mean().detach()}
