"""Audio front ends: filter banks for the SANM encoder, log-mel spectrograms for the Whisper encoder.

Letters: B rows (prompts), N recordings of a row, T feature frames, L all frames of a row, D feature width.
"""

import functools
import math
from typing import Any

import numpy as np
import torch
from transformers import WhisperFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin
from transformers.utils import logging

from .compat import keeps_auto_map
from .media import SILENCE_PEAK, load_audio, loudest, require, resample

logger = logging.get_logger(__name__)

INT16_SCALE = 32768.0  # kaldi's filter banks expect samples on the scale of 16-bit integers
WHISPER_HOP_SECONDS = 0.01
WHISPER_MIN_SAMPLES = 201  # the spectrogram reflects 200 samples at both ends
WHISPER_POSITION_FRAMES = 2  # mel frames of 10 ms in one position of the encoder (its second convolution has stride 2)


@functools.lru_cache(maxsize=4)
def _whisper_extractor(num_mel_bins: int, sampling_rate: int) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=num_mel_bins, sampling_rate=sampling_rate)


def stack_frames(frames: torch.Tensor, window: int, hop: int) -> torch.Tensor:
    """frames [T, D] -> [ceil(T / hop), window * D]: each with its neighbours, `window` in all, at every `hop`-th one.

    The first and the last frame are repeated beyond the ends.
    """
    centres = torch.arange(0, len(frames), hop)
    neighbours = torch.arange(window) - (window - 1) // 2
    return frames[(centres[:, None] + neighbours).clamp(0, len(frames) - 1)].flatten(1)


