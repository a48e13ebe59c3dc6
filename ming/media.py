"""Loading of images and audio at the boundary of the package (`video` loads videos).

Everything a user may pass (path, URL, data URL, bytes, array, tensor, ...) becomes one of two plain forms here: an
image is an RGB `PIL.Image.Image`, audio is a float32 tensor `[1, samples]` with its rate in Hz. Input that cannot be
read raises one `ValueError`, which names the source and what is accepted.

Letters: C channels, H height, W width (pixels).
"""

import base64
import binascii
import functools
import importlib
import io
import math
import os
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
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
LOUDEST_PEAK = 16.0  # noise overshoots 1 and lossy formats do a little; integers cast to floats reach thousands

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
    """The error to raise for a source of `kind` (`"image"`, `"audio"` or `"video"`) that cannot be read."""
    return ValueError(f"cannot read {kind} {describe(source)}: {reason}; accepted is {ACCEPTED[kind]}")


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of base64 text; `what` names it in the error, for instance `"this image item"`.

    Raises:
        ValueError: the text is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ValueError(f"the base64 data of {what} cannot be decoded: {error}") from error


def split_data_url(url: str) -> tuple[str, bytes]:
    """Split `data:<type>;base64,<data>` into the type (`"image/png"`, or "" where none is given) and the bytes.

    Raises:
        ValueError: the URL has another form, or its data are not base64.
    """
    header, comma, payload = url.partition(",")
    scheme, _, kind = header.partition(":")
    if not comma or scheme.lower() != "data" or not kind.endswith(";base64"):
        raise ValueError("a data URL must look like data:<type>;base64,<data>")
    return kind.removesuffix(";base64"), decode_base64(payload, "the data URL")


def _download(url: str, kind: str) -> bytes:
    httpx = require("httpx")
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    # Without compression, so that the limit counts the bytes that are kept.
    headers = {"user-agent": "bailingmm", "accept-encoding": "identity"}
    try:
        with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=DOWNLOAD_SECONDS) as response:
            if not response.is_success:
                raise unreadable(kind, url, f"HTTP Error {response.status_code}: {response.reason_phrase}")
            return _read_body(response.iter_raw(), url, kind, deadline)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
        raise unreadable(kind, url, error) from error


def _read_body(chunks: Iterator[bytes], url: str, kind: str, deadline: float) -> bytes:
    """All chunks of a download, up to the limit of its kind and the deadline (of `time.monotonic`)."""
    limit, data = DOWNLOAD_BYTES[kind], bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > limit:
            raise unreadable(kind, url, f"more than {limit >> 20} MiB")
        # The timeout of httpx holds for each read alone; a server that sends drop by drop never exceeds it.
        if time.monotonic() > deadline:
            raise unreadable(kind, url, f"not complete after {DOWNLOAD_SECONDS:.0f} s")
    return bytes(data)


def open_source(source: Any, kind: str) -> str | io.BytesIO:
    """Resolve a file-like media source to a local path or to its bytes in memory.

    Args:
        source: path, `file://`, `http(s)://` or `data:...;base64,` URL, bytes, or an object with `read`.
        kind: `"image"`, `"audio"` or `"video"`; sets the download limit and the wording of errors.

    Raises:
        ValueError: no such file, a download that fails or is too large or too slow, a bad data URL, or a type that
            is not accepted.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(bytes(source))
    if hasattr(source, "read"):
        if getattr(source, "seekable", lambda: False)():
            source.seek(0)  # a recording is read again for a voice, a video for its audio
        return io.BytesIO(source.read())
    if not isinstance(source, (str, os.PathLike)):
        raise unreadable(kind, source, f"{type(source).__name__} is no media source")
    text = os.fspath(source)
    if text.startswith(("http://", "https://")):
        return io.BytesIO(_download(text, kind))
    if text.startswith("data:"):
        try:
            return io.BytesIO(split_data_url(text)[1])
        except ValueError as error:
            raise unreadable(kind, text, error) from error
    if text.startswith("file://"):
        text = urllib.request.url2pathname(urllib.parse.urlparse(text).path)
    if not os.path.exists(text):
        raise unreadable(kind, source, "no such file")
    return text


def smart_resize(
    height: int,
    width: int,
    factor: int = SIZE_FACTOR,
    min_pixels: float = IMAGE_MIN_PIXELS,
    max_pixels: float = IMAGE_MAX_PIXELS,
) -> tuple[int, int]:
    """The size (height, width) in pixels nearest to the given one: multiples of `factor`, within the pixel limits.

    Not transformers' own `smart_resize`: that one rounds a side of up to `factor / 2` pixels to 0, which gives thin
    images another size (87 of 20,000 random ones). The released code counts such a side as one `factor`; so does this.

    Raises:
        ValueError: an empty image, sides in a ratio above 200, or limits below 1.
    """
    if min(min_pixels, max_pixels) < 1:
        raise ValueError(f"min_pixels={min_pixels} and max_pixels={max_pixels} must be at least 1")
    if min(height, width) < 1:
        raise ValueError(f"an image of {height} x {width} pixels is empty; both sides must be at least 1")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"an image of {height} x {width} pixels (height x width) is thinner than 1:{MAX_ASPECT_RATIO}; "
            "crop or pad it"
        )
    # Python's round is half to even; the released sizes depend on it.
    new_height, new_width = (max(factor, round(side / factor) * factor) for side in (height, width))
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height, new_width = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height, new_width = (math.ceil(side * grow / factor) * factor for side in (height, width))
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
    """[..., C, H, W] or [..., H, W, C] (C is 1, 3 or 4) -> uint8 [..., H, W, 3].

    Where both axes could be the channels, a tensor is read as [..., C, H, W] and an array as [..., H, W, C].
    """
    array = _array_of(source)
    channels_first, channels_last = array.shape[-3] in (1, 3, 4), array.shape[-1] in (1, 3, 4)
    if not channels_first and not channels_last:
        raise unreadable(kind, source, "no axis of 1, 3 or 4 channels")
    if channels_first and (isinstance(source, torch.Tensor) or not channels_last):
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
    """Read one image; returns it in RGB, upright (EXIF orientation applied), without alpha, first frame of a GIF.

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
    """Bicubic resize of an RGB image to multiples of 28 pixels, within the limits or near the wanted size."""
    if resized_height is not None and resized_width is not None:
        height, width = smart_resize(resized_height, resized_width)
    else:
        height, width = smart_resize(image.height, image.width, min_pixels=min_pixels, max_pixels=max_pixels)
    return image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BICUBIC)


