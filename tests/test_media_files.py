"""Files that people have: what must come of them. The values are FFmpeg's and Pillow's, not those of this project."""

import base64
import io
import logging
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image, ImageDraw
from processor_helpers import released_processor

from ming.file_ends import describe_end
from ming.media import NamedBytes, file_kind, has_audio_track, load_audio, load_image, resize_image
from ming.serving.audio_formats import WavEncoder
from ming.serving.audio_formats import encode as encode_response
from ming.video import VideoOptions, load_video

DATA = Path(__file__).resolve().parent / "data"
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


@pytest.fixture(scope="module")
def processor():
    return released_processor()


@pytest.fixture
def warnings_once():
    """Forget which warnings were logged before."""
    logging.Logger.warning_once.cache_clear()


def tone(rate=16000, seconds=1.0, pitch=440):
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def sound_file(form, samples, rate=16000, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, **options)
    return file.getvalue()


def seconds_of(source) -> float:
    waveform, rate = load_audio(source)
    return waveform.shape[1] / rate


# Images


def transparent_circle(mode="RGBA") -> Image.Image:
    """A black circle on nothing, as icons are: where nothing is, the hidden colour is black, too."""
    image = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((5, 5, 34, 34), fill=(0, 0, 0, 255))
    return image.convert(mode)


def test_transparent_images_are_seen_on_white():
    icon = load_image(DATA / "icon_black_on_transparent.png")
    expected = Image.new("RGBA", icon.size, WHITE)
    expected.alpha_composite(Image.open(DATA / "icon_black_on_transparent.png").convert("RGBA"))
    assert np.array_equal(np.asarray(icon), np.asarray(expected.convert("RGB")))
    assert icon.getpixel((0, 0)) == WHITE and np.asarray(icon).min() < 10


@pytest.mark.parametrize(
    ("form", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "P"), ("GIF", "P"), ("WEBP", "RGBA")]
)
def test_every_kind_of_transparency_is_seen_on_white(form, mode):
    file = io.BytesIO()
    image = transparent_circle() if mode == "P" else transparent_circle(mode)
    if mode == "P":  # palette transparency
        image = Image.new("P", (60, 40), 0)
        image.putpalette([200, 0, 0, 0, 0, 0])
        ImageDraw.Draw(image).ellipse((5, 5, 34, 34), fill=1)
        image.info["transparency"] = 0
    image.save(file, form, **({"lossless": True} if form == "WEBP" else {}))
    for source in (file.getvalue(), Image.open(file)):
        seen = load_image(source)
        assert seen.getpixel((0, 0)) == seen.getpixel((50, 20)) == WHITE and seen.getpixel((20, 20)) == BLACK


def test_arrays_frames_and_files_with_alpha_agree():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    expected = np.asarray(load_image(Image.fromarray(pixels)))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for source in (pixels, tensor, pixels / np.float32(255)):
        assert np.array_equal(np.asarray(load_image(source)), expected)
    frames = load_video(np.stack([pixels, pixels]), VideoOptions(resize=False))
    assert np.array_equal(frames[1].permute(1, 2, 0).numpy(), expected)
    frames = load_video([Image.fromarray(pixels)] * 2, VideoOptions(resize=False))
    assert np.array_equal(frames[0].permute(1, 2, 0).numpy(), expected)


def test_transparent_frames_of_a_gif_are_on_white(tmp_path):
    frames = [transparent_circle().transform((60, 40), Image.Transform.AFFINE, (1, 0, -i, 0, 1, 0)) for i in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], disposal=2, duration=100)
    video = load_video(tmp_path / "a.gif", VideoOptions(resize=False))
    assert video[0, :, 0, 0].tolist() == list(WHITE) and video[0, :, 20, 20].tolist() == list(BLACK)


def cut_image(tmp_path, form) -> Image.Image:
    """Half a file, opened: Pillow reads the pixels when they are asked for."""
    whole = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(whole, form)
    path = tmp_path / f"half.{form}"
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    return Image.open(path)


def closed_image(tmp_path, form) -> Image.Image:
    path = tmp_path / f"closed.{form}"
    Image.new("RGB", (90, 60), "red").save(path)
    with Image.open(path) as image:
        return image


