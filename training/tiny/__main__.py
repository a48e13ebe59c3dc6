"""Train Ming-Tiny stage by stage; a stage that is run again continues where it stopped."""

import argparse
import logging
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import set_seed

from ming.cli.arguments import count, number_above_zero, seed
from ming.configuration_bailingmm import AUTO_MAP
from ming.files import saving
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor
from ming.source import CheckpointSource
from ming.training.balance import DynamicBalance
from ming.training.chats import BalanceCallback, StepwiseObjective
from ming.training.loop import fit

from . import stage_drawing, stage_speaking
from .architecture import tiny_config
from .dense import DenseLoss
from .perception import MIX, PerceptionData
from .speech import SpeechPool
from .stage import ROOT, SEED
from .stage_listeners import NETWORKS, train_network
from .warmup import HeadsWarmUp, SpeechWarmUp, SpeechWarmUpData, VisionWarmUp, VisionWarmUpData

logger = logging.getLogger(__name__)

# Modules of the model that each warm-up trains and saves.
PARTS = {
    "vision": ("vision", "linear_proj"),
    "sanm": ("audio", "linear_proj_audio"),
    "whisper": ("whisper_encoder", "linear_proj_whisper"),
}
ORDER = ("speech", *PARTS, "heads", "chat", "speaking", "drawing")
# Optimizer steps and batch size of each warm-up, and optimizer steps of the other stages.
WARM_UPS = {"vision": (1600, 40), "sanm": (1500, 32), "whisper": (1500, 24)}
STEPS = {"heads": 150, "chat": 3000}


def part_parameters(model: torch.nn.Module, names: tuple[str, ...]) -> dict[str, torch.nn.Parameter]:
    """Parameters of the named submodules, by name."""
    return {name: value for name, value in model.named_parameters() if name.split(".")[0] in names}


def new_model() -> BailingMMNativeForConditionalGeneration:
    """Ming-Tiny with the random weights that every run starts from."""
    set_seed(SEED)
    return BailingMMNativeForConditionalGeneration(tiny_config())


def start_model(args: argparse.Namespace) -> BailingMMNativeForConditionalGeneration:
    """The checkpoint of `--start-from` in float32, or else a new model."""
    if args.start_from:
        return BailingMMNativeForConditionalGeneration.from_pretrained(args.start_from, dtype=torch.float32)
    return new_model()


def speech(args: argparse.Namespace) -> None:
    """Synthesise the pool of spoken sentences (needs espeak-ng); continue where an earlier run stopped."""
    SpeechPool.build(args.speech, count=80 if args.quick else 24_000, split="train")


def warm_up(stage: str, args: argparse.Namespace) -> None:
    """Train one encoder on dense labels and write its weights to RUNS/STAGE.safetensors."""
    model, processor = start_model(args), BailingMMProcessor.from_pretrained(ROOT)
    steps, batch_size = (2, 4) if args.quick else WARM_UPS[stage]
    steps, batch_size = args.steps or steps, args.batch_size or batch_size
    task: VisionWarmUp | SpeechWarmUp
    data: torch.utils.data.Dataset
    if stage == "vision":
        task = VisionWarmUp(model)
        data = VisionWarmUpData(processor.image_processor, steps, batch_size, args.seed, "train")
    else:
        task = SpeechWarmUp(model)
        pool = SpeechPool(args.speech)
        data = SpeechWarmUpData(pool, processor, steps, batch_size, args.seed, whisper=stage == "whisper")
    part = part_parameters(model, PARTS[stage])
    heads = {name: value for name, value in task.named_parameters() if not name.startswith("model.")}
    parameters = [*part.values(), *heads.values()]
    rate = args.learning_rate or 2e-3
    fit(task, data, args.runs / stage, rate, SEED, parameters=parameters, bf16=args.bf16)
    # Under their names in the objective of the chat stage.
    tensors = {f"model.{name}": value.detach() for name, value in part.items()}
    tensors.update({f"dense.{stage}.{name}": value for name, value in task.dense.state_dict().items()})
    save_file(tensors, args.runs / f"{stage}.safetensors")


def new_objective(args: argparse.Namespace) -> StepwiseObjective:
    """Model and dense heads, with the warmed-up encoders and heads that RUNS has."""
    model = start_model(args)
    text_config = model.config.llm_config
    objective = StepwiseObjective(model, DenseLoss(text_config.hidden_size, text_config.vocab_size))
    for stage in (*PARTS, "heads"):
        warmed_up = args.runs / f"{stage}.safetensors"
        weights = load_file(warmed_up) if warmed_up.is_file() else {}
        if unexpected := objective.load_state_dict(weights, strict=False).unexpected_keys:
            raise ValueError(f"{stage}.safetensors does not fit the model: {unexpected[:4]}")
    return objective


