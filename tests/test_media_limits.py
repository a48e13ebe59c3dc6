"""Hostile files and numbers: nothing is followed, nothing hangs, nothing is allocated before its limit is checked."""

import io
import os
import socket
import struct
import threading
import zlib

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from processor_helpers import encode, released_processor
from test_media_files import DATA, sound_file, tone, write_recording, write_stream

import ming.media
import ming.video
from ming.media import load_audio, load_image, load_video_audio, resize_image, smart_resize
from ming.video import VideoOptions, load_video

NUMBERS = [float("inf"), float("-inf"), float("nan"), 10**400, "5", True]


@pytest.fixture(scope="module")
def processor():
    return released_processor()


def user(kind, source, **options):
    return [{"role": "user", "content": [{"type": kind, kind: source, **options}]}]


# Scripts


@pytest.fixture
def listener():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.2)
        yield listening


def scripts(folder, port):
    url = f"http://127.0.0.1:{port}/a.mp4"
    return {
        "ffconcat": f"ffconcat version 1.0\nfile {folder}/right.mp4\n",
        "ffconcat url": f"ffconcat version 1.0\nfile {url}\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        f'<AdaptationSet mimeType="video/mp4"><Representation id="1"><BaseURL>{url}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>",
        "playlist": f"[playlist]\nFile1={url}\n",
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>',
        "postscript": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) run\n",
    }


