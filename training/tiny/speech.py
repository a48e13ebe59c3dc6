"""Speech of the world: espeak-ng, augmentation, and a pool of many utterances.

Training needs espeak-ng, running the model does not. Voices are English accents times voice variants; a voice belongs
to "train" or "test" by the hash of its name (`scenes.split_of`), and so does a sentence.
"""

import argparse
import io
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import torch
from torchaudio.functional import lowpass_biquad
from torchaudio.transforms import Resample
from tqdm import tqdm

from ming.cli.arguments import count, seed
from ming.files import replacing

from .espeak import raise_if_missing, synthesise, word_starts
from .questions import say
from .scenes import check_split, choose, sample_scene, split_of
from .sentences import draw_command, read_command, sample_sentence, sample_spoken_question

SAMPLE_RATE = 16000  # Hz
# Plain "en" is British; "en-gb" is the same accent, but espeak-ng 1.51 ignores variants after it.
ACCENTS = ("en", "en-us", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-us-nyc")
VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5"),
    *("adam", "Alex", "Andrea", "Andy", "Annie", "belinda", "david", "edward", "linda", "Michael", "paul", "steph"),
)
SPEEDS = (120, 220)  # words per minute
PITCHES = (20, 80)  # espeak-ng's own scale, 0 to 99
UTTERANCES_PER_SHARD = 250
QUESTION_SHARE = 0.25
ALIKE = 8  # utterances of about the same duration are one of so many parts of a sorted sample
TRIM_LEVEL = 10 ** (-50 / 20)  # silence is below -50 dB of full scale
SETTINGS = "settings.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Voice:
    """A voice of espeak-ng: `name` such as "en-gb+f3", speed in words per minute, pitch 0 to 99."""

    name: str
    speed: int = 160
    pitch: int = 50


@dataclass(frozen=True)
class Utterance:
    """A spoken sentence: float32 mono waveform [N] at 16 kHz, its words, its voice."""

    waveform: np.ndarray
    text: str
    voice: Voice


class Speaker(Protocol):
    """A source of spoken sentences: `SpeechPool` (recorded) or `LiveSpeaker` (espeak-ng on demand)."""

    @property
    def split(self) -> str:
        """The split of its sentences and voices."""

    def sentence(self, rng: np.random.Generator) -> Utterance:
        """A random sentence."""

    def question(self, rng: np.random.Generator, texts: list[str]) -> Utterance | None:
        """One of the spoken questions `texts`, or None if none of them can be spoken."""

    def command(self, rng: np.random.Generator) -> Utterance | None:
        """A spoken request for a picture of one shape, or None if there is none."""


@cache
def voice_names(split: str) -> tuple[str, ...]:
    """The voices ("accent+variant") of a split; 175 in both together."""
    check_split(split)
    names = (f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS)
    return tuple(name for name in names if split_of(name) == split)


def sample_voice(rng: np.random.Generator, split: str) -> Voice:
    """A random voice of a split, at a random speed and pitch."""
    name = choose(rng, voice_names(split))
    return Voice(name, int(rng.integers(SPEEDS[0], SPEEDS[1] + 1)), int(rng.integers(PITCHES[0], PITCHES[1] + 1)))


@cache
def _resampler(source_rate: int) -> Resample:
    return Resample(source_rate, SAMPLE_RATE)


def speak(text: str, voice: Voice) -> np.ndarray:
    """Speak a sentence.

    Returns:
        float32 waveform [N], mono, 16 kHz, without leading and trailing silence.

    Raises:
        RuntimeError: espeak-ng is missing, failed, or returned silence.
    """
    samples, source_rate = synthesise(text, voice.name, voice.speed, voice.pitch)
    pcm = np.frombuffer(samples, dtype="<i2")
    waveform = _resampler(source_rate)(torch.from_numpy(pcm.astype(np.float32) / 32768.0)).numpy()
    loud = np.flatnonzero(np.abs(waveform) > TRIM_LEVEL)
    if not len(loud):
        raise RuntimeError(f"espeak-ng gave silence for {text!r} with {voice}")
    return waveform[loud[0] : loud[-1] + 1].clip(-1.0, 1.0)


