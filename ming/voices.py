"""Voices: the prompt that speech output imitates, its storage, and its making from a recording.

A voice is a short prompt as text, as speech codes (50 a second) and as a mel spectrogram, with a speaker embedding.
The two networks that listen to a recording are ONNX files; `onnxruntime` is needed for them only.

Letters: B batch, F mel frames at the vocoder's rate, M mel bands, P prompt codes, T frames of 10 ms or codes of 20 ms.
"""

import functools
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.audio_utils import mel_filter_bank

from .audio_features import BailingMMFeatureExtractor
from .media import LOUDEST_PEAK, describe, load_audio, require, resample

LISTENING_RATE = 16_000  # Hz, of the recordings that the speaker encoder and the speech tokenizer hear
CODES_PER_SECOND = 50
EMBEDDING_SIZE = 192
SPEAKER_BANDS = 80
SPEAKER_WINDOW_MS = 25
TOKENIZER_BANDS = 128
POWER_FLOOR = 1e-9  # keeps the gradient of the square root finite
MEL_FLOOR = 1e-5

MIN_SECONDS = 0.5
MAX_SECONDS = 30.0  # what the speech tokenizer was trained on
SILENCE_PEAK = 1e-3  # of full scale; -60 dB

SPEAKER_FILE = "campplus.onnx"
TOKENIZER_FILE = "speech_tokenizer_v1.onnx"
LENGTH_TYPES = {"tensor(int32)": torch.int32, "tensor(int64)": torch.int64}  # by ONNX type
TENSOR_NAMES = ("prompt_codes", "prompt_mel", "speaker_embedding")
RELEASED_KEYS = ("prompt_text", "prompt_speech_feat", "prompt_speech_token", "vp_emb")
SAFE_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*")


@dataclass(frozen=True)
class MelSettings:
    """The vocoder's mel spectrogram: the arguments of `vocoder_mel` and `prompt_mel` by the same names.

    Attributes:
        rate: Hz of the waveform.
        n_fft: samples in a window; hop_length: samples between two.
        n_mels: number of bands from `fmin` to `fmax` (Hz).
    """

    rate: int = 22050
    n_fft: int = 1024
    hop_length: int = 256
    n_mels: int = 80
    fmin: float = 0.0
    fmax: float = 8000.0

    def __post_init__(self):
        if min(self.rate, self.n_fft, self.hop_length, self.n_mels) < 1 or self.hop_length > self.n_fft:
            raise ValueError(f"{self}: sizes must be at least 1 and hop_length at most n_fft")
        if not 0 <= self.fmin < self.fmax <= self.rate / 2:
            raise ValueError(f"{self}: the bands must lie within 0..{self.rate / 2:g} Hz, half the rate")


@functools.lru_cache(maxsize=8)
def _filters_and_window(settings: MelSettings, device: torch.device, dtype: torch.dtype):
    filters = mel_filter_bank(
        num_frequency_bins=settings.n_fft // 2 + 1,
        num_mel_filters=settings.n_mels,
        min_frequency=settings.fmin,
        max_frequency=settings.fmax,
        sampling_rate=settings.rate,
        norm="slaney",
        mel_scale="slaney",
    )
    # A tensor made in inference mode could not take part in training later on.
    with torch.inference_mode(False):
        filters = torch.from_numpy(filters).to(dtype).to(device)  # not every device has float64
        return filters, torch.hann_window(settings.n_fft, device=device, dtype=dtype)


