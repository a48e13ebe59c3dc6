"""Compiled decoding: the step from token to token as one graph, over static caches of few sizes.

The first token of an answer needs the whole prompt, whose length differs from call to call, and is not compiled. All
others run the graph: `torch.compile(fullgraph=True)` of the model's call for one new token a row. It reads nothing
back from the device, and its shapes are the number of rows and the length of the cache. Both are rounded up to powers
of two, so that a graph serves many prompts, and the caches are kept between calls: a CUDA graph is bound to the
memory that it was recorded with.

Shape letters: B rows, L tokens, V vocabulary.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CompileConfig, LogitsProcessor, LogitsProcessorList, StaticCache, StoppingCriteriaList
from transformers.cache_utils import Cache
from transformers.generation import StoppingCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from .argument_checks import raise_if_no_settings, shown
from .compat import compiles_on_all_devices
from .modeling_bailing_moe import BailingMoeSeparateExperts
from .quantization import is_quantized

SMALLEST_CACHE = 256  # tokens of the shortest cache of a model, where it says nothing else
KEPT_CACHES = 4  # of a model, the last used ones; each holds keys and values of all its rows and tokens
GRAPHS = 128  # of a model; PyTorch would give up after 8
DEFAULT_REPLY = 20  # tokens that the library writes where nothing limits a reply
QUANTIZED = (
    "compile: a quantised model whose experts are called one by one is not compiled, and only experts that are all in "
    "4 bit and on a GPU are not; load it without quantization, or leave compile out"
)
# What `generate` can do with a model, but not with its compiled step: name -> whether a value asks for it.
UNCOMPILED: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("assistant_model", "custom_generate", "prompt_lookup_num_tokens"), lambda value: True),
    "num_beams": lambda value: value > 1,
    "use_cache": lambda value: not value,
    "past_key_values": lambda value: not isinstance(value, StaticCache),
    "cache_implementation": lambda value: value != "static",
}
# Arguments of `generate` with one entry a row, and those that count or call rows in a way that padding would change.
ROWS = ("input_ids", "inputs_embeds", "attention_mask", "mm_token_type_ids", "position_ids")
UNPADDED = ("prefix_allowed_tokens_fn", "negative_prompt_ids", "past_key_values", "output_scores", "output_logits")

_one_step, _taking = threading.Lock(), threading.Lock()


@dataclass
class StepCompileConfig(CompileConfig):
    """How a step is compiled: one graph per shape, as many as there are shapes."""

    fullgraph: bool = True
    dynamic: bool | None = False
    recompile_limit: int = GRAPHS
    isolate_recompiles: bool = True  # the graphs of other models do not count


def padded_rows(rows: int) -> int:
    """The power of two that so many rows are padded to."""
    return 1 << (rows - 1).bit_length()


def step_config(device: torch.device, compiled: bool | CompileConfig | None = True) -> CompileConfig | None:
    """What `compile=` asks for, for the library; None: nothing is compiled.

    On CUDA the graph is recorded as a CUDA graph, too (`mode="reduce-overhead"`).

    Raises:
        TypeError: neither a flag nor a `CompileConfig`.
    """
    raise_if_no_settings({"compile": compiled})
    if not compiled:
        return None
    if compiled is True:
        config = StepCompileConfig(mode="reduce-overhead" if device.type == "cuda" else "default")
    else:
        config = StepCompileConfig(**{field.name: getattr(compiled, field.name) for field in fields(CompileConfig)})
    return compiles_on_all_devices(config)


def raise_if_quantized_apart(quantization: Any, device: torch.device) -> None:
    """Refuse a quantisation whose experts are called one by one on a device, before a model is read.

    Args:
        quantization: "4bit", "8bit", or a configuration of the library.

    Raises:
        ValueError: it names the reason and the remedy.
    """
    in_4_bit = quantization == "4bit" or getattr(quantization, "load_in_4bit", False)
    if device.type == "cpu" or not in_4_bit:
        raise ValueError(QUANTIZED)


def raise_if_not_compilable(model: Any) -> None:
    """Refuse models whose step is no graph.

    Raises:
        ValueError: it names the reason and the remedy.
    """
    if is_quantized(model.config):
        experts = [layer.mlp.experts for layer in model.get_decoder().layers if layer.is_sparse]
        apart = [each for each in experts if isinstance(each, BailingMoeSeparateExperts)]
        if not all(each.is_graph(model.device) for each in apart):
            raise ValueError(QUANTIZED)
    devices = sorted({str(device) for device in getattr(model, "hf_device_map", {}).values()})
    if len(devices) > 1:
        raise ValueError(
            f"compile: the model is spread over {', '.join(devices)}; load it on one device, or leave compile out"
        )


def raise_if_uncompiled(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of `generate` that the compiled step does not serve.

    Raises:
        ValueError: it names the argument.
    """
    for name, asks in UNCOMPILED.items():
        value = arguments.get(name)
        if value is not None and asks(value):
            raise ValueError(
                f"{name}={shown(value)} does not go with compile=True, which decodes token by token over a static "
                "cache; leave it out, or pass compile=False"
            )


