"""Compiles the steps of a model before it is served, so that no request waits for the compiler."""

import logging
import time
from collections.abc import Callable
from functools import partial
from itertools import islice

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from ming.compiled import padded_rows, step_config
from ming.modeling_talker import TalkerPrompt
from ming.serving.prepare import missing_outputs
from ming.speech import TALKER_BATCH

logger = logging.getLogger(__name__)

STEPS = 3  # the first is not compiled; a CUDA graph is recorded by the second call of compiled code


def compile_steps(model, batch: int, new_tokens: int) -> None:
    """Write and say a few tokens in batches of all sizes, and draw an image, with a line in the log for each.

    Args:
        model: with `compile_decoding`.
        batch: most texts that are decoded together.
        new_tokens: longest reply; prompts of up to about this length use the same compiled code.
    """
    work: list[tuple[str, Callable[[], None]]] = [
        (f"text, {rows} at once", partial(_write, model, rows, new_tokens)) for rows in _sizes(batch)
    ]
    if getattr(model, "talker", None) is not None:
        work += [(f"speech, {rows} at once", partial(_speak, model, rows)) for rows in _sizes(TALKER_BATCH)]
    if "image" not in missing_outputs(model):
        work.append(("an image of the native size", partial(_draw, model)))
    for place, (what, call) in enumerate(work, 1):
        logger.info("compiling %s (%d of %d)", what, place, len(work))
        started = time.monotonic()
        call()
        logger.info("compiled %s in %.1f s", what, time.monotonic() - started)


class StopAfter(StoppingCriteria):
    """Ends replies to prompts of one token after a number of new ones."""

    def __init__(self, new_tokens: int):
        self.new_tokens = new_tokens

    def __call__(self, input_ids, scores, **kwargs):
        ended = input_ids.shape[1] > self.new_tokens
        return torch.full((len(input_ids),), ended, device=input_ids.device)


def _sizes(most: int) -> list[int]:
    """The numbers of rows that batches of at most so many are padded to."""
    return sorted({padded_rows(rows) for rows in range(1, most + 1)})


def _write(model, rows: int, new_tokens: int) -> None:
    """Write the first tokens of replies that could become `new_tokens` long."""
    prompt = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
    limits = {"max_new_tokens": max(new_tokens, STEPS), "min_new_tokens": STEPS, "do_sample": False}
    enough = StoppingCriteriaList([StopAfter(STEPS)])
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        mm_token_type_ids=torch.zeros_like(prompt),
        stopping_criteria=enough,
        **limits,
    )


def _speak(model, rows: int) -> None:
    """Draw the first codec ids of pieces of text."""
    nothing = torch.zeros(0, dtype=torch.long)
    prompt = TalkerPrompt(torch.zeros(1, dtype=torch.long), nothing, torch.zeros(model.talker.config.vp_feature_size))
    steps = model.talker.stream([prompt] * rows, compiled=model.compile_decoding)
    for _ in islice(steps, STEPS):
        pass
    steps.close()


def _draw(model) -> None:
    """Take the first steps of an image of the native size; others wait for the compiler."""
    image_gen = model.image_gen.load()
    condition = torch.zeros(1, image_gen.config.scales[-1] ** 2, image_gen.config.hidden_size)
    compiled = step_config(model.device, model.compile_decoding)
    image_gen.draw(condition.to(model.device, model.dtype), num_inference_steps=STEPS, compile=compiled)


__all__ = ["compile_steps"]