@keeps_auto_map
class BailingMMFeatureExtractor(FeatureExtractionMixin):
    """Turns recordings into the input features of one of the two audio encoders.

    Args:
        sampling_rate: Hz; every recording is resampled to it.
        num_mel_bins, frame_length, frame_shift: filter banks of the SANM front end; the last two in ms.
        lfr_m, lfr_n: window and hop, in frames, of its low frame rate stacking.
        cmvn_shift, cmvn_scale: lists of `num_mel_bins * lfr_m` floats, applied as `(x + shift) * scale`; None leaves
            the features as they are.
        whisper_num_mel_bins: width of the Whisper features.
        max_seconds: longest recording for the SANM encoder.
        max_whisper_positions: positions (20 ms each) of the Whisper encoder; 15,000 are 300 s.
        trained_seconds: longest recording that the encoders were trained on; longer ones are taken with a warning.
            None for encoders that take recordings of any length.
        mono: `"mean"` mixes channels down, `"first"` takes the first channel as the released code does.

    Raises:
        ValueError: `cmvn_shift` and `cmvn_scale` of another length, or one without the other.
    """

    model_input_names = ["audio_feats", "audio_feats_lengths", "input_features"]  # the last one is vLLM's

    def __init__(
        self,
        sampling_rate: int = 16000,
        num_mel_bins: int = 80,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        lfr_m: int = 7,
        lfr_n: int = 6,
        cmvn_shift: list[float] | None = None,
        cmvn_scale: list[float] | None = None,
        whisper_num_mel_bins: int = 128,
        max_seconds: float = 1800.0,
        max_whisper_positions: int = 15000,
        mono: str = "mean",
        trained_seconds: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.sampling_rate = sampling_rate
        self.num_mel_bins = num_mel_bins
        self.frame_length = frame_length
        self.frame_shift = frame_shift
        self.lfr_m = lfr_m
        self.lfr_n = lfr_n
        self.cmvn_shift = cmvn_shift
        self.cmvn_scale = cmvn_scale
        self.whisper_num_mel_bins = whisper_num_mel_bins
        self.max_seconds = max_seconds
        self.max_whisper_positions = max_whisper_positions
        self.mono = mono
        self.trained_seconds = trained_seconds
        sizes = {len(vector) for vector in (cmvn_shift, cmvn_scale) if vector is not None}
        if (cmvn_shift is None) != (cmvn_scale is None) or sizes - {self.feature_size}:
            raise ValueError(
                f"cmvn_shift and cmvn_scale must both be None or both hold {self.feature_size} values "
                f"(num_mel_bins * lfr_m), got lengths {sorted(sizes)}"
            )

    @property
    def feature_size(self) -> int:
        """Width D of the SANM features."""
        return self.num_mel_bins * self.lfr_m

    @property
    def longest_seconds(self) -> float:
        """Longest recording that one of the two encoders takes."""
        return max(self.max_seconds, self._whisper_seconds)

    @property
    def _whisper_seconds(self) -> float:
        return self.max_whisper_positions * WHISPER_POSITION_FRAMES * WHISPER_HOP_SECONDS

    def read(self, source: Any, sampling_rate: int | None = None) -> tuple[torch.Tensor, int]:
        """Read one recording (see `load_audio`) -> (float32 [1, samples], rate in Hz), as long as an encoder takes."""
        # Encoders and lossy formats round: whether a recording is too long for its encoder is decided by its samples.
        limit = self.longest_seconds + 1.0
        return load_audio(source, sampling_rate, self.mono, limit, default_rate=self.sampling_rate)

    def load(self, source: Any, sampling_rate: int | None = None) -> torch.Tensor:
        """Read one recording (see `load_audio`) -> float32 [samples] at `self.sampling_rate`.

        Args:
            source: file, URL, bytes, array, pair (array, rate), ...
            sampling_rate: Hz, of arrays that come without a rate; default `self.sampling_rate`.
        """
        waveform, rate = self.read(source, sampling_rate)
        seconds = waveform.shape[-1] / rate
        if seconds > self.longest_seconds + 1.0:  # before resampling, which takes its time and memory
            raise ValueError(
                f"audio of {seconds:.2f} s at {rate} Hz is longer than the {self.longest_seconds:g} s that the "
                "encoders take; cut it into shorter pieces, or correct its rate"
            )
        if rate < self.sampling_rate:
            logger.warning(
                f"a recording at {rate} Hz holds nothing above {rate / 2:g} Hz (telephone quality); speech in it may "
                f"be misheard, record at {self.sampling_rate} Hz or more"
            )
        return resample(waveform, rate, self.sampling_rate)[0]

    def fetch_audio(self, audios: Any, sampling_rate: int | None = None) -> np.ndarray | list:
        """Called by the library's pipelines: a recording or a list of recordings -> float32 [samples] each."""
        if is_recording(audios):
            return self.load(audios, sampling_rate).numpy()
        return [self.fetch_audio(audio, sampling_rate) for audio in audios]

    def num_tokens(self, num_samples: int, use_whisper_encoder: bool = False) -> int:
        """Placeholder tokens that a recording of `num_samples` samples at `self.sampling_rate` takes in a prompt."""
        if use_whisper_encoder:
            frames = int(num_samples / (self.sampling_rate * WHISPER_HOP_SECONDS))
            return math.ceil(math.ceil(frames / 2) / 2)
        window, hop = (int(self.sampling_rate * ms / 1000) for ms in (self.frame_length, self.frame_shift))
        return math.ceil((1 + (num_samples - window) // hop) / self.lfr_n)

    def _check_length(self, waveform: torch.Tensor, use_whisper_encoder: bool) -> None:
        samples, rate = len(waveform), self.sampling_rate
        shortest = WHISPER_MIN_SAMPLES if use_whisper_encoder else int(rate * self.frame_length / 1000)
        if samples < shortest:
            raise ValueError(
                f"audio of {samples} samples ({1000 * samples / rate:.1f} ms at {rate} Hz) is shorter than one frame "
                f"of {shortest} samples; record more or pad it with silence"
            )
        longest = self.max_seconds
        if use_whisper_encoder:
            # An odd last mel frame takes a position of its own, so the exact limit is in whole mel frames.
            frames = int(samples / (rate * WHISPER_HOP_SECONDS))
            longest = self._whisper_seconds
            too_long = frames > self.max_whisper_positions * WHISPER_POSITION_FRAMES
        else:
            too_long = samples > longest * rate
        if too_long:
            raise ValueError(
                f"audio of {samples / rate:.2f} s is longer than the {longest:g} s that the "
                f"{'Whisper' if use_whisper_encoder else 'SANM'} encoder takes; cut it into shorter pieces"
            )

    @torch.no_grad()
    def sanm_features(self, waveform: torch.Tensor) -> torch.Tensor:
        """float32 [samples] at `self.sampling_rate` -> normalised, stacked filter banks float32 [T, D].

        Raises:
            ImportError: `torchaudio` is not installed.
        """
        frames = require("torchaudio.compliance.kaldi").fbank(
            waveform[None] * INT16_SCALE,
            num_mel_bins=self.num_mel_bins,
            frame_length=self.frame_length,
            frame_shift=self.frame_shift,
            sample_frequency=self.sampling_rate,
            window_type="hamming",
        )
        features = stack_frames(frames, self.lfr_m, self.lfr_n)
        if self.cmvn_shift is not None:
            features = (features + torch.tensor(self.cmvn_shift)) * torch.tensor(self.cmvn_scale)
        return features

    @torch.no_grad()
    def whisper_features(self, waveform: torch.Tensor) -> torch.Tensor:
        """float32 [samples] at `self.sampling_rate` -> log-mel float32 [T, whisper_num_mel_bins], 10 ms per frame."""
        extractor = _whisper_extractor(self.whisper_num_mel_bins, self.sampling_rate)
        features = extractor(
            waveform.numpy(), sampling_rate=self.sampling_rate, padding=False, truncation=False, return_tensors="pt"
        )
        return features["input_features"][0].T

    def extract(self, waveform: torch.Tensor, use_whisper_encoder: bool = False) -> torch.Tensor:
        """float32 [samples] at `self.sampling_rate` -> features [T, D].

        Raises:
            ValueError: shorter than one frame, or longer than the encoder takes.
        """
        self._check_length(waveform, use_whisper_encoder)
        seconds = len(waveform) / self.sampling_rate
        if self.trained_seconds is not None and seconds > self.trained_seconds:
            logger.warning(
                f"a recording of {seconds:.2f} s is longer than those that this checkpoint was trained on "
                f"({self.trained_seconds:g} s): what is said in it may be answered in part, or invented. Send the "
                "sentences one by one"
            )
        if (swing := loudest(waveform)) < SILENCE_PEAK:
            logger.warning(
                f"a recording of {seconds:.2f} s holds no sound: its loudest sample is "
                f"{swing:.2g} of full scale, below {SILENCE_PEAK:g}; what is answered about it means nothing. Check "
                "the microphone or amplify it"
            )
        return self.whisper_features(waveform) if use_whisper_encoder else self.sanm_features(waveform)

    def __call__(
        self,
        audios: Any,
        sampling_rate: int | None = None,
        use_whisper_encoder: bool = False,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Features of a batch of recordings.

        Args:
            audios: one recording, a list of recordings (one per row), or a list of rows, each a list of recordings
                (possibly empty). A recording is anything that `load_audio` takes.
            sampling_rate: Hz, of arrays that come without a rate.
            use_whisper_encoder: features for the Whisper encoder instead of the SANM one.
            return_tensors: `"pt"`, `"np"` or None (numpy as well).

        Returns:
            `audio_feats` float32 [B, L, D]: the recordings of a row one after the other, padded with zeros;
            `audio_feats_lengths` int64 [B, N]: frames of each recording, 0 after the last recording of a row;
            `encoder_feats_lengths` int64 [B, N]: placeholder tokens of each recording.

        Raises:
            ValueError: unreadable input, NaN samples, shorter than one frame, or longer than the encoder takes.
        """
        rows = audio_rows(audios)
        waveforms = [[self.load(source, sampling_rate) for source in row] for row in rows]
        features = [[self.extract(wave, use_whisper_encoder) for wave in row] for row in waveforms]
        width = self.whisper_num_mel_bins if use_whisper_encoder else self.feature_size
        batch = torch.zeros(len(rows), max(sum(map(len, row)) for row in features), width)
        lengths = torch.zeros(len(rows), max(1, *map(len, rows)), dtype=torch.int64)
        tokens = torch.zeros_like(lengths)
        for index, (row, waves) in enumerate(zip(features, waveforms, strict=True)):
            if row:
                joined = torch.cat(row)
                batch[index, : len(joined)] = joined
                lengths[index, : len(row)] = torch.tensor([len(feature) for feature in row])
                tokens[index, : len(row)] = torch.tensor(
                    [self.num_tokens(len(wave), use_whisper_encoder) for wave in waves]
                )
        data = {"audio_feats": batch, "audio_feats_lengths": lengths, "encoder_feats_lengths": tokens}
        if return_tensors != "pt":
            data = {name: tensor.numpy() for name, tensor in data.items()}
        return BatchFeature(data)


def is_recording(value: Any) -> bool:
    """Whether a value is one recording rather than a list of them."""
    if not isinstance(value, (list, tuple)):
        return True
    numbers = (int, float, np.number)
    if len(value) > 0 and all(isinstance(part, numbers) for part in value):
        return True
    pair = len(value) == 2 and any(isinstance(part, numbers) and not isinstance(part, bool) for part in value)
    return pair and any(np.ndim(part) > 0 for part in value)


def audio_rows(audios: Any) -> list[list[Any]]:
    """One recording, a list of recordings (one per row) or a list of lists of them -> list of lists.

    Raises:
        ValueError: an empty batch.
    """
    if is_recording(audios):
        return [[audios]]
    if len(audios) == 0:
        raise ValueError("audios is an empty list; leave it out for prompts without audio")
    return [[row] if is_recording(row) else list(row) for row in audios]
