"""Media files: small valid ones made here, then truncated, flipped, spliced, renamed, and bombs."""

import base64
import functools
import io
import random
import struct
import tempfile
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch
from hypothesis import strategies as st
from PIL import Image

from ming.media import load_audio, load_image, load_video_audio
from ming.video import load_video

from .outcomes import expect

SIDE, RATE = 64, 8000
IMAGES = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "tiff": "TIFF", "avif": "AVIF", "ppm": "PPM"}
ANIMATIONS = {"gif": "GIF", "awebp": "WEBP", "apng": "PNG"}
SOUNDS = {"wav": "WAV", "flac": "FLAC", "ogg": "OGG", "mp3": "MP3", "aiff": "AIFF"}
VIDEOS = {"mp4": "mpeg4", "mkv": "mpeg4", "webm": "libvpx", "avi": "mjpeg", "mov": "mjpeg", "ts": "mpeg2video"}
ENDINGS = (*IMAGES, *ANIMATIONS, *SOUNDS, *VIDEOS, "pcm", "txt", "")


def picture(index: int = 0) -> Image.Image:
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[10 + index * 4 : 30 + index * 4, 20:40] = (200, 30, 60)
    return Image.fromarray(pixels)


def _saved(images: list[Image.Image], form: str) -> bytes:
    file = io.BytesIO()
    more = {"save_all": True, "append_images": images[1:], "duration": 100} if len(images) > 1 else {}
    images[0].save(file, form, **more)
    return file.getvalue()


def _sound(form: str) -> bytes:
    file = io.BytesIO()
    samples = 0.3 * np.sin(np.arange(RATE) / 7)
    soundfile.write(file, np.stack([samples, samples], 1), RATE, format=form)
    return file.getvalue()


def _video(ending: str, codec: str) -> bytes:
    file = io.BytesIO()
    form = {"mkv": "matroska", "ts": "mpegts"}.get(ending, ending)
    with av.open(file, "w", format=form) as container:
        frames = container.add_stream(codec, rate=Fraction(8))
        frames.width = frames.height = SIDE
        frames.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        sound = container.add_stream("libopus" if ending == "webm" else "mp2", rate=48000)
        for index in range(8):
            container.mux(frames.encode(av.VideoFrame.from_image(picture(index))))
        container.mux(frames.encode(None))
        samples = (3000 * np.sin(np.arange(48000) / 20)).astype(np.int16)
        block = av.AudioFrame.from_ndarray(np.stack([samples, samples], 1).reshape(1, -1), "s16", "stereo")
        block.sample_rate = 48000
        container.mux(sound.encode(block))
        container.mux(sound.encode(None))
    return file.getvalue()


