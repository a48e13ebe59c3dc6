"""Drawing through the whole model: conversations, batches, seeds, sizes, streams, errors, saving (random weights)."""

import copy
import subprocess
import sys
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from image_helpers import ROOT, STEPS, build_drawing_repository, small_config, small_image_gen
from PIL import Image
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters
from transformers import AutoModel, AutoModelForMultimodalLM, CompileConfig

from image_gen.configuration_image_gen import ImageGenConfig
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration

PICTURE = {"type": "image", "image": str(ROOT / "demo" / "picture.jpg")}
RECORDING = {"type": "audio", "audio": str(ROOT / "demo" / "recording.wav")}
CAPTURED = CompileConfig(fullgraph=True, dynamic=False, mode=None, backend="eager")
CLIP = {"type": "video", "video": str(ROOT / "demo" / "clip.mp4")}
CHATS = [
    [{"role": "user", "content": "Draw a small red circle on the left."}],
    [{"role": "user", "content": [PICTURE, {"type": "text", "text": "Make the circle blue."}]}],
    [{"role": "user", "content": [CLIP, RECORDING, PICTURE, {"type": "text", "text": "Draw what you hear."}]}],
    [
        {"role": "user", "content": [PICTURE, {"type": "text", "text": "What shape is it?"}]},
        {"role": "assistant", "content": "circle"},
        {"role": "user", "content": "Draw it again."},
    ],
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return build_drawing_repository(tmp_path_factory.mktemp("drawing"))


@pytest.fixture(scope="module")
def model(repository):
    return BailingMMNativeForConditionalGeneration.from_pretrained(repository, dtype=torch.float32).eval()


def prepare(processor, chats) -> dict:
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return dict(processor.apply_chat_template(chats, **options))


def draw(model, processor, chats, **options):
    return model.generate(**prepare(processor, chats), generation_mode="image", **options)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_a_batch_of_mixed_chats_draws_as_each_alone(model, processor):
    together = draw(model, processor, CHATS, seed=5)
    assert len(together.images) == 4 and together.native_size == (64, 64)
    for chat, image in zip(CHATS, together.images, strict=True):
        alone = draw(model, processor, [chat], seed=5).images[0]
        assert np.abs(pixels(alone) - pixels(image)).max() <= 1


def test_a_batch_of_chats_and_images_takes_one_pass_a_step(model, processor):
    """The image head draws two images of two chats in two steps: two passes, of four images with their guidance."""
    rows = []
    transformer = model.image_gen.load().transformer
    hook = transformer.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    chats = [CHATS[0], [{"role": "user", "content": "Draw a large green star in the center."}]]
    drawn = draw(model, processor, chats, num_images_per_prompt=2, num_inference_steps=2, seed=5)
    hook.remove()
    assert len(drawn.images) == 4 and rows == [8, 8]


def test_what_was_said_earlier_matters(model, processor):
    states = [model.drawing.states(**prepare(processor, [chat]))[-1] for chat in (CHATS[3], CHATS[3][2:])]
    assert (states[0] - states[1]).abs().max() > 0.1


def test_seeds_belong_to_pictures_and_leave_the_global_generator_alone(model, processor):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    pair = draw(model, processor, CHATS[:2], seed=[7, 8], num_images_per_prompt=1)
    assert torch.equal(torch.get_rng_state(), before)
    again = draw(model, processor, CHATS[1:2], seed=8)
    assert np.abs(pixels(pair.images[1]) - pixels(again.images[0])).max() <= 1
    variants = draw(model, processor, CHATS[:1], seed=7, num_images_per_prompt=2)
    assert np.abs(pixels(variants.images[0]) - pixels(pair.images[0])).max() <= 1
    assert (pixels(variants.images[0]) != pixels(variants.images[1])).any()
    following = draw(model, processor, CHATS[:1], seed=8).images[0]  # the number after the seed
    assert np.abs(pixels(variants.images[1]) - pixels(following)).max() <= 1
    generator = [torch.Generator().manual_seed(8)]
    assert draw(model, processor, CHATS[1:2], generator=generator).images == again.images
    fresh = [draw(model, processor, CHATS[:1]).images[0] for _ in range(2)]
    assert fresh[0] != fresh[1]


def changed(size: tuple[int, int]) -> list[dict]:
    """A chat that changes an image of a size (width, height)."""
    image = {"type": "image", "image": Image.new("RGB", size, "white")}
    return [{"role": "user", "content": [image, {"type": "text", "text": "Make the background red."}]}]


@pytest.mark.parametrize("size", [(256, 128), (128, 256), (640, 480), (480, 640), (1000, 400), (300, 300), (900, 100)])
def test_a_changed_picture_keeps_its_proportions(model, processor, size):
    image = draw(model, processor, [changed(size)], seed=1, num_inference_steps=1).images[0]
    assert image.width / image.height == pytest.approx(size[0] / size[1], rel=0.04)
    assert 0.6 < image.width * image.height / 64**2 < 2 or min(image.size) == 64


def test_the_last_picture_of_a_chat_gives_the_proportions(model, processor):
    chat = [*changed((128, 256)), {"role": "assistant", "content": "Done."}, *changed((256, 128))]
    image = draw(model, processor, [chat], seed=1, num_inference_steps=1).images[0]
    assert image.width == 2 * image.height


def test_changed_pictures_of_other_proportions_share_a_batch(model, processor):
    chats = [changed((256, 128)), CHATS[0], changed((640, 480)), changed((256, 128))]
    options = {"num_inference_steps": 1, "num_images_per_prompt": 2, "seed": 3}
    together = draw(model, processor, chats, **options)
    assert together.native_size is None
    for index, chat in enumerate(chats):
        alone = draw(model, processor, [chat], **options)
        for one, other in zip(alone.images, together.images[2 * index : 2 * index + 2], strict=True):
            assert one.size == other.size
            assert np.abs(pixels(one) - pixels(other)).max() <= 1


def test_a_checkpoint_that_draws_squares_stretches_them(model, processor, monkeypatch):
    monkeypatch.setattr(model.image_gen.config, "source_ratios", [1.0, 1.0])
    drawing = draw(model, processor, [changed((640, 480))], seed=1, num_inference_steps=1)
    assert drawing.native_size == (64, 64)
    assert drawing.images[0].width / drawing.images[0].height == pytest.approx(640 / 480, rel=0.02)


def test_a_size_that_was_asked_for_wins(model, processor):
    options = {"seed": 1, "num_inference_steps": 1}
    for asked in ({"height": 100, "width": 70}, {"height": 64}, {"width": 64}):
        image = draw(model, processor, [changed((256, 128))], **asked, **options).images[0]
        assert image.size == (asked.get("width", 64), asked.get("height", 64))
    native = draw(model, processor, [changed((640, 480))], resize=False, **options)
    assert native.images[0].size == native.native_size[::-1]


@pytest.mark.parametrize("size", [(64, 64), (250, 260), (100, 64), (2048, 64), (333, 2048)])
def test_pictures_have_the_size_asked_for(model, processor, size):
    options = {"seed": 1, "height": size[0], "width": size[1], "num_inference_steps": 1}
    drawing = draw(model, processor, CHATS[:1], **options)
    assert drawing.images[0].size == (size[1], size[0]) and drawing.images[0].mode == "RGB"
    native = draw(model, processor, CHATS[:1], **options, resize=False)
    assert native.images[0].size == native.native_size[::-1] == drawing.native_size[::-1]


def test_a_size_is_covered_and_cropped_and_proportions_are_stretched(model, processor):
    options = {"seed": 1, "num_inference_steps": 1}
    native = draw(model, processor, CHATS[:1], **options, height=100, width=70, resize=False)
    asked = draw(model, processor, CHATS[:1], **options, height=100, width=70).images[0]
    scale = max(100 / native.native_size[0], 70 / native.native_size[1])
    covering = native.images[0].resize([round(side * scale) for side in native.images[0].size], Image.BILINEAR)
    left, top = (covering.width - 70) // 2, (covering.height - 100) // 2
    cropped = covering.crop((left, top, left + 70, top + 100))
    stretched = native.images[0].resize((70, 100), Image.BILINEAR)
    to_crop, to_stretch = (np.abs(pixels(asked) - pixels(other)).mean() for other in (cropped, stretched))
    assert to_crop < to_stretch / 2
    # Without a size nothing is cropped.
    chat = changed((640, 480))
    native, own = (draw(model, processor, [chat], **options, resize=keep).images[0] for keep in (False, True))
    assert own.size != native.size and own == native.resize(own.size, Image.Resampling.LANCZOS)


def test_large_images_can_be_decoded_tile_by_tile():
    vae = small_image_gen().vae
    calls = []
    vae.decoder.register_forward_hook(lambda module, args, output: calls.append(output.shape[-1]))
    latents = torch.randn(1, 4, 20, 20, generator=torch.Generator().manual_seed(0))  # 640 x 640 pixels
    with torch.no_grad():
        vae.decode(latents)
        vae.enable_tiling()
        assert vae.decode(latents).sample.shape == (1, 3, 640, 640)
    assert calls[0] == 640 and len(calls) > 3 and max(calls[1:]) < 640


def test_compiled_steps_draw_the_same_with_one_graph_for_a_size(model, processor):
    """One image and two, of two sizes and with other seeds: a graph each, and none for what came before."""
    torch._dynamo.reset()
    start, found = counters["stats"]["unique_graphs"], []
    calls = [
        (CHATS[:1], 1, {}),
        (CHATS[3:], 2, {}),
        (CHATS[:1] * 2, 3, {}),
        (CHATS[:1], 4, {"height": 64, "width": 256}),
    ]
    for chats, seed, options in calls:
        plain, compiled = (
            draw(model, processor, chats, seed=seed, **options, compile=asked).images for asked in (False, CAPTURED)
        )
        for ours, other in zip(compiled, plain, strict=True):
            assert np.abs(pixels(ours) - pixels(other)).max() <= 1
        found.append(counters["stats"]["unique_graphs"] - start)
    assert found == [1, 1, 2, 3] and not counters["graph_break"]
    other = copy.deepcopy(model.image_gen.load())
    assert vars(other.graphs) != vars(model.image_gen.graphs)


def test_what_does_not_compile_is_refused_before_any_work():
    image_gen = small_image_gen()
    condition = torch.zeros(1, 9, 192)
    with pytest.raises(TypeError, match="compile='yes' must be True"):
        image_gen.draw(condition, compile="yes")
    image_gen.enable_model_cpu_offload("cpu")
    with pytest.raises(ValueError, match="compile: parts of the image head are moved"):
        image_gen.draw(condition, compile=True)


def test_progress_is_a_bar_for_who_asks(model, processor, capsys):
    options = {"seed": 1, "num_inference_steps": 2}
    draw(model, processor, CHATS[:1], **options)
    assert "2/2" not in capsys.readouterr().err
    draw(model, processor, CHATS[:1], **options, progress=True)
    assert "2/2" in capsys.readouterr().err


def test_an_image_of_native_proportions_is_changed_at_a_native_size():
    """An image of 1024 x 1024 is changed at 512 x 512, as the image head was trained."""
    config = ImageGenConfig()
    assert len(set(config.native_sizes.values())) > 30
    for height, width in config.native_sizes.values():
        if max(height, width) <= 1024:
            assert config.size_like(height, width) == config.size_like(2 * height, 2 * width) == (height, width)


def test_every_size_has_a_native_size_near_its_shape():
    config = ImageGenConfig()
    for height in range(64, 2049, 31):
        for width in range(64, 2049, 37):
            native = config.native_size(height, width)
            assert all(side % 32 == 0 for side in native)
            if 0.25 <= height / width <= 4:  # the table has nothing between 3 and 4
                assert (
                    abs(native[0] / native[1] / (height / width) - 1) < 0.17
                )  # the table has nothing between 3 and 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 63}, "height=63: images have whole sides of 64 to 2048 pixels"),
        ({"width": 64.5}, "width=64.5"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number of at least 1, got 0"),
        ({"num_inference_steps": True}, "num_inference_steps must be a whole number of at least 1, got True"),
        ({"num_inference_steps": -3}, "got -3"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be"),
        ({"guidance_scale": -1.0}, r"guidance_scale must be at least 1 \(no guidance\), got -1.0"),
        ({"seed": [1, 2]}, "2 seeds for 1 rows"),
        ({"seed": 1, "generator": torch.Generator()}, "either seed or generator"),
        ({"heigth": 96, "max_new_tokens": 4}, r"not used by the model: \['heigth'\]"),
        ({"speaker": "luna"}, "speaker: only generation_mode='audio' speaks"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_any_work(model, processor, options, message, monkeypatch):
    monkeypatch.setattr(model.drawing, "states", lambda **kwargs: pytest.fail("work began"))
    with pytest.raises(ValueError, match=message):
        draw(model, processor, CHATS[:1], **options)


def test_drawing_needs_its_mode_its_component_and_room(model, processor, repository, tmp_path):
    inputs = prepare(processor, CHATS[:1])
    with pytest.raises(ValueError, match="height: only generation_mode='image' draws"):
        model.generate(**inputs, height=64)
    with pytest.raises(ValueError, match="seed: only generation_mode='audio' or 'image' takes it"):
        model.generate(**inputs, seed=1)
    without = BailingMMNativeForConditionalGeneration.from_pretrained(
        repository, dtype=torch.float32, load_image_gen=False
    )
    with pytest.raises(ValueError, match="load_image_gen=False"):
        without.generate(**inputs, generation_mode="image")
    build_drawing_repository(tmp_path)
    for path in (tmp_path / "image_gen").iterdir():
        path.unlink()
    bare = BailingMMNativeForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    with pytest.raises(ValueError, match="has no image_gen/ folder"):
        bare.generate(**inputs, generation_mode="image")
    ids = torch.full((1, model.config.llm_config.max_position_embeddings - 5), 30)
    with pytest.raises(ValueError, match="the prompt with its query tokens has .* tokens; the model's context is"):
        model.generate(ids, generation_mode="image")


def test_a_callback_sees_every_step_and_may_cancel(model, processor):
    steps = []

    def callback(step, num_steps, latents):
        steps.append((step, num_steps, tuple(latents.shape)))
        return step < 1

    with pytest.raises(CancelledError, match="after step 2 of 3"):
        draw(model, processor, CHATS[:1], callback=callback, num_inference_steps=3)
    assert steps == [(0, 3, (1, 4, 2, 2)), (1, 3, (1, 4, 2, 2))]


def test_stream_shows_progress_then_the_picture(model, processor):
    inputs = prepare(processor, CHATS[:1])
    events = list(model.stream(**inputs, generation_mode="image", seed=3))
    assert [type(event).__name__ for event in events] == ["ImageProgress"] * STEPS + ["ImageDone", "Done"]
    assert events[-2].images == draw(model, processor, CHATS[:1], seed=3).images
    preview = model.image_gen.decode(events[0].latents)
    assert preview[0].size == (64, 64)


def test_closing_a_stream_stops_the_drawing(model, processor):
    steps = []
    options = {"num_inference_steps": 50, "callback": lambda step, *rest: steps.append(step)}
    events = model.stream(**prepare(processor, CHATS[:1]), generation_mode="image", **options)
    next(events)
    events.close()
    seen = len(steps)
    assert seen < 50 and len(steps) == seen


def test_errors_of_a_stream_reach_its_reader(model, processor, monkeypatch):
    with pytest.raises(ValueError, match="height=1"):
        model.stream(**prepare(processor, CHATS[:1]), generation_mode="image", height=1)

    def fail(*args, **kwargs):
        raise RuntimeError("out of paint")

    monkeypatch.setattr(model.image_gen.load(), "draw", fail)
    with pytest.raises(RuntimeError, match="out of paint"):
        list(model.stream(**prepare(processor, CHATS[:1]), generation_mode="image"))


def test_text_and_picture_from_one_call(model, processor):
    inputs = prepare(processor, CHATS[1:2])
    output = model.generate(**inputs, generation_mode=["text", "image"], seed=3, max_new_tokens=5)
    assert torch.equal(output.sequences, model.generate(**inputs, max_new_tokens=5))
    assert list(output) == ["sequences", "images", "native_size"]
    assert output.images == draw(model, processor, CHATS[1:2], seed=3).images and output.waveforms is None
    names = [
        type(event).__name__
        for event in model.stream(**inputs, generation_mode=["image", "text"], seed=3, max_new_tokens=5)
    ]
    assert names[0] == "TextDelta" and names[-2:] == ["ImageDone", "Done"]


def test_text_speech_and_picture_from_one_call(model, processor):
    chat = [{"role": "user", "content": "What comes after three?"}]
    inputs = prepare(processor, [chat])
    output = model.generate(**inputs, generation_mode=["audio", "image"], seed=3, max_new_tokens=5)
    assert output.text == ["four"] and output.images == draw(model, processor, [chat], seed=3).images
    spoken = model.generate(**inputs, generation_mode="audio", seed=3, max_new_tokens=5)
    assert torch.equal(output.waveforms[0], spoken.waveforms[0]) and output.sampling_rate == spoken.sampling_rate


def test_the_released_call_returns_the_picture(model, processor):
    inputs = prepare(processor, CHATS[:1])
    options = {"image_gen_seed": 3, "image_gen_steps": 2, "image_gen_cfg": 4.0}
    options |= {"image_gen_height": 80, "image_gen_width": 96}
    image = model.generate(**inputs, image_gen=True, **options)
    ours = {"seed": 3, "num_inference_steps": 2, "guidance_scale": 4.0, "height": 80, "width": 96}
    assert image == draw(model, processor, CHATS[:1], **ours).images[0] and image.size == (96, 80)


@pytest.mark.parametrize(("chats", "per_chat"), [(2, 1), (1, 2)])
def test_the_released_call_returns_every_picture(model, processor, chats, per_chat):
    several = {"num_images_per_prompt": per_chat}
    images = model.generate(**prepare(processor, CHATS[:chats]), image_gen=True, image_gen_seed=3, **several)
    assert images == draw(model, processor, CHATS[:chats], seed=3, **several).images and len(images) == 2


def test_guidance_of_one_is_the_condition_alone(model, processor):
    calls = []
    handle = model.image_gen.transformer.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    draw(model, processor, CHATS[:1], seed=3, guidance_scale=1.0)
    draw(model, processor, CHATS[:1], seed=3, guidance_scale=2.0)
    handle.remove()
    assert calls == [1] * STEPS + [2] * STEPS


def test_bfloat16_is_close(repository, model, processor):
    low = BailingMMNativeForConditionalGeneration.from_pretrained(repository, dtype=torch.bfloat16).eval()
    inputs = prepare(processor, CHATS[:2])
    cast = {name: v.bfloat16() if v.is_floating_point() else v for name, v in inputs.items()}
    assert low.image_gen.dtype == torch.bfloat16
    difference = [
        np.abs(pixels(ours) - pixels(theirs)).mean()
        for ours, theirs in zip(
            low.generate(**cast, generation_mode="image", seed=1).images,
            model.generate(**inputs, generation_mode="image", seed=1).images,
            strict=True,
        )
    ]
    assert max(difference) < 4


def test_component_is_no_part_of_the_main_weights_and_loads_alone(model, repository):
    assert not [name for name in model.state_dict() if name.startswith("image_gen")]
    alone = AutoModel.from_pretrained(repository, subfolder="image_gen", trust_remote_code=True).eval()
    states = torch.randn(1, 9, 192, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(alone.condition(states), model.image_gen.condition(states), rtol=0, atol=1e-6)
    norms = alone.condition(states).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_saved_model_draws_the_same_in_a_fresh_process(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "copy")
    processor.save_pretrained(tmp_path / "copy")
    draw(model, processor, CHATS[:1], seed=3).images[0].save(tmp_path / "before.png")
    script = """
import sys, torch
from transformers import AutoModelForMultimodalLM, AutoProcessor
repository, target = sys.argv[1:]
processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
model = AutoModelForMultimodalLM.from_pretrained(repository, trust_remote_code=True, dtype=torch.float32)
chat = [{"role": "user", "content": "Draw a small red circle on the left."}]
options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
inputs = processor.apply_chat_template(chat, **options)
model.generate(**inputs, generation_mode="image", seed=3).images[0].save(target)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "copy"), str(tmp_path / "after.png")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    before, after = (pixels(Image.open(tmp_path / name)) for name in ("before.png", "after.png"))
    assert np.abs(before - after).max() <= 1


def test_an_incomplete_component_is_refused(tmp_path):
    small_image_gen().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: value for name, value in tensors.items() if name != "mlp.fc1.bias"}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"missing keys: mlp\.fc1\.bias"):
        type(small_image_gen()).from_pretrained(tmp_path)


def test_sizes_that_do_not_fit_each_other_are_refused():
    config = small_config(192)
    with pytest.raises(ValueError, match="must be equal, got 8, 4, 4"):
        ImageGenConfig(transformer=config.transformer, vae={**config.vae, "latent_channels": 8})
    with pytest.raises(ValueError, match="native_side must be a multiple of 32, got 100"):
        ImageGenConfig(native_side=100)


def test_auto_class_draws(repository, processor):
    model = AutoModelForMultimodalLM.from_pretrained(repository, trust_remote_code=True, dtype=torch.float32)
    assert len(draw(model, processor, CHATS[:1], seed=3).images) == 1


def test_the_image_head_takes_what_callers_have(model):
    """A single generator, sizes and steps from numpy: as in `generate`."""
    image_gen = model.image_gen.load()
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(1, image_gen.queries()[-1].shape[0], model.config.llm_config.hidden_size, generator=generator)
    condition = image_gen.condition(states)
    sizes = {"height": 96, "width": 64, "num_inference_steps": 2}
    expected = image_gen.draw(condition, generator=[torch.Generator().manual_seed(0)], **sizes).images[0]
    of_numpy = {name: np.int64(value) for name, value in sizes.items()}
    found = image_gen.draw(condition, generator=torch.Generator().manual_seed(0), **of_numpy).images[0]
    assert np.array_equal(np.asarray(found), np.asarray(expected))
    with pytest.raises(ValueError, match="1 generators for 2 images; pass one per image"):
        image_gen.draw(condition, num_images_per_prompt=2, generator=torch.Generator())


def test_a_drawing_spends_one_draw_of_the_callers_generator(model, processor):
    inputs = prepare(processor, CHATS[:1])
    used, expected = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    model.generate(**inputs, generation_mode="image", num_inference_steps=1, generator=used)
    torch.randint(2**62, (1,), generator=expected)
    assert torch.equal(used.get_state(), expected.get_state())


def test_an_image_that_shows_nothing_is_logged(model, processor, monkeypatch, caplog):
    """The autoencoder's decoder is bent until it paints one colour; images with content are not logged."""
    vae = model.image_gen.load().vae
    with caplog.at_level("WARNING", logger="ming"):
        draw(model, processor, CHATS[:1], seed=1, num_inference_steps=1)
        assert not caplog.records
        monkeypatch.setattr(vae.decoder.conv_out, "weight", torch.nn.Parameter(0 * vae.decoder.conv_out.weight))
        draw(model, processor, CHATS[:2], seed=1, num_inference_steps=1)
    assert [record.args for record in caplog.records] == [(0,), (1,)]
