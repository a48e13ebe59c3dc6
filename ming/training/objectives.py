"""Training losses of the thinker as functions of tensors.

`next_token_loss` equals the loss of the model itself (`labels=`, `output_router_logits=True`) but needs less memory;
`chat_labels` makes its labels. The CTC functions train the audio encoders before the decoder hears them.

Shape letters: B batch, L tokens, T audio tokens, V vocabulary, H hidden size of the decoder.
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

    A turn reaches from its header to the next `<role>`. At that position the label is the end token, while the input
    keeps the `<role>` of the next turn: every turn learns to stop, and later turns see the context of inference.

    Args:
        input_ids, attention_mask: int64 [B, L].
        assistant_header: ids of `<role>ASSISTANT</role>`; its first id opens every turn.
        eos_token_id: label of the position after a turn.

    Returns:
        int64 [B, L], `IGNORE` outside assistant turns.
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


def next_token_loss(
    model: nn.Module,
    inputs_embeds: torch.Tensor,
    mm_token_type_ids: torch.Tensor | None,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The loss of the model itself, without the logits of positions that have no label.

    Most positions of a chat are prompt; with the released vocabulary their logits take most of the memory of a
    training step.

    Args:
        model: a `BailingMMNativeForConditionalGeneration`; its loss is `model(..., output_router_logits=True).loss`.
        inputs_embeds, mm_token_type_ids: [B, L, H] and [B, L], what `model.embed` returns.
        attention_mask, labels: [B, L].

    Returns:
        The scalar loss, and the hidden states [B, L, H] before the first layer and after each layer.
    """
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
        logit_lengths, target_lengths: int64 [B].
        targets: int64 [B, max target length]; the padding values do not matter.

    Returns:
        Scalar: the loss per target token, averaged over the batch; utterances too short for their text count as 0.
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
    """Share of rows that `ctc_greedy` decodes without an error (float64 scalar); arguments as of `ctc_loss`."""
    decoded = ctc_greedy(logits.detach(), logit_lengths)
    expected = [row[:length].tolist() for row, length in zip(targets, target_lengths.tolist(), strict=True)]
    return torch.tensor([a == b for a, b in zip(decoded, expected, strict=True)]).double().mean()


def ctc_greedy(logits: torch.Tensor, logit_lengths: torch.Tensor) -> list[list[int]]:
    """Token ids per row: the best class of each frame of logits [B, T, V + 1], repeats merged, blanks dropped."""
    blank = logits.shape[-1] - 1
    rows = []
    for best, length in zip(logits.argmax(dim=-1), logit_lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(best[:length]).tolist()
        rows.append([token for token in merged if token != blank])
    return rows
