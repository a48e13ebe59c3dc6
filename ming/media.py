"""Loading of images and audio at the boundary of the package (`video` loads videos).

Everything a user may pass (path, URL, data URL, bytes, array, tensor, ...) becomes one of two plain forms here: an
image is an RGB `PIL.Image.Image`, audio is a float32 tensor `[1, samples]` with its rate in Hz. Input that cannot be
read raises one `ValueError`, which names the source and what is accepted.

Files are not trusted. FFmpeg may open containers of media and nothing else: no playlists and scripts, which name other
files and addresses. The limits below hold before or while a file is decoded, never after.

Letters: C channels, H height, W width (pixels).
"""

import base64
import binascii
import errno
import functools
import importlib
import io
import math
import os
import re
import stat
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from transformers.utils import logging

from .argument_checks import LARGEST_NUMBER, InputError, raise_if_no_number, shown, shown_number
from .file_ends import describe_end

logger = logging.get_logger(__name__)

SIZE_FACTOR = 28  # pixels: patch size 14 times merge size 2
IMAGE_MIN_PIXELS = 4 * SIZE_FACTOR**2  # 3,136
IMAGE_MAX_PIXELS = 1024 * SIZE_FACTOR**2  # 802,816
MAX_ASPECT_RATIO = 200

MAX_RESIZED_PIXELS = 32_768 * SIZE_FACTOR**2  # more image tokens than any context of the model holds

NEARLY_BLACK = 1 << 12  # of 16-bit images
MAX_IMAGE_PIXELS = 89_478_485  # of a file; Pillow warns from here on
MAX_FRAME_PIXELS = 8192 * 4320  # of a video; 8K
MAX_VIDEO_FRAMES = 500_000  # of a video file; more than two hours at 60 frames/s
MAX_AUDIO_SECONDS = 1800.0
BLOCK_SAMPLES = 1 << 16  # audio is decoded and mixed in blocks
GAP_SECONDS = 0.1  # by which times of a recording may be wrong before it counts as interrupted
LONGEST_SECONDS = 1e9  # of a clip; above it, times mean its end
MAX_AUDIO_SAMPLES = int(MAX_AUDIO_SECONDS) * 48_000  # of one channel, 346 MB as float32
DOWNLOAD_SECONDS = 30.0
MAX_PORT = 65535
DOWNLOAD_BYTES = {"image": 64 << 20, "audio": 256 << 20, "video": 1 << 30}
RESAMPLING_KERNEL_VALUES = 50_000_000  # 200 MB: rates without a small common ratio would need gigabytes
DEFAULT_SAMPLING_RATE = 16_000  # Hz, of waveforms that come without a rate
MONO_MODES = ("mean", "first")
NO_AUDIO_REMEDY = "; leave out load_audio_from_video or the audio item behind it, or pass a recording as audio"
SILENCE_PEAK = 1e-3  # of full scale; -60 dB
CANCELLED_SHARE = 0.02  # of the power that a mix is expected to have; below it, its channels cancel each other out
LOUDEST_PEAK = 16.0  # noise overshoots 1 and lossy formats do a little; integers cast to floats reach thousands

SCHEMES = ("http", "https", "file", "data")  # of the addresses that are read
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # one letter is a drive
FILE_SOURCES = "path, file://, http(s):// or data: URL, bytes"
ACCEPTED_FILES = {
    "image": "a jpg, png, webp or gif file",
    "audio": "a wav, mp3, flac, ogg or m4a file",
    "video": "an mp4, webm, mov, mkv or gif file",
}
ACCEPTED = {
    "image": f"{ACCEPTED_FILES['image']} ({FILE_SOURCES}), a PIL image, or an array or tensor [H, W], [H, W, C] or "
    "[C, H, W] of uint8 or of floats in 0..1",
    "audio": f"{ACCEPTED_FILES['audio']} ({FILE_SOURCES}), an array or tensor [samples] or [channels, "
    "samples], or a pair (array, sampling rate)",
    "video": f"{ACCEPTED_FILES['video']} ({FILE_SOURCES}), a list or a directory of frames, or an array or "
    "tensor [T, C, H, W] or [T, H, W, C]",
}

# What FFmpeg may open: containers that hold their media themselves. Its formats for playlists and scripts (concat,
# hls, dash, sdp, ...) read other files and open sockets, and those for samples without a header guess the rate.
CONTAINERS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "rm", "nut", "mxf", "dv", "gxf", "wtv"),
    *("gif", "mjpeg", "h264", "hevc", "m4v", "ivf", "obu", "yuv4mpegpipe", "vc1", "swf", "nsv", "roq", "smk", "bink"),
    *("wav", "w64", "aiff", "au", "caf", "flac", "mp3", "ogg", "aac", "amr", "amrnb", "amrwb", "ac3", "eac3", "ac4"),
    *("ape", "wv", "tta", "tak", "voc", "ircam", "nistsphere", "paf", "pvf", "iff", "mpc", "mpc8", "dts", "dtshd"),
    *("truehd", "mlp", "dsf", "xwma", "oma", "latm", "loas", "gsm", "qcp", "shn", "adx"),
)
# No protocol is allowed: the file itself is read by Python.
CONTAINER_OPTIONS = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}
COUNTED_CONTAINERS = ("mov", "matroska", "wav", "flac", "ogg")  # their length is written, not estimated
CUT_OFF_SECONDS, CUT_OFF_SHARE = 0.5, 0.1  # what a file lacks before it counts as cut off; both must be exceeded
# Formats of Pillow that run other programs (Ghostscript, for EPS) or only hand a file on to a handler.
REFUSED_IMAGE_FORMATS = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "FPX", "MIC")
HEADERLESS_ENDINGS = (
    *(".raw", ".pcm", ".sw", ".sb", ".uw", ".ub", ".s8", ".s16", ".u8", ".al", ".ul", ".alaw", ".ulaw"),
    *(".s24", ".s32", ".f32", ".f64", ".l16", ".g722", ".vox", ".bin", ".dat"),
)
HEADERLESS_REMEDY = "samples without a header have no known rate; save it as wav"
ARRAY_REMEDY = ", or pass (array, rate)"
TRANSPARENT_MODES = ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "RGBa")

SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"GIF8", "gif"),
    (8, b"WEBP", "webp"),
    (0, b"II*\x00", "tiff"),
    (0, b"MM\x00*", "tiff"),
    (0, b"BM", "bmp"),
    (0, b"\x00\x00\x00\x0cjP  ", "jp2"),
    (8, b"WAVE", "wav"),
    (0, b"riff\x2e\x91\xcf\x11", "w64"),
    (8, b"AIFF", "aiff"),
    (8, b"AIFC", "aiff"),
    (0, b"caff", "caf"),
    (0, b".snd", "au"),
    (0, b"wvpk", "wavpack"),
    (0, b"\x0b\x77", "ac3"),
    (0, b"#!AMR", "amr"),
    (0, b"MAC ", "ape"),
    (0, b"TTA1", "tta"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"FLV\x01", "flv"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, b"\x00\x00\x01\xb3", "mpeg"),
    (8, b"AVI ", "avi"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    (0, b"\x1a\x45\xdf\xa3", "webm"),
    (0, b"%PDF", "pdf"),
    (0, b"%!PS", "postscript"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"<svg", "svg"),
    (0, b"ffconcat", "playlist"),
    (0, b"#EXTM3U", "playlist"),
    (0, b"[playlist]", "playlist"),
    (0, b"v=0", "playlist"),
)
BRANDS = {
    "avif": "avif",
    "avis": "avif",
    "heic": "heic",
    "heix": "heic",
    "heim": "heic",
    "hevc": "heic",
    "mif1": "heic",
}
REMEDIES = {
    "heic": "save it as jpeg or png",
    "avif": "save it as jpeg or png",
    "pdf": "render its pages as images",
    "postscript": "render it as an image",
    "svg": "render it as png",
    "playlist": "it only names other files, which are never followed; pass the media themselves",
}
HEIC_REMEDY = ", or install pillow-heif and call its register_heif_opener()"
ANIMATIONS = ("webp", "png", "avif")  # kinds of image files whose frames Pillow reads


class NamedBytes(bytes):
    """A file in memory with a name, by which errors call it.

    Args:
        data: the file.
        name: what the user knows it by, such as its file name, its URL or the field of a request.
    """

    name: str

    def __new__(cls, data: bytes, name: str):
        named = super().__new__(cls, data)
        named.name = name
        return named


def file_kind(data: bytes) -> str | None:
    """The kind of a file by its first bytes, such as "png" or "heic", None if unknown.

    Mov is "mp4", mkv is "webm", wma and wmv are "asf", and eac3 is "ac3".
    """
    if data[4:8] == b"ftyp":
        brands = [data[i : i + 4].decode("latin-1") for i in (8, *range(16, min(len(data), 64), 4))]
        # "mif1" stands for any image, so that the other brands decide.
        return next(
            (BRANDS[brand] for brand in brands if brand in BRANDS and brand != "mif1"), BRANDS.get(brands[0], "mp4")
        )
    for offset, signature, kind in SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            return kind
    if len(data) < 2 or data[0] != 0xFF:
        return None
    if data[1] & 0xF6 == 0xF0:  # sync bits of ADTS, layer 0
        return "aac"
    return "mp3" if data[1] & 0xE6 == 0xE2 else None  # sync bits of MPEG, layer 3


def describe_kind(kind: str | None) -> str:
    """What a file is, for errors: " (a file of kind heic; save it as jpeg ...)"; "" for an unknown kind."""
    remedy = f"; {REMEDIES[kind]}" if kind in REMEDIES else ""
    return f" (a file of kind {kind}{remedy})" if kind else ""


def require(name: str):
    """Import a module that only some inputs need; `ImportError` with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"reading this input needs the package {package!r}: pip install {package}") from error


def describe(source: Any) -> str:
    """A short name of a media source for error messages."""
    if isinstance(source, Mapping) and isinstance(source.get("path"), str):
        source = source["path"]
    if isinstance(source, Image.Image) and (filename := getattr(source, "filename", "")):  # that it was opened from
        source = filename
    if isinstance(name := getattr(source, "name", None), str) and not isinstance(source, os.PathLike):
        source = name
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        return repr(text if len(text) <= 120 else text[:117] + "...")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    if hasattr(source, "shape"):
        return f"<{type(source).__name__} of shape {tuple(source.shape)} and dtype {source.dtype}>"
    return f"<{type(source).__name__}>"


def unreadable(kind: str, source: Any, reason: object, remedy: str = "") -> InputError:
    """The error to raise for a source of `kind` (`"image"`, `"audio"` or `"video"`) that cannot be read.

    Args:
        remedy: goes on after the reason; only for who calls this package.
    """
    what = f"cannot read {kind} {describe(source)}: {reason}"
    message = f"{what}{remedy}; accepted is {ACCEPTED[kind]}"
    return InputError(message, f"{what}; accepted is {ACCEPTED_FILES[kind]}", str(reason))


def scheme_of(source: Any) -> str:
    """The scheme of an address in lower case: "http" of `HTTP://...`; "" for all else, such as a path."""
    if not isinstance(source, str):
        return ""
    if source[:5].lower() == "data:":
        return "" if os.path.isfile(source) else "data"  # a file may have such a name
    match = SCHEME.match(source)
    return match[1].lower() if match and not os.path.isfile(source) else ""


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of base64 text, or of a data URL; `what` names it in errors.

    The text may have line ends, the alphabet of URLs (`-` and `_`), and no padding.

    Raises:
        ValueError: the text is neither.
    """
    if isinstance(text, str) and text[:5].lower() == "data:":
        return split_data_url(text, what)[1]
    try:
        plain = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the base64 data of {what} cannot be decoded: {error}; give plain base64 or data:<type>;base64,<data>"
        ) from error


