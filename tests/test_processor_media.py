"""Loading of images and videos, and by addresses: parity with the goldens, file formats, sources, and errors."""

import base64
import contextlib
import hashlib
import http.server
import io
import json
import socket
import struct
import threading
import time
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL
import pytest
import soundfile
import torch
from PIL import Image
from processor_helpers import encode, golden, released_processor
from synth import IMAGES, image_array
from transformers import AutoProcessor, Qwen2VLImageProcessorPil

import ming.media
from ming.media import decode_base64, load_audio, load_image, load_video_audio, smart_resize, split_data_url
from ming.video import VideoOptions, count_frames, frame_size, load_video, resize_frames, select_frames

ROOT = Path(__file__).resolve().parents[1]
IMAGE, VIDEO = golden("image.json"), golden("video.json")
FILE_CASES = [case for case in VIDEO["sampling"] if case["kind"] == "file" and "video_start" not in case["args"]]
LIST_CASES = [case for case in VIDEO["sampling"] if case["kind"] == "list" and case["args"]]


@pytest.fixture(scope="module")
def processor():
    return released_processor()


CROSSED = [{"min_pixels": 10**6, "max_pixels": 10}, {"size": {"shortest_edge": 10**6, "longest_edge": 10}}]


@pytest.mark.parametrize("limits", CROSSED)
def test_the_image_processor_by_itself_refuses_limits_in_the_wrong_order(limits):
    alone = AutoProcessor.from_pretrained(ROOT, trust_remote_code=True).image_processor
    image = PIL.Image.new("RGB", (60, 60))
    for call in (lambda: alone(image, **limits), lambda: type(alone)(**limits)):
        with pytest.raises(ValueError, match="min_pixels=1000000 is above max_pixels=10; lower it, or raise"):
            call()
    assert alone(image).pixel_values.shape[-1] == 1176
    assert alone.to_dict()["image_processor_type"] == Qwen2VLImageProcessorPil().to_dict()["image_processor_type"]


def test_limits_in_the_wrong_order_are_refused_in_every_configuration(processor, tmp_path):
    alone = AutoProcessor.from_pretrained(ROOT, trust_remote_code=True).image_processor
    with pytest.raises(ValueError, match="min_pixels=1000000 is above"):
        alone.get_number_of_image_patches(60, 60, {"min_pixels": 10**6})
    saved = json.loads((ROOT / "processor_config.json").read_text())["image_processor"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved | CROSSED[1]))
    with pytest.raises(ValueError, match="min_pixels=1000000 is above max_pixels=10"):
        type(alone).from_pretrained(tmp_path)
    parts = processor.image_processor, processor.feature_extractor, processor.tokenizer
    with pytest.raises(ValueError, match="video_min_pixels=9 is above video_max_pixels=8; lower it, or raise"):
        type(processor)(*parts, video_min_pixels=9, video_max_pixels=8)


def sha256(values) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


# Images


# Pillow 12 rounds this one otherwise than Pillow 13, here and there by one grey level.
ROUNDED = {"wide_60x1500"} if int(PIL.__version__.split(".")[0]) < 13 else set()


def assert_pixels_equal(name: str, values: torch.Tensor, expected: dict) -> None:
    """Bit by bit; in their sums where Pillow rounds otherwise."""
    assert list(values.shape) == expected["shape"]
    if name in ROUNDED:
        assert values.double().sum().item() == pytest.approx(expected["sum"], rel=1e-4)
        assert values.double().abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-4)
    else:
        assert sha256(values.numpy()) == expected["sha256"]


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_image_equals_golden(processor, name):
    pixels, expected = image_array(name), IMAGE["images"][name]
    # The released code drops the alpha channel, which leaves invented colours where nothing is seen.
    source = Image.fromarray(pixels[..., :3] if name.startswith("rgba") else pixels)
    message = [{"role": "HUMAN", "content": [{"type": "image", "image": source}]}]
    fetched = processor.process_vision_info(message)[0][0]
    assert [fetched.height, fetched.width] == expected["fetch_size_hw"]
    assert name in ROUNDED or sha256(np.asarray(fetched)) == expected["fetch_rgb_sha256"]
    encoded = encode(processor, "<image>", images=[fetched])
    assert encoded["image_grid_thw"].tolist() == expected["fetched_then_processed"]["grid_thw"]
    assert_pixels_equal(name, encoded["pixel_values"], expected["fetched_then_processed"]["pixel_values"])
    if "error" not in expected["processed_directly"]:  # 20 x 33 pixels are no error any more
        direct = encode(processor, "<image>", images=[source])
        assert_pixels_equal(name, direct["pixel_values"], expected["processed_directly"]["pixel_values"])


