"""What commands find out before they load a model: where the model is, and whether files can be read and written."""

import argparse
import errno
import json
import os
import re
import socket
from pathlib import Path

import soundfile
import torch
from PIL import Image

from image_gen.configuration_image_gen import FOLDER as IMAGE_FOLDER
from image_gen.configuration_image_gen import ImageGenConfig
from ming.cli.usage import UsageError, user_input
from ming.configuration_bailingmm import BailingMMConfig
from ming.files import finish_saving
from ming.loading import default_device
from ming.media import SCHEMES, scheme_of
from ming.source import CheckpointSource

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CONFIG = f"config.json of model_type {BailingMMConfig.model_type!r}"


def _holds_model(folder: Path) -> bool:
    with user_input():
        finish_saving(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / 'config.json'} cannot be read ({error}); give another directory") from error
    return isinstance(config, dict) and config.get("model_type") == BailingMMConfig.model_type


def find_model(value: str | None, option: str = "--model") -> str:
    """The directory or Hub id to load: the given one, or the repository that the command runs in.

    Args:
        option: that gives it, for messages.

    Raises:
        UsageError: there is no model of this kind.
    """
    if value is None:
        for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
            if _holds_model(folder):
                return str(folder)
        raise UsageError(f"{Path.cwd()} holds no {CONFIG}; give {option} DIRECTORY_OR_HUB_ID")
    if os.path.isdir(value):
        if not _holds_model(Path(value)):
            raise UsageError(f"{option} {value}: the directory holds no {CONFIG}; give one that does")
    elif not HUB_ID.fullmatch(value):
        raise UsageError(f"{option} {value}: no such directory; give one with a {CONFIG}, or a Hub id owner/name")
    return value


def find_device(name: str | None) -> torch.device:
    """The device of a name; default is the first CUDA GPU, or else the CPU.

    Raises:
        UsageError: it does not exist here.
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: unknown; use cpu, cuda, cuda:1, mps, ...") from error
    if str(device) != name:  # PyTorch takes cuda:4096 for cuda:0
        raise UsageError(f"--device {name}: unknown; use cpu, cuda, cuda:1, mps, ...")
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device.type in counts and (device.index or 0) >= counts[device.type]:
        found = ", ".join(f"{kind} ({number})" for kind, number in counts.items() if number)
        raise UsageError(f"--device {name}: there is none here; use one of {found}")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was compiled for a device
        reason = str(error).partition("\n")[0]
        raise UsageError(f"--device {name}: PyTorch cannot compute on it here ({reason}); use cpu or cuda") from error
    return device


def read_config(model: str, option: str = "--model") -> BailingMMConfig:
    """The configuration of a directory or Hub id.

    Args:
        option: that gives it, for messages.

    Raises:
        UsageError: it cannot be read, or belongs to another kind of model.
    """
    with user_input(f"{option} {model}: "):
        fields, _ = BailingMMConfig.get_config_dict(model)
        if fields.get("model_type") != BailingMMConfig.model_type:
            raise ValueError(f"model_type is {fields.get('model_type')!r}, not {BailingMMConfig.model_type!r}")
        return BailingMMConfig.from_pretrained(model)


def read_image_config(model: str) -> ImageGenConfig:
    """The configuration of the image head.

    Raises:
        UsageError: the repository has no image head.
    """
    with user_input(f"--model {model}: "):
        if not CheckpointSource(model).has_component(IMAGE_FOLDER):
            raise ValueError(f"there is no image head in its folder {IMAGE_FOLDER}/; give a model that draws")
        return ImageGenConfig.from_pretrained(model, subfolder=IMAGE_FOLDER)


def check_address(host: str, port: int) -> None:
    """Raise a `UsageError` for an address that a server cannot listen at: an unknown host, a port that is in use."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", error)
        raise UsageError(f"--host {host}: no such host ({reason}); use an address of this machine") from error
    errors = [_listening_error(*place) for place in found]
    absent = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)  # of IPv6, say, which servers pass over where there is IPv4
    for failed in errors:
        if failed is not None and (failed.errno not in absent or None not in errors):
            what = f"cannot listen there ({failed.strerror})"
            raise UsageError(f"--host {host} --port {port}: {what}; give another port or host") from failed


def _listening_error(family: int, kind: int, protocol: int, name: str, address: tuple) -> OSError | None:
    """Why a server could not take an address, one of `socket.getaddrinfo`; None where it can."""
    try:
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
    except OSError as error:
        return error
    return None


def check_media(name: str, source: str, medium: str) -> None:
    """Raise a `UsageError` for a file that is missing or cannot be read; addresses are read later.

    Args:
        name: of the argument, for messages.
        source: file or address.
        medium: "image", "audio" or "video"; the frames of a video may be the files of a directory.
    """
    if scheme := scheme_of(source):
        if scheme not in SCHEMES:
            raise UsageError(f"{name} {source}: {scheme}:// is not read; give a file or an address (https://...)")
        return
    if not os.path.exists(source):
        raise UsageError(f"{name} {source}: no such file; give a file or an address (https://...)")
    if not os.access(source, os.R_OK):
        raise UsageError(f"{name} {source}: no permission to read it; allow it, or give another file")
    if medium != "video" and os.path.isdir(source):
        raise UsageError(f"{name} {source}: it is a directory; give a file in it")


def check_audio_output(option: str, path: str) -> None:
    """Raise a `UsageError` for an audio file that cannot be written, or whose ending names no audio format.

    Args:
        option: of the command line, for messages.
    """
    ending = _ending(path)
    if ending.lstrip(".").upper() not in soundfile.available_formats():
        found = ending or "no ending"
        raise UsageError(f"{option} {path}: {found} is not an audio format; use .wav, .flac, .ogg or .mp3")
    check_output(option, path)


def check_image_output(option: str, path: str) -> None:
    """Raise a `UsageError` for an image file that cannot be written, or whose ending names no image format.

    Args:
        option: of the command line, for messages.
    """
    ending = _ending(path)
    if Image.registered_extensions().get(ending) not in Image.SAVE:
        raise UsageError(f"{option} {path}: {ending or 'no ending'} is not an image format; use .png, .jpg or .webp")
    check_output(option, path)


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def check_output(option: str, path: str) -> None:
    """Raise a `UsageError` for a file that cannot be written.

    Args:
        option: of the command line, for messages.
    """
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise UsageError(f"{option} {path}: the directory {folder} does not exist; make it first")
    if os.path.isdir(path):
        raise UsageError(f"{option} {path}: it is a directory; give the name of a file")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"{option} {path}: no permission to write it; give another place")


def check_voice_options(args: argparse.Namespace, option: str, output: str | None) -> None:
    """Raise a `UsageError` for an audio file that cannot be written, or for voice options that do not fit together.

    Args:
        args: `voice`, `prompt_audio` and `prompt_text` of the command line.
        option: the option that names the audio file.
        output: the audio file; None when no speech is wanted.
    """
    given = [name for name in ("voice", "prompt_audio", "prompt_text") if getattr(args, name) is not None]
    if output is None:
        if given:
            raise UsageError(f"--{given[0].replace('_', '-')} chooses a voice for {option} FILE; give it, too")
        return
    check_audio_output(option, output)
    if args.prompt_audio is not None:
        check_media("--prompt-audio", args.prompt_audio, "audio")
    if (args.prompt_audio is None) != (args.prompt_text is None):
        raise UsageError("--prompt-audio FILE and --prompt-text WORDS (its words) belong together; give both")
    if args.voice is not None and args.prompt_audio is not None:
        raise UsageError(f"--voice {args.voice} and --prompt-audio are two voices; give one of them")
