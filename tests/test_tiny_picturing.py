"""The stage that teaches Ming-Tiny to draw: its data, and a few steps of all of it up to a component that draws."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_tiny_world import ToneSpeaker
from transformers import AutoModel

from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor
from training.tiny import stage_drawing
from training.tiny.evaluate_drawing import CELL, MARGIN, PER_ROW, ROWS, contact_sheet, draw_row
from training.tiny.judge import shows
from training.tiny.picturing import (
    SCENE_ASPECTS,
    AutoencoderData,
    AutoencoderTask,
    RequestData,
    emphasis,
    near_edges,
    off_background,
    patches,
    scene_labels,
    to_pixels,
)
from training.tiny.scenes import Scene, Shape
from training.tiny.stage import stage_parser
from training.tiny.stage_drawing import (
    PARTS,
    STAGES,
    export,
    new_image_gen,
    part_of,
    tiny_image_gen_config,
    train,
    unpack,
)
from training.tiny.world import Picture

ROOT = Path(__file__).resolve().parents[1]
SCENE = Scene("white", (Shape("star", "red", "small", "left"), Shape("circle", "blue", "large", "center")))


@pytest.fixture
def data():
    config = tiny_image_gen_config(192)
    return RequestData(BailingMMProcessor.from_pretrained(ROOT), ToneSpeaker(), config, 12, 4, seed=3)


def test_labels_name_what_stands_where():
    labels = scene_labels([Picture(SCENE, outline=True), Picture(Scene("black", SCENE.shapes[:1]))])
    named = [
        {name: SCENE_ASPECTS[name][row] for name, row in zip(labels, column, strict=True)}
        for column in zip(*(values.tolist() for values in labels.values()), strict=True)
    ]
    assert (named[0]["background"], named[0]["style"]) == ("white", "outline")
    assert (named[0]["kind_left"], named[0]["colour_left"], named[0]["size_left"]) == ("star", "red", "small")
    assert (named[0]["kind_center"], named[0]["size_center"]) == ("circle", "large")
    assert {named[0][f"kind_{place}"] for place in ("right", "top", "bottom")} == {"nothing"}
    assert (named[1]["style"], named[1]["kind_center"]) == ("filled", "nothing")


def test_targets_show_the_scene():
    for outline in (False, True):
        pixels = to_pixels([Picture(SCENE, outline)], 96, 96, np.random.default_rng(0))
        assert pixels.shape == (1, 3, 96, 96) and pixels.min() >= -1 and pixels.max() <= 1
        image = ((pixels[0].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
        assert shows(Image.fromarray(image), SCENE, outline)


def test_requests_end_with_a_wish_and_are_the_same_for_the_same_step(data):
    first, again = data[5], data[5]
    assert torch.equal(first["pixels"], again["pixels"])
    assert torch.equal(first["chats"]["input_ids"], again["chats"]["input_ids"])
    tokenizer = data.processor.tokenizer
    for step in range(12):
        item = data[step]
        texts = tokenizer.batch_decode(item["chats"]["input_ids"])
        assert all(text.endswith("<role>ASSISTANT</role>") for text in texts)
        assert item["pixels"].shape[:2] == (4, 3) and len(item["labels"]["background"]) == 4
    assert len({tuple(data[step]["pixels"].shape[2:]) for step in range(12)}) > 1


def test_the_autoencoder_sees_outlines_and_several_sizes():
    data = AutoencoderData(8, 4, seed=1)
    assert len({data[step]["pixels"].shape[-1] for step in range(8)}) > 1
    assert all(data[step]["pixels"].abs().max() <= 1 for step in range(8))


def test_edges_are_where_shapes_end():
    pixels = torch.full((1, 3, 16, 16), -1.0)
    pixels[:, 0, 4:12, 4:12] = 1.0
    edges = near_edges(pixels)[0, 0]
    assert edges[8, [2, 3, 4, 5]].tolist() == [1.0] * 4 and edges[8, [0, 1, 6, 7]].tolist() == [0.0] * 4
    assert not near_edges(pixels[..., 5:10, 5:10]).any()
    weights = emphasis(near_edges(pixels.repeat(2, 1, 2, 2)), (16, 16))
    assert weights.shape == (2, 1, 16, 16) and weights.mean().item() == pytest.approx(1.0)
    assert weights[0, 0, 2, 2] == pytest.approx(5 * weights[0, 0, 0, 0])


def test_lines_count_more_than_what_is_around_them():
    pixels = torch.full((1, 3, 16, 16), -1.0)
    pixels[:, 1, 8] = 1.0
    assert off_background(pixels)[0, 0].sum(dim=1).tolist() == [0.0] * 8 + [16.0] + [0.0] * 7


def test_patches_are_what_the_cells_of_a_grid_show():
    pixels = torch.zeros(1, 3, 48, 96)
    pixels[:, 1, 24:, 48:] = 1.0  # green, the lower right quarter
    cells = patches(pixels, 4).unflatten(2, (3, -1)).mean(dim=-1)  # [1, 16, 3]
    green = cells[0, :, 1].view(4, 4)
    assert (green[3, 3], green[0, 0]) == (1.0, 0.0) and (cells[0, :, 0] == 0).all()
    assert (green[:2].max(), green[:, :2].max()) <= (0.5, 0.5)


def test_autoencoder_keeps_its_latents_near_unit_variance():
    class Scaled(torch.nn.Module):
        """An autoencoder that restores everything, with latents of a given size."""

        def __init__(self, scale: float):
            super().__init__()
            self.scale = scale

        def encode(self, pixels, return_dict):
            return (pixels * self.scale,)

        def decode(self, latents, return_dict):
            return (latents / self.scale,)

    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, three = (AutoencoderTask(Scaled(scale))(pixels) for scale in (1.0, 3.0))
    assert one["error"] < 1e-6 and one["spread"] < 1e-2 < three["spread"] and one["loss"] < three["loss"]


def test_every_weight_belongs_to_one_stage():
    image_gen = new_image_gen(8)
    names = {name for stage in PARTS for name in part_of(image_gen, stage)}
    assert names == {name for name, _ in image_gen.named_parameters()}


def test_quick_stage_ends_in_a_component_that_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_drawing, "SpeechPool", lambda path: ToneSpeaker())
    args = stage_parser("stage_drawing", "", STAGES).parse_args(["picture", "--quick", "--runs", str(tmp_path)])
    before = {name: value.clone() for name, value in new_image_gen(192).named_parameters()}
    for stage in STAGES:
        train(stage, args)
        learned = load_file(tmp_path / f"{stage}.safetensors")
        assert learned.keys() - {"scaling_factor"} == part_of(new_image_gen(192), stage).keys()
    moved = load_file(tmp_path / "picture.safetensors") | load_file(tmp_path / "condition.safetensors")
    assert sum(not torch.equal(before[name], value) for name, value in moved.items()) > 0.9 * len(moved)
    export(args)
    image_gen = AutoModel.from_pretrained(tmp_path / "model", subfolder="image_gen", trust_remote_code=True)
    scale = load_file(tmp_path / "outlines.safetensors")["scaling_factor"].item()
    assert image_gen.vae.config.scaling_factor == pytest.approx(scale)
    places = new_image_gen(192).transformer.patch_embed.pos_embed  # computed anew, not stored
    torch.testing.assert_close(image_gen.transformer.patch_embed.pos_embed.float(), places, atol=0.01, rtol=0)
    condition = image_gen.condition(torch.randn(1, 64, 192))
    drawn = image_gen.draw(condition, num_inference_steps=1, generator=[torch.Generator().manual_seed(0)])
    assert drawn.images[0].size == (96, 96)
    # Taken apart again, the component is what training would go on from.
    (again := tmp_path / "again").mkdir()
    unpack(argparse.Namespace(runs=again, thinker=tmp_path / "model"))
    learned, unpacked = {}, {}
    for stage in STAGES:
        learned |= load_file(tmp_path / f"{stage}.safetensors")
        unpacked |= load_file(again / f"{stage}.safetensors")
    assert learned.keys() == unpacked.keys()
    assert all(torch.equal(learned[name].bfloat16(), value.bfloat16()) for name, value in unpacked.items())


def test_wishes_are_drawn_judged_and_shown():
    model = BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32).eval()
    model.components.use(image_gen=new_image_gen(192).eval())
    model.image_gen.config.num_inference_steps = 1
    processor = BailingMMProcessor.from_pretrained(ROOT)
    speaker = ToneSpeaker()
    speaker.split = "test"  # the words are of no account here
    drawn = [item for row in ROWS for item in draw_row(row, model, processor, speaker, 2, seed=5, batch_size=2)]
    assert len(drawn) == 2 * len(ROWS)
    assert not any(item.right for item in drawn)  # untrained: noise
    assert drawn[2].sample.pictures[-1] == drawn[2].wanted
    again = draw_row("drawing", model, processor, speaker, 2, seed=5, batch_size=1)
    for one, two in zip(drawn, again, strict=False):
        assert np.abs(np.float32(one.image) - np.float32(two.image)).max() <= 1
    sheet = contact_sheet(drawn)
    assert sheet.size[0] == PER_ROW * (CELL + MARGIN) + MARGIN
