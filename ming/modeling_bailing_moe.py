"""The Ling mixture-of-experts decoder with modality-specific routers (Ming-Omni, arXiv 2506.09344, section 2.2).

Routed experts are shared by all modalities; which of them a token visits is decided by the router of its modality:
`gate` (text), `image_gate` (image and video patches) or `audio_gate`. Attention, caches, experts kernels and losses
are the library's.

Shape letters: B batch, L tokens, T = B * L, H hidden size, E experts, K experts per token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter
from transformers.generation import GenerationMixin
from transformers.integrations import use_experts_implementation
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .compat import is_split, slice_logits_to_keep
from .configuration_bailingmm import BailingMoeConfig
from .idle_parts import must_be_called, must_have_gradients
from .quantization import is_quantized
from .stacked_experts import StackedExperts, can_be_stacked
from .token_types import AUDIO_MARK, AUDIO_TYPE, IMAGE_MARK, IMAGE_TYPE, TEXT_TYPE, VIDEO_TYPE

# Order of the entries in every per-router tensor.
ROUTERS = ("text", "image", "audio")

# In memory the experts of a layer are two tensors [E, 2I, H] and [E, H, I]; checkpoints keep one tensor per expert.
register_checkpoint_conversion_mapping(
    "BailingMoeModel",
    [
        WeightConverter(
            ["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"],
            "mlp.experts.gate_up_proj",
            [MergeModulelist(dim=0), Concatenate(dim=1)],
        ),
        WeightConverter("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", [MergeModulelist(dim=0)]),
    ],
    overwrite=True,
)


@dataclass
class BailingMoeOutputWithPast(CausalLMOutputWithPast):
    """What the decoder and the whole model return.

    loss: scalar; next-token loss plus, when router logits were asked for, the weighted router losses below.
    router_logits: per layer [T, E], each token's logits from the router of its modality.
    load_balancing_loss, router_z_loss: [3], one value per router in the order of `ROUTERS`; 0 for an unused router.
    last_hidden_state: [B, L, H], what the head reads; trainers that bring their own head loss take it from here.
    """

    router_logits: tuple[torch.FloatTensor, ...] | None = None
    load_balancing_loss: torch.FloatTensor | None = None
    router_z_loss: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None


class BailingMoeAttention(nn.Module):
    """Grouped-query attention; `query_key_value` holds the rows of all query, then key, then value heads."""

    def __init__(self, config: BailingMoeConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.q_size = config.num_attention_heads * self.head_dim
        self.kv_size = config.num_key_value_heads * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, self.q_size + 2 * self.kv_size, bias=False)
        self.dense = nn.Linear(self.q_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden_states [B, L, H] -> ([B, L, H], attention weights if the implementation returns them)."""
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        # vLLM splits the projection over processes where it finds this form, of three sizes and whole heads.
        query, key, value = self.query_key_value(hidden_states).split(
            (self.q_size, self.kv_size, self.kv_size), dim=-1
        )
        query_states = query.view(hidden_shape).transpose(1, 2)
        key_states = key.view(hidden_shape).transpose(1, 2)
        value_states = value.view(hidden_shape).transpose(1, 2)
        cos, sin = position_embeddings
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
        if past_key_values is not None:
            key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.config.sliding_window,
            **kwargs,
        )
        return self.dense(attn_output.reshape(*input_shape, -1)), attn_weights


