"""The image head against results of the released code with small random weights, float32."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from thinker_helpers import tiny_config

from image_gen.configuration_image_gen import ImageGenConfig
from image_gen.modeling_image_gen import ImageGen
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.release import (
    IMAGE_GEN_FOLDERS,
    image_gen_folder,
    image_gen_name,
    read_released_image_gen,
    read_released_image_gen_config,
    read_released_scheduler,
)

HERE = Path(__file__).resolve().parent
GOLDENS = HERE / "goldens" / "image_gen"
REFERENCE = HERE / "goldens" / "reference"
PATCH, VOCAB = 500, 520
STEPS, SEED, GUIDANCE = 4, 3, 3.5


@pytest.fixture(scope="module")
def g() -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / "goldens.safetensors")


@pytest.fixture(scope="module")
def image_gen() -> ImageGen:
    return read_released_image_gen(GOLDENS)


@pytest.fixture(scope="module")
def drawn(g, image_gen):
    """The released call: latents after every step, and the image."""
    latents = []
    drawing = image_gen.draw(
        g["condition"],
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=[torch.Generator().manual_seed(SEED)],
        callback=lambda step, num_steps, values: latents.append(values.clone()),
    )
    return latents, drawing


def close(ours: torch.Tensor, golden: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, golden, rtol=0, atol=tolerance)


def prompt_model(g, image_gen) -> BailingMMNativeForConditionalGeneration:
    """A thinker of the goldens' width whose embeddings of the prompt and of the markers are theirs."""
    text = {"hidden_size": g["condition"].shape[-1], "vocab_size": VOCAB, "image_patch_token": PATCH}
    model = BailingMMNativeForConditionalGeneration(tiny_config(llm_config=text)).eval()
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[g["prompt_ids"][0]] = g["embed_prompt"][0]
        table[[PATCH, PATCH + 1, PATCH + 2]] = g["embed_special"][0]
    model.components.use(image_gen=image_gen)
    return model


def test_queries_follow_the_prompt_as_image_features(g, image_gen):
    model, seen = prompt_model(g, image_gen), {}
    model.get_decoder().register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    states = model.drawing.states(g["prompt_ids"])
    close(seen["inputs_embeds"], g["llm_inputs_embeds"], 0.0)
    assert torch.equal(seen["mm_token_type_ids"], g["llm_image_mask"].long())
    assert torch.equal(seen["attention_mask"], g["appended_attention_mask"])
    assert [scale.shape[1] for scale in states] == [16, 64, 256]


def test_states_are_those_at_the_query_tokens(g, image_gen):
    model = prompt_model(g, image_gen)

    def replace(module, args, output):
        output.last_hidden_state = g["llm_hidden_states"]
        return output

    model.get_decoder().register_forward_hook(replace)
    states = model.drawing.states(g["prompt_ids"])
    assert torch.equal(torch.cat(states, dim=1), g["llm_hidden_states"][g["gen_mask"].bool()][None])
    close(image_gen.condition(states[-1]), g["condition"], 1e-5)


def test_parts_of_the_condition(g, image_gen):
    states = g["llm_hidden_states"][g["gen_mask"].bool()][None, -256:]
    close(image_gen.proj_in(states), g["proj_in_out"], 1e-5)
    close(image_gen.proj_out(g["connector_out"]), g["proj_out_out"], 1e-5)
    close(image_gen.mlp(g["cfg_prompt_embeds"]), g["mlp_out_cfg"], 1e-5)


@pytest.mark.parametrize("num_steps", [4, 20, 30])
def test_schedule_is_exact(g, image_gen, num_steps):
    scheduler = FlowMatchEulerDiscreteScheduler(**image_gen.config.scheduler)
    scheduler.set_timesteps(num_steps)
    assert torch.equal(scheduler.sigmas, g[f"sigmas_{num_steps}"])
    assert torch.equal(scheduler.timesteps, g[f"timesteps_{num_steps}"])


def scheduler_file(directory: Path, **values) -> Path:
    """A release of which only the scheduler's file exists."""
    (directory / "scheduler").mkdir()
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))
    return directory


def test_the_scheduler_of_the_first_release_is_used_without_shift(tmp_path):
    """Its class has `flow_shift`, which the released code does not read; this file is the released one."""
    values = json.loads((GOLDENS / "scheduler" / "scheduler_config.json").read_text())
    assert (values["_class_name"], values["flow_shift"]) == ("DPMSolverMultistepScheduler", 3.0)
    assert read_released_scheduler(GOLDENS) == {}
    config = read_released_image_gen_config(GOLDENS)
    assert config.scheduler == {"num_train_timesteps": 1000, "shift": 1.0}
    other = scheduler_file(tmp_path, _class_name="EulerDiscreteScheduler", shift=3.0)
    assert read_released_scheduler(other) == {}


