"""What a request may point to: data URLs, public addresses behind a flag, and files of known kinds only."""

import base64
import io
import ipaddress
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from test_media_files import write_audio, write_video

from ming.media import file_kind, load_audio
from ming.serving.errors import ApiError
from ming.serving.fetch import Fetcher, is_public
from ming.serving.media import MediaReader
from ming.serving.settings import Limits
from ming.video import load_video

DEMO = Path(__file__).resolve().parents[1] / "demo"
HERE = ipaddress.ip_address("127.0.0.1")


class Site(ThreadingHTTPServer):
    """A web site on this machine; `seen` are the paths and hosts that were asked for."""

    def __init__(self):
        self.seen: list[tuple[str, str]] = []
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), Pages)
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    def url(self, path: str, host: str = "localhost") -> str:
        return f"http://{host}:{self.server_port}{path}"

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()
        self.thread.join()


class Pages(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append((self.path, self.headers["host"]))
        kind, _, argument = self.path[1:].partition("/")
        if kind == "slow-headers":
            self.drip(b"x")
            return
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", base64.urlsafe_b64decode(argument).decode())
            self.end_headers()
            return
        self.send_response(200 if kind != "missing" else 404)
        self.end_headers()
        if kind == "slow-body":
            self.drip(b"x")
            return
        self.wfile.write(b"y" * int(argument or 5))

    def drip(self, drop: bytes):
        """Drop after drop, until the client has enough or the site closes."""
        while not self.server.closing.wait(0.02):
            try:
                self.wfile.write(drop)
            except OSError:
                return

    def log_message(self, *arguments):
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


def only_here(address) -> bool:
    return address == HERE


def read(url: str, **options) -> bytes:
    return Fetcher(**{"allow_remote": True, "is_allowed": only_here, "max_seconds": 20.0, **options}).read(url, "p")


def refusal(url: str, **options) -> str:
    with pytest.raises(ApiError) as caught:
        read(url, **options)
    assert caught.value.param == "p"
    return caught.value.message


def redirect(target: str) -> str:
    return "/redirect/" + base64.urlsafe_b64encode(target.encode()).decode()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::a9fe:a9fe",
        "2001:db8::1",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b:1::7f00:1",
        "fec0::1",
        "4000::1",
        "2001:0:4136:e378:8000:63bf:80ff:fffe",
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_addresses_that_are_public(address):
    assert is_public(ipaddress.ip_address(address))


def test_data_urls():
    assert read("data:image/png;base64,aGVsbG8=") == b"hello"
    assert "must look like" in refusal("data:image/png,hello")
    assert "cannot be decoded" in refusal("data:image/png;base64,a")
    assert "no data" in refusal("data:image/png;base64,")


@pytest.mark.parametrize(
    "url", ["/etc/passwd", "file:///etc/passwd", "ftp://a/b", "demo/picture.jpg", "", "concat:a|b"]
)
def test_files_and_other_schemes_never(url):
    assert "never read" in refusal(url)


def test_addresses_only_where_allowed(site):
    assert "--allow-remote" in refusal(site.url("/page"), allow_remote=False)
    assert not site.seen


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_this_machine_never_under_any_name(site, host):
    message = refusal(site.url("/page", host), is_allowed=is_public)
    assert "not on the public internet" in message or "cannot read" in message
    assert not site.seen


def test_an_allowed_address_is_read_under_its_name(site):
    assert read(site.url("/page/7")) == b"y" * 7
    assert site.seen == [("/page/7", f"localhost:{site.server_port}")]
    assert "answers 404" in refusal(site.url("/missing"))


def test_redirects_are_checked_like_the_first_address(site):
    assert read(site.url(redirect("/page/3"))) == b"yyy"
    assert read(site.url(redirect(site.url("/page/4")))) == b"yyyy"
    other = ThreadingHTTPServer(("127.0.0.2", 0), Pages)
    try:
        hidden = f"http://127.0.0.2:{other.server_port}/page"
        assert "leads to 127.0.0.2" in refusal(site.url(redirect(hidden)))
    finally:
        other.server_close()
    for target in ("file:///etc/passwd", "ftp://localhost/x"):
        assert "not an http or https address" in refusal(site.url(redirect(target)))


def test_redirects_end(site):
    url = "/page"
    for _ in range(5):
        url = redirect(url)
    assert "more than 3 redirects" in refusal(site.url(url))
    assert len(site.seen) == 4


def test_one_private_address_among_several_is_enough(site, monkeypatch):
    """A name that leads to a public and to a private address: connecting could take either."""
    found = socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
    public = [(*found[0][:4], ("8.8.8.8", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: public + found)
    assert "leads to 127.0.0.1" in refusal("http://two.example/x", is_allowed=is_public)


def test_the_address_that_was_checked_is_the_one_that_is_used(site, monkeypatch):
    """A name that changes its mind after the check."""
    asked = []

    def changing(host, *arguments, **options):
        asked.append(host)
        if host != "moody.example":
            return original(host, *arguments, **options)
        return original("127.0.0.1" if asked.count(host) == 1 else "127.0.0.2", *arguments, **options)

    original = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", changing)
    assert read(site.url("/page/6", "moody.example")) == b"y" * 6
    assert asked.count("moody.example") == 1


def test_size_and_time_have_an_end(site):
    assert "larger than 1000 bytes" in refusal(site.url("/page/100000"), max_bytes=1000)
    for path in ("/slow-headers", "/slow-body"):
        assert "not complete after 0.3 s" in refusal(site.url(path), max_seconds=0.3)


def test_unreachable_is_an_error_of_the_request():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "cannot read" in refusal(f"http://127.0.0.1:{port}/")
    assert "cannot read" in refusal("http://no-such-name.invalid/")


@pytest.mark.parametrize("port", [0, 65536, 99999, 10**30])
def test_ports_are_ports_also_behind_a_redirect(site, port):
    """The system would take 99999 for 34463."""
    url = f"http://127.0.0.1:{port}/page"
    for first in (url, site.url(redirect(url))):
        assert f"port {port} is not a number of 1 to 65535" in refusal(first)


def reader(**limits) -> MediaReader:
    return MediaReader(Fetcher(), Limits(**limits))


def encoded(format: str, seconds: float, channels: int = 1) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((int(8000 * seconds), channels)), 8000, format=format)
    return file.getvalue()


@pytest.mark.parametrize(("name", "kind"), [("picture.jpg", "jpeg"), ("recording.wav", "wav"), ("clip.mp4", "mp4")])
def test_kinds_of_files(name, kind):
    assert file_kind((DEMO / name).read_bytes()) == kind


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "AU", "W64", "RF64"])
def test_recordings_of_all_kinds_are_measured(format):
    data = encoded(format, 1.0)
    assert reader().audio(data, "p") == {"type": "audio", "audio": data}
    with pytest.raises(ApiError, match="more than the 0.5 s"):
        reader(media_seconds=0.5).audio(data, "p")


