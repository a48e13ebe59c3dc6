"""Compiles the steps of a model before it is served, so that no request waits for the compiler."""

import logging
import time
from collections.abc import Callable
from functools import partial
from itertools import islice

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from ming.compiled import padded_rows, step_config
from ming.serving.prepare import missing_outputs
from ming.speech import TALKER_BATCH
from ming.talker_steps import TalkerPrompt

logger = logging.getLogger(__name__)

STEPS = 3  # the first is not compiled; a CUDA graph is recorded by the second call of compiled code
# Frames of audio that are compiled for, 8.9 s. Chunks of a stream are shorter; a piece of text that is said in one go,
# whose frames follow those of its voice's recording, may be longer.
SPOKEN_FRAMES = 768


def compile_steps(model, batch: int, streams: int, new_tokens: int, drawings: int) -> None:
    """Write and say a few tokens in batches of all sizes, make audio of all lengths, and draw images, with a line in
    the log for each.

    Compiled are, in this order, batches of 1, 2, 4 and so on texts; the same of pieces of speech; audio of 64, 96,
    128, 192 frames and so on up to `SPOKEN_FRAMES`; and 1, 2, 3 and so on images of the native size.

    Args:
        model: with `compile_decoding`.
        batch: most texts that are decoded together.
        streams: most spoken replies that are made side by side, each with at most `TALKER_BATCH` pieces.
        new_tokens: longest reply; prompts of up to about this length use the same compiled code.
        drawings: most images of a request.
    """
    work: list[tuple[str, Callable[[], None]]] = [
        (f"text, {rows} at once", partial(_write, model, rows, new_tokens)) for rows in _sizes(batch)
    ]
    if getattr(model, "talker", None) is not None:
        work += [(f"speech, {rows} at once", partial(_speak, model, rows)) for rows in _sizes(streams * TALKER_BATCH)]
        detokenizer = model.audio_detokenizer.load()
        for frames in detokenizer.padded_lengths(SPOKEN_FRAMES):
            work.append((f"audio of {frames} frames", partial(_make_audio, model, detokenizer, frames)))
    if "image" not in missing_outputs(model):
        model.image_gen.load()  # before anything is compiled: graphs of models depend on which classes of them exist
        for count in range(1, drawings + 1):
            work.append((f"drawing of the native size, {count} at once", partial(_draw, model, count)))
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


def _make_audio(model, detokenizer, frames: int) -> None:
    """Make audio of a length that frames are padded to, often enough for the vocoder's CUDA graph to be recorded."""
    config = detokenizer.config
    codes = torch.zeros(max(n for n in range(1, frames + 1) if config.num_frames(n) <= frames), dtype=torch.long)
    voice = torch.ones(1, config.flow["spk_embed_dim"])
    for _ in range(STEPS):
        detokenizer.decode([codes], voice, num_steps=1, compile=step_config(model.device, model.compile_decoding))


def _draw(model, count: int) -> None:
    """Take the first steps of images of the native size; others wait for the compiler."""
    image_gen = model.image_gen.load()
    condition = torch.zeros(1, image_gen.config.scales[-1] ** 2, image_gen.config.hidden_size)
    image_gen.draw(
        condition.to(model.device, model.dtype),
        num_inference_steps=STEPS,
        num_images_per_prompt=count,
        compile=step_config(model.device, model.compile_decoding),
    )


__all__ = ["compile_steps"]
