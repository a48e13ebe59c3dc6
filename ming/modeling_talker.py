"""The talker: says a piece of text as codec ids (Ming-Omni, arXiv 2506.09344, section on speech generation).

A Qwen2 language model reads two id streams in step, whose embeddings are added:

    audio  <prompt></prompt><thinker_prefix> ... </thinker_prefix><vp> . </vp><audio_bos> prompt ids, generated ids
    text   the same                                                      first text id,  one text id per step, padding

In this prefix the places `...` hold projected hidden states of the thinker and `.` the speaker embedding. All prefix
tokens share one position, as in the release: the model was used that way, and ordinary positions change its answers.

Codec ids are ids of the codec's byte-pair vocabulary (`codec_bpe`); inside this module, where they follow
the text vocabulary, they are called audio ids.

Shape letters: B batch, L tokens, V whole vocabulary, H talker width, D thinker width, S speaker embedding size.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CompileConfig, DynamicCache, Qwen2ForCausalLM, StaticCache, TopKLogitsWarper
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from .argument_checks import LOWEST_DIVISOR, Kind, raise_if_no, raise_if_no_number, raise_if_no_settings, shown
from .compat import execution_device
from .compiled import CompiledDecoding, max_length, padded_rows, raise_if_uncompiled, step_config
from .configuration_bailingmm import BailingMMTalkerConfig
from .finite import naming_layers, raise_if_not_finite
from .randomness import MAX_SEED

NO_ID = -1  # in a step's ids: this row has ended
GENERATORS = Kind(
    "a list of torch.Generator, one per prompt, or left out",
    lambda value: isinstance(value, (list, tuple)) and all(isinstance(each, torch.Generator) for each in value),
)
RELEASED_EOS_MARGIN = 10
RELEASED_MAX_STEPS = 1000
# More ids than these for a piece of text mean that it does not stop: an id stands for 20 ms or more, and a text token
# takes 80 to 400 ms.
LIMIT_BASE, LIMIT_PER_TEXT_TOKEN = 60, 40
# Tokens of the caches of compiled steps: room for most pieces, so that there is one graph for a number of rows. On a
# CPU a step takes longer with every token that there is room for.
SMALLEST_CACHE = {"cpu": 512, "cuda": 2048}

# Probabilities [A, V] of the rows (indices) that go on -> ids [A], on their device.
Draw = Callable[[torch.Tensor, list[int]], torch.Tensor]


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
class _Row:
    """A piece being said: its streams as audio and text ids, and how far it is."""

    prompt: TalkerPrompt
    audio_ids: list[int]
    text_ids: list[int]
    prefix_length: int
    limit: int
    num_new: int = 0
    finish_reason: str | None = None

    @property
    def first_position(self) -> int:
        return self.prefix_length - 1

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

    def __call__(self, probabilities: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """The id of every row, at the end of which lies its number: see `Draw`."""
        place = self.step % self.block_steps
        if place == 0 or self.uniforms is None:
            block = [torch.rand(self.block_steps, generator=own, dtype=torch.float64) for own in self.generators]
            self.uniforms = torch.stack(block).to(probabilities.device)
        self.step += 1
        uniforms = self.uniforms[:, place]
        return inverted(probabilities, uniforms if len(rows) == len(uniforms) else uniforms[rows])


def inverted(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The ids [A] at which the sums of probabilities [A, V] pass the share uniforms [A] in [0, 1) of the whole."""
    summed = probabilities.double().cumsum(dim=-1)
    whole = summed[:, -1]
    passed = summed > torch.minimum(uniforms * whole, whole.nextafter(torch.zeros_like(whole)))[:, None]
    return passed.int().argmax(dim=-1)