@pytest.mark.parametrize("case", IMAGE["smart_resize_table"], ids=lambda case: f"{case['h']}x{case['w']}")
def test_smart_resize_equals_golden(case):
    if isinstance(case["fetch_default"], str):
        with pytest.raises(ValueError, match=f"{case['h']} x {case['w']} pixels .* thinner than 1:200; crop or pad"):
            smart_resize(case["h"], case["w"])
    else:
        assert list(smart_resize(case["h"], case["w"])) == case["fetch_default"]
    limits = {"image": (78_400, 802_816), "video": (100_352, 602_112)}
    for kind, (low, high) in limits.items():
        if not isinstance(case[f"processor_{kind}"], str):
            assert list(smart_resize(case["h"], case["w"], 28, low, high)) == case[f"processor_{kind}"]


@pytest.mark.parametrize("case", IMAGE["fetch_variants"], ids=lambda case: str(case["args"]))
def test_limits_of_one_item_equal_golden(processor, case):
    item = {"type": "image", "image": Image.fromarray(image_array("odd_301x517")), **case["args"]}
    chat = [{"role": "user", "content": [item]}]
    if "error" in case:
        with pytest.raises(ValueError, match="10 x 5000 pixels .* is thinner than 1:200"):
            processor.process_vision_info(chat)
    else:
        assert list(processor.process_vision_info(chat)[0][0].size) == case["size_hw"][::-1]


def test_item_limits_reach_every_image_of_a_list(processor):
    sources = [Image.new("RGB", (517, 301)), Image.new("RGB", (300, 300))]
    item = {"type": "image", "image": sources, "min_pixels": 50_176, "max_pixels": 100_352}
    images, videos, audios = processor.process_vision_info([{"role": "user", "content": [item]}])
    assert (videos, audios) == (None, None)
    assert all(50_176 <= image.width * image.height <= 100_352 for image in images)


def test_limits_of_a_call_hold_when_images_are_fetched(processor):
    assert processor.resize_on_fetch
    content = [{"type": "image", "image": Image.new("RGB", (1400, 1400))}]
    messages = [{"role": "user", "content": content}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "max_pixels": 3_000_000}
    assert processor.apply_chat_template(messages, **options)["image_grid_thw"].tolist() == [[1, 100, 100]]
    content[0]["max_pixels"] = 0
    with pytest.raises(ValueError, match="max_pixels=0 must be at least 1"):
        processor.process_vision_info(messages)


def test_call_limits_replace_those_of_the_image_processor(processor):
    encoded = encode(processor, "<image>", images=Image.new("RGB", (600, 600)), min_pixels=784, max_pixels=4000)
    assert encoded["image_grid_thw"].tolist() == [[1, 4, 4]]


def encoded_image(form: str, size=(40, 30), **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(
        data, form, **options
    )
    return data.getvalue()


@pytest.mark.parametrize(("form", "ending"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif")])
def test_image_formats_and_sources_agree(tmp_path, form, ending):
    data = encoded_image(form)
    path = tmp_path / f"an image.{ending}"
    path.write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    url = f"data:image/{ending};base64," + base64.b64encode(data).decode()
    for source in (path, str(path), path.as_uri(), url, data, bytearray(data), io.BytesIO(data), Image.open(path)):
        image = load_image(source)
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), expected)


def test_first_frame_of_a_gif_is_the_image(tmp_path):
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif").getpixel((3, 3)) == (255, 0, 0)


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20), "white")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == load_image(Image.open(tmp_path / "a.jpg")).size == (20, 40)


