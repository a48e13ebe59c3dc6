"""The audio detokenizer beyond the goldens: batches, seeds, dtypes, loading, saving, wrong inputs, training loss.

Streaming is in `test_audio_detokenizer_stream.py`. Weights are those of the goldens with padding masked.
"""

import gzip
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from audio_detokenizer.configuration_audio_detokenizer import AudioDetokenizerConfig
from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from audio_detokenizer.noise import FrameNoise
from ming.release import read_released_detokenizer, read_released_detokenizer_config
from ming.release_files import read_released_yaml
from ming.training.flow import draw_known_frames, flow_matching_loss

GOLDENS = Path(__file__).resolve().parent / "goldens" / "speech"
COMPONENT = Path(__file__).resolve().parent.parent / "audio_detokenizer"
TINY_YAML = {
    "input_size: 512": "input_size: 32",
    "output_size: 512": "output_size: 32",
    "vocab_size: 4096": "vocab_size: 64",
    "attention_heads: 8": "attention_heads: 2",
    "linear_units: 2048": "linear_units: 64",
    "num_blocks: 6": "num_blocks: 2",
    "channels: [256, 256]": "channels: [32, 32]",
    "attention_head_dim: 64": "attention_head_dim: 16",
    "n_blocks: 4": "n_blocks: 1",
    "num_mid_blocks: 12": "num_mid_blocks: 2",
    "num_heads: 8": "num_heads: 2",
    "base_channels: 512": "base_channels: 32",
    "cond_channels: 512": "cond_channels: 32",
}


def golden_config(**fields) -> AudioDetokenizerConfig:
    return AudioDetokenizerConfig(**json.loads((GOLDENS / "config.json").read_text(encoding="utf-8")), **fields)


def golden_model(**fields) -> AudioDetokenizer:
    model = AudioDetokenizer(golden_config(**fields)).eval()
    for part in ("flow", "hift"):
        getattr(model, part).load_state_dict(load_file(GOLDENS / f"{part}.safetensors"))
    return model


@pytest.fixture(scope="module")
def model() -> AudioDetokenizer:
    """The golden weights with our treatment of padding. Do not change it."""
    return golden_model()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes_of(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = seeded(seed)
    return [torch.randint(0, 64, (length,), generator=generator) for length in lengths]


VOICES = torch.randn(4, 192, generator=seeded(1)) * 10
PROMPT = {"prompt_codes": codes_of(9, seed=5), "prompt_mel": [torch.zeros(15, 80)]}
LENGTHS = (23, 7, 40, 23)


# Configuration


def test_full_size_keys_and_shapes_are_the_released_ones():
    lines = gzip.decompress((GOLDENS / "keys.tsv.gz").read_bytes()).decode().splitlines()
    released = {key: tuple(map(int, shape.split("x"))) for key, shape in (line.split("\t") for line in lines[1:])}
    with torch.device("meta"):
        model = AudioDetokenizer(AudioDetokenizerConfig())
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert set(ours) - set(released) == set()
    assert set(released) - set(ours) == set()
    assert ours == released
    sizes = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in ("flow", "hift")}
    assert sizes == {"flow": 104_874_752, "hift": 20_460_591}
    assert sum(math.prod(shape) for shape in released.values()) == sum(sizes.values())


def test_defaults_are_the_released_settings():
    released = read_released_detokenizer_config(GOLDENS / "audio_detokenizer.yaml")
    assert released.to_dict() == AudioDetokenizerConfig().to_dict()
    assert released.hop_length == 256
    assert released.flow["decoder"]["cfm_params"]["sigma_min"] == 1e-6
    assert released.hift["sampling_rate"] == 22050


def test_tags_of_the_yaml_are_data(tmp_path):
    marker = tmp_path / "marker"
    path = tmp_path / "audio_detokenizer.yaml"
    path.write_text(f"a: !apply:os.mkdir [{marker}]\nb: !new:os.mkdir\n    path: {marker}\nc: !ref <a>\n")
    assert read_released_yaml(path) == {"a": [str(marker)], "b": {"path": str(marker)}, "c": [str(marker)]}
    for text in (f"a: !!python/object/apply:os.mkdir [{marker}]", "a: !ref <missing>", "- a", "a: [", "a: &x [*x"):
        path.write_text(text)
        with pytest.raises(ValueError, match=path.name):
            read_released_yaml(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flow": {"vocabulary": 3}}, "flow.vocabulary is not a setting; known are .*vocab_size"),
        ({"flow": {"encoder": {"use_cnn_module": True}}}, "flow.encoder.use_cnn_module=True is not implemented"),
        ({"flow": {"decoder": {"cfm_params": {"solver": "rk4"}}}}, "solver='rk4' is not implemented; only 'euler'"),
        ({"sample_rate": 24000}, "sample_rate and hift.sampling_rate must be equal, not 24000 and 22050"),
        ({"num_steps": 0}, "num_steps must be at least 1, not 0"),
        ({"streaming": {"chunk": 3}}, "streaming.chunk is not a setting"),
    ],
)
def test_wrong_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        AudioDetokenizerConfig(**fields)


