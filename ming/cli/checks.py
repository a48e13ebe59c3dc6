"""What the command line checks before it loads a model: the model's place, files in, files out, sizes, devices."""

import argparse
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import soundfile
import torch
from PIL import Image

from image_gen.configuration_image_gen import FOLDER as IMAGE_FOLDER
from image_gen.configuration_image_gen import MAX_SIDE, MIN_SIDE, ImageGenConfig
from ming.configuration_bailingmm import BailingMMConfig, has_component

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NOT_A_FILE = ("http://", "https://", "data:", "file://")


class UsageError(Exception):
    """Something the user can put right; its message is one line."""


@contextmanager
def user_input(prefix: str = "") -> Iterator[None]:
    """Where values of the user are looked at for the first time: what is wrong with them is a `UsageError`."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(prefix + " ".join(str(error).split())) from error


def _holds_model(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / 'config.json'} cannot be read ({error}); give another directory") from error
    return isinstance(config, dict) and config.get("model_type") == BailingMMConfig.model_type


def find_model(value: str | None) -> str:
    """The directory or Hub id to load: what was asked for, or the repository that the command runs in.

    Raises:
        UsageError: there is no model of this kind.
    """
    wanted = f"a config.json of model_type {BailingMMConfig.model_type!r}"
    if value is None:
        for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
            if _holds_model(folder):
                return str(folder)
        raise UsageError(f"{Path.cwd()} holds no {wanted[2:]}; give --model DIRECTORY_OR_HUB_ID")
    if os.path.isdir(value):
        if not _holds_model(Path(value)):
            raise UsageError(f"--model {value}: the directory holds no {wanted[2:]}; give one that does")
    elif not HUB_ID.fullmatch(value):
        raise UsageError(f"--model {value}: no such directory; give a directory with {wanted}, or a Hub id owner/name")
    return value


def read_config(model: str) -> BailingMMConfig:
    """The configuration of a directory or Hub id.

    Raises:
        UsageError: it cannot be read, or is of another kind of model.
    """
    with user_input(f"--model {model}: "):
        fields, _ = BailingMMConfig.get_config_dict(model)
        if fields.get("model_type") != BailingMMConfig.model_type:
            raise ValueError(f"model_type is {fields.get('model_type')!r}, not {BailingMMConfig.model_type!r}")
        return BailingMMConfig.from_pretrained(model)


def read_image_config(model: str) -> ImageGenConfig:
    """The configuration of the component that draws.

    Raises:
        UsageError: the repository has none.
    """
    with user_input(f"--model {model}: "):
        if not has_component(model, IMAGE_FOLDER):
            raise ValueError(f"there is nothing in its folder {IMAGE_FOLDER}/ that draws; give another model")
        return ImageGenConfig.from_pretrained(model, subfolder=IMAGE_FOLDER)


def check_media(medium: str, source: str) -> str:
    """A file or address of a picture, recording or video, as the processor takes it.

    Raises:
        UsageError: there is no such file.
    """
    if source.startswith(NOT_A_FILE):
        return source
    if not os.path.exists(source):
        raise UsageError(f"{medium} {source}: no such file; give a file or an address (https://...)")
    if not os.access(source, os.R_OK):
        raise UsageError(f"{medium} {source}: no permission to read it")
    return source


def check_output(option: str, path: str, kind: str) -> str:
    """A file to write.

    Args:
        option: as the user wrote it, for messages.
        kind: "sound" or "picture".

    Raises:
        UsageError: it cannot be written, or its ending names no format of its kind.
    """
    folder, ending = os.path.dirname(path) or ".", os.path.splitext(path)[1].lower()
    if kind == "sound":
        known, usual = ending.lstrip(".").upper() in soundfile.available_formats(), ".wav, .flac, .ogg or .mp3"
    else:
        known, usual = Image.registered_extensions().get(ending) in Image.SAVE, ".png, .jpg or .webp"
    if not known:
        raise UsageError(f"{option} {path}: {ending or 'no ending'} is no {kind} format; use {usual}")
    if not os.path.isdir(folder):
        raise UsageError(f"{option} {path}: the directory {folder} does not exist; make it first")
    if os.path.isdir(path):
        raise UsageError(f"{option} {path}: it is a directory; give the name of a file")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"{option} {path}: no permission to write it; give another place")
    return path


def check_device(name: str | None) -> torch.device:
    """The device to work on; default is the first CUDA card, or else the CPU.

    Raises:
        UsageError: it does not exist here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: unknown; use cpu, cuda, cuda:1, mps, ...") from error
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device.type in counts and (device.index or 0) >= counts[device.type]:
        found = ", ".join(f"{kind} ({count})" for kind, count in counts.items() if count)
        raise UsageError(f"--device {name}: there is none here; use one of {found}")
    return device


def picture_size(text: str) -> tuple[int, int]:
    """WxH -> (width, height) in pixels, for argparse."""
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    size = tuple(int(side) for side in match.groups()) if match else ()
    if not size or not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
        raise argparse.ArgumentTypeError(
            f"{text} is no size; give WIDTHxHEIGHT with sides of {MIN_SIDE} to {MAX_SIDE} pixels, such as 512x512"
        )
    return size


def count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not accepted; give a whole number of at least 1")
    return int(text)


def seed(text: str) -> int:
    """A whole number of 0 to 2**63 - 1, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not accepted; give a whole number of 0 to 2**63 - 1")
    return int(text)


def guidance(text: str) -> float:
    """A finite number of at least 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not accepted; give a number of at least 1 (1: no guidance)")
    return value