def vocoder_mel(
    waveform: torch.Tensor,
    rate: int = MelSettings.rate,
    n_fft: int = MelSettings.n_fft,
    hop_length: int = MelSettings.hop_length,
    n_mels: int = MelSettings.n_mels,
    fmin: float = MelSettings.fmin,
    fmax: float = MelSettings.fmax,
) -> torch.Tensor:
    """Log-mel spectrogram of waveforms that already have the vocoder's rate; differentiable, on any device.

    Args:
        waveform: [..., samples] at `rate`, in -1..1. float16 and bfloat16 are computed in float32.
        rate, n_fft, hop_length, n_mels, fmin, fmax: see `MelSettings`; the defaults are the released vocoder's.

    Returns:
        float32 (float64 if the waveform is) [..., F, M], F = samples // hop_length if `n_fft - hop_length` is even.

    Raises:
        ValueError: settings that do not fit together, or too few samples for the reflection at the ends.
    """
    settings = MelSettings(rate, n_fft, hop_length, n_mels, fmin, fmax)
    padding = (n_fft - hop_length) // 2
    samples, shortest = (waveform.shape[-1] if waveform.ndim else 0), max(padding + 1, n_fft - 2 * padding)
    if samples < shortest:
        raise ValueError(f"a waveform of {samples} samples is too short for a mel spectrogram; it takes {shortest}")
    waveform = waveform if waveform.dtype == torch.float64 else waveform.float()
    filters, window = _filters_and_window(settings, waveform.device, waveform.dtype)
    padded = torch.nn.functional.pad(waveform.reshape(-1, samples), (padding, padding), mode="reflect")
    spectrum = torch.stft(padded, n_fft, hop_length, window=window, center=False, return_complex=True)
    magnitude = (torch.view_as_real(spectrum).square().sum(-1) + POWER_FLOOR).sqrt()
    with torch.autocast(waveform.device.type, enabled=False):  # it would round quiet bands to 8 bits
        mel = (magnitude.transpose(-1, -2) @ filters).clamp(min=MEL_FLOOR).log()
    return mel.reshape(*waveform.shape[:-1], *mel.shape[1:])


def prompt_mel(
    waveform: torch.Tensor,
    rate: int = MelSettings.rate,
    n_fft: int = MelSettings.n_fft,
    hop_length: int = MelSettings.hop_length,
    n_mels: int = MelSettings.n_mels,
    fmin: float = MelSettings.fmin,
    fmax: float = MelSettings.fmax,
) -> torch.Tensor:
    """The mel of a prompt, by way of 16 kHz as released, so there is nothing above 8 kHz in it; differentiable.

    Args:
        waveform: float32 [..., samples] at 16 kHz, in -1..1.
        rate: Hz; the waveform is resampled to it. The others: see `MelSettings`.

    Returns:
        float32 [..., F, M].

    Raises:
        ValueError: see `vocoder_mel`.
    """
    # The resampling kernel is kept on the CPU.
    resampled = resample(waveform.float().cpu(), LISTENING_RATE, rate).to(waveform.device)
    return vocoder_mel(resampled, rate, n_fft, hop_length, n_mels, fmin, fmax)


def speaker_features(waveform: torch.Tensor) -> torch.Tensor:
    """float32 [samples] in -1..1 at 16 kHz -> kaldi filter banks minus their mean over time, [T, 80], 10 ms a frame.

    Raises:
        ValueError: fewer samples than one window of 25 ms.
    """
    window = LISTENING_RATE * SPEAKER_WINDOW_MS // 1000
    if waveform.ndim != 1 or len(waveform) < window:
        raise ValueError(f"{describe(waveform)} must be a waveform [samples] of at least {window} samples")
    frames = require("torchaudio.compliance.kaldi").fbank(
        waveform[None],
        num_mel_bins=SPEAKER_BANDS,
        frame_length=float(SPEAKER_WINDOW_MS),
        dither=0.0,
        sample_frequency=LISTENING_RATE,
    )
    return frames - frames.mean(0, keepdim=True)


def tokenizer_features(waveform: torch.Tensor) -> torch.Tensor:
    """float32 [samples] at 16 kHz -> Whisper's log-mel of just these samples, [128, T], T = samples // 160.

    Raises:
        ValueError: too few samples for one window.
    """
    extractor = BailingMMFeatureExtractor(sampling_rate=LISTENING_RATE, whisper_num_mel_bins=TOKENIZER_BANDS)
    return extractor.extract(waveform.cpu(), use_whisper_encoder=True).T


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not SAFE_NAME.fullmatch(name):
        raise ValueError(f"voice name {name!r} must be a file name: not empty, no / or \\, no leading dot")


def _check_text(text: Any, what: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what} is {text!r}; it must be the words that the recording says")


