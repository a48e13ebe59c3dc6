"""Training objectives of the perception stage as functions of tensors.

The next-token loss and the router losses come from the model itself (`labels=`, `output_router_logits=True`); here is
what turns chats into labels and what warms the encoders up before they meet the decoder.

Shape letters: B batch, L tokens, T audio tokens, V vocabulary, H decoder hidden size.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ming.modeling_bailing_moe import router_losses, weighted_router_loss

IGNORE = -100


def chat_labels(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, assistant_header: list[int], eos_token_id: int
) -> torch.Tensor:
    """Labels for every assistant turn of a batch of chats.

    A turn reaches from its header to the next `<role>`; there the label is the end token, while the input keeps the
    `<role>` of the next turn. So every turn learns to stop and the context of later turns is what inference shows.

    Args:
        input_ids, attention_mask: [B, L].
        assistant_header: ids of `<role>ASSISTANT</role>`; its first id opens every turn.
        eos_token_id: label behind the last token of a turn.
    Returns:
        [B, L] int64, `IGNORE` outside assistant turns.
    """
    labels = torch.full_like(input_ids, IGNORE)
    role, header_length = assistant_header[0], len(assistant_header)
    for row, (ids, mask) in enumerate(zip(input_ids.tolist(), attention_mask.tolist(), strict=True)):
        position = 0
        while position < len(ids):
            if not mask[position] or ids[position : position + header_length] != assistant_header:
                position += 1
                continue
            start = end = position + header_length
            while end < len(ids) and ids[end] != role:
                end += 1
            labels[row, start:end] = input_ids[row, start:end]
            if end < len(ids):
                labels[row, end] = eos_token_id
            position = end
    return labels


def next_token_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's own training loss, without the logits of positions that are not trained.

    Equals `model(**batch, output_router_logits=True).loss`. In a chat most positions are prompt; with the released
    vocabulary their logits are most of the memory of a training step.

    Args:
        model: a `BailingMMNativeForConditionalGeneration`.
        batch: its inputs with `labels` [B, L].
    """
    batch = dict(batch)
    labels, attention_mask = batch.pop("labels"), batch.pop("attention_mask")
    return embedded_loss(model, *model.embed(**batch), attention_mask, labels)[0]


def embedded_loss(
    model: nn.Module,
    inputs_embeds: torch.Tensor,
    mm_token_type_ids: torch.Tensor | None,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """`next_token_loss` from what `model.embed` returns, inputs_embeds [B, L, H], the others [B, L]; also the hidden
    states [B, L, H] before the first layer and behind each one."""
    causal_lm = model.model
    outputs = causal_lm.model(
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        mm_token_type_ids=mm_token_type_ids,
        use_cache=False,
        output_router_logits=True,
        output_hidden_states=True,
    )
    is_trained = labels[:, 1:] != IGNORE
    logits = causal_lm.lm_head(outputs.last_hidden_state[:, :-1][is_trained]).float()
    load_balancing, router_z = router_losses(
        outputs.router_logits, causal_lm.config.num_experts_per_tok, mm_token_type_ids, attention_mask
    )
    loss = F.cross_entropy(logits, labels[:, 1:][is_trained])
    return loss + weighted_router_loss(causal_lm.config, load_balancing, router_z), outputs.hidden_states


def ctc_loss(
    logits: torch.Tensor, logit_lengths: torch.Tensor, targets: torch.Tensor, target_lengths: torch.Tensor
) -> torch.Tensor:
    """Connectionist temporal classification (Graves et al. 2006) over audio tokens; the blank is the last class.

    Args:
        logits: [B, T, V + 1].
        logit_lengths, target_lengths: [B].
        targets: [B, max target length], padded with anything.
    Returns:
        Scalar, mean over the batch of the loss per target token; utterances too short for their text count as 0.
    """
    log_probabilities = logits.float().log_softmax(dim=-1).transpose(0, 1)
    return F.ctc_loss(
        log_probabilities, targets, logit_lengths, target_lengths, blank=logits.shape[-1] - 1, zero_infinity=True
    )


def ctc_targets(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Token ids of several texts as `ctc_loss` takes them: `targets`, padded with zeros, and `target_lengths`."""
    return {
        "targets": nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True),
        "target_lengths": torch.tensor([len(row) for row in rows]),
    }


def ctc_exact(
    logits: torch.Tensor, logit_lengths: torch.Tensor, targets: torch.Tensor, target_lengths: torch.Tensor
) -> torch.Tensor:
    """Share of rows that `ctc_greedy` spells without an error; arguments as of `ctc_loss`."""
    spelled = ctc_greedy(logits.detach(), logit_lengths)
    wanted = [row[:length].tolist() for row, length in zip(targets, target_lengths.tolist(), strict=True)]
    return torch.tensor([a == b for a, b in zip(spelled, wanted, strict=True)]).double().mean()


def ctc_greedy(logits: torch.Tensor, logit_lengths: torch.Tensor) -> list[list[int]]:
    """Best class per frame [B, T, V + 1], repeats merged, blanks dropped -> token ids per row."""
    blank = logits.shape[-1] - 1
    rows = []
    for best, length in zip(logits.argmax(dim=-1), logit_lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(best[:length]).tolist()
        rows.append([token for token in merged if token != blank])
    return rows
