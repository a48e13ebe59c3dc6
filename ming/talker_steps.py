"""What the talker says, step by step: pieces of text, when they end, and how their ids are drawn.

Shape letters: B rows, V whole vocabulary, D thinker width, S speaker embedding size.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import TopKLogitsWarper

from .finite import raise_if_not_finite
from .randomness import MAX_SEED

NO_ID = -1  # in a step's ids: this row has ended
RELEASED_EOS_MARGIN = 10
RELEASED_MAX_STEPS = 1000
# More ids than these for a piece of text mean that it does not stop: an id stands for 20 ms or more, and a text token
# takes 80 to 400 ms.
LIMIT_BASE, LIMIT_PER_TEXT_TOKEN = 60, 40
# Probabilities [B, V] -> ids [B]; those of rows that have ended mean nothing, and their ids are not heard.
Draw = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class TalkerPrompt:
    """What the talker needs to say one piece of text.

    Args:
        text_ids: int64 [T >= 1], the tokens of the voice's prompt text, then of the text to say.
        prompt_ids: int64 [P], codec ids of the voice's recording, which says the prompt text.
        speaker_embedding: float [S].
        thinker_states: float [n, D], or None when there was no chat.
        num_prompt_text: how many of the text ids belong to the voice's prompt text; 0: unknown.
    """

    text_ids: torch.Tensor
    prompt_ids: torch.Tensor
    speaker_embedding: torch.Tensor
    thinker_states: torch.Tensor | None = None
    num_prompt_text: int = 0

    def expected_ids(self) -> float:
        """How many codec ids the text takes at the pace of the voice's prompt; 0 if that is unknown."""
        if not self.num_prompt_text:
            return 0.0
        return len(self.prompt_ids) / self.num_prompt_text * (len(self.text_ids) - self.num_prompt_text)


@dataclass(frozen=True)
class StopRules:
    """When a piece ends.

    The end token is barred for the first `min_new_ids` ids of every piece. `max_new_ids` ends a piece that does not
    stop; None allows 60 ids and 40 more per text token. A piece that stops before the share `shortest` of the ids that
    its text takes at the pace of the voice's prompt lacks words; this is judged from `shortest_text` text ids on.

    `released`: the release's own rules, for comparison. The end token is barred by absolute position (below the number
    of prompt ids + 10), positions run on from piece to piece, the end token may be drawn while the prompt is being
    read, which leaves an empty piece, text ids may be drawn, and 1000 steps are the limit, prompt included.
    """

    min_new_ids: int = 3
    max_new_ids: int | None = None
    released: bool = False
    shortest: float = 0.55
    shortest_text: int = 8

    def limit(self, prompt: TalkerPrompt) -> int:
        """Largest number of new ids for a piece."""
        if self.max_new_ids is not None:
            return self.max_new_ids
        if self.released:
            return RELEASED_MAX_STEPS - len(prompt.prompt_ids)
        return LIMIT_BASE + LIMIT_PER_TEXT_TOKEN * len(prompt.text_ids)


@dataclass(frozen=True)
class TalkerPiece:
    """What came of a piece: codec ids int64 [n] and why it ended.

    The reasons are "stop", "length" (it did not stop), "empty", and "short" (it stopped too early for its text).
    """

    codec_ids: torch.Tensor
    finish_reason: str

    @classmethod
    def judged(cls, ids: list[int], reason: str | None, prompt: TalkerPrompt, rules: StopRules) -> "TalkerPiece":
        """The piece of a prompt that ended for a reason, or "short" where words must be missing."""
        is_text = len(prompt.text_ids) - prompt.num_prompt_text >= rules.shortest_text
        too_few = len(ids) < rules.shortest * prompt.expected_ids()
        is_short = reason == "stop" and is_text and too_few and not rules.released
        return cls(torch.tensor(ids, dtype=torch.long), "short" if is_short else str(reason))


@dataclass(frozen=True)
class TalkerStep:
    """A step of decoding.

    Args:
        codec_ids: int64 [B] on the CPU, `NO_ID` in rows that have ended.
        finish_reasons: per row why it ended, see `TalkerPiece`; None while it goes on.
    """

    codec_ids: torch.Tensor
    finish_reasons: list[str | None]


@dataclass
class TalkerRow:
    """A piece being said: its streams as audio and text ids, and how far it is.

    Args:
        start_position: added to all positions.
    """

    prompt: TalkerPrompt
    audio_ids: list[int]
    text_ids: list[int]
    prefix_length: int
    limit: int
    start_position: int = 0
    num_new: int = 0
    finish_reason: str | None = None

    @property
    def first_position(self) -> int:
        return self.prefix_length - 1

    @property
    def last_position(self) -> int:
        """Of the last token of the prompt."""
        return self.start_position + len(self.audio_ids) - 1

    @property
    def reason(self) -> str | None:
        """Why the row ended, for users; None while it goes on."""
        return "empty" if self.finish_reason is not None and self.num_new == 0 else self.finish_reason


