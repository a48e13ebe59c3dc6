"""Reading of videos: which frames to take, their size, and their decoding.

Not transformers' `Qwen2VLVideoProcessor`: it resizes frames as tensors, while the released code gives each frame the
arithmetic of an image, bit by bit; the choice of frames differs, too.

Letters: T frames, H height, W width (pixels).
"""

import io
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image

from .media import (
    SIZE_FACTOR,
    describe,
    load_image,
    open_source,
    pixels_channels_last,
    require,
    resize_image,
    smart_resize,
    unreadable,
)

VIDEO_MIN_PIXELS = 128 * SIZE_FACTOR**2  # 100,352 a frame
VIDEO_MAX_PIXELS = 768 * SIZE_FACTOR**2  # 602,112 a frame
VIDEO_TOTAL_PIXELS = 9216 * SIZE_FACTOR**2  # 7,225,344 over all frame pairs
FRAME_FACTOR = 2  # frames that share one temporal patch
DEFAULT_MIN_FRAMES = 4
DEFAULT_MAX_FRAMES = 128
DENSE_SAMPLING_SECONDS = 5.0  # videos up to this length are sampled from all their frames
SPARSE_FRAMES_PER_SECOND = 2.0  # frame budget of longer videos
SAMPLE_MODES = ("uniform", "sequence", "random", "adaptive")
POSITIVE_OPTIONS = (
    "nframes",
    "fps",
    "min_frames",
    "max_frames",
    "min_pixels",
    "max_pixels",
    "total_pixels",
    "resized_height",
    "resized_width",
)
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class VideoOptions:
    """How frames of one video are chosen and resized.

    Attributes:
        sample: `"uniform"` (middle of equal intervals), `"sequence"` (evenly from first to last frame), `"random"`
            (one frame of each interval) or `"adaptive"` (as uniform).
        nframes: exact number of frames, rounded to an even one; not together with `fps`.
        fps: frames to take per second. Without it, videos of more than 5 s and 2 frames/s offer 2 frames per second,
            and all others every frame.
        min_frames, max_frames: limits of the number of frames.
        video_start, video_end: seconds; the part of the video to read.
        min_pixels, max_pixels: limits of a frame; `max_pixels` None follows from the next two.
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
    min_pixels: int = VIDEO_MIN_PIXELS
    max_pixels: int | None = None
    frame_max_pixels: int = VIDEO_MAX_PIXELS
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
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"video option {name}={value!r} must be above 0")
        if self.video_start is not None and self.video_end is not None and not self.video_start < self.video_end:
            raise ValueError(f"video_start={self.video_start} must come before video_end={self.video_end} (seconds)")

    @classmethod
    def names(cls) -> frozenset[str]:
        """Names of all options."""
        return frozenset(field.name for field in fields(cls))


def count_frames(total: int, rate: float, options: VideoOptions) -> int:
    """Number of frames to take of a video of `total` frames at `rate` frames a second; always even.

    Raises:
        ValueError: the video is shorter than `min_frames`, or the number asked for is not there.
    """
    if options.nframes is not None:
        budget, count = total, round(options.nframes / FRAME_FACTOR) * FRAME_FACTOR
    else:
        if options.fps is not None:
            budget = int(total / rate * options.fps)
        elif rate > SPARSE_FRAMES_PER_SECOND and total / rate > DENSE_SAMPLING_SECONDS:
            budget = int(total / rate * SPARSE_FRAMES_PER_SECOND)
        else:
            budget = total
        budget = min(budget, total)
        most = min(DEFAULT_MAX_FRAMES, budget) if options.max_frames is None else options.max_frames
        count = max(min(budget, most), options.min_frames) // FRAME_FACTOR * FRAME_FACTOR
    if not FRAME_FACTOR <= count <= budget:
        raise ValueError(
            f"a video of {total} frames at {rate:g} frames/s offers {budget} frames, but {count} are needed; lower "
            f"min_frames (now {options.min_frames}) or nframes, raise fps, or pass a single frame as an image"
        )
    return count


def select_frames(
    total: int, count: int, sample: str = "sequence", generator: torch.Generator | None = None
) -> list[int]:
    """Indices of `count` of `total` frames in ascending order; see `VideoOptions.sample` for the modes."""
    if sample == "sequence":
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
    max_pixels: float
    if options.max_pixels is not None:
        max_pixels = options.max_pixels
    else:
        budget = min(options.frame_max_pixels, options.total_pixels / count * FRAME_FACTOR)
        max_pixels = max(budget, int(options.min_pixels * 1.05))
    return smart_resize(height, width, min_pixels=options.min_pixels, max_pixels=max_pixels)


def resize_frames(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Antialiased bicubic resize of uint8 frames [T, 3, H, W] -> uint8 [T, 3, height, width]."""
    if tuple(frames.shape[-2:]) == (height, width):
        return frames
    resized = torch.nn.functional.interpolate(frames.float(), (height, width), mode="bicubic", antialias=True)
    return resized.clamp_(0, 255).round_().to(torch.uint8)