def split_data_url(url: str, what: str = "the data URL") -> tuple[str, bytes]:
    """Split `data:<type>;base64,<data>` into the type (`"image/png"`, or "" where none is given) and the bytes.

    Args:
        what: names it in errors.

    Raises:
        ValueError: the URL has another form, or its data are not base64.
    """
    header, comma, payload = url.partition(",")
    scheme, _, kind = header.partition(":")
    if not comma or scheme.lower() != "data" or kind[-7:].lower() != ";base64":
        raise ValueError("a data URL must look like data:<type>;base64,<data>")
    return kind[:-7], decode_base64(urllib.parse.unquote(payload), what)


def raise_if_no_port(url: Any) -> None:
    """Refuse an `httpx.URL` whose port cannot be one; the system would take the number modulo 65536.

    Raises:
        httpx.InvalidURL: naming the port.
    """
    if url.port is not None and not 0 < url.port <= MAX_PORT:
        raise require("httpx").InvalidURL(f"port {url.port} is not a number of 1 to {MAX_PORT}")


def _download(url: str, kind: str) -> bytes:
    httpx = require("httpx")
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    # Without compression, so that the limit counts the bytes that are kept.
    headers = {"user-agent": "bailingmm", "accept-encoding": "identity"}
    hooks = {"request": [lambda request: raise_if_no_port(request.url)]}  # for redirects, too
    try:
        with (
            httpx.Client(event_hooks=hooks, follow_redirects=True, timeout=DOWNLOAD_SECONDS) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
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


def open_source(source: Any, kind: str) -> BinaryIO:
    """Open a media source that is a file -> a binary stream that can be rewound; the caller closes it.

    Args:
        source: path, `file://`, `http(s)://` or `data:...;base64,` URL, bytes, an object with `read`, or a dict with
            `bytes` or `path` (as `datasets` has it).
        kind: `"image"`, `"audio"` or `"video"`; sets the download limit and the wording of errors.

    Raises:
        ValueError: no such file, no regular file (a pipe would block for ever), a download that fails or is too large
            or too slow, a bad data URL, or a type that is not accepted.
    """
    source = bytes_or_path(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(bytes(source))
    if hasattr(source, "read"):
        if getattr(source, "seekable", lambda: False)():
            source.seek(0)  # a recording is read again for a voice, a video for its audio
        data = source.read()
        if isinstance(data, str):
            raise unreadable(kind, source, "it is open as text; open it with mode 'rb'")
        return io.BytesIO(data)
    if not isinstance(source, (str, os.PathLike)):
        raise unreadable(kind, source, f"{type(source).__name__} is no media source")
    text = os.fspath(source)
    return _open_address(text, kind) if scheme_of(text) else _open_path(text, source, kind)


def _open_address(address: str, kind: str) -> BinaryIO:
    scheme = scheme_of(address)
    if scheme not in SCHEMES:
        remedy = "; download the file, or give an address that begins with http:// or https://"
        raise unreadable(kind, address, f"addresses that begin with {scheme}:// are not read", remedy)
    if scheme == "file":
        return _open_path(urllib.request.url2pathname(urllib.parse.urlparse(address).path), address, kind)
    if scheme != "data":
        return io.BytesIO(_download(address, kind))
    try:
        return io.BytesIO(split_data_url(address)[1])
    except ValueError as error:
        raise unreadable(kind, address, error) from error


def _open_path(path: str, source: Any, kind: str) -> BinaryIO:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                file.read(1)  # files of broken disks and of /proc can be opened, but not read
            return open(path, "rb")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a null character in the name
        raise unreadable(kind, source, "no such file") from error
    except OSError as error:
        raise unreadable(kind, source, error.strerror or error) from error
    what = "a directory" if stat.S_ISDIR(mode) else "a pipe or device, no file; save it first, or pass its bytes"
    raise unreadable(kind, source, f"it is {what}")


def bytes_or_path(source: Any) -> Any:
    """The file that a dict {"bytes": ..., "path": ...} stands for, bytes first; any other source as it is."""
    if not isinstance(source, Mapping) or not {"bytes", "path"} & source.keys():
        return source
    data, path = source.get("bytes"), source.get("path")
    if data is None:
        return path
    return NamedBytes(data, path) if isinstance(path, str) else data


def fetch(source: Any, kind: str) -> Any:
    """An http(s) URL becomes the file it points to, to be read more than once; any other source stays as it is."""
    return NamedBytes(_download(source, kind), source) if scheme_of(source) in ("http", "https") else source


@contextmanager
def open_container(file: BinaryIO, source: Any, kind: str) -> Iterator[Any]:
    """Open a file with FFmpeg -> PyAV's `InputContainer`; errors of FFmpeg in the block name `source`.

    Raises:
        ValueError: no container of media, or it cannot be read.
    """
    av = require("av")
    file.seek(0)
    found = file_kind(file.read(64))
    file.seek(0)
    try:
        # Tags of old files are in all kinds of encodings, and are not needed.
        with av.open(_Unnamed(file), container_options=CONTAINER_OPTIONS, metadata_errors="replace") as container:
            yield container
    except (av.error.FFmpegError, OSError) as error:
        is_foreign = getattr(error, "errno", None) == errno.EINVAL
        reason = "it is no container of media" if is_foreign else getattr(error, "strerror", None) or error
        if kind == "audio" and found is None and isinstance(error, av.error.InvalidDataError):
            raise unreadable(kind, source, f"{reason}; {HEADERLESS_REMEDY}", ARRAY_REMEDY) from error
        raise unreadable(kind, source, f"{reason}{describe_kind(found)}") from error


class _Unnamed:
    """A stream without its name: FFmpeg would take the ending of a name for a hint at the format."""

    def __init__(self, file: BinaryIO):
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def played_track(streams: Any) -> Any:
    """Of tracks of one kind (PyAV's streams), the one that players play; None where there is none.

    It is the one that the file marks as its default, or else the first. Pictures of a cover are no videos, and tracks
    for those who do not hear or see well, such as a description of what is seen, give way to the others.
    """
    marks = require("av").stream.Disposition
    impaired = marks.hearing_impaired | marks.visual_impaired

    def rank(stream: Any) -> int:
        return bool(stream.disposition & marks.default) - bool(stream.disposition & impaired)

    return max((stream for stream in streams if not stream.disposition & marks.attached_pic), key=rank, default=None)


def raise_if_undecodable(stream: Any, source: Any, kind: str) -> None:
    """Refuse a track without a decoder: PyAV leaves out its properties."""
    if stream.codec_context is None:
        raise unreadable(kind, source, "there is no decoder for its codec; convert it to another one")


def decode_track(container: Any, stream: Any, source: Any, kind: str, decoder: Any = None) -> Iterator[Any]:
    """Frames of one track; damaged packets are left out, with a warning at the end.

    Args:
        decoder: PyAV's `CodecContext` to decode with, instead of the track's own.

    Raises:
        ValueError: nothing can be decoded.
    """
    av = require("av")
    damage, count = [], 0
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode() if decoder is None else decoder.decode(packet)
            except av.error.FFmpegError as error:
                damage.append(error)
                continue
            count += len(frames)
            yield from frames
    except (av.error.FFmpegError, OSError) as error:  # the file ends within a packet
        damage.append(error)
    if damage and not count:
        reason = getattr(damage[0], "strerror", None) or damage[0]
        raise unreadable(kind, source, f"none of its packets can be decoded, it may lack its beginning ({reason})")
    if damage:
        logger.warning(f"{kind} {describe(source)} is damaged: {len(damage)} of its packets cannot be decoded")


def stated_seconds(container: Any, stream: Any) -> float | None:
    """Length of a track as the header of its file states it; None where it does not, or only estimates it."""
    if container.format.name.split(",")[0] not in COUNTED_CONTAINERS:
        return None
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams) == 1  # else the length is that of the longest track
    if not alone or container.duration is None:
        return None
    # Matroska counts from 0, wherever its track begins.
    late = (_start_seconds(stream) or 0.0) if "matroska" in container.format.name else 0.0
    return container.duration / 1e6 - max(0.0, late)


def warn_about_end(file: BinaryIO, stated: float | None, found: float, source: Any, kind: str) -> None:
    """Log a warning about a file that ends long before its header says, or behind which another one begins.

    Args:
        file: the whole file.
        stated, found: seconds.
    """
    if stated is not None and stated - found > max(CUT_OFF_SECONDS, CUT_OFF_SHARE * stated):
        logger.warning(
            f"{kind} {describe(source)} ends after {found:.2f} s, but its header says {stated:.2f} s; it is probably "
            "cut off, and what is missing is not seen or heard"
        )
    elif wrong := describe_end(file):
        logger.warning(f"{kind} {describe(source)} {wrong}")


def raise_if_limits_cross(min_pixels: float, max_pixels: float, of: str = "") -> None:
    """Refuse limits of an image that no size keeps.

    Args:
        of: what stands before the names of the limits, such as "video_".

    Raises:
        ValueError: it names both.
    """
    if min_pixels > max_pixels:
        raise ValueError(
            f"{of}min_pixels={min_pixels} is above {of}max_pixels={max_pixels}; lower it, or raise {of}max_pixels"
        )


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
        ValueError: an empty image, sides in a ratio above 200, limits below 1 or in the wrong order, or a result of
            more than `MAX_RESIZED_PIXELS`.
    """
    sides = {"height": height, "width": width, "min_pixels": min_pixels}
    for name, value in (sides if max_pixels == math.inf else {**sides, "max_pixels": max_pixels}).items():
        raise_if_no_number(name, value)
    if min(min_pixels, max_pixels) < 1:
        raise ValueError(f"min_pixels={min_pixels} and max_pixels={max_pixels} must be at least 1")
    raise_if_limits_cross(min_pixels, max_pixels)
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
    if new_height * new_width > MAX_RESIZED_PIXELS:
        raise ValueError(
            f"an image of {height} x {width} pixels would become one of {new_height} x {new_width}, more than "
            f"{MAX_RESIZED_PIXELS:,} pixels; lower min_pixels={min_pixels} or max_pixels={max_pixels}"
        )
    return new_height, new_width


def _to_uint8(array: np.ndarray) -> np.ndarray:
    """Values in 0..1 (floats) or 0..255 -> uint8.

    Raises:
        ValueError: other values, or no numbers; it does not name the source.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise ValueError(f"dtype {array.dtype}")
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (low >= 0.0 and high <= 255.0):  # also catches NaN
        raise ValueError(
            f"values from {low:g} to {high:g} are neither in 0..1 nor in 0..255; scale them, for example by dividing "
            "by their full scale"
        )
    scale = 255.0 if np.issubdtype(array.dtype, np.floating) and high <= 1.0 else 1.0
    return np.rint(array * scale).astype(np.uint8)


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """uint8 [..., 4] with alpha -> uint8 [..., 3] on white, rounded as Pillow does."""
    if pixels[..., 3].min() == 255:
        return pixels[..., :3]
    alpha: np.ndarray = pixels[..., 3:].astype(np.uint16)  # the largest sum is 255 * 255 + 128 + 254
    mixed = pixels[..., :3] * alpha + 255 * (255 - alpha) + 128
    return ((mixed + (mixed >> 8)) >> 8).astype(np.uint8)


def _array_of(source: np.ndarray | torch.Tensor, kind: str) -> np.ndarray:
    if not isinstance(source, torch.Tensor):
        return source
    if source.is_meta or source.is_quantized or source.layout != torch.strided:
        raise unreadable(kind, source, "the tensor is on the meta device, quantised or sparse; pass a plain one")
    source = source.detach().cpu()
    return (source.float() if source.dtype == torch.bfloat16 else source).numpy()


def pixels_channels_last(source: np.ndarray | torch.Tensor, kind: str) -> np.ndarray:
    """[..., C, H, W] or [..., H, W, C] (C is 1, 3 or 4) -> uint8 [..., H, W, 3]; a fourth channel is alpha.

    Where both axes could be the channels, a tensor is read as [..., C, H, W] and an array as [..., H, W, C].
    """
    array = _array_of(source, kind)
    channels_first, channels_last = array.shape[-3] in (1, 3, 4), array.shape[-1] in (1, 3, 4)
    if not channels_first and not channels_last:
        raise unreadable(kind, source, "no axis of 1, 3 or 4 channels")
    if channels_first and (isinstance(source, torch.Tensor) or not channels_last):
        array = np.moveaxis(array, -3, -1)
    try:
        array = _to_uint8(array)
    except ValueError as error:
        raise unreadable(kind, source, error) from error
    if array.shape[-1] == 4:
        return _on_white(array)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def _image_from_array(source: np.ndarray | torch.Tensor) -> Image.Image:
    if source.ndim == 2:
        source = source[..., None]
    if source.ndim != 3:
        raise unreadable("image", source, f"{source.ndim} dimensions")
    if 0 in source.shape:
        raise unreadable("image", source, "no pixels")
    return Image.fromarray(np.ascontiguousarray(pixels_channels_last(source, "image")))


def raise_if_too_many_pixels(kind: str, source: Any, width: int, height: int) -> None:
    """Refuse an image, or a video with frames, of more pixels than are decoded."""
    limit = MAX_IMAGE_PIXELS if kind == "image" else MAX_FRAME_PIXELS
    if width * height > limit:
        raise unreadable(kind, source, f"{width} x {height} pixels are more than {limit:,}; make it smaller")


@contextmanager
def open_image(file: BinaryIO, source: Any, kind: str = "image") -> Iterator[Image.Image]:
    """Open a file with Pillow -> an image that is not decoded yet; all errors in the block name `source`.

    Raises:
        ValueError: no image, too many pixels, or it cannot be decoded.
    """
    Image.init()
    found = file_kind(file.read(64))
    file.seek(0)
    try:
        with Image.open(file, formats=[name for name in Image.OPEN if name not in REFUSED_IMAGE_FORMATS]) as image:
            raise_if_too_many_pixels(kind, source, image.width, image.height)
            yield image
    except UnidentifiedImageError as error:  # its text is the address of the stream
        remedy = HEIC_REMEDY if found == "heic" else ""
        raise unreadable(kind, source, f"cannot identify image file{describe_kind(found)}", remedy) from error
    except Exception as error:  # decoders fail in many ways on damaged files
        if isinstance(error, ValueError) and str(error).startswith("cannot read "):
            raise
        raise unreadable(kind, source, error) from error


def _open_image(source: Any) -> Image.Image:
    with open_source(source, "image") as file, open_image(file, source) as image:
        image.load()
        return image.copy() if getattr(image, "is_animated", False) else image


ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception as error:  # a damaged block of metadata; the pixels do not depend on it
        logger.warning(f"the EXIF data of an image cannot be read, so that it may not be upright: {error}")
        return image
    return image.transpose(ORIENTATIONS[orientation]) if orientation in ORIENTATIONS else image


def _to_rgb(image: Image.Image, source: Any) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips 16-bit values instead of scaling them
        values = np.asarray(image)
        if 0 < (highest := int(values.max())) < NEARLY_BLACK:
            logger.warning(
                f"image {describe(source)} is nearly black: its highest value is {highest:,} of 65,535; if it holds "
                "values of fewer bits, scale them first, such as numpy.asarray(image) / 4095 for 12 bits"
            )
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):  # 32 bits; Pillow's own conversion clips them
        try:
            image = Image.fromarray(_to_uint8(np.asarray(image)))
        except ValueError as error:
            raise ValueError(f"mode {image.mode} (32 bits): {error}") from error
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data and image.mode in TRANSPARENT_MODES:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def load_image(source: Any) -> Image.Image:
    """Read one image; returns it in RGB, upright (EXIF orientation applied), on white, first frame of a GIF.

    Args:
        source: path, `file://`, `http(s)://` or `data:` URL, bytes, PIL image, dict with `bytes` or `path`, or
            array/tensor `[H, W]`, `[H, W, C]` or `[C, H, W]` of uint8, of floats in 0..1, or of values in 0..255 (C is
            1, 3 or 4; the fourth channel is alpha). 16-bit images are scaled; images of 32 bits count as arrays.

    Raises:
        ValueError: missing, empty, truncated, oversized (more than `MAX_IMAGE_PIXELS`) or non-image input.
    """
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _image_from_array(source)
    if isinstance(source, Image.Image):
        raise_if_too_many_pixels("image", source, *source.size)
    image = source if isinstance(source, Image.Image) else _open_image(source)
    try:
        image.load()  # Pillow opens files without decoding them, and nothing below need touch the pixels
        return _to_rgb(_upright(image), source)
    except Exception as error:  # decoders fail in many ways on damaged files
        raise unreadable("image", source, error) from error