def heads(args: argparse.Namespace) -> None:
    """Train the dense heads on the encoders as they are; write RUNS/heads.safetensors."""
    objective = new_objective(args)
    steps, scale = (2, 0.05) if args.quick else (STEPS["heads"], args.scale)
    data = PerceptionData(
        BailingMMProcessor.from_pretrained(ROOT), SpeechPool(args.speech), steps, args.seed + 2, scale=scale
    )
    task = HeadsWarmUp(objective.model, objective.dense)
    fit(task, data, args.runs / "heads", 1e-2, SEED, bf16=args.bf16)
    tensors = {f"dense.{name}": value.detach() for name, value in task.dense.state_dict().items()}
    save_file(tensors, args.runs / "heads.safetensors")


def chat(args: argparse.Namespace) -> None:
    """Stage 1: train all modalities through the decoder; write RUNS/thinker.

    It starts from the warmed-up encoders and heads in RUNS. With `--start-from` the other weights, and encoders that
    RUNS lacks, come from that checkpoint directory.
    """
    processor = BailingMMProcessor.from_pretrained(ROOT)
    objective = new_objective(args)
    pool = SpeechPool(args.speech)
    scale = 0.05 if args.quick else args.scale
    steps = args.steps or (2 if args.quick else STEPS["chat"])
    processes = int(os.environ.get("WORLD_SIZE", 1))
    data = PerceptionData(processor, pool, processes * steps, args.seed, scale=scale)
    validation = PerceptionData(processor, pool, 2, args.seed + 1, scale=scale / 2)[1]  # item 1 is for Whisper
    balance = BalanceCallback(objective, DynamicBalance(list(MIX)), validation, every=100)
    # The encoders are trained already, so they learn slowly.
    scales = {f"model.{name}.": 0.5 for names in PARTS.values() for name in names}
    trainer = fit(
        objective,
        data,
        args.runs / "chat",
        args.learning_rate or 2e-3,
        SEED,
        callbacks=(balance,),
        scales=scales,
        save_steps=100,
        bf16=args.bf16,
    )
    if trainer.is_world_process_zero():
        export(objective.model, processor, args.runs / "thinker")


def export(model: BailingMMNativeForConditionalGeneration, processor: BailingMMProcessor, directory: Path) -> None:
    """Write model and processor as a loadable directory in bfloat16."""
    model.config.auto_map = AUTO_MAP
    model.config.source = CheckpointSource(str(ROOT))  # its code is copied
    for name in model.config.sub_configs:  # training loads float32 weights; the dtype of the parts must not be saved
        if (part := getattr(model.config, name)) is not None:
            part.dtype = None
    with saving(directory) as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        processor.save_pretrained(folder)


def speaking(args: argparse.Namespace) -> None:
    """Stage 2a: train the networks that encode voices, then those that speak; write RUNS/model with the thinker."""
    pool = SpeechPool(args.speech)
    for network in NETWORKS:
        train_network(network, args.runs, pool, quick=args.quick)
    args = argparse.Namespace(**{**vars(args), "thinker": args.runs / "thinker"})
    for name in stage_speaking.STAGES:
        stage_speaking.train(name, args)
    stage_speaking.export(args)


def drawing(args: argparse.Namespace) -> None:
    """Stage 2b: train the image head; write RUNS/model/image_gen."""
    args = argparse.Namespace(**{**vars(args), "thinker": args.runs / "thinker"})
    for name in stage_drawing.STAGES:
        stage_drawing.train(name, args)
    stage_drawing.export(args)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.tiny", description=__doc__)
    parser.add_argument("stage", choices=("all", *ORDER), help="all: every stage in order")
    parser.add_argument("--quick", action="store_true", help="a few steps of every stage, to see that it runs")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "tiny", help="checkpoints and logs")
    parser.add_argument("--speech", type=Path, default=ROOT / ".cache" / "tiny" / "speech_train", help="speech pool")
    parser.add_argument("--steps", type=count, help="number of optimizer steps")
    parser.add_argument("--batch-size", type=count, help="warm-up stages: images or recordings per step")
    parser.add_argument("--learning-rate", type=number_above_zero(1.0))
    parser.add_argument(
        "--scale",
        type=number_above_zero(1000.0),
        default=0.8,
        help="stage chat: factor on the chats per step and process",
    )
    parser.add_argument("--start-from", type=Path, help="a checkpoint directory to continue from")
    parser.add_argument("--seed", type=seed, default=SEED, help="give another one for other data than an earlier run")
    parser.add_argument("--threads", type=count, default=2, help="CPU threads")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16: faster where the CPU has it")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.runs.mkdir(parents=True, exist_ok=True)
    for stage in ORDER if args.stage == "all" else (args.stage,):
        logger.info("stage %s", stage)
        if stage in PARTS:
            warm_up(stage, args)
        else:
            {"speech": speech, "heads": heads, "chat": chat, "speaking": speaking, "drawing": drawing}[stage](args)


if __name__ == "__main__":
    main()