def add_noise(waveform: np.ndarray, snr: float, rng: np.random.Generator) -> np.ndarray:
    """Add noise at a signal-to-noise ratio in dB: white, or, as often, coloured towards low frequencies."""
    noise = rng.standard_normal(len(waveform), dtype=np.float32)
    if rng.random() < 0.5:
        cutoff = float(rng.uniform(500.0, 4000.0))
        noise = lowpass_biquad(torch.from_numpy(noise), SAMPLE_RATE, cutoff).numpy()
    power, noise_power = np.mean(np.square(waveform)), np.mean(np.square(noise))
    return waveform + noise * np.float32(np.sqrt(power / noise_power / 10 ** (snr / 10)))


def augment(waveform: np.ndarray, rng: np.random.Generator, snr: float | None = None) -> np.ndarray:
    """Vary a recording: gain, silence around it, sometimes a light low-pass, and noise.

    Args:
        waveform: float32 [N], 16 kHz.
        rng: source of randomness.
        snr: signal-to-noise ratio in dB, measured over speech and the silence around it; None for a recording that is
            clean or nearly so (25 to 50 dB).

    Returns:
        float32 [M], M >= N, within -1..1.
    """
    silences: list[np.ndarray] = [np.zeros(int(rng.uniform(0.02, 0.25) * SAMPLE_RATE), np.float32) for _ in range(2)]
    waveform = np.concatenate([silences[0], waveform, silences[1]])
    if rng.random() < 0.2:
        cutoff = float(rng.uniform(3500.0, 7000.0))
        waveform = lowpass_biquad(torch.from_numpy(waveform), SAMPLE_RATE, cutoff).numpy()
    waveform = waveform * np.float32(rng.uniform(0.3, 0.95) / max(np.abs(waveform).max(), 1e-4))
    if snr is not None:
        waveform = add_noise(waveform, snr, rng)
    elif rng.random() < 0.5:
        waveform = add_noise(waveform, rng.uniform(25.0, 50.0), rng)
    return np.clip(waveform, -1.0, 1.0).astype(np.float32)


@dataclass(frozen=True)
class LiveSpeaker:
    """Speaks on demand; 10 to 30 ms per sentence."""

    split: str

    def sentence(self, rng: np.random.Generator) -> Utterance:
        """A random sentence of the split in a random voice of the split."""
        text, voice = sample_sentence(rng, self.split), sample_voice(rng, self.split)
        return Utterance(speak(text, voice), text, voice)

    def question(self, rng: np.random.Generator, texts: list[str]) -> Utterance | None:
        """One of the questions that belong to the split, spoken, or None."""
        texts = [text for text in texts if split_of(text) == self.split]
        if not texts:
            return None
        text, voice = choose(rng, texts), sample_voice(rng, self.split)
        return Utterance(speak(text, voice), text, voice)

    def command(self, rng: np.random.Generator) -> Utterance:
        """A spoken request for a picture of one shape."""
        while True:
            text = say(draw_command(sample_scene(rng, self.split, 1), rng))
            if split_of(text) == self.split:
                voice = sample_voice(rng, self.split)
                return Utterance(speak(text, voice), text, voice)