def test_a_flow_matching_scheduler_counts_as_it_stands(tmp_path):
    """Expected are the released code's numbers for 4 steps; the library shifts its smallest sigma, too."""
    shutil.copytree(GOLDENS, tmp_path / "release", ignore=shutil.ignore_patterns("scheduler"))
    values = {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.33.0", "shift": 3.0}
    release = scheduler_file(tmp_path / "release", **values, num_train_timesteps=1000, use_karras_sigmas=False)
    config = read_released_image_gen(release).config
    assert config.scheduler == {"num_train_timesteps": 1000, "shift": 3.0, "use_karras_sigmas": False}
    scheduler = FlowMatchEulerDiscreteScheduler(**config.scheduler)
    scheduler.set_timesteps(4)
    expected = torch.tensor([1, 0.857692, 0.602151, 0.008929, 0])
    close(scheduler.sigmas, expected, 1e-6)


def test_a_release_without_scheduler_or_with_an_unknown_one_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no .*scheduler_config.json, and the weights do not say how images"):
        read_released_scheduler(tmp_path)
    values = {"_class_name": "FlowMatchEulerDiscreteScheduler", "new_setting": 1}
    with pytest.raises(ValueError, match="scheduler_config.json: .*'new_setting'; install a diffusers release"):
        read_released_scheduler(scheduler_file(tmp_path, **values))


def test_every_step_and_the_image(g, drawn):
    latents, drawing = drawn
    for step, values in enumerate(latents):
        close(values, g[f"step{step}_latent_out"], 1e-4)
    difference = np.abs(np.asarray(drawing.images[0]).astype(int) - g["image_uint8"].numpy().astype(int))
    assert difference.max() <= 1 and drawing.native_size == (512, 512)


def test_first_noise_is_the_released_draw(g):
    assert torch.equal(torch.randn(1, 32, 16, 16, generator=torch.Generator().manual_seed(SEED)), g["latent0"])


def test_transformer_and_autoencoder_alone(g, image_gen):
    with torch.no_grad():
        for mask, golden in ((g["t_mask"], "t_out"), (None, "t_out_nomask")):
            out = image_gen.transformer(
                g["t_latent"], g["t_enc"], encoder_attention_mask=mask, timestep=g["t_timestep"], return_dict=False
            )[0]
            close(out, g[golden], 1e-5)
        first = image_gen.transformer(
            torch.cat([g["latent0"]] * 2),
            g["mlp_out_cfg"],
            encoder_attention_mask=g["transformer_first_mask"],
            timestep=g["transformer_first_timestep"],
            return_dict=False,
        )[0]
        close(first, g["transformer_first_out"], 1e-4)
        close(image_gen.vae.decode(g["v_latent"], return_dict=False)[0], g["v_dec"], 1e-5)
        close(image_gen.vae.encode(g["v_enc_in"], return_dict=False)[0], g["v_enc_out"], 1e-5)
        close(g["vae_in"], g["step3_latent_out"] / image_gen.config.vae["scaling_factor"], 1e-5)


def test_full_size_has_the_released_names_and_shapes():
    full = json.loads(gzip.decompress((REFERENCE / "image_gen_full_size.json.gz").read_bytes()))
    with torch.device("meta"):
        model = ImageGen(ImageGenConfig())
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    own = {folder: {name for name in shapes if image_gen_folder(name) == folder} for folder in IMAGE_GEN_FOLDERS}
    sana = {f"transformer.{name}": shape for name, shape in full["sana_state_dict"].items()}
    assert len(own["transformer"]) == full["sana_key_count"] and len(own["vae"]) == full["vae_key_count"]
    assert {name: shapes[name] for name in sana} == sana
    parameters = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in ("transformer", "vae")}
    assert parameters == {"transformer": full["params"]["sana_transformer"], "vae": full["params"]["vae"]}
    assert sum(model.get_parameter(name).numel() for name in own["mlp"]) == full["mlp_params"]
    keys = json.loads(gzip.decompress((REFERENCE / "connector_keys.json.gz").read_bytes()))
    assert {name for key in keys if (name := image_gen_name("connector", key))} == own["connector"]
    assert [key for key in keys if image_gen_name("connector", key) is None] == ["model.embed_tokens.weight"]
    vocabulary = 151936 * 2048
    connector = sum(model.get_parameter(name).numel() for name in own["connector"])
    assert connector + vocabulary == full["params"]["connector"]


def test_native_sizes_are_the_released_table(g):
    config = ImageGenConfig()
    assert (config.native_size(512, 512), config.native_size(250, 260)) == ((512, 512), (480, 512))
    assert (config.native_size(1024, 1024), config.native_size(544, 480)) == ((512, 512), (544, 480))


def test_a_damaged_released_directory_names_what_is_wrong(tmp_path):
    broken = tmp_path / "released"
    shutil.copytree(GOLDENS, broken)
    path = broken / "mlp" / "model.safetensors"
    tensors = load_file(path)
    save_file({name: value for name, value in tensors.items() if name != "proj_in.bias"}, path)
    with pytest.raises(ValueError, match=r"mlp: missing keys: proj_in\.bias"):
        read_released_image_gen(broken)
    save_file({**tensors, "proj_in.weight": tensors["proj_in.weight"][:, :-1].clone()}, path)
    with pytest.raises(ValueError, match=r"wrong shapes: proj_in\.weight \(32, 63\), not \(32, 64\)"):
        read_released_image_gen(broken)