@pytest.mark.parametrize("make", [cut_image, closed_image])
@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_opened_images_that_cannot_be_decoded(processor, tmp_path, form, make):
    """As an image, a frame, an image of the processor and of a chat: the error of a file that is given by its name."""

    def chat(image):
        items = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
        processor.apply_chat_template([{"role": "user", "content": items}], tokenize=True, return_dict=True)

    calls = [
        load_image,
        lambda image: load_video([Image.new("RGB", image.size), image]),
        lambda image: processor("<image>What?", images=[image]),
        chat,
    ]
    for call in calls:
        image = make(tmp_path, form)
        with pytest.raises(ValueError, match=rf"cannot read image '.*(half|closed)\.{form}': .*; accepted is "):
            call(image)


def test_opened_images_are_decoded(tmp_path):
    path = tmp_path / "whole.png"
    Image.new("RGB", (90, 60), "red").save(path)
    with Image.open(path) as image:
        seen = load_image(image)
    assert seen.getpixel((5, 5)) == (255, 0, 0)


def test_deep_grey_images_are_scaled_or_named():
    ramp = np.linspace(0, 1, 60, dtype=np.float32)[None].repeat(40, 0)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "TIFF")
    for source in (file.getvalue(), Image.fromarray(ramp)):
        grey = np.asarray(load_image(source))[0, :, 0]
        assert np.abs(grey - 255 * ramp[0]).max() <= 0.5  # 0..1, as float arrays
    file = io.BytesIO()
    Image.fromarray((ramp * 65535).astype(np.int32)).save(file, "TIFF")
    for source in (file.getvalue(), Image.fromarray((ramp * 65535).astype(np.int32))):
        with pytest.raises(ValueError, match=r"mode I \(32 bits\): values from 0 to 65535 are neither .* full scale"):
            load_image(source)
    assert np.array_equal(np.asarray(load_image(Image.new("L", (9, 9), 77).convert("I")))[0, 0], [77] * 3)
    deep = Image.fromarray((ramp * 65535).astype(np.uint16))
    assert np.abs(np.asarray(load_image(deep))[0, :, 0] - 255 * ramp[0]).max() <= 1


@pytest.mark.parametrize(("high", "is_told"), [(1023, True), (4095, True), (4096, False), (65535, False), (0, False)])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_deep_images_that_use_a_part_of_their_range_are_told(caplog, form, high, is_told):
    """Those of scanners and cameras of 12 bits, saved in 16."""
    file, ramp = io.BytesIO(), np.linspace(0, high, 60).astype(np.uint16)[None].repeat(40, 0)
    Image.fromarray(ramp).save(file, form)
    seen = np.asarray(load_image(NamedBytes(file.getvalue(), "scan")))
    assert np.array_equal(seen[..., 0], ramp >> 8)
    told = f"image 'scan' is nearly black: its highest value is {high:,} of 65,535"
    assert (told in caplog.text) == is_told == len(caplog.records)