class CompiledDecoding:
    """What a model keeps for compiled steps: the compiled call, and static caches that are not in use.

    Args:
        config: of the language model whose keys and values the caches hold.
        smallest_cache: tokens of the shortest cache, by type of device. Longer ones make steps slower, on a CPU by
            much, and graphs fewer.
    """

    def __init__(self, config: Any, smallest_cache: Mapping[str, int] | None = None):
        self.config, self.smallest_cache = config, smallest_cache or {}
        self._compiled: tuple[CompileConfig, Callable[..., ModelOutput]] | None = None
        self._idle: list[tuple[tuple, StaticCache]] = []

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a model starts with nothing: what was compiled computes with the original's weights."""
        return {**vars(self), "_compiled": None, "_idle": []}

    def padded_length(self, length: int, device: torch.device) -> int:
        """The length of the cache for so many tokens: a power of two, or the model's context."""
        context, smallest = self.config.max_position_embeddings, self.smallest_cache.get(device.type, SMALLEST_CACHE)
        rounded = max(smallest, padded_rows(length))
        return rounded if length > context else min(rounded, context)

    @contextmanager
    def cache(self, model: nn.Module, rows: int, length: int, kept: bool = True) -> Iterator[StaticCache]:
        """An empty cache for these many rows and tokens while the block runs.

        Args:
            length: is rounded up.
            kept: whether the cache is used again after the block.
        """
        length = self.padded_length(length, model.device)
        # Tensors of inference mode cannot be written to outside of it, and autocast decides the dtype of the keys.
        modes = torch.is_inference_mode_enabled(), torch.is_autocast_enabled(model.device.type)
        key = (rows, length, model.device, model.dtype, modes)
        with _taking:
            places = [place for place, entry in enumerate(self._idle) if kept and entry[0] == key]
            cache = self._idle.pop(places[-1])[1] if places else StaticCache(self.config, max_cache_len=length)
        if places:
            cache.reset()
        try:
            yield cache
        finally:
            with _taking:
                self._idle = [*self._idle, *([(key, cache)] if kept else [])][-KEPT_CACHES:]

    @contextmanager
    def growing_cache(self, model: nn.Module, rows: int) -> Iterator[Callable[[int, int], StaticCache]]:
        """A cache that grows while the block runs.

        Gives a function of the number of tokens in the cache and of those that must find room; it returns the cache, a
        longer one with the same tokens where they would not.
        """
        with ExitStack() as leases:
            caches: list[StaticCache] = []

            def with_room(seen: int, length: int) -> StaticCache:
                if not caches or max_length(caches[-1]) < length:
                    longer = leases.enter_context(self.cache(model, rows, length))
                    caches.append(moved(caches[-1], longer, seen) if caches else longer)
                return caches[-1]

            yield with_room

    def call(self, model: nn.Module, config: CompileConfig) -> Callable[..., ModelOutput]:
        """The compiled call of a model, for use from several threads."""
        if self._compiled is None or self._compiled[0] != config:
            self._compiled = (config, torch.compile(model.__call__, **config.to_dict()))
        compiled = self._compiled[1]
        if model.device.type != "cuda":
            return compiled

        def step(**inputs: Any) -> ModelOutput:
            # CUDA graphs share memory: the results of one are gone when the next one runs, in any thread.
            with _one_step:
                return _copied(compiled(**inputs))

        return step


def _copied(value: Any) -> Any:
    """Results with tensors of their own; a cache among them stays what it is."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _copied(item) for name, item in value.items()})
    return tuple(map(_copied, value)) if isinstance(value, tuple) else value


def settings_of(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `generate`, and what the configurations say about those that were left out."""
    settings: dict[str, Any] = {}
    for source in (model.generation_config, arguments.get("generation_config"), arguments):
        named = source if isinstance(source, Mapping) else vars(source) if source is not None else {}
        settings |= {name: value for name, value in named.items() if value is not None}
    return settings


def longest(settings: Mapping[str, Any], num_tokens: int) -> int:
    """Tokens of a prompt of `num_tokens` with the longest reply that the settings of `generate` allow, or more."""
    return num_tokens + settings.get("max_new_tokens", max(settings.get("max_length", 0), DEFAULT_REPLY))


def max_length(cache: StaticCache) -> int:
    """How many tokens fit into a cache."""
    return cache.layers[0].max_cache_len


