"""Loading of pictures and sound at the boundary of the package (videos: video_bailingmm.py).

Everything a user may hand over (path, URL, data URL, bytes, array, tensor, ...) becomes one of two plain forms here:
a picture is an RGB `PIL.Image.Image`, sound a float32 tensor `[1, samples]` with its rate in Hz. Whatever cannot be
read ends in one `ValueError` that names the source and what is accepted.

Letters: C channels, H height, W width (pixels).
"""

import base64
import binascii
import functools
import http.client
import importlib
import io
import math
import os
import time
import urllib.parse
import urllib.request
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

SIZE_FACTOR = 28  # pixels: patch size 14 times merge size 2
IMAGE_MIN_PIXELS = 4 * SIZE_FACTOR**2  # 3,136
IMAGE_MAX_PIXELS = 1024 * SIZE_FACTOR**2  # 802,816
MAX_ASPECT_RATIO = 200

DECOMPRESSION_BOMB_PIXELS = 178_956_970  # the limit at which Pillow itself refuses a file
DOWNLOAD_SECONDS = 30.0
DOWNLOAD_BYTES = {"image": 64 << 20, "audio": 256 << 20, "video": 1 << 30}
RESAMPLING_KERNEL_VALUES = 50_000_000  # 200 MB: rates without a small common ratio would need gigabytes
DEFAULT_SAMPLING_RATE = 16_000  # Hz, of waveforms that come without a rate
MONO_MODES = ("mean", "first")
LOUDEST_PEAK = 16.0  # noise overshoots 1, lossy formats a little; integers that were cast to floats reach thousands

FILE_SOURCES = "path, file://, http(s):// or data: URL, bytes"
ACCEPTED = {
    "image": f"a jpg, png, webp or gif file ({FILE_SOURCES}), a PIL image, or an array or tensor [H, W], [H, W, C] or "
    "[C, H, W] of uint8 or of floats in 0..1",
    "audio": f"a wav, mp3, flac, ogg or m4a file ({FILE_SOURCES}), an array or tensor [samples] or [channels, "
    "samples], or a pair (array, sampling rate)",
    "video": f"an mp4, webm, mov, mkv or gif file ({FILE_SOURCES}), a list or a directory of frames, or an array or "
    "tensor [T, C, H, W] or [T, H, W, C]",
}


def require(name: str):
    """Import a module that only some inputs need; `ImportError` with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"reading this input needs the package {package!r}: pip install {package}") from error


def describe(source: Any) -> str:
    """A short name of a media source for error messages."""
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        return repr(text if len(text) <= 120 else text[:117] + "...")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    if hasattr(source, "shape"):
        return f"<{type(source).__name__} of shape {tuple(source.shape)} and dtype {source.dtype}>"
    return f"<{type(source).__name__}>"


def unreadable(kind: str, source: Any, reason: object) -> ValueError:
    return ValueError(f"cannot read {kind} {describe(source)}: {reason}; accepted is {ACCEPTED[kind]}")


def _download(url: str, kind: str) -> bytes:
    limit, deadline, chunks, size = DOWNLOAD_BYTES[kind], time.monotonic() + DOWNLOAD_SECONDS, [], 0
    try:
        request = urllib.request.Request(_ascii(url), headers={"User-Agent": "bailingmm"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_SECONDS) as response:
            while chunk := response.read(1 << 16):
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    raise unreadable(kind, url, f"more than {limit >> 20} MiB")
                if time.monotonic() > deadline:
                    raise unreadable(kind, url, f"not complete after {DOWNLOAD_SECONDS:.0f} s")
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise unreadable(kind, url, error) from error
    return b"".join(chunks)


def _ascii(url: str) -> str:
    """A URL as it goes over the wire: host names by IDNA, everything else in percent signs."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    return urllib.parse.quote(parts._replace(netloc=host).geturl(), safe="%/:=&?~#+!$,;'@()*[]")


