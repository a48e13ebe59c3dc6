"""The memory estimator against what loaded models hold: weights, caches, peaks; limits of the released sizes."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from image_helpers import small_image_gen

from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from ming.cli.memory import (
    GIB,
    MODULES,
    PARTS,
    QUANTIZATION,
    RELEASED,
    PeakMemory,
    Workload,
    configs,
    estimate,
    main,
    peak_of,
    total,
    weight_bytes,
)
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration

ROOT = Path(__file__).resolve().parents[1]
WORK = Workload(context=512, batch=2, images=2, image_size=(196, 140), seconds=4.0)


def tensors_of(module: torch.nn.Module) -> list[torch.Tensor]:
    """Everything a loaded module holds, scales of quantised layers included."""
    tensors = [*module.parameters(), *module.buffers()]
    for layer in module.modules():
        if isinstance(layer, Linear4bit):
            state = layer.weight.quant_state
            tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        elif (scales := getattr(getattr(layer, "weight", None), "SCB", None)) is not None:
            tensors.append(scales)
    return tensors


def held(module: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(module))


@pytest.mark.parametrize("quantization", [None, *QUANTIZATION])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_of_the_loaded_model(dtype, quantization):
    options = {"quantization_config": QUANTIZATION[quantization], "device_map": "cpu"} if quantization else {}
    model = BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, dtype=dtype, **options)
    wanted = dict.fromkeys(PARTS, 0)
    for name, module in model.named_children():
        wanted[MODULES[name]] += held(module)
    wanted["speech"] += held(AudioDetokenizer.from_pretrained(ROOT / "audio_detokenizer", dtype=dtype))
    found = {item.part: item.weights for item in estimate(str(ROOT), dtype=dtype, quantization=quantization)}
    for part, size in found.items():
        if part != "image":
            assert size == pytest.approx(wanted[part], rel=0.05), part


def test_caches_and_peaks_are_those_of_a_real_pass():
    model = BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, dtype=torch.bfloat16).eval()
    found = {item.part: item for item in estimate(str(ROOT), work=WORK)}
    ids = torch.zeros(2, 512, dtype=torch.long)
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    assert found["text"].cache == sum(held_by.keys.nbytes + held_by.values.nbytes for held_by in cache.layers)
    peak = peak_of(model, lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1))
    assert found["text"].activations + found["text"].cache == pytest.approx(peak, rel=0.05)
    grid = torch.tensor([[1, 10, 14]] * 2)
    pixels = torch.zeros(280, 1176, dtype=torch.bfloat16)
    assert found["vision"].activations == pytest.approx(
        peak_of(model, lambda: model.get_image_features(pixels, grid)), rel=0.35
    )


def test_peak_counts_what_lives_at_once():
    known = torch.zeros(1000)
    with PeakMemory([known]) as memory:
        known.view(10, 100)  # no new storage
        one = torch.zeros(100)
        two = one + 1
        del one
        three = two * 2
    assert memory.peak == 800 and memory.now == 800
    del two, three
    assert memory.now == 0


def test_what_draws_is_counted():
    image_gen = small_image_gen()
    sizes = weight_bytes(image_gen)
    assert sum(sizes.values()) == held(image_gen) and set(sizes) >= {"vae", "transformer", "connector", "mlp"}


def test_parts_that_are_left_out_cost_nothing():
    full = estimate(RELEASED)
    assert [item.part for item in full] == list(PARTS)
    some = estimate(RELEASED, ["text", "audio"])
    assert [item.part for item in some] == ["text", "audio"]
    assert total(some) < total(full)
    assert "main" in configs(RELEASED) and set(configs(str(ROOT))) >= {"main", "audio_detokenizer"}
    with pytest.raises(ValueError, match=r"unknown parts \['smell'\]"):
        estimate(RELEASED, ["smell"])


def test_released_sizes_fit_where_they_should():
    perception = ("text", "vision", "audio")
    assert total(estimate(RELEASED, quantization="4bit")) < 16 * GIB
    assert total(estimate(RELEASED, perception, quantization="4bit")) < 12 * GIB
    assert total(estimate(RELEASED, perception)) < 38 * GIB


def test_options_describe_the_prompt(capsys):
    prompt = ["--context", "512", "--batch", "2", "--images", "2", "--image-size", "196x140", "--seconds", "4"]
    main([str(ROOT), "--parts", "vision", "--dtype", "float32", "--json", *prompt])
    told = json.loads(capsys.readouterr().out)
    expected = estimate(str(ROOT), ["vision"], torch.float32, None, WORK)
    assert told == {"parts": [asdict(item) for item in expected], "total": total(expected)}
    assert expected != estimate(str(ROOT), ["vision"], torch.float32)


def test_command_line():
    command = [sys.executable, "-m", "ming", "memory"]
    done = subprocess.run([*command, ".", "--parts", "vision", "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert [item["part"] for item in result["parts"]] == ["text", "vision"]
    done = subprocess.run([*command, "nowhere"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "nowhere" in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("ming: error: ") and done.stderr.count("\n") == 1
