"""Look at what a model said and drew: `python -m tools.look reply.wav drawing.png ... --output sheet.png`.

Every sound becomes its waveform above its mel spectrogram, the one that the vocoder speaks from; every picture a tile;
one sheet, in the order of the files.
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ming.media import load_audio, load_image, resample
from ming.voices import MelSettings, vocoder_mel

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
COLUMNS = 4
TILE = 2.4  # inches


def draw_sound(figure, path: Path) -> None:
    """Waveform and mel spectrogram of a file, over seconds."""
    (waveform,), rate = load_audio(str(path))
    seconds = len(waveform) / rate
    mel = vocoder_mel(resample(waveform, rate, MelSettings.rate))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    above.plot(torch.linspace(0, seconds, len(waveform)).numpy(), waveform.numpy(), linewidth=0.5)
    above.set(title=f"{path.name}, {seconds:.1f} s", ylim=(-1, 1))
    below.imshow(mel.T.numpy(), origin="lower", aspect="auto", extent=(0, seconds, 0, mel.shape[1]), cmap="magma")
    below.set(xlabel="seconds", ylabel="mel band")


def draw_pictures(figure, paths: list[Path], titles: list[str]) -> None:
    """Pictures in rows, each under its title."""
    axes = figure.subplots(math.ceil(len(paths) / COLUMNS), min(COLUMNS, len(paths)), squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, path, title in zip(axes, paths, titles, strict=False):
        axis.imshow(load_image(str(path)))
        axis.set_title(title, fontsize="small", wrap=True)


def sheet(paths: list[Path], titles: list[str] | None = None) -> Figure:
    """A figure of sounds, one above the other, and below them pictures.

    Args:
        titles: of the pictures; their files' names otherwise.

    Raises:
        ValueError: a file that is neither picture nor sound.
    """
    pictures = [path for path in paths if path.suffix.lower() in PICTURES]
    sounds = [path for path in paths if path not in pictures]
    heights = [2 * TILE] * len(sounds)
    if pictures:
        heights.append(TILE * math.ceil(len(pictures) / COLUMNS))
    figure = Figure(figsize=(COLUMNS * TILE, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, path in zip(parts, sounds, strict=False):
        draw_sound(part, path)
    if pictures:
        draw_pictures(parts[-1], pictures, titles or [path.name for path in pictures])
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.look", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="sounds and pictures")
    parser.add_argument("--titles", nargs="+", help="of the pictures, such as what was asked for")
    parser.add_argument("--output", type=Path, default=Path("look.png"), help="picture to write")
    args = parser.parse_args(arguments)
    try:
        sheet(args.files, args.titles).savefig(args.output, dpi=110)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(f"{args.output}\n")


if __name__ == "__main__":
    main()
