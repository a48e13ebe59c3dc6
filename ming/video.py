"""Reading of videos: which frames to take, their size, and their decoding.

Frames are chosen by time: a video whose rate varies is read as if it had the same number of frames at a constant rate.

Not transformers' `Qwen2VLVideoProcessor`: it resizes frames as tensors, while the released code gives each frame the
arithmetic of an image, bit by bit; the choice of frames differs, too.

Letters: T frames, H height, W width (pixels).
"""

import math
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from .argument_checks import InputError, in_words_of_request, raise_if_no_number
from .media import (
    ANIMATIONS,
    MAX_VIDEO_FRAMES,
    SIZE_FACTOR,
    decode_track,
    describe,
    file_kind,
    load_image,
    open_container,
    open_image,
    open_source,
    pixel_limits,
    pixels_channels_last,
    played_track,
    raise_if_half_a_size,
    raise_if_too_many_pixels,
    raise_if_undecodable,
    require,
    resize_image,
    smart_resize,
    stated_seconds,
    unreadable,
    warn_about_end,
)

logger = logging.get_logger(__name__)

VIDEO_MIN_PIXELS = 128 * SIZE_FACTOR**2  # 100,352 a frame
VIDEO_MAX_PIXELS = 768 * SIZE_FACTOR**2  # 602,112 a frame
VIDEO_TOTAL_PIXELS = 9216 * SIZE_FACTOR**2  # 7,225,344 over all frame pairs
FRAME_FACTOR = 2  # frames that share one temporal patch
DEFAULT_MIN_FRAMES = 4
DEFAULT_MAX_FRAMES = 128
DENSE_SAMPLING_SECONDS = 5.0  # videos up to this length are sampled from all their frames
SPARSE_FRAMES_PER_SECOND = 2.0  # frame budget of longer videos
SAMPLE_MODES = ("uniform", "sequence", "random", "adaptive", "all")
MAX_CHOSEN_FRAMES = 2048  # of one video; more than any context of the model holds
MAX_PIXEL_ASPECT = 8  # of a stored pixel; films and broadcasts keep below 3
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
CHUNK_FRAMES = 16  # that a decoder of torchcodec gives at once
WHOLE_OPTIONS = ("nframes", "min_frames", "max_frames", "resized_height", "resized_width")
POSITIVE_OPTIONS = (*WHOLE_OPTIONS, "fps", "min_pixels", "max_pixels", "frame_max_pixels", "total_pixels")
UNLIMITED_OPTIONS = ("frame_max_pixels", "total_pixels")  # may be infinite
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class VideoOptions:
    """How frames of one video are chosen and resized.

    Attributes:
        sample: `"uniform"` (middle of equal intervals), `"sequence"` (evenly from first to last frame), `"random"`
            (one frame of each interval), `"adaptive"` (as uniform) or `"all"` (every frame, whatever else is set).
        nframes: exact number of frames, rounded to an even one; not together with `fps`.
        fps: frames to take per second. Without it, videos of more than 5 s and 2 frames/s offer 2 frames per second,
            and all others every frame.
        min_frames, max_frames: limits of the number of frames.
        video_start, video_end: seconds; the part of the video to read.
        min_pixels, max_pixels: limits of a frame; `max_pixels` None follows from the next two, `min_pixels` None is
            100,352, or `max_pixels` where that is smaller.
        frame_max_pixels, total_pixels: limit of a frame, and of all frame pairs together (infinite for none), where
            `max_pixels` is None.
        resized_height, resized_width: wanted frame size in pixels instead of the limits.
        resize: False leaves frames at their own size.
        seed, generator: source of randomness of `"random"`.
    """

    sample: str = "sequence"
    nframes: int | None = None
    fps: float | None = None
    min_frames: int = DEFAULT_MIN_FRAMES
    max_frames: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    min_pixels: float | None = None
    max_pixels: float | None = None
    frame_max_pixels: float = VIDEO_MAX_PIXELS
    total_pixels: float = VIDEO_TOTAL_PIXELS
    resized_height: int | None = None
    resized_width: int | None = None
    resize: bool = True
    seed: int | None = None
    generator: torch.Generator | None = None

    def __post_init__(self):
        if self.sample not in SAMPLE_MODES:
            raise ValueError(f"video option sample={self.sample!r} is unknown; accepted are {', '.join(SAMPLE_MODES)}")
        if self.nframes is not None and self.fps is not None:
            raise ValueError(f"give nframes={self.nframes} or fps={self.fps} for a video, not both")
        for name in POSITIVE_OPTIONS:
            self._raise_if_not_positive(name, getattr(self, name))
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"video option min_pixels={self.min_pixels} is above max_pixels={self.max_pixels}")
        raise_if_half_a_size(self.resized_height, self.resized_width)
        for name in ("video_start", "video_end"):
            if getattr(self, name) is not None:
                raise_if_no_number(f"video option {name}", getattr(self, name))
        if self.video_start is not None and self.video_end is not None and not self.video_start < self.video_end:
            raise ValueError(f"video_start={self.video_start} must come before video_end={self.video_end} (seconds)")
        if self.seed is not None:
            raise_if_no_number("video option seed", self.seed, whole=True, at_least=0)

    def _raise_if_not_positive(self, name: str, value: Any) -> None:
        if value is None or (name in UNLIMITED_OPTIONS and value == math.inf):
            return
        raise_if_no_number(f"video option {name}", value, whole=name in WHOLE_OPTIONS)
        if not value > 0:
            raise ValueError(f"video option {name}={value!r} must be above 0")

    @classmethod
    def names(cls) -> frozenset[str]:
        """Names of all options."""
        return frozenset(field.name for field in fields(cls))


