"""Chats that are decoded side by side, each from the token at which it came to the one at which it ends.

A chat is read alone, by the library's `generate`, which prepares embeddings, processors of logits and keys and values
as ever and hands them over instead of decoding. From then on the chat is a row: one pass of the model takes the last
token of every row. Rows come and go between two passes (`running_cache.py`).

Letters: B rows, L tokens, V vocabulary.
"""

import logging
import math
from collections import deque
from collections.abc import Sequence

import torch
from transformers import DynamicCache

from ming.compiled import step_config
from ming.finite import LogitsCheck, naming_layers
from ming.generation_arguments import end_token_ids
from ming.serving.batching import Row, to_model
from ming.serving.engine_jobs import Failed, TextJob
from ming.serving.running_cache import Layers, RunningCache

logger = logging.getLogger(__name__)


class RunningBatch:
    """The rows that are being decoded, for one thread.

    Args:
        model, tokenizer: the model, and its thinker's tokenizer. With `compile_decoding` the pass is compiled, over
            static caches of few sizes.

    Raises:
        ValueError: a compiled model with a sliding window, whose static cache keeps tokens in another order.

    Attributes:
        apart: rows of a pass that failed, which go on one by one, each alone.
    """

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.end_ids = model, tokenizer, end_token_ids(model)
        self.apart: deque[Row] = deque()
        config = step_config(model.device, model.compile_decoding)
        if config is not None and model.config.llm_config.sliding_window:
            raise ValueError("compile: a model with a sliding window is not compiled for a server; leave compile out")
        self._call = model if config is None else model.decoding.call(model, config)
        self._running = RunningCache[Row](model, model.decoding, config is not None)

    @property
    def rows(self) -> list[Row]:
        """The chats that run, in the order in which they came."""
        return self._running.rows

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to decode."""
        return not self.rows and not self.apart

    def has_room(self, job: TextJob, rows: int, tokens: int) -> bool:
        """Whether a chat may join: up to so many rows, and rows times tokens of a row. One alone always may."""
        if self.is_idle:
            return True
        left = max(job.max_new_tokens, *(row.tokens_left for row in self.rows), 0)
        length = max(job.prompt_tokens, self._running.width) + left
        return not self.apart and len(self.rows) < rows and length * (len(self.rows) + 1) <= tokens

    def join(self, job: TextJob) -> None:
        """Read a chat, which gives its first token, and let it run with the others."""
        self._enter(Row(job, self.tokenizer, self.end_ids, self.model.device))

    def step(self) -> None:
        """The next token of every row. Rows that end or fail leave, also those whose job was cancelled."""
        if not self.rows and self.apart:
            self._enter(self.apart.popleft())
        self._let_go()
        if not self.rows:
            return
        try:
            logits = self._forward()
            is_broken = _not_finite(logits).tolist()
        except Exception as error:
            self._part(self.rows, error)
            return
        ids: list[tuple[Row, torch.Tensor]] = []
        for row, own, broken in zip(self.rows, logits.split(1), is_broken, strict=True):
            try:
                if broken:
                    self._raise_not_finite(row)
                ids.append((row, row.choose(own)))
            except Exception as error:
                _fail(row, error)
        self._take(ids)
        self._let_go()

    def close(self) -> None:
        """Give the cache back."""
        self._running.clear()

    def _take(self, ids: Sequence[tuple[Row, torch.Tensor]]) -> None:
        """Hand rows their tokens, each [1]; the device is waited for once."""
        numbers = torch.cat([token for _, token in ids]).tolist() if ids else []
        for (row, token), number in zip(ids, numbers, strict=True):
            try:
                row.take(number, token)
            except Exception as error:
                _fail(row, error)

    def _enter(self, row: Row) -> None:
        if row.ended:
            row.finish("cancelled")
            return
        try:
            layers = self._read(row)
            self._take([(row, row.choose(row.first_logits))])
        except Exception as error:
            _fail(row, error)
        if row.ended:
            row.finish("cancelled")  # has no effect on a job that has ended
            return
        rows = [*self.rows, row]
        try:
            self._running.add([row], layers)
        except Exception as error:  # two caches need more memory than one
            self._part(rows, error)

    def _read(self, row: Row) -> Layers:
        """Keys and values of a row's prompt and of what it has written; the row gets the logits behind them."""
        cache = DynamicCache()  # every token in every layer: a sliding window is a matter of the mask

        def begin(model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs):
            prepared = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **inputs)
            logits = model(**prepared, return_dict=True).logits[:, -1].float()
            checks = [each for each in logits_processor if isinstance(each, LogitsCheck)]
            for check in checks:
                check(input_ids, logits)
            row.begin(input_ids, logits, [each for each in logits_processor if each not in checks])
            row.samples = bool(generation_config.do_sample)
            return input_ids

        told = {"prompt_states": row.job.prompt_states} if row.job.prompt_states is not None else {}
        self.model.generate(
            **to_model(row.inputs(), self.model),
            **row.job.sampling.options(),
            **told,
            max_new_tokens=row.tokens_left,
            past_key_values=cache,
            num_beams=1,
            num_return_sequences=1,
            custom_generate=begin,
            compile=False,
        )
        return [(layer.keys, layer.values) for layer in cache.layers]

    @torch.no_grad()
    def _forward(self) -> torch.Tensor:
        """The logits [B, V] behind the last token of every row."""
        running, device = self._running, self.model.device
        count, width, padding = len(running.rows), running.width, running.padding
        mask = None
        if any(row.length < width for row in running.rows):
            mask = (torch.arange(width + 1, device=device) >= padding).long()
        inputs = self.model.prepare_inputs_for_generation(
            torch.cat([row.ids[:, -1:] for row in running.padded_rows]),
            past_key_values=running.cache,
            attention_mask=mask,
            position_ids=width - padding,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = self._call(**inputs, return_dict=True).logits[:count, -1].float()
        for row in self.rows:
            row.length += 1
        return logits

    def _let_go(self) -> None:
        """Take rows that have ended out of the batch."""
        for row in self.rows:
            if row.ended:
                row.finish("cancelled")  # has no effect on a job that has ended
        kept = [place for place, row in enumerate(self.rows) if not row.ended]
        rows = [self.rows[place] for place in kept]
        try:
            self._running.keep(kept)
        except Exception as error:
            self._part(rows, error)

    def _part(self, rows: list[Row], error: Exception) -> None:
        """After a pass that failed: one row alone is to blame for it; several are tried again, each alone."""
        self._running.clear()
        if len(rows) == 1:
            _fail(rows[0], error)
            return
        logger.warning("a pass over %d chats failed; each goes on alone", len(rows), exc_info=error)
        self.apart.extend(rows)

    def _raise_not_finite(self, row: Row) -> None:
        def read_again() -> None:
            with torch.no_grad():
                self.model(**to_model(row.inputs(), self.model), use_cache=False)

        with naming_layers({"": self.model}, read_again):
            raise FloatingPointError("the logits are not finite (NaN or infinite values)")


def _not_finite(logits: torch.Tensor) -> torch.Tensor:
    """Which rows of logits [B, V] hold NaN or +Inf; -Inf bars a token."""
    largest = logits.max(dim=-1).values
    return largest.isnan() | (largest == math.inf)


def _fail(row: Row, error: Exception) -> None:
    logger.error("a text job failed", exc_info=error)
    row.job.send(Failed(error))


__all__ = ["RunningBatch"]