def filter_logits(
    logits: torch.Tensor, top_k: int, eos_token_id: int, eos_allowed: torch.Tensor, first_allowed: int = 0
) -> torch.Tensor:
    """Logits [B, V] with -inf at ids that must not be drawn.

    What stays: the `top_k` best ids (ties at the last place included) from `first_allowed` on, and of these the end
    token only in rows where `eos_allowed` [B].
    """
    logits = logits.float().clone()
    eos = logits[:, eos_token_id].clone()
    logits[:, :first_allowed] = -math.inf
    logits[:, eos_token_id] = eos
    logits = TopKLogitsWarper(top_k)(None, logits)
    logits[:, eos_token_id] = torch.where(eos_allowed, logits[:, eos_token_id], -math.inf)
    return logits


class SeededDraw:
    """Draws with one generator per row, so that a row depends neither on its neighbours nor on the device.

    The uniform numbers are drawn on the CPU, a block of steps ahead, and go to the device in one copy; there each
    picks the id in whose part of the summed probabilities it falls. No step waits for the host. Of a row's generator
    every `SeededDraw` takes one number, however many steps there are.
    """

    block_steps = 64

    def __init__(self, generators: list[torch.Generator]):
        seeds = [torch.randint(MAX_SEED, (1,), generator=own, device=own.device).item() for own in generators]
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.uniforms: torch.Tensor | None = None
        self.step = 0

    def __call__(self, probabilities: torch.Tensor) -> torch.Tensor:
        """See `Draw`."""
        return inverted(probabilities, self.next_uniforms(probabilities.device))

    def next_uniforms(self, device: torch.device) -> torch.Tensor:
        """float64 [B], of the next step."""
        place = self.step % self.block_steps
        if place == 0 or self.uniforms is None:
            block = [torch.rand(self.block_steps, generator=own, dtype=torch.float64) for own in self.generators]
            self.uniforms = torch.stack(block).to(device)
        self.step += 1
        return self.uniforms[:, place]