def _decode_base64(text: str, kind: str, source: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise unreadable(kind, source, f"bad base64 ({error})") from error


def open_source(source: Any, kind: str) -> str | io.BytesIO:
    """Resolve a file-like media source to a local path or to its bytes in memory.

    Args:
        source: path, `file://`, `http(s)://` or `data:...;base64,` URL, bytes, or an object with `read`.
        kind: `"image"`, `"audio"` or `"video"`; sets the download limit and the wording of errors.

    Raises:
        ValueError: nothing there, download too large or too slow, bad data URL, or a type that is not accepted.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(bytes(source))
    if hasattr(source, "read"):
        if getattr(source, "seekable", lambda: False)():
            source.seek(0)  # a recording is read again for a voice, a video for its sound
        return io.BytesIO(source.read())
    if not isinstance(source, (str, os.PathLike)):
        raise unreadable(kind, source, f"{type(source).__name__} is no media source")
    text = os.fspath(source)
    if text.startswith(("http://", "https://")):
        return io.BytesIO(_download(text, kind))
    if text.startswith("data:"):
        header, comma, payload = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise unreadable(kind, text, "a data URL must look like data:<type>;base64,<data>")
        return io.BytesIO(_decode_base64(payload, kind, text))
    if text.startswith("file://"):
        text = urllib.request.url2pathname(urllib.parse.urlparse(text).path)
    if not os.path.exists(text):
        raise unreadable(kind, source, "no such file")
    return text


def smart_resize(
    height: int,
    width: int,
    factor: int = SIZE_FACTOR,
    min_pixels: int = IMAGE_MIN_PIXELS,
    max_pixels: int = IMAGE_MAX_PIXELS,
) -> tuple[int, int]:
    """The size (height, width) nearest to the given one, in multiples of `factor`, within the pixel limits.

    Raises:
        ValueError: an empty picture, sides in a ratio above 200, or limits below 1.
    """
    if min(min_pixels, max_pixels) < 1:
        raise ValueError(f"min_pixels={min_pixels} and max_pixels={max_pixels} must be at least 1")
    if min(height, width) < 1:
        raise ValueError(f"a picture of {height} x {width} pixels is empty; both sides must be at least 1")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"a picture of {height} x {width} pixels (height x width) is thinner than 1:{MAX_ASPECT_RATIO}; "
            "crop or pad it"
        )
    # Python's round is half to even; the released sizes depend on it.
    new_height, new_width = (max(factor, round(side / factor) * factor) for side in (height, width))
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    if new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    return new_height, new_width


def _to_uint8(array: np.ndarray, kind: str, source: Any) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise unreadable(kind, source, f"dtype {array.dtype}")
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (low >= 0.0 and high <= 255.0):  # also catches NaN
        raise unreadable(kind, source, f"values from {low:g} to {high:g} are neither in 0..1 nor in 0..255")
    scale = 255.0 if np.issubdtype(array.dtype, np.floating) and high <= 1.0 else 1.0
    return np.rint(array * scale).astype(np.uint8)


def _array_of(source: np.ndarray | torch.Tensor) -> np.ndarray:
    if not isinstance(source, torch.Tensor):
        return source
    source = source.detach().cpu()
    return (source.float() if source.dtype == torch.bfloat16 else source).numpy()


def pixels_channels_last(source: np.ndarray | torch.Tensor, kind: str) -> np.ndarray:
    """[..., C, H, W] or [..., H, W, C] -> uint8 [..., H, W, 3]; tensors try the first first, arrays the second."""
    array = _array_of(source)
    first, last = array.shape[-3] in (1, 3, 4), array.shape[-1] in (1, 3, 4)
    if not first and not last:
        raise unreadable(kind, source, "no axis of 1, 3 or 4 channels")
    if first and (isinstance(source, torch.Tensor) or not last):
        array = np.moveaxis(array, -3, -1)
    array = _to_uint8(array, kind, source)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3]


def _image_from_array(source: np.ndarray | torch.Tensor) -> Image.Image:
    if source.ndim == 2:
        source = source[..., None]
    if source.ndim != 3:
        raise unreadable("image", source, f"{source.ndim} dimensions")
    if 0 in source.shape:
        raise unreadable("image", source, "no pixels")
    return Image.fromarray(np.ascontiguousarray(pixels_channels_last(source, "image")))


def _open_image(source: Any) -> Image.Image:
    opened = open_source(source, "image")
    try:
        with Image.open(opened) as image:
            if image.width * image.height > DECOMPRESSION_BOMB_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {DECOMPRESSION_BOMB_PIXELS:,}")
            image.load()
            return image.copy() if getattr(image, "is_animated", False) else image
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise unreadable("image", source, error) from error


def load_image(source: Any) -> Image.Image:
    """Read one picture; returns it in RGB, upright (EXIF orientation applied), alpha dropped, first frame of a GIF.

    Args:
        source: path, `file://`, `http(s)://` or `data:` URL, bytes, PIL image, or array/tensor `[H, W]`, `[H, W, C]`
            or `[C, H, W]` of uint8, of floats in 0..1, or of values in 0..255 (C is 1, 3 or 4).

    Raises:
        ValueError: missing, empty, truncated, oversized (decompression bomb) or non-image input.
    """
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _image_from_array(source)
    image = source if isinstance(source, Image.Image) else _open_image(source)
    if image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips 16-bit values instead of scaling them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    try:
        return image if image.mode == "RGB" else image.convert("RGB")
    except (OSError, ValueError) as error:
        raise unreadable("image", source, error) from error


def resize_image(
    image: Image.Image,
    min_pixels: int = IMAGE_MIN_PIXELS,
    max_pixels: int = IMAGE_MAX_PIXELS,
    resized_height: int | None = None,
    resized_width: int | None = None,
) -> Image.Image:
    """Bicubic resize of an RGB picture to multiples of 28 pixels, within the limits or near the size asked for."""
    if resized_height is not None and resized_width is not None:
        height, width = smart_resize(resized_height, resized_width)
    else:
        height, width = smart_resize(image.height, image.width, min_pixels=min_pixels, max_pixels=max_pixels)
    return image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BICUBIC)


def _integers_to_float(waveform: torch.Tensor) -> torch.Tensor:
    if waveform.dtype == torch.uint8:  # unsigned PCM is centred on 128
        return (waveform.float() - 128.0) / 128.0
    return waveform.to(torch.float64).div(2.0 ** (torch.iinfo(waveform.dtype).bits - 1)).float()


def _waveform(source: Any, mono: str) -> torch.Tensor:
    """[samples], [channels, samples] or [samples, channels] of any number type -> float32 [1, samples]."""
    waveform = source if isinstance(source, torch.Tensor) else torch.as_tensor(np.asarray(source))
    waveform = waveform.detach().cpu()
    if waveform.is_complex() or waveform.dtype == torch.bool:
        raise unreadable("audio", source, f"dtype {waveform.dtype}")
    if waveform.ndim == 1:
        waveform = waveform[None]
    if waveform.ndim != 2 or 0 in waveform.shape:
        raise unreadable("audio", source, f"shape {tuple(waveform.shape)} holds no samples of one recording")
    if waveform.shape[0] > waveform.shape[1]:  # the longer axis is time
        waveform = waveform.T
    waveform = waveform.float() if waveform.is_floating_point() else _integers_to_float(waveform)
    if not torch.isfinite(waveform).all():
        bad = int((~torch.isfinite(waveform)).sum())
        raise ValueError(f"audio {describe(source)} has {bad} NaN or infinite samples; remove or replace them first")
    if (peak := waveform.abs().max().item()) > LOUDEST_PEAK:
        raise ValueError(
            f"audio {describe(source)} has samples up to {peak:g}; floats must be in -1..1, divide by full scale"
        )
    return waveform.mean(0, keepdim=True) if mono == "mean" and len(waveform) > 1 else waveform[:1]


def _decode_audio(opened: str | io.BytesIO, source: Any, kind: str = "audio") -> tuple[np.ndarray, int]:
    """Decode the first sound track of any container -> (float32 [channels, samples], rate in Hz)."""
    av = require("av")
    if isinstance(opened, io.BytesIO):
        opened.seek(0)
    try:
        with av.open(opened) as container:
            if not container.streams.audio:
                raise unreadable(kind, source, "no sound track")
            stream = container.streams.audio[0]
            planar = av.AudioResampler(format="fltp")
            chunks = [part.to_ndarray() for frame in container.decode(stream) for part in planar.resample(frame)]
            rate = stream.rate
    except (av.error.FFmpegError, OSError) as error:
        raise unreadable(kind, source, error) from error
    if not chunks:
        raise unreadable(kind, source, "no samples")
    return np.concatenate(chunks, axis=1), int(rate)


def _load_audio_file(source: Any) -> tuple[np.ndarray, int]:
    opened = open_source(source, "audio")
    if isinstance(opened, str) and os.path.isdir(opened):
        raise unreadable("audio", source, "it is a directory")
    soundfile = require("soundfile")
    try:
        samples, rate = soundfile.read(opened, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:  # not one of libsndfile's formats: a container for FFmpeg, or no sound at all
        return _decode_audio(opened, source)
    return samples.T, rate


def load_audio(source: Any, sampling_rate: int | None = None, mono: str = "mean") -> tuple[torch.Tensor, int]:
    """Read one recording; returns (float32 [1, samples] in about -1..1, rate in Hz), not resampled.

    Args:
        source: a sound file (path, URL, data URL, bytes), an array/tensor `[samples]` or `[channels, samples]` (the
            longer axis is time), a pair (array, rate), or a dict with `array`, `path` or `bytes` and `sampling_rate`.
            Integers are divided by their full scale.
        sampling_rate: Hz, of arrays that come without a rate; default 16,000.
        mono: `"mean"` mixes the channels down, `"first"` takes the first one as the released code does.

    Raises:
        ValueError: unreadable or empty input, NaN or infinite samples, or a rate that is no positive number.
    """
    if mono not in MONO_MODES:
        raise ValueError(f"mono={mono!r} is unknown; accepted are {', '.join(MONO_MODES)}")
    if isinstance(source, dict):
        rate = source.get("sampling_rate", source.get("sample_rate", sampling_rate))
        inner = next((source[key] for key in ("array", "bytes", "path") if source.get(key) is not None), None)
        if inner is None:
            raise unreadable("audio", source, f"a dict with the keys {sorted(source)}")
        return load_audio(inner, rate, mono)
    if isinstance(source, (tuple, list)) and len(source) == 2 and any(np.ndim(part) > 0 for part in source):
        samples, rate = source if np.ndim(source[0]) > 0 else source[::-1]
    elif isinstance(source, (np.ndarray, torch.Tensor, list, tuple)):
        samples, rate = source, DEFAULT_SAMPLING_RATE if sampling_rate is None else sampling_rate
    else:
        samples, rate = _load_audio_file(source)
    if isinstance(rate, bool) or not isinstance(rate, Real) or int(rate) != rate or rate <= 0:
        raise ValueError(f"sampling rate {rate!r} of audio {describe(samples)} must be a positive whole number of Hz")
    return _waveform(samples, mono), int(rate)


def load_video_sound(
    source: Any, video_start: float | None = None, video_end: float | None = None, mono: str = "mean"
) -> tuple[torch.Tensor, int]:
    """Read the sound track of a video file; returns (float32 [1, samples], rate in Hz).

    Raises:
        ValueError: there is none, or frames were given instead of a file.
    """
    no_file = isinstance(source, (np.ndarray, torch.Tensor, list, tuple))
    if no_file or (isinstance(source, (str, os.PathLike)) and os.path.isdir(source)):
        raise ValueError(f"video {describe(source)} is frames without a sound track; pass a video file or audio")
    samples, rate = _decode_audio(open_source(source, "video"), source, "video")
    begin = 0 if video_start is None else int(video_start * rate)
    end = samples.shape[1] if video_end is None else int(video_end * rate)
    return _waveform(samples[:, begin:end], mono), rate


@functools.lru_cache(maxsize=16)
def _resampler(source_rate: int, target_rate: int):
    common = math.gcd(source_rate, target_rate)
    if (source_rate // common) * (target_rate // common) > RESAMPLING_KERNEL_VALUES:
        raise ValueError(
            f"audio at {source_rate} Hz has no small ratio to {target_rate} Hz; convert it to a usual rate first"
        )
    return require("torchaudio.transforms").Resample(source_rate, target_rate)


def resample(waveform: torch.Tensor, source_rate: int, target_rate: int) -> torch.Tensor:
    """Resample float32 [1, samples] from one rate to another (Hz) with a windowed sinc of width 6."""
    return waveform if source_rate == target_rate else _resampler(source_rate, target_rate)(waveform)
