"""Fine-tune a checkpoint on your own chats.

    ming finetune --model DIR --data chats.jsonl --output OUT                  # LoRA of rank 16
    ming finetune --model DIR --data chats.jsonl --output OUT --merge          # and the merged model
    ming finetune --model DIR --data chats.jsonl --output OUT --full           # every weight
    ming finetune speech --model DIR --data chats.jsonl --output OUT           # the talker
    ming finetune image --model DIR --data chats.jsonl --output OUT --lora 16  # the image head

text: the replies, by LoRA on the attention and on the shared and dense projections of the decoder. Routers, norms,
embeddings and output heads stay as they are. --lora-targets adds the routed experts (one low-rank pair per expert of
a layer), the vision tower or the audio encoders with their projectors. The loss is the model's own: next token,
router balance and z-loss.

speech, image: the language model stays as it is (Ming-Omni, section 3, second stage). speech trains the talker on
recordings of replies, image trains the query tokens, the connector and the transformer on images. OUT becomes a whole
repository. The talker takes the voice of a recording from another recording of the same speaker, so every speaker
needs two; chats name theirs as "speaker". Recordings last 0.5 to 30 s each and are encoded by the repository's
campplus.onnx and speech_tokenizer_v1.onnx.

Every chat is read once before the model, as training will read it. The same command continues an interrupted run;
--changed-data says that its chats may have changed. Several processes:
torchrun --standalone --nproc_per_node 2 -m ming finetune ... The format of chats: ming/training/finetune_data.py.
"""

import argparse
import logging
from typing import Any

from transformers.integrations import is_tensorboard_available, is_wandb_available

from ming.cli.arguments import number_above_zero, whole_number
from ming.cli.usage import Parser, UsageError
from ming.training import finetune_outputs, finetune_text
from ming.training.finetune_text import DEFAULT_RANK, DEFAULT_TARGETS, LORA_TARGETS, MERGED

TARGETS = ("text", "speech", "image")
LEARNING_RATE = {"lora": 2e-4, "full": 1e-5}
count = whole_number(1, 10**9)
REPORTERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
# What an option of the target "text" is when it is not given.
TEXT_DEFAULTS: dict[str, Any] = {
    "eval_data": None,
    "lora_targets": None,
    "full": False,
    "freeze_encoders": False,
    "load_in_4bit": False,
    "merge": False,
    "whisper": False,
    "accumulation": 1,
    "gradient_checkpointing": False,
}


def build_parser() -> Parser:
    """The options of all targets; those of "text" alone are None where they are not given."""
    parser = Parser("finetune", __doc__)
    add = parser.add_argument
    add("target", nargs="?", default="text", choices=TARGETS, help="what is trained; default: text")
    add("--model", required=True, help="checkpoint directory or Hub id")
    add("--data", required=True, help="JSONL file of chats")
    add("--output", required=True, help="directory for checkpoints and the result")
    rank = f"rank of the adapter; default of text: {DEFAULT_RANK}"
    add("--lora", type=whole_number(1, 4096), metavar="RANK", help=rank)
    add("--epochs", type=number_above_zero(1e6), default=3.0, metavar="N", help="default: %(default)g")
    add("--steps", type=count, metavar="N", help="instead of --epochs")
    add("--batch-size", type=count, default=4, metavar="N", help="chats per step and process; default: %(default)s")
    rates = f"default: {LEARNING_RATE['lora']:g} for an adapter of text, else {LEARNING_RATE['full']:g}"
    add("--learning-rate", type=number_above_zero(1.0), metavar="RATE", help=rates)
    add("--bf16", action="store_true", help="compute in bfloat16")
    add("--seed", type=whole_number(0, 2**32 - 1), default=0, metavar="N", help="default: %(default)s")
    add("--save-steps", type=count, default=200, metavar="N", help="default: %(default)s")
    add("--logging-steps", type=count, default=10, metavar="N", help="default: %(default)s")
    add("--report-to", default="none", choices=("none", *REPORTERS), help="where curves go; default: none")
    add("--workers", type=whole_number(0, 1024), default=0, metavar="N", help="processes that read media; default: 0")
    add("--changed-data", action="store_true", help="go on with a run in --output though its chats have changed")
    text = parser.add_argument_group("options of text alone")
    text.add_argument("--eval-data", help="JSONL file of chats; their loss is measured every --save-steps")
    text.add_argument("--lora-targets", nargs="+", choices=LORA_TARGETS, help="default: attention dense")
    for option, help_text in (
        ("--full", "train every weight instead of an adapter"),
        ("--freeze-encoders", "with --full: leave the encoders as they are"),
        ("--load-in-4bit", "quantise the weights under the adapter"),
        ("--merge", f"also write the merged model to OUTPUT/{MERGED}"),
        ("--whisper", "use the Whisper encoder instead of SANM"),
        ("--gradient-checkpointing", "less memory, a third more time"),
    ):
        text.add_argument(option, action="store_true", default=None, help=help_text)
    text.add_argument("--accumulation", type=count, help="batches per step; default: 1")
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line with its defaults.

    Raises:
        UsageError: options that are unknown, belong to another target, or exclude each other.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    given = [name for name in TEXT_DEFAULTS if getattr(args, name) is not None]
    if args.target == "text":
        for name, default in TEXT_DEFAULTS.items():
            setattr(args, name, default if getattr(args, name) is None else getattr(args, name))
        _complete_text(parser, args)
    else:
        if given:
            parser.error(f"{_options(given)} belongs to the target text, not to {args.target}; leave it out")
        for name in TEXT_DEFAULTS:
            delattr(args, name)
    if args.report_to in REPORTERS and not REPORTERS[args.report_to]():
        parser.error(f"--report-to {args.report_to} needs the package: pip install {args.report_to}")
    if args.learning_rate is None:
        args.learning_rate = LEARNING_RATE["full" if args.lora is None else "lora"]
    return args


def _complete_text(parser: Parser, args: argparse.Namespace) -> None:
    """Refuse options of text that exclude each other, and fill in the defaults of LoRA."""
    lora_only = [name for name in ("lora", "lora_targets", "load_in_4bit", "merge") if getattr(args, name)]
    if args.full and lora_only:
        parser.error(f"{_options(lora_only)} and --full exclude each other; leave one out")
    if args.freeze_encoders and not args.full:
        parser.error("--freeze-encoders needs --full; an adapter trains encoders only if --lora-targets names them")
    if args.load_in_4bit and "experts" in (args.lora_targets or ()):
        parser.error("--lora-targets experts and --load-in-4bit exclude each other: quantised experts are not stacked")
    if not args.full:
        args.lora = args.lora or DEFAULT_RANK
        args.lora_targets = args.lora_targets or list(DEFAULT_TARGETS)


def _options(names: list[str]) -> str:
    """Names of attributes as options of the command line."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Raises:
        UsageError: chats or options that cannot be used.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse(argv)
    target = finetune_text if args.target == "text" else finetune_outputs
    try:
        run = target.Run.prepare(args)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    target.train(args, run)