# Batches, seeds


@pytest.fixture(scope="module")
def alone(model) -> list[torch.Tensor]:
    """Each row of the batch decoded by itself, every second one with a prompt."""
    waveforms = []
    for i, codes in enumerate(codes_of(*LENGTHS)):
        prompt = PROMPT if i % 2 else {}
        waveforms += model.decode([codes], VOICES[i : i + 1], **prompt, generator=seeded(i))
    return waveforms


def batch_arguments() -> dict:
    prompts = {name: [value[0] if i % 2 else None for i in range(4)] for name, value in PROMPT.items()}
    return {"speaker_embedding": VOICES, "generator": [seeded(i) for i in range(4)], **prompts}


def assert_rows_equal(ours, expected, tolerance=1e-4):
    assert [row.shape for row in ours] == [row.shape for row in expected]
    for row, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(row, other, atol=tolerance, rtol=0)


def test_a_batch_equals_its_rows(model, alone):
    together = model.decode(codes_of(*LENGTHS), **batch_arguments())
    assert_rows_equal(together, alone)
    assert all(row.dtype == torch.float32 and row.abs().max() > 0.05 for row in together)


def test_codes_as_a_tensor_with_lengths(model, alone):
    padded = pad_sequence(codes_of(*LENGTHS), batch_first=True)
    assert_rows_equal(model.decode(padded, code_lengths=torch.tensor(LENGTHS), **batch_arguments()), alone)


def test_lengths_and_silence(model, alone):
    for i, waveform in enumerate(alone):
        codes, cut = (LENGTHS[i] + 9, 15) if i % 2 else (LENGTHS[i], 0)
        assert len(waveform) == 256 * (int(codes / 50 * 22050 / 256) - cut)
        assert not waveform[:441].any() and waveform[441:500].any()


@pytest.mark.parametrize("mask_padding", [True, False])
def test_padding_is_seen_only_as_released(mask_padding):
    """Without masking, padded frames enter attention and group norms; with it a row is what it is alone."""
    model = golden_model(mask_padding=mask_padding)
    short, long = codes_of(12, 30)
    noise = torch.randn(2, 80, 51, generator=seeded(3))
    with torch.no_grad():
        padded = model.flow(pad_sequence([short, long], batch_first=True), torch.tensor([12, 30]), VOICES[:2], noise)
        single = model.flow(short[None], torch.tensor([12]), VOICES[:1], noise[:1, :, :20])
    difference = (padded[:1, :, :20] - single).abs().max()
    assert difference < 2e-5 if mask_padding else difference > 0.1