# Beside those that soundfile writes.
FFMPEG_SOUNDS = [("adts", "aac"), ("asf", "libmp3lame"), ("ac3", "ac3"), ("eac3", "eac3"), ("wv", "wavpack")]
FFMPEG_SOUNDS += [("tta", "tta"), ("caf", "alac"), ("mp2", "mp2"), ("matroska", "aac"), ("mpegts", "aac")]
FFMPEG_VIDEOS = [("mpegts", "mpeg2video"), ("mpeg", "mpeg2video"), ("flv", "flv"), ("asf", "msmpeg4v3")]
FFMPEG_VIDEOS += [("matroska", "mpeg4"), ("mov", "mpeg4")]


@pytest.mark.parametrize(("form", "codec"), [*FFMPEG_SOUNDS, *FFMPEG_VIDEOS])
def test_what_the_library_reads_is_accepted(form, codec):
    """Also where the first bytes tell nothing, as those of a transport stream."""
    kind = "audio" if (form, codec) in FFMPEG_SOUNDS else "video"
    data = write_audio(form, codec) if kind == "audio" else write_video(form, codec)
    assert getattr(reader(), kind)(data, "p") == {"type": kind, kind: data}
    load_audio(data) if kind == "audio" else load_video(data)
    with pytest.raises(ApiError, match="more than the 0.5 s"):
        getattr(reader(media_seconds=0.5), kind)(data, "p")