@dataclass(frozen=True, eq=False)
class Voice:
    """A voice to speak with.

    Attributes:
        name: what users ask for; also the name of its files.
        prompt_text: what the prompt recording says.
        prompt_codes: int64 [P], its speech codes, 50 a second.
        prompt_mel: floats [F, M], its log-mel spectrogram by `mel`.
        speaker_embedding: floats [192], as the speaker encoder gives it, not normalised.
        mel: settings of `prompt_mel`.
        description, licence: for people.

    Raises:
        ValueError: on construction, for a name that is no file name, empty text, wrong shapes or types, or NaN.
    """

    name: str
    prompt_text: str
    prompt_codes: torch.Tensor
    prompt_mel: torch.Tensor
    speaker_embedding: torch.Tensor
    mel: MelSettings = field(default_factory=MelSettings)
    description: str = ""
    licence: str = ""

    def __post_init__(self):
        _check_name(self.name)
        _check_text(self.prompt_text, f"prompt_text of voice {self.name!r}")
        self._check_tensor("prompt_codes", "integers", ("P",))
        self._check_tensor("prompt_mel", "floats", ("F", self.mel.n_mels))
        self._check_tensor("speaker_embedding", "floats", (EMBEDDING_SIZE,))
        if self.prompt_codes.min() < 0:
            raise ValueError(f"voice {self.name!r}: prompt_codes hold {int(self.prompt_codes.min())}, below 0")
        object.__setattr__(self, "prompt_codes", self.prompt_codes.long())

    def _check_tensor(self, name: str, kind: str, sizes: tuple) -> None:
        tensor = getattr(self, name)
        numbers = isinstance(tensor, torch.Tensor) and not tensor.is_complex() and tensor.dtype != torch.bool
        fits = numbers and tensor.is_floating_point() == (kind == "floats") and tensor.ndim == len(sizes)
        fits = fits and all(
            size in (got, str(size)) and got > 0 for got, size in zip(tensor.shape, sizes, strict=True)
        )
        if not fits:
            layout = ", ".join(map(str, sizes))
            raise ValueError(
                f"voice {self.name!r}: {name} must be {kind} [{layout}], not empty; got {describe(tensor)}"
            )
        if kind == "floats" and not torch.isfinite(tensor).all():
            raise ValueError(f"voice {self.name!r}: {name} holds NaN or infinite values; make the voice again")

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Voice":
        """The same voice on another device, its mel and embedding in another floating-point type; codes stay int64."""
        return replace(
            self,
            prompt_codes=self.prompt_codes.to(device=device),
            prompt_mel=self.prompt_mel.to(device=device, dtype=dtype),
            speaker_embedding=self.speaker_embedding.to(device=device, dtype=dtype),
        )

    def save(self, directory: str | os.PathLike) -> Path:
        """Write `<name>.safetensors` and `<name>.json` into a folder, which is made if need be; returns the former."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.safetensors"
        save_file({name: getattr(self, name).detach().cpu().contiguous() for name in TENSOR_NAMES}, path)
        facts = {
            "prompt_text": self.prompt_text,
            "codes_per_second": CODES_PER_SECOND,
            "mel": asdict(self.mel),
            "description": self.description,
            "licence": self.licence,
        }
        text = json.dumps(facts, ensure_ascii=False, indent=2)
        (folder / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Voice":
        """Read a saved voice; its name is that of the file.

        Args:
            path: one of the two files, or their common path without the ending.

        Raises:
            FileNotFoundError: one of the two is missing.
            ValueError: one of the two is malformed.
        """
        path = Path(path)
        name = path.name.removesuffix(".safetensors").removesuffix(".json")
        facts_file, tensor_file = path.with_name(f"{name}.json"), path.with_name(f"{name}.safetensors")
        for file in (facts_file, tensor_file):
            if not file.is_file():
                raise FileNotFoundError(f"there is no {file}; a voice is a .json and a .safetensors file of one name")
        try:
            facts = json.loads(facts_file.read_text(encoding="utf-8"))
            tensors = load_file(tensor_file)
            prompt = {name: tensors[name] for name in TENSOR_NAMES}
            mel = MelSettings(**facts["mel"])
            texts = {name: facts.get(name, "") for name in ("description", "licence")}
            if facts["codes_per_second"] != CODES_PER_SECOND:
                raise ValueError(f"{facts['codes_per_second']} codes a second instead of {CODES_PER_SECOND}")
            return cls(name, facts["prompt_text"], **prompt, mel=mel, **texts)
        except (KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
            raise ValueError(f"cannot read the voice {path}: {type(error).__name__}: {error}") from error


def load_voices(directory: str | os.PathLike) -> dict[str, Voice]:
    """All voices of a folder by name, in alphabetical order.

    Raises:
        FileNotFoundError: no such folder, or a file without its partner.
        ValueError: a malformed voice.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} of voices")
    return {path.name.removesuffix(".safetensors"): Voice.load(path) for path in sorted(folder.glob("*.safetensors"))}