def likeliest(probabilities: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """The best id of every row: see `Draw`."""
    return probabilities.argmax(dim=-1)


class BailingMMTalker(PreTrainedModel):
    """Text and a voice -> codec ids. Knows no tokenizer and no files; see `TalkerPrompt` for what it is given.

    Attributes:
        decoding: what is kept for compiled steps.
        step_callbacks: functions that are called after every step; a compiled one calls no hooks.
        runs_ahead: whether a step is begun before the ids of the one before it have reached the host, which tells the
            rows that end. The last step is then for nothing. None: on all devices but a CPU, where nothing waits.
    """

    config: BailingMMTalkerConfig
    config_class = BailingMMTalkerConfig
    base_model_prefix = "model"
    main_input_name = "audio_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["Qwen2DecoderLayer"]
    ATTEMPTS = 3  # draws of a piece that stays empty or does not stop

    def __init__(self, config: BailingMMTalkerConfig):
        super().__init__(config)
        hidden_size, kernel_size = config.llm_config.hidden_size, config.vp_kernel_size
        self.model = Qwen2ForCausalLM(config.llm_config)
        self.thinker_to_talker_proj = nn.Linear(config.qa_model_hidden_size, hidden_size)
        self.vp_head = nn.Conv1d(config.vp_feature_size, hidden_size, kernel_size, padding=kernel_size // 2)
        self.decoding = CompiledDecoding(config.llm_config, SMALLEST_CACHE)
        self.step_callbacks: list[Callable[[], None]] = []
        self.runs_ahead: bool | None = None
        self.post_init()

    @property
    def device(self) -> torch.device:
        """Where inputs belong, also when the weights are offloaded."""
        return execution_device(self, super().device)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def embed(
        self,
        audio_ids: torch.Tensor,
        text_ids: torch.Tensor,
        speaker_embedding: torch.Tensor | None = None,
        speaker_position: torch.Tensor | None = None,
        thinker_states: torch.Tensor | None = None,
        thinker_start: torch.Tensor | None = None,
        thinker_length: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sum of both streams' embeddings, with speaker and thinker vectors put in their places.

        Args:
            audio_ids, text_ids: [B, L].
            speaker_embedding: [B, S], goes to `speaker_position` [B].
            thinker_states: [B, N, D]; the first `thinker_length` [B] of a row go to `thinker_start` [B] and on.
        Returns:
            [B, L, H].
        """
        table = self.get_input_embeddings()
        embeds = table(audio_ids) + table(text_ids)
        position = torch.arange(embeds.shape[1], device=embeds.device)
        if speaker_embedding is not None:
            assert speaker_position is not None, "speaker_position says where the speaker_embedding goes"
            voice = self.vp_head(speaker_embedding.to(self.vp_head.weight.dtype)[..., None])[..., 0]
            at_speaker = position == speaker_position[:, None]
            embeds = torch.where(at_speaker[..., None], voice[:, None].to(embeds.dtype), embeds)
        if thinker_states is not None and thinker_states.shape[1]:
            assert thinker_start is not None and thinker_length is not None, "they say where thinker_states go"
            projected = self.thinker_to_talker_proj(thinker_states.to(self.thinker_to_talker_proj.weight.dtype))
            offset = position - thinker_start[:, None]
            at_thinker = (offset >= 0) & (offset < thinker_length[:, None])
            index = offset.clamp(0, projected.shape[1] - 1)[..., None].expand(-1, -1, projected.shape[-1])
            embeds = torch.where(at_thinker[..., None], projected.gather(1, index).to(embeds.dtype), embeds)
        return embeds

    def forward(
        self,
        audio_ids: torch.Tensor,
        text_ids: torch.Tensor,
        speaker_embedding: torch.Tensor | None = None,
        speaker_position: torch.Tensor | None = None,
        thinker_states: torch.Tensor | None = None,
        thinker_start: torch.Tensor | None = None,
        thinker_length: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> CausalLMOutputWithPast:
        """One pass over both streams; see `embed` for the arguments it takes.

        Args:
            attention_mask: [B, L], 0 at padding; while decoding, over all tokens so far.
            position_ids: [B, L]; None counts the tokens that are not padding.
            labels: [B, L], the audio id that must come *after* each place (not shifted here), -100 where not trained.
        Returns:
            logits [B, L, V] and, with labels, the mean cross-entropy as loss.
        """
        embeds = self.embed(
            audio_ids, text_ids, speaker_embedding, speaker_position, thinker_states, thinker_start, thinker_length
        )
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(dim=-1) - 1).masked_fill(attention_mask == 0, 1)
            position_ids = position_ids[:, -embeds.shape[1] :]
        outputs = self.model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )
        if labels is not None:
            outputs.loss = F.cross_entropy(outputs.logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
        return outputs

    def smallest_inputs(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Arguments of `forward` for a prompt of one token that calls every part."""
        one = torch.zeros(1, 1, dtype=torch.long, device=device)
        return {
            "audio_ids": one,
            "text_ids": one,
            "speaker_embedding": torch.zeros(1, self.config.vp_feature_size, device=device),
            "speaker_position": one[0],
            "thinker_states": torch.zeros(1, 1, self.config.qa_model_hidden_size, device=device),
            "thinker_start": one[0],
            "thinker_length": one[0] + 1,
        }

    @torch.no_grad()
    def generate(
        self,
        prompts: list[TalkerPrompt],
        generators: list[torch.Generator] | None = None,
        rules: StopRules | None = None,
        attempts: int | None = None,
        **options,
    ) -> list[TalkerPiece]:
        """Say several pieces at once; a piece that stays empty, does not stop or lacks words is drawn again.

        Args:
            prompts: one per piece.
            generators: one per piece; None takes the likeliest id at every step (there is then no second attempt).
            attempts: draws per piece at most, 3 if left out. The last one is returned whatever it is; see its
                `finish_reason`.
            options: `top_k`, `temperature`, `cache_implementation`, `compiled` and `draw` of `stream`.
        """
        self.resolve_options(attempts=attempts, rules=rules)
        self._raise_if_unusable(prompts, generators)
        attempts = self.ATTEMPTS if attempts is None else attempts
        rules = rules or StopRules()
        pieces: dict[int, TalkerPiece] = {}
        waiting = list(range(len(prompts)))
        for _ in range(attempts if generators is not None and not rules.released else 1):
            if not waiting:
                break
            ids: dict[int, list[int]] = {index: [] for index in waiting}
            chosen = None if generators is None else [generators[index] for index in waiting]
            for step in self.stream([prompts[index] for index in waiting], chosen, rules, **options):
                for index, step_id in zip(waiting, step.codec_ids.tolist(), strict=True):
                    ids[index] += [step_id] if step_id != NO_ID else []
            for index, reason in zip(waiting, step.finish_reasons, strict=True):
                pieces[index] = TalkerPiece.judged(ids[index], reason, prompts[index], rules)
            waiting = [index for index in waiting if pieces[index].finish_reason != "stop"]
        return [pieces[index] for index in range(len(prompts))]

    def stream(
        self,
        prompts: list[TalkerPrompt],
        generators: list[torch.Generator] | None = None,
        rules: StopRules | None = None,
        top_k: int | None = None,
        temperature: float | None = None,
        cache_implementation: str | None = None,
        draw: Draw | None = None,
        start_position: int = 0,
        compiled: bool | CompileConfig | None = None,
    ) -> Iterator[TalkerStep]:
        """Say pieces step by step. All rows have a finish reason in the last step, and in no step before it.

        The voice's prompt is read in one pass, not step by step. Only codec ids and the end token can be drawn.

        Args:
            prompts, generators: as in `generate`.
            top_k: >= 2. temperature: >= 1e-4. None takes the config's `sampling_top_k`, `sampling_temperature`.
            cache_implementation: "dynamic" (the default) or "static" (one allocation; compiled steps have one).
            draw: takes the place of `generators`, see `Draw`.
            start_position: added to all positions; the released rules run on from piece to piece.
            compiled: whether the step is compiled, over a static cache, see `compiled.py`; a `CompileConfig` says how.

        Raises:
            ValueError: naming the argument or the field of a prompt that cannot be used.
        """
        top_k, temperature = self.resolve_options(top_k, temperature, cache_implementation, rules, compiled=compiled)
        rules = rules or StopRules()
        self._raise_if_unusable(prompts, generators)
        if draw is None:
            draw = likeliest if generators is None else SeededDraw(generators)
        sampler = _Sampler(self.config, rules, top_k, temperature, draw)
        if rules.released and len(prompts) > 1:
            raise ValueError(f"released stop rules say one piece at a time, got {len(prompts)}")
        rows = [self._row(prompt, rules) for prompt in prompts]
        config = step_config(self.device, compiled)
        return self._decode(rows, sampler, cache_implementation, start_position, config)

    @contextmanager
    def _caches(
        self, rows: int, length: int, cache_implementation: str | None, config: CompileConfig | None
    ) -> Iterator[Callable[[int, int], Cache]]:
        """A function: tokens in the cache, tokens that must find room -> the cache; empty at first.

        Args:
            length: tokens that are read at most.
        """
        if config is not None:
            with self.decoding.growing_cache(self, rows) as cache_with_room:
                yield cache_with_room
            return
        cache: Cache = DynamicCache(config=self.model.config)
        if cache_implementation == "static":
            cache = StaticCache(self.model.config, max_cache_len=length)
        yield lambda seen, length: cache

    @torch.no_grad()
    def _decode(
        self,
        rows: list[_Row],
        sampler: "_Sampler",
        cache_implementation: str | None,
        start_position: int,
        config: CompileConfig | None,
    ) -> Iterator[TalkerStep]:
        inputs, pad = self._prefill_inputs(rows, start_position), self.config.special_token_ids["<audio_pad>"]
        step = self if config is None else self.decoding.call(self, config)
        size = len(rows) if config is None else padded_rows(len(rows))
        if size > len(rows):  # copies of the last row, which nobody hears
            more = size - len(rows)
            inputs = {name: torch.cat([value, *[value[-1:]] * more]) for name, value in inputs.items()}
        keep, width = max(len(row.prompt.prompt_ids) for row in rows) + 1, inputs["audio_ids"].shape[1]
        position, attention_mask = inputs["position_ids"][:, -1], inputs["attention_mask"]
        last_pass = inputs

        def read_again() -> None:
            self(**last_pass)

        length = width + max(row.limit for row in rows)
        runs_ahead = self.device.type != "cpu" if self.runs_ahead is None else self.runs_ahead
        lag = int(runs_ahead and not sampler.rules.released)  # these end pieces while their prompts are read
        texts, drawn = self._texts(rows, size), deque[_Drawn]()
        with self._caches(size, length, cache_implementation, config) as cache_with_room:
            cache = cache_with_room(0, width)
            logits = self(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits[: len(rows)]
            if sampler.rules.released:
                with naming_layers({"talker": self}, read_again):
                    sampler.draw_while_reading(logits, rows, position[: len(rows)])
            for seen in count(width):
                with naming_layers({"talker": self}, read_again):
                    drawn.append(sampler(logits[:, -1], rows, position[: len(rows)]))
                    ids, step_done = drawn[-1].ids, sampler.note(drawn.popleft(), rows) if len(drawn) > lag else None
                if step_done is not None:
                    yield step_done
                if all(row.finish_reason is not None for row in rows):
                    return
                position = position + 1
                cache = cache_with_room(seen, seen + 1)
                # A static cache has one mask for all steps: what lies ahead is masked anyway.
                masked = max_length(cache) if isinstance(cache, StaticCache) else seen + 1
                if attention_mask.shape[1] < masked:
                    attention_mask = F.pad(attention_mask, (0, masked - attention_mask.shape[1]), value=1)
                last_pass = {
                    "audio_ids": F.pad(ids, (0, size - len(rows)), value=pad)[:, None],
                    "text_ids": texts[min(seen - width, len(texts) - 1)][:, None],
                    "attention_mask": attention_mask,
                    "position_ids": position[:, None],
                    "past_key_values": cache,
                    "use_cache": True,
                }
                logits = step(**last_pass).logits[: len(rows)]
                for callback in self.step_callbacks:
                    callback()

    def resolve_options(
        self,
        top_k: int | None = None,
        temperature: float | None = None,
        cache_implementation: str | None = None,
        rules: StopRules | None = None,
        attempts: int | None = None,
        compiled: bool | CompileConfig | None = None,
    ) -> tuple[int, float]:
        """Options of `generate` -> `top_k` and `temperature` as given or as configured.

        Raises:
            ValueError: one that cannot be used.
            TypeError: `rules` are no `StopRules`, or `compiled` is neither a flag nor a `CompileConfig`.
        """
        raise_if_no_settings({"compile": compiled})
        for name, value, whole in (("top_k", top_k, True), ("temperature", temperature, False)):
            if value is not None:
                raise_if_no_number(name, value, whole)
        if attempts is not None:
            raise_if_no_number("attempts", attempts, whole=True)
        if rules is not None:
            raise_if_no("rules", rules, Kind("StopRules", lambda value: isinstance(value, StopRules)))
        top_k = self.config.sampling_top_k if top_k is None else top_k
        temperature = self.config.sampling_temperature if temperature is None else temperature
        if top_k < 2 or not temperature > 0:
            raise ValueError(f"top_k must be at least 2 and temperature above 0, got {top_k} and {temperature}")
        raise_if_no_number("temperature", temperature, at_least=LOWEST_DIVISOR)
        of_kind = cache_implementation is None or isinstance(cache_implementation, str)
        if not of_kind or cache_implementation not in (None, "dynamic", "static"):
            raise ValueError(f"cache_implementation must be 'dynamic' or 'static', got {shown(cache_implementation)}")
        if compiled:
            raise_if_uncompiled({"cache_implementation": cache_implementation})
        if attempts is not None and attempts < 1:
            raise ValueError(f"attempts={attempts}: a piece is drawn at least once")
        return top_k, temperature

    def _raise_if_unusable(self, prompts: list[TalkerPrompt], generators: list[torch.Generator] | None) -> None:
        """Raise ValueError or TypeError for arguments that cannot be used, before any work."""
        if not isinstance(prompts, (list, tuple)) or not all(isinstance(each, TalkerPrompt) for each in prompts):
            raise TypeError(
                f"prompts={shown(prompts)} must be a list of TalkerPrompt, as BailingMMTalkerProcessor.prompt makes "
                "them; use speak of the whole model for texts"
            )
        if not prompts:
            raise ValueError("prompts is empty; give at least one TalkerPrompt")
        if generators is not None:
            raise_if_no("generators", generators, GENERATORS)
        if generators is not None and len(generators) != len(prompts):
            raise ValueError(f"{len(generators)} generators for {len(prompts)} prompts; give one per prompt")
        for prompt in prompts:
            text_ids, prompt_ids = prompt.text_ids, prompt.prompt_ids
            if not len(text_ids) or not 0 <= int(text_ids.min()) <= int(text_ids.max()) < self.config.text_vocab_size:
                raise ValueError(
                    f"text_ids must be ids below {self.config.text_vocab_size}, at least one, got {text_ids.tolist()}"
                )
            if len(prompt_ids) and not 0 <= int(prompt_ids.min()) <= int(prompt_ids.max()) < (
                self.config.audio_vocab_size
            ):
                raise ValueError(
                    f"prompt_ids must be codec ids below {self.config.audio_vocab_size}, got {prompt_ids.tolist()}"
                )
            if prompt.speaker_embedding.shape != (self.config.vp_feature_size,):
                raise ValueError(
                    f"speaker_embedding must have shape ({self.config.vp_feature_size},), "
                    f"got {tuple(prompt.speaker_embedding.shape)}"
                )
            states, width = prompt.thinker_states, self.config.qa_model_hidden_size
            if states is not None and (states.ndim != 2 or states.shape[1] != width):
                raise ValueError(f"thinker_states must have shape (n, {width}), got {tuple(states.shape)}")

    def prepare_inputs(self, prompts: list[TalkerPrompt]) -> dict[str, torch.Tensor]:
        """Prefixes and prompt ids of several prompts as left-padded inputs of `forward`, on the model's device."""
        return self._prefill_inputs([self._row(prompt, StopRules()) for prompt in prompts], 0)

    def prefix_ids(self, num_thinker_states: int) -> list[int]:
        """The prefix of both streams [n + 8]; the text stream has its first text id in the last place."""
        ids = self.config.special_token_ids
        names = ("<prompt>", "</prompt>", "<thinker_prefix>", *("<audio_pad>",) * num_thinker_states)
        return [ids[name] for name in (*names, "</thinker_prefix>", "<vp>", "<audio_pad>", "</vp>", "<audio_bos>")]

    def _row(self, prompt: TalkerPrompt, rules: StopRules) -> _Row:
        prefix = self.prefix_ids(0 if prompt.thinker_states is None else len(prompt.thinker_states))
        offset = self.config.text_vocab_size
        text_ids = [*prompt.text_ids.tolist(), self.config.special_token_ids["<text_eos>"]]
        return _Row(
            prompt,
            [*prefix, *(index + offset for index in prompt.prompt_ids.tolist())],
            [*prefix[:-1], *text_ids],
            len(prefix),
            rules.limit(prompt),
        )

    def _text_id(self, row: _Row, place: int) -> int:
        pad = self.config.special_token_ids["<text_pad>"]
        return row.text_ids[place] if place < len(row.text_ids) else pad

    def _prefill_inputs(self, rows: list[_Row], start_position: int) -> dict[str, torch.Tensor]:
        """Prefixes and prompts of all rows as left-padded inputs of `forward`."""
        device, pad = self.device, self.config.special_token_ids["<audio_pad>"]
        width = max(len(row.audio_ids) for row in rows)
        lacking = [width - len(row.audio_ids) for row in rows]
        audio_ids, text_ids, positions = [], [], []
        for row, missing in zip(rows, lacking, strict=True):
            length = len(row.audio_ids)
            audio_ids.append([pad] * missing + row.audio_ids)
            text_ids.append([pad] * missing + [self._text_id(row, place) for place in range(length)])
            own = [row.first_position] * row.prefix_length + list(range(row.prefix_length, length))
            positions.append([start_position + place for place in [row.first_position] * missing + own])
        mask = [[0] * missing + [1] * len(row.audio_ids) for row, missing in zip(rows, lacking, strict=True)]
        inputs = {"audio_ids": audio_ids, "text_ids": text_ids, "position_ids": positions, "attention_mask": mask}
        inputs = {name: torch.tensor(value, device=device) for name, value in inputs.items()}
        shift = torch.tensor(lacking, device=device)
        states = [row.prompt.thinker_states for row in rows]
        lengths = torch.tensor([0 if item is None else len(item) for item in states], device=device)
        inputs["speaker_embedding"] = torch.stack([row.prompt.speaker_embedding for row in rows]).to(device)
        inputs["speaker_position"] = shift + 5 + lengths
        if lengths.any():
            empty = torch.zeros(0, self.config.qa_model_hidden_size, device=device, dtype=self.dtype)
            states = [empty if item is None else item.to(device, self.dtype) for item in states]
            inputs["thinker_states"] = nn.utils.rnn.pad_sequence(states, batch_first=True)
            inputs.update(thinker_start=shift + 3, thinker_length=lengths)
        return inputs

    def _texts(self, rows: list[_Row], size: int) -> torch.Tensor:
        """Text ids [n, size] of the steps after the prompt; the last ones stand for all that follow."""
        pad = self.config.special_token_ids["<text_pad>"]
        texts = [row.text_ids[len(row.audio_ids) :] for row in rows]
        width = max(len(text) for text in texts) + 1
        texts = [text + [pad] * (width - len(text)) for text in texts]
        texts += [[pad] * width] * (size - len(rows))
        # Not by `.T`, whose strides depend on the width: a graph of one row is bound to them.
        return torch.tensor(list(zip(*texts, strict=True)), device=self.device)


@dataclass(frozen=True)
class _Drawn:
    """What a step drew.

    Args:
        ids: audio ids [B], on the device; padding in rows that had ended.
        on_host: the same, or -1 where the probabilities were not finite; to be read after `arrived`.
        going: the rows that had not ended as far as the host knew.
        probabilities: [A, V] of these.
    """

    ids: torch.Tensor
    on_host: torch.Tensor
    arrived: torch.cuda.Event | None
    going: list[int]
    probabilities: torch.Tensor


def _sent_to_host(ids: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Ids on the host, and the event after which they are there; nothing waits for it."""
    if not ids.is_cuda:
        return ids.cpu(), None
    on_host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True).copy_(ids, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return on_host, arrived


class _Sampler:
    """Draws the next id of every row that goes on, and notes which rows end."""

    def __init__(self, config: BailingMMTalkerConfig, rules: StopRules, top_k: int, temperature: float, draw: Draw):
        self.rules, self.top_k, self.temperature, self.draw = rules, top_k, temperature, draw
        self.eos, self.pad = (config.special_token_ids[name] for name in ("<audio_eos>", "<audio_pad>"))
        self.text_vocab_size = config.text_vocab_size
        self.num_drawn = 0  # in every row that goes on

    def probabilities(self, logits: torch.Tensor, rows: list[_Row], position: torch.Tensor) -> torch.Tensor:
        """[B, V] from the logits [B, V] of the tokens at position [B]."""
        if self.rules.released:
            num_prompt = torch.tensor([len(row.prompt.prompt_ids) for row in rows], device=position.device)
            eos_allowed = position >= num_prompt + RELEASED_EOS_MARGIN
        else:
            eos_allowed = torch.full_like(position, self.num_drawn >= self.rules.min_new_ids, dtype=torch.bool)
        first_allowed = 0 if self.rules.released else self.text_vocab_size
        filtered = filter_logits(logits.float() / self.temperature, self.top_k, self.eos, eos_allowed, first_allowed)
        return filtered.softmax(dim=-1)

    def __call__(self, logits: torch.Tensor, rows: list[_Row], position: torch.Tensor) -> _Drawn:
        """Draw from the logits [B, V] of the tokens at position [B], without waiting for the device."""
        going = [index for index, row in enumerate(rows) if row.finish_reason is None]
        probabilities = self.probabilities(logits, rows, position)
        ids = torch.full((len(rows),), self.pad, device=logits.device)
        if len(going) < len(rows):
            probabilities = probabilities[going]
        if going:
            drawn = self.draw(probabilities, going).to(logits.device)
            ids = drawn if len(going) == len(rows) else ids.index_copy(0, torch.tensor(going).to(ids.device), drawn)
            self.num_drawn += 1
        else:
            drawn = ids[:0]
        is_usable = probabilities.sum(dim=-1).isfinite()
        on_host, arrived = _sent_to_host(torch.where(is_usable, drawn, NO_ID))
        return _Drawn(ids, on_host, arrived, going, probabilities)

    def note(self, drawn: _Drawn, rows: list[_Row]) -> TalkerStep:
        """What a step said, and which rows it ended; rows that ended while it was drawn say nothing.

        Raises:
            FloatingPointError: NaN among the probabilities.
        """
        if drawn.arrived is not None:
            drawn.arrived.synchronize()
        ids = [NO_ID] * len(rows)
        for index, audio_id in zip(drawn.going, drawn.on_host.tolist(), strict=True):
            if audio_id == NO_ID:
                raise_if_not_finite("the probabilities of the talker are", drawn.probabilities)
            if rows[index].finish_reason is not None:
                continue
            if audio_id == self.eos:
                rows[index].finish_reason = "stop"
            else:
                rows[index].num_new += 1
                ids[index] = audio_id - self.text_vocab_size
        for row in rows:
            if row.finish_reason is None and row.num_new >= row.limit:
                row.finish_reason = "length"
        return TalkerStep(torch.tensor(ids), [row.reason for row in rows])

    def draw_while_reading(self, logits: torch.Tensor, rows: list[_Row], position: torch.Tensor) -> None:
        """The released loop draws at every prompt step and throws the id away, unless it is the end token."""
        for before in range(logits.shape[1] - 1, 0, -1):
            probabilities = self.probabilities(logits[:, -1 - before], rows, position - before)
            if self.draw(probabilities, [0]).item() == self.eos:
                rows[0].finish_reason = "stop"
                return


__all__ = [
    "NO_ID",
    "BailingMMTalker",
    "SeededDraw",
    "StopRules",
    "TalkerPiece",
    "TalkerPrompt",
    "TalkerStep",
    "filter_logits",
]