def test_one_generator_serves_all_rows_in_turn(model):
    codes = codes_of(6, 9)
    first, second = (model.decode(codes, VOICES[:1], generator=seeded(3)) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    alike = model.decode([codes[0]] * 2, VOICES[:1], generator=seeded(3))
    assert not torch.equal(*alike)


def test_without_a_generator_draws_differ_and_the_global_one_is_untouched(model):
    state = torch.get_rng_state()
    codes = codes_of(6)
    first, second, third = (
        model.decode(codes, VOICES[:1], generator=generator)[0] for generator in (None, None, seeded(1))
    )
    assert not torch.equal(first, second) and not torch.equal(first, third)
    assert torch.equal(torch.get_rng_state(), state)


def test_frame_noise_does_not_depend_on_how_it_is_asked_for():
    whole = FrameNoise(seeded(0), 7)(0, 300)
    noise = FrameNoise(seeded(0), 7)
    ranges = [(0, 0), (0, 1), (1, 70), (40, 41), (64, 64), (130, 290), (290, 300)]
    assert all(torch.equal(noise(start, stop), whole[start:stop]) for start, stop in ranges)
    assert len(noise.blocks) <= 2
    with pytest.raises(ValueError, match="frame 3 was dropped"):
        noise(3, 5)


def test_fewer_steps(model):
    (codes,) = codes_of(9)
    usual, same, fewer = (
        model.decode([codes], VOICES[:1], generator=seeded(0), num_steps=steps)[0] for steps in (None, 8, 4)
    )
    assert torch.equal(usual, same) and not torch.equal(usual, fewer)


def test_the_vocoder_draws_what_is_not_given(model):
    mel = torch.randn(2, 80, 5, generator=seeded(0))
    one, two = (model.hift(mel, generator=seeded(4)) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, model.hift(mel))
    phase = torch.stack([model.hift.draw_phase(seeded(i)) for i in range(2)])
    assert not phase[:, 0].any() and phase.abs().max() <= torch.pi
    rows = [model.hift(row[None], own[None], torch.zeros(1, 9, 1280)) for row, own in zip(mel, phase, strict=True)]
    torch.testing.assert_close(model.hift(mel, phase, torch.zeros(2, 9, 1280)), torch.cat(rows), atol=1e-5, rtol=0)


# Half precision


@pytest.mark.parametrize("convert", [lambda model: model.to(torch.bfloat16), lambda model: model.bfloat16()])
def test_bfloat16_is_the_flows_only(convert):
    model = convert(golden_model())
    assert {p.dtype for p in model.flow.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.hift.parameters()} == {torch.float32}
    hift = load_file(GOLDENS / "hift.safetensors")
    assert all(torch.equal(tensor, hift[name]) for name, tensor in model.hift.state_dict().items())


def test_bfloat16_is_close(model):
    half = golden_model().to(torch.bfloat16)
    codes, lengths = torch.stack(codes_of(30, 30)), torch.tensor([30, 20])
    noise = torch.randn(2, 80, 51, generator=seeded(3))
    with torch.no_grad():
        mel, half_mel = (one.flow(codes, lengths, VOICES[:2], noise) for one in (model, half))
    assert half_mel.dtype == torch.float32
    assert (half_mel - mel).abs().max() < 0.05 * mel.abs().max()
    assert (half_mel - mel).square().mean().sqrt() < 0.02 * mel.std()
    with torch.autocast("cpu", torch.bfloat16):
        (waveform,) = half.decode([codes[0]], VOICES[:1], generator=seeded(0))
    assert waveform.dtype == torch.float32 and waveform.isfinite().all() and waveform.abs().max() > 0.05


# Loading and saving


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A directory as released: yaml, flow.pt, hift.pt; at the sizes of the goldens."""
    directory = tmp_path_factory.mktemp("released")
    text = (GOLDENS / "audio_detokenizer.yaml").read_text(encoding="utf-8")
    for found, tiny in TINY_YAML.items():
        assert found in text
        text = text.replace(found, tiny)
    (directory / "audio_detokenizer.yaml").write_text(text, encoding="utf-8")
    for part in ("flow", "hift"):
        torch.save(load_file(GOLDENS / f"{part}.safetensors"), directory / f"{part}.pt")
    return directory


def assert_golden_weights(model):
    for part in ("flow", "hift"):
        expected, ours = load_file(GOLDENS / f"{part}.safetensors"), getattr(model, part).state_dict()
        assert set(ours) == set(expected)
        assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


def test_released_files(released, model, tmp_path):
    loaded = read_released_detokenizer(released)
    assert_golden_weights(loaded)
    assert loaded.config.to_dict() == AudioDetokenizerConfig(flow=model.config.flow, hift=model.config.hift).to_dict()
    one, two = (each.decode(codes_of(5), VOICES[:1], generator=seeded(0))[0] for each in (loaded, model))
    assert torch.equal(one, two)
    shutil.copy(released / "audio_detokenizer.yaml", tmp_path)
    for part in ("flow", "hift"):
        shutil.copy(GOLDENS / f"{part}.safetensors", tmp_path)
    assert_golden_weights(read_released_detokenizer(tmp_path))
    half = read_released_detokenizer(tmp_path, dtype=torch.bfloat16)
    assert (half.dtype, half.hift.conv_pre.bias.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("conv_pre.weight_g"), "hift.safetensors: missing keys: conv_pre.weight_g"),
        (lambda w: w.update(extra=torch.ones(1)), "hift.safetensors: unexpected keys: extra"),
        (lambda w: w.update({"conv_pre.bias": torch.ones(3)}), r"wrong shapes: conv_pre.bias \(3,\), not \(32,\)"),
    ],
)
def test_released_files_that_do_not_fit(released, tmp_path, change, message):
    shutil.copytree(released, tmp_path / "damaged")
    weights = load_file(GOLDENS / "hift.safetensors")
    change(weights)
    save_file(weights, tmp_path / "damaged" / "hift.safetensors")
    with pytest.raises(ValueError, match=message):
        read_released_detokenizer(tmp_path / "damaged")


def test_saving_keeps_released_names_bit_by_bit(model, tmp_path):
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    expected = {
        f"{part}.{name}": tensor
        for part in ("flow", "hift")
        for name, tensor in load_file(GOLDENS / f"{part}.safetensors").items()
    }
    assert set(saved) == set(expected)
    assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())
    assert_golden_weights(AudioDetokenizer.from_pretrained(tmp_path))
    half = AudioDetokenizer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert (half.dtype, half.hift.conv_pre.bias.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("hift.ups.0.weight_v"), "missing keys: hift.ups.0.weight_v"),
        (lambda w: w.update({"flow.extra": torch.ones(1)}), "unexpected keys: flow.extra"),
        (lambda w: w.update({"hift.conv_pre.bias": torch.ones(3)}), r"wrong shapes: hift.conv_pre.bias \(3,\)"),
    ],
)
def test_checkpoints_that_do_not_fit(model, tmp_path, change, message):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        AudioDetokenizer.from_pretrained(tmp_path)


REMOTE = """
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel
torch.set_num_threads(1)
source, target, answer = sys.argv[1:]
options = {"subfolder": "audio_detokenizer", "trust_remote_code": True}
model = AutoModel.from_pretrained(source, **options)
assert "transformers_modules" in type(model).__module__
assert AutoConfig.from_pretrained(source, **options).model_type == "bailingmm_audio_detokenizer"
model.save_pretrained(target)
codes = [torch.arange(9) % 8]
(waveform,) = model.decode(codes, torch.ones(1, 192), generator=torch.Generator().manual_seed(0))
save_file({"waveform": waveform}, answer)
"""


def test_remote_code_from_a_subfolder_and_again(tmp_path):
    """Saved by the class, loaded with its own code by another process elsewhere, saved by that, loaded again."""
    torch.manual_seed(0)
    model = AudioDetokenizer(golden_config()).eval()
    model.save_pretrained(tmp_path / "first" / "audio_detokenizer")
    expected = model.decode([torch.arange(9) % 8], torch.ones(1, 192), generator=seeded(0))[0]
    assert expected.isfinite().all() and expected.abs().max() > 0
    (tmp_path / "elsewhere").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for source, target in (("first", "second"), ("second", "third")):
        directory = tmp_path / source / "audio_detokenizer"
        auto_map = json.loads((directory / "config.json").read_text(encoding="utf-8"))["auto_map"]
        assert auto_map == {
            "AutoConfig": "audio_detokenizer/configuration_audio_detokenizer.AudioDetokenizerConfig",
            "AutoModel": "audio_detokenizer/modeling_audio_detokenizer.AudioDetokenizer",
        }
        modules = {path.name for path in directory.glob("*.py")}
        assert modules - {"__init__.py"} == {path.name for path in COMPONENT.glob("*.py")} - {"__init__.py"}
        answer = tmp_path / f"{source}.safetensors"
        saved = tmp_path / target / "audio_detokenizer"
        command = [sys.executable, "-c", REMOTE, str(tmp_path / source), str(saved), str(answer)]
        cwd = tmp_path / "elsewhere"
        process = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr[-3000:]
        torch.testing.assert_close(load_file(answer)["waveform"], expected, atol=1e-5, rtol=0)


def test_saving_over_itself_and_elsewhere(model, tmp_path):
    """A folder of another name loads by its own path; the code is not copied onto itself."""
    model.save_pretrained(tmp_path / "voice")
    config = json.loads((tmp_path / "voice" / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"]["AutoModel"] == "modeling_audio_detokenizer.AudioDetokenizer"
    again = AudioDetokenizer.from_pretrained(tmp_path / "voice")
    again.save_pretrained(tmp_path / "voice")
    assert_golden_weights(AudioDetokenizer.from_pretrained(tmp_path / "voice"))


def test_every_fresh_parameter_is_set():
    torch.manual_seed(0)
    model = AudioDetokenizer(golden_config())
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.flow.encoder.encoders[0].self_attn.pos_bias_u.abs().max() > 0
    convolution = model.hift.conv_pre
    torch.testing.assert_close(convolution.weight(), convolution.weight_v, atol=1e-6, rtol=0)


# Wrong inputs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": [torch.tensor([3, 64])]}, r"codes\[0\] holds 64, but speech codes lie between 0 and 63; decode"),
        ({"codes": [torch.tensor([3, -1])]}, r"codes\[0\] holds -1, but speech codes lie between 0 and 63"),
        ({"codes": [torch.zeros(0, dtype=torch.long)]}, r"codes\[0\] is empty; .* leave the row out"),
        ({"codes": []}, "codes holds no rows"),
        ({"codes": torch.zeros(3, dtype=torch.long)}, r"\[B, T\], not \(3,\)"),
        ({"codes": [torch.zeros(3)]}, r"codes\[0\] must be integers of shape \[T\], not torch.float32"),
        ({"codes": torch.ones(1, 4, dtype=torch.long), "code_lengths": [5]}, r"code_lengths \[5\] do not fit"),
        ({"speaker_embedding": torch.zeros(1, 256)}, r"\[1, 192\] .*not \(1, 256\)"),
        ({"speaker_embedding": torch.zeros(192)}, r"speaker_embedding must have shape .*not \(192,\)"),
        ({"speaker_embedding": torch.zeros(3, 192)}, r"not \(3, 192\)"),
        ({"prompt_codes": codes_of(9)}, "prompt_codes and prompt_mel belong together"),
        (
            PROMPT | {"prompt_mel": [torch.zeros(80, 15)]},
            r"prompt_mel\[0\] must have shape \[frames, 80\], not \(80, 15\)",
        ),
        (
            PROMPT | {"prompt_mel": [torch.zeros(40, 80)]},
            "has 40 frames, but 9 prompt_codes make 15; .*same recording",
        ),
        (PROMPT | {"prompt_codes": [torch.tensor([64] * 9)]}, r"prompt_codes\[0\] holds 64"),
        (PROMPT | {"prompt_codes": codes_of(9, 9, 9)}, "prompt_codes has 3 rows, codes has 1"),
        ({"generator": [seeded(0), seeded(1)]}, "2 generators for 1 rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_inputs_are_named_before_any_work(model, monkeypatch, change, message):
    monkeypatch.setattr(model.flow, "forward", lambda *_: pytest.fail("work was done"))
    arguments = {"codes": codes_of(5), "speaker_embedding": VOICES[:1]} | change
    with pytest.raises(ValueError, match=message):
        model.decode(**arguments)


def test_a_prompt_may_have_a_batch_dimension(model):
    """The form of released voice files: [1, P] codes and [1, T, 80] mel."""
    (expected,) = model.decode(codes_of(5), VOICES[:1], **PROMPT, generator=seeded(0))
    prompt = {name: torch.stack(value) for name, value in PROMPT.items()}
    (ours,) = model.decode(codes_of(5), VOICES[:1], **prompt, generator=seeded(0))
    assert torch.equal(ours, expected)


# Training


def training_batch() -> dict[str, torch.Tensor]:
    mel = pad_sequence([torch.randn(n, 80, generator=seeded(n)) for n in (20, 13)], batch_first=True)
    codes = pad_sequence(codes_of(12, 8), batch_first=True)
    lengths = {"code_lengths": torch.tensor([12, 8]), "mel_lengths": torch.tensor([20, 13])}
    return {"codes": codes, "mel": mel, "speaker_embedding": VOICES[:2]} | lengths


def test_the_loss_of_a_batch_is_the_mean_over_its_frames(model):
    batch = training_batch()
    randomness = {"t_uniform": torch.rand(2, 1, 1, generator=seeded(0)), "cfg_uniform": torch.tensor([0.1, 0.9])}
    randomness |= {name: torch.randn(2, 80, 20, generator=seeded(1)) for name in ("z", "cond")}
    with torch.no_grad():
        together = flow_matching_loss(model.flow, batch, randomness=randomness)
        alone = []
        for i, (codes, frames) in enumerate(((12, 20), (8, 13))):
            row = {name: value[i : i + 1] for name, value in batch.items()}
            row |= {"codes": row["codes"][:, :codes], "mel": row["mel"][:, :frames]}
            drawn = {name: value[i : i + 1, ..., :frames] for name, value in randomness.items() if value.ndim == 3}
            drawn |= {
                "t_uniform": randomness["t_uniform"][i : i + 1],
                "cfg_uniform": randomness["cfg_uniform"][i : i + 1],
            }
            alone.append(flow_matching_loss(model.flow, row, randomness=drawn))
    torch.testing.assert_close(together, (20 * alone[0] + 13 * alone[1]) / 33, atol=1e-5, rtol=0)


def test_what_the_loss_draws_comes_from_its_generator(model):
    batch, state = training_batch(), torch.get_rng_state()
    losses = [flow_matching_loss(model.flow, batch, generator=seeded(seed)) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2] and losses[0].requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_known_frames_are_a_beginning_or_nothing():
    mel, lengths = torch.ones(200, 100, 80), torch.full((200,), 100)
    known = draw_known_frames(mel, lengths, seeded(0))[:, 0]
    counts = known.sum(dim=1)
    assert torch.equal(known.bool(), torch.arange(100) < counts[:, None])
    assert 0.4 < (counts > 0).float().mean() < 0.6 and 25 < counts.max() <= 30
