"""Measure how Ming-Tiny draws: `python -m training.tiny.evaluate_drawing`, five rows of the table.

Requests for images of the test split (combinations of attributes that training never shows) go through the public
call, one image each. An image is right when the judge, which is code without a network, reads exactly the requested
scene from its pixels: every named attribute, and nothing else in the image.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from ming.files import replacing
from ming.training.chats import prompt_batch

from .evaluate import Result, load, measuring_parser, parse, report
from .judge import read_picture, shows
from .speech import LiveSpeaker, SpeechPool
from .world import Picture, Sample, sample_chat

# Row of the world -> title and bar.
ROWS = {
    "drawing": ("drawing: every attribute right", 92),
    "editing": ("editing a picture: changed as asked, nothing else", 88),
    "style": ("style: outlines", 90),
    "edits": ("drawing, then editing in words", 88),
    "spoken_drawing": ("drawing, asked for aloud", 88),
    "scene_editing": ("editing a picture of two or three shapes", 80),
    "redrawing": ("another drawing in the same chat", 80),
}
CELL, MARGIN, LINE = 144, 8, 14  # pixels of a contact sheet
PER_ROW = 6
WRAP = 26  # letters per line of a caption


@dataclass(frozen=True)
class Drawn:
    """A request, the image drawn for it, and whether that is right."""

    sample: Sample
    image: Image.Image
    right: bool

    @property
    def wanted(self) -> Picture:
        """What the image must show."""
        return last_picture(self.sample)


def last_picture(sample: Sample) -> Picture:
    """What the image of the last turn must show.

    Raises:
        ValueError: the chat asks for no image.
    """
    picture = sample.pictures[-1] if sample.pictures else None
    if picture is None:
        raise ValueError(f"a chat of the row {sample.row!r} asks for no image; use one of {', '.join(ROWS)}")
    return picture


def draw_row(row: str, model, processor, speaker, samples: int, seed: int, batch_size: int) -> list[Drawn]:
    """Draw what the samples of a row ask for."""
    drawn: list[Drawn] = []
    for start in tqdm(range(0, samples, batch_size), desc=row, leave=False):
        numbers = range(start, min(start + batch_size, samples))
        rngs = [np.random.default_rng((seed, list(ROWS).index(row), number)) for number in numbers]
        batch = [sample_chat(row, rng, "test", speaker) for rng in rngs]
        inputs = prompt_batch(processor, [sample.messages[:-1] for sample in batch])
        inputs = inputs.to(model.device, model.dtype)
        side = model.image_gen.config.native_side  # the judge reads squares, whatever shape the given image has
        options = {"height": side, "width": side, "seed": [seed + number for number in numbers]}
        images = model.generate(**inputs, generation_mode="image", **options).images
        drawn += [
            Drawn(sample, image, shows(image, *last_picture(sample)))
            for sample, image in zip(batch, images, strict=True)
        ]
    return drawn


def contact_sheet(drawn: list[Drawn]) -> Image.Image:
    """Requests and images as one image, `PER_ROW` in a row; an input image stands above the image made from it."""
    rows = [drawn[start : start + PER_ROW] for start in range(0, len(drawn), PER_ROW)]
    above = [CELL + MARGIN if any(map(_given, row)) else 0 for row in rows]
    below = 5 * LINE + CELL + 2 * MARGIN
    sheet = Image.new("RGB", (PER_ROW * (CELL + MARGIN) + MARGIN, sum(above) + len(rows) * below), "white")
    pen, y = ImageDraw.Draw(sheet), MARGIN
    for row, space in zip(rows, above, strict=True):
        for column, item in enumerate(row):
            x = MARGIN + column * (CELL + MARGIN)
            for given in _given(item)[:1]:
                sheet.paste(given.resize((CELL, CELL)), (x, y))
            pen.multiline_text((x, y + space), _caption(item.sample), fill="black", spacing=2)
            sheet.paste(item.image.resize((CELL, CELL)), (x, y + space + 5 * LINE))
        y += space + below
    return sheet


def _given(item: Drawn) -> list[Image.Image]:
    """Images that came with the request."""
    return [content["image"] for content in item.sample.media if content["type"] == "image"]


def _caption(sample: Sample) -> str:
    """The user's words, broken into lines."""
    labels, texts = iter(sample.labels), []
    for item in (item for message in sample.messages if message["role"] == "user" for item in message["content"]):
        label = None if item["type"] == "text" else next(labels)
        if item["type"] in ("text", "audio"):
            texts.append(f"[spoken: {label}]" if label else item["text"])
    lines = [""]
    for word in " / ".join(texts).split():
        if len(lines[-1]) + len(word) < WRAP:
            lines[-1] = f"{lines[-1]} {word}".strip()
        else:
            lines.append(word)
    return "\n".join(lines[:5])


def main() -> None:
    """Command line."""
    parser = measuring_parser("evaluate_drawing", __doc__, batch_size=20)
    parser.add_argument(
        "--speech", type=Path, help="speech pool of the test split; default: espeak-ng speaks while measuring"
    )
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first images of every row here")
    args = parse(parser)
    model, processor = load(args)
    speaker = SpeechPool(args.speech) if args.speech else LiveSpeaker("test")
    started = time.monotonic()
    lines, shown, wrong = [], [], []
    for row in args.rows:
        drawn = draw_row(row, model, processor, speaker, args.samples, args.seed, args.batch_size)
        title, bar = ROWS[row]
        value = round(100 * sum(item.right for item in drawn) / len(drawn), 2)
        lines.append(Result(row, title, "exact", value, bar, len(drawn), len(drawn)))
        shown += drawn[:PER_ROW]
        wrong += [
            {"row": row, "wanted": repr(item.wanted), "seen": repr(read_picture(item.image))}
            for item in drawn
            if not item.right
        ]
    report(args, lines, wrong, started)
    if args.sheet:
        with replacing(args.sheet) as path:
            contact_sheet(shown).save(path)


if __name__ == "__main__":
    main()
