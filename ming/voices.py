"""Voices: the prompt that speech output imitates, how it is stored, and how it is made from a recording.

A voice is a short prompt as text, as speech codes (50 per second) and as a mel spectrogram, with a speaker embedding.
The two networks that encode a recording, the speaker encoder and the speech tokenizer, are ONNX files; only they need
`onnxruntime`.

Letters: B batch, F mel frames at the vocoder's rate, M mel bands, P prompt codes, T frames of 10 ms or codes of 20 ms.
"""

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
from transformers.utils import logging

from .argument_checks import shown
from .audio_features import BailingMMFeatureExtractor
from .files import finish_saving, saving
from .media import SILENCE_PEAK, describe, load_audio, loudest, raise_if_unusable, require, resample
from .mel import RECORDING_RATE, MelSettings, prompt_mel
from .speech_text import speech_units

logger = logging.get_logger(__name__)

CODES_PER_SECOND = 50
EMBEDDING_SIZE = 192
SPEAKER_BANDS = 80
SPEAKER_WINDOW_MS = 25
TOKENIZER_BANDS = 128

MIN_SECONDS = 0.5
MAX_SECONDS = 30.0  # what the speech tokenizer was trained on
UNITS_PER_SECOND = (0.5, 15.0)  # `speech_units`: nobody speaks faster, and hardly anybody so slowly

SPEAKER_FILE = "campplus.onnx"
TOKENIZER_FILE = "speech_tokenizer_v1.onnx"
LENGTH_TYPES = {"tensor(int32)": torch.int32, "tensor(int64)": torch.int64}  # by ONNX type
TENSOR_NAMES = ("prompt_codes", "prompt_mel", "speaker_embedding")
VOICE_FILES = (".safetensors", ".json")  # endings of the two files of a voice
SAFE_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*")


def speaker_features(waveform: torch.Tensor) -> torch.Tensor:
    """float32 [samples] in -1..1 at 16 kHz -> kaldi filter banks minus their mean over time, [T, 80], 10 ms per frame.

    Raises:
        ValueError: fewer samples than one window of 25 ms.
    """
    window = RECORDING_RATE * SPEAKER_WINDOW_MS // 1000
    if waveform.ndim != 1 or len(waveform) < window:
        raise ValueError(f"{describe(waveform)} must be a waveform [samples] of at least {window} samples")
    frames = require("torchaudio.compliance.kaldi").fbank(
        waveform[None],
        num_mel_bins=SPEAKER_BANDS,
        frame_length=float(SPEAKER_WINDOW_MS),
        dither=0.0,
        sample_frequency=RECORDING_RATE,
    )
    return frames - frames.mean(0, keepdim=True)


def tokenizer_features(waveform: torch.Tensor) -> torch.Tensor:
    """float32 [samples] at 16 kHz -> Whisper's log-mel of just these samples, [128, T], T = samples // 160.

    Raises:
        ValueError: too few samples for one window.
    """
    extractor = BailingMMFeatureExtractor(sampling_rate=RECORDING_RATE, whisper_num_mel_bins=TOKENIZER_BANDS)
    return extractor.extract(waveform.cpu(), use_whisper_encoder=True).T


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not SAFE_NAME.fullmatch(name):
        raise ValueError(f"voice name {shown(name)} must be a file name: not empty, no / or \\, no leading dot")


def _check_text(text: Any, what: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what} is {shown(text)}; it must be the words that are spoken in the recording")


