"""Images, audio and videos of a request, checked before they are decoded: kind of file, pixels, seconds.

What the library reads from a file is read here, by the same decoders. Playlists and scripts are refused by their first
bytes, before a decoder sees them, since decoders would follow them to other files and addresses.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager

from av.container import InputContainer

from ming.media import (
    ANIMATIONS,
    NamedBytes,
    decode_track,
    file_kind,
    open_container,
    open_image,
    played_track,
    raise_if_undecodable,
    unreadable,
)
from ming.serving.errors import ApiError, shorten
from ming.serving.fetch import Fetcher, decode_field
from ming.serving.settings import Limits
from ming.video import milliseconds, packets

MAX_SAMPLES_A_SECOND = 192_000  # of all channels: two at 96 kHz
MAX_FRAMES_A_SECOND = 120
LOW_DETAIL_PIXELS = 512 * 512  # OpenAI's size of detail="low"

CONTAINERS = (
    *("wav", "flac", "ogg", "mp3", "mp4", "webm", "aac", "aiff", "asf", "avi", "mpeg", "flv"),
    *("caf", "au", "w64", "wavpack", "ac3", "amr", "ape", "tta"),
)
# Kinds that are opened; a file of an unknown kind is opened, too, since many begin with nothing that tells it.
OPENED = {
    "image": ("png", "jpeg", "webp", "gif", "avif", "tiff", "bmp", "jp2"),
    "audio": CONTAINERS,
    "video": (*CONTAINERS, *ANIMATIONS, "gif"),
}
ACCEPTED = {
    "image": "png, jpeg, webp, gif, avif, tiff and bmp",
    "audio": "wav, mp3, flac, ogg, aac, aiff, wma, and the sound of mp4 and webm",
    "video": "mp4, webm, mov, mkv, avi, mpeg, gif, and animated webp, png and avif",
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
        with _reading("image", data, param), open_image(io.BytesIO(data), data) as image:
            width, height = image.size
        self._check_pixels(width, height, param)
        size = {"max_pixels": LOW_DETAIL_PIXELS} if detail == "low" else {}
        return {"type": "image", "image": data, **size}

    def audio(self, source: str | bytes, param: str) -> dict:
        """The content item of a recording; a string is a URL."""
        data = self._open(source, "audio", param)
        with _reading("audio", data, param), open_container(io.BytesIO(data), data, "audio") as container:
            if not container.streams.audio:
                raise unreadable("audio", data, "it has no audio track")
            seconds = _audio_seconds(container, data, self.limits.media_seconds, param)
            if not seconds:
                raise unreadable("audio", data, "it holds no samples")
        self._count_seconds("audio", seconds, param)
        return {"type": "audio", "audio": data}

    def audio_base64(self, text: str, param: str) -> dict:
        """The content item of a recording in base64, plain or as a data URL."""
        return self.audio(decode_field(text, param), param)

    def video(self, source: str | bytes, param: str) -> dict:
        """The content item of a video; a string is a URL."""
        data = self._open(source, "video", param)
        measure = self._animation_seconds if file_kind(data) in ANIMATIONS else self._video_seconds
        with _reading("video", data, param):
            seconds = measure(data, param)
        self._count_seconds("video", seconds, param)
        return {"type": "video", "video": data}

    def _video_seconds(self, data: NamedBytes, param: str) -> float:
        """Length of the longest video track of a container, from its packets, which are not decoded."""
        with open_container(io.BytesIO(data), data, "video") as container:
            if not container.streams.video:
                raise unreadable("video", data, "it has no video track")
            for stream in container.streams.video:  # one of them may be a cover
                raise_if_undecodable(stream, data, "video")
                self._check_pixels(stream.width, stream.height, param)
            end = 0.0
            for count, packet in enumerate(packets(container, container.streams.video, data), 1):
                self._check_frames(count, param)
                if packet.pts is not None:
                    end = max(end, float((packet.pts - (packet.stream.start_time or 0)) * packet.time_base))
        return end

    def _animation_seconds(self, data: NamedBytes, param: str) -> float:
        """Length of an animated image, whose frames are decoded one by one."""
        with open_image(io.BytesIO(data), data, "video") as image:
            (width, height), count = image.size, getattr(image, "n_frames", 1)
        self._check_pixels(width, height, param)
        self._check_frames(count, param)
        with open_image(io.BytesIO(data), data, "video") as image:
            return sum(milliseconds(image, index) for index in range(count)) / 1000

    def _open(self, source: str | bytes, kind: str, param: str) -> NamedBytes:
        """The file, under the name by which the client knows it: of its file, its URL, or its field."""
        self.items += 1
        if self.items > self.limits.media_items:
            raise ApiError(f"{param}: a request may hold {self.limits.media_items} media; send fewer", param)
        data = self.fetcher.read(source, param) if isinstance(source, str) else source
        data = data if isinstance(data, NamedBytes) else NamedBytes(data, param)
        found = file_kind(data)
        if not data or (found is not None and found not in OPENED[kind]):
            article = "an" if found and found[0] in "aeiou" else "a"
            raise _unreadable(kind, data, param, f"it is {article} {found} file" if found else "it is empty")
        return data

    def _check_pixels(self, width: int, height: int, param: str) -> None:
        if width * height > self.limits.image_pixels:
            raise ApiError(
                f"{param}: {width} x {height} pixels are more than {self.limits.image_pixels}; make it smaller", param
            )

    def _check_frames(self, count: int, param: str) -> None:
        most = int(self.limits.media_seconds * MAX_FRAMES_A_SECOND)
        if count > most:
            raise ApiError(f"{param}: the video has more than {most} frames; shorten it", param)

    def _count_seconds(self, kind: str, seconds: float, param: str) -> None:
        self.seconds[kind] += seconds
        if self.seconds[kind] > self.limits.media_seconds:
            raise _too_long(self.seconds[kind], self.limits.media_seconds, param)


@contextmanager
def _reading(kind: str, data: NamedBytes, param: str) -> Iterator[None]:
    """Errors of the library in the block become errors of the request."""
    try:
        yield
    except ValueError as error:
        is_named = file_kind(data) is not None
        reason = getattr(error, "reason", error)
        raise _unreadable(kind, data, param, reason if is_named else f"it is of an unknown kind: {reason}") from error


def _audio_seconds(container: InputContainer, data: NamedBytes, limit: float, param: str) -> float:
    """Length of the audio track. It is decoded: headers may lack the length, be wrong, or be those of the first of
    several files in one."""
    stream = played_track(container.streams.audio)
    raise_if_undecodable(stream, data, "audio")
    samples, seconds = 0, 0.0
    for frame in decode_track(container, stream, data, "audio"):
        samples += frame.samples * frame.layout.nb_channels
        seconds += frame.samples / frame.sample_rate
        if seconds > limit or samples > limit * MAX_SAMPLES_A_SECOND:
            raise _too_long(seconds, limit, param)
    return seconds


def _too_long(seconds: float, limit: float, param: str) -> ApiError:
    return ApiError(
        f"{param}: {seconds:.1f} s are more than the {limit:g} s of a request, or its rate and channels are more than "
        f"{MAX_SAMPLES_A_SECOND} samples a second; shorten or convert it",
        param,
    )


def _unreadable(kind: str, data: NamedBytes, param: str, reason: object) -> ApiError:
    what = f"this {kind}" if data.name == param else f"{kind} {shorten(data.name)}"
    accepted = f"accepted are {ACCEPTED[kind]}"
    return ApiError(f"{param}: cannot read {what}: {reason}; {accepted}", param, code="invalid_media")


__all__ = ["MediaReader"]
