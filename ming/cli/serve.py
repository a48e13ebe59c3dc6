"""Serve a model over HTTP with the API of OpenAI: chat, speech, transcription, images."""

import argparse
import logging
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from starlette.types import ASGIApp

from ming.cli.arguments import (
    add_device_options,
    add_without_option,
    load_options,
    port_or_any,
    real_number,
    whole_number,
)
from ming.cli.checks import check_address, find_device, find_model, read_config
from ming.cli.usage import Parser, UsageError, user_input
from ming.serving.options import ServerOptions, build_app, set_up_logging
from ming.serving.settings import LOOPBACK, EngineSettings, Limits, Site

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings", Limits, EngineSettings)
KEY_VARIABLE = "MING_API_KEY"
LOG_LEVELS = ("debug", "info", "warning", "error")
EXAMPLES = """\
examples:
  ming serve --model .
  ming serve --model . --device cuda --dtype bfloat16 --compile --batch 16 --allow-remote
  MING_API_KEY=secret ming serve --model . --host 0.0.0.0 --without image_gen

  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{"messages": [{"role": "user", "content": "What comes after three?"}]}'
"""


def build_parser() -> Parser:
    """The parser of `ming serve`."""
    parser = Parser("serve", __doc__, EXAMPLES)
    add_server_options(parser)
    return parser


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """The options of every server; limits and engine settings are those of `ming/serving/settings.py`."""
    add = parser.add_argument
    add("--model", required=True, help="directory or Hub id of a checkpoint, '.' for Ming-Tiny")
    add("--name", help="what clients ask for as model; default: the last part of --model")
    add("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine only)")
    add("--port", type=port_or_any, default=8000, help="port to listen at, 0: any free one (default: %(default)s)")
    add_device_options(parser)
    add_without_option(parser)
    add("--api-key", help=f"ask clients for this key; better in the variable {KEY_VARIABLE}, which others cannot list")
    add("--allow-remote", action="store_true", help="read images, audio and videos from public http(s) addresses")
    prompt = Site.transcription_prompt
    add("--transcription-prompt", default=prompt, help="instruction for recordings (default: %(default)r)")
    add("--log-level", default="info", choices=LOG_LEVELS, help="default: %(default)s")
    for title, settings in (("limits of a request", Limits), ("engine", EngineSettings)):
        group = parser.add_argument_group(title)
        for field in fields(settings):
            option, minimum = "--" + field.name.replace("_", "-"), field.metadata["minimum"]
            is_whole = isinstance(field.default, int)
            kind = whole_number(minimum) if is_whole else real_number(minimum)
            text = field.metadata["help"] + " (default: %(default)s)"
            group.add_argument(option, type=kind, default=field.default, metavar="N", help=text)


def server_options(args: argparse.Namespace) -> ServerOptions:
    """The options of the command line as plain data.

    Raises:
        UsageError: a limit that is too small, or an empty API key.
    """
    with user_input():
        limits, settings = _settings(Limits, args), _settings(EngineSettings, args)
    api_key = os.environ.get(KEY_VARIABLE) if args.api_key is None else args.api_key
    if api_key == "":
        raise UsageError(f"the API key is empty; give one, or neither --api-key nor {KEY_VARIABLE}")
    name = args.name or Path(args.model).resolve().name
    return ServerOptions(
        model=args.model,
        loading=load_options(args),
        without=tuple(args.without),
        host=args.host,
        port=args.port,
        log_level=args.log_level,
        allow_remote=args.allow_remote,
        limits=limits,
        settings=settings,
        site=Site(name, api_key, args.transcription_prompt),
    )


def _settings(kind: type[Settings], args: argparse.Namespace) -> Settings:
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})


def check_place(options: ServerOptions) -> None:
    """Raise a `UsageError` for an address, a device or a model that this machine does not have."""
    check_address(options.host, options.port)
    find_device(options.loading.device)
    read_config(find_model(options.model))


def listen(app: ASGIApp, options: ServerOptions, **uvicorn_options: Any) -> None:
    """Answer requests until interrupted."""
    if options.site.api_key is None and options.host not in LOOPBACK:
        logger.warning("everybody who reaches %s may use this server; set %s", options.host, KEY_VARIABLE)
    try:
        uvicorn.run(app, **options.uvicorn_options(), **uvicorn_options)
    except SystemExit as end:  # another process took the port meanwhile, say; uvicorn has written it
        raise SystemExit(1) from end


def main(arguments: list[str]) -> None:
    """Run `ming serve` until it is interrupted."""
    args = build_parser().parse_args(arguments)
    set_up_logging(args.log_level)
    options = server_options(args)
    check_place(options)
    with user_input(f"--model {options.model}: "):
        app = build_app(options)
    listen(app, options)
