"""Several text jobs in one `generate`: their inputs are joined, and each job gets the tokens of its row at once.

Letters: B rows, L tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from tokenizers.decoders import DecodeStream
from transformers import BatchFeature, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ming.events import TextDelta
from ming.generation_arguments import end_token_ids
from ming.serving.engine_jobs import Finished, TextJob

# Inputs of images and videos, which hold those of all rows one after the other.
CONCATENATED = ("pixel_values", "image_grid_thw", "image_sizes", "pixel_values_videos", "video_grid_thw")


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
    return joined | _join_audio(rows)


def _join_audio(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Audio features [B, frames, width] and lengths [B, segments], padded on the right; {} without audio."""
    heard = {index: row for index, row in enumerate(rows) if "audio_feats" in row}
    if not heard:
        return {}
    feats = {index: row["audio_feats"][0] for index, row in heard.items()}
    lengths = {index: row["audio_feats_lengths"][0] for index, row in heard.items()}
    some = next(iter(feats.values()))
    joined_feats = some.new_zeros(len(rows), max(map(len, feats.values())), some.shape[1])
    joined_lengths = torch.zeros(len(rows), max(map(len, lengths.values())), dtype=torch.long)
    for index in heard:
        joined_feats[index, : len(feats[index])] = feats[index]
        joined_lengths[index, : len(lengths[index])] = lengths[index]
    return {"audio_feats": joined_feats, "audio_feats_lengths": joined_lengths}


def to_model(inputs: dict[str, torch.Tensor], model) -> dict[str, torch.Tensor]:
    """Inputs on the model's device; floating-point ones in its dtype."""
    return dict(BatchFeature(inputs).to(model.device, model.dtype))


class ReplyText:
    """Token ids one by one -> text as soon as it is final: no incomplete characters, no part of a stop string.

    Args:
        tokenizer: the thinker's.
        stop: strings that end the text; they are not part of it.
    """

    def __init__(self, tokenizer, stop: tuple[str, ...] = ()):
        self.tokenizer, self.stop = tokenizer, stop
        self.decoder = DecodeStream(skip_special_tokens=True)
        self.ids: list[int] = []
        self.decoded = 0  # characters that have left the decoder
        self.held = ""  # decoded, but it may be the beginning of a stop string
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that became final with this token."""
        self.ids.append(token_id)
        text = self.decoder.step(self.tokenizer.backend_tokenizer, token_id) or ""
        self.decoded += len(text)
        return self._release(text)

    def finish(self) -> str:
        """The rest of the text, at the end of the ids."""
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
    """How many characters at the end of the text are the beginning of the word, but not all of it."""
    return next((size for size in range(min(len(text), len(word) - 1), 0, -1) if word.startswith(text[-size:])), 0)


class Row:
    """A job's place in a batch.

    Args:
        job: gets the text.
        tokenizer: the thinker's.
        end_ids: tokens that end a reply.
    """

    def __init__(self, job: TextJob, tokenizer, end_ids: set[int | None]):
        self.job, self.end_ids = job, end_ids
        self.text = ReplyText(tokenizer, job.stop)
        self.count = 0

    @property
    def ended(self) -> bool:
        return self.job.ended is not None or self.job.cancelled

    def take(self, token_id: int) -> None:
        """Take the row's next token; tokens after its end are padding."""
        if self.ended:
            return
        self.count += 1
        if token_id in self.end_ids:
            self.finish("stop")
            return
        self._send(self.text.push(token_id))
        if self.text.stopped:
            self.finish("stop")
        elif self.count >= self.job.max_new_tokens:
            self.finish("length")

    def finish(self, reason: str) -> None:
        """End the row, unless it ended before."""
        if not self.job.cancelled:
            self._send(self.text.finish())
        self.job.send(Finished(reason, self.job.prompt_tokens, self.count))

    def _send(self, text: str) -> None:
        if text:
            self.job.send(TextDelta(text))


class RowStreamer(BaseStreamer):
    """Gives the ids [B] of each step to their rows; the first call holds the prompts."""

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
        self.prompt_length, self.count = prompt_length, 0
        self.last_id: int | None = None

    def __call__(self, input_ids, scores, **kwargs):
        self.count, self.last_id = input_ids.shape[1] - self.prompt_length, int(input_ids[0, -1])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def own_randomness(seed: int | None, device: torch.device) -> Iterator[None]:
    """PyTorch's global random numbers start from a seed in the block and go on as before after it; None: no change."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def answer(model, tokenizer, jobs: list[TextJob]) -> None:
    """Decode jobs of one group at once; each gets its events."""
    rows = [Row(job, tokenizer, end_token_ids(model)) for job in jobs]
    joined = join_inputs([job.inputs for job in jobs], model.generation_config.pad_token_id)
    inputs = to_model(joined, model)
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


__all__ = ["CountTokens", "ReplyText", "answer", "join_inputs", "own_randomness", "to_model"]