def count_frames(total: int, rate: float, options: VideoOptions) -> int:
    """Number of frames to take of a video of `total` frames at `rate` frames a second; always even.

    Raises:
        ValueError: the video is shorter than `min_frames`, or the number asked for is not there.
    """
    if options.sample == "all":
        budget, count = total, total // FRAME_FACTOR * FRAME_FACTOR
    elif options.nframes is not None:
        budget, count = total, round(options.nframes / FRAME_FACTOR) * FRAME_FACTOR
    else:
        if options.fps is not None:
            budget = int(min(total / rate * options.fps, total))
        elif rate > SPARSE_FRAMES_PER_SECOND and total / rate > DENSE_SAMPLING_SECONDS:
            budget = int(total / rate * SPARSE_FRAMES_PER_SECOND)
        else:
            budget = total
        budget = min(budget, total)
        most = min(DEFAULT_MAX_FRAMES, budget) if options.max_frames is None else options.max_frames
        count = max(min(budget, most), options.min_frames) // FRAME_FACTOR * FRAME_FACTOR
    if not FRAME_FACTOR <= count <= budget:
        what = f"a video of {total} frames at {rate:g} frames/s offers {budget} frames, but {count} are needed; "
        raise InputError(
            f"{what}lower min_frames (now {options.min_frames}) or nframes, raise fps, or pass a single frame as an "
            "image",
            f"{what}send a longer one, or a single frame as an image",
        )
    if count > MAX_CHOSEN_FRAMES:
        raise ValueError(f"{count} frames are more than {MAX_CHOSEN_FRAMES}; lower max_frames, nframes or fps")
    return count


