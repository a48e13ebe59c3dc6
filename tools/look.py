"""Show audio and images on one sheet: `python -m tools.look reply.wav drawing.png ... --output sheet.png`.

Every audio file is shown as its waveform above its mel spectrogram, with the settings of the vocoder; every image is
a tile. The order is that of the files.
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ming.media import load_audio, load_image, resample
from ming.mel import MelSettings, vocoder_mel

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
COLUMNS = 4
TILE = 2.4  # inches


def draw_audio(figure, path: Path) -> None:
    """Draw the waveform and the mel spectrogram of a file over seconds."""
    (waveform,), rate = load_audio(str(path))
    seconds = len(waveform) / rate
    mel = vocoder_mel(resample(waveform, rate, MelSettings.rate))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    above.plot(torch.linspace(0, seconds, len(waveform)).numpy(), waveform.numpy(), linewidth=0.5)
    above.set(title=f"{path.name}, {seconds:.1f} s", ylim=(-1, 1))
    below.imshow(mel.T.numpy(), origin="lower", aspect="auto", extent=(0, seconds, 0, mel.shape[1]), cmap="magma")
    below.set(xlabel="seconds", ylabel="mel band")


def draw_images(figure, paths: list[Path], titles: list[str]) -> None:
    """Draw images in rows, each below its title."""
    axes = figure.subplots(math.ceil(len(paths) / COLUMNS), min(COLUMNS, len(paths)), squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, path, title in zip(axes, paths, titles, strict=False):
        axis.imshow(load_image(str(path)))
        axis.set_title(title, fontsize="small", wrap=True)


def sheet(paths: list[Path], titles: list[str] | None = None) -> Figure:
    """A figure of audio files, one above the other, and below them images.

    Args:
        titles: of the images; default: their file names.

    Raises:
        ValueError: a file that is neither an image nor audio.
    """
    images = [path for path in paths if path.suffix.lower() in IMAGES]
    audio = [path for path in paths if path not in images]
    heights = [2 * TILE] * len(audio)
    if images:
        heights.append(TILE * math.ceil(len(images) / COLUMNS))
    figure = Figure(figsize=(COLUMNS * TILE, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, path in zip(parts, audio, strict=False):
        draw_audio(part, path)
    if images:
        draw_images(parts[-1], images, titles or [path.name for path in images])
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.look", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="audio and image files")
    parser.add_argument("--titles", nargs="+", help="titles of the images, such as the prompts")
    parser.add_argument("--output", type=Path, default=Path("look.png"), help="image to write")
    args = parser.parse_args(arguments)
    try:
        sheet(args.files, args.titles).savefig(args.output, dpi=110)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(f"{args.output}\n")


if __name__ == "__main__":
    main()