def _fit_frames(frames: torch.Tensor, count: int, options: VideoOptions) -> torch.Tensor:
    """uint8 frames [T, 3, H, W], some of `count` of a video, in the size that the options ask for."""
    height, width = frame_size(frames.shape[-2], frames.shape[-1], count, options)
    return resize_frames(frames, height, width)


def _probe_video(opened: str | io.BytesIO, source: Any) -> tuple[np.ndarray, float]:
    """Presentation times in seconds of all frames (read without decoding), and the frame rate."""
    av = require("av")
    try:
        with av.open(opened) as container:
            if not container.streams.video:
                raise unreadable("video", source, "no video track")
            stream = container.streams.video[0]
            packets = [p for p in container.demux(stream) if p.size]
            stamps = sorted((p.pts if p.pts is not None else p.dts or 0) * p.time_base for p in packets)
            rate = stream.average_rate or stream.guessed_rate
    except (av.error.FFmpegError, OSError) as error:
        raise unreadable("video", source, error) from error
    if not stamps:
        raise unreadable("video", source, "no frames")
    times = np.array([float(stamp - stamps[0]) for stamp in stamps])
    if not rate:
        rate = (len(times) - 1) / times[-1] if times[-1] > 0 else SPARSE_FRAMES_PER_SECOND
    return times, float(rate)


def _decoded(opened: str | io.BytesIO, source: Any, wanted: set[int]) -> Iterator[np.ndarray | None]:
    """One item for each frame of a video file: uint8 [H, W, 3], upright, or None for a frame that is not wanted."""
    av = require("av")
    if isinstance(opened, io.BytesIO):
        opened.seek(0)
    try:
        with av.open(opened) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for index, frame in enumerate(container.decode(stream)):
                yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) if index in wanted else None
    except (av.error.FFmpegError, OSError) as error:
        raise unreadable("video", source, error) from error


def _decode_frames(
    opened: str | io.BytesIO, source: Any, wanted: list[int], options: VideoOptions
) -> tuple[torch.Tensor | None, int]:
    """Decode the frames with the wanted indices -> (uint8 [T, 3, H, W] or None if there are fewer, frames seen)."""
    frames, seen, indices = {}, 0, set(wanted)
    for pixels in _decoded(opened, source, indices):
        if pixels is not None:
            tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
            frames[seen] = _fit_frames(tensor, len(wanted), options)
        seen += 1
        if len(frames) == len(indices):
            return torch.cat([frames[index] for index in wanted]), seen
    return None, seen


def _generator(options: VideoOptions) -> torch.Generator:
    if options.generator is not None:
        return options.generator
    return torch.Generator().manual_seed(secrets.randbits(62) if options.seed is None else options.seed)


def _choose_frames(times: np.ndarray, rate: float, options: VideoOptions, source: Any) -> list[int]:
    low = 0 if options.video_start is None else int(np.searchsorted(times, options.video_start))
    high = len(times) if options.video_end is None else int(np.searchsorted(times, options.video_end, side="right"))
    if low >= high:
        raise unreadable("video", source, f"no frames from {options.video_start} to {options.video_end} s")
    try:
        count = count_frames(high - low, rate, options)
    except ValueError as error:
        raise ValueError(f"video {describe(source)}: {error}") from error
    return [low + i for i in select_frames(high - low, count, options.sample, _generator(options))]


def _load_video_file(source: Any, options: VideoOptions) -> torch.Tensor:
    opened = open_source(source, "video")
    times, rate = _probe_video(opened, source)
    frames, seen = _decode_frames(opened, source, _choose_frames(times, rate, options, source), options)
    if frames is None:  # some packets of a container may decode to no frame
        if seen == 0:
            raise unreadable("video", source, "no frames")
        frames, _ = _decode_frames(opened, source, _choose_frames(times[:seen], rate, options, source), options)
    if frames is None:
        raise unreadable("video", source, "its frames cannot be decoded twice alike")
    return frames


def _fit_length(total: int, options: VideoOptions) -> list[int]:
    """Indices of frames without a rate: all, or as many as the options allow.

    An odd number becomes even by repeating the last one.
    """
    most = options.nframes if options.nframes is not None else options.max_frames
    chosen = list(range(total))
    if most is not None and total > most:
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
            limits = {"max_pixels": options.max_pixels} if options.max_pixels is not None else {}
            image = resize_image(
                image, resized_height=options.resized_height, resized_width=options.resized_width, **limits
            )
        size = size or image.size
        images.append(np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _natural_order(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def load_video(source: Any, options: VideoOptions | None = None) -> torch.Tensor:
    """Read the chosen frames of one video; returns uint8 [T, 3, H, W], T even.

    Args:
        source: a video or GIF file (path, URL, data URL, bytes), a list of frames (anything `load_image` takes), a
            directory of frames (read in the natural order of their names), or an array/tensor [T, C, H, W] or
            [T, H, W, C].
        options: which frames, and their size. Frames that are given one by one keep to the limits of images.

    Raises:
        ValueError: unreadable, without frames, shorter than `min_frames`, or thinner than 1:200.
    """
    options = options or VideoOptions()
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