def select_frames(
    total: int, count: int, sample: str = "sequence", generator: torch.Generator | None = None
) -> list[int]:
    """Indices of `count` of `total` frames in ascending order; see `VideoOptions.sample` for the modes."""
    if sample in ("sequence", "all"):
        return torch.linspace(0, total - 1, count).long().tolist()
    edges = np.linspace(0, total, count + 1).astype(int)
    if sample != "random":
        return ((edges[:-1] + edges[1:] - 1) // 2).tolist()
    if min(edges[1:] - edges[:-1]) < 2:
        return sorted(torch.randperm(total, generator=generator)[:count].tolist())
    offsets = torch.rand(count, generator=generator).numpy() * (edges[1:] - edges[:-1] - 1)
    return (edges[:-1] + offsets.astype(int)).tolist()


def frame_size(height: int, width: int, count: int, options: VideoOptions) -> tuple[int, int]:
    """Size (height, width) in pixels of the `count` chosen frames of a video of `height` x `width` pixels."""
    if not options.resize:
        return height, width
    if options.resized_height is not None and options.resized_width is not None:
        return smart_resize(options.resized_height, options.resized_width)
    min_pixels, max_pixels = pixel_limits(options.min_pixels, options.max_pixels, VIDEO_MIN_PIXELS, math.inf)
    if options.max_pixels is None:
        budget = min(options.frame_max_pixels, options.total_pixels / count * FRAME_FACTOR)
        max_pixels = max(budget, int(min_pixels * 1.05))
    return smart_resize(height, width, min_pixels=min_pixels, max_pixels=max_pixels)


def resize_frames(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Antialiased bicubic resize of uint8 frames [T, 3, H, W] -> uint8 [T, 3, height, width]."""
    if tuple(frames.shape[-2:]) == (height, width):
        return frames
    resized = torch.nn.functional.interpolate(frames.float(), (height, width), mode="bicubic", antialias=True)
    return resized.clamp_(0, 255).round_().to(torch.uint8)


def _fit_frames(
    frames: torch.Tensor, count: int, options: VideoOptions, shown_width: int | None = None
) -> torch.Tensor:
    """uint8 frames [T, 3, H, W], some of `count` of a video, in the size that the options ask for."""
    height, width = frame_size(frames.shape[-2], shown_width or frames.shape[-1], count, options)
    return resize_frames(frames, height, width)


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown.

    Attributes:
        times: float [N], seconds, ascending; `shown` [N] is the frame that is shown then. Of N frames at a constant
            rate, each is shown once; at a varying rate, the times are those of a constant one.
        rate: frames per second.
    """

    times: np.ndarray
    shown: np.ndarray
    rate: float

    @classmethod
    def of(cls, stamps: list[float], end: float, rate: float | None) -> "Timeline":
        """The timeline of N frames.

        Args:
            stamps: seconds, in any order, at which the frames begin.
            end: seconds, of the end of the last frame.
            rate: frames per second as the file states them.
        """
        times = np.sort(np.array(stamps, dtype=np.float64))
        times, end, count = times - times[0], end - times.min(), len(times)
        if times[-1] <= 0:  # no times, or a single frame
            rate = rate or SPARSE_FRAMES_PER_SECOND
            return cls(np.arange(count) / rate, np.arange(count), rate)
        step = times[-1] / (count - 1)
        even = np.abs(times - step * np.arange(count)).max() <= step / 2
        if even and end - times[-1] <= 2 * step:
            is_stated = rate is not None and 0.9 < rate * step < 1.1
            return cls(times, np.arange(count), rate if rate is not None and is_stated else 1 / step)
        step = max(end, times[-1] + np.diff(times).min()) / count
        moments = step * np.arange(count)
        shown = np.asarray(np.searchsorted(times, moments + step * 1e-6, side="right")) - 1
        return cls(moments, shown, 1 / step)


def _video_track(container: Any, source: Any) -> Any:
    """The track of a container that is its video, not a cover image."""
    track = played_track(container.streams.video)
    if track is None:
        hint = "; it holds audio, pass it as such" if container.streams.audio else ""
        raise unreadable("video", source, f"no video track{hint}")
    raise_if_undecodable(track, source, "video")
    return track


def _probe_video(file: BinaryIO, source: Any) -> Timeline:
    """The timeline of a video file, read without decoding it."""
    stamps, end = [], 0.0
    with open_container(file, source, "video") as container:
        stream = _video_track(container, source)
        raise_if_too_many_pixels("video", source, stream.codec_context.width, stream.codec_context.height)
        for packet in packets(container, stream, source):
            stamp = packet.pts if packet.pts is not None else packet.dts or 0
            stamps.append(float(stamp * packet.time_base))
            end = max(end, stamps[-1] + float((packet.duration or 0) * packet.time_base))
            if len(stamps) > MAX_VIDEO_FRAMES:
                raise unreadable("video", source, f"more than {MAX_VIDEO_FRAMES:,} frames; cut it")
        rate = stream.average_rate or stream.guessed_rate
        if stamps:
            warn_about_end(file, stated_seconds(container, stream), end - min(stamps), source, "video")
    if not stamps:
        raise unreadable("video", source, "no frames")
    return Timeline.of(stamps, end, float(rate) if rate else None)


def packets(container: Any, stream: Any, source: Any) -> Iterator[Any]:
    """The packets of a track up to the end of the file, also where that is within a packet."""
    av = require("av")
    try:
        yield from (packet for packet in container.demux(stream) if packet.size)
    except av.error.FFmpegError as error:
        logger.warning(f"video {describe(source)} ends within a packet: {error.strerror or error}")


def _upright(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """Turn and mirror [H, W, C] as the display matrix of its frame says, by multiples of 90 degrees."""
    found = [bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    if not found:
        return pixels
    # (x, y) is shown at (a x + c y, b x + d y); the matrix is stored as a, b, u, c, d, v, x, y, w.
    a, b, _, c, d = np.frombuffer(found[0], np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _pixel_aspect(aspect: Fraction | None, source: Any) -> Fraction:
    """Width of a stored pixel by its height as it is to be shown, from what a file states; 1 if that is no use."""
    if aspect is None or aspect <= 0:
        return Fraction(1)
    if not 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT:
        logger.warning(
            f"video {describe(source)} says that its pixels are shown {aspect.numerator}:{aspect.denominator} (width "
            f"to height); beyond 1:{MAX_PIXEL_ASPECT} that is ignored, and its frames may look squeezed"
        )
        return Fraction(1)
    return Fraction(aspect)


def _shown_width(width: int, height: int, aspect: Fraction, source: Any) -> int:
    """Width in pixels at which players show a stored frame; its height stays."""
    shown = max(1, round(width * aspect))
    raise_if_too_many_pixels("video", source, max(width, shown), height)
    return shown


def _pixels(frame: Any, width: int) -> np.ndarray:
    """A decoded frame -> uint8 [H, W, 3], stretched to `width`, upright and on white."""
    has_alpha = any(component.is_alpha for component in frame.format.components)
    stretched = {} if width == frame.width else {"width": width, "interpolation": "BICUBIC"}
    pixels = frame.to_ndarray(format="rgba" if has_alpha else "rgb24", **stretched)
    return pixels_channels_last(_upright(pixels, frame), "video")


def _alpha_decoder(stream: Any, source: Any) -> Any:
    """The decoder of a WebM track with transparency; None for all others.

    FFmpeg's own decoders of VP8 and VP9 leave transparency out; libvpx reads it from beside the packets.
    """
    name = ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name)
    tags = {key.lower(): value for key, value in stream.metadata.items()}  # writers spell them in both cases
    if name is None or tags.get("alpha_mode") != "1":
        return None
    av = require("av")
    try:
        return av.CodecContext.create(name, "r")
    except av.codec.codec.UnknownCodecError:
        logger.warning(
            f"video {describe(source)} has transparency, which needs the decoder {name}; this build of PyAV lacks it, "
            "so that what is transparent is seen in colours of any kind. Save it as an animated webp or png instead"
        )
        return None


def _decode_frames(
    file: BinaryIO, source: Any, wanted: list[int], options: VideoOptions
) -> tuple[torch.Tensor | None, Timeline | None]:
    """Decode frames by their indices -> uint8 [T, 3, H, W]; if there are fewer, the timeline of those instead."""
    frames: dict[int, torch.Tensor] = {}
    size, stamps, indices = None, [], set(wanted)
    with open_container(file, source, "video") as container:
        stream = _video_track(container, source)
        stream.thread_type = "AUTO"
        aspect = _pixel_aspect(stream.sample_aspect_ratio, source)
        decoder = _alpha_decoder(stream, source)
        for index, frame in enumerate(decode_track(container, stream, source, "video", decoder)):
            stamps.append(frame.time if frame.time is not None else 0.0)
            if index in indices:
                pixels = _pixels(frame, _shown_width(frame.width, frame.height, aspect, source))
                tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
                size = size or frame_size(tensor.shape[-2], tensor.shape[-1], len(wanted), options)
                frames[index] = resize_frames(tensor, *size)
            if len(frames) == len(indices):
                return torch.cat([frames[index] for index in wanted]), None
        rate = stream.average_rate or stream.guessed_rate
    return None, Timeline.of(stamps, 0.0, float(rate) if rate else None) if stamps else None


def _generator(options: VideoOptions) -> torch.Generator:
    if options.generator is not None:
        return options.generator
    return torch.Generator().manual_seed(secrets.randbits(62) if options.seed is None else int(options.seed))


def _choose_frames(timeline: Timeline, options: VideoOptions, source: Any) -> list[int]:
    """Indices of the frames to take; one may be shown, and taken, more than once."""
    times = timeline.times
    low = 0 if options.video_start is None else int(np.searchsorted(times, options.video_start))
    high = len(times) if options.video_end is None else int(np.searchsorted(times, options.video_end, side="right"))
    if low >= high:
        raise unreadable("video", source, f"no frames from {options.video_start} to {options.video_end} s")
    try:
        count = count_frames(high - low, timeline.rate, options)
    except ValueError as error:
        name = f"video {describe(source)}"
        raise InputError(f"{name}: {error}", f"{name}: {in_words_of_request(error)}") from error
    chosen = select_frames(high - low, count, options.sample, _generator(options))
    return timeline.shown[low:high][chosen].tolist()


def _load_video_file(source: Any, options: VideoOptions) -> torch.Tensor:
    with open_source(source, "video") as file:
        kind = file_kind(file.read(64))
        file.seek(0)
        if kind in ANIMATIONS:
            return _load_animation(file, source, options)
        timeline: Timeline | None = _probe_video(file, source)
        for _ in range(2):  # some packets of a container may decode to no frame: the second time, frames are known
            if timeline is None:
                raise unreadable("video", source, "no frames")
            frames, timeline = _decode_frames(file, source, _choose_frames(timeline, options, source), options)
            if frames is not None:
                return frames
    raise unreadable("video", source, "its frames cannot be decoded twice alike")


def _load_animation(file: BinaryIO, source: Any, options: VideoOptions) -> torch.Tensor:
    """The chosen frames of an animated image, which FFmpeg does not read."""
    with open_image(file, source, "video") as image:
        count = getattr(image, "n_frames", 1)
        if count < FRAME_FACTOR:
            raise unreadable("video", source, f"it is a still {image.format} image; pass it as an image")
        if count > MAX_VIDEO_FRAMES:
            raise unreadable("video", source, f"more than {MAX_VIDEO_FRAMES:,} frames; cut it")
        ends = np.cumsum([milliseconds(image, index) for index in range(count)]) / 1000
        timeline = Timeline.of([0.0, *ends[:-1].tolist()], float(ends[-1]), None)
        chosen, frames = _choose_frames(timeline, options, source), {}
        for index in dict.fromkeys(chosen):
            image.seek(index)
            pixels = np.ascontiguousarray(np.asarray(load_image(image.copy())).transpose(2, 0, 1))
            frames[index] = _fit_frames(torch.from_numpy(pixels)[None], len(chosen), options)
        return torch.cat([frames[index] for index in chosen])


def milliseconds(image: Image.Image, index: int) -> float:
    """How long a frame of an animated image is shown."""
    image.seek(index)
    image.load()  # WebP knows it then
    return float(image.info.get("duration") or 0.0)


def _load_decoder(source: Any, options: VideoOptions) -> torch.Tensor:
    """The chosen frames of a `VideoDecoder` of torchcodec, as `datasets` has it."""
    rate, count = float(source.metadata.average_fps), len(source)
    chosen = _choose_frames(Timeline(np.arange(count) / rate, np.arange(count), rate), options, source)
    aspect = _pixel_aspect(getattr(source.metadata, "pixel_aspect_ratio", None), source)
    parts = []
    for start in range(0, len(chosen), CHUNK_FRAMES):
        frames = pixels_channels_last(source.get_frames_at(chosen[start : start + CHUNK_FRAMES]).data, "video")
        frames = torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, 1)))
        width = _shown_width(frames.shape[-1], frames.shape[-2], aspect, source)
        parts.append(_fit_frames(frames, len(chosen), options, width))
    return torch.cat(parts)


def _fit_length(total: int, options: VideoOptions) -> list[int]:
    """Indices of frames without a rate: all, or as many as the options allow.

    An odd number becomes even by repeating the last one.
    """
    most = options.nframes if options.nframes is not None else options.max_frames
    most = MAX_CHOSEN_FRAMES if most is None or options.sample == "all" else min(most, MAX_CHOSEN_FRAMES)
    if options.sample == "all" and total > most:
        raise ValueError(f"{total} frames are more than {most}; leave some out")
    chosen = list(range(total))
    if total > most:
        sample = "uniform" if options.sample == "sequence" else options.sample
        chosen = select_frames(total, most, sample, _generator(options))
    return chosen + chosen[-1:] * (len(chosen) % FRAME_FACTOR)


def _load_frame_list(sources: list, options: VideoOptions) -> torch.Tensor:
    if not sources:
        raise unreadable("video", sources, "no frames")
    images, size = [], None
    for index in _fit_length(len(sources), options):
        image = load_image(sources[index])
        if options.resize:
            image = resize_image(
                image,
                max_pixels=options.max_pixels,
                resized_height=options.resized_height,
                resized_width=options.resized_width,
            )
        size = size or image.size
        images.append(np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _natural_order(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def load_video(source: Any, options: VideoOptions | None = None) -> torch.Tensor:
    """Read the chosen frames of one video; returns uint8 [T, 3, H, W], T even.

    Args:
        source: a video or animated image (path, URL, data URL, bytes, dict with `bytes` or `path`), a list of frames
            (anything `load_image` takes), a directory of frames (read in the natural order of their names), an
            array/tensor [T, C, H, W] or [T, H, W, C], or a `VideoDecoder` of torchcodec, as `datasets` has it.
        options: which frames, and their size. Frames that are given one by one keep to the limits of images.

    Raises:
        ValueError: unreadable, without frames, shorter than `min_frames`, thinner than 1:200, or beyond the limits of
            `media` on frames and their pixels.
    """
    options = options or VideoOptions()
    if hasattr(source, "get_frames_at"):
        return _load_decoder(source, options)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        if source.ndim != 4 or 0 in source.shape:
            raise unreadable("video", source, "not four dimensions with frames in them")
        frames = np.ascontiguousarray(np.moveaxis(pixels_channels_last(source, "video"), -1, 1))
        frames = torch.from_numpy(frames)[_fit_length(len(frames), options)]
        return _fit_frames(frames, len(frames), options)
    if isinstance(source, (list, tuple)):
        return _load_frame_list(list(source), options)
    if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
        names = [name for name in os.listdir(source) if name.lower().endswith(IMAGE_EXTENSIONS) and name[0] != "."]
        if not names:
            raise unreadable("video", source, f"no frames ({', '.join(IMAGE_EXTENSIONS)}) in the directory")
        return _load_frame_list([os.path.join(source, name) for name in sorted(names, key=_natural_order)], options)
    return _load_video_file(source, options)


def is_video(value: Any) -> bool:
    """Whether a value is one video (a file, a 4-D array, a list of frames) rather than a list of them."""
    if not isinstance(value, (list, tuple)):
        return True
    return bool(value) and all(
        part.lower().endswith(IMAGE_EXTENSIONS) and not part.lower().endswith(".gif")
        if isinstance(part, str)
        else isinstance(part, Image.Image) or getattr(part, "ndim", 0) in (2, 3)
        for part in value
    )