def inverted(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The ids [B] at which the sums of probabilities [B, V] pass the share uniforms [B] in [0, 1) of the whole."""
    summed = probabilities.double().cumsum(dim=-1)
    whole = summed[:, -1]
    passed = summed > torch.minimum(uniforms * whole, whole.nextafter(torch.zeros_like(whole)))[:, None]
    return passed.int().argmax(dim=-1)


def likeliest(probabilities: torch.Tensor) -> torch.Tensor:
    """The best id of every row: see `Draw`."""
    return probabilities.argmax(dim=-1)


@dataclass(frozen=True)
class Drawn:
    """What a step drew for the rows of a call; what rows drew that had ended means nothing.

    Args:
        ids: audio ids [B], on the device.
        on_host: the same, or -1 where the probabilities were not finite; to be read after `arrived`.
        probabilities: [B, V].
    """

    ids: torch.Tensor
    on_host: torch.Tensor
    arrived: torch.cuda.Event | None
    probabilities: torch.Tensor


def _sent_to_host(ids: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Ids on the host, and the event after which they are there; nothing waits for it."""
    if not ids.is_cuda:
        return ids.cpu(), None
    on_host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True).copy_(ids, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return on_host, arrived


@dataclass(frozen=True)
class Sampler:
    """How probable ids are; `released` as in `StopRules`. Calls with equal ones are drawn for together."""

    released: bool
    top_k: int
    temperature: float
    eos: int
    text_vocab_size: int

    def probabilities(self, logits: torch.Tensor, eos_allowed: torch.Tensor) -> torch.Tensor:
        """[B, V] from logits [B, V] and whether the end token may be drawn [B]."""
        first_allowed = 0 if self.released else self.text_vocab_size
        filtered = filter_logits(logits.float() / self.temperature, self.top_k, self.eos, eos_allowed, first_allowed)
        return filtered.softmax(dim=-1)


class TalkerCall:
    """Pieces that are said side by side, and how far they are.

    Args:
        rows: the pieces.
        texts: int64 [n, B], the text ids of the steps after the prompt; the last ones stand for all that follow.
        rules: when the pieces end.
        sampler: says how probable the ids of all rows are.
        draw: draws them.
        lag: after how many more draws the host reads what was drawn; until then no step waits for the device.

    Attributes:
        position: int64 [B], of the last token that was read.
        num_drawn: ids of each row.
    """

    def __init__(
        self,
        rows: list[TalkerRow],
        texts: torch.Tensor,
        rules: StopRules,
        sampler: Sampler,
        draw: Draw,
        lag: int = 0,
    ):
        self.rows, self.texts, self.rules = rows, texts, rules
        self.sampler, self.draw, self.lag = sampler, draw, lag
        self.num_drawn = 0
        self._drawn: deque[Drawn] = deque()
        self.position = torch.tensor([row.last_position for row in rows], device=texts.device)
        self._ids = self.position  # of the last draw, on the device
        self._step = 0

    @property
    def ended(self) -> bool:
        """Whether the host knows that all rows have ended."""
        return all(row.finish_reason is not None for row in self.rows)

    def eos_allowed(self, position: torch.Tensor) -> torch.Tensor:
        """Whether the end token may be drawn from the logits of the tokens at positions [B]: bool [B]."""
        if not self.rules.released:
            return torch.full_like(position, self.num_drawn >= self.rules.min_new_ids, dtype=torch.bool)
        num_prompt = torch.tensor([len(row.prompt.prompt_ids) for row in self.rows], device=position.device)
        return position >= num_prompt + RELEASED_EOS_MARGIN

    def draw_while_reading(self, logits: torch.Tensor) -> None:
        """The released loop draws at every prompt step and throws the id away, unless it is the end token.

        Args:
            logits: [1, L, V], of the end of the prompt.
        """
        for before in range(logits.shape[1] - 1, 0, -1):
            allowed = self.eos_allowed(self.position - before)
            probabilities = self.sampler.probabilities(logits[:, -1 - before], allowed)
            if self.draw(probabilities).item() == self.sampler.eos:
                self.rows[0].finish_reason = "stop"
                return

    def take(self, drawn: Drawn) -> TalkerStep | None:
        """Go on with the ids of a draw.

        Returns:
            The step that the host reads now, which is the one before with a lag of 1; None at first.

        Raises:
            FloatingPointError: NaN among the probabilities.
        """
        self._drawn.append(drawn)
        self._ids = drawn.ids
        self.num_drawn += 1
        return self._read(self._drawn.popleft()) if len(self._drawn) > self.lag else None

    def _read(self, drawn: Drawn) -> TalkerStep:
        """What a step said, and which rows it ended; rows that had ended by then say nothing."""
        if drawn.arrived is not None:
            drawn.arrived.synchronize()
        ids = [NO_ID] * len(self.rows)
        for index, (row, audio_id) in enumerate(zip(self.rows, drawn.on_host.tolist(), strict=True)):
            if row.finish_reason is not None:
                continue
            if audio_id == NO_ID:
                raise_if_not_finite("the probabilities of the talker are", drawn.probabilities[index])
            if audio_id == self.sampler.eos:
                row.finish_reason = "stop"
                continue
            row.num_new += 1
            ids[index] = audio_id - self.sampler.text_vocab_size
            if row.num_new >= row.limit:
                row.finish_reason = "length"
        return TalkerStep(torch.tensor(ids), [row.reason for row in self.rows])

    def next_inputs(self) -> dict[str, torch.Tensor]:
        """`audio_ids`, `text_ids` and `position_ids` [B, 1] of the pass that follows the last draw."""
        self.position = self.position + 1
        texts = self.texts[min(self._step, len(self.texts) - 1)]
        self._step += 1
        return {"audio_ids": self._ids[:, None], "text_ids": texts[:, None], "position_ids": self.position[:, None]}


def drawn_together(calls: Sequence[TalkerCall], logits: torch.Tensor) -> list[Drawn]:
    """Draw the next ids of calls whose samplers are equal, without waiting for the device.

    Args:
        logits: [B, V], of the last tokens of all their rows.

    Returns:
        For each call what it is to `take`.
    """
    allowed = torch.cat([call.eos_allowed(call.position) for call in calls])
    probabilities = calls[0].sampler.probabilities(logits, allowed)
    counts = [len(call.rows) for call in calls]
    seeded = [call.draw for call in calls if isinstance(call.draw, SeededDraw)]
    if len(seeded) == len(calls):
        ids = inverted(probabilities, torch.cat([draw.next_uniforms(logits.device) for draw in seeded]))
    else:
        parts = zip(calls, probabilities.split(counts), strict=True)
        ids = torch.cat([call.draw(part).to(logits.device) for call, part in parts])
    is_usable = probabilities.sum(dim=-1).isfinite()
    on_host, arrived = _sent_to_host(torch.where(is_usable, ids, NO_ID))
    of_calls = zip(*(whole.split(counts) for whole in (ids, on_host, probabilities)), strict=True)
    return [Drawn(own, there, arrived, sure) for own, there, sure in of_calls]


def with_copies(inputs: dict[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
    """Inputs for so many rows: the last one is repeated, and nobody hears the copies."""
    missing = rows - len(inputs["audio_ids"])
    if not missing:
        return inputs
    return {name: torch.cat([value, *[value[-1:]] * missing]) for name, value in inputs.items()}


__all__ = [
    "NO_ID",
    "Draw",
    "Sampler",
    "SeededDraw",
    "StopRules",
    "TalkerCall",
    "TalkerPiece",
    "TalkerPrompt",
    "TalkerRow",
    "TalkerStep",
    "drawn_together",
    "filter_logits",
    "likeliest",
    "with_copies",
]