def test_alpha_is_put_on_white_and_16_bit_is_scaled():
    rgba = np.full((20, 20, 4), (10, 20, 30, 0), dtype=np.uint8)
    for source in (Image.fromarray(rgba), rgba, torch.from_numpy(rgba).permute(2, 0, 1)):
        assert load_image(source).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((20, 20), 0x8040, dtype=np.uint16))
    assert load_image(deep).getpixel((0, 0)) == (128, 128, 128)


def test_arrays_and_tensors_agree():
    pixels = np.random.default_rng(3).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    floats = pixels.astype(np.float32) / 255
    sources = [
        pixels,
        tensor,
        floats,
        torch.from_numpy(floats).permute(2, 0, 1),
        pixels.astype(np.int64),
        floats * 255,
    ]
    sources += [torch.from_numpy(floats).half(), pixels.transpose(2, 0, 1)]
    for source in sources:
        assert np.array_equal(np.asarray(load_image(source)), pixels)
    assert load_image(pixels[..., 0]).getpixel((0, 0)) == (int(pixels[0, 0, 0]),) * 3
    assert np.array_equal(np.asarray(load_image(torch.from_numpy(floats).bfloat16())).shape, pixels.shape)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such.png", "'/no/such.png': no such file; accepted is a jpg, png, webp or gif file"),
        (b"", "<0 bytes>"),
        (b"hello, I am text", "<16 bytes>: cannot identify image file"),
        (encoded_image("PNG")[:200], "cannot read image <200 bytes>"),
        (encoded_image("JPEG")[:300], "cannot read image <300 bytes>"),
        ("data:image/png,abc", "a data URL must look like data:<type>;base64,<data>"),
        ("data:image/png;base64,%%%", "the base64 data of the data URL cannot be decoded"),
        (np.zeros((5, 5, 7), np.uint8), r"shape \(5, 5, 7\) and dtype uint8>: no axis of 1, 3 or 4 channels"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros(5, np.uint8), "1 dimensions"),
        (np.full((5, 5, 3), -1.0), "values from -1 to -1 are neither in 0..1 nor in 0..255"),
        (np.full((5, 5, 3), np.nan), "values from nan to nan"),
        (np.zeros((5, 5, 3), complex), "dtype complex128"),
        (7, "<int>: int is no media source"),
    ],
)
def test_image_errors(source, message):
    with pytest.raises(ValueError, match=message):
        load_image(source)


