"""Chats as training batches, and the step-wise objective over modalities.

Works for any checkpoint of this package: messages go through its own processor, so that training sees what inference
sees.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import TrainerCallback

from .balance import DynamicBalance, weighted_sum
from .objectives import chat_labels, embedded_loss


def assistant_header(tokenizer) -> list[int]:
    """Ids of `<role>ASSISTANT</role>`."""
    return tokenizer("<role>ASSISTANT</role>", add_special_tokens=False)["input_ids"]


def chat_batch(processor, chats: list[list[dict]], use_whisper_encoder: bool = False) -> dict[str, torch.Tensor]:
    """Messages that end with an assistant turn -> model inputs with `labels` [B, L] on all assistant turns."""
    inputs = processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=False,
        use_whisper_encoder=use_whisper_encoder,
    )
    batch = dict(inputs)
    batch.pop("audio_placeholder_loc_lens", None)  # mm_token_type_ids say the same
    batch["labels"] = chat_labels(
        batch["input_ids"],
        batch["attention_mask"],
        assistant_header(processor.tokenizer),
        processor.tokenizer.eos_token_id,
    )
    return batch


class StepwiseObjective(nn.Module):
    """One forward per modality, summed: step-wise balance, with weights that a callback may change.

    `forward(text={...}, image={...}, ...)` takes one batch per modality and returns the weighted sum as "loss" and
    each modality's own loss under its name.

    Args:
        model: a `BailingMMNativeForConditionalGeneration`.
        dense: module (inputs_embeds, first layer's states, mm_token_type_ids, labels) -> scalar that trains encoders
            beside the replies; a batch that has labels for it holds them as "dense".
        dense_weight: factor on its losses.
    """

    def __init__(self, model: nn.Module, dense: nn.Module | None = None, dense_weight: float = 0.3):
        super().__init__()
        self.model, self.dense, self.dense_weight = model, dense, dense_weight
        self.weights: dict[str, float] = {}

    def forward(self, **batches: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        losses, dense_losses = {}, []
        for name, batch in batches.items():
            batch = dict(batch)
            labels, attention_mask = batch.pop("labels"), batch.pop("attention_mask")
            dense_labels = batch.pop("dense", None)
            inputs_embeds, token_types = self.model.embed(**batch)
            losses[name], states = embedded_loss(self.model, inputs_embeds, token_types, attention_mask, labels)
            if dense_labels:
                dense_losses.append(self.dense(inputs_embeds, states[1], token_types, dense_labels))
        loss = weighted_sum(losses, self.weights)
        if not dense_losses:
            return {"loss": loss, **losses}
        dense = sum(dense_losses)
        return {"loss": loss + self.dense_weight * dense, "dense": dense, **losses}


class BalanceCallback(TrainerCallback):
    """Dynamic adaptive balance: every `every` steps, validation losses -> new weights; saved with checkpoints.

    Args:
        objective: its `weights` are updated.
        balance: the map from losses to weights.
        validation: one batch per modality, never trained on.
    """

    def __init__(self, objective: StepwiseObjective, balance: DynamicBalance, validation: dict[str, dict], every: int):
        self.objective, self.balance, self.validation, self.every = objective, balance, validation, every

    @staticmethod
    def _path(args, state) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "balance.pt"

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every:
            return
        self.objective.eval()
        losses = self.objective(**self.validation)
        self.objective.train()
        self.balance.observe({name: losses[name].item() for name in self.validation})
        self.objective.weights = self.balance.weights()
        state.log_history.append({"step": state.global_step, "balance_weights": dict(self.objective.weights)})

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            torch.save(self.balance.state_dict(), self._path(args, state))

    def on_train_begin(self, args, state, control, **kwargs):
        saved = self._path(args, state)
        if saved.is_file():
            self.balance.load_state_dict(torch.load(saved, weights_only=True))
            self.objective.weights = self.balance.weights()
