"""Experts in 4 bit that are dequantised together, as on a GPU: the same weights, answers and files as one by one."""

import copy

import bitsandbytes
import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig

from ming.configuration_bailingmm import BailingMoeConfig
from ming.modeling_bailing_moe import BailingMoeForCausalLM, BailingMoeSeparateExperts
from ming.stacked_experts import can_be_stacked

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def decoder() -> BailingMoeForCausalLM:
    """A decoder whose matrices have 960 blocks of 64: not all groups of 256 of their scales are full."""
    config = BailingMoeConfig(
        vocab_size=160,
        hidden_size=320,
        intermediate_size=320,
        moe_intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=64,
        num_experts=6,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    model = BailingMoeForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("decoder")
    decoder().save_pretrained(path)
    return path


def load(
    folder, stacked: bool | None, dtype=torch.float32, double: bool = True, kind: str = "nf4", device: str = "cpu"
) -> BailingMoeForCausalLM:
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head"],
    )
    model = BailingMoeForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=quantization, device_map=device
    )
    for experts in layers_of(model):
        experts.stacked = stacked
    return model.eval()


def layers_of(model) -> list[BailingMoeSeparateExperts]:
    return [module for module in model.modules() if isinstance(module, BailingMoeSeparateExperts)]


@torch.no_grad()
def logits_of(model, length: int) -> torch.Tensor:
    return model(torch.arange(length, device=model.device)[None] + 3).logits


def dequantised(layer) -> torch.Tensor:
    return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


@pytest.mark.parametrize(("double", "kind"), [(True, "nf4"), (False, "nf4"), (True, "fp4")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dequantised_weights_are_equal_bit_for_bit(folder, dtype, double, kind):
    experts = layers_of(load(folder, True, dtype, double, kind))[0]
    wanted = {name: [dequantised(getattr(expert, name)) for expert in experts] for name in PROJECTIONS}
    experts(torch.zeros(1, 320, dtype=dtype), torch.tensor([[0, 1]]), torch.ones(1, 2))
    chosen, stacks = torch.tensor([4, 0, 4]), experts._stacks
    gate_up = [torch.cat([wanted["gate_proj"][one], wanted["up_proj"][one]]) for one in chosen]
    assert torch.equal(stacks.gate_up.of(chosen), torch.stack(gate_up))
    assert torch.equal(stacks.down.of(chosen), torch.stack([wanted["down_proj"][one] for one in chosen]))
    assert torch.equal(stacks.down.of(slice(None)), torch.stack(wanted["down_proj"]))
    for name in PROJECTIONS:  # the modules' own weights are what they were
        assert all(torch.equal(dequantised(getattr(e, name)), w) for e, w in zip(experts, wanted[name], strict=True))


@pytest.mark.parametrize("length", [1, 3, 40])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)], ids=str)
def test_logits_are_equal_within_rounding(folder, length, dtype, tolerance):
    ours, wanted = (logits_of(load(folder, stacked, dtype), length) for stacked in (True, False))
    assert wanted.std() > 0.3
    torch.testing.assert_close(ours, wanted, atol=tolerance, rtol=0)


def test_the_storage_holds_nothing_twice_and_is_kept(folder):
    model = load(folder, True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits_of(model, 40)
    experts = layers_of(model)[0]
    stacks = experts._stacks
    for place, name in enumerate(("gate_proj", "up_proj")):
        for number, expert in enumerate(experts):
            layer = getattr(expert, name)
            assert layer.weight.data_ptr() == stacks.gate_up.packed[number, place].data_ptr()
            assert layer.weight.quant_state.absmax.data_ptr() == stacks.gate_up.absmax[number, place].data_ptr()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    logits_of(model, 1)
    assert experts._stacks is stacks


def test_a_saved_model_is_reloaded_as_it_is(folder, tmp_path):
    model = load(folder, True)
    wanted = logits_of(model, 40)
    model.save_pretrained(tmp_path)
    again = BailingMoeForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, device_map="cpu").eval()
    assert torch.equal(
        again.state_dict()["model.layers.0.mlp.experts.3.gate_proj.weight"].cpu(),
        model.state_dict()["model.layers.0.mlp.experts.3.gate_proj.weight"].cpu(),
    )
    for stacked in (True, False):
        for experts in layers_of(again):
            experts.stacked = stacked
        torch.testing.assert_close(logits_of(again, 40), wanted, atol=1e-4, rtol=0)


def test_copies_and_changed_weights_are_stacked_anew(folder):
    model = load(folder, True)
    wanted = logits_of(model, 40)
    other = copy.deepcopy(model)
    assert torch.equal(logits_of(other, 1), logits_of(model, 1)) and torch.equal(logits_of(other, 40), wanted)
    first = layers_of(other)[0][0]
    first.gate_proj.weight.data = layers_of(other)[0][1].gate_proj.weight.data.clone()
    assert not torch.equal(logits_of(other, 40), wanted)
    assert torch.equal(logits_of(model, 40), wanted)


def test_adapters_and_gradients_go_through_the_modules(folder):
    model = load(folder, True)
    wanted = logits_of(model, 40)
    experts = layers_of(model)[0]
    experts[0].up_proj = nn.Sequential(experts[0].up_proj, nn.Identity())  # as an adapter wraps a layer
    assert not can_be_stacked(experts)
    torch.testing.assert_close(logits_of(model, 40), wanted, atol=1e-4, rtol=0)
    assert experts._stacks is None
    other = load(folder, True)
    embeds = torch.randn(1, 4, 320, requires_grad=True)
    other(inputs_embeds=embeds).logits.sum().backward()
    assert embeds.grad.abs().sum() > 0 and layers_of(other)[0]._stacks is None


def test_on_a_cpu_modules_are_called(folder):
    model = load(folder, None)
    logits_of(model, 3)
    assert all(experts._stacks is None for experts in layers_of(model))
