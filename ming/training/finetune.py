"""Fine-tune a checkpoint on the user's own chats.

    python -m ming.training.finetune --model DIR --data chats.jsonl --output OUT           # LoRA of rank 16
    python -m ming.training.finetune --model DIR --data chats.jsonl --output OUT --merge   # also the whole model
    python -m ming.training.finetune --model DIR --data chats.jsonl --output OUT --full    # every weight

Trained are the assistant's turns (see `finetune_data`), by `transformers.Trainer`; `torchrun` and `accelerate launch`
spread it over processes. The loss is the model's own: next token plus the routers' balance and z-loss. The same
command goes on after a kill.

LoRA trains the attention and the shared and dense projections of the decoder; routers, norms, embeddings and heads
stay as they are. `--lora-targets` adds the routed experts (one low-rank pair for each expert of a layer), the vision
tower or the audio encoders with their projectors.
"""

import argparse
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ming.modeling_bailing_moe import weighted_router_loss
from ming.quantization import four_bit

from .finetune_data import ChatCollator, read_chats

logger = logging.getLogger(__name__)

DEFAULT_RANK = 16
LEARNING_RATE = {"lora": 2e-4, "full": 1e-5}
SETTINGS = "finetune.json"
MERGED = "merged"
# What may differ between the command that began and the one that goes on.
FREE = ("output", "eval_data", "merge", "epochs", "steps", "save_steps", "logging_steps", "report_to", "workers")
FREE += ("gradient_checkpointing",)
# Layers per part of the model, as patterns of whole names; projectors have activations at the numbers left out.
LORA_MODULES = {
    "attention": r"model\.model\.layers\.\d+\.attention\.(query_key_value|dense)",
    "dense": r"model\.model\.layers\.\d+\.mlp\.(shared_experts\.)?(gate|up|down)_proj",
    "vision": r"vision\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)|linear_proj\.[02468]",
    "audio": r"(audio\.encoders\d?|whisper_encoder\.blocks)\..*(self_attn\.\w_proj|out_proj|fc\d)"
    r"|linear_proj_(audio|whisper)\.[03579]",
}
# The routed experts of a layer are two stacks [E, out, in].
LORA_PARAMETERS = {"experts": ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")}
LORA_TARGETS = (*LORA_MODULES, *LORA_PARAMETERS)
DEFAULT_TARGETS = ("attention", "dense")
ENCODERS = ("vision.", "linear_proj.", "audio.", "linear_proj_audio.", "whisper_encoder.", "linear_proj_whisper.")


def lora_config(rank: int = DEFAULT_RANK, targets: tuple[str, ...] = DEFAULT_TARGETS) -> LoraConfig:
    """LoRA for the parts `targets` of the model, a selection of `LORA_TARGETS`; alpha is twice the rank."""
    patterns = [LORA_MODULES[target] for target in targets if target in LORA_MODULES]
    parameters = [name for target in targets for name in LORA_PARAMETERS.get(target, ())]
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="|".join(f"({pattern})" for pattern in patterns) if patterns else [],
        target_parameters=parameters or None,
    )


