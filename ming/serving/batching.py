"""Several text jobs in one `generate`: joined inputs, and each row's tokens handed to its own job as they come.

Letters: B rows, L tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from tokenizers.decoders import DecodeStream
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ming.serving.jobs import Finished, TextDelta, TextJob

# Media of all rows, one row after the other.
CONCATENATED = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")


def join_inputs(rows: list[dict[str, torch.Tensor]], pad_id: int) -> dict[str, torch.Tensor]:
    """The processor's outputs for one chat each -> its output for all of them, padded on the left."""
    longest = max(row["input_ids"].shape[1] for row in rows)
    fillers = {"input_ids": pad_id, "attention_mask": 0, "mm_token_type_ids": 0}
    joined = {
        name: torch.cat([F.pad(row[name], (longest - row[name].shape[1], 0), value=filler) for row in rows])
        for name, filler in fillers.items()
    }
    for name in CONCATENATED:
        if parts := [row[name] for row in rows if name in row]:
            joined[name] = torch.cat(parts)
    if sounds := [row["audio_feats"] for row in rows if "audio_feats" in row]:
        frames, width = max(part.shape[1] for part in sounds), sounds[0].shape[2]
        segments = max(row["audio_feats_lengths"].shape[1] for row in rows if "audio_feats" in row)
        joined["audio_feats"] = sounds[0].new_zeros(len(rows), frames, width)
        joined["audio_feats_lengths"] = torch.zeros(len(rows), segments, dtype=torch.long)
        for index, row in enumerate(rows):
            if "audio_feats" in row:
                feats, lengths = row["audio_feats"][0], row["audio_feats_lengths"][0]
                joined["audio_feats"][index, : len(feats)] = feats
                joined["audio_feats_lengths"][index, : len(lengths)] = lengths
    return joined


class ReplyText:
    """Token ids one by one -> text as soon as it is certain: no half characters, nothing of a stop string.

    Args:
        tokenizer: the thinker's.
        stop: strings that end the text; they are not part of it.
    """

    def __init__(self, tokenizer, stop: tuple[str, ...] = ()):
        self.tokenizer, self.stop = tokenizer, stop
        self.decoder = DecodeStream(skip_special_tokens=True)
        self.ids: list[int] = []
        self.decoded = 0  # characters that have left the decoder
        self.held = ""  # decoded, and perhaps the beginning of a stop string
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that became certain with this token."""
        self.ids.append(token_id)
        text = self.decoder.step(self.tokenizer.backend_tokenizer, token_id) or ""
        self.decoded += len(text)
        return self._release(text)

    def finish(self) -> str:
        """What is left at the end of the ids."""
        if self.stopped:
            return ""
        rest = self.tokenizer.decode(self.ids, skip_special_tokens=True)[self.decoded :]
        text = self._release(rest) + self.held
        self.held = ""
        return text

    def _release(self, text: str) -> str:
        text = self.held + text
        found = [place for place in (text.find(word) for word in self.stop) if place >= 0]
        if found:
            self.stopped, self.held = True, ""
            return text[: min(found)]
        kept = max((_overlap(text, word) for word in self.stop), default=0)
        self.held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, word: str) -> int:
    """How many characters at the end of the text are a beginning of the word, but not all of it."""
    return next((size for size in range(min(len(text), len(word) - 1), 0, -1) if word.startswith(text[-size:])), 0)


class Row:
    """A job's place in a batch.

    Args:
        job: gets the text.
        tokenizer: the thinker's.
        end_ids: tokens that end a reply.
    """

    def __init__(self, job: TextJob, tokenizer, end_ids: set[int]):
        self.job, self.end_ids = job, end_ids
        self.text = ReplyText(tokenizer, job.stop)
        self.count = 0

    @property
    def ended(self) -> bool:
        return self.job.ended is not None or self.job.cancelled

    def take(self, token_id: int) -> None:
        """The row's next token; those behind its end are padding."""
        if self.ended:
            return
        self.count += 1
        if token_id in self.end_ids:
            self.finish("stop")
            return
        self._say(self.text.push(token_id))
        if self.text.stopped:
            self.finish("stop")
        elif self.count >= self.job.max_new_tokens:
            self.finish("length")

    def finish(self, reason: str) -> None:
        """The end of the row, unless it ended before."""
        if not self.job.cancelled:
            self._say(self.text.finish())
        self.job.send(Finished(reason, self.job.prompt_tokens, self.count))

    def _say(self, text: str) -> None:
        if text:
            self.job.send(TextDelta(text))


class RowStreamer(BaseStreamer):
    """Hands the ids [B] of each step to their rows; the first call brings the prompts."""

    def __init__(self, rows: list[Row]):
        self.rows, self.has_prompts = rows, False

    def put(self, value: torch.Tensor) -> None:
        if not self.has_prompts:
            self.has_prompts = True
            return
        for row, token_id in zip(self.rows, value.tolist(), strict=True):
            row.take(token_id)

    def end(self) -> None:
        """Rows end by themselves."""


class RowLimits(StoppingCriteria):
    """Ends each row at its own number of tokens, and rows whose job has ended or was cancelled."""

    def __init__(self, rows: list[Row], prompt_length: int):
        self.rows, self.prompt_length = rows, prompt_length

    def __call__(self, input_ids, scores, **kwargs):
        count = input_ids.shape[1] - self.prompt_length
        ended = [row.ended or count >= row.job.max_new_tokens for row in self.rows]
        return torch.tensor(ended, device=input_ids.device)


class CountTokens(StoppingCriteria):
    """Counts the tokens of one reply and remembers the last one; never stops anything."""

    def __init__(self, prompt_length: int):
        self.prompt_length, self.count, self.last_id = prompt_length, 0, None

    def __call__(self, input_ids, scores, **kwargs):
        self.count, self.last_id = input_ids.shape[1] - self.prompt_length, int(input_ids[0, -1])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def own_randomness(seed: int | None, device: torch.device) -> Iterator[None]:
    """Torch's random numbers from a seed, and as they were before, afterwards; no seed changes nothing."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def end_ids(model) -> set[int]:
    """Tokens that end a reply."""
    ids = model.generation_config.eos_token_id
    return set(ids) if isinstance(ids, list) else {ids}


def answer(model, tokenizer, jobs: list[TextJob]) -> None:
    """Decode jobs of one group at once; each gets its events."""
    rows = [Row(job, tokenizer, end_ids(model)) for job in jobs]
    joined = join_inputs([job.inputs for job in jobs], model.generation_config.pad_token_id)
    inputs = {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
        for name, tensor in joined.items()
    }
    sampling = jobs[0].sampling
    with own_randomness(sampling.seed, model.device):
        model.generate(
            **inputs,
            **sampling.options(),
            max_new_tokens=max(job.max_new_tokens for job in jobs),
            streamer=RowStreamer(rows),
            stopping_criteria=StoppingCriteriaList([RowLimits(rows, inputs["input_ids"].shape[1])]),
        )
    for row in rows:
        row.finish("cancelled" if row.job.cancelled else "length")


__all__ = ["CountTokens", "ReplyText", "answer", "end_ids", "join_inputs", "own_randomness"]
