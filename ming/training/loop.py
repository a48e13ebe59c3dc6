"""The training loop: `transformers.Trainer` over ready-made batches, in order, so that a resumed run ends the same."""

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Trainer, TrainerCallback, TrainingArguments

from ming.files import SavingError
from ming.training.optimizer import MuonAdamW

logger = logging.getLogger(__name__)

ARCHIVE_ERROR = "inline_container"  # what torch.save says of a write that failed


def last_checkpoint(output: str | Path, needed: Iterable[str] = ()) -> Path | None:
    """The last complete checkpoint in an output directory.

    The trainer writes its state last, and callbacks write their files behind it. What a killed process was writing,
    or removing, is passed over.

    Args:
        needed: files of callbacks without which a checkpoint is not complete.
    """
    folders = (state.parent for state in Path(output).glob("checkpoint-*/trainer_state.json") if _is_whole(state))
    complete = [folder for folder in folders if all((folder / name).is_file() for name in needed)]
    return max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)


def _is_whole(state: Path) -> bool:
    """Whether a state of the trainer was written to its end."""
    try:
        return bool(json.loads(state.read_text(encoding="utf-8")))
    except ValueError:
        return False


@contextmanager
def writing_checkpoints(output: str | Path) -> Iterator[None]:
    """A block that trains.

    Raises:
        SavingError: torch cannot write a file of a checkpoint; its own error tells the place in its archive.
    """
    try:
        yield
    except RuntimeError as error:
        if ARCHIVE_ERROR not in str(error):
            raise
        raise SavingError(f"a checkpoint into {output}", OSError(f"the disk may be full ({error})")) from error


def local_device_arguments() -> dict[str, Any]:
    """`TrainingArguments` that depend on the machine and on `torchrun`."""
    on_cpu = not torch.cuda.is_available()
    return {
        "use_cpu": on_cpu,
        "ddp_backend": "gloo" if on_cpu and "WORLD_SIZE" in os.environ else None,
        "ddp_find_unused_parameters": True,  # a batch may use no image, no audio, or not every expert
    }


class SeededBatches(torch.utils.data.Dataset):
    """A data set whose item `step` is the batch of step `step`; it depends on the seed only.

    Subclasses define `__getitem__(step)`, with random numbers from `rng(step)`.
    """

    def __init__(self, steps: int, batch_size: int, seed: int):
        self.steps, self.batch_size, self.seed = steps, batch_size, seed

    def __len__(self) -> int:
        return self.steps

    def rng(self, step: int) -> np.random.Generator:
        """The random numbers of a step."""
        return np.random.default_rng((self.seed, step))


def _only_item(batches: list[dict]) -> dict:
    """Collate function for data sets whose items are whole batches."""
    return batches[0]


class BatchTrainer(Trainer):
    """Trainer for a module that maps a batch to {"loss": scalar, name: scalar, ...}.

    Item `step` of the data set is the batch of step `step`, so resuming needs no replay of random numbers. The other
    scalars of the module are averaged over the logging interval and logged beside the loss. Under `torchrun` the
    processes take the items of the data set in turn: items 0 and 1 make step 0 of two processes.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, data_collator=_only_item, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.pending: dict[str, list[torch.Tensor]] = defaultdict(list)

    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The "loss" of the module's outputs; the other outputs are kept for the next log entry."""
        outputs = model(**inputs)
        for name, value in outputs.items():
            if name != "loss":
                self.pending[name].append(value.detach())
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs, *args, **kwargs):
        """Add the means of the other outputs since the last entry."""
        logs.update({name: round(torch.stack(values).mean().item(), 4) for name, values in self.pending.items()})
        self.pending.clear()
        super().log(logs, *args, **kwargs)


class JsonLog(TrainerCallback):
    """Append every log entry to `log.jsonl` in the output directory, for curves."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        with (Path(args.output_dir) / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


def _training_arguments(num_steps: int, **arguments) -> TrainingArguments:
    """The defaults of every training here, overridden by `arguments`."""
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
        # A GPU waits for nothing but batches.
        "dataloader_num_workers": max(1, min(8, (os.cpu_count() or 1) // 3)) if torch.cuda.is_available() else 1,
        "dataloader_prefetch_factor": 4,
        "remove_unused_columns": False,
        "report_to": "none",
        **local_device_arguments(),
    }
    return TrainingArguments(**{**defaults, **arguments})


def fit(
    module: nn.Module,
    dataset: torch.utils.data.Dataset,
    output_dir: str | Path,
    learning_rate: float,
    seed: int,
    callbacks: tuple[TrainerCallback, ...] = (),
    parameters: list[nn.Parameter] | None = None,
    scales: dict[str, float] | None = None,
    adamw: bool = False,
    **arguments,
) -> BatchTrainer:
    """Train a module on a data set of batches; continue from the last checkpoint in `output_dir` if there is one.

    Args:
        module: maps a batch to {"loss": scalar, ...}.
        callbacks: those with an attribute `needed` name files that they write into every checkpoint.
        dataset: item `step` is the batch of step `step`; its length is the number of steps.
        parameters: what to train; None trains everything that requires a gradient.
        scales: see `MuonAdamW`.
        adamw: use the library's AdamW, for weights that are already trained.
        arguments: further `transformers.TrainingArguments`, such as `bf16`, which computes in bfloat16 (autocast).
    """
    if parameters is not None:
        module.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
    args = _training_arguments(
        len(dataset), output_dir=str(output_dir), learning_rate=learning_rate, seed=seed, **arguments
    )
    trainer = BatchTrainer(
        model=module,
        args=args,
        train_dataset=dataset,
        callbacks=[JsonLog(), *callbacks],
        optimizers=(None if adamw else MuonAdamW(module, learning_rate, args.weight_decay, scales=scales), None),
    )
    last = last_checkpoint(output_dir, [name for callback in callbacks for name in getattr(callback, "needed", ())])
    if last is not None:
        logger.info("continuing from %s", last)
    # The fused attention of CPUs takes eight times as long backwards in bfloat16 as in float32.
    backend = sdpa_kernel(SDPBackend.MATH) if args.bf16 and args.use_cpu else nullcontext()
    with backend, writing_checkpoints(output_dir):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return trainer
