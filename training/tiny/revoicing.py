"""The speaker encoder learns to recognise a voice in the output of the audio detokenizer.

It was trained on recordings, where it tells voices by fine detail that a small flow and vocoder do not keep. A copy of
it is trained on resynthesised recordings: its embedding must equal that of the first encoder for the recording itself.
Half of its inputs are still recordings, so that the embeddings that flow and talker were trained with stay valid.
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
from ming.mel import MelSettings, prompt_mel
from ming.training.loop import SeededBatches
from ming.voices import speaker_features

from .listeners import SpeakerEncoder
from .speaking import HeardPool, long_enough
from .speech import SAMPLE_RATE
from .stage_listeners import random_part, sample_duration

LONGEST = 200  # codes of a resynthesised utterance
CLEAN = 0.5  # share of recordings in a batch; the others are resynthesised
WAYS = ("a", "b")  # a: vocoder, from the mel of the recording; b: flow and vocoder, from its codes


@torch.no_grad()
def speak_again(
    heard: HeardPool, detokenizer: AudioDetokenizer, path: str | os.PathLike, count: int, seed: int
) -> dict[str, torch.Tensor]:
    """Resynthesise utterances at 16 kHz, or read them from the file of an earlier call.

    Returns:
        For number n "a<n>" and "b<n>", float16 [samples], see `WAYS`; "index" int64 [count]: the utterances' indices
        in the pool.
    """
    path = Path(path)
    if path.is_file():
        return load_file(path)
    rng, tensors = np.random.default_rng(seed), {}
    short = [index for index, codes in enumerate(heard.codes) if len(codes) <= LONGEST]
    chosen = rng.permutation(short)[:count].tolist()
    for number, index in enumerate(tqdm(chosen, desc="resynthesis", unit="utterance")):
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


class RevoicedData(SeededBatches):
    """Item `step`: parts of equal length of recordings or of their resynthesis, and the numbers of the utterances."""

    def __init__(self, heard: HeardPool, again: dict[str, torch.Tensor], steps: int, batch_size: int, seed: int):
        super().__init__(steps, batch_size, seed)
        self.heard, self.again, self.index = heard, again, again["index"].tolist()

    def waveform(self, number: int, way: str | None = None) -> np.ndarray:
        """An utterance in one of `WAYS`, or its recording."""
        if way is None:
            return self.heard.pool[self.index[number]].waveform
        return self.again[f"{way}{number}"].float().numpy()

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = self.rng(step)
        numbers = rng.integers(len(self.index), size=self.batch_size)
        samples = sample_duration(rng)
        features = []
        for number in numbers.tolist():
            waveform = self.waveform(number, None if rng.random() < CLEAN else WAYS[rng.integers(len(WAYS))])
            features.append(speaker_features(torch.from_numpy(random_part(waveform, samples, rng))))
        return {"features": torch.stack(features), "numbers": torch.from_numpy(numbers)}


class RevoicedTask(nn.Module):
    """One minus the cosine to the embedding that the first encoder gives the whole recording.

    Args:
        first: the encoder that was trained on recordings.
        data: its recordings give the target embeddings.
    """

    def __init__(self, first: SpeakerEncoder, data: RevoicedData):
        super().__init__()
        self.encoder = copy.deepcopy(first)
        targets = []
        with torch.no_grad():
            for number in range(len(data.index)):
                waveform = long_enough(torch.from_numpy(data.waveform(number)))
                targets.append(F.normalize(first(speaker_features(waveform)[None])[0], dim=0))
        self.targets = [torch.stack(targets)]  # in a list: not a buffer of the module

    def train(self, mode: bool = True) -> "RevoicedTask":
        """Set the mode; the encoder keeps the batch statistics of the recordings."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, features: torch.Tensor, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        embeddings = F.normalize(self.encoder(features), dim=1)
        cosines = (embeddings * self.targets[0].to(embeddings.device)[numbers]).sum(dim=1)
        return {"loss": 1 - cosines.mean(), "cosine": cosines.mean().detach()}