def test_photos_of_phones_are_read_or_named():
    assert load_image(DATA / "x.avif").size == (200, 140)
    heic = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(200)
    with pytest.raises(
        ValueError, match="<224 bytes>: cannot identify image file .*kind heic; save it as jpeg or png"
    ):
        load_image(heic)
    with pytest.raises(ValueError, match="'photo.heic': cannot identify"):
        load_image(NamedBytes(heic, "photo.heic"))
    brands = {"mif1": "heic", "avif": "avif", "heix": "heic", "isom": "mp4", "qt  ": "mp4"}
    for brand, kind in brands.items():
        assert file_kind(b"\x00\x00\x00\x14ftyp" + brand.encode() + bytes(8)) == kind
    assert file_kind(b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00mif1avifmiaf") == "avif"


def test_limits_in_the_wrong_order_are_refused(processor):
    image = Image.new("RGB", (300, 300))
    message = "min_pixels=200000 is above max_pixels=100000"
    limits = {"min_pixels": 200_000, "max_pixels": 100_000}
    with pytest.raises(ValueError, match=message):
        resize_image(image, **limits)
    with pytest.raises(ValueError, match=message):
        processor("<image>", images=image, **limits)
    for kind, source in (("image", image), ("video", [image] * 2)):
        with pytest.raises(ValueError, match=message):
            processor.process_vision_info([{"role": "user", "content": [{"type": kind, kind: source, **limits}]}])
    # A default gives way to the one limit that was asked for.
    assert resize_image(image, max_pixels=1000).size == (28, 28)
    assert processor("<image>", images=image, max_pixels=4000)["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert load_video(DATA / "right.mp4", VideoOptions(nframes=2, max_pixels=3136)).shape[-2:] == (28, 56)


# Dictionaries and decoders of `datasets`


class Samples:
    def __init__(self, data, sample_rate):
        self.data, self.sample_rate = data, sample_rate


class AudioDecoder:
    """As torchcodec's."""

    def get_all_samples(self):
        return Samples(torch.from_numpy(tone(8000))[None], 8000)


class VideoDecoder:
    """As torchcodec's: 20 frames of rising brightness."""

    class metadata:  # noqa: N801
        average_fps = 4.0

    def __len__(self):
        return 20

    def get_frames_at(self, indices):
        frames = torch.tensor(indices)[:, None, None, None] * torch.ones(1, 3, 56, 84)
        return Samples(frames.to(torch.uint8), None)


def test_columns_of_datasets(processor, tmp_path):
    Image.new("RGB", (56, 84), "red").save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    right = (DATA / "right.mp4").read_bytes()
    content = [
        {"type": "image", "image": {"bytes": data, "path": "a.png"}},
        {"type": "image", "image": {"bytes": None, "path": str(tmp_path / "a.png")}},
        {"type": "video", "video": {"bytes": right, "path": None}},
        {"type": "video", "video": VideoDecoder()},
        {"type": "audio", "audio": AudioDecoder()},
        {"type": "audio", "audio": {"bytes": sound_file("WAV", tone()), "path": "a.wav"}},
    ]
    images, videos, audios = processor.process_vision_info([{"role": "user", "content": content}])
    assert [image.getpixel((0, 0)) for image in images] == [(255, 0, 0)] * 2
    assert len(videos[0]) == 12 and videos[1][:, 0, 0, 0].tolist() == list(range(20))
    assert [(wave.shape[1], rate) for wave, rate in audios] == [(8000, 8000), (16000, 16000)]
    inputs = processor(
        "<image><video><audio>", images=content[0]["image"], videos=VideoDecoder(), audio=AudioDecoder()
    )
    assert {"pixel_values", "pixel_values_videos", "audio_feats"} <= set(inputs)
    with pytest.raises(ValueError, match="cannot read image 'missing.png': no such file"):
        load_image({"bytes": None, "path": "missing.png"})


def test_base64_with_line_ends_and_data_urls(processor):
    data = sound_file("WAV", tone())
    lines = base64.encodebytes(data).decode()
    url = "data:audio/wav;base64," + base64.b64encode(data).decode()
    for text in (lines, url):
        for item in ({"type": "input_audio", "input_audio": {"data": text}}, {"type": "audio", "base64": text}):
            assert len(processor.process_vision_info([{"role": "user", "content": [item]}])[2]) == 1


# Audio


def test_what_the_server_writes_is_read_back():
    waveform = torch.from_numpy(tone(24000, 2.0))
    encoder = WavEncoder(24000)
    streamed = encoder.push(waveform[:20000]) + encoder.push(waveform[20000:])
    for data in (streamed, *(encode_response(waveform, 24000, name) for name in ("wav", "flac"))):
        read, rate = load_audio(data)
        assert rate == 24000 and read.shape == (1, 48000) and (read[0] - waveform).abs().max() < 1e-4
        assert len(soundfile.read(io.BytesIO(data))[0]) == 48000


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_wav_files_whose_sizes_were_never_written(size):
    data = bytearray(sound_file("WAV", tone(seconds=2.0)))
    data[4:8] = data[40:44] = struct.pack("<I", size)
    assert seconds_of(bytes(data)) == 2.0


def test_files_one_after_the_other_are_read_to_the_end():
    assert seconds_of(DATA / "cat.mp3") == pytest.approx(7.26, abs=0.1)
    for options in ({"form": "MP3"}, {"form": "OGG", "subtype": "VORBIS"}, {"form": "OGG", "subtype": "OPUS"}):
        first = sound_file(samples=tone(seconds=2.0, pitch=300), **options)
        second = sound_file(samples=tone(seconds=1.0, pitch=2000), **options)
        waveform, rate = load_audio(first + second)
        assert waveform.shape[1] / rate == pytest.approx(3.0, abs=0.15), options
        late = waveform[0, int(2.5 * rate) :][: rate // 4]
        assert (late[1:] * late[:-1] < 0).sum() == pytest.approx(1000, rel=0.1)  # crossings of zero: the second pitch


@pytest.mark.parametrize("ending", ["raw", "pcm", "sw", "PCM"])
def test_samples_without_a_header_are_refused_in_one_line(tmp_path, ending, processor):
    path = tmp_path / f"a.{ending}"
    path.write_bytes((tone() * 32767).astype("<i2").tobytes())
    for source in (path, str(path), {"path": str(path)}, NamedBytes(path.read_bytes(), path.name)):
        with pytest.raises(ValueError, match="a header have no known rate; save it as wav, or pass .array, rate."):
            load_audio(source)
    path.write_bytes(sound_file("WAV", tone()))  # a wrong ending is no reason
    assert seconds_of(path) == 1.0


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8, 11])
def test_every_number_of_channels(channels):
    """From eight channels on, planes of PyAV's frames end the process."""
    samples = np.stack([tone()] + [np.zeros(16000, np.float32)] * (channels - 1), axis=-1)
    data = sound_file("WAV", samples, subtype="FLOAT")
    assert torch.allclose(load_audio(data)[0][0], torch.from_numpy(tone()) / channels, atol=1e-6)
    assert torch.equal(load_audio(data, mono="first")[0][0], torch.from_numpy(tone()))


@pytest.mark.parametrize("form", ["WAV", "FLAC", "AIFF", "AU", "CAF", "W64", "RF64"])
def test_lossless_files_are_read_as_libsndfile_does(form):
    random = np.random.default_rng(1).uniform(-1, 1, 20000).astype(np.float32)
    for subtype in ("PCM_16", "PCM_24"):
        data = sound_file(form, random, subtype=subtype)
        expected = soundfile.read(io.BytesIO(data), dtype="float32")[0]
        assert np.array_equal(load_audio(data)[0][0].numpy(), expected)


def write_recording(path, codec="libopus", seconds=2.0, rate=48000):
    """A voice message as browsers record it: a container of videos with an audio track alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        samples = tone(rate, seconds)
        for start in range(0, len(samples), 960):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 960].copy(), "flt", "mono")
            frame.rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", ["a.webm", "a.mp4", "a.mkv"])
def test_recordings_of_browsers(tmp_path, name):
    path = write_recording(tmp_path / name)
    assert seconds_of(path) == pytest.approx(2.0, abs=0.1) and has_audio_track(path)
    with pytest.raises(ValueError, match="no video track; it holds audio, pass it as such"):
        load_video(path)


def test_an_array_without_a_rate_warns_once(caplog, warnings_once, processor):
    for _ in range(2):
        load_audio(tone())
        processor("<audio>", audio=tone())
    messages = [record.message for record in caplog.records if "without a sampling rate" in record.message]
    assert messages == [
        "an audio array without a sampling rate is taken to be at 16000 Hz; pass (array, rate) or sampling_rate=..."
    ]
    caplog.clear()
    logging.Logger.warning_once.cache_clear()
    load_audio((tone(), 16000))
    processor("<audio>", audio=tone(), sampling_rate=16000)
    assert not caplog.records


def test_telephone_quality_is_logged(caplog, processor):
    processor("<audio>", audio=(tone(8000), 8000))
    assert "a recording at 8000 Hz holds nothing above 4000 Hz" in caplog.text
    caplog.clear()
    processor("<audio>", audio=(tone(16000), 16000))
    assert not caplog.records


# Videos


def test_frames_are_chosen_by_time():
    """Two seconds at 60 frames/s, then 15 s at 1 frame/s, show what the same at a constant rate shows."""
    options = VideoOptions(nframes=16)
    varying, even = (load_video(DATA / f"vfr_{name}.mp4", options).float() for name in ("screen", "as_cfr"))
    still = varying[:2].mean((0, 1))
    moved = [int(((frame.mean(0) - still).abs() > 60).any()) for frame in varying]
    assert sum(moved) >= 13  # by index, one frame of nine would move
    where = [_centre(frame) for frame in varying]
    assert np.corrcoef(where, [_centre(frame) for frame in even])[0, 1] > 0.99
    part = load_video(DATA / "vfr_screen.mp4", VideoOptions(nframes=8, video_start=8.0))
    assert _centre(part[0].float()) == pytest.approx(_centre(varying[7]), abs=12)


def _centre(frame: torch.Tensor) -> float:
    """Column of the middle of what is dark on white."""
    dark = 255 - frame.mean(0).mean(0)
    dark = dark * (dark > 1)
    return float((dark * torch.arange(len(dark))).sum() / dark.sum())


def test_a_constant_rate_takes_the_frames_that_it_always_took(tmp_path):
    video = load_video(DATA / "vfr_as_cfr.mp4", VideoOptions(nframes=8, resize=False))
    with av.open(str(DATA / "vfr_as_cfr.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for frame, index in zip(video, torch.linspace(0, len(frames) - 1, 8).long(), strict=True):
        assert np.array_equal(frame.permute(1, 2, 0).numpy(), frames[index])


def test_mirrored_videos_are_seen_as_players_show_them():
    turned, upright = (load_video(DATA / name).float() for name in ("down_hflip.mp4", "down_hflip_auto.mp4"))
    assert (turned - upright).abs().mean() < 0.5


# Display matrix (a, b, c, d) -> what it does to an array [H, W]; compared with FFmpeg's autorotation once.
MATRICES = {
    (1, 0, 0, 1): lambda a: a,
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (-1, 0, 0, -1): lambda a: np.rot90(a, 2),
    (0, 1, 1, 0): np.transpose,
    (0, 1, -1, 0): lambda a: np.rot90(a, -1),
    (0, -1, 1, 0): np.rot90,
    (0, -1, -1, 0): lambda a: np.rot90(a, 2).T,
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_every_right_angled_display_matrix(matrix):
    data = bytearray((DATA / "right.mp4").read_bytes())
    at = data.index(b"tkhd") + 44
    options = VideoOptions(nframes=2, resize=False)
    plain = load_video(bytes(data), options)[0, 0].numpy()
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    assert np.array_equal(load_video(bytes(data), options)[0, 0].numpy(), MATRICES[matrix](plain))


@pytest.mark.parametrize("name", ["2024-05-01T10:20:30", "concat:a", "data", "http:a", "-i", "%03d"])
def test_names_that_look_like_protocols(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(f"{name}.mp4").write_bytes((DATA / "right.mp4").read_bytes())
    Path(f"{name}.wav").write_bytes(sound_file("WAV", tone()))
    assert torch.equal(load_video(f"{name}.mp4"), load_video(DATA / "right.mp4"))
    assert seconds_of(f"{name}.wav") == 1.0


def test_the_video_behind_a_cover_image():
    video, expected = load_video(DATA / "cover_first.mkv").float(), load_video(DATA / "right.mp4").float()
    assert video.shape == expected.shape and (video - expected).abs().mean() < 1


def test_a_cover_image_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        audio = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value  # PyAV 15 takes the number alone
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(tone()[None, :1024].copy(), "fltp", "mono")
        frame.rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        container.mux([*audio.encode(frame), *audio.encode(), *cover.encode()])
    with pytest.raises(ValueError, match="no video track; it holds audio"):
        load_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("form", ["WEBP", "PNG"])
def test_animated_images_are_videos(tmp_path, form):
    greys = [0, 40, 80, 120, 160, 200]
    frames = [Image.new("RGB", (56, 56), (grey,) * 3) for grey in greys]
    path = tmp_path / f"a.{form.lower()}"
    options = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(path, form, save_all=True, append_images=frames[1:], duration=100, **options)
    assert load_video(path, VideoOptions(resize=False))[:, 0, 0, 0].tolist() == greys
    if form == "WEBP":  # one frame that is shown as long as the four before it, and longer
        frames[0].save(
            path, form, save_all=True, append_images=frames[1:5], duration=[100] * 4 + [1000], lossless=True
        )
        assert load_video(path, VideoOptions(resize=False))[:, 0, 0, 0].tolist() == [0, 80, 160, 160]
    frames[0].save(path, form)
    with pytest.raises(ValueError, match=f"it is a still {form} image; pass it as an image"):
        load_video(path)


def test_the_animated_webp_of_a_phone():
    video, upright = load_video(DATA / "anim.webp").float(), load_video(DATA / "right.mp4").float()
    assert video.shape == upright.shape and (video - upright).abs().mean() < 3


def test_a_file_that_ends_early_is_answered_with_a_warning(caplog):
    assert len(load_video(DATA / "trunc_faststart.mp4")) >= 4
    assert "trunc_faststart.mp4' ends after 2.62 s, but its header says 8.00 s" in caplog.text
    caplog.clear()
    wav = sound_file("FLAC", np.random.default_rng(0).uniform(-0.5, 0.5, 64000))
    assert seconds_of(wav[: len(wav) // 2]) == pytest.approx(2.0, abs=0.3)
    assert "but its header says 4.00 s" in caplog.text
    caplog.clear()
    for name in ("right.mp4", "vfr_screen.mp4", "cover_first.mkv", "vfr_as_cfr.mp4"):
        load_video(DATA / name)
    assert not caplog.records


def write_audio(form, codec, rate=44100, seconds=4.0) -> bytes:
    """A tone, written by FFmpeg."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(rate, seconds)[None], format="fltp", layout="mono")
        frame.rate = rate
        sample_format = stream.codec_context.codec.audio_formats[0]
        pieces = av.AudioResampler(sample_format, "mono", rate, stream.codec_context.frame_size or 1024)
        for part in (*pieces.resample(frame), *pieces.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    return file.getvalue()


def write_video(form, codec, options=None, pixels="yuv420p") -> bytes:
    """Four seconds of noise, written by FFmpeg."""
    file, noise = io.BytesIO(), np.random.default_rng(0)
    with av.open(file, "w", format=form, options=options or {}) as container:
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for _ in range(32):
            frame = noise.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


AUDIO_FORMATS = {
    "wav": ("wav", "pcm_s16le"),
    "w64": ("w64", "pcm_s16le"),
    "aiff": ("aiff", "pcm_s16be"),
    "au": ("au", "pcm_s16be"),
    "caf": ("caf", "pcm_s16le"),
    "mp3": ("mp3", "libmp3lame"),
    "opus": ("ogg", "libopus", 48000),
    "flac": ("flac", "flac"),
    "m4a": ("ipod", "aac"),
    "tta": ("tta", "tta"),
    "mka": ("matroska", "libopus", 48000),
    "aac": ("adts", "aac"),
}
VIDEO_FORMATS = {
    "avi": ("avi", "mpeg4"),
    "flv": ("flv", "flv1"),
    "gif": ("gif", "gif", None, "rgb8"),
    "mp4": ("mp4", "libx264"),
    "fragments": ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    "mkv": ("matroska", "libx264"),
    "wmv": ("asf", "wmv2"),
    "vob": ("vob", "libx264"),
    "ts": ("mpegts", "libx264"),
}
READ_TO_THE_END = ("mp3", "opus", "flac", "au", "mka", "aac")
WITHOUT_INDEX = ("m4a", "mp4")  # their index stands at the end


@pytest.mark.parametrize("name", [*AUDIO_FORMATS, *VIDEO_FORMATS])
def test_files_that_are_cut_off_are_told_in_every_format_that_knows_its_end(name, caplog):
    is_audio = name in AUDIO_FORMATS
    data = write_audio(*AUDIO_FORMATS[name]) if is_audio else write_video(*VIDEO_FORMATS[name])
    read = load_audio if is_audio else load_video
    read(data)
    assert not caplog.records
    part = data[: len(data) * 6 // 10]
    if name in WITHOUT_INDEX:
        with pytest.raises(ValueError, match="cannot read"):
            read(part)
    else:
        read(part)
        assert caplog.text.count("it is probably cut off") == 1


@pytest.mark.parametrize("name", [*AUDIO_FORMATS, "avi", "fragments", "mp4", "wmv"])
def test_joined_files_are_read_to_the_end_or_told(name, caplog):
    is_audio = name in AUDIO_FORMATS
    data = write_audio(*AUDIO_FORMATS[name]) if is_audio else write_video(*VIDEO_FORMATS[name])
    if name in READ_TO_THE_END:
        assert seconds_of(data + data) == pytest.approx(8.0, abs=0.15)
        assert "only the first is read" not in caplog.text
    else:
        (load_audio if is_audio else load_video)(data + data)
        assert "holds several files one after the other, of which only the first is read" in caplog.text


@pytest.mark.parametrize(
    "ending", [b"", bytes(5), b"\0\0\1\xb9", b"ID3" + bytes(125)], ids=["", "zeros", "mark", "tag"]
)
def test_streams_whose_last_packet_is_whole(ending):
    """What may stand behind it is not taken for a packet that is cut off."""
    for data in (write_video(*VIDEO_FORMATS["vob"]), write_audio(*AUDIO_FORMATS["aac"])):
        assert describe_end(io.BytesIO(data + ending)) is None
        assert "lacks the end" in describe_end(io.BytesIO(data[:-1]))


def test_program_streams_cut_between_two_packets():
    """Pictures tell, which have no rows at their lower end."""
    file, noise = io.BytesIO(), np.random.default_rng(0)
    with av.open(file, "w", format="vob") as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"g": "4"})
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        for _ in range(12):
            frame = noise.integers(0, 256, (128, 160, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    data, pack = file.getvalue(), 2048
    assert len(data) % pack == 0 and describe_end(io.BytesIO(data)) is None
    told = ["lacks the end" in (describe_end(io.BytesIO(data[:end])) or "") for end in range(pack, len(data), pack)]
    assert sum(told) > 0.7 * len(told) > 10  # the others end between two pictures, or within the last row of one


DAMAGED = [b"RIFF", b"FORM\0", b"OggS" + bytes(30), b"GIF89a" * 5, b"TTA1" + b"\xff" * 40]
DAMAGED += [b"\0\0\1\xba" * 9, b"\0\0\1\xba" + b"\xff" * 40, b"G" * 200, b"\xff\xf1" * 20, b"\xff\xf1" + bytes(40)]


@pytest.mark.parametrize("data", DAMAGED)
def test_ends_of_files_that_are_none(data):
    """Damaged heads are reported by the decoder, not here."""
    file = io.BytesIO(data)
    file.seek(3)
    assert describe_end(file) is None or "cut off" in describe_end(file)
    assert file.tell() == 3


def write_stream(path, sizes=((64, 48),), frames=12, options=None):
    """A transport stream; several sizes make one stream after the other, as a recorder does that is turned."""
    data = b""
    for size in sizes:
        with av.open(str(path), "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=4, options=options or {"g": "4"})
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            noise = np.random.default_rng(0)
            for _ in range(frames):
                pixels = noise.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        data += Path(path).read_bytes()
    return data


def test_transport_streams_cut_within_a_packet(tmp_path, caplog):
    data = write_stream(tmp_path / "a.ts")
    cut = load_video(data[len(data) // 3 + 77 : -333], VideoOptions(resize=False))
    assert 4 <= len(cut) < 12 and cut.shape[-2:] == (48, 64)
    with pytest.raises(ValueError, match="cannot read video <.* bytes>: "):
        load_video(write_stream(tmp_path / "b.ts", options={"g": "99"})[5000:])


def test_frames_that_change_their_size_take_the_first_size(tmp_path):
    data = write_stream(tmp_path / "a.ts", sizes=((64, 48), (48, 64)))
    assert load_video(data, VideoOptions(resize=False)).shape[-2:] == (48, 64)
    assert load_video(data).ndim == 4


def test_errors_use_the_name_that_the_user_knows():
    text = "cannot read video 'messages[0] (clip.mp4)': "
    with pytest.raises(ValueError) as error:
        load_video(NamedBytes(b"\x89PNG\r\n\x1a\n" + bytes(50), "messages[0] (clip.mp4)"))
    assert str(error.value).startswith(text)
    with pytest.raises(ValueError, match="cannot read audio 'voice.ogg': .*a file of kind png"):
        load_audio(NamedBytes(b"\x89PNG\r\n\x1a\n" + bytes(50), "voice.ogg"))
    with pytest.raises(ValueError, match="cannot read image 'a.bin'"):
        load_image({"bytes": b"text", "path": "a.bin"})


def test_every_file_of_a_folder_is_closed(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(sound_file("WAV", tone()))
    count = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(5):
        load_audio(path)
        load_video(DATA / "right.mp4", VideoOptions(nframes=2))
        load_image(DATA / "icon_black_on_transparent.png")
    assert count is None or len(os.listdir("/proc/self/fd")) <= count + 1
