"""The talker's objective: the next codec id, from text, voice and what the thinker made of the chat."""

from dataclasses import replace

import torch

from modeling_talker import BailingMMTalker, TalkerPrompt

IGNORE = -100


def talker_batch(
    talker: BailingMMTalker, prompts: list[TalkerPrompt], targets: list[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Prompts and the codec ids [n] that must follow -> inputs of the talker's `forward` with labels [B, L].

    Built by the code that speaks, so that positions and prefix are those of inference: the release trains with
    ordinary positions and speaks with one position for the whole prefix. The voice's own ids are trained too, they
    say the first part of the text; the end token follows the last id.
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
    return {**inputs, "labels": labels}


def talker_loss(
    talker: BailingMMTalker, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Mean cross-entropy of the ids that are trained, without the logits of the others; also the hidden states
    [B, L, H] before the first layer and behind each one."""
    batch = dict(batch)
    labels = batch.pop("labels")
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
    return torch.nn.functional.cross_entropy(logits, labels[trained]), outputs.hidden_states