def pixel_limits(
    min_pixels: float | None, max_pixels: float | None, default_min: float, default_max: float
) -> tuple[float, float]:
    """(min_pixels, max_pixels) with defaults for what is None; a default gives way to the limit that was asked for.

    Raises:
        ValueError: a limit is no number of at least 1.
    """
    for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if value is not None:
            raise_if_no_number(name, value)
    if max_pixels is None:
        return (default_min, default_max) if min_pixels is None else (min_pixels, max(default_max, min_pixels))
    return (min(default_min, max_pixels), max_pixels) if min_pixels is None else (min_pixels, max_pixels)


def raise_if_half_a_size(resized_height: int | None, resized_width: int | None) -> None:
    """Refuse one side of a wanted size without the other.

    Raises:
        ValueError: it names the side that is missing.
    """
    sides = {"resized_height": resized_height, "resized_width": resized_width}
    missing = [name for name, side in sides.items() if side is None]
    if len(missing) == 1:
        (given,) = sides.keys() - missing
        raise ValueError(
            f"{given}={shown(sides[given])} needs {missing[0]}, too; give both, or min_pixels, max_pixels"
        )


def resize_image(
    image: Image.Image,
    min_pixels: float | None = None,
    max_pixels: float | None = None,
    resized_height: int | None = None,
    resized_width: int | None = None,
) -> Image.Image:
    """Bicubic resize of an RGB image to multiples of 28 pixels, within the limits or near the wanted size.

    A limit that is not given is `IMAGE_MIN_PIXELS` or `IMAGE_MAX_PIXELS`, or the other one where that excludes it.

    Raises:
        ValueError: see `smart_resize`, or one side of the wanted size without the other.
    """
    raise_if_half_a_size(resized_height, resized_width)
    if resized_height is not None and resized_width is not None:
        height, width = smart_resize(resized_height, resized_width)
    else:
        min_pixels, max_pixels = pixel_limits(min_pixels, max_pixels, IMAGE_MIN_PIXELS, IMAGE_MAX_PIXELS)
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