def moved(cache: Cache, wanted: Cache, seen: int) -> Cache:
    """The cache `wanted`, which is empty, with the first `seen` tokens of another one."""
    for index, layer in enumerate(cache.layers if seen else []):
        wanted.update(layer.keys[:, :, :seen], layer.values[:, :, :seen], index)
    return wanted


def generate_compiled(
    model: Any, generate: Callable[..., Any], config: CompileConfig, arguments: Mapping[str, Any]
) -> torch.Tensor | ModelOutput:
    """The library's `generate` with the compiled step.

    Args:
        model: has a `decoding`, and one row of `arguments` for every chat.
        generate: of the library. arguments: for it, all by name.

    Raises:
        ValueError: see `raise_if_uncompiled`.
    """
    settings = settings_of(model, arguments)
    raise_if_uncompiled(settings)
    prompt = next(settings[name] for name in ("inputs_embeds", "input_ids") if name in settings)
    rows, replies = len(prompt), settings.get("num_return_sequences", 1)
    as_dict = settings.get("return_dict_in_generate", False)
    arguments = {**arguments, "cache_implementation": None, "compile_config": config}
    if "past_key_values" in settings:
        return generate(**arguments)
    wanted = rows if as_dict or replies > 1 or any(name in settings for name in UNPADDED) else padded_rows(rows)
    length = longest(settings, prompt.shape[1])
    with model.decoding.cache(model, wanted * replies, length, kept=not as_dict) as cache:
        reply = generate(**_padded(arguments, rows, wanted), past_key_values=cache)
    return reply if as_dict else reply[: rows * replies]


def _padded(arguments: Mapping[str, Any], rows: int, wanted: int) -> dict[str, Any]:
    """Arguments of `generate` for more rows, copies of the last one, which nobody sees."""
    if rows == wanted:
        return dict(arguments)
    padded = dict(arguments)
    for name in ROWS:
        value = arguments.get(name)
        if value is not None and len(value) == rows:
            padded[name] = torch.cat([value, value[-1:].expand(wanted - rows, *value.shape[1:])])
    if arguments.get("streamer") is not None:
        padded["streamer"] = FirstRowsStreamer(arguments["streamer"], rows)
    if arguments.get("prompt_states") is not None:
        padded["prompt_states"] = FirstRowsStates(arguments["prompt_states"], rows)
    padded["logits_processor"] = LogitsProcessorList(
        FirstRowsProcessor(each, rows) for each in arguments.get("logits_processor") or []
    )
    padded["stopping_criteria"] = StoppingCriteriaList(
        [*(FirstRowsCriteria(each, rows) for each in arguments.get("stopping_criteria") or []), EndOtherRows(rows)]
    )
    return padded


class FirstRowsStreamer(BaseStreamer):
    """Gives a streamer the ids [rows] of its own rows alone."""

    def __init__(self, streamer: Any, rows: int):
        self.streamer, self.rows = streamer, rows

    def put(self, value: torch.Tensor) -> None:
        self.streamer.put(value[: self.rows])

    def end(self) -> None:
        self.streamer.end()


class FirstRowsStates:
    """Gives `PromptStates` the states of their own rows alone."""

    def __init__(self, states: Any, rows: int):
        self.states, self.rows = states, rows

    def add(self, inputs_embeds: torch.Tensor, last_hidden_state: torch.Tensor) -> None:
        self.states.add(inputs_embeds[: self.rows], last_hidden_state[: self.rows])


class FirstRowsProcessor(LogitsProcessor):
    """Shows a processor of logits its own rows alone, [rows, L] and [rows, V]."""

    def __init__(self, processor: Callable[..., torch.Tensor], rows: int):
        self.processor, self.rows = processor, rows

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        own = self.processor(input_ids[: self.rows], scores[: self.rows])
        return torch.cat([own, scores[self.rows :]])


class FirstRowsCriteria(StoppingCriteria):
    """Shows a criterion its own rows alone."""

    def __init__(self, criterion: Callable[..., Any], rows: int):
        self.criterion, self.rows = criterion, rows

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.Tensor:
        own = torch.as_tensor(self.criterion(input_ids[: self.rows], scores, **kwargs), device=input_ids.device)
        return F.pad(own.expand(self.rows), (0, len(input_ids) - self.rows), value=True)


class EndOtherRows(StoppingCriteria):
    """Ends the rows behind the first ones at once, so that nobody waits for them."""

    def __init__(self, rows: int):
        self.rows = rows

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.Tensor:
        return torch.arange(len(input_ids), device=input_ids.device) >= self.rows


__all__ = [
    "CompiledDecoding",
    "generate_compiled",
    "longest",
    "max_length",
    "moved",
    "padded_rows",
    "raise_if_not_compilable",
    "raise_if_quantized_apart",
    "settings_of",
    "step_config",
]
