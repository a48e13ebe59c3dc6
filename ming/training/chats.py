"""Chats as training batches, and the step-wise objective over modalities.

Works for any checkpoint of this package: the checkpoint's own processor reads the messages, so training sees the same
inputs as inference.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BatchFeature, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ming.files import replacing
from ming.training.balance import DynamicBalance, weighted_sum
from ming.training.objectives import chat_labels, next_token_loss


def assistant_header(tokenizer) -> list[int]:
    """Ids of `<role>ASSISTANT</role>`."""
    return tokenizer("<role>ASSISTANT</role>", add_special_tokens=False)["input_ids"]


def chat_batch(processor, chats: list[list[dict]], use_whisper_encoder: bool = False) -> dict[str, torch.Tensor]:
    """Model inputs of chats that end with an assistant turn, with `labels` int64 [B, L] on all assistant turns.

    Args:
        processor: a `BailingMMProcessor`.
        chats: B lists of messages.
    """
    batch = dict(_inputs(processor, chats, use_whisper_encoder, add_generation_prompt=False))
    batch["labels"] = chat_labels(
        batch["input_ids"],
        batch["attention_mask"],
        assistant_header(processor.tokenizer),
        processor.tokenizer.eos_token_id,
    )
    return batch


def prompt_batch(processor, prompts: list[list[dict]], use_whisper_encoder: bool = False) -> BatchFeature:
    """Model inputs of chats that end with a user turn, padded on the left, ready for the reply.

    Args:
        processor: a `BailingMMProcessor`.
        prompts: B lists of messages.
    """
    return _inputs(processor, prompts, use_whisper_encoder, add_generation_prompt=True)


def _inputs(
    processor, chats: list[list[dict]], use_whisper_encoder: bool, add_generation_prompt: bool
) -> BatchFeature:
    inputs = processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=add_generation_prompt,
        use_whisper_encoder=use_whisper_encoder,
    )
    inputs.pop("audio_placeholder_loc_lens", None)  # mm_token_type_ids say the same
    return inputs


class StepwiseObjective(nn.Module):
    """Step-wise balance: one forward pass per modality, and the weighted sum of the losses.

    `forward(text={...}, image={...}, ...)` takes one batch per modality and returns the weighted sum as "loss" and
    each modality's own loss under its name. A callback may change `weights`.

    Args:
        model: a `BailingMMNativeForConditionalGeneration`.
        dense: module (inputs_embeds, states after the first layer, mm_token_type_ids, labels) -> scalar. It trains
            the encoders beside the replies; a batch with labels for it has them under "dense".
        dense_weight: factor on the losses of `dense`.
    """

    def __init__(self, model: nn.Module, dense: nn.Module | None = None, dense_weight: float = 0.3):
        super().__init__()
        self.model, self.dense, self.dense_weight = model, dense, dense_weight
        self.weights: dict[str, float] = {}

    def forward(self, **batches: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        losses: dict[str, torch.Tensor] = {}
        dense_losses: list[torch.Tensor] = []
        for name, inputs in batches.items():
            batch = dict(inputs)
            labels, attention_mask = batch.pop("labels"), batch.pop("attention_mask")
            dense_labels = batch.pop("dense", None)
            inputs_embeds, token_types = self.model.embed(**batch)
            losses[name], states = next_token_loss(self.model, inputs_embeds, token_types, attention_mask, labels)
            if self.dense is not None and dense_labels:
                dense_losses.append(self.dense(inputs_embeds, states[1], token_types, dense_labels))
        loss = weighted_sum(losses, self.weights)
        if not dense_losses:
            return {"loss": loss, **losses}
        dense = sum(dense_losses)
        return {"loss": loss + self.dense_weight * dense, "dense": dense, **losses}


class BalanceCallback(TrainerCallback):
    """Dynamic adaptive balance: new weights from validation losses; the history is saved with checkpoints.

    Args:
        objective: the callback updates its `weights`.
        balance: maps losses to weights.
        validation: one batch per modality that is never trained on.
        every: number of steps between two updates.
    """

    FILE = "balance.pt"
    needed = (FILE,)  # of every checkpoint

    def __init__(self, objective: StepwiseObjective, balance: DynamicBalance, validation: dict[str, dict], every: int):
        self.objective, self.balance, self.validation, self.every = objective, balance, validation, every

    def _path(self, args: TrainingArguments, state: TrainerState) -> Path:
        return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / self.FILE

    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if state.global_step % self.every:
            return
        self.objective.eval()
        losses = self.objective(**self.validation)
        self.objective.train()
        self.balance.observe({name: losses[name].item() for name in self.validation})
        self.objective.weights = self.balance.weights()
        state.log_history.append({"step": state.global_step, "balance_weights": dict(self.objective.weights)})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if state.is_world_process_zero:
            with replacing(self._path(args, state)) as path:
                torch.save(self.balance.state_dict(), path)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        saved = self._path(args, state)
        if saved.is_file():
            self.balance.load_state_dict(torch.load(saved, weights_only=True))
            self.objective.weights = self.balance.weights()