@pytest.mark.parametrize("form", ["BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "TGA", "PPM"])
def test_images_of_all_kinds_are_accepted(form):
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, form)
    assert reader().image(file.getvalue(), "p")["type"] == "image"
    with pytest.raises(ApiError, match="32 x 32 pixels are more than 100"):
        reader(image_pixels=100).image(file.getvalue(), "p")


@pytest.mark.parametrize("form", ["WEBP", "PNG", "GIF"])
def test_animated_images_are_videos(form):
    file, frames = io.BytesIO(), [Image.new("RGB", (32, 32), (40 * index, 0, 0)) for index in range(6)]
    frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=200)
    assert reader().video(file.getvalue(), "p")["type"] == "video"
    for limits, message in (
        ({"media_seconds": 0.5}, "more than the 0.5 s"),
        ({"image_pixels": 100}, "pixels are more than 100"),
        ({"media_seconds": 0.01}, "more than 1 frames"),
    ):
        with pytest.raises(ApiError, match=message):
            reader(**limits).video(file.getvalue(), "p")


PLAYLIST = b"#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1/secret.ts\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (PLAYLIST, "a playlist file"),
        (b"ffconcat version 1.0\nfile x\n", "a playlist file"),
        (b"<svg/>", "a svg file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a postscript file"),
        (b"", "empty"),
    ],
)
def test_playlists_and_scripts_are_no_media(data, what):
    for read_as in (reader().image, reader().audio, reader().video):
        with pytest.raises(ApiError, match=f"it is {what}; accepted are"):
            read_as(data, "p")


def test_samples_without_a_header_are_refused_with_the_remedy():
    """A request has no arrays: the remedy of the library is not that of its clients."""
    with pytest.raises(ApiError, match="of an unknown kind: .*; samples without a header .* as wav; accepted are"):
        reader().audio(bytes(range(1, 200)), "p")


def test_media_of_another_kind_and_broken_media():
    picture, clip = (DEMO / "picture.jpg").read_bytes(), (DEMO / "clip.mp4").read_bytes()
    with pytest.raises(ApiError, match="a jpeg file; accepted are wav"):
        reader().audio(picture, "p")
    with pytest.raises(ApiError, match="no audio track"):
        reader().audio(clip, "p")
    for broken in (clip[:200], b"GIF89a", b"\x1a\x45\xdf\xa3" + bytes(50)):
        with pytest.raises(ApiError, match="cannot read this video"):
            reader().video(broken, "p")
    for broken in (picture[:20], b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(ApiError, match="cannot read this image"):
            reader().image(broken, "p")
    for broken in (b"fLaC", b"ID3" + PLAYLIST, b"RIFF0000WAVE"):
        with pytest.raises(ApiError, match="cannot read this audio"):
            reader().audio(broken, "p")


def test_videos_are_measured():
    clip = (DEMO / "clip.mp4").read_bytes()
    assert reader().video(clip, "p")["video"] == clip
    with pytest.raises(ApiError, match="s are more than the 0.2 s"):
        reader(media_seconds=0.2).video(clip, "p")
    with pytest.raises(ApiError, match="pixels are more than 100"):
        reader(image_pixels=100).video(clip, "p")


def test_low_detail_is_read_smaller():
    picture = (DEMO / "picture.jpg").read_bytes()
    assert reader().image(picture, "p", "low")["max_pixels"] == 512 * 512
    assert "max_pixels" not in reader().image(picture, "p")
