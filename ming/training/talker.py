"""Training losses of the talker.

`talker_loss` predicts the next codec id from the text, the voice and the thinker's states. `pointing_loss` is for data
that say when each word is spoken: it makes an attention head point at the current word.

Shape letters: B rows, L positions of a row, H width of the talker, D width of the thinker.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from ming.modeling_talker import BailingMMTalker
from ming.talker_steps import TalkerPrompt
from ming.training.objectives import IGNORE


class WordAlignment(NamedTuple):
    """The word, counted from 0, of each token of the whole text and of each codec id, prompt included."""

    tokens: list[int]
    codec_ids: list[int]


def talker_batch(
    talker: BailingMMTalker,
    prompts: list[TalkerPrompt],
    targets: list[torch.Tensor],
    alignments: list[WordAlignment] | None = None,
) -> dict[str, torch.Tensor]:
    """Inputs of the talker's `forward`, with labels int64 [B, L].

    The code of inference builds them, so positions and prefix are those of inference: the release trains with
    ordinary positions and speaks with one position for the whole prefix. The codec ids of the voice prompt are trained
    too, since they speak the first part of the text. The end token follows the last id.

    Args:
        prompts: B prompts.
        targets: per prompt int64 [n], the codec ids that must follow.
        alignments: per prompt; with them the batch also has "words" and "due" int64 [B, L] for `pointing_loss`. The
            end of the text counts as a word.
    """
    whole = [
        replace(prompt, prompt_ids=torch.cat([prompt.prompt_ids, ids]))
        for prompt, ids in zip(prompts, targets, strict=True)
    ]
    inputs = talker.prepare_inputs(whole)
    audio_ids, eos = inputs["audio_ids"], talker.config.special_token_ids["<audio_eos>"]
    labels = torch.full_like(audio_ids, IGNORE)
    for row, prompt in enumerate(whole):
        spoken = len(prompt.prompt_ids)
        labels[row, -spoken - 1 : -1] = audio_ids[row, -spoken:]
        labels[row, -1] = eos
    batch = {**inputs, "labels": labels}
    if alignments is not None:
        batch |= {"words": torch.full_like(labels, IGNORE), "due": torch.full_like(labels, IGNORE)}
        for row, alignment in enumerate(alignments):
            end = max(alignment.tokens) + 1
            first = labels.shape[1] - len(alignment.codec_ids) - 1  # the text and the codec ids begin here
            tokens = torch.tensor([*alignment.tokens, end])[: labels.shape[1] - first]
            batch["words"][row, first : first + len(tokens)] = tokens
            batch["due"][row, first:] = torch.tensor([*alignment.codec_ids, end])
    return batch


@torch.no_grad()
def thinker_states(thinker: nn.Module, chats: dict[str, torch.Tensor]) -> torch.Tensor:
    """The talker's input from the thinker: embeddings + last hidden states [B, L, D] of left-padded chats.

    The result is padded on the right. The sum is the released one; at inference `generate` collects it while it reads
    the prompt.

    Args:
        thinker: a `BailingMMNativeForConditionalGeneration`.
        chats: its inputs, with `attention_mask` [B, L].
    """
    inputs = dict(chats)
    attention_mask = inputs.pop("attention_mask")
    embeds, token_types = thinker.embed(**inputs)
    outputs = thinker.get_decoder()(
        inputs_embeds=embeds, attention_mask=attention_mask, mm_token_type_ids=token_types, use_cache=False
    )
    states = embeds + outputs.last_hidden_state
    rows = [row[mask.bool()] for row, mask in zip(states, attention_mask, strict=True)]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def talker_loss(
    talker: BailingMMTalker, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Mean cross-entropy of the labelled ids; the logits of other positions are not computed.

    Args:
        batch: from `talker_batch`.

    Returns:
        The scalar loss, and the hidden states [B, L, H] before the first layer and after each layer.
    """
    others = ("labels", "words", "due", "position_ids", "attention_mask")
    labels = batch["labels"]
    outputs = talker.model.model(
        inputs_embeds=talker.embed(**{name: tensor for name, tensor in batch.items() if name not in others}),
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        use_cache=False,
        output_hidden_states=True,
    )
    trained = labels != IGNORE
    logits = talker.model.lm_head(outputs.last_hidden_state[trained]).float()
    return F.cross_entropy(logits, labels[trained]), outputs.hidden_states


def pointing_loss(
    talker: BailingMMTalker, hidden_states: torch.Tensor, batch: dict[str, torch.Tensor], layer: int, head: int = 0
) -> torch.Tensor:
    """Negative log of the share of an attention head that rests on the current word, averaged over positions.

    This is guided attention (Tachibana et al., arXiv 1710.08969, section 4.1) with words in place of a diagonal. A
    word whose tokens come later in the text stream than its audio cannot be attended to and does not count.

    Args:
        hidden_states: [B, L, H] before the layer, from the forward pass of `talker_loss` on `batch`.
        batch: from `talker_batch` with alignments.
        layer, head: indices of the attention head.
    """
    scores = _attention_scores(talker, hidden_states, batch["position_ids"], layer, head)
    length = scores.shape[-1]
    seen = torch.ones(length, length, dtype=torch.bool, device=scores.device).tril()
    seen = seen & batch["attention_mask"].bool()[:, None]
    due, words = batch["due"], batch["words"]
    on_word = seen & (due[:, :, None] == words[:, None]) & (due != IGNORE)[:, :, None]
    counts = on_word.any(dim=-1)
    total = scores.masked_fill(~seen, -torch.inf)[counts].logsumexp(dim=-1)
    return (total - scores.masked_fill(~on_word, -torch.inf)[counts].logsumexp(dim=-1)).mean()


def _attention_scores(
    talker: BailingMMTalker, hidden_states: torch.Tensor, position_ids: torch.Tensor, layer: int, head: int
) -> torch.Tensor:
    """Scores [B, L, L] of one head, float32 and unmasked; fused attention does not return them."""
    block = talker.model.model.layers[layer]
    attention, size = block.self_attn, block.self_attn.head_dim
    normed = block.input_layernorm(hidden_states)
    projected = []
    for linear, index in ((attention.q_proj, head), (attention.k_proj, head // attention.num_key_value_groups)):
        rows = slice(index * size, (index + 1) * size)
        projected.append(F.linear(normed, linear.weight[rows], linear.bias[rows])[:, None])
    cos, sin = talker.model.model.rotary_emb(normed, position_ids)
    query, key = apply_rotary_pos_emb(*projected, cos, sin)
    return (query @ key.transpose(2, 3))[:, 0].float() * attention.scaling