def _bombs() -> dict[str, bytes]:
    """Files whose headers claim more than any machine has."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 6, 0, 0, 0)
    zeros = zlib.compress(bytes(20_000_000), 9)
    wide = struct.pack(">IIBBBBB", 9_000, 9_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    wav = b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 65535, 2**31, 2**31, 65535, 16)
    return {
        "png bomb": png + chunk(b"IHDR", head) + chunk(b"IDAT", zeros) + chunk(b"IEND", b""),
        "png wide": png + chunk(b"IHDR", wide) + chunk(b"IDAT", zeros) + chunk(b"IEND", b""),
        "text bomb": png + chunk(b"IHDR", head[:8] + b"\x08\x02\x00\x00\x00") + chunk(b"zTXt", b"a\x00\x00" + zeros),
        "gif bomb": b"GIF89a\xff\xff\xff\xff\x80\x00\x00"
        + bytes(6)
        + b",\x00\x00\x00\x00\xff\xff\xff\xff\x00\x08\x00;",
        "wav bomb": wav + b"data\xff\xff\xff\xff" + bytes(200),
        "bmp bomb": b"BM" + struct.pack("<IIIIiiHHIIiiII", 999, 0, 54, 40, 2**30, 2**30, 1, 32, 0, 0, 0, 0, 0, 0),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="99999999" height="99999999"/>',
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "nothing": b"",
        "zeros": bytes(5000),
    }


@functools.cache
def seeds() -> dict[str, bytes]:
    """Valid small files and bombs by name."""
    files = {name: _saved([picture()], form) for name, form in IMAGES.items()}
    files |= {name: _saved([picture(index) for index in range(6)], form) for name, form in ANIMATIONS.items()}
    files |= {name: _sound(form) for name, form in SOUNDS.items()}
    files |= {name: _video(name, codec) for name, codec in VIDEOS.items()}
    return files | _bombs()


NAMES = (*IMAGES, *ANIMATIONS, *SOUNDS, *VIDEOS)
BOMBS = ("png bomb", "png wide", "text bomb", "gif bomb", "wav bomb", "bmp bomb")
BOMBS += ("svg", "playlist", "concat", "nothing", "zeros")
CHANGES = ("truncate", "flip", "extreme", "splice", "repeat", "drop", "append", "head")


def damaged(data: bytes, change: str, number: int, other: bytes) -> bytes:
    """One change of a file; `number` decides where and how much."""
    chance, size = random.Random(number), max(1, len(data))
    at = chance.randrange(size) if chance.random() < 0.5 else chance.randrange(min(size, 128))
    if change == "truncate":
        return data[: chance.randrange(size)]
    if change == "splice":
        return data[:at] + other[chance.randrange(max(1, len(other))) :]
    if change == "head":
        return other[: chance.choice((4, 8, 12, 32))] + data[chance.choice((4, 8, 12, 32)) :]
    if change == "append":
        return data + other
    if change in ("repeat", "drop"):
        part = data[at : at + chance.randrange(1, 400)]
        return data[:at] + part * (chance.randrange(2, 6) if change == "repeat" else 0) + data[at + len(part) :]
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 9)):
        where = chance.randrange(size) if chance.random() < 0.5 else chance.randrange(min(size, 128))
        if change == "flip" and changed:
            changed[where] ^= 1 << chance.randrange(8)
        elif change == "extreme":
            changed[where : where + 4] = chance.choice(
                (b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")
            )
    return bytes(changed)


def files() -> st.SearchStrategy:
    """Recipes: a seed, changes, how it is handed over, and to which loader."""
    change = st.tuples(st.sampled_from(CHANGES), st.integers(0, 2**20), st.sampled_from(NAMES))
    return st.fixed_dictionaries(
        {
            "seed": st.one_of(st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from(BOMBS)),
            "changes": st.lists(change, max_size=3),
            "given": st.sampled_from(["bytes", "stream", "dict", "data URL", *(f".{end}" for end in ENDINGS)]),
            "loader": st.sampled_from([*["own"] * len(LOADERS), *LOADERS]),
        }
    )


def file_of(recipe: dict) -> bytes:
    data = seeds()[recipe["seed"]]
    for change, number, other in recipe["changes"]:
        data = damaged(data, change, number, seeds()[other])
    return data


def _check_image(image: Any) -> None:
    expect(image.mode == "RGB" and min(image.size) > 0, "an image is RGB with pixels", image.mode, image.size)


def _check_video(frames: Any) -> None:
    is_video = frames.dtype == torch.uint8 and frames.ndim == 4 and frames.shape[1] == 3
    expect(is_video and len(frames) % 2 == 0 and frames.numel() > 0, "frames [T, 3, H, W]", frames.shape)


def _check_audio(audio: Any) -> None:
    waveform, rate = audio
    expect(
        waveform.dtype == torch.float32 and waveform.ndim == 2 and len(waveform) == 1, "one channel", waveform.shape
    )
    expect(bool(waveform.isfinite().all()) and rate > 0, "finite samples at a rate", rate)


LOADERS: dict[str, tuple[Callable, Callable]] = {
    "image": (load_image, _check_image),
    "video": (load_video, _check_video),
    "audio": (load_audio, _check_audio),
    "track": (load_video_audio, _check_audio),
}


def loader_of(recipe: dict) -> str:
    """The loader of a recipe; "own" is the one for files of the seed's kind."""
    if recipe["loader"] != "own":
        return recipe["loader"]
    kind = recipe["seed"].split()[0]
    return "audio" if kind in SOUNDS else "video" if kind in (*VIDEOS, *ANIMATIONS) else "image"


def try_file(recipe: dict) -> None:
    """Load the file of a recipe."""
    data, (load, check) = file_of(recipe), LOADERS[loader_of(recipe)]
    with tempfile.TemporaryDirectory() as folder:
        check(load(_handed_over(data, recipe["given"], folder)))


def _handed_over(data: bytes, given: str, folder: str) -> Any:
    if given == "bytes":
        return data
    if given == "stream":
        return io.BytesIO(data)
    if given == "dict":
        return {"bytes": data, "path": "a file"}
    if given == "data URL":
        return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"
    path = Path(folder) / f"file{given if len(given) > 1 else ''}"
    path.write_bytes(data)
    return str(path)
