"""Everything that is used of transformers and is not its documented interface, each behind a function of its own.

When a new release breaks one of them, `tests/test_compat.py` names what is gone and what stops working without it.
"""

import functools
import logging as python_logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Cache, modeling_utils
from transformers.models.auto import modeling_auto
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, logging

logger = logging.get_logger(__name__)

_loading = threading.Lock()
_loads: list[str] = []  # one entry for each load that runs with the switch set
ASYNC_SWITCH = "HF_DEACTIVATE_ASYNC_LOAD"


def register_for_serving(model_type: str, class_name: str) -> None:
    """Enter a model into the table by which `transformers serve` chooses how to load and to feed an architecture.

    The table is internal to the library, and remote code is served only with an entry in it. Everything else works
    without, so a version that has no such table gets a warning.
    """
    table = getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", None)
    if table is None:
        logger.warning("`transformers serve` will not serve this model: this release has no table for it")
        return
    table.setdefault(model_type, class_name)


@contextmanager
def silent_about_kernels() -> Iterator[None]:
    """While a component is imported: no warning that a kernel is missing which nobody asked for.

    diffusers imports bitsandbytes, which on CPUs with AVX-512 BF16 warns at import that the package `kernels` is not
    installed, whether or not anything will be loaded in 4 bit.
    """
    source = python_logging.getLogger("bitsandbytes.backends.cpu.ops")

    def is_news(record: python_logging.LogRecord) -> bool:
        return "gemm_4bit_forward" not in record.getMessage()

    source.addFilter(is_news)
    try:
        yield
    finally:
        source.removeFilter(is_news)


def keeps_auto_map(cls: type) -> type:
    """Class decorator: saving an instance that was loaded as remote code leaves its `auto_map` as it is.

    The library would copy the code flat beside the weights and write an `auto_map` without the folder;
    `ming/source.py` copies the folder instead.
    """

    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Nothing to register: this class keeps its own `auto_map`."""

    cls.register_for_auto_class = classmethod(register_for_auto_class)  # type: ignore[attr-defined]
    return cls


def takes_experts_implementation(cls: type) -> type:
    """Class decorator: the option `experts_implementation` is accepted by the class.

    The library looks for its decorator in the text of the file that defines a class, and hands the choice for the
    whole model to all parts, those without experts included.
    """
    cls._can_set_experts_implementation = classmethod(lambda cls: True)  # type: ignore[attr-defined]
    return cls


def ignores_experts_implementation(cls: type) -> type:
    """Class decorator for a configuration without experts: the choice for the whole model is dropped.

    The library hands the option of the decoder to all parts, and a Qwen2 model inside would refuse it.
    """

    def drop(config: Any, value: str | None) -> None:
        config._experts_implementation_internal = None

    cls._experts_implementation = property(lambda config: None, drop)  # type: ignore[attr-defined]
    return cls


def checks_requests(manager: Any, raise_if_unfit: Callable[[Any], None]) -> Any:
    """The library's engine of continuous batching, whose requests are checked before they are queued.

    The library builds it, and may hand out the same one again; all its requests pass `add_request`.
    """
    add_request = manager.add_request
    if hasattr(add_request, "__wrapped__"):
        return manager

    @functools.wraps(add_request)
    def add_checked(input_ids, *args, **kwargs):
        raise_if_unfit(input_ids)
        return add_request(input_ids, *args, **kwargs)

    manager.add_request = add_checked
    return manager


def compiles_on_all_devices(config: Any) -> Any:
    """The library's `CompileConfig` with which its `generate` compiles on a CPU, too.

    The library compiles on accelerators by itself, and elsewhere only for its own tests.
    """
    config._compile_all_devices = True
    return config


def compiles_where_asked(cls: type) -> type:
    """Class decorator: `generate` compiles what `compiles_on_all_devices` asks for, with quantised weights, too.

    The library never compiles with weights of bitsandbytes, whose operators are no obstacle. That a model compiles is
    checked before, see `raise_if_not_compilable`.
    """
    criteria = cls._valid_auto_compile_criteria  # type: ignore[attr-defined]

    def is_compiled(self: Any, model_kwargs: dict[str, Any], generation_config: Any) -> bool:
        config = generation_config.compile_config
        return bool(getattr(config, "_compile_all_devices", None)) or criteria(self, model_kwargs, generation_config)

    cls._valid_auto_compile_criteria = is_compiled  # type: ignore[attr-defined]
    return cls


def is_split(experts: nn.Module, weight: torch.Tensor) -> bool:
    """Whether the experts of a layer are spread over processes (expert or tensor parallel)."""
    return getattr(experts, "_is_expert_parallel", False) or hasattr(weight, "placements")


def execution_device(model: nn.Module, device: torch.device) -> torch.device:
    """Where a model computes whose own `device` is given: with offloaded weights that one is "meta".

    Offloaded weights are meta tensors until accelerate's hooks fetch them to the device that is returned here.
    """
    if device.type != "meta":
        return device
    hooks = [getattr(module, "_hf_hook", None) for module in model.modules()]
    single = [one for hook in hooks for one in getattr(hook, "hooks", (hook,))]
    devices = [getattr(one, "execution_device", None) for one in single]
    return next((torch.device(one) for one in devices if one is not None), device)


def is_remote_code(cls: type) -> bool:
    """Whether the library loaded a class from the code of a checkpoint."""
    return cls.__module__.split(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME


def is_split_over_processes(model: nn.Module) -> bool:
    """Whether the weights of a model lie in several processes, all of which take part in saving it."""
    config = getattr(model.config, "distributed_config", None)
    return config is not None or getattr(model, "_tp_size", None) is not None


def prompt_span(
    input_ids: torch.Tensor,
    next_sequence_length: int | None,
    cache: Cache | None,
    inputs_embeds: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
) -> tuple[int, int] | None:
    """Which tokens of a chat a pass reads that is prepared for `generate`: from the first up to the second place.

    The library says so with `next_sequence_length`, but not of chunks of a prompt (`prefill_chunk_size`) and of
    assisted decoding. There `input_ids` may hold the chunk, or all tokens beside a cache that has some of them, and
    transformers 5.16 does not tell a chunk of a prompt from a later token. What holds is that the mask spans all
    tokens up to the last one of the pass.

    Returns:
        None where the library says so itself, or where there is no prompt to cut.

    Raises:
        ValueError: the cache has all these tokens: transformers 5.16 cuts the prompt as if it were empty.
    """
    if next_sequence_length is not None or cache is None:
        return None
    length = input_ids.shape[1]
    stop = attention_mask.shape[1] if attention_mask is not None and attention_mask.ndim == 2 else None
    if inputs_embeds is None and stop != length:
        return None
    start = cache.get_seq_length()
    if stop is None:  # the library drops a mask of ones; a chunk is shorter than the embeddings of the prompt
        is_chunk = inputs_embeds is not None and length < inputs_embeds.shape[1]
        stop = start + length if is_chunk else length
    if stop <= start:
        raise ValueError(
            f"prefill_chunk_size: a chunk ends at token {stop}, and past_key_values hold {start} tokens; this release "
            "of transformers cannot read a chat in chunks from there on: leave prefill_chunk_size out, or take a "
            "newer release"
        )
    return start, stop


def slice_logits_to_keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The positions of [B, L, H] whose logits are wanted: the last ones (0: all), or those of a tensor of indexes.

    Releases before 5.20 have no such function and know numbers and one-dimensional tensors.
    """
    of_library = getattr(modeling_utils, "slice_logits_to_keep", None)
    if of_library is not None:
        return of_library(hidden_states, logits_to_keep)
    positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    return hidden_states[:, positions]


