"""4 bit on a GPU: the quantised experts of a layer in one piece, dequantised for all chosen ones at once.

Every expert stays three modules (`bitsandbytes.nn.Linear4bit`), since quantising, saving and loading are the library's
and its names are theirs. Their weights become views of one tensor for the whole layer. On a GPU a call of a module
costs more than its arithmetic, and a token would take 18 of them a layer.

Shape letters: T tokens, K experts per token, E experts, n chosen ones, P matrices side by side, O outputs, I inputs,
H hidden size.
"""

from typing import Any

import torch
from torch import nn

FOUR_BIT = "Linear4bit"  # of bitsandbytes, which is imported only where there are such modules


class StackedWeights:
    """P quantised matrices [O, I] of every expert.

    Args:
        layers: of every expert its P modules, all of one size and quantised alike.
    """

    def __init__(self, layers: list[list[Any]]):
        self.layers = layers
        states = [[layer.weight.quant_state for layer in own] for own in layers]
        self.state = states[0][0]
        self.packed = self._stacked([[layer.weight.data for layer in own] for own in layers])
        self.absmax = self._stacked([[state.absmax for state in own] for own in states])
        if self.state.nested:
            self.nested_absmax = self._stacked([[state.state2.absmax for state in own] for own in states])
            self.offset = self._stacked([[state.offset.reshape(1) for state in own] for own in states])
        for expert, own in enumerate(layers):
            for place, layer in enumerate(own):
                state = layer.weight.quant_state
                layer.weight.data = self.packed[expert, place].view(layer.weight.shape)
                state.absmax = self.absmax[expert, place]
                if state.nested:
                    state.state2.absmax = self.nested_absmax[expert, place]

    @staticmethod
    def _stacked(tensors: list[list[torch.Tensor]]) -> torch.Tensor:
        """Tensors of one size, by expert and matrix, as [E, P, size]."""
        stacked = torch.stack([tensor.flatten() for own in tensors for tensor in own])
        return stacked.view(len(tensors), len(tensors[0]), -1)

    def is_current(self, number: int) -> bool:
        """Whether the weights of the first `number` experts are views of this storage: moving a model makes others."""
        return all(
            layer.weight.data_ptr() == self.packed[expert, place].data_ptr()
            for expert, own in enumerate(self.layers[:number])
            for place, layer in enumerate(own)
        )

    def of(self, experts: torch.Tensor | slice) -> torch.Tensor:
        """Dequantised matrices [n, P * O, I] of the experts [n], as bitsandbytes dequantises each of them."""
        absmax, state = self.absmax[experts], self.state
        if state.nested:
            values = state.state2.code[absmax.int()]
            scales = self.nested_absmax[experts].repeat_interleave(state.state2.blocksize, dim=-1)
            absmax = values * scales[..., : values.shape[-1]] + self.offset[experts]
        packed = self.packed[experts]
        outputs, inputs = state.shape
        shape = [packed.shape[0] * packed.shape[1] * outputs, inputs]
        weights = torch.ops.bitsandbytes.dequantize_4bit(
            packed.reshape(-1, 1), absmax.float().flatten(), state.blocksize, state.quant_type, shape, state.dtype
        )
        return weights.view(packed.shape[0], -1, inputs)


class StackedExperts:
    """The routed experts of a layer, in stacks.

    Args:
        experts: modules with `gate_proj`, `up_proj`, `down_proj` and `act_fn`, see `can_be_stacked`.
    """

    def __init__(self, experts: nn.ModuleList):
        self.gate_up = StackedWeights([[expert.gate_proj, expert.up_proj] for expert in experts])
        self.down = StackedWeights([[expert.down_proj] for expert in experts])
        self.act_fn, self.first = experts[0].act_fn, experts[0].gate_proj
        if self.down.packed.is_cuda:  # the pieces that the modules held are too small to be used again
            torch.cuda.empty_cache()

    def is_current(self, experts: nn.ModuleList, number: int) -> bool:
        """Whether these are the stacks of the first `number` modules of a layer as they are now."""
        for index in range(number):
            expert, made_of = experts[index], [*self.gate_up.layers[index], *self.down.layers[index]]
            if [expert.gate_proj, expert.up_proj, expert.down_proj] != made_of:
                return False
        return self.gate_up.is_current(number) and self.down.is_current(number)

    def computed(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hidden states in the dtype that the modules would multiply in."""
        return hidden_states.to(self.first.compute_dtype or hidden_states.dtype)

    def of_few(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """As `BailingMoeExperts`, by dequantising the experts of every token: [T, H] -> [T, H]."""
        tokens, top_k = top_k_index.shape
        states = self.computed(hidden_states)
        chosen, inputs = top_k_index.flatten(), states.repeat_interleave(top_k, dim=0)[..., None]
        gate, up = (self.gate_up.of(chosen).to(states.dtype) @ inputs).squeeze(-1).chunk(2, dim=-1)
        outputs = self.down.of(chosen).to(states.dtype) @ (self.act_fn(gate) * up)[..., None]
        outputs = outputs.view(tokens, top_k, -1).to(top_k_weights.dtype)
        return (top_k_weights[:, None] @ outputs).squeeze(1).to(hidden_states.dtype)

    def weights(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The parameters of `BailingMoeFusedExperts` for a call: all experts, dequantised."""
        everything = slice(None)
        return {
            "gate_up_proj": self.gate_up.of(everything).to(dtype),
            "down_proj": self.down.of(everything).to(dtype),
        }


def can_be_stacked(experts: nn.ModuleList) -> bool:
    """Whether all experts are plain 4-bit layers: no adapters, nothing that is fetched from elsewhere for a call.

    Some layers of a model may have been left unquantised, for their sizes or since the user said so.
    """
    layers = [layer for expert in experts for layer in (expert.gate_proj, expert.up_proj, expert.down_proj)]
    return all(
        type(layer).__name__ == FOUR_BIT
        and layer.bias is None
        and not hasattr(layer, "_hf_hook")
        and layer.weight.quant_state is not None
        and not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
        for layer in layers
    )


__all__ = ["StackedExperts", "can_be_stacked"]