class ChatTrainer(Trainer):
    """`Trainer` for a model whose loss has a part per token and a part per batch, and whose files hold one tensor per
    expert."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The library divides what is lost per token by the tokens of all micro-batches and processes; what the
        routers lose is a mean of each micro-batch and must be averaged, not summed."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if num_items_in_batch is not None:
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            steps = self.current_gradient_accumulation_steps if model.training else 1
            config = self.model.config.get_text_config()
            router = weighted_router_loss(config, outputs.load_balancing_loss, outputs.router_z_loss)
            loss = loss - router * (processes - 1 / steps)
        return (loss, outputs) if return_outputs else loss

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        model = model or self.model
        if isinstance(model, PeftModel):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        # The library would put the files' names into the model as they are and pass over the stacked experts.
        saved = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())


def load_model(args: argparse.Namespace, device: torch.device) -> nn.Module:
    """The model with what is to be trained requiring gradients: a `PeftModel`, or with `--full` the model itself."""
    options = {"trust_remote_code": True, "dtype": torch.float32}
    if args.full:
        model = AutoModelForMultimodalLM.from_pretrained(args.model, **options)
        frozen = ("talker.", *(ENCODERS if args.freeze_encoders else ()))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        return model
    options |= {"dtype": torch.bfloat16 if args.bf16 else torch.float32, "load_talker": False}
    if args.load_in_4bit:
        options["device_map"] = {"": device}
        options["quantization_config"] = four_bit(options["dtype"])
    model = AutoModelForMultimodalLM.from_pretrained(args.model, **options)
    if args.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    set_seed(args.seed)
    return get_peft_model(model, lora_config(args.lora, tuple(args.lora_targets)))


def training_arguments(args: argparse.Namespace) -> TrainingArguments:
    """What the command line says, as the library takes it.

    Raises:
        ValueError: one process sees several GPUs.
    """
    on_cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=args.output,
        num_train_epochs=args.epochs,
        max_steps=args.steps or -1,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        gradient_accumulation_steps=args.accumulation,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,  # share of all steps
        activation_checkpointing=args.gradient_checkpointing,
        # The reentrant kind loses the gradients of the router losses, which leave the layers beside their output.
        activation_checkpointing_kwargs={"use_reentrant": False},
        bf16=args.bf16,
        seed=args.seed,
        logging_steps=args.logging_steps,
        save_steps=args.save_steps,
        save_total_limit=2,
        eval_strategy="steps" if args.eval_data else "no",
        eval_steps=args.save_steps,
        prediction_loss_only=True,
        use_cache=True,  # of the configuration that is saved; what trains asks for no cache (`ChatCollator`)
        report_to=args.report_to,
        dataloader_num_workers=args.workers,
        remove_unused_columns=False,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "WORLD_SIZE" in os.environ else None,
        ddp_find_unused_parameters=True,  # a batch may leave an encoder or an expert out
    )
    if arguments.n_gpu > 1:  # the library would cut the patches of pictures into as many parts
        raise ValueError(
            f"one process sees {arguments.n_gpu} GPUs; start it by torchrun --nproc_per_node {arguments.n_gpu} -m "
            "ming.training.finetune ..., or set CUDA_VISIBLE_DEVICES=0"
        )
    return arguments


def last_checkpoint(output: Path) -> Path | None:
    """The last complete checkpoint; the trainer's state is what it writes last."""
    states = output.glob("checkpoint-*/trainer_state.json")
    return max((state.parent for state in states), key=lambda path: int(path.name.split("-")[1]), default=None)


def check_settings(args: argparse.Namespace) -> dict:
    """The settings of this run; those of a run that `--output` already holds must be the same.

    Raises:
        ValueError: the directory belongs to another run, or is the model's own.
    """
    output = Path(args.output)
    if output.resolve() == Path(args.model).resolve():
        raise ValueError(f"--output {output} is the model's own directory; give another one")
    settings = {name: value for name, value in vars(args).items() if name not in FREE}
    settings["data"] = hashlib.sha256(Path(args.data).read_bytes()).hexdigest()
    if not (output / SETTINGS).is_file():
        if last_checkpoint(output) is not None:
            raise ValueError(f"--output {output} holds checkpoints of something else; give another directory")
        return settings
    begun = json.loads((output / SETTINGS).read_text(encoding="utf-8"))
    names = sorted(name for name in settings.keys() | begun.keys() if settings.get(name) != begun.get(name))
    if names:
        shown = ", ".join(f"{name} {begun.get(name)!r}, now {settings.get(name)!r}" for name in names)
        raise ValueError(f"{output} was begun with {shown}; give the same, or another --output")
    return settings


@dataclass(frozen=True)
class Run:
    """What is known before the model is read: chats as from `read_chats`, and the settings of the run."""

    chats: list[dict]
    held_out: list[dict] | None
    settings: dict
    arguments: TrainingArguments

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> "Run":
        """Read and check everything that the command line names.

        Raises:
            ValueError: bad chats, a directory that cannot be written to, or several GPUs in one process.
        """
        held_out = read_chats(args.eval_data) if args.eval_data else None
        return cls(read_chats(args.data), held_out, check_settings(args), training_arguments(args))


def train(args: argparse.Namespace, run: Run) -> dict[str, float]:
    """Train and save; goes on from the last checkpoint in `args.output`, if there is one.

    Returns:
        The library's metrics: "train_loss", and "eval_loss" where there are chats held out.
    """
    processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=True)
    model = load_model(args, run.arguments.device)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info("%d chats; %d parameters of %d are trained", len(run.chats), trained, model.num_parameters())
    trainer = ChatTrainer(
        model=model,
        args=run.arguments,
        data_collator=ChatCollator(processor, args.whisper),
        train_dataset=run.chats,
        eval_dataset=run.held_out,
        processing_class=processor,
    )
    output = Path(args.output)
    if trainer.is_world_process_zero():
        output.mkdir(parents=True, exist_ok=True)
        (output / SETTINGS).write_text(json.dumps(run.settings, indent=1) + "\n", encoding="utf-8")
    metrics = _train_from(trainer, last_checkpoint(output))
    trainer.save_model(args.output)
    if run.held_out:
        metrics |= trainer.evaluate()
    if args.merge and trainer.is_world_process_zero():
        del trainer, model
        merge(args.model, args.output, output / MERGED, torch.bfloat16 if args.bf16 else torch.float32)
    return metrics


