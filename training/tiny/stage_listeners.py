"""Stage 2a of Ming-Tiny: train the two networks that encode a voice prompt, and measure them.

Two decoders train the speech tokenizer: one spells the words from its codes, one predicts the mel, so the codes
contain both words and sound. The speaker encoder learns to tell timbres and pitches apart. Both are exported to ONNX
files in the runs folder, under the names that `ming.voices.VoiceEncoder.from_pretrained` reads.

Shape letters: B batch, T feature frames of 10 ms, N codes of 20 ms, K digits of a code, D width, C classes.
"""

import argparse
import json
import logging
import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm
from transformers import set_seed

from ming.cli.arguments import count, number_above_zero
from ming.modeling_encoders import length_mask
from ming.training.loop import SeededBatches, fit
from ming.training.objectives import ctc_exact, ctc_greedy, ctc_loss, ctc_targets
from ming.voices import (
    EMBEDDING_SIZE,
    SPEAKER_FILE,
    TOKENIZER_BANDS,
    TOKENIZER_FILE,
    speaker_features,
    tokenizer_features,
)

from .evaluate import EVALUATION_SEED, word_errors
from .listeners import (
    FRAMES_PER_CODE,
    ConvBlock,
    SpeakerEncoder,
    SpeechTokenizer,
    code_lengths,
    export_speaker_encoder,
    export_speech_tokenizer,
)
from .scenes import choose
from .sentences import sample_sentence
from .speech import (
    ACCENTS,
    PITCHES,
    SPEEDS,
    VARIANTS,
    SpeechPool,
    Utterance,
    Voice,
    add_noise,
    augment,
    sample_voice,
    speak,
    voice_names,
)
from .stage import ROOT, SEED

# Optimizer steps, batch size and learning rate.
NETWORKS = {"speech_tokenizer": (1500, 24, 2e-3), "speaker_encoder": (1500, 48, 2e-3)}
QUICK = (2, 4)  # steps and batch size

ALPHABET = " " + ascii_lowercase
DECODER_WIDTH = 96
PAINTED_BANDS = 32  # too coarse for harmonics: pitch belongs into the speaker embedding, phonemes into the codes
MEL_WEIGHT = 4.0
NOISE_SNR = (8.0, 25.0)  # dB
CROP_FRAMES = (100, 300)  # of 10 ms
PITCH_STEP = 10  # on the scale of espeak-ng; voices a step apart count as different
PITCH_CLASSES = (PITCHES[1] - PITCHES[0]) // PITCH_STEP
MARGIN, SCALE = 0.2, 20.0  # radians; inverse temperature
ACCENT_WEIGHT, SPEED_WEIGHT = 0.2, 0.5
TRIALS = ("any", "pitch", "timbre")
FAR_PITCH = 20


def spell(texts: list[str]) -> dict[str, torch.Tensor]:
    """CTC targets: `targets` [B, longest], indices in `ALPHABET` padded with zeros, and `target_lengths` [B]."""
    return ctc_targets([[ALPHABET.index(letter) for letter in text] for text in texts])


def speech_batch(heard: list[np.ndarray], clean: list[np.ndarray], texts: list[str]) -> dict[str, torch.Tensor]:
    """A batch for `SpeechTokenizerTask`.

    Args:
        heard: input recordings, float32 [samples] at 16 kHz.
        clean: the same without noise; if both are one object, its features are computed once.
        texts: their words.
    """
    clean_rows = [tokenizer_features(torch.from_numpy(waveform)).T for waveform in clean]
    heard_rows = [
        row if waveform is same else tokenizer_features(torch.from_numpy(waveform)).T
        for waveform, same, row in zip(heard, clean, clean_rows, strict=True)
    ]
    features, target = (
        nn.utils.rnn.pad_sequence(rows, batch_first=True).transpose(1, 2).contiguous()
        for rows in (heard_rows, clean_rows)
    )
    return {"features": features, "clean": target, "lengths": torch.tensor(list(map(len, clean_rows))), **spell(texts)}