def choose_voice(voices: Mapping[str, Voice], name: str) -> Voice:
    """The voice of a name.

    Raises:
        ValueError: there is none; names those that exist.
    """
    if name not in voices:
        known = ", ".join(sorted(voices)) or "none"
        raise ValueError(f"unknown speaker {name!r}; available are: {known}. Or clone one from a recording")
    return voices[name]


def adopt_released_voice(path: str | os.PathLike, name: str) -> Voice:
    """Read one of the released `.pt` voices; nothing in it is executed.

    Args:
        path: the file; a dict of `prompt_text`, `prompt_speech_feat` [1, F, 80], `prompt_speech_token` [1, P],
            `vp_emb` [1, 192] and the lengths [1] of the second and third.
        name: name of the voice.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, missing keys, or wrong shapes.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no released voice {path}")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, that of the unpickler among them
        raise ValueError(f"cannot read the released voice {path} as plain tensors: {error}") from error
    missing = [key for key in RELEASED_KEYS if not isinstance(data, dict) or key not in data]
    if missing:
        raise ValueError(f"{path} is no released voice: it lacks {missing}")
    tensors = {}
    for key in RELEASED_KEYS[1:]:
        value = data[key]
        if not isinstance(value, torch.Tensor) or value.ndim < 1 or len(value) != 1:
            raise ValueError(f"{path}: {key} must be a tensor of one voice, [1, ...]; got {describe(value)}")
        length = int(data[f"{key}_len"]) if f"{key}_len" in data else None
        tensors[key] = value[0, :length] if value.ndim > 1 else value[0]
    return Voice(
        name=name,
        prompt_text=data["prompt_text"],
        prompt_codes=tensors["prompt_speech_token"],
        prompt_mel=tensors["prompt_speech_feat"].float(),
        speaker_embedding=tensors["vp_emb"].float(),
    )


def check_recording(waveform: torch.Tensor, rate: int = LISTENING_RATE) -> None:
    """Whether a voice can be taken from a waveform [samples] at `rate` Hz.

    Raises:
        ValueError: another shape, NaN, shorter than 0.5 s or longer than 30 s, silence, or samples far outside -1..1.
    """
    if not isinstance(waveform, torch.Tensor) or waveform.ndim != 1 or not waveform.is_floating_point():
        raise ValueError(f"{describe(waveform)} must be a waveform, floats [samples]")
    seconds = len(waveform) / rate
    if seconds < MIN_SECONDS:
        raise ValueError(f"the recording lasts {seconds:.2f} s; a voice needs at least {MIN_SECONDS:g} s, record more")
    if seconds > MAX_SECONDS:
        raise ValueError(
            f"the recording lasts {seconds:.2f} s; the speech tokenizer takes at most {MAX_SECONDS:g} s, "
            "cut it and its text"
        )
    if not torch.isfinite(waveform).all():
        raise ValueError("the recording has NaN or infinite samples; remove or replace them first")
    peak, swing = float(waveform.abs().max()), float((waveform - waveform.mean()).abs().max())
    if swing < SILENCE_PEAK:
        raise ValueError(
            f"the recording is silent: its loudest sample is {swing:.2g} of full scale, below {SILENCE_PEAK:g}; "
            "check the microphone or amplify it"
        )
    if peak > LOUDEST_PEAK:
        raise ValueError(f"the recording has samples up to {peak:g}; floats must be in -1..1, divide by full scale")


def _input_names(session: Any, file: str, integer: bool) -> dict[str, str]:
    """Names of the features and, if `integer`, of the length among the inputs of an ONNX session, by their type."""
    found = {entry.name: entry.type for entry in session.get_inputs()}
    floats = [name for name, type_ in found.items() if type_ == "tensor(float)"]
    lengths = [name for name, type_ in found.items() if type_ in LENGTH_TYPES]
    if (len(floats), len(lengths), len(found)) != (1, int(integer), 1 + integer):
        expected = "one float32 input" + (" and one int32 or int64 input" if integer else "")
        raise ValueError(f"{file} has the inputs {found}; expected is {expected}")
    return {"features": floats[0], **({"length": lengths[0]} if integer else {})}


def _open_session(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; cloning a voice needs {SPEAKER_FILE} and {TOKENIZER_FILE}")
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("cloning a voice needs the package 'onnxruntime': pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only; warnings are about the graph, which no caller can change
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's classes differ between versions
        raise ValueError(f"{path} is no ONNX model that onnxruntime can run: {error}") from error


class VoiceEncoder:
    """Zero-shot cloning: a voice from a recording and its text.

    Args:
        speaker_session: ONNX session, filter banks float32 [1, T, 80] -> embedding [1, 192].
        tokenizer_session: ONNX session, log-mel float32 [1, 128, T] and its length T int32 [1] -> codes, 50 a second.
        mel: settings of the vocoder that will speak.

    Raises:
        ValueError: a session with other inputs.
    """

    def __init__(self, speaker_session: Any, tokenizer_session: Any, mel: MelSettings | None = None):
        self.speaker_session = speaker_session
        self.tokenizer_session = tokenizer_session
        self.mel = mel or MelSettings()
        self._speaker_inputs = _input_names(speaker_session, SPEAKER_FILE, integer=False)
        self._tokenizer_inputs = _input_names(tokenizer_session, TOKENIZER_FILE, integer=True)
        types = {entry.name: entry.type for entry in tokenizer_session.get_inputs()}
        self._length_type = LENGTH_TYPES[types[self._tokenizer_inputs["length"]]]

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike, mel: MelSettings | None = None) -> "VoiceEncoder":
        """Open `campplus.onnx` and `speech_tokenizer_v1.onnx` of a folder, on the CPU with torch's number of threads.

        Raises:
            FileNotFoundError: a file is missing.
            ImportError: `onnxruntime` is.
            ValueError: a file is no such model.
        """
        folder = Path(directory)
        return cls(_open_session(folder / SPEAKER_FILE), _open_session(folder / TOKENIZER_FILE), mel)

    def embed(self, waveform: torch.Tensor) -> torch.Tensor:
        """float32 [samples] at 16 kHz -> speaker embedding float32 [192], not normalised.

        Raises:
            ValueError: see `check_recording`.
        """
        check_recording(waveform)
        features = speaker_features(waveform.detach().float().cpu())[None].numpy()
        (embedding, *_) = self.speaker_session.run(None, {self._speaker_inputs["features"]: features})
        return torch.from_numpy(embedding).flatten().float()

    def encode_codes(self, waveform: torch.Tensor) -> torch.Tensor:
        """float32 [samples] at 16 kHz -> speech codes int64 [T], 50 a second.

        Raises:
            ValueError: see `check_recording`.
        """
        check_recording(waveform)
        features = tokenizer_features(waveform.detach().float())[None].contiguous()
        length = torch.tensor([features.shape[-1]], dtype=self._length_type)
        feed = {"features": features, "length": length}
        (codes, *_) = self.tokenizer_session.run(
            None, {name: feed[role].numpy() for role, name in self._tokenizer_inputs.items()}
        )
        return torch.from_numpy(codes).flatten().long()

    def encode(self, audio: Any, text: str, name: str = "prompt", sampling_rate: int | None = None) -> Voice:
        """Clone the voice of a recording.

        Args:
            audio: 0.5 to 30 s, anything that `load_audio` takes (path, URL, bytes, array, pair (array, rate), ...);
                channels are mixed down, any rate is resampled to 16 kHz.
            text: what it says.
            name: name of the voice.
            sampling_rate: Hz, of arrays that come without a rate; default 16,000.

        Raises:
            ValueError: a name that is no file name, empty text, unreadable audio, or what `check_recording` refuses.
        """
        _check_name(name)
        _check_text(text, "the text of the recording")
        waveform, rate = load_audio(audio, sampling_rate)
        check_recording(waveform[0], rate)
        waveform = resample(waveform, rate, LISTENING_RATE)[0]
        return Voice(
            name=name,
            prompt_text=text,
            prompt_codes=self.encode_codes(waveform),
            prompt_mel=prompt_mel(waveform, **asdict(self.mel)),
            speaker_embedding=self.embed(waveform),
            mel=self.mel,
        )