def loudest(waveform: torch.Tensor) -> float:
    """The largest distance of a sample of floats [..., samples] from their mean: a constant is not heard."""
    return float((waveform - waveform.mean()).abs().max())


class _Downmix:
    """Mixes one recording down, block by block, and notices when its channels cancel each other out.

    Args:
        mono: one of `MONO_MODES`.
    """

    def __init__(self, mono: str):
        self.mono = mono
        self.expected_power = self.power = self.peak = 0.0

    def __call__(self, block: torch.Tensor) -> torch.Tensor:
        """float32 [channels, samples] -> [1, samples]"""
        if self.mono == "first" or len(block) == 1:
            return block[:1]
        mixed = block.mean(0, keepdim=True)
        # That of channels that have nothing to do with each other.
        self.expected_power += float(block.square().sum()) / len(block) ** 2
        self.power += float(mixed.square().sum())
        self.peak = max(self.peak, float(block.abs().max()))
        return mixed

    def warn(self, source: Any, kind: str) -> None:
        """Log a warning if hardly anything is left of a recording that is not silent."""
        if self.peak >= SILENCE_PEAK and self.power < CANCELLED_SHARE * self.expected_power:
            logger.warning(
                f"the channels of {kind} {describe(source)} cancel each other out when they are mixed (one is the "
                'other upside down), so that hardly anything is heard; take the first one alone: mono="first" of '
                "load_audio and of the processor's feature_extractor, or turn one of them over"
            )


