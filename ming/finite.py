"""NaN and infinite values: noticed once per call, and then traced to the layer that they come from.

A call looks at the logits behind its prompt and at its last ones, at its waveform, at its image: a comparison each,
none between two tokens, none in `forward`. Only when such a check fails is the work done once more, with a check
behind every layer, so that the error names the first one whose output is not finite.

Shape letters: B rows, L tokens, V vocabulary.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import LogitsProcessor, LogitsProcessorList

WIDER = "load the model with dtype=torch.bfloat16 or torch.float32 (--dtype bfloat16 or float32)"


def raise_if_not_finite(what: str, values: torch.Tensor) -> None:
    """Raise for NaN and infinite values; on a GPU this waits for it.

    Raises:
        FloatingPointError: naming `what` was computed.
    """
    if not torch.isfinite(values).all():
        raise FloatingPointError(f"{what} not finite (NaN or infinite values)")


class LogitsCheck(LogitsProcessor):
    """Looks at the first logits of a call of `generate`; of all others it keeps the last ones, for a look at the end.

    Attributes:
        input_ids: [B, L] up to the last logits, None before the first.
        scores: [B, V], those logits.
    """

    def __init__(self) -> None:
        self.input_ids: torch.Tensor | None = None
        self.scores: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        is_first = self.scores is None
        self.input_ids, self.scores = input_ids, scores
        if is_first:
            self.raise_if_not_finite()
        return scores

    def raise_if_not_finite(self) -> None:
        """Raise for NaN and +Inf in the last logits; -Inf bars a token and is no error.

        Raises:
            FloatingPointError: there are such values.
        """
        if self.scores is None:
            return
        largest = self.scores.max()  # NaN if there is one anywhere
        if largest.isnan() | (largest == math.inf):
            raise FloatingPointError("the logits are not finite (NaN or infinite values)")

    def added_to(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the library's `generate` with this check among them."""
        # Before those of the caller, which may bar tokens.
        processors = [self, *(arguments.get("logits_processor") or [])]
        return arguments | {"logits_processor": LogitsProcessorList(processors)}


class NotFiniteError(FloatingPointError):
    """NaN or infinite values, with the layer that they come from."""


@contextmanager
def naming_layers(parts: Mapping[str, nn.Module], again: Callable[[], Any]) -> Iterator[None]:
    """Add the name of the layer to a FloatingPointError of the block.

    Args:
        parts: prefix of the names -> module; the prefix of a whole model is "".
        again: does the work of the block once more; only called after such an error.

    Raises:
        NotFiniteError: that of the block, with the layer and a remedy.
    """
    try:
        yield
    except NotFiniteError:  # of a block inside, such as that of an assistant model
        raise
    except FloatingPointError as error:
        raise NotFiniteError(f"{error}, {first_not_finite(parts, again)}") from error


class _Found(Exception):
    """Ends the second pass at the first layer whose output is not finite."""

    def __init__(self, name: str, module: nn.Module, inputs: Any):
        super().__init__(name)
        self.name, self.module, self.inputs_are_finite = name, module, _is_finite(inputs)


def first_not_finite(parts: Mapping[str, nn.Module], again: Callable[[], Any]) -> str:
    """Which layer of `parts` is the first whose output is not finite while `again` runs, why, and what to do about it.

    Layers inside of another are seen before it. Calls of other threads are let pass.
    """
    own_thread = threading.get_ident()

    def checked(name: str) -> Callable:
        def check(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if threading.get_ident() == own_thread and not _is_finite(output):
                raise _Found(name, module, (args, kwargs))

        return check

    named = {module: name for prefix, part in parts.items() for name, module in part.named_modules(prefix=prefix)}
    handles = [module.register_forward_hook(checked(name), with_kwargs=True) for module, name in named.items()]
    try:
        # Compiled code does not see hooks that come after it.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            again()
    except _Found as found:
        return _explained(found, parts)
    finally:
        for handle in handles:
            handle.remove()
    return "but every layer was finite in a second pass; load the model with dtype=torch.float32"


def _is_finite(value: Any) -> bool:
    """Whether all floating-point tensors in a value are finite; what is neither a tensor nor a collection passes."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or value.is_meta or bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(_is_finite(item) for item in value.values())
    return not isinstance(value, (list, tuple)) or all(_is_finite(item) for item in value)


def _explained(found: _Found, parts: Mapping[str, nn.Module]) -> str:
    """The words of an error: layer, cause, remedy."""
    where = f"from layer {found.name or 'model'} on"
    weights = _weights({found.name: found.module}) | _weights(parts)  # those of the layer first
    for name, weight in weights.items():
        if not _is_finite(weight):
            remedy = WIDER if weight.dtype == torch.float16 else "check the checkpoint, or fetch it again"
            return f"{where}: the weight {name} is not finite in {weight.dtype}; {remedy}"
    dtype = next((weight.dtype for weight in weights.values() if weight.is_floating_point()), torch.float32)
    is_half = dtype == torch.float16
    if not found.inputs_are_finite:
        or_wider = f", or {WIDER}" if is_half else ""
        return f"{where}: its inputs are not finite, all weights are; check what the model was given{or_wider}"
    if is_half:
        return f"{where}: values overflow in {dtype}; {WIDER}"
    return f"{where}: values overflow in {dtype} although all weights are finite; check the checkpoint"


def _weights(parts: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name."""
    found: dict[str, torch.Tensor] = {}
    for prefix, part in parts.items():
        found |= dict(part.named_parameters(prefix=prefix)) | dict(part.named_buffers(prefix=prefix))
    return found


__all__ = ["LogitsCheck", "NotFiniteError", "first_not_finite", "naming_layers", "raise_if_not_finite"]