class NoisySpeech(SeededBatches):
    """Batches of recordings of a pool, a share of them noisy."""

    def __init__(self, pool: SpeechPool, steps: int, batch_size: int, seed: int, noisy: float = 0.3):
        super().__init__(steps, batch_size, seed)
        self.pool, self.noisy = pool, noisy


class SpeechTokenizerData(NoisySpeech):
    """Item `step` is a batch of recordings of about the same duration; it depends on the seed only."""

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = self.rng(step)
        spoken = [self.pool[index] for index in self.pool.alike(rng, self.batch_size)]
        clean = [augment(utterance.waveform, rng) for utterance in spoken]
        heard = [
            add_noise(waveform, rng.uniform(*NOISE_SNR), rng).clip(-1.0, 1.0)
            if rng.random() < self.noisy
            else waveform
            for waveform in clean
        ]
        return speech_batch(heard, clean, [utterance.text for utterance in spoken])


class CodeDecoder(nn.Module):
    """Predicts something per code from the quantised values, and from further inputs beside them."""

    def __init__(self, input_size: int, output_size: int, width: int, dilations: tuple[int, ...]):
        super().__init__()
        self.widen = nn.Linear(input_size, width)
        self.blocks = nn.ModuleList(ConvBlock(width, dilation) for dilation in dilations)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, output_size)

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[B, N, input_size], mask [B, N, 1] -> [B, N, output_size]."""
        hidden = self.widen(inputs)
        for block in self.blocks:
            hidden = block(hidden, mask)
        return self.head(self.norm(hidden))


def painting(features: torch.Tensor) -> torch.Tensor:
    """Log-mel [B, 128, T] -> the frames of each code in broad bands, [B, N, 2, 32]."""
    features = F.pad(features, (0, features.shape[2] % FRAMES_PER_CODE))
    bands = features.unflatten(1, (PAINTED_BANDS, -1)).mean(dim=2)
    return bands.transpose(1, 2).unflatten(1, (-1, FRAMES_PER_CODE))


class SpeechTokenizerTask(nn.Module):
    """Trains the speech tokenizer with two decoders: one spells the words (CTC), one paints the mel.

    The painter also gets the mean of the recording's log-mel, so that voice and level need not be in the codes.
    """

    def __init__(self, tokenizer: SpeechTokenizer, width: int = DECODER_WIDTH):
        super().__init__()
        self.tokenizer = tokenizer
        digits = len(tokenizer.quantizer.steps)
        self.speller = CodeDecoder(digits, len(ALPHABET) + 1, width, (1, 2, 4))
        self.painter = CodeDecoder(digits + TOKENIZER_BANDS, FRAMES_PER_CODE * PAINTED_BANDS, width, (1, 2))

    def forward(
        self,
        features: torch.Tensor,
        clean: torch.Tensor,
        lengths: torch.Tensor,
        targets: torch.Tensor,
        target_lengths: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Scalars: `loss`, its parts `ctc` and `mel_l1`, the share `exact` without error, `perplexity` of the codes.

        Args:
            features, clean: log-mel [B, 128, T], the input and the target of the painter.
            lengths, target_lengths: int64 [B].
            targets: int64 [B, letters].
        """
        latents = self.tokenizer.latents(features, lengths)
        values = self.tokenizer.quantizer(latents)
        is_code = length_mask(code_lengths(lengths), values.shape[1])
        mask = is_code[..., None]
        logits = self.speller(values, mask)
        ctc = ctc_loss(logits, code_lengths(lengths), targets, target_lengths)
        mean = (clean * length_mask(lengths, clean.shape[2])[:, None]).sum(dim=2) / lengths[:, None]
        painted = self.painter(torch.cat([values, mean[:, None].expand(-1, values.shape[1], -1)], dim=2), mask)
        target = painting(clean)
        is_frame = length_mask(lengths, FRAMES_PER_CODE * values.shape[1]).unflatten(1, (-1, FRAMES_PER_CODE))
        mel_l1 = (painted.view_as(target) - target)[is_frame].abs().mean()
        return {
            "loss": ctc + MEL_WEIGHT * mel_l1,
            "ctc": ctc.detach(),
            "mel_l1": mel_l1.detach(),
            "exact": ctc_exact(logits, code_lengths(lengths), targets, target_lengths),
            "perplexity": perplexity(self.tokenizer.quantizer.codes(latents.detach()[is_code])),
        }

    def transcribe(self, features: torch.Tensor, lengths: torch.Tensor) -> list[str]:
        """Log-mel [B, 128, T], frames [B] -> the words, decoded from the codes."""
        values = self.tokenizer.quantizer.values(self.tokenizer(features, lengths))
        mask = length_mask(code_lengths(lengths), values.shape[1])[..., None]
        rows = ctc_greedy(self.speller(values, mask), code_lengths(lengths))
        return ["".join(ALPHABET[letter] for letter in row) for row in rows]