class BailingMoeMLP(nn.Module):
    def __init__(self, config: BailingMoeConfig, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class BailingMoeGate(nn.Module):
    """One router: hidden states [T, H] -> logits [T, E]."""

    def __init__(self, config: BailingMoeConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden_states, self.weight)


@use_experts_implementation
class BailingMoeFusedExperts(nn.Module):
    """The routed experts of one layer; the decorator swaps `forward` for the chosen experts implementation."""

    def __init__(self, config: BailingMoeConfig):
        super().__init__()
        self.num_experts = config.num_experts
        self.gate_up_proj = nn.Parameter(
            torch.empty(config.num_experts, 2 * config.moe_intermediate_size, config.hidden_size)
        )
        self.down_proj = nn.Parameter(
            torch.empty(config.num_experts, config.hidden_size, config.moe_intermediate_size)
        )
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden_states [T, H], top_k_index and top_k_weights [T, K] -> [T, H]."""
        return self.one_by_one(hidden_states, top_k_index, top_k_weights)

    def one_by_one(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """As `forward`, in every precision. Visits only experts that were hit.

        Experts are summed in the weights' precision (float32) or a higher one of the states, as in the library's
        other implementations.
        Indexes equal to `num_experts` are the empty slots of expert parallelism and are passed over.
        """
        precision = torch.promote_types(hidden_states.dtype, top_k_weights.dtype)
        output = torch.zeros_like(hidden_states, dtype=precision)
        for expert in top_k_index.unique().tolist():
            if expert == self.num_experts:
                continue
            token, slot = torch.where(top_k_index == expert)
            gate, up = F.linear(hidden_states[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
            expert_output = F.linear(self.act_fn(gate) * up, self.down_proj[expert])
            output.index_add_(0, token, expert_output * top_k_weights[token, slot, None])
        return output.to(hidden_states.dtype)


class BailingMoeExperts(BailingMoeFusedExperts):
    """The same experts, with a shortcut for a single token, which is what decoding sends through them.

    On a CPU the shortcut multiplies by the chosen experts in place; in compiled code, which cannot ask which they are,
    by loops that read them where they lie. On a GPU it gathers them for one batched product, which takes half as long
    as the grouped product (`python -m benchmarks moe --device cuda`).
    """

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """As `BailingMoeFusedExperts`."""
        # Experts that are split over processes keep to the library's implementation.
        split, several = is_split(self, self.gate_up_proj), hidden_states.shape[0] != 1
        if several and hidden_states.dtype == torch.float64 and not split:  # PyTorch has no grouped product for it
            return self.one_by_one(hidden_states, top_k_index, top_k_weights)
        if several or split:
            return super().forward(hidden_states, top_k_index, top_k_weights)
        if hidden_states.device.type != "cpu":
            return ALL_EXPERTS_FUNCTIONS["batched_mm"](self, hidden_states, top_k_index, top_k_weights)
        if torch.compiler.is_compiling():  # products and sums become one loop, which copies no expert
            gate, up = (self.gate_up_proj[top_k_index[0]] * hidden_states).sum(dim=-1).chunk(2, dim=-1)
            outputs = (self.down_proj[top_k_index[0]] * (self.act_fn(gate) * up)[:, None]).sum(dim=-1)
        else:
            outputs = torch.cat([self._of_expert(expert, hidden_states) for expert in top_k_index[0].tolist()])
        return (top_k_weights @ outputs.to(top_k_weights.dtype)).to(hidden_states.dtype)

    def _of_expert(self, expert: int, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states [T, H] -> [T, H], unweighted."""
        gate, up = F.linear(hidden_states, self.gate_up_proj[expert]).chunk(2, dim=-1)
        return F.linear(self.act_fn(gate) * up, self.down_proj[expert])


class BailingMoeSeparateExperts(nn.ModuleList):
    """The same experts as modules of linear layers, which quantisers know; slower than stacks in full precision.

    Attributes:
        stacked: whether experts in 4 bit are dequantised together (`stacked_experts.py`); None: on all devices but a
            CPU, where bitsandbytes multiplies without dequantising, which is many times faster.
    """

    stacked: bool | None = None

    def __init__(self, config: BailingMoeConfig):
        super().__init__(BailingMoeMLP(config, config.moe_intermediate_size) for _ in range(config.num_experts))
        with torch.device("meta"):  # in a tuple, since its parameters are none of this module
            self._fused = (BailingMoeFusedExperts(config),)
        self._stacks: StackedExperts | None = None

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """As `BailingMoeExperts`; an expert that no token visits is not dequantised, unless there are many tokens."""
        stacks = self._current_stacks(hidden_states)
        if stacks is not None and top_k_index.numel() <= len(self):
            return stacks.of_few(hidden_states, top_k_index, top_k_weights)
        if stacks is not None:
            states = stacks.computed(hidden_states)
            arguments = (states, top_k_index, top_k_weights)
            return functional_call(self._fused[0], stacks.weights(states.dtype), arguments).to(hidden_states.dtype)
        output = torch.zeros_like(hidden_states, dtype=top_k_weights.dtype)
        visited = range(len(self)) if must_be_called(self, self.training) else top_k_index.unique().tolist()
        for expert in visited:
            token, slot = torch.where(top_k_index == expert)
            output.index_add_(0, token, self[expert](hidden_states[token]) * top_k_weights[token, slot, None])
        return output.to(hidden_states.dtype)

    def is_graph(self, device: torch.device) -> bool:
        """Whether a step on a device reads nothing back from it: all chosen experts are dequantised together."""
        return self._wants_stacks(device) and can_be_stacked(self)

    def _wants_stacks(self, device: torch.device) -> bool:
        return device.type != "cpu" if self.stacked is None else self.stacked

    def _current_stacks(self, hidden_states: torch.Tensor) -> StackedExperts | None:
        """The stacks of experts in 4 bit where they serve; they are made at the first call.

        Whether they are still those of the modules is asked of all experts where a prompt is read, and of one in the
        steps after it: asking all would take longer than the step. A compiled step comes after a prompt and cannot
        ask. Gradients would keep all dequantised weights: the modules dequantise theirs once more.
        """
        if not self._wants_stacks(hidden_states.device) or (torch.is_grad_enabled() and hidden_states.requires_grad):
            return None
        if torch.compiler.is_compiling():
            return self._stacks
        asked = len(self) if len(hidden_states) > 1 else 1
        if self._stacks is None or not self._stacks.is_current(self, asked):
            self._stacks = StackedExperts(self) if can_be_stacked(self) else None
        return self._stacks


class BailingMoeSparseMoeBlock(nn.Module):
    """Modality routers, shared routed experts, and an ungated shared MLP that sees every token."""

    def __init__(self, config: BailingMoeConfig, experts_class: type[nn.Module] = BailingMoeExperts):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob and config.num_experts_per_tok > 1
        self.multi_gate = config.multi_gate
        self.gate = BailingMoeGate(config)
        if config.multi_gate:
            self.image_gate = BailingMoeGate(config)
            self.audio_gate = BailingMoeGate(config)
        self.experts = experts_class(config)
        self.shared_experts: BailingMoeMLP | None = None
        if config.num_shared_experts > 0:
            self.shared_experts = BailingMoeMLP(config, config.moe_intermediate_size * config.num_shared_experts)

    def route(self, hidden_states: torch.Tensor, mm_token_type_ids: torch.Tensor | None) -> torch.Tensor:
        """hidden_states [T, H], mm_token_type_ids [T] (None: all text) -> router logits [T, E]."""
        router_logits = self.gate(hidden_states)
        if mm_token_type_ids is None or not self.multi_gate:
            return router_logits
        token_types = mm_token_type_ids[:, None]
        is_visual = (token_types == IMAGE_TYPE) | (token_types == VIDEO_TYPE)
        router_logits = torch.where(is_visual, self.image_gate(hidden_states), router_logits)
        return torch.where(token_types == AUDIO_TYPE, self.audio_gate(hidden_states), router_logits)

    def forward(
        self, hidden_states: torch.Tensor, mm_token_type_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden_states [B, L, H], mm_token_type_ids [B, L] -> ([B, L, H], router logits [T, E])."""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        token_types = None if mm_token_type_ids is None else mm_token_type_ids.reshape(-1)
        router_logits = self.route(tokens, token_types)
        if self.norm_topk_prob:  # the chosen probabilities over their sum: the chosen logits' softmax
            top_k_logits, selected_experts = router_logits.topk(self.top_k, dim=-1)
            routing_weights = top_k_logits.softmax(dim=-1, dtype=torch.float32)
        else:
            probabilities = router_logits.softmax(dim=-1, dtype=torch.float32)
            routing_weights, selected_experts = probabilities.topk(self.top_k, dim=-1)
        output = self.experts(tokens, selected_experts, routing_weights).view_as(hidden_states)
        if self.shared_experts is not None:
            output = output + self.shared_experts(hidden_states)
        return output, router_logits


class BailingMoeDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: BailingMoeConfig, layer_idx: int, experts_class: type[nn.Module] = BailingMoeExperts):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = BailingMoeAttention(config, layer_idx)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.is_sparse = layer_idx >= config.first_k_dense_replace
        self.mlp = (
            BailingMoeSparseMoeBlock(config, experts_class)
            if self.is_sparse
            else BailingMoeMLP(config, config.intermediate_size)
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """hidden_states [B, L, H] -> [B, L, H]."""
        attn_output, _ = self.attention(
            self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = hidden_states + attn_output
        normed = self.post_attention_layernorm(hidden_states)
        mlp_output = self.mlp(normed, mm_token_type_ids)[0] if self.is_sparse else self.mlp(normed)
        return hidden_states + mlp_output


class BailingMoePreTrainedModel(PreTrainedModel):
    config: BailingMoeConfig
    config_class = BailingMoeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BailingMoeDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _input_embed_layer = "word_embeddings"
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "router_logits": OutputRecorder(BailingMoeSparseMoeBlock, index=1),
        "hidden_states": BailingMoeDecoderLayer,
        "attentions": BailingMoeAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, BailingMoeExperts):
            init.normal_(module.gate_up_proj, std=self.config.initializer_range)
            init.normal_(module.down_proj, std=self.config.initializer_range)
        elif isinstance(module, BailingMoeGate):
            init.normal_(module.weight, std=self.config.initializer_range)


class BailingMoeModel(BailingMoePreTrainedModel):
    """Decoder without a head."""

    experts_class: type[nn.Module] = BailingMoeExperts

    def __init__(self, config: BailingMoeConfig):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            [
                BailingMoeDecoderLayer(config, layer_idx, self.experts_class)
                for layer_idx in range(config.num_hidden_layers)
            ]
        )
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MoeModelOutputWithPast:
        """input_ids [B, L] or inputs_embeds [B, L, H]; mm_token_type_ids [B, L], None for text only."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if mm_token_type_ids is None and must_have_gradients(self, self.training):
            # Routers that no token visits take part in the graph when they are told the tokens' types.
            mm_token_type_ids = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + seen

        make_mask = create_sliding_window_causal_mask if self.config.sliding_window else create_causal_mask
        causal_mask = make_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids)
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                mm_token_type_ids=mm_token_type_ids,
                position_ids=position_ids,
                **kwargs,
            )
        return MoeModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


