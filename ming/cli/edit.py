"""Change an image as a text says."""

from ming.cli.arguments import add_common_options, add_drawing_options
from ming.cli.checks import check_image_output, check_media
from ming.cli.draw import draw_image
from ming.cli.usage import Parser, UsageError
from ming.prompts import message_content


def build_parser() -> Parser:
    """The parser of `ming edit`."""
    parser = Parser("edit", __doc__)
    parser.add_argument("image", help="file or address")
    parser.add_argument("instruction", help="what to change")
    add_drawing_options(parser)
    add_common_options(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Run `ming edit`."""
    args = build_parser().parse_args(arguments)
    check_media("image", args.image, "image")
    if not args.instruction.strip():
        raise UsageError("the instruction is empty; say what to change")
    check_image_output("--out", args.out)
    content = message_content(args.instruction, {"image": [args.image]})
    draw_image(args, content, {"image": args.image, "instruction": args.instruction}, "vision")
