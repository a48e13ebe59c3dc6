"""Images, audio and videos of a request, checked before they are decoded: kind of file, pixels, seconds.

The first bytes show the kind. Playlists and scripts are not accepted, since decoders would follow them to other files
and addresses.
"""

import io
from collections.abc import Iterator

import av
from av.container import InputContainer
from PIL import Image, UnidentifiedImageError

from ming.media import CONTAINER_OPTIONS, HEADERLESS_REMEDY, NamedBytes, file_kind, played_track
from ming.serving.errors import ApiError, shorten
from ming.serving.fetch import Fetcher, decode_field
from ming.serving.settings import Limits

MAX_SAMPLES_A_SECOND = 192_000  # of all channels: two at 96 kHz
MAX_FRAMES_A_SECOND = 120
LOW_DETAIL_PIXELS = 512 * 512  # OpenAI's size of detail="low"

ACCEPTED = {
    "image": ("png", "jpeg", "webp", "gif"),
    "audio": ("wav", "flac", "ogg", "mp3", "mp4", "webm"),
    "video": ("mp4", "webm", "gif", "avi"),
}


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
        except UnidentifiedImageError as error:  # its text is the address of an object
            raise _unreadable("image", data, param, "it is damaged") from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise _unreadable("image", data, param, error) from error
        size = {"max_pixels": LOW_DETAIL_PIXELS} if detail == "low" else {}
        return {"type": "image", "image": data, **size}

    def audio(self, source: str | bytes, param: str) -> dict:
        """The content item of a recording; a string is a URL."""
        data = self._open(source, "audio", param)
        try:
            with _container(data) as container:
                if not container.streams.audio:
                    raise _unreadable("audio", data, param, "it has no audio track")
                seconds = _audio_seconds(container, self.limits.media_seconds, param)
        except (av.error.FFmpegError, OSError) as error:
            raise _unreadable("audio", data, param, error.strerror or error) from error
        if not seconds:
            raise _unreadable("audio", data, param, "it holds no samples")
        self._count_seconds("audio", seconds, param)
        return {"type": "audio", "audio": data}

    def audio_base64(self, text: str, param: str) -> dict:
        """The content item of a recording in base64, plain or as a data URL."""
        return self.audio(decode_field(text, param), param)

    def video(self, source: str | bytes, param: str) -> dict:
        """The content item of a video; a string is a URL."""
        data = self._open(source, "video", param)
        try:
            with _container(data) as container:
                if not container.streams.video:
                    raise _unreadable("video", data, param, "it has no video track")
                for stream in container.streams.video:  # one of them may be a cover
                    self._check_pixels(stream.width, stream.height, param)
                seconds = _video_seconds(container, self.limits.media_seconds, param)
        except (av.error.FFmpegError, OSError) as error:
            raise _unreadable("video", data, param, error.strerror or error) from error
        self._count_seconds("video", seconds, param)
        return {"type": "video", "video": data}

    def _open(self, source: str | bytes, kind: str, param: str) -> NamedBytes:
        """The file, under the name by which the client knows it: of its file, its URL, or its field."""
        self.items += 1
        if self.items > self.limits.media_items:
            raise ApiError(f"{param}: a request may hold {self.limits.media_items} media; send fewer", param)
        data = self.fetcher.read(source, param) if isinstance(source, str) else source
        data = data if isinstance(data, NamedBytes) else NamedBytes(data, param)
        if (found := file_kind(data)) not in ACCEPTED[kind]:
            article = "an" if found and found[0] in "aeiou" else "a"
            what = f"{article} {found} file" if found else "of an unknown kind" if data else "empty"
            remedy = f"; {HEADERLESS_REMEDY}" if data and kind == "audio" and found is None else ""
            raise _unreadable(kind, data, param, f"it is {what}{remedy}")
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


def _container(data: bytes) -> InputContainer:
    """A file opened by FFmpeg; tags of old files are in all kinds of encodings."""
    return av.open(io.BytesIO(data), container_options=CONTAINER_OPTIONS, metadata_errors="replace")


def _audio_seconds(container: InputContainer, limit: float, param: str) -> float:
    """Length of the audio track. It is decoded: headers may lack the length, be wrong, or be those of the first of
    several files in one."""
    samples, seconds = 0, 0.0
    for frame in _audio_frames(container):
        samples += frame.samples * frame.layout.nb_channels
        seconds += frame.samples / frame.sample_rate
        if seconds > limit or samples > limit * MAX_SAMPLES_A_SECOND:
            raise _too_long(seconds, limit, param)
    return seconds


def _audio_frames(container: InputContainer) -> Iterator[av.AudioFrame]:
    """Decoded frames; damaged packets are left out, as they are by the processor."""
    for packet in container.demux(played_track(container.streams.audio)):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue


def _video_seconds(container: InputContainer, limit: float, param: str) -> float:
    """Length of the longest video track, from its packets, which are not decoded."""
    most = int(limit * MAX_FRAMES_A_SECOND)
    end, count = 0.0, 0
    for packet in container.demux(*container.streams.video):
        count += packet.size > 0
        if count > most:
            raise ApiError(f"{param}: the video has more than {most} frames; shorten it", param)
        if packet.pts is not None:
            end = max(end, float((packet.pts - (packet.stream.start_time or 0)) * packet.time_base))
    return end


def _too_long(seconds: float, limit: float, param: str) -> ApiError:
    return ApiError(
        f"{param}: {seconds:.1f} s are more than the {limit:g} s of a request, or its rate and channels are more than "
        f"{MAX_SAMPLES_A_SECOND} samples a second; shorten or convert it",
        param,
    )


def _unreadable(kind: str, data: NamedBytes, param: str, reason: object) -> ApiError:
    what = f"this {kind}" if data.name == param else f"{kind} {shorten(data.name)}"
    accepted = ", ".join(ACCEPTED[kind])
    return ApiError(f"{param}: cannot read {what}: {reason}; accepted are {accepted}", param, code="invalid_media")


__all__ = ["MediaReader"]
