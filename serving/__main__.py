"""Command line: `python -m serving --model DIRECTORY`."""

import argparse
import logging
import os
from dataclasses import fields
from pathlib import Path

import torch
import uvicorn

from ming.session import PARTS
from modeling_bailingmm import BailingMMNativeForConditionalGeneration
from processing_bailingmm import BailingMMProcessor
from serving.fetch import Fetcher
from serving.limits import LOOPBACK, EngineSettings, Limits, Site
from serving.server import create_app

logger = logging.getLogger(__name__)

KEY_VARIABLE = "MING_API_KEY"
SHUTDOWN_SECONDS = 10
EXAMPLES = """\
examples:
  python -m serving --model .
  python -m serving --model . --device cuda --dtype bfloat16 --batch 16 --allow-remote
  MING_API_KEY=secret python -m serving --model . --host 0.0.0.0 --without image_gen

  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{"messages": [{"role": "user", "content": "What comes after three?"}]}'
"""


def build_parser() -> argparse.ArgumentParser:
    """The options; limits and settings are those of `limits.py`."""
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Serve a model over HTTP with the shapes of OpenAI's API: chat, speech, transcription, pictures.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="directory or Hub id of a checkpoint, '.' for Ming-Tiny")
    add("--name", help="what clients ask for as model; default: the last part of --model")
    add("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine only)")
    add("--port", type=int, default=8000, help="port to listen at (default: %(default)s)")
    add("--device", help="default: cuda if there is a card, else cpu")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a card, else float32")
    add("--without", nargs="+", choices=PARTS, default=[], metavar="PART", help=f"leave parts out: {', '.join(PARTS)}")
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
    return parser


def load(arguments: argparse.Namespace) -> tuple[BailingMMNativeForConditionalGeneration, BailingMMProcessor]:
    """The model, on its device and in eval mode, and its processor."""
    has_card = torch.cuda.is_available()
    device = arguments.device or ("cuda" if has_card else "cpu")
    dtype = arguments.dtype or ("float32" if device == "cpu" else "bfloat16")
    absent = {f"load_{part}": False for part in arguments.without}
    model = BailingMMNativeForConditionalGeneration.from_pretrained(
        arguments.model, dtype=getattr(torch, dtype), device_map=None if device == "cpu" else device, **absent
    )
    return model.eval(), BailingMMProcessor.from_pretrained(arguments.model)


def main() -> None:
    """Load the model and serve it until interrupted."""
    parser = build_parser()
    arguments = parser.parse_args()
    logging.basicConfig(level=arguments.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log the addresses of clients' media
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
    model, processor = load(arguments)
    name = arguments.name or Path(arguments.model).resolve().name
    site = Site(name, api_key, arguments.transcription_prompt)
    fetcher = Fetcher(arguments.allow_remote, limits.remote_bytes, limits.remote_seconds)
    app = create_app(model, processor, limits, settings, site, fetcher)
    uvicorn.run(
        app,
        host=arguments.host,
        port=arguments.port,
        log_level=arguments.log_level,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


if __name__ == "__main__":
    main()
