"""Show a page to try a model in the browser: chat with text, images, recordings and videos."""

import io
import logging
import os
import sys

from ming.cli.arguments import add_device_options, add_length_option, add_without_option, load_options, port
from ming.cli.checks import check_address
from ming.cli.session import Session
from ming.cli.usage import Parser
from ming.loading import PARTS
from ming.serving.page import show_page
from ming.serving.settings import LOOPBACK

logger = logging.getLogger(__name__)

EXAMPLES = """\
examples:
  ming page --model .
  ming page --model . --device cuda --port 7861
  ming page --model . --share       # a public address for 3 days, for everybody who knows it
"""


def build_parser() -> Parser:
    """The parser of `ming page`."""
    parser = Parser("page", __doc__, EXAMPLES)
    add = parser.add_argument
    add("--model", help="directory or Hub id of a checkpoint; default: the repository the command runs in")
    add("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine only)")
    add("--port", type=port, default=7860, help="port to listen at (default: %(default)s)")
    add("--share", action="store_true", help="a public address as well, through Gradio's servers")
    add_device_options(parser)
    add_without_option(parser)
    add_length_option(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Run `ming page` until it is interrupted."""
    args = build_parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # Gradio prints the address, which a log file would get at the end
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    check_address(args.host, args.port)
    check_address(LOOPBACK[0], args.port)  # Gradio looks there for a free port, whatever the host
    source = args.model
    if source and os.path.isdir(source):
        source = os.path.abspath(source)  # the page changes the working directory
    session = Session(source, load_options(args))
    model = session.load(*(part for part in PARTS if part not in args.without))
    if args.share or args.host not in LOOPBACK:
        logger.warning("everybody who reaches the page may use the model")
    show_page(model, session.processor, args.max_new_tokens, args.host, args.port, args.share)