def test_decompression_bomb_and_directory(tmp_path):
    header = encoded_image("PNG", size=(1, 1))
    chunk = b"IHDR" + struct.pack(">II", 60_000, 60_000) + header[24:29]
    bomb = header[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + header[33:]
    with pytest.raises(ValueError, match="pixels.*accepted is a jpg"):
        load_image(bomb)
    with pytest.raises(ValueError, match="cannot read image"):
        load_image(tmp_path)


def test_thin_image_is_refused_by_the_processor(processor):
    with pytest.raises(ValueError, match="2 x 500 pixels .* is thinner than 1:200; crop or pad it"):
        encode(processor, "<image>", images=Image.new("RGB", (500, 2)))


# URLs

MOVED = {"/moved.png": "/a.png", "/far.png": "http://127.0.0.1:99999/a.png"}


class Handler(http.server.BaseHTTPRequestHandler):
    files = {}
    asked = []

    def do_GET(self):  # noqa: N802
        self.asked.append(self.path)
        data = self.files.get(self.path)
        if self.path == "/slow.png":
            time.sleep(0.3)
        if self.path in MOVED:
            self.send_response(302)
            self.send_header("Location", MOVED[self.path])
        else:
            self.send_response(200 if data is not None else 404)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a client that has seen enough
            for part in [data[i : i + 9] for i in range(0, 90, 9)] if self.path == "/drops.png" else [data or b""]:
                self.wfile.write(part)
                time.sleep(0.05 if self.path == "/drops.png" else 0.0)

    def log_message(self, *args):
        return


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_urls(processor, server, tmp_path):
    Handler.files["/a.png"] = encoded_image("PNG")
    soundfile.write(tmp_path / "a.wav", np.zeros(1600, np.float32), 16000)
    Handler.files["/a.wav"] = (tmp_path / "a.wav").read_bytes()
    write_video(tmp_path / "a.mp4", 6)
    Handler.files["/a.mp4"] = (tmp_path / "a.mp4").read_bytes()
    content = [
        {"type": "image_url", "image_url": {"url": f"{server}/a.png"}},
        {"type": "image", "url": f"{server}/moved.png"},
        {"type": "audio_url", "audio_url": {"url": f"{server}/a.wav"}},
        {
            "type": "input_audio",
            "input_audio": {"data": base64.b64encode(Handler.files["/a.wav"]).decode(), "format": "wav"},
        },
        {"type": "video_url", "video_url": f"{server}/a.mp4"},
        {"type": "image", "base64": base64.b64encode(Handler.files["/a.png"]).decode()},
    ]
    images, videos, audios = processor.process_vision_info([{"role": "user", "content": content}])
    assert (len(images), len(videos), len(audios)) == (3, 1, 2)
    assert [(tuple(wave.shape), rate) for wave, rate in audios] == [((1, 1600), 16000)] * 2


@pytest.mark.parametrize("scheme", ["Http", "HTTP", "File"])
def test_schemes_of_addresses_have_no_case(processor, server, tmp_path, scheme):
    write_video(tmp_path / "a.mp4", 6, sound_seconds=1.0)
    Handler.files["/a.mp4"] = (tmp_path / "a.mp4").read_bytes()
    address = f"{scheme}://{tmp_path}/a.mp4" if scheme == "File" else scheme + server.removeprefix("http") + "/a.mp4"
    chat = [{"role": "user", "content": [{"type": "video", "video": address}]}]
    _, videos, audios = processor.process_vision_info(chat, load_audio_from_video=True)
    assert len(videos) == len(audios) == 1


@pytest.mark.parametrize("address", ["ftp://host/a.png", "S3://bucket/a.png", "gs://bucket/a.png"])
def test_addresses_that_are_not_read_are_told_from_files(address, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=rf"begin with {address[:2].lower()}\w?:// are not read; download .* http://"):
        load_image(address)
    monkeypatch.chdir(tmp_path)  # where a file has such a name
    Path(address).parent.mkdir(parents=True)
    Path(address).write_bytes(encoded_image("PNG"))
    assert load_image(address).size == (40, 30)


def test_addresses_beyond_ascii(server, monkeypatch):
    Handler.files["/gr%C3%BCn%20%E5%9B%BE.png"] = encoded_image("PNG")
    assert load_image(f"{server}/gr\u00fcn \u56fe.png").size == load_image(encoded_image("PNG")).size
    Handler.files["/a%20b?c=d"] = encoded_image("PNG")
    asked, port, resolve = [], server.rpartition(":")[2], socket.getaddrinfo
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **kwargs: asked.append(host) or resolve("127.0.0.1", *args, **kwargs),
    )
    assert load_image(f"http://b\u00fccher.example:{port}/a%20b?c=d").size == (40, 30)
    assert asked == ["xn--bcher-kva.example"]


def test_random_frames_leave_the_global_generator_alone(tmp_path):
    write_video(tmp_path / "a.mp4", 12)
    state = torch.get_rng_state()
    load_video(tmp_path / "a.mp4", VideoOptions(sample="random"))
    assert torch.equal(state, torch.get_rng_state())


