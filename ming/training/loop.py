"""The training loop: `transformers.Trainer` over ready-made batches, in order, resumable to the same result."""

import json
import logging
import os
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .optimizer import MuonAdamW

logger = logging.getLogger(__name__)


def _only_item(batches: list[dict]) -> dict:
    """Collate function for data sets whose items are whole batches."""
    return batches[0]


class BatchTrainer(Trainer):
    """Trainer for a module that maps a batch to {"loss": scalar, name: scalar, ...}.

    Item `step` of the data set is the batch of step `step`, so that resuming needs no replay of random numbers. The
    module's other scalars are averaged over the logging interval and logged beside the loss. Under `torchrun` the
    processes take the items of the data set in turn: item 0 and 1 make step 0 of two processes.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, data_collator=_only_item, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.pending: dict[str, list[torch.Tensor]] = defaultdict(list)

    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        for name, value in outputs.items():
            if name != "loss":
                self.pending[name].append(value.detach())
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs, *args, **kwargs):
        logs.update({name: round(torch.stack(values).mean().item(), 4) for name, values in self.pending.items()})
        self.pending.clear()
        super().log(logs, *args, **kwargs)


class JsonLog(TrainerCallback):
    """Append every log entry to `log.jsonl` in the output directory, for curves."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        with (Path(args.output_dir) / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


def _training_arguments(num_steps: int, **arguments) -> TrainingArguments:
    """What all trainings here share, unless `arguments` say otherwise."""
    on_cpu = not torch.cuda.is_available()
    defaults = {
        "per_device_train_batch_size": 1,
        "num_train_epochs": 1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(100, max(1, num_steps // 10)),
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "logging_steps": 25,
        "save_steps": 200,
        "save_total_limit": 2,
        # A card waits for nothing but batches.
        "dataloader_num_workers": 1 if on_cpu else max(1, min(8, (os.cpu_count() or 1) // 3)),
        "dataloader_prefetch_factor": 4,
        "remove_unused_columns": False,
        "use_cpu": on_cpu,
        "ddp_backend": "gloo" if "WORLD_SIZE" in os.environ and on_cpu else None,
        "ddp_find_unused_parameters": True,  # a batch may leave a whole encoder out
        "report_to": "none",
    }
    return TrainingArguments(**{**defaults, **arguments})


def fit(
    module: nn.Module,
    dataset: torch.utils.data.Dataset,
    output_dir: str | Path,
    learning_rate: float,
    seed: int,
    callbacks: tuple[TrainerCallback, ...] = (),
    trainer_class: type[BatchTrainer] = BatchTrainer,
    parameters: list[nn.Parameter] | None = None,
    scales: dict[str, float] | None = None,
    adamw: bool = False,
    **arguments,
) -> BatchTrainer:
    """Train a module over a data set of batches; go on from the last checkpoint in `output_dir` if there is one.

    Args:
        module: maps a batch to {"loss": ...}.
        dataset: item `step` is the batch of step `step`; its length is the number of steps.
        parameters: what to train; None trains everything that requires a gradient.
        scales: see `MuonAdamW`.
        adamw: take the library's AdamW, for weights that are trained already.
        arguments: further `transformers.TrainingArguments`, among them `bf16`: compute in bfloat16 under autocast.
    """
    if parameters is not None:
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
    args = _training_arguments(
        len(dataset), output_dir=str(output_dir), learning_rate=learning_rate, seed=seed, **arguments
    )
    trainer = trainer_class(
        model=module,
        args=args,
        train_dataset=dataset,
        callbacks=[JsonLog(), *callbacks],
        optimizers=(None if adamw else MuonAdamW(module, learning_rate, args.weight_decay, scales=scales), None),
    )
    if last := get_last_checkpoint(str(output_dir)) if Path(output_dir).is_dir() else None:
        logger.info("going on from %s", last)
    # The fused attention of CPUs takes eight times as long backwards in bfloat16 as in float32.
    with sdpa_kernel(SDPBackend.MATH) if args.bf16 and args.use_cpu else nullcontext():
        trainer.train(resume_from_checkpoint=last)
    return trainer
