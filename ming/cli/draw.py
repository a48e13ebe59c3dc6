"""Draw an image from a text."""

import argparse
import logging
from typing import Any

from PIL import Image

from ming.cli.arguments import add_common_options, add_drawing_options
from ming.cli.checks import check_image_output, read_image_config
from ming.cli.session import Session
from ming.cli.usage import Parser, UsageError, user_input
from ming.files import replacing
from ming.generation_arguments import raise_if_no_room_to_draw

log = logging.getLogger("ming")


def build_parser() -> Parser:
    """The parser of `ming draw`."""
    parser = Parser("draw", __doc__)
    parser.add_argument("prompt", help="what to draw")
    add_drawing_options(parser)
    add_common_options(parser)
    return parser


def draw(session: Session, model, inputs, num_steps: int, **options: Any) -> Image.Image:
    """The image that a conversation asks for, with a progress bar.

    Args:
        model: with its image head; inputs: the processor's output for the conversation.
        num_steps: denoising steps.
        options: further ones of the image mode of `generate`.
    """
    with session.bar("drawing", num_steps) as bar:

        def after_step(step, num_steps, latents) -> None:
            bar.update()

        return model.generate(
            **inputs.to(model.device, model.dtype),
            **options,
            generation_mode="image",
            num_inference_steps=num_steps,
            seed=session.seed,
            callback=after_step,
        ).images[0]


def write_image(session: Session, image: Image.Image, path: str, fields: dict[str, Any]) -> None:
    """Write an image, and its result with `fields` beside those of the image."""
    with user_input(), replacing(path) as partial:
        image.save(partial)
    log.info("wrote %s (%d x %d, seed %d)", path, *image.size, session.seed)
    made = {"file": path, "width": image.width, "height": image.height, "seed": session.seed}
    session.write_result(path, {**fields, **made})


def draw_image(args: argparse.Namespace, content: str | list[dict], fields: dict, *parts: str) -> None:
    """Draw an image as the options say, and write it.

    Args:
        args: the common options and those of drawing.
        content: of the user message that asks for the image.
        fields: of the result, beside those of the image.
        parts: of the model, beside the image head.
    """
    session = Session.of_arguments(args)
    config = read_image_config(session.source)
    inputs = session.prepare(content)
    with user_input():
        context = session.config.llm_config.max_position_embeddings
        raise_if_no_room_to_draw(inputs["input_ids"].shape[1], config, context)
    model = session.load("image_gen", *parts)
    options: dict[str, Any] = {"guidance_scale": args.guidance}
    if args.size is not None:
        options["width"], options["height"] = args.size
    image = draw(session, model, inputs, args.steps or config.num_inference_steps, **options)
    write_image(session, image, args.out, fields)


def main(arguments: list[str]) -> None:
    """Run `ming draw`."""
    args = build_parser().parse_args(arguments)
    if not args.prompt.strip():
        raise UsageError("the prompt is empty; say what to draw")
    check_image_output("--out", args.out)
    draw_image(args, args.prompt, {"prompt": args.prompt})