def test_url_errors(server, monkeypatch):
    with pytest.raises(ValueError, match="/none.png': HTTP Error 404.*accepted is a jpg"):
        load_image(f"{server}/none.png")
    with pytest.raises(ValueError, match="cannot read audio 'http://127.0.0.1:9/a.wav'"):
        load_audio("http://127.0.0.1:9/a.wav")
    Handler.files["/big.png"] = bytes(3 << 20)
    monkeypatch.setitem(ming.media.DOWNLOAD_BYTES, "image", 1 << 20)
    with pytest.raises(ValueError, match="/big.png': more than 1 MiB"):
        load_image(f"{server}/big.png")
    monkeypatch.setattr(ming.media, "DOWNLOAD_SECONDS", 0.1)
    with pytest.raises(ValueError, match="cannot read image .*/slow.png': timed out"):
        load_image(f"{server}/slow.png")
    Handler.files["/drops.png"] = bytes(90)
    with pytest.raises(ValueError, match="cannot read image .*/drops.png': not complete after 0 s"):
        load_image(f"{server}/drops.png")
    with pytest.raises(ValueError, match="cannot read image 'http://'"):
        load_image("http://")
    for url in ("http://127.0.0.1:99999/a.png", f"{server}/far.png"):
        with pytest.raises(ValueError, match="cannot read image .*port 99999 is not a number of 1 to 65535"):
            load_image(url)


def test_data_urls_and_base64():
    assert split_data_url("data:image/png;base64,aGVsbG8=") == ("image/png", b"hello")
    assert split_data_url("DATA:;base64,") == ("", b"")
    assert split_data_url("DATA:audio/wav;BASE64,aGVsbG8%3D") == ("audio/wav", b"hello")
    for text in ("++//aA==", "--__aA==", "--__aA", "++//\r\naA=="):
        assert decode_base64(text, "it") == b"\xfb\xef\xffh"
    with pytest.raises(
        ValueError, match="^the base64 data of it cannot be decoded: Invalid[^;]*; give plain base64 or"
    ):
        decode_base64("data:;base64,a", "it")
    for url in ("data:image/png,abc", "data:image/png;base64", "image/png;base64,abc"):
        with pytest.raises(ValueError, match="a data URL must look like data:<type>;base64,<data>"):
            split_data_url(url)
    with pytest.raises(ValueError, match="the base64 data of the data URL cannot be decoded"):
        split_data_url("data:image/png;base64,a")
    for text in ("a", "aGVsb", "%%", 7):
        with pytest.raises(ValueError, match="the base64 data of this thing cannot be decoded"):
            decode_base64(text, "this thing")


# Videos


def write_video(path, frames, codec="libx264", rate=4, size=(64, 48), sound_seconds=0.0):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound_seconds else None
        for index in range(frames):
            pixels = np.full((size[1], size[0], 3), 10 + 200 * index // max(frames - 1, 1), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
        if audio is not None:
            tone = 0.5 * np.sin(np.arange(int(16000 * sound_seconds)) * 0.2).astype(np.float32)[None]
            for start in range(0, tone.shape[1], 1024):
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(tone[:, start : start + 1024]), "fltp", "mono")
                frame.rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


@pytest.mark.parametrize("case", FILE_CASES, ids=lambda case: f"{case['total_frames']}-{case['fps']:g}-{case['args']}")
def test_frame_choice_and_size_equal_golden(case):
    options = VideoOptions(**case["args"])
    if "error" in case:
        with pytest.raises(
            ValueError, match=rf"a video of {case['total_frames']} frames at .* are needed; lower min_fra"
        ):
            count_frames(case["total_frames"], case["fps"], options)
        return
    count = count_frames(case["total_frames"], case["fps"], options)
    assert [count, 3, *frame_size(case["h"], case["w"], count, options)] == case["shape"]
    indices = select_frames(case["total_frames"], count, options.sample, torch.Generator().manual_seed(0))
    assert len(indices) == len(case["indices"])
    if options.sample != "random":
        assert indices == case["indices"]