class BailingMoeMarkedModel(BailingMoeModel):
    """The decoder for engines that hand over embeddings without the tokens' types.

    Features of media come multiplied by the mark of their modality (see `token_types.py`), so that the length of a row
    tells its type: features are unit vectors, and word embeddings are shorter than `IMAGE_MARK / 16`.
    """

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MoeModelOutputWithPast:
        """As `BailingMoeModel`; inputs_embeds [B, L, H] are marked."""
        types = None
        if inputs_embeds is not None:
            length = inputs_embeds.float().norm(dim=-1)
            is_audio, is_visual = length > AUDIO_MARK / 4, length > IMAGE_MARK / 4
            types = torch.where(is_audio, AUDIO_TYPE, torch.where(is_visual, IMAGE_TYPE, TEXT_TYPE))
            scale = torch.where(is_audio, 1 / AUDIO_MARK, torch.where(is_visual, 1 / IMAGE_MARK, 1.0))
            inputs_embeds = inputs_embeds * scale[..., None].to(inputs_embeds.dtype)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_token_type_ids=types,
            use_cache=use_cache,
            **kwargs,
        )


class BailingMoeSeparateModel(BailingMoeModel):
    """The decoder for quantisation: every expert is a module of its own.

    It has a class of its own since the library decides by the name of the class whether to fuse experts on loading.
    """

    experts_class = BailingMoeSeparateExperts