class SpeechPool:
    """Utterances on disk, as made by `SpeechPool.build`.

    A shard is two files: `shard_00000.bin`, FLAC recordings end to end, and `shard_00000.json`, one record per
    recording: offset and length in bytes, text, voice, whether it is a question, and the character and second where
    each word begins. No file stays open after a call, so forked worker processes may use a pool.

    Raises:
        FileNotFoundError: the directory has no shards.
    """

    def __init__(self, path: str | os.PathLike[str]):
        indices = sorted(Path(path).glob("shard_*.json"))
        if not indices:
            raise FileNotFoundError(
                f"no speech in {path}; make it with: python -m training.tiny.speech --out {path} --count 24000"
            )
        self.split: str = json.loads((Path(path) / SETTINGS).read_text(encoding="utf-8"))["split"]
        self.records: list[dict] = []
        self.files: list[Path] = []
        for index in indices:
            records = json.loads(index.read_text(encoding="utf-8"))
            self.records += records
            self.files += [index.with_suffix(".bin")] * len(records)
        self.sentences = [i for i, record in enumerate(self.records) if not record["question"]]
        self.questions: dict[str, list[int]] = {}
        for i, record in enumerate(self.records):
            if record["question"]:
                self.questions.setdefault(record["text"], []).append(i)
        self.commands = [i for i in self.sentences if read_command(self.records[i]["text"]) is not None]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Utterance:
        """Utterance number `index`, decoded."""
        record = self.records[index]
        with self.files[index].open("rb") as file:
            file.seek(record["offset"])
            data = file.read(record["length"])
        waveform, _ = soundfile.read(io.BytesIO(data), dtype="float32")
        return Utterance(waveform, record["text"], Voice(**record["voice"]))

    def sentence(self, rng: np.random.Generator) -> Utterance:
        """A random utterance that is not one of the spoken questions."""
        return self[choose(rng, self.sentences)]

    def alike(self, rng: np.random.Generator, count: int, among: Sequence[int] | None = None) -> list[int]:
        """Indices of `count` random utterances of about the same duration, which saves half of the padding.

        Args:
            among: indices to sample from; None for all.
        """
        among = range(len(self)) if among is None else among
        candidates = [among[place] for place in rng.integers(len(among), size=ALIKE * count).tolist()]
        candidates.sort(key=lambda index: self.records[index]["length"])
        start = int(rng.integers(ALIKE)) * count
        return candidates[start : start + count]

    def question(self, rng: np.random.Generator, texts: list[str]) -> Utterance | None:
        """A recording of one of the questions `texts`, or None if the pool has none of them."""
        known = [text for text in texts if text in self.questions]
        return self[choose(rng, self.questions[choose(rng, known)])] if known else None

    def command(self, rng: np.random.Generator) -> Utterance | None:
        """A spoken request for a picture of one shape, or None if the pool has none."""
        return self[choose(rng, self.commands)] if self.commands else None

    @classmethod
    def build(
        cls, path: str | os.PathLike[str], count: int, split: str, seed: int = 0, num_workers: int = 2
    ) -> "SpeechPool":
        """Synthesise `count` utterances, a quarter of them questions, into a directory; finished shards are kept.

        Raises:
            RuntimeError: espeak-ng is missing or fails.
            ValueError: the directory was made with another split or seed.
        """
        check_split(split)
        raise_if_missing()
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        _claim(path, {"split": split, "seed": seed})
        starts = range(0, count, UTTERANCES_PER_SHARD)
        jobs = [
            (path / f"shard_{number:05d}.json", number, min(UTTERANCES_PER_SHARD, count - start), split, seed)
            for number, start in enumerate(starts)
        ]
        jobs = [job for job in jobs if not job[0].exists()]
        logger.info("synthesising %d shards into %s", len(jobs), path)
        # Spawned, not forked: the threads of torch do not survive a fork.
        with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as executor:
            futures = [executor.submit(_build_shard, *job) for job in jobs]
            for future in tqdm(as_completed(futures), total=len(futures), desc=f"speech ({split})", unit="shard"):
                future.result()
        return cls(path)


def _claim(path: Path, settings: dict) -> None:
    """Write the settings of a new directory, or check those of an existing one."""
    file = path / SETTINGS
    if not file.exists():
        with replacing(file) as partial:
            partial.write_text(json.dumps(settings), encoding="utf-8")
    elif (found := json.loads(file.read_text(encoding="utf-8"))) != settings:
        raise ValueError(f"{path} was made with {found}, not {settings}; choose another directory or delete it")


def _build_shard(index: Path, number: int, count: int, split: str, seed: int) -> None:
    """Synthesise one shard; the index is written last and atomically, so an interrupted run leaves no half shard."""
    torch.set_num_threads(1)
    rng = np.random.default_rng((seed, number))
    records, offset = [], 0
    with index.with_suffix(".bin").open("wb") as file:
        for _ in range(count):
            question = bool(rng.random() < QUESTION_SHARE)
            text = (sample_spoken_question if question else sample_sentence)(rng, split)
            voice = sample_voice(rng, split)
            buffer = io.BytesIO()
            soundfile.write(buffer, speak(text, voice), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            data = buffer.getvalue()
            file.write(data)
            records.append(
                {
                    **{"offset": offset, "length": len(data), "text": text, "voice": vars(voice)},
                    **{"question": question, "starts": word_starts(text, *vars(voice).values())},
                }
            )
            offset += len(data)
    partial = index.with_suffix(".partial")
    partial.write_text(json.dumps(records), encoding="utf-8")
    partial.replace(index)


def main() -> None:
    """Synthesise a pool of utterances into a directory."""
    parser = argparse.ArgumentParser(prog="python -m training.tiny.speech", description=main.__doc__)
    parser.add_argument("--out", required=True, help="directory to fill")
    parser.add_argument("--count", type=count, default=24000, help="number of utterances")
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--workers", type=count, default=2)
    arguments = parser.parse_args()
    SpeechPool.build(arguments.out, arguments.count, arguments.split, arguments.seed, arguments.workers)


if __name__ == "__main__":
    main()
