"""The replies of text jobs: tokens become text, and each job gets its own.

Letters: L tokens, V vocabulary.
"""

import secrets
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from tokenizers.decoders import DecodeStream
from transformers import BatchFeature, LogitsProcessorList

from ming.events import TextDelta
from ming.randomness import MAX_SEED
from ming.serving.engine_jobs import Finished, TextJob


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
    """A reply that is being written.

    Args:
        job: gets the text.
        tokenizer: the thinker's.
        end_ids: tokens that end a reply.
        device: of the logits.

    Attributes:
        ids: [1, L], prompt and reply.
        length: how many of them stand in the cache: all but the last one.
        samples: whether tokens are drawn; the random numbers are the row's own.
        first_logits: [1, V], those behind the prompt.
    """

    def __init__(self, job: TextJob, tokenizer, end_ids: set[int | None], device: torch.device):
        self.job, self.end_ids, self.samples = job, end_ids, False
        self.text = ReplyText(tokenizer, job.stop)
        seed = secrets.randbelow(MAX_SEED) if job.sampling.seed is None else job.sampling.seed
        self.generator = torch.Generator(device).manual_seed(seed)
        self.ids = torch.zeros(1, 0, dtype=torch.long, device=device)
        self.first_logits = torch.zeros(1, 0, device=device)
        self.processors = LogitsProcessorList()
        self.length = self.count = 0

    @property
    def ended(self) -> bool:
        return self.job.ended is not None or self.job.cancelled

    @property
    def tokens_left(self) -> int:
        """How many tokens the reply may still get."""
        return self.job.max_new_tokens - self.count

    def inputs(self) -> dict[str, torch.Tensor]:
        """Inputs of the model for the prompt and what has been written of the reply."""
        if not self.count:
            return self.job.inputs
        own = dict(self.job.inputs)
        own["input_ids"] = self.ids.cpu()
        own["attention_mask"] = F.pad(own["attention_mask"], (0, self.count), value=1)
        own["mm_token_type_ids"] = F.pad(own["mm_token_type_ids"], (0, self.count))
        return own

    def begin(self, ids: torch.Tensor, logits: torch.Tensor, processors: Iterable) -> None:
        """Note what reading gave: ids [1, L], the logits [1, V] behind them, and what changes logits.

        A row that is read again, in the middle of its reply, keeps the processors that know its prompt.
        """
        if not self.length:
            self.processors = LogitsProcessorList(processors)
        self.ids, self.length, self.first_logits = ids, ids.shape[1], logits

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token [1] from logits [1, V]."""
        scores = self.processors(self.ids, logits)
        if not self.samples:
            return scores.argmax(dim=-1)
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=self.generator)[0]

    def take(self, token_id: int, token: torch.Tensor) -> None:
        """Take the row's next token, as a number and as [1]."""
        if self.ended:
            return
        self.count += 1
        self.ids = torch.cat([self.ids, token[None]], dim=1)
        if token_id in self.end_ids:
            self.finish("stop")
            return
        self._send(self.text.push(token_id))
        if self.text.stopped:
            self.finish("stop")
        elif not self.tokens_left:
            self.finish("length")

    def finish(self, reason: str) -> None:
        """End the row, unless it ended before."""
        if not self.job.cancelled:
            self._send(self.text.finish())
        self.job.send(Finished(reason, self.job.prompt_tokens, self.count))

    def _send(self, text: str) -> None:
        if text:
            self.job.send(TextDelta(text))


__all__ = ["ReplyText", "Row", "to_model"]