def _waveform(source: Any, mono: str) -> torch.Tensor:
    """[samples], [channels, samples] or [samples, channels] of any number type -> float32 [1, samples]."""
    waveform = torch.as_tensor(_array_of(source, "audio") if isinstance(source, torch.Tensor) else np.asarray(source))
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
    downmix = _Downmix(mono)
    mixed = downmix(waveform)
    downmix.warn(source, "audio")
    return mixed


def _raise_if_too_long(seconds: float, limit: float, source: Any, kind: str) -> None:
    if seconds > limit:
        raise unreadable(kind, source, f"{seconds:.1f} s or more of audio exceed the limit of {limit:g} s; cut it")


def _decode_audio(
    source: Any, kind: str, mono: str, max_seconds: float, start: float | None = None, end: float = math.inf
) -> tuple[torch.Tensor, int]:
    """Decode the audio track of a file that players play -> (float32 [1, samples], rate in Hz).

    Channels are mixed while decoding, so that no more than the result is held in memory.

    Args:
        start, end: seconds on the clip's own clock; None starts with the track, wherever that begins.
    """
    kept, parts, rate, first, after, downmix = 0, [], 0, None, 0, _Downmix(mono)
    with open_source(source, kind) as file, open_container(file, source, kind) as container:
        stream = played_track(container.streams.audio)
        if stream is None:
            raise unreadable(kind, source, "no audio track" + (NO_AUDIO_REMEDY if kind == "video" else ""))
        raise_if_undecodable(stream, source, kind)
        begins, zero = _start_seconds(stream) or 0.0, _clock_zero(container, stream)
        stated = stated_seconds(container, stream)
        low = begins - zero if start is None else start
        _raise_if_too_long(min(begins - zero + (stated or 0.0), end) - low, max_seconds, source, kind)
        for place, block, rate in _blocks(container, stream, source, kind):
            place -= round(zero * rate)
            first = place if first is None else first
            after, low = place + block.shape[1], first if start is None else _samples(start, rate)
            begin, stop = (max(place, min(at, after)) for at in (low, _samples(end, rate)))
            if stop > begin:
                silence = 0 if start is None else max(0, begin - low - kept)
                kept += silence + stop - begin
                _raise_if_too_long(kept / rate, min(max_seconds, MAX_AUDIO_SAMPLES / rate), source, kind)
                raise_if_unusable(block[:, begin - place : stop - place], f"{kind} {describe(source)}")
                parts += [torch.zeros(1, silence), downmix(block[:, begin - place : stop - place])]
            if stop < after:
                break
        else:
            warn_about_end(file, stated, (after - (first or 0)) / max(rate, 1), source, kind)
    if not parts:
        is_part = start is not None or end < math.inf
        span = "" if first is None or not is_part else _described_span(first / rate, after / rate, start or 0.0, end)
        raise unreadable(kind, source, f"no samples{span}")
    downmix.warn(source, kind)
    return torch.cat(parts, dim=1), rate


