"""The talker's objectives: the next codec id, from text, voice and what the thinker made of the chat; and, where it is
known when which word is said, attention that points at the word that is due.

Shape letters: B rows, L places of a row, H width of the talker.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from ming.modeling_talker import BailingMMTalker, TalkerPrompt

IGNORE = -100


class WordAlignment(NamedTuple):
    """Which word, counted from 0, each token of the whole text belongs to, and which is said by each codec id, the
    voice's own included."""

    tokens: list[int]
    codec_ids: list[int]


def talker_batch(
    talker: BailingMMTalker,
    prompts: list[TalkerPrompt],
    targets: list[torch.Tensor],
    alignments: list[WordAlignment] | None = None,
) -> dict[str, torch.Tensor]:
    """Prompts and the codec ids [n] that must follow -> inputs of the talker's `forward` with labels [B, L].

    Built by the code that speaks, so that positions and prefix are those of inference: the release trains with
    ordinary positions and speaks with one position for the whole prefix. The voice's own ids are trained too, they
    say the first part of the text; the end token follows the last id.

    With alignments also "words" and "due" [B, L], as `pointing_loss` takes them; the end of the text is a word too.
    """
    whole = [
        replace(prompt, prompt_ids=torch.cat([prompt.prompt_ids, ids]))
        for prompt, ids in zip(prompts, targets, strict=True)
    ]
    inputs = talker.prepare_inputs(whole)
    audio_ids, eos = inputs["audio_ids"], talker.config.special_token_ids["<audio_eos>"]
    labels = torch.full_like(audio_ids, IGNORE)
    for row, prompt in enumerate(whole):
        said = len(prompt.prompt_ids)
        labels[row, -said - 1 : -1] = audio_ids[row, -said:]
        labels[row, -1] = eos
    batch = {**inputs, "labels": labels}
    if alignments is not None:
        batch |= {"words": torch.full_like(labels, IGNORE), "due": torch.full_like(labels, IGNORE)}
        for row, alignment in enumerate(alignments):
            end = max(alignment.tokens) + 1
            first = labels.shape[1] - len(alignment.codec_ids) - 1  # here begin the text and what is said
            tokens = torch.tensor([*alignment.tokens, end])[: labels.shape[1] - first]
            batch["words"][row, first : first + len(tokens)] = tokens
            batch["due"][row, first:] = torch.tensor([*alignment.codec_ids, end])
    return batch


@torch.no_grad()
def thinker_states(thinker: nn.Module, chats: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a talker is told about chats: embeddings + last hidden states of left-padded prompts, moved to the left,
    [B, L, D]. The sum is the released one; see `PrefillStates`, which takes it while a reply is decoded."""
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
    """Mean cross-entropy of the ids that are trained, without the logits of the others; also the hidden states
    [B, L, H] before the first layer and behind each one."""
    batch = dict(batch)
    labels = batch.pop("labels")
    batch.pop("words", None), batch.pop("due", None)
    position_ids, attention_mask = batch.pop("position_ids"), batch.pop("attention_mask")
    outputs = talker.model.model(
        inputs_embeds=talker.embed(**batch),
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=False,
        output_hidden_states=True,
    )
    trained = labels != IGNORE
    logits = talker.model.lm_head(outputs.last_hidden_state[trained]).float()
    return F.cross_entropy(logits, labels[trained]), outputs.hidden_states


def pointing_loss(
    talker: BailingMMTalker, hidden_states: torch.Tensor, batch: dict[str, torch.Tensor], layer: int, head: int = 0
) -> torch.Tensor:
    """Negative log of the share of an attention head that rests on the word that is due, mean over places.

    Guided attention (Tachibana et al., arXiv 1710.08969, section 4.1) with words in place of a diagonal. A word whose
    tokens come later in the text stream than its sound cannot be pointed at and does not count.

    Args:
        hidden_states: [B, L, H] before the layer, of the pass that the loss of `batch` comes from.
        batch: of `talker_batch` with alignments.
    """
    scores = _attention_scores(talker, hidden_states, batch["position_ids"], layer, head)
    length = scores.shape[-1]
    seen = torch.ones(length, length, dtype=torch.bool, device=scores.device).tril()
    seen = seen & batch["attention_mask"].bool()[:, None]
    due, words = batch["due"], batch["words"]
    wanted = seen & (due[:, :, None] == words[:, None]) & (due != IGNORE)[:, :, None]
    counts = wanted.any(dim=-1)
    total = scores.masked_fill(~seen, -torch.inf)[counts].logsumexp(dim=-1)
    return (total - scores.masked_fill(~wanted, -torch.inf)[counts].logsumexp(dim=-1)).mean()


def _attention_scores(
    talker: BailingMMTalker, hidden_states: torch.Tensor, position_ids: torch.Tensor, layer: int, head: int
) -> torch.Tensor:
    """[B, L, L] of one head, before the mask: fused attention does not give them."""
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