def test_random_frames_come_one_from_each_interval_and_repeat_with_the_seed():
    first = select_frames(300, 20, "random", torch.Generator().manual_seed(1))
    assert first == select_frames(300, 20, "random", torch.Generator().manual_seed(1))
    assert first != select_frames(300, 20, "random", torch.Generator().manual_seed(2))
    assert all(15 * i <= index < 15 * (i + 1) - 1 for i, index in enumerate(first))
    few = select_frames(10, 8, "random", torch.Generator().manual_seed(1))
    assert sorted(set(few)) == few and len(few) == 8
    assert select_frames(100, 10, "adaptive") == select_frames(100, 10, "uniform")


@pytest.mark.parametrize("case", LIST_CASES, ids=lambda case: f"{case['n']}-{case['args']}")
def test_frame_lists_equal_golden(case):
    frames = [Image.new("RGB", (40, 40), (n * 10, 0, 0)) for n in range(case["n"])]
    video = load_video(frames, VideoOptions(**case["args"]))
    wanted = case["n_out"] + case["n_out"] % 2  # an odd number could not be processed
    assert tuple(video.shape) == (wanted, 3, *case["size_hw"])
    if case["n"] != 9:  # the released choice of 4 from 9 is neither uniform nor sequential
        ids = (video[:, 0, 0, 0] // 10).tolist()
        assert ids[: case["n_out"]] == case["frame_ids"]


def test_pixels_of_a_video_equal_golden(processor):
    frames = np.random.default_rng(99).integers(0, 256, size=(4, 3, 112, 140)).astype(np.uint8)
    expected = VIDEO["processor"][0]
    forms = [torch.from_numpy(frames), torch.from_numpy(frames).float(), frames.transpose(0, 2, 3, 1)]
    forms.append([Image.fromarray(frame.transpose(1, 2, 0)) for frame in frames])
    for video in forms:
        encoded = encode(processor, "<video>", videos=[video])
        assert encoded["video_grid_thw"].tolist() == expected["grid_thw"]
        assert sha256(encoded["pixel_values_videos"].numpy()) == expected["pixel_values"]["sha256"]
    assert sha256(resize_frames(torch.from_numpy(frames), 84, 112).numpy()) == VIDEO["processor"][1]["sha256"]
    assert encode(processor, "<video>", videos=[forms[3][:1]])["video_grid_thw"].tolist() == [[1, 22, 26]]
    assert encode(processor, "<video>", videos=[forms[3][:3]])["video_grid_thw"].tolist() == [[2, 22, 26]]


@pytest.mark.parametrize(
    ("ending", "codec"),
    [("mp4", "libx264"), ("mov", "libx264"), ("mkv", "libx264"), ("webm", "libvpx"), ("gif", "gif")],
)
def test_video_formats(tmp_path, ending, codec):
    path = write_video(tmp_path / f"a.{ending}", 9, codec)
    for source in (path, str(path), path.as_uri(), path.read_bytes()):
        video = load_video(source, VideoOptions(sample="uniform"))
        assert video.dtype == torch.uint8 and video.shape[:2] == (8, 3)
        brightness = video.float().mean((1, 2, 3))
        assert (brightness[1:] > brightness[:-1]).all()
    assert load_video(path, VideoOptions(resize=False)).shape[-2:] == (48, 64)
    assert len(load_video(path, VideoOptions(nframes=4))) == 4


def test_a_video_item_says_how_its_frames_are_chosen(tmp_path, processor):
    path = write_video(tmp_path / "a.mp4", 40)
    item = {"type": "video", "video": str(path), "max_frames": 6, "sample": "sequence"}
    (video,) = processor.process_vision_info([{"role": "HUMAN", "content": [item]}])[1]
    item |= {"sample": "uniform"}
    (spread,) = processor.process_vision_info([{"role": "HUMAN", "content": [item]}])[1]
    assert len(video) == len(spread) == 6 and not torch.equal(video, spread)


def test_part_of_a_video(tmp_path):
    path = write_video(tmp_path / "a.mp4", 40)
    whole = load_video(path, VideoOptions(resize=False, fps=4, max_frames=40))
    part = load_video(path, VideoOptions(resize=False, fps=4, video_start=2.0, video_end=6.75))
    assert len(whole) == 40 and torch.equal(part, whole[8:28])
    with pytest.raises(ValueError, match="no frames from 20.0 to None s"):
        load_video(path, VideoOptions(video_start=20.0))


def test_directory_of_frames_is_sorted(tmp_path, processor):
    for index in (10, 9, 0, 1):
        Image.new("RGB", (56, 56), (index * 20, 0, 0)).save(tmp_path / f"frame_{index}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    item = {"type": "video", "video": str(tmp_path)}
    videos = processor.process_vision_info([{"role": "HUMAN", "content": [item]}])[1]
    assert (videos[0][:, 0, 0, 0] // 20).tolist() == [0, 1, 9, 10]


def test_frames_of_different_sizes_take_the_first_size():
    video = load_video([Image.new("RGB", (56, 84)), Image.new("RGB", (100, 30))])
    assert tuple(video.shape) == (2, 3, 84, 56)


def test_video_and_its_sound_track(tmp_path, processor):
    path = str(write_video(tmp_path / "a.mp4", 8, sound_seconds=2.0))
    chat = [{"role": "user", "content": [{"type": "video", "video": path}, {"type": "text", "text": "What?"}]}]
    prompt = "<role>HUMAN</role><video><audio>What?<role>ASSISTANT</role>"
    assert processor.apply_chat_template(chat, load_audio_from_video=True) == prompt
    images, videos, audios = processor.process_vision_info(chat, load_audio_from_video=True)
    assert images is None and len(videos) == 1
    assert audios[0][1] == 16000 and abs(audios[0][0].shape[1] - 32000) < 3000 and audios[0][0].abs().max() > 0.3
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, load_audio_from_video=True)
    assert {"pixel_values_videos", "audio_feats"} <= set(inputs)
    chat[0]["content"].insert(1, {"type": "audio"})
    assert processor.apply_chat_template(chat, load_audio_from_video=True) == prompt
    assert load_video_audio(path, 0.5, 1.0)[0].shape == (1, 8000)


def test_video_without_sound_track(tmp_path, processor):
    path = str(write_video(tmp_path / "a.mp4", 8))
    silent = [path, [Image.new("RGB", (56, 56))] * 2, str(tmp_path)]
    Image.new("RGB", (56, 56)).save(tmp_path / "frame.png")
    for source in silent:  # a batch with one silent video among others is served
        chat = [{"role": "user", "content": [{"type": "video", "video": source}]}]
        assert processor.apply_chat_template(chat, load_audio_from_video=True).count("<audio>") == 0
        images, videos, audios = processor.process_vision_info(chat, load_audio_from_video=True)
        assert images is None and len(videos) == 1 and audios is None
    for source, message in (  # asked for in so many words
        (path, "a.mp4': no audio track; leave out load_audio_from_video or the audio item behind it"),
        ([Image.new("RGB", (56, 56))], "without an audio track"),
    ):
        chat = [{"role": "user", "content": [{"type": "video", "video": source}, {"type": "audio"}]}]
        with pytest.raises(ValueError, match=message):
            processor.process_vision_info(chat)


def test_a_video_of_an_address_is_downloaded_once_for_frames_and_sound(tmp_path, processor, server):
    Handler.files["/once.mp4"] = write_video(tmp_path / "once.mp4", 8, sound_seconds=2.0).read_bytes()
    chat = [{"role": "user", "content": [{"type": "video", "video": f"{server}/once.mp4"}]}]
    _, videos, audios = processor.process_vision_info(chat, load_audio_from_video=True)
    assert len(videos) == len(audios) == Handler.asked.count("/once.mp4") == 1


def test_videos_argument_takes_files_and_lists(processor, tmp_path):
    path = str(write_video(tmp_path / "a.mp4", 8))
    assert len(encode(processor, "<video><video>", videos=[path, path])["video_grid_thw"]) == 2
    assert len(encode(processor, "<video>", videos=path, videos_kwargs={"nframes": 2})["video_grid_thw"]) == 1
    sized = encode(
        processor, "<video>", videos=path, videos_kwargs={"nframes": 2, "resized_height": 560, "resized_width": 448}
    )
    assert sized["video_grid_thw"].tolist() == [[1, 40, 32]]
    frames = [np.zeros((56, 56, 3), np.uint8)] * 2
    assert len(encode(processor, "<video>", videos=frames)["video_grid_thw"]) == 1
    assert len(encode(processor, ["<video>", "<video>"], videos=[[frames], [path]])["video_grid_thw"]) == 2


def test_whole_video_is_limited_without_fetching():
    processor = released_processor(
        resize_on_fetch=False, video_min_pixels=784, video_max_pixels=12_544, video_total_pixels=25_088
    )
    grids = [
        encode(processor, "<video>", videos=[torch.zeros(n, 3, 112, 112)])["video_grid_thw"].tolist()
        for n in (2, 4, 16)
    ]
    assert grids == [[[1, 8, 8]], [[2, 8, 8]], [[8, 4, 4]]]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such.mp4", "'/no/such.mp4': no such file; accepted is an mp4, webm, mov, mkv or gif file"),
        (b"", "cannot read video <0 bytes>"),
        (b"no video at all" * 100, "cannot read video <1500 bytes>"),
        ([], "no frames"),
        (torch.zeros(0, 3, 5, 5), "not four dimensions with frames in them"),
        (torch.zeros(3, 5, 5), "not four dimensions"),
        (torch.zeros(2, 5, 5, 5), "no axis of 1, 3 or 4 channels"),
        (torch.full((2, 3, 5, 5), 300.0), "values from 300 to 300"),
        ([Image.new("RGB", (1, 500))], "thinner than 1:200"),
    ],
)
def test_video_errors(source, message):
    with pytest.raises(ValueError, match=message):
        load_video(source)