class BailingMoeForCausalLM(BailingMoePreTrainedModel, GenerationMixin):
    """Decoder with its language-model head.

    `separate_experts`: keep experts as modules, for quantisation; None: if the config asks for quantisation.
    """

    _tied_weights_keys = {"lm_head.weight": "model.word_embeddings.weight"}  # if config.tie_word_embeddings
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}

    def __init__(self, config: BailingMoeConfig, separate_experts: bool | None = None):
        super().__init__(config)
        separate_experts = is_quantized(config) if separate_experts is None else separate_experts
        self.model = (BailingMoeSeparateModel if separate_experts else BailingMoeModel)(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BailingMoeOutputWithPast:
        """labels [B, L] hold the token that stands at each position (-100: not trained); the shift is done here.

        Returns logits [B, L (or logits_to_keep), vocab] in float32.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_token_type_ids=mm_token_type_ids,
            use_cache=use_cache,
            output_router_logits=output_router_logits,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)).float()

        loss = load_balancing = router_z = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        if output_router_logits:
            load_balancing, router_z = router_losses(
                outputs.router_logits, self.config.num_experts_per_tok, mm_token_type_ids, attention_mask
            )
            if loss is not None:
                loss = loss + weighted_router_loss(self.config, load_balancing, router_z)
        return BailingMoeOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
            load_balancing_loss=load_balancing,
            router_z_loss=router_z,
            last_hidden_state=outputs.last_hidden_state,
        )


def weighted_router_loss(
    config: BailingMoeConfig, load_balancing: torch.Tensor, router_z: torch.Tensor
) -> torch.Tensor:
    """What the router losses [3], [3] add to the training loss: their sums times the config's coefficients."""
    return config.router_aux_loss_coef * load_balancing.sum() + config.router_z_loss_coef * router_z.sum()


def router_losses(
    router_logits: tuple[torch.Tensor, ...],
    top_k: int,
    mm_token_type_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Load-balancing loss and router z-loss of each modality's router, averaged over layers.

    Load balancing is E * sum_e f_e P_e (Switch Transformer, arXiv 2101.03961, section 2.2) with f_e the share of
    assignments and P_e the mean probability of expert e: 1 when balanced, E when one expert takes all. The z-loss is
    the mean squared log-sum-exp of the logits (ST-MoE, arXiv 2202.08906, section 2.3).

    Args:
        router_logits: per layer [T, E].
        mm_token_type_ids: [B, L]; None counts every token as text.
        attention_mask: [B, L], 0 for padding; a prepared 4-D mask is not accepted.
    Returns:
        (load_balancing [3], z [3]) float32, in the order of `ROUTERS`; 0 where a router saw no token.
    """
    logits = torch.stack([layer.float() for layer in router_logits])  # [layers, T, E]
    num_experts = logits.shape[-1]
    token_types = torch.zeros(logits.shape[1], dtype=torch.long, device=logits.device)
    if mm_token_type_ids is not None:
        token_types = mm_token_type_ids.reshape(-1)
    valid = torch.ones_like(token_types, dtype=torch.bool)
    if attention_mask is not None:
        if attention_mask.ndim != 2:
            raise ValueError(f"router losses need a [B, L] attention_mask, got shape {tuple(attention_mask.shape)}")
        valid = attention_mask.reshape(-1).bool()

    probabilities = logits.softmax(dim=-1)
    assigned = F.one_hot(probabilities.topk(top_k, dim=-1).indices, num_experts).sum(dim=-2).float() / top_k
    z = logits.logsumexp(dim=-1).square()
    is_visual = (token_types == IMAGE_TYPE) | (token_types == VIDEO_TYPE)
    is_audio = token_types == AUDIO_TYPE
    load_balancing, router_z = [], []
    for seen in (valid & ~is_visual & ~is_audio, valid & is_visual, valid & is_audio):
        count = seen.sum().clamp(min=1)
        share, probability = (
            (values * seen[None, :, None]).sum(dim=1) / count for values in (assigned, probabilities)
        )  # [layers, E]
        load_balancing.append(num_experts * (share * probability).sum(dim=-1).mean())
        router_z.append((z * seen).sum(dim=1).mean() / count)
    return torch.stack(load_balancing), torch.stack(router_z)


__all__ = ["BailingMoeForCausalLM", "BailingMoeModel", "BailingMoePreTrainedModel"]