def _samples(seconds: float, rate: int) -> int:
    return int(min(seconds, LONGEST_SECONDS) * rate)


def _described_span(first: float, last: float, start: float, end: float) -> str:
    """Why a part of a clip has no samples, for errors; all in seconds."""
    track = f"begins at {first:.2f} s" if first >= end else f"ends at {last:.2f} s"
    return f" from {start:g} to {end:g} s: its audio track {track}{NO_AUDIO_REMEDY}"


def _start_seconds(stream: Any) -> float | None:
    """When a track begins, by the clock of its file; None where that is not known."""
    return None if stream.start_time is None else float(stream.start_time * stream.time_base)


def _clock_zero(container: Any, stream: Any) -> float:
    """The second of a file's clock at which its clip begins: with its first frame, or with `stream` alone."""
    starts = (_start_seconds(each) for each in (played_track(container.streams.video), stream) if each is not None)
    return next((start for start in starts if start is not None), 0.0)


def _blocks(container: Any, stream: Any, source: Any, kind: str) -> Iterator[tuple[int, torch.Tensor, int]]:
    """Decoded blocks of an audio track: the place of the first sample, float32 [channels, samples], the rate in Hz.

    Places are in samples by the clock of the file. They go on from block to block but for gaps of the recording.
    """
    # Not planar: PyAV reads beyond the end of its list of planes from eight channels on.
    packed = require("av").AudioResampler(format="flt")
    form: tuple[int, int] | None = None
    waiting: list[np.ndarray] = []
    place = count = 0  # of the first sample that waits, and how many do
    for frame in decode_track(container, stream, source, kind):
        is_first = form is None
        form = form or (frame.sample_rate, frame.layout.nb_channels)
        if (frame.sample_rate, frame.layout.nb_channels) != form:
            raise unreadable(kind, source, "its rate or its channels change in the middle; convert it to wav first")
        stamp = place + count if frame.time is None else round(frame.time * form[0])
        is_gap = is_first or stamp - (place + count) > GAP_SECONDS * form[0]
        if waiting and (is_gap or count >= BLOCK_SAMPLES):
            yield place, _joined(waiting), form[0]
            place, count, waiting = place + count, 0, []
        place = stamp if is_gap else place
        waiting += [part.to_ndarray().reshape(-1, form[1]) for part in packed.resample(frame)]
        count = sum(map(len, waiting))
    if waiting and form is not None:
        yield place, _joined(waiting), form[0]


def _joined(blocks: list[np.ndarray]) -> torch.Tensor:
    """[samples, channels] each -> [channels, samples]"""
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(blocks).T))