@pytest.mark.parametrize("name", scripts("", 0))
def test_scripts_are_not_followed(tmp_path, monkeypatch, processor, listener, name):
    """Neither files nor addresses that a file names are opened, whatever its ending says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "right.mp4").write_bytes((DATA / "right.mp4").read_bytes())
    text = scripts(".", listener.getsockname()[1])[name].replace("./right", "right")
    (tmp_path / "a.mp4").write_text(text)
    for source in (text.encode(), "a.mp4", tmp_path / "a.mp4"):
        for load, kind in (
            (load_video, "video"),
            (load_audio, "audio"),
            (load_video_audio, "video"),
            (load_image, "image"),
        ):
            with pytest.raises(ValueError, match=f"cannot read {kind} "):
                load(source)
        with pytest.raises(ValueError, match="cannot read video"):
            processor.apply_chat_template(user("video", source), tokenize=True, load_audio_from_video=True)
    with pytest.raises(TimeoutError):
        listener.accept()


# Files that are none


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    done = threading.Event()

    def attempt():
        for load in (load_audio, load_video, load_image, load_video_audio):
            for source in (tmp_path / "pipe", "/dev/zero", f"file://{tmp_path}/pipe"):
                with pytest.raises(
                    ValueError, match="it is a pipe or device, no file; save it first, or pass its bytes"
                ):
                    load(source)
        done.set()

    threading.Thread(target=attempt, daemon=True).start()
    assert done.wait(20)


def test_a_file_that_cannot_be_read_is_named():
    """A file of /proc that is opened and gives an error stands for one on a broken disk; elsewhere there is none."""
    for load in (load_audio, load_video, load_image) if os.path.exists("/proc/self/mem") else ():
        with pytest.raises(ValueError, match="cannot read .* '/proc/self/mem': Input/output error"):
            load("/proc/self/mem")


def test_names_that_no_system_opens():
    for source in ("a\0b.wav", "x" * 5000, "/etc/hostname/a.wav"):
        for load in (load_audio, load_video, load_image):
            with pytest.raises(ValueError, match="cannot read"):
                load(source)
    with pytest.raises(ValueError, match="it is open as text; open it with mode 'rb'"):
        load_audio(io.StringIO("text"))


# Memory


def resized_header(data: bytes, width: int, height: int) -> bytes:
    """A PNG that says it is larger."""
    chunk = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


def test_images_beyond_the_limit_are_refused_before_they_are_decoded():
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    with pytest.raises(ValueError, match="13000 x 13000 pixels are more than 89,478,485; make it smaller"):
        load_image(resized_header(file.getvalue(), 13_000, 13_000))


def test_frames_beyond_the_limit_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    frames = [Image.new("L", (300, 200), 30 * index) for index in range(6)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(ming.media, "MAX_FRAME_PIXELS", 50_000)
    with pytest.raises(ValueError, match="a.gif': 300 x 200 pixels are more than 50,000"):
        load_video(tmp_path / "a.gif")
    monkeypatch.undo()
    monkeypatch.setattr(ming.video, "MAX_VIDEO_FRAMES", 5)
    with pytest.raises(ValueError, match="a.gif': more than 5 frames; cut it"):
        load_video(tmp_path / "a.gif")
    with pytest.raises(ValueError, match="right.mp4': more than 5 frames; cut it"):
        load_video(DATA / "right.mp4")


def test_audio_beyond_the_limit_is_refused(tmp_path, monkeypatch, processor):
    path = write_recording(tmp_path / "a.mkv", "flac", 3.0, 16000)
    for load in (load_audio, load_video_audio):
        with pytest.raises(ValueError, match="a.mkv': 3.0 s or more of audio exceed the limit of 2 s; cut it"):
            load(path, max_seconds=2.0)
    assert load_video_audio(path, 0.5, 1.0, max_seconds=2.0)[0].shape == (1, 8000)
    assert load_video_audio(path, -1.0, 1.0, max_seconds=2.0)[0].shape == (1, 16000)
    mp3 = sound_file("MP3", tone(seconds=9.0))  # its length is only known when it has been decoded
    with pytest.raises(ValueError, match="4.* s or more of audio exceed the limit of 2 s"):
        load_audio(mp3, max_seconds=2.0)
    monkeypatch.setattr(ming.media, "MAX_AUDIO_SAMPLES", 16_000)
    with pytest.raises(ValueError, match="exceed the limit of 1 s"):
        load_audio(path)
    monkeypatch.undo()
    monkeypatch.setattr(processor.feature_extractor, "max_seconds", 2.0)
    monkeypatch.setattr(processor.feature_extractor, "max_whisper_positions", 100)
    with pytest.raises(ValueError, match="exceed the limit of 3 s"):
        processor.process_vision_info(user("audio", sound_file("WAV", tone(seconds=9.0))))
    with pytest.raises(ValueError, match="audio of 16000.00 s at 1 Hz is longer than the 2 s .* or correct its rate"):
        processor("<audio>", audio=(tone(), 1))


def test_lengths_that_headers_only_claim():
    flac = bytearray(sound_file("FLAC", tone(seconds=2.0)))
    for claim in (0, 2**36 - 1):  # samples, the lower 36 bits of eight bytes
        (fields,) = struct.unpack(">Q", flac[18:26])
        flac[18:26] = struct.pack(">Q", fields >> 36 << 36 | claim)
        if claim:
            with pytest.raises(ValueError, match="s or more of audio exceed the limit of 1800 s"):
                load_audio(bytes(flac))
        else:
            assert load_audio(bytes(flac))[0].shape == (1, 32000)
    mp3 = bytearray(sound_file("MP3", tone(seconds=2.0)))
    at = next(mp3.index(tag) for tag in (b"Xing", b"Info") if tag in mp3)
    mp3[at + 8 : at + 12] = b"\xff" * 4  # frames
    assert load_audio(bytes(mp3))[0].shape[1] / 16000 == pytest.approx(2.0, abs=0.2)


def test_padding_is_limited(processor):
    for options in ({"pad_to_multiple_of": 10**9}, {"padding": "max_length", "max_length": 10**10}):
        with pytest.raises(ValueError, match="tokens are more than 16,777,216; lower max_length="):
            encode(processor, "hi", **options)


def test_sizes_that_no_model_takes(processor):
    image = Image.new("RGB", (300, 300))
    message = "would become one of .* more than 25,690,112 pixels; lower min_pixels=1000000000"
    with pytest.raises(ValueError, match=message):
        resize_image(image, min_pixels=10**9)
    with pytest.raises(ValueError, match=message):
        processor("<image>", images=image, min_pixels=10**9)
    for options in ({"nframes": 4000}, {"sample": "all"}, {"fps": 100, "max_frames": 10**6}):
        with pytest.raises(ValueError, match="frames are more than 2048"):
            ming.video.count_frames(4000, 25.0, VideoOptions(**options))


# Numbers


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: str(value)[:9])
def test_what_is_no_finite_number_is_named(processor, value):
    image, wave = Image.new("RGB", (300, 300)), tone()
    calls = {
        "min_pixels": lambda: resize_image(image, min_pixels=value),
        "max_pixels": lambda: processor("<image>", images=image, max_pixels=value),
        "sampling rate": lambda: load_audio((wave, value)),
        "sampling rate ": lambda: processor("<audio>", audio=wave, sampling_rate=value),
        "height": lambda: smart_resize(value, 300),
        "resized_height": lambda: processor.process_vision_info(
            user("video", [image] * 2, resized_height=value, resized_width=56)
        ),
        "video_start": lambda: load_video_audio(DATA / "right.mp4", video_start=value),
        "video_end": lambda: VideoOptions(video_end=value),
        "max_length": lambda: processor("x", max_length=value),
        "pad_to_multiple_of": lambda: processor("x", pad_to_multiple_of=value),
        "num_frames": lambda: processor("x", num_frames=value),
    }
    names = ("fps", "nframes", "min_frames", "max_frames", "min_pixels", "max_pixels", "seed")
    calls |= {f"video option {name}": lambda name=name: VideoOptions(**{name: value}) for name in names}
    calls |= {f"{name} ": lambda name=name: processor("x", **{name: value}) for name in ("min_pixels", "max_pixels")}
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name.strip()}[= ].*(must be|integer)"):
            call()


def test_numbers_of_numpy_are_numbers(processor):
    image = Image.new("RGB", (300, 300))
    assert resize_image(image, max_pixels=np.int64(4000)).size == (56, 56)
    assert load_audio((tone(), np.float64(8000.0)))[1] == 8000
    assert VideoOptions(nframes=np.int32(4), fps=None, max_pixels=np.float32(5e4)).nframes == 4
    assert VideoOptions(total_pixels=float("inf")).total_pixels == float("inf")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 3, 56, 56, device="meta"),
        torch.zeros(2, 3, 56, 56).to_sparse(),
        torch.quantize_per_tensor(torch.zeros(2, 3, 56, 56), 1.0, 0, torch.quint8),
    ],
    ids=["meta", "sparse", "quantised"],
)
def test_tensors_without_plain_values(tensor):
    for load, source in ((load_video, tensor), (load_image, tensor[0]), (load_audio, (tensor[0, 0], 16000))):
        with pytest.raises(
            ValueError, match="the tensor is on the meta device, quantised or sparse; pass a plain one"
        ):
            load(source)


# Damage


def test_damaged_metadata_does_not_hide_an_image():
    image, file = Image.new("RGB", (40, 20), "red"), io.BytesIO()
    image.save(file, "WEBP", lossless=True, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + bytes(20))
    assert load_image(file.getvalue()).getpixel((3, 3)) == (255, 0, 0)
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True, exif=b"no exif at all")
    assert load_image(file.getvalue()).getpixel((3, 3)) == (255, 0, 0)


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """Bytes with a few flips, a hole, or without their end."""
    changed = bytearray(data)
    for place in random.integers(0, len(data), random.integers(1, 30)):
        changed[place] = random.integers(0, 256)
    if random.random() < 0.3:
        start = int(random.integers(0, len(data)))
        del changed[start : start + int(random.integers(1, 200))]
    return bytes(changed[: int(random.integers(1, len(data)))] if random.random() < 0.3 else changed)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("x.avif", load_image),
        ("icon_black_on_transparent.png", load_image),
        ("anim.webp", load_image),
        ("anim.webp", load_video),
        ("right.mp4", load_video),
        ("cover_first.mkv", load_video),
        ("cat.mp3", load_audio),
    ],
)
def test_damaged_files_are_read_or_refused(name, load):
    random, data = np.random.default_rng(0), (DATA / name).read_bytes()
    for _ in range(25):
        try:
            load(damaged(data, random))
        except ValueError as error:
            assert str(error).startswith(("cannot read ", "video <", "audio <", "an image of "))


def test_damaged_sound_and_streams_are_read_or_refused(tmp_path):
    random = np.random.default_rng(0)
    files = [(load_video, write_stream(tmp_path / "a.ts", sizes=((64, 48), (48, 64))))]
    files += [(load_audio, sound_file(form, tone())) for form in ("WAV", "FLAC", "OGG", "MP3", "AIFF")]
    file = io.BytesIO()
    soundfile.write(file, np.zeros((4000, 8)), 16000, format="FLAC")
    files.append((load_audio, file.getvalue()))
    for load, data in files:
        for _ in range(15):
            try:
                load(damaged(data, random))
            except ValueError as error:
                assert str(error).startswith(("cannot read ", "video <", "audio <", "an image of ")), error
