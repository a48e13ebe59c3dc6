"""Pieces of speech that are said side by side for several callers, in one pass of the talker per step.

Each spoken reply has a thread of its own, which asks the talker for codec ids (`BailingMMTalker.stream`) and makes
audio of them. Here one more thread computes the steps of all of them. The prompts of calls that came together are read
in one pass; then their rows run with the others, and each call gets its own steps. Calls come and go between two
passes (`running_cache.py`).

Letters: B rows, L tokens.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from queue import SimpleQueue

import torch
from transformers import Cache, DynamicCache, StaticCache

from ming.compiled import max_length, step_config
from ming.finite import naming_layers
from ming.modeling_talker import BailingMMTalker
from ming.serving.errors import shutting_down
from ming.serving.running_cache import RunningCache, part_of
from ming.talker_steps import Drawn, Sampler, SeededDraw, TalkerCall, TalkerStep, drawn_together, with_copies

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Caller:
    """Who waits for the steps of a call.

    Attributes:
        steps: an error is the last of them.
        left: nobody waits any more.
    """

    call: TalkerCall
    steps: SimpleQueue[TalkerStep | Exception] = field(default_factory=SimpleQueue)
    left: bool = False

    @property
    def ended(self) -> bool:
        return self.left or self.call.ended


@dataclass
class _CachedPiece:
    """A row in the cache, where `length` of its tokens are."""

    caller: _Caller
    length: int
    tokens_left: int = 1  # few pieces come near the most that they may get, and a longer cache makes steps slower


class RunningSpeech:
    """Says the pieces of all calls; between `start` and `close` the talker hands its calls over.

    Args:
        talker: says them.
        compile_decoding: whether the pass is compiled, over static caches of few sizes; see `step_config`.
    """

    def __init__(self, talker: BailingMMTalker, compile_decoding):
        self.talker = talker
        config = step_config(talker.device, compile_decoding)
        self._step = talker if config is None else talker.decoding.call(talker, config)
        self._running = RunningCache[_CachedPiece](talker, talker.decoding, config is not None)
        self._changed = threading.Condition()
        self._entering: list[_Caller] = []
        self._reading: list[_Caller] = []  # whose rows do not run yet
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="talker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.talker.together = self.say
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def num_waiting(self) -> int:
        """Calls that came and have not been taken up."""
        with self._changed:
            return len(self._entering)

    def close(self) -> None:
        """Let the talker decode by itself again; calls that wait get an error."""
        self.talker.together = None
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def say(self, call: TalkerCall) -> Iterator[TalkerStep]:
        """The steps of a call, as the talker itself would give them.

        Raises:
            ApiError: the server is shutting down.
            Exception: of the pass that failed.
        """
        caller = _Caller(call)
        with self._changed:
            if self._closing:
                raise shutting_down()
            self._entering.append(caller)
            self._changed.notify_all()
        try:
            while not isinstance(step := caller.steps.get(), Exception):
                yield step
                if None not in step.finish_reasons:
                    return
            raise step
        finally:
            caller.left = True

    @torch.no_grad()
    def _run(self) -> None:
        """Between two passes every call that came is read."""
        try:
            while not self._closing:
                self._reading = self._arrived()
                self._enter([caller for caller in self._reading if not caller.left])
                self._reading = []
                self._pass()
        finally:  # nobody may wait for a thread that has ended
            with self._changed:
                self._closing = True
                entering, self._entering = self._entering, []
            self._fail_all(shutting_down(), [*self._reading, *entering])

    def _arrived(self) -> list[_Caller]:
        """The calls that came; waits for one where no row runs."""
        with self._changed:
            self._changed.wait_for(lambda: self._entering or self._running.rows or self._closing)
            arrived, self._entering = self._entering, []
        return arrived

    def _callers(self) -> list[_Caller]:
        """Those whose rows run, in the order of these."""
        return list(dict.fromkeys(row.caller for row in self._running.rows))

    def _enter(self, callers: list[_Caller]) -> None:
        """Read the prompts of calls, whose rows run from then on; where not all can be read at once, each alone."""
        if not callers:
            return
        try:
            cache, logits = self._read(callers)
        except Exception as error:
            if len(callers) == 1:
                _fail(callers[0], error)
                return
            logger.warning("the prompts of %d calls cannot be read at once; each alone", len(callers), exc_info=error)
        else:
            self._draw(callers, logits)
            self._add(callers, cache)
            return
        for caller in callers:  # out of the handler: with its error goes all that the pass held
            self._enter([caller])

    def _read(self, callers: list[_Caller]) -> tuple[Cache, torch.Tensor]:
        """A cache of all prompts, and the logits [B, V] behind them."""
        cache = DynamicCache()
        inputs = self.talker.prompt_inputs([row for caller in callers for row in caller.call.rows])
        logits = self.talker(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return cache, logits[:, -1]

    def _add(self, callers: list[_Caller], cache: Cache) -> None:
        """Let the rows of calls run that have not ended with their first ids."""
        rows = [(caller, row) for caller in callers for row in caller.call.rows]
        places = [place for place, (caller, _) in enumerate(rows) if not caller.ended]
        if not places:
            return
        pieces = [_CachedPiece(rows[place][0], len(rows[place][1].audio_ids)) for place in places]
        cut = max(len(row.audio_ids) for _, row in rows) - max(piece.length for piece in pieces)
        try:
            self._running.add(pieces, part_of([(layer.keys, layer.values) for layer in cache.layers], places, cut))
        except Exception as error:  # two caches need more memory than one
            self._fail_all(error, callers)

    def _pass(self) -> None:
        """The next ids of every row; calls that have ended leave, and so do those that nobody waits for."""
        try:
            self._running.keep([place for place, row in enumerate(self._running.rows) if not row.caller.ended])
            if not self._running.rows:
                return
            logits = self._forward()
        except Exception as error:
            self._fail_all(error)
            return
        self._draw(self._callers(), logits)

    def _forward(self) -> torch.Tensor:
        """The logits [B, V] behind the last ids of every row."""
        running, device = self._running, self.talker.device
        running.make_room()
        inputs = [caller.call.next_inputs() for caller in self._callers()]
        joined = {name: torch.cat([own[name] for own in inputs]) for name in inputs[0]}
        cache, width = running.cache, running.width
        # A static cache has one mask for all steps: what lies ahead is masked anyway.
        masked = max_length(cache) if isinstance(cache, StaticCache) else width + 1
        mask = (torch.arange(masked, device=device) >= running.padding).long()
        logits = self._step(
            **with_copies(joined, len(mask)), attention_mask=mask, past_key_values=cache, use_cache=True
        ).logits
        for row in running.rows:
            row.length += 1
        for callback in self.talker.step_callbacks:
            callback()
        return logits[: len(running.rows), -1]

    def _draw(self, callers: list[_Caller], logits: torch.Tensor) -> None:
        """Draw for calls from the logits [B, V] of their rows; neighbours that draw alike in one go."""
        start = 0
        for _, alike in groupby(callers, key=_drawing):
            drawn_for = list(alike)
            end = start + sum(len(caller.call.rows) for caller in drawn_for)
            try:
                drawn = drawn_together([caller.call for caller in drawn_for], logits[start:end])
            except Exception as error:
                for caller in drawn_for:
                    _fail(caller, error)
            else:
                for caller, own in zip(drawn_for, drawn, strict=True):
                    self._take(caller, own)
            start = end

    def _take(self, caller: _Caller, drawn: Drawn) -> None:
        """Hand a call the step that is known now, or its error."""

        def read_again() -> None:
            self.talker(**self.talker.prompt_inputs(caller.call.rows))

        try:
            with naming_layers({"talker": self.talker}, read_again):
                step = caller.call.take(drawn)
        except Exception as error:
            _fail(caller, error)
            return
        if step is not None:
            caller.steps.put(step)

    def _fail_all(self, error: Exception, others: Sequence[_Caller] = ()) -> None:
        """After a pass that failed, no row can go on: the error is for all whose rows run, and for others."""
        callers = dict.fromkeys([*self._callers(), *others])
        self._running.clear()
        for caller in callers:
            _fail(caller, error)


def _drawing(caller: _Caller) -> tuple[Sampler, object]:
    """Equal for those who draw alike; a draw of the caller's own is nobody else's, nor are its errors."""
    call = caller.call
    return call.sampler, SeededDraw if isinstance(call.draw, SeededDraw) else caller


def _fail(caller: _Caller, error: Exception) -> None:
    caller.left = True
    caller.steps.put(error)


__all__ = ["RunningSpeech"]