def _train_from(trainer: ChatTrainer, last: Path | None) -> dict[str, float]:
    """Train from a checkpoint, or None, to the end -> the library's metrics, none if it is at the end already."""
    if last is None:
        return trainer.train().metrics
    done = TrainerState.load_from_json(last / "trainer_state.json").global_step
    wanted = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    logger.info("going on from %s, %d of %d steps are done", last, done, wanted)
    if done < wanted:
        return trainer.train(resume_from_checkpoint=str(last)).metrics
    trainer._load_from_checkpoint(str(last))  # the library's `train` would make one more step
    return {}


def merge(model: str | Path, adapter: str | Path, output: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the model with the adapter's weights added to its own as a whole repository, on the CPU.

    Args:
        model: what the adapter was trained on; in full precision here, whatever it was trained in.
        adapter: the directory that training wrote.
        dtype: precision in which the weights are added and saved.
    """
    base = AutoModelForMultimodalLM.from_pretrained(model, trust_remote_code=True, dtype=dtype)
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(output)
    AutoProcessor.from_pretrained(model, trust_remote_code=True).save_pretrained(output)
    logger.info("the merged model is in %s", output)


def positive(text: str) -> int:
    """A whole number of at least 1, for `argparse`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options of every run."""
    add = parser.add_argument
    add("--model", required=True, help="checkpoint directory or Hub id")
    add("--data", required=True, help="JSONL file of chats")
    add("--output", required=True, help="directory of checkpoints and result")
    add("--epochs", type=float, default=3.0)
    add("--steps", type=positive, help="instead of --epochs")
    add("--batch-size", type=positive, default=4, help="chats per step and process")
    add("--learning-rate", type=float, help=f"default: {LEARNING_RATE}")
    add("--bf16", action="store_true", help="compute in bfloat16")
    add("--seed", type=int, default=0)
    add("--save-steps", type=positive, default=200)
    add("--logging-steps", type=positive, default=10)
    add("--report-to", default="none", choices=("none", "tensorboard", "wandb"))
    add("--workers", type=int, default=0, help="processes that read media")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ends the process with a message for options that exclude each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eval-data", help="JSONL file of chats whose loss is measured every --save-steps")
    parser.add_argument(
        "--lora", type=positive, metavar="RANK", help=f"rank of the adapter, {DEFAULT_RANK} if left out"
    )
    parser.add_argument("--lora-targets", nargs="+", choices=LORA_TARGETS, help="default: attention dense")
    parser.add_argument("--full", action="store_true", help="train every weight instead of an adapter")
    parser.add_argument("--freeze-encoders", action="store_true", help="with --full: leave the encoders as they are")
    parser.add_argument("--load-in-4bit", action="store_true", help="quantise what the adapter is added to")
    parser.add_argument("--merge", action="store_true", help=f"also write the merged model to OUTPUT/{MERGED}")
    parser.add_argument("--whisper", action="store_true", help="hear by the Whisper encoder instead of SANM")
    parser.add_argument("--accumulation", type=positive, default=1, help="batches per step")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    add_run_options(parser)
    args = parser.parse_args(argv)
    lora_only = {"--lora": args.lora, "--lora-targets": args.lora_targets}
    lora_only |= {"--load-in-4bit": args.load_in_4bit, "--merge": args.merge}
    if args.full and (given := [option for option, value in lora_only.items() if value]):
        parser.error(f"{', '.join(given)} and --full exclude each other; leave one out")
    if args.freeze_encoders and not args.full:
        parser.error("--freeze-encoders needs --full; an adapter trains encoders only if --lora-targets says so")
    if args.load_in_4bit and "experts" in (args.lora_targets or ()):
        parser.error("--lora-targets experts and --load-in-4bit exclude each other: quantised experts are no stacks")
    if args.learning_rate is None:
        args.learning_rate = LEARNING_RATE["full" if args.full else "lora"]
    if not args.full:
        args.lora, args.lora_targets = args.lora or DEFAULT_RANK, args.lora_targets or list(DEFAULT_TARGETS)
    return args


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Command line; returns the metrics of `train`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse(argv)
    try:
        run = Run.prepare(args)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    return train(args, run)


if __name__ == "__main__":
    main()