def test_broken_video_files(tmp_path):
    data = write_video(tmp_path / "a.mp4", 30, rate=10).read_bytes()
    with pytest.raises(ValueError, match="cannot read video"):
        load_video(data[: len(data) // 2])
    soundfile.write(tmp_path / "a.wav", np.zeros(1600, np.float32), 16000)
    with pytest.raises(ValueError, match="no video track"):
        load_video(tmp_path / "a.wav")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no frames \(.jpg"):
        load_video(tmp_path / "empty")
    with pytest.raises(ValueError, match="a.mp4': a video of 2 frames .* pass a single frame as an image"):
        load_video(write_video(tmp_path / "a.mp4", 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": "best"}, "sample='best' is unknown; accepted are uniform, sequence, random, adaptive"),
        ({"nframes": 4, "fps": 1}, "give nframes=4 or fps=1"),
        ({"max_frames": 0}, "max_frames=0 must be above 0"),
        ({"video_start": 2, "video_end": 1}, "video_start=2 must come before video_end=1"),
    ],
)
def test_video_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        VideoOptions(**options)


def test_a_file_may_be_named_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data:x.wav", "10:20.wav", "http:x.wav"):
        soundfile.write(tmp_path / name, np.full(1600, 0.25), 16000, format="WAV")
        assert load_audio(name, 16000)[0].shape == (1, 1600)


@pytest.mark.parametrize("name", ["a.l16", "a.g722", "a.f32", "a.vox", "a.bin", "a"])
def test_samples_without_a_header_are_refused_with_the_remedy(tmp_path, name):
    (tmp_path / name).write_bytes(np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).tobytes())
    with pytest.raises(ValueError, match="samples without a header have no known rate; save it as wav"):
        load_audio(tmp_path / name, 16000)
