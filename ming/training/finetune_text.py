"""Fine-tuning of the language model and its encoders on replies, by LoRA or with every weight.

`transformers.Trainer` trains the assistant's turns (see `finetune_data`). The loss is the model's own: next token plus
the balance and z-losses of the routers.
"""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMultimodalLM,
    AutoProcessor,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ming.files import saving
from ming.modeling_bailing_moe import weighted_router_loss
from ming.quantization import four_bit
from ming.training.finetune_data import ChatCollator, ChatFile, ChatTrial
from ming.training.finetune_settings import are_checked, run_settings, save_settings
from ming.training.loop import last_checkpoint, local_device_arguments, writing_checkpoints

logger = logging.getLogger(__name__)

DEFAULT_RANK = 16
MERGED = "merged"
# Layers per part of the model, as patterns of whole names; the projectors have activations at the missing numbers.
LORA_MODULES = {
    "attention": r"model\.model\.layers\.\d+\.attention\.(query_key_value|dense)",
    "dense": r"model\.model\.layers\.\d+\.mlp\.(shared_experts\.)?(gate|up|down)_proj",
    "vision": r"vision\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)|linear_proj\.[02468]",
    "audio": r"audio\.encoders\d?\..*(linear_q_k_v|linear_out|w_\d)"
    r"|whisper_encoder\.blocks\..*(self_attn\.\w_proj|out_proj|fc\d)|linear_proj_(audio|whisper)\.[03579]",
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
        """The model's loss, scaled for accumulated batches and several processes.

        The library divides the loss of the tokens by the tokens of all micro-batches and processes. The loss of the
        routers is a mean over each micro-batch and must be averaged, not summed.
        """
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if num_items_in_batch is not None:
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            steps = self.current_gradient_accumulation_steps if model.training else 1
            config = self.model.config.get_text_config()
            router = weighted_router_loss(config, outputs.load_balancing_loss, outputs.router_z_loss)
            loss = loss - router * (processes - 1 / steps)
        return (loss, outputs) if return_outputs else loss

    def load_weights(self, checkpoint: str | Path) -> None:
        """Read the weights of a checkpoint into the model."""
        self._load_from_checkpoint(str(checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        model = model or self.model
        if isinstance(model, PeftModel):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        # The library would match the names of the files as they are and skip the stacked experts.
        saved = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())


def load_model(args: argparse.Namespace, device: torch.device) -> nn.Module:
    """The model, with gradients for the trained weights: a `PeftModel`, or with `--full` the model itself."""
    options: dict[str, Any] = {"dtype": torch.float32}
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
    """The command line as `TrainingArguments`.

    Raises:
        ValueError: one process sees several GPUs.
    """
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
        # Reentrant checkpointing loses the gradients of the router losses, which leave the layers beside their output.
        activation_checkpointing_kwargs={"use_reentrant": False},
        bf16=args.bf16,
        seed=args.seed,
        logging_steps=args.logging_steps,
        save_steps=args.save_steps,
        save_total_limit=2,
        eval_strategy="steps" if args.eval_data else "no",
        eval_steps=args.save_steps,
        prediction_loss_only=True,
        use_cache=True,  # in the saved configuration; the training batches ask for no cache (`ChatCollator`)
        report_to=args.report_to,
        dataloader_num_workers=args.workers,
        remove_unused_columns=False,
        **local_device_arguments(),
    )
    if arguments.n_gpu > 1:  # the library would split the patches of images into as many parts
        raise ValueError(
            f"one process sees {arguments.n_gpu} GPUs; start it by torchrun --nproc_per_node {arguments.n_gpu} -m "
            "ming finetune ..., or set CUDA_VISIBLE_DEVICES=0"
        )
    return arguments


@dataclass(frozen=True)
class Run:
    """What is known before the model is read: chats as from `read_chats`, and the settings of the run."""

    chats: list[dict]
    held_out: list[dict] | None
    settings: dict[str, Any]
    arguments: TrainingArguments
    processor: Any

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> "Run":
        """Read and check the files and options of the command line. Every chat is read once, as training will.

        Of several processes each checks its share. The chats of a run that goes on were checked when it began.

        Raises:
            ValueError: bad chats, a directory that cannot be used, or several GPUs in one process.
            OSError: there is no such model.
        """
        held_out = ChatFile.read(args.eval_data) if args.eval_data else None
        chats, settings, arguments = ChatFile.read(args.data), run_settings(args), training_arguments(args)
        processor = AutoProcessor.from_pretrained(args.model)
        context = AutoConfig.from_pretrained(args.model).llm_config.max_position_embeddings
        trial = ChatTrial(processor, args.whisper, context)
        for file in [held_out, None if are_checked(args, settings) else chats]:
            if file is not None:
                logger.info("reading the %d chats of %s once, to check them", len(file.chats), file.path)
                file.share(arguments.process_index, arguments.world_size).raise_if_unusable(trial, args.workers)
        return cls(chats.chats, held_out.chats if held_out else None, settings, arguments, processor)


def train(args: argparse.Namespace, run: Run) -> dict[str, float]:
    """Train and save; continue from the last checkpoint in `args.output` if there is one.

    Returns:
        The library's metrics: "train_loss", and "eval_loss" with held-out chats.
    """
    processor = run.processor
    model = load_model(args, run.arguments.device)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info("%d chats; training %d of %d parameters", len(run.chats), trained, model.num_parameters())
    trainer = ChatTrainer(
        model=model,
        args=run.arguments,
        data_collator=ChatCollator(processor, args.whisper),
        train_dataset=run.chats,
        eval_dataset=run.held_out,
        processing_class=processor,
    )
    if trainer.is_world_process_zero():
        save_settings(args.output, run.settings)
    with writing_checkpoints(args.output):
        metrics = _train_from(trainer, last_checkpoint(args.output))
    save(trainer, args.output)
    if run.held_out:
        metrics |= trainer.evaluate()
    if args.merge and trainer.is_world_process_zero():
        del trainer, model
        dtype = torch.bfloat16 if args.bf16 else torch.float32
        merge(args.model, args.output, Path(args.output) / MERGED, dtype)
    return metrics


def save(trainer: ChatTrainer, output: str | Path) -> None:
    """Write what was trained, with the processor; all files take their places together, or none does."""
    if not trainer.is_world_process_zero():
        trainer.save_model(output)  # takes part in gathering weights that are split; only the first process writes
        return
    with saving(output) as folder:
        trainer.save_model(folder)


def _train_from(trainer: ChatTrainer, last: Path | None) -> dict[str, float]:
    """Train to the end, from a checkpoint or from the start -> the library's metrics; none if nothing was left."""
    if last is None:
        return trainer.train().metrics
    done = TrainerState.load_from_json(last / "trainer_state.json").global_step
    total = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    logger.info("continuing from %s: %d of %d steps are done", last, done, total)
    if done < total:
        return trainer.train(resume_from_checkpoint=str(last)).metrics
    trainer.load_weights(last)  # the library's `train` would make one more step
    return {}


def merge(model: str | Path, adapter: str | Path, output: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Add the weights of an adapter to those of its model on the CPU, and save a whole repository.

    Args:
        model: what the adapter was trained on; it is read in full precision, even if training quantised it.
        adapter: the directory that training wrote.
        dtype: precision of the sum and of the saved weights.
    """
    base = AutoModelForMultimodalLM.from_pretrained(model, dtype=dtype)
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    with saving(output) as folder:
        merged.save_pretrained(folder)
        AutoProcessor.from_pretrained(model).save_pretrained(folder)
    logger.info("the merged model is in %s", output)