def perplexity(codes: torch.Tensor) -> torch.Tensor:
    """Codes [N] -> the number of equally frequent codes with the same entropy."""
    share = torch.bincount(codes).float() / len(codes)
    return torch.special.entr(share).sum().exp()


def voice_labels(voices: list[Voice]) -> dict[str, torch.Tensor]:
    """Labels from the metadata of voices: classes `timbre` (variant and pitch) and `accent`, `speed` in -1..1."""
    accents, variants = zip(*(voice.name.split("+") for voice in voices), strict=True)
    steps = [min((voice.pitch - PITCHES[0]) // PITCH_STEP, PITCH_CLASSES - 1) for voice in voices]
    timbres = [VARIANTS.index(name) * PITCH_CLASSES + step for name, step in zip(variants, steps, strict=True)]
    middle, reach = sum(SPEEDS) / 2, (SPEEDS[1] - SPEEDS[0]) / 2
    return {
        "timbre": torch.tensor(timbres),
        "accent": torch.tensor([ACCENTS.index(accent) for accent in accents]),
        "speed": torch.tensor([(voice.speed - middle) / reach for voice in voices]),
    }


def sample_duration(rng: np.random.Generator) -> int:
    """Random length in samples of the parts of recordings in a batch: windows of 25 ms every 10 ms."""
    return 400 + 160 * (int(rng.integers(*CROP_FRAMES)) - 1)


def random_part(waveform: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """`samples` of a recording from a random place; a short one is repeated."""
    start = int(rng.integers(max(1, len(waveform) - samples)))
    return np.resize(waveform[start:], samples)


class SpeakerEncoderData(NoisySpeech):
    """Item `step` is a batch of parts of recordings of equal length; it depends on the seed only."""

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = self.rng(step)
        spoken = [self.pool[int(rng.integers(len(self.pool)))] for _ in range(self.batch_size)]
        samples = sample_duration(rng)
        features = [speaker_features(torch.from_numpy(self._part(utterance, samples, rng))) for utterance in spoken]
        return {"features": torch.stack(features), **voice_labels([utterance.voice for utterance in spoken])}

    def _part(self, utterance: Utterance, samples: int, rng: np.random.Generator) -> np.ndarray:
        """`random_part` of an augmented recording."""
        snr = rng.uniform(*NOISE_SNR) if rng.random() < self.noisy else None
        return random_part(augment(utterance.waveform, rng, snr), samples, rng)


def angular_margin_loss(cosines: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Additive angular margin (Deng et al., arXiv 1801.07698): cross-entropy as if the right class were farther away.

    Args:
        cosines: [B, C] between embeddings and classes.
        labels: int64 [B].
    """
    right = cosines.gather(1, labels[:, None])
    sines = (1 - right.square()).clamp(min=1e-6).sqrt()
    farther = right * math.cos(MARGIN) - sines * math.sin(MARGIN)
    return F.cross_entropy(SCALE * cosines.scatter(1, labels[:, None], farther), labels)


class SpeakerEncoderTask(nn.Module):
    """Trains the speaker encoder with heads for timbre and pitch (with margin) and, lightly, accent and speed."""

    def __init__(self, encoder: SpeakerEncoder):
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(
            {
                "timbre": nn.Linear(EMBEDDING_SIZE, len(VARIANTS) * PITCH_CLASSES, bias=False),
                "accent": nn.Linear(EMBEDDING_SIZE, len(ACCENTS)),
                "speed": nn.Linear(EMBEDDING_SIZE, 1),
            }
        )

    def forward(
        self, features: torch.Tensor, timbre: torch.Tensor, accent: torch.Tensor, speed: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Scalars: `loss`, shares of right classes, error of the speed (1 is half of its range).

        Args:
            features: [B, T, 80].
            timbre, accent: int64 [B].
            speed: float32 [B].
        """
        embedding = self.encoder(features)
        cosines = F.linear(F.normalize(embedding, dim=1), F.normalize(self.heads["timbre"].weight, dim=1))
        accents, speeds = self.heads["accent"](embedding), self.heads["speed"](embedding)[:, 0]
        loss = angular_margin_loss(cosines, timbre)
        loss = loss + ACCENT_WEIGHT * F.cross_entropy(accents, accent) + SPEED_WEIGHT * F.mse_loss(speeds, speed)
        return {
            "loss": loss,
            "timbre": (cosines.argmax(dim=1) == timbre).float().mean(),
            "accent": (accents.argmax(dim=1) == accent).float().mean(),
            "speed_l1": (speeds - speed).abs().mean().detach(),
        }


def new_task(name: str) -> Any:
    """The task of one of `NETWORKS` with the random weights that every run starts from."""
    set_seed(SEED)
    if name == "speech_tokenizer":
        return SpeechTokenizerTask(SpeechTokenizer())
    return SpeakerEncoderTask(SpeakerEncoder())


def load_task(name: str, runs: Path) -> Any:
    """The trained task of one of `NETWORKS`, in eval mode.

    Raises:
        FileNotFoundError: it is not trained yet.
    """
    task = new_task(name)
    task.load_state_dict(load_file(runs / f"{name}.safetensors"))
    return task.eval()


def train_network(
    name: str,
    runs: Path,
    pool: SpeechPool,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    quick: bool = False,
) -> Any:
    """Train one of `NETWORKS`, or continue; write its weights (with heads) and its ONNX file into RUNS."""
    task = new_task(name)
    default_steps, default_size, default_rate = NETWORKS[name]
    default_steps, default_size = QUICK if quick else (default_steps, default_size)
    data_class = SpeechTokenizerData if name == "speech_tokenizer" else SpeakerEncoderData
    data = data_class(pool, steps or default_steps, batch_size or default_size, SEED)
    fit(task, data, runs / name, learning_rate or default_rate, SEED)
    task.cpu().eval()
    save_file(task.state_dict(), runs / f"{name}.safetensors")
    if name == "speech_tokenizer":
        export_speech_tokenizer(task.tokenizer, runs / TOKENIZER_FILE)
    else:
        export_speaker_encoder(task.encoder, runs / SPEAKER_FILE)
    return task


@torch.no_grad()
def evaluate_speech_tokenizer(
    task: SpeechTokenizerTask,
    utterances: Iterable[Utterance],
    snr: float | None = None,
    batch_size: int = 32,
    seed: int = EVALUATION_SEED,
) -> dict[str, float]:
    """Measure on utterances as they are, or with noise at `snr` dB.

    Returns:
        `wer`: percent, by greedy CTC on the codes; `mel_l1`: in Whisper's log-mel units (1 is 40 dB of power);
        `codes`: number of different codes; `perplexity`: see that function.
    """
    rng = np.random.default_rng(seed)
    spoken = list(utterances)
    codes, distances, errors = [], [], 0
    for start in tqdm(range(0, len(spoken), batch_size), desc="speech tokenizer", leave=False):
        part = spoken[start : start + batch_size]
        texts, clean = [item.text for item in part], [item.waveform for item in part]
        heard = clean if snr is None else [add_noise(waveform, snr, rng).clip(-1.0, 1.0) for waveform in clean]
        batch = speech_batch(heard, clean, texts)
        is_code = length_mask(code_lengths(batch["lengths"]), math.ceil(batch["features"].shape[2] / FRAMES_PER_CODE))
        codes.append(task.tokenizer(batch["features"], batch["lengths"])[is_code])
        distances.append(float(task(**batch)["mel_l1"]) * int(is_code.sum()))
        found = task.transcribe(batch["features"], batch["lengths"])
        errors += sum(word_errors(text, words) for text, words in zip(texts, found, strict=True))
    joined = torch.cat(codes)
    return {
        "wer": 100 * errors / sum(len(item.text.split()) for item in spoken),
        "mel_l1": sum(distances) / len(joined),
        "codes": len(joined.unique()),
        "perplexity": float(perplexity(joined)),
    }


def sample_trial(rng: np.random.Generator, kind: str, split: str = "test") -> tuple[Voice, Voice]:
    """Two voices of a split that differ in name, pitch and speed ("any"), in pitch, or in timbre (the variant)."""
    voice, other = sample_voice(rng, split), sample_voice(rng, split)
    if kind == "pitch":
        far = [pitch for pitch in range(PITCHES[0], PITCHES[1] + 1) if abs(pitch - voice.pitch) >= FAR_PITCH]
        return voice, replace(voice, pitch=choose(rng, far))
    variant = voice.name.split("+")[1]
    names = [name for name in voice_names(split) if name.split("+")[1] != variant]
    name = choose(rng, names)
    return voice, replace(voice if kind == "timbre" else other, name=name)


@torch.no_grad()
def evaluate_speaker_encoder(
    encoder: SpeakerEncoder, trials: int = 200, seed: int = EVALUATION_SEED
) -> dict[str, float]:
    """Per kind the percentage of trials in which two sentences of one unseen voice are nearer than one of another.

    espeak-ng speaks the sentences, since a pool rarely has two recordings of one voice, pitch and speed.

    Raises:
        RuntimeError: espeak-ng is missing.
    """
    results = {}
    for kind in TRIALS:
        right = 0
        for number in tqdm(range(trials), desc=f"speaker encoder, {kind}", leave=False):
            rng = np.random.default_rng((seed, TRIALS.index(kind), number))
            voice, other = sample_trial(rng, kind)
            waveforms = [speak(sample_sentence(rng, "test"), speaker) for speaker in (voice, voice, other)]
            features = [speaker_features(torch.from_numpy(waveform)) for waveform in waveforms]
            first, same, different = (encoder(row[None])[0] for row in features)
            right += int(first @ same > first @ different)
        results[kind] = 100 * right / trials
    return results


def main() -> None:
    """Train one of the two networks or both, or measure both."""
    parser = argparse.ArgumentParser(prog="python -m training.tiny.stage_listeners", description=main.__doc__)
    parser.add_argument("action", choices=(*NETWORKS, "both", "evaluate"))
    parser.add_argument("--quick", action="store_true", help="two steps of each, to see that it runs")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "tiny", help="checkpoints and logs")
    parser.add_argument("--speech", type=Path, help="speech pool; default: train or test pool in .cache/tiny")
    parser.add_argument("--steps", type=count)
    parser.add_argument("--batch-size", type=count)
    parser.add_argument("--learning-rate", type=number_above_zero(1.0))
    parser.add_argument("--threads", type=count, default=1, help="CPU threads")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    split = "test" if args.action == "evaluate" else "train"
    pool = SpeechPool(args.speech or ROOT / ".cache" / "tiny" / f"speech_{split}")
    if args.action == "evaluate":
        task, encoder = load_task("speech_tokenizer", args.runs), load_task("speaker_encoder", args.runs).encoder
        utterances = [pool[index] for index in range(len(pool))]
        report = {f"speech_tokenizer_{snr}": evaluate_speech_tokenizer(task, utterances, snr) for snr in (None, 15.0)}
        report["speaker_encoder"] = evaluate_speaker_encoder(encoder)
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
        return
    args.runs.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS if args.action == "both" else (args.action,):
        train_network(name, args.runs, pool, args.steps, args.batch_size, args.learning_rate, args.quick)


if __name__ == "__main__":
    main()
