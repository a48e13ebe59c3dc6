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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CompileConfig, DynamicCache, Qwen2ForCausalLM, StaticCache
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from .argument_checks import LOWEST_DIVISOR, Kind, raise_if_no, raise_if_no_number, raise_if_no_settings, shown
from .compat import execution_device
from .compiled import CompiledDecoding, max_length, padded_rows, raise_if_uncompiled, step_config
from .configuration_bailingmm import BailingMMTalkerConfig
from .finite import naming_layers
from .talker_steps import (
    NO_ID,
    Draw,
    Sampler,
    SeededDraw,
    StopRules,
    TalkerCall,
    TalkerPiece,
    TalkerPrompt,
    TalkerRow,
    TalkerStep,
    drawn_together,
    likeliest,
    with_copies,
)

GENERATORS = Kind(
    "a list of torch.Generator, one per prompt, or left out",
    lambda value: isinstance(value, (list, tuple)) and all(isinstance(each, torch.Generator) for each in value),
)
# Tokens of the caches of compiled steps: room for most pieces, so that there is one graph for a number of rows. On a
# CPU a step takes longer with every token that there is room for.
SMALLEST_CACHE = {"cpu": 512, "cuda": 2048}


class BailingMMTalker(PreTrainedModel):
    """Text and a voice -> codec ids. Knows no tokenizer and no files; see `TalkerPrompt` for what it is given.

    Attributes:
        decoding: what is kept for compiled steps.
        step_callbacks: functions that are called after every step; a compiled one calls no hooks.
        runs_ahead: whether a step is begun before the ids of the one before it have reached the host, which tells the
            rows that end. The last step is then for nothing. None: on all devices but a CPU, where nothing waits.
        together: says the pieces of several callers in one pass per step, as a server does; None: each call of
            `stream` decodes by itself.
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
        self.together: Callable[[TalkerCall], Iterator[TalkerStep]] | None = None
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
        eos, text_vocab_size = self.config.special_token_ids["<audio_eos>"], self.config.text_vocab_size
        sampler = Sampler(rules.released, top_k, temperature, eos, text_vocab_size)
        if rules.released and len(prompts) > 1:
            raise ValueError(f"released stop rules say one piece at a time, got {len(prompts)}")
        rows = [self._row(prompt, rules, start_position) for prompt in prompts]
        config = step_config(self.device, compiled)
        runs_ahead = self.device.type != "cpu" if self.runs_ahead is None else self.runs_ahead
        lag = int(runs_ahead and not rules.released)  # these end pieces while their prompts are read
        call = TalkerCall(rows, self._texts(rows), rules, sampler, draw, lag)
        if self.together is not None and cache_implementation is None and not rules.released:
            return self.together(call)
        return self._decode(call, cache_implementation, config)

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
        self, call: TalkerCall, cache_implementation: str | None, config: CompileConfig | None
    ) -> Iterator[TalkerStep]:
        rows, released = call.rows, call.rules.released
        step = self if config is None else self.decoding.call(self, config)
        size = len(rows) if config is None else padded_rows(len(rows))
        inputs = with_copies(self.prompt_inputs(rows), size)
        keep, width = max(len(row.prompt.prompt_ids) for row in rows) + 1, inputs["audio_ids"].shape[1]
        attention_mask, last_pass = inputs["attention_mask"], inputs

        def read_again() -> None:
            self(**last_pass)

        length = width + max(row.limit for row in rows)
        with self._caches(size, length, cache_implementation, config) as cache_with_room:
            cache = cache_with_room(0, width)
            logits = self(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits[: len(rows)]
            if released:
                with naming_layers({"talker": self}, read_again):
                    call.draw_while_reading(logits)
                if call.ended:
                    yield TalkerStep(torch.tensor([NO_ID]), [rows[0].reason])
                    return
            for seen in count(width):
                with naming_layers({"talker": self}, read_again):
                    (drawn,) = drawn_together([call], logits[:, -1])
                    said = call.take(drawn)
                if said is not None:
                    yield said
                if call.ended:
                    return
                cache = cache_with_room(seen, seen + 1)
                # A static cache has one mask for all steps: what lies ahead is masked anyway.
                masked = max_length(cache) if isinstance(cache, StaticCache) else seen + 1
                if attention_mask.shape[1] < masked:
                    attention_mask = F.pad(attention_mask, (0, masked - attention_mask.shape[1]), value=1)
                last_pass = {
                    **with_copies(call.next_inputs(), size),
                    "attention_mask": attention_mask,
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
        return self.prompt_inputs([self._row(prompt, StopRules()) for prompt in prompts])

    def prefix_ids(self, num_thinker_states: int) -> list[int]:
        """The prefix of both streams [n + 8]; the text stream has its first text id in the last place."""
        ids = self.config.special_token_ids
        names = ("<prompt>", "</prompt>", "<thinker_prefix>", *("<audio_pad>",) * num_thinker_states)
        return [ids[name] for name in (*names, "</thinker_prefix>", "<vp>", "<audio_pad>", "</vp>", "<audio_bos>")]

    def _row(self, prompt: TalkerPrompt, rules: StopRules, start_position: int = 0) -> TalkerRow:
        prefix = self.prefix_ids(0 if prompt.thinker_states is None else len(prompt.thinker_states))
        offset = self.config.text_vocab_size
        text_ids = [*prompt.text_ids.tolist(), self.config.special_token_ids["<text_eos>"]]
        return TalkerRow(
            prompt,
            [*prefix, *(index + offset for index in prompt.prompt_ids.tolist())],
            [*prefix[:-1], *text_ids],
            len(prefix),
            rules.limit(prompt),
            start_position,
        )

    def _text_id(self, row: TalkerRow, place: int) -> int:
        pad = self.config.special_token_ids["<text_pad>"]
        return row.text_ids[place] if place < len(row.text_ids) else pad

    def prompt_inputs(self, rows: list[TalkerRow]) -> dict[str, torch.Tensor]:
        """Prefixes and prompts of all rows as left-padded inputs of `forward`, on the model's device."""
        device, pad = self.device, self.config.special_token_ids["<audio_pad>"]
        width = max(len(row.audio_ids) for row in rows)
        lacking = [width - len(row.audio_ids) for row in rows]
        audio_ids, text_ids, positions = [], [], []
        for row, missing in zip(rows, lacking, strict=True):
            length = len(row.audio_ids)
            audio_ids.append([pad] * missing + row.audio_ids)
            text_ids.append([pad] * missing + [self._text_id(row, place) for place in range(length)])
            own = [row.first_position] * row.prefix_length + list(range(row.prefix_length, length))
            positions.append([row.start_position + place for place in [row.first_position] * missing + own])
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

    def _texts(self, rows: list[TalkerRow]) -> torch.Tensor:
        """Text ids [n, B] of the steps after the prompt; the last ones stand for all that follow."""
        pad = self.config.special_token_ids["<text_pad>"]
        texts = [row.text_ids[len(row.audio_ids) :] for row in rows]
        width = max(len(text) for text in texts) + 1
        texts = [text + [pad] * (width - len(text)) for text in texts]
        # Not by `.T`, whose strides depend on the width: a graph of one row is bound to them.
        return torch.tensor(list(zip(*texts, strict=True)), device=self.device)


__all__ = ["BailingMMTalker"]