def _raise_if_headerless(source: Any) -> None:
    """Refuse samples without a header, which a decoder would read at a rate that it guesses."""
    name = getattr(source, "name", source)
    if isinstance(name, (str, os.PathLike)) and os.fspath(name).lower().endswith(HEADERLESS_ENDINGS):
        with open_source(source, "audio") as file:
            kind = file_kind(file.read(64))
        if kind is None:
            raise unreadable("audio", source, HEADERLESS_REMEDY, ARRAY_REMEDY)


def _rate_of(rate: Any, samples: Any) -> int:
    number: Any = rate  # the checker knows no comparison of `Real`
    is_number = isinstance(rate, Real) and not isinstance(rate, bool) and 0 < number < LARGEST_NUMBER  # not for NaN
    if not is_number or rate != int(rate):
        raise ValueError(
            f"sampling rate {shown_number(rate)} of audio {describe(samples)} must be a positive whole number of Hz"
        )
    return int(rate)


def load_audio(
    source: Any,
    sampling_rate: int | None = None,
    mono: str = "mean",
    max_seconds: float = MAX_AUDIO_SECONDS,
    default_rate: int = DEFAULT_SAMPLING_RATE,
) -> tuple[torch.Tensor, int]:
    """Read one recording; returns (float32 [1, samples] in about -1..1, rate in Hz), not resampled.

    Args:
        source: an audio file (path, URL, data URL, bytes), an array/tensor `[samples]` or `[channels, samples]` (the
            longer axis is time), a pair (array, rate), a dict with `array`, `path` or `bytes` and `sampling_rate`, or
            a decoder of torchcodec, as `datasets` has it. Integers are divided by their full scale.
        sampling_rate: Hz, of arrays that come without a rate.
        mono: `"mean"` mixes the channels down, `"first"` takes the first one as the released code does.
        max_seconds: longest file that is read.
        default_rate: Hz, of arrays without any rate; a warning is logged once.

    Raises:
        ValueError: unreadable or empty input, a file of more than `max_seconds` or of more than `MAX_AUDIO_SAMPLES`
            samples, NaN or infinite samples, or a rate that is no positive number.
    """
    if mono not in MONO_MODES:
        raise ValueError(f"mono={mono!r} is unknown; accepted are {', '.join(MONO_MODES)}")
    if isinstance(source, Mapping):
        rate = source.get("sampling_rate", source.get("sample_rate", sampling_rate))
        array = source.get("array")
        inner = array if array is not None else bytes_or_path(source)
        if inner is None or inner is source:
            raise unreadable("audio", source, f"a dict with the keys {sorted(source)}")
        return load_audio(inner, rate, mono, max_seconds, default_rate)
    if hasattr(source, "get_all_samples"):
        seconds = getattr(getattr(source, "metadata", None), "duration_seconds", None)
        _raise_if_too_long(seconds or 0.0, max_seconds, source, "audio")
        decoded = source.get_all_samples()
        source = (decoded.data, decoded.sample_rate)
    if isinstance(source, (tuple, list)) and len(source) == 2 and any(np.ndim(part) > 0 for part in source):
        samples, rate = source if np.ndim(source[0]) > 0 else source[::-1]
    elif isinstance(source, (np.ndarray, torch.Tensor, list, tuple)):
        if sampling_rate is None:
            logger.warning_once(
                f"an audio array without a sampling rate is taken to be at {default_rate} Hz; pass (array, rate) or "
                "sampling_rate=..."
            )
        samples, rate = source, default_rate if sampling_rate is None else sampling_rate
    else:
        _raise_if_headerless(source)
        return _decode_audio(source, "audio", mono, max_seconds)
    return _waveform(samples, mono), _rate_of(rate, samples)


def load_video_audio(
    source: Any,
    video_start: float | None = None,
    video_end: float | None = None,
    mono: str = "mean",
    max_seconds: float = MAX_AUDIO_SECONDS,
) -> tuple[torch.Tensor, int]:
    """Read the audio track of a video file; returns (float32 [1, samples], rate in Hz).

    Args:
        source: a video file (path, URL, data URL, bytes).
        video_start, video_end: seconds from the first frame on; the part to read. It is silent where the track has
            not begun and where it has gaps. Without `video_start` the result begins with the track, as it is,
            whenever that is.
        mono, max_seconds: as in `load_audio`.

    Raises:
        ValueError: the video has no audio track, nothing of it lies in the part, the part is too long, or frames were
            given instead of a file.
    """
    if is_frames(source):
        raise ValueError(f"video {describe(source)} is frames without an audio track; pass a video file or audio")
    for name, value in (("video_start", video_start), ("video_end", video_end)):
        if value is not None:
            raise_if_no_number(name, value)
    start = None if video_start is None else max(0.0, video_start)
    end = math.inf if video_end is None else max(0.0, video_end)
    return _decode_audio(source, "video", mono, max_seconds, start, end)


def is_frames(source: Any) -> bool:
    """Whether a video is frames (an array, a list, a directory, a decoder of torchcodec) instead of a file."""
    if isinstance(source, (np.ndarray, torch.Tensor, list, tuple)) or hasattr(source, "get_frames_at"):
        return True
    return isinstance(source, (str, os.PathLike)) and os.path.isdir(source)


def has_audio_track(source: Any) -> bool:
    """Whether a video has an audio track; True for a file that cannot be read, which its reader reports."""
    if is_frames(source):
        return False
    try:
        with open_source(source, "video") as file:
            if file_kind(file.read(64)) in (*ANIMATIONS, "gif"):
                return False
            with open_container(file, source, "video") as container:
                return bool(container.streams.audio)
    except ValueError:
        return True


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
