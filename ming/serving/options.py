"""The command line of the server, read into what the app is built from."""

import argparse
import logging
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI

from ming.cli.session import DTYPES, PARTS
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor
from ming.quantization import four_bit
from ming.serving.fetch import Fetcher
from ming.serving.limits import LOOPBACK, EngineSettings, Limits, Site
from ming.serving.server import create_app

logger = logging.getLogger(__name__)

KEY_VARIABLE = "MING_API_KEY"
SHUTDOWN_SECONDS = 10


@dataclass(frozen=True)
class Choices:
    """What a user chose, in plain data: a replica in another process builds its app from it.

    Args:
        model: directory or Hub id.
        device, dtype: None chooses by the machine.
        without: parts that are not loaded.
        load_in_4bit: whether weights are quantized.
        host, port, log_level: where and how the server runs.
        allow_remote: whether addresses of media are read.
        limits, settings, site: see there.
    """

    model: str
    device: str | None
    dtype: str | None
    without: tuple[str, ...]
    load_in_4bit: bool
    host: str
    port: int
    log_level: str
    allow_remote: bool
    limits: Limits
    settings: EngineSettings
    site: Site

    def uvicorn_options(self) -> dict[str, Any]:
        """Options of `uvicorn.run`."""
        return {
            "host": self.host,
            "port": self.port,
            "log_level": self.log_level,
            "timeout_graceful_shutdown": SHUTDOWN_SECONDS,
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options; limits and settings are those of `limits.py`."""
    add = parser.add_argument
    add("--model", required=True, help="directory or Hub id of a checkpoint, '.' for Ming-Tiny")
    add("--name", help="what clients ask for as model; default: the last part of --model")
    add("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine only)")
    add("--port", type=int, default=8000, help="port to listen at (default: %(default)s)")
    add("--device", help="default: cuda if there is a card, else cpu")
    add("--dtype", choices=tuple(DTYPES), help="default: bfloat16 on a card, else float32")
    add("--without", nargs="+", choices=PARTS, default=[], metavar="PART", help=f"leave parts out: {', '.join(PARTS)}")
    add("--load-in-4bit", action="store_true", help="a quarter of the memory (bitsandbytes)")
    add("--api-key", help=f"ask clients for this key; better in the variable {KEY_VARIABLE}, which others cannot list")
    add("--allow-remote", action="store_true", help="read http(s) addresses of media, on the open internet only")
    prompt = Site.transcription_prompt
    add("--transcription-prompt", default=prompt, help="what goes with a recording (default: %(default)r)")
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"), help="default: %(default)s")
    for title, shape in (("limits of a request", Limits), ("engine", EngineSettings)):
        group = parser.add_argument_group(title)
        for field in fields(shape):
            option, kind = "--" + field.name.replace("_", "-"), type(field.default)
            text = field.metadata["help"] + " (default: %(default)s)"
            group.add_argument(option, type=kind, default=field.default, metavar="N", help=text)


def set_up_logging(level: str) -> None:
    """Logging of a process that serves."""
    logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log the addresses of clients' media


def read_choices(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Choices:
    """Check the options, and set up logging; what does not fit ends the program with the parser's error."""
    set_up_logging(arguments.log_level)
    chosen = vars(arguments)
    try:
        limits, settings = (
            shape(**{field.name: chosen[field.name] for field in fields(shape)}) for shape in (Limits, EngineSettings)
        )
    except ValueError as error:
        parser.error(str(error))
    api_key = os.environ.get(KEY_VARIABLE) if arguments.api_key is None else arguments.api_key
    if api_key == "":
        parser.error(f"the API key is empty; give one, or neither --api-key nor {KEY_VARIABLE}")
    if api_key is None and arguments.host not in LOOPBACK:
        logger.warning("everybody who reaches %s may use this server; set %s", arguments.host, KEY_VARIABLE)
    name = arguments.name or Path(arguments.model).resolve().name
    as_given = ("model", "device", "dtype", "load_in_4bit", "host", "port", "log_level", "allow_remote")
    same = {key: chosen[key] for key in as_given}
    site = Site(name, api_key, arguments.transcription_prompt)
    return Choices(without=tuple(arguments.without), limits=limits, settings=settings, site=site, **same)


def build_app(choices: Choices) -> FastAPI:
    """Load the model, on its device and in eval mode, and make the app that serves it."""
    device = choices.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = DTYPES[choices.dtype or ("float32" if device == "cpu" else "bfloat16")]
    options: dict[str, Any] = {f"load_{part}": False for part in choices.without}
    if choices.load_in_4bit:
        options["quantization_config"] = four_bit(dtype)
    model = BailingMMNativeForConditionalGeneration.from_pretrained(
        choices.model, dtype=dtype, device_map={"": device}, **options
    )
    processor = BailingMMProcessor.from_pretrained(choices.model)
    limits = choices.limits
    fetcher = Fetcher(choices.allow_remote, limits.remote_bytes, limits.remote_seconds)
    return create_app(model.eval(), processor, limits, choices.settings, choices.site, fetcher)


__all__ = ["Choices", "add_options", "build_app", "read_choices", "set_up_logging"]
