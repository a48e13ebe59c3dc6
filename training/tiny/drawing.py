"""Render scenes and clips as RGB images: anti-aliased, jittered, with mild noise, blur and brightness changes."""

import io
import math
from dataclasses import dataclass

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .scenes import COLOURS, POSITIONS, Clip, Scene

# Lengths are fractions of the shorter side, centres fractions of width and height. A large shape plus the jitter stays
# below half the distance of two centres (0.33 / 2), so shapes never touch each other nor the border.
RADIUS = {"small": (0.075, 0.095), "large": (0.13, 0.147)}
CENTRE = {"left": (0.17, 0.5), "right": (0.83, 0.5), "top": (0.5, 0.17), "bottom": (0.5, 0.83), "center": (0.5, 0.5)}
JITTER = 0.012
LONG_SIDE_JITTER = 0.04  # of the excess of the longer side over the shorter one, where there is room

SUPERSAMPLING = 4
OUTLINE_INNER = 0.68  # inner edge of an outlined shape, as a fraction of its radius
MAX_NOISE = 6.0  # standard deviation, grey levels
MAX_BLUR = 0.6  # pixels
STAR_INNER = 0.42  # inner radius of the star's corners
# Points on the unit circle's bounding box, y down.
POLYGONS = {
    "square": ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
    "triangle": ((0.0, -0.95), (0.98, 0.8), (-0.98, 0.8)),
    "star": tuple(
        (radius * math.sin(math.pi * corner / 5), -radius * math.cos(math.pi * corner / 5))
        for corner, radius in enumerate((1.0, STAR_INNER) * 5)
    ),
}


def render(
    scene: Scene, width: int, height: int, rng: np.random.Generator, outline: bool = False, clean: bool = False
) -> Image.Image:
    """Render a scene.

    Jitter is sampled for all five positions in a fixed order, whatever the scene holds. The same seed therefore puts
    the unchanged shapes of an edited scene at the same pixels.

    Args:
        scene: the content of the image.
        width, height: size in pixels.
        rng: source of jitter and noise.
        outline: draw outlines instead of filled shapes.
        clean: leave out noise, blur and brightness changes (for targets of image generation).
    """
    short = min(width, height)
    reach = np.array([_reach(width, short), _reach(height, short)])
    offsets = rng.uniform(-1.0, 1.0, (len(POSITIONS), 2)) * reach
    fractions = rng.random(len(POSITIONS))
    image = Image.new("RGB", (width, height), COLOURS[scene.background])
    for shape in scene.shapes:
        index = POSITIONS.index(shape.position)
        x, y = CENTRE[shape.position]
        low, high = RADIUS[shape.size]
        centre = (x * width + float(offsets[index, 0]), y * height + float(offsets[index, 1]))
        radius = (low + (high - low) * float(fractions[index])) * short
        draw_shape(image, shape.kind, shape.colour, centre, radius, outline)
    return image if clean else _photograph([image], rng)[0]


@dataclass(frozen=True)
class Course:
    """A clip with the course of its shape.

    Args:
        clip: the content of the video.
        radius: of the shape, as a share of the shorter side.
        xs, ys: float64 [T], the centre per frame, as shares of width and height.
    """

    clip: Clip
    radius: float
    xs: np.ndarray
    ys: np.ndarray


def sample_course(clip: Clip, rng: np.random.Generator) -> Course:
    """Sample where the shape of a clip is and how large it is."""
    radius = rng.uniform(*RADIUS[clip.size])
    return Course(clip, radius, *_path(clip, rng))


def render_clip(
    course: Course, width: int, height: int, rng: np.random.Generator, clean: bool = False
) -> list[Image.Image]:
    """Render a clip as `clip.num_frames` RGB frames; arguments as in `render`."""
    clip, radius = course.clip, course.radius * min(width, height)
    frames = []
    for x, y in zip(course.xs, course.ys, strict=True):
        image = Image.new("RGB", (width, height), COLOURS[clip.background])
        draw_shape(image, clip.kind, clip.colour, (float(x) * width, float(y) * height), radius, outline=False)
        frames.append(image)
    return frames if clean else _photograph(frames, rng)


def compress(frames: list[Image.Image], rate_factor: int) -> list[Image.Image]:
    """Frames after H.264 compression: colour at half resolution, blocks; an odd last row or column is cropped.

    Args:
        rate_factor: 0 (best) to 51.
    """
    width, height = (side // 2 * 2 for side in frames[0].size)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": str(rate_factor), "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = width, height, "yuv420p", 1
        for frame in frames:
            picture = av.VideoFrame.from_image(frame.crop((0, 0, width, height)))
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file, "r") as container:
        container.streams.video[0].thread_count = 1
        return [frame.to_image() for frame in container.decode(video=0)]


def _reach(side: int, short: int) -> float:
    """Largest offset of a centre along one side, in pixels."""
    return JITTER * short + LONG_SIDE_JITTER * (side - short)


def _path(clip: Clip, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the shape, [T] and [T], as fractions of width and height; a moving shape crosses >= 0.3 of a side."""
    start, end = rng.uniform(0.18, 0.35), rng.uniform(0.65, 0.82)
    across = np.full(clip.num_frames, rng.uniform(0.22, 0.78))
    if clip.motion == "still":
        return np.full(clip.num_frames, rng.uniform(0.22, 0.78)), across
    if clip.motion in ("left", "up"):
        start, end = end, start
    along = np.linspace(start, end, clip.num_frames)
    return (along, across) if clip.motion in ("left", "right") else (across, along)


def draw_shape(
    image: Image.Image, kind: str, colour: str, centre: tuple[float, float], radius: float, outline: bool
) -> None:
    """Draw one shape with soft edges into an image; for speed only the square of the shape is supersampled."""
    half = math.ceil(radius) + 2
    left, top = int(centre[0]) - half, int(centre[1]) - half
    x, y = (centre[0] - left) * SUPERSAMPLING, (centre[1] - top) * SUPERSAMPLING
    side = (2 * half + 1) * SUPERSAMPLING
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    for scale, fill in ((1.0, 255), (OUTLINE_INNER, 0))[: 2 if outline else 1]:
        extent = radius * SUPERSAMPLING * scale
        if kind == "circle":
            draw.ellipse((x - extent, y - extent, x + extent, y + extent), fill=fill)
        else:
            draw.polygon([(x + extent * px, y + extent * py) for px, py in POLYGONS[kind]], fill=fill)
    image.paste(COLOURS[colour], (left, top), mask.reduce(SUPERSAMPLING))


def _photograph(images: list[Image.Image], rng: np.random.Generator) -> list[Image.Image]:
    """Apply blur, brightness and noise; all images share the strengths, not the noise itself."""
    blur = rng.uniform(-MAX_BLUR, MAX_BLUR)  # half of the images stay sharp
    noise = max(0.0, rng.uniform(-MAX_NOISE / 2, MAX_NOISE))
    gain, offset = rng.uniform(0.9, 1.05), rng.uniform(-6.0, 6.0)
    result = []
    for image in images:
        if blur > 0:
            image = image.filter(ImageFilter.GaussianBlur(blur))
        pixels = np.asarray(image, dtype=np.float32) * np.float32(gain) + np.float32(offset)
        if noise > 0:
            pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(noise)
        result.append(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    return result