def _integers_to_float(waveform: torch.Tensor) -> torch.Tensor:
    if waveform.dtype == torch.uint8:  # unsigned PCM is centred on 128
        return (waveform.float() - 128.0) / 128.0
    return waveform.to(torch.float64).div(2.0 ** (torch.iinfo(waveform.dtype).bits - 1)).float()


def raise_if_unusable(
    waveform: torch.Tensor,
    name: str = "the recording",
    rate: int = DEFAULT_SAMPLING_RATE,
    min_seconds: float = 0.0,
    use: str = "this model",
) -> None:
    """Refuse a recording from which nothing can be learned: too short, with NaN samples, or on the scale of integers.

    Args:
        waveform: floats [samples] or [channels, samples], meant to be in -1..1.
        name: what the errors call it.
        rate: Hz of the waveform.
        min_seconds: shortest length that is accepted.
        use: what needs that length, for the error.

    Raises:
        ValueError: shorter than `min_seconds`, NaN or infinite samples, or samples above `LOUDEST_PEAK`.
    """
    seconds = waveform.shape[-1] / rate
    if seconds < min_seconds:
        raise ValueError(f"{name} lasts {seconds:.2f} s; {use} needs at least {min_seconds:g} s, record more")
    if not torch.isfinite(waveform).all():
        bad = int((~torch.isfinite(waveform)).sum())
        raise ValueError(f"{name} has {bad} NaN or infinite samples; remove or replace them first")
    peak = float(waveform.abs().max()) if waveform.numel() else 0.0
    if peak > LOUDEST_PEAK:
        raise ValueError(f"{name} has samples up to {peak:g}; floats must be in -1..1, divide by full scale")


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
    raise_if_unusable(waveform, f"audio {describe(source)}")
    return waveform.mean(0, keepdim=True) if mono == "mean" and len(waveform) > 1 else waveform[:1]


def _decode_audio(opened: str | io.BytesIO, source: Any, kind: str = "audio") -> tuple[np.ndarray, int]:
    """Decode the first audio track of any container -> (float32 [channels, samples], rate in Hz)."""
    av = require("av")
    if isinstance(opened, io.BytesIO):
        opened.seek(0)
    try:
        with av.open(opened) as container:
            if not container.streams.audio:
                raise unreadable(kind, source, "no audio track")
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
    except soundfile.LibsndfileError:  # not a format of libsndfile: a container for FFmpeg, or no audio at all
        return _decode_audio(opened, source)
    return samples.T, rate


def load_audio(source: Any, sampling_rate: int | None = None, mono: str = "mean") -> tuple[torch.Tensor, int]:
    """Read one recording; returns (float32 [1, samples] in about -1..1, rate in Hz), not resampled.

    Args:
        source: an audio file (path, URL, data URL, bytes), an array/tensor `[samples]` or `[channels, samples]` (the
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
    if isinstance(rate, bool) or not isinstance(rate, Real) or not float(rate).is_integer() or rate <= 0:
        raise ValueError(f"sampling rate {rate!r} of audio {describe(samples)} must be a positive whole number of Hz")
    return _waveform(samples, mono), int(float(rate))


def load_video_audio(
    source: Any, video_start: float | None = None, video_end: float | None = None, mono: str = "mean"
) -> tuple[torch.Tensor, int]:
    """Read the audio track of a video file; returns (float32 [1, samples], rate in Hz).

    Args:
        source: a video file (path, URL, data URL, bytes).
        video_start, video_end: seconds; the part to read.
        mono: as in `load_audio`.

    Raises:
        ValueError: the video has no audio track, or frames were given instead of a file.
    """
    no_file = isinstance(source, (np.ndarray, torch.Tensor, list, tuple))
    if no_file or (isinstance(source, (str, os.PathLike)) and os.path.isdir(source)):
        raise ValueError(f"video {describe(source)} is frames without an audio track; pass a video file or audio")
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