def resolve_chat_template(processor: Any, chat_template: str | None) -> str:
    """The template to render: the given one or one of that name, or else the processor's own."""
    of_library = getattr(processor, "_resolve_chat_template", None)
    if of_library is not None:
        return of_library(chat_template)
    own = processor.chat_template  # releases before 5.20
    if isinstance(own, dict):
        return own["default"] if chat_template is None else own.get(chat_template, chat_template)
    return own if chat_template is None else chat_template


@contextmanager
def sequential_loading() -> Iterator[None]:
    """Read weights one after another unless the user decided about `HF_DEACTIVATE_ASYNC_LOAD`.

    The library's loading threads run ahead of the fusing of experts and hold up to half a checkpoint on top of the
    model (`python -m benchmarks load`). The library asks for this in the environment and nowhere else, so loads that
    run at the same time share one setting, which goes with the last of them.
    """
    # The setting can be seen in the process's environment, and by its children, while a load runs. Nothing narrower
    # does the same (5.23, `convert_and_load_state_dict_in_model`): besides the switch, loading is sequential only for
    # weights offloaded to the disk and for weights quantised while they are read, neither of which can be asked for
    # alone; no argument and no weight converter is asked; the number of threads is a constant of the module, as
    # global as the environment; and a thread-local variable would have to be put in the place of `os.environ`.
    with _loading:
        decided_by_user = ASYNC_SWITCH in os.environ and not _loads
        if not decided_by_user:
            _loads.append(ASYNC_SWITCH)
            os.environ[ASYNC_SWITCH] = "1"
    try:
        yield
    finally:
        if not decided_by_user:
            _end_sequential_loading()


def _end_sequential_loading() -> None:
    with _loading:
        _loads.pop()
        if not _loads:
            os.environ.pop(ASYNC_SWITCH, None)


__all__ = [
    "checks_requests",
    "compiles_on_all_devices",
    "compiles_where_asked",
    "execution_device",
    "ignores_experts_implementation",
    "is_remote_code",
    "is_split",
    "is_split_over_processes",
    "keeps_auto_map",
    "register_for_serving",
    "resolve_chat_template",
    "sequential_loading",
    "slice_logits_to_keep",
    "takes_experts_implementation",
]
