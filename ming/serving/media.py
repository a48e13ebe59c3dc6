"""Images, audio and videos of a request, checked before they are decoded: kind of file, pixels, seconds.

The first bytes show the kind. Playlists and scripts are not accepted, since decoders would follow them to other files
and addresses.
"""

import io

import av
import soundfile
from av.container import InputContainer
from PIL import Image

from ming.serving.errors import ApiError
from ming.serving.fetch import Fetcher, decode_field
from ming.serving.settings import Limits

MAX_SAMPLES_A_SECOND = 192_000  # of all channels: two at 96 kHz
MAX_FRAMES_A_SECOND = 120
UNKNOWN_FRAMES = 2**63 - 1  # what libsndfile reports for a stream
LOW_DETAIL_PIXELS = 512 * 512  # OpenAI's size of detail="low"

ACCEPTED = {
    "image": ("png", "jpeg", "webp", "gif"),
    "audio": ("wav", "flac", "ogg", "mp3", "mp4", "webm"),
    "video": ("mp4", "webm", "gif", "avi"),
}
LIBSNDFILE = ("wav", "flac", "ogg", "mp3")
SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (8, b"WEBP", "webp"),
    (8, b"WAVE", "wav"),
    (8, b"AVI ", "avi"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    (4, b"ftyp", "mp4"),
    (0, b"\x1a\x45\xdf\xa3", "webm"),
)


def file_kind(data: bytes) -> str | None:
    """The kind of a file by its first bytes, None if unknown; mov counts as mp4, mkv as webm."""
    for offset, signature, kind in SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            return kind
    is_mpeg_audio = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2  # sync bits, layer 3
    return "mp3" if is_mpeg_audio else None


class MediaReader:
    """Reads the media of one request, and counts them.

    Args:
        fetcher: reads URLs.
        limits: of the request.
    """

    def __init__(self, fetcher: Fetcher, limits: Limits):
        self.fetcher, self.limits = fetcher, limits
        self.items, self.seconds = 0, {"audio": 0.0, "video": 0.0}

    def image(self, source: str | bytes, param: str, detail: str = "auto") -> dict:
        """The content item of an image.

        Args:
            source: a URL, or the file.
            param: the field of the request, for errors.
            detail: "low" reduces the image to at most 512 x 512 pixels.
        """
        data = self._open(source, "image", param)
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "GIF")) as image:
                self._check_pixels(image.width, image.height, param)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise _unreadable("image", param, error) from error
        size = {"max_pixels": LOW_DETAIL_PIXELS} if detail == "low" else {}
        return {"type": "image", "image": data, **size}

    def audio(self, source: str | bytes, param: str) -> dict:
        """The content item of a recording; a string is a URL."""
        data = self._open(source, "audio", param)
        measure = _recording_seconds if file_kind(data) in LIBSNDFILE else _track_seconds
        seconds = measure(data, self.limits.media_seconds, param)
        self._count_seconds("audio", seconds, param)
        return {"type": "audio", "audio": data}

    def audio_base64(self, text: str, param: str) -> dict:
        """The content item of a recording in plain base64."""
        return self.audio(decode_field(text, param), param)

    def video(self, source: str | bytes, param: str) -> dict:
        """The content item of a video; a string is a URL."""
        data = self._open(source, "video", param)
        try:
            with av.open(io.BytesIO(data)) as container:
                if not container.streams.video:
                    raise _unreadable("video", param, "it has no video track")
                stream = container.streams.video[0]
                self._check_pixels(stream.width, stream.height, param)
                seconds = _video_seconds(container, self.limits.media_seconds, param)
        except (av.error.FFmpegError, OSError) as error:
            raise _unreadable("video", param, error) from error
        self._count_seconds("video", seconds, param)
        return {"type": "video", "video": data}

    def _open(self, source: str | bytes, kind: str, param: str) -> bytes:
        self.items += 1
        if self.items > self.limits.media_items:
            raise ApiError(f"{param}: a request may hold {self.limits.media_items} media; send fewer", param)
        data = self.fetcher.read(source, param) if isinstance(source, str) else source
        if (found := file_kind(data)) not in ACCEPTED[kind]:
            what = "of an unknown kind" if found is None else f"a {found} file"
            raise _unreadable(kind, param, f"it is {what}")
        return data

    def _check_pixels(self, width: int, height: int, param: str) -> None:
        if width * height > self.limits.image_pixels:
            raise ApiError(
                f"{param}: {width} x {height} pixels are more than {self.limits.image_pixels}; make it smaller", param
            )

    def _count_seconds(self, kind: str, seconds: float, param: str) -> None:
        self.seconds[kind] += seconds
        if self.seconds[kind] > self.limits.media_seconds:
            raise _too_long(self.seconds[kind], self.limits.media_seconds, param)


def _recording_seconds(data: bytes, limit: float, param: str) -> float:
    """Length of a file that libsndfile reads, from its header."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            samples, seconds = file.frames * file.channels, file.frames / file.samplerate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise _unreadable("audio", param, error) from error
    if file.frames == UNKNOWN_FRAMES:
        raise _unreadable("audio", param, "its header does not give its length; write it again as a file")
    if samples > limit * MAX_SAMPLES_A_SECOND:
        raise _too_long(seconds, limit, param)
    return seconds


def _track_seconds(data: bytes, limit: float, param: str) -> float:
    """Length of the audio track of a container; the track is decoded, since its header may be wrong."""
    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.audio:
                raise _unreadable("audio", param, "it has no audio track")
            return _decoded_seconds(container, limit, param)
    except (av.error.FFmpegError, OSError) as error:
        raise _unreadable("audio", param, error) from error


def _decoded_seconds(container: InputContainer, limit: float, param: str) -> float:
    samples, seconds = 0, 0.0
    for frame in container.decode(container.streams.audio[0]):
        samples += frame.samples * frame.layout.nb_channels
        seconds += frame.samples / frame.sample_rate
        if seconds > limit or samples > limit * MAX_SAMPLES_A_SECOND:
            raise _too_long(seconds, limit, param)
    return seconds


def _video_seconds(container: InputContainer, limit: float, param: str) -> float:
    """Length of the video track, from its packets, which are not decoded."""
    stream, most = container.streams.video[0], int(limit * MAX_FRAMES_A_SECOND)
    end, count = 0.0, 0
    for packet in container.demux(stream):
        count += packet.size > 0
        if count > most:
            raise ApiError(f"{param}: the video has more than {most} frames; shorten it", param)
        if packet.pts is not None:
            end = max(end, float((packet.pts - (stream.start_time or 0)) * packet.time_base))
    return end


def _too_long(seconds: float, limit: float, param: str) -> ApiError:
    return ApiError(
        f"{param}: {seconds:.1f} s are more than the {limit:g} s of a request, or its rate and channels are more than "
        f"{MAX_SAMPLES_A_SECOND} samples a second; shorten or convert it",
        param,
    )


def _unreadable(kind: str, param: str, reason: object) -> ApiError:
    accepted = ", ".join(ACCEPTED[kind])
    return ApiError(
        f"{param}: cannot read this {kind}: {reason}; accepted are {accepted}", param, code="invalid_media"
    )


__all__ = ["MediaReader", "file_kind"]
