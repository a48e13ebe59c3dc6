"""Command line: `python -m serving --model DIRECTORY`."""

import argparse

import uvicorn

from ming.serving.options import add_options, build_app, read_choices

EXAMPLES = """\
examples:
  python -m serving --model .
  python -m serving --model . --device cuda --dtype bfloat16 --batch 16 --allow-remote
  MING_API_KEY=secret python -m serving --model . --host 0.0.0.0 --without image_gen

  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{"messages": [{"role": "user", "content": "What comes after three?"}]}'
"""


def build_parser() -> argparse.ArgumentParser:
    """The options of the server."""
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Serve a model over HTTP with the shapes of OpenAI's API: chat, speech, transcription, pictures.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    return parser


def main() -> None:
    """Load the model and serve it until interrupted."""
    parser = build_parser()
    choices = read_choices(parser, parser.parse_args())
    uvicorn.run(build_app(choices), **choices.uvicorn_options())


if __name__ == "__main__":
    main()