@dataclass(frozen=True, eq=False)
class Voice:
    """A voice to speak with.

    Attributes:
        name: the name that users choose it by; also the name of its files.
        prompt_text: the words spoken in the prompt recording.
        prompt_codes: int64 [P], its speech codes, 50 per second.
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

    def save(self, directory: str | os.PathLike, name: str | None = None) -> Path:
        """Write `<name>.safetensors` and `<name>.json` into a folder, made if need be; returns the first path.

        Args:
            name: to save it under; default: the voice's own name, which is "prompt" for one that was just cloned.

        Raises:
            ValueError: a name that is no file name, or one under which another voice lies there.
        """
        voice = self if name is None else replace(self, name=name)
        _raise_if_taken(voice, Path(directory))
        with saving(directory) as folder:
            voice._write(folder)
        return Path(directory) / f"{voice.name}.safetensors"

    def _write(self, folder: Path) -> None:
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in TENSOR_NAMES}
        facts = {
            "prompt_text": self.prompt_text,
            "codes_per_second": CODES_PER_SECOND,
            "mel": asdict(self.mel),
            "description": self.description,
            "licence": self.licence,
        }
        text = json.dumps(facts, ensure_ascii=False, indent=2)
        save_file(tensors, folder / f"{self.name}.safetensors")
        (folder / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")

    def sounds_like(self, other: "Voice") -> bool:
        """Whether two voices have the same prompt, whatever they are called."""
        same = self.prompt_text == other.prompt_text and self.mel == other.mel
        return same and all(
            torch.equal(getattr(self, each).detach().cpu(), getattr(other, each).detach().cpu())
            for each in TENSOR_NAMES
        )

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
        finish_saving(path.parent)
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
    finish_saving(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} of voices")
    return {path.name.removesuffix(".safetensors"): Voice.load(path) for path in sorted(folder.glob("*.safetensors"))}


def _raise_if_taken(voice: Voice, folder: Path) -> None:
    """Refuse to write a voice over another one, such as a second clone over the first: both are called "prompt".

    Raises:
        ValueError: naming the voice and how to keep both.
    """
    file = folder / f"{voice.name}.safetensors"
    finish_saving(folder)
    if file.is_file() and not voice.sounds_like(Voice.load(file)):
        raise ValueError(
            f"{folder} has another voice {voice.name!r}; save this one under a name of its own, "
            "save(folder, name=...), or delete the files of the other one first"
        )


def save_voices(voices: Mapping[str, Voice], directory: str | os.PathLike) -> None:
    """Write all voices into a folder, each under its key, by which `load_voices` finds it; older ones are replaced.

    Raises:
        TypeError: a value is no `Voice`.
        ValueError: a key that is no file name.
    """
    for key, voice in voices.items():
        if not isinstance(voice, Voice):
            raise TypeError(f"voices[{shown(key)}]={shown(voice)} must be a Voice; voice(prompt_audio=...) makes one")
    named = [replace(voice, name=key) for key, voice in voices.items()]
    with saving(directory) as folder:
        for voice in named:
            voice._write(folder)


def choose_voice(voices: Mapping[str, Voice], name: str) -> Voice:
    """The voice with a name.

    Raises:
        ValueError: there is none; the message names the voices that exist.
    """
    if not isinstance(name, str) or name not in voices:
        known = ", ".join(sorted(voices)) or "none"
        raise ValueError(f"unknown speaker {shown(name)}; available are: {known}. Or clone one from a recording")
    return voices[name]


def raise_if_longer(voice: Voice, max_seconds: float) -> None:
    """Refuse the voice of a recording that is longer than a talker follows.

    Raises:
        ValueError: naming both lengths.
    """
    if (seconds := len(voice.prompt_codes) / CODES_PER_SECOND) > max_seconds:
        raise ValueError(
            f"the recording of the voice {voice.name!r} lasts {seconds:.1f} s; the talker of this checkpoint "
            f"takes at most {max_seconds:g} s. Cut it at a pause, and its text with it"
        )


def check_recording(waveform: torch.Tensor, rate: int = RECORDING_RATE) -> None:
    """Refuse a waveform [samples] at `rate` Hz that no voice can be made from.

    Raises:
        ValueError: another shape, NaN, shorter than 0.5 s or longer than 30 s, silence, or samples far outside -1..1.
    """
    if not isinstance(waveform, torch.Tensor) or waveform.ndim != 1 or not waveform.is_floating_point():
        raise ValueError(f"{describe(waveform)} must be a waveform, floats [samples]")
    raise_if_unusable(waveform, rate=rate, min_seconds=MIN_SECONDS, use="a voice")
    seconds = len(waveform) / rate
    if seconds > MAX_SECONDS:
        raise ValueError(
            f"the recording lasts {seconds:.2f} s; the speech tokenizer takes at most {MAX_SECONDS:g} s, "
            "cut it and its text"
        )
    swing = loudest(waveform)
    if swing < SILENCE_PEAK:
        raise ValueError(
            f"the recording is silent: its loudest sample is {swing:.2g} of full scale, below {SILENCE_PEAK:g}; "
            "check the microphone or amplify it"
        )


def check_words(text: str, seconds: float) -> None:
    """Compare the words of a recording with its duration; so few words that some must be missing are logged.

    Raises:
        ValueError: more words than anybody says in that time.
    """
    slowest, fastest = UNITS_PER_SECOND
    units = speech_units(text)
    if units > fastest * seconds:
        raise ValueError(
            f"prompt_text has {len(text.split())} words (about {units} syllables), which nobody says in the "
            f"{seconds:.1f} s of the recording: {shown(text)}. Give the words that are spoken in it, and no others"
        )
    if units < slowest * seconds:
        logger.warning(
            "prompt_text %s is short for a recording of %.1f s; where words of the recording are missing in it, the "
            "voice says other words than it should",
            shown(text),
            seconds,
        )


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
        tokenizer_session: ONNX session, log-mel float32 [1, 128, T] and its length T int32 [1] -> 50 codes per second.
        mel: settings of the vocoder that the voice is made for.

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
        """float32 [samples] at 16 kHz -> speech codes int64 [T], 50 per second.

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
            text: the words spoken in it.
            name: name of the voice.
            sampling_rate: Hz, of arrays that come without a rate; default 16,000.

        Raises:
            ValueError: a name that is no file name, empty text, unreadable audio, or a recording or words that
                `check_recording` or `check_words` refuse.
        """
        _check_name(name)
        _check_text(text, "the text of the recording")
        waveform, rate = load_audio(audio, sampling_rate)
        check_recording(waveform[0], rate)
        check_words(text, waveform.shape[-1] / rate)
        waveform = resample(waveform, rate, RECORDING_RATE)[0]
        return Voice(
            name=name,
            prompt_text=text,
            prompt_codes=self.encode_codes(waveform),
            prompt_mel=prompt_mel(waveform, **asdict(self.mel)),
            speaker_embedding=self.embed(waveform),
            mel=self.mel,
        )
