"""Objectives of drawing: flow matching at every scale, alignment, and which parts learn from them."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from image_helpers import ROOT, small_image_gen
from transformers import AutoProcessor

from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.training.drawing import (
    AlignmentHead,
    alignment_loss,
    drawing_loss,
    encode_scales,
    middle_states,
    noised,
    sample_sigmas,
    scale_sizes,
)

WIDTH = 192


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def image_gen():
    return small_image_gen(WIDTH)


@pytest.fixture
def batch(image_gen):
    """States of two pictures at both scales, and their latents."""
    states = [torch.randn(2, side * side, WIDTH, generator=seeded(side)) for side in (2, 3)]
    pixels = torch.rand(2, 3, 96, 96, generator=seeded(1)) * 2 - 1
    return states, encode_scales(image_gen, pixels)


def head_of(image_gen) -> AlignmentHead:
    torch.manual_seed(0)
    return AlignmentHead(image_gen)


def test_every_scale_sees_its_share_of_the_picture(image_gen, batch):
    assert scale_sizes(image_gen, 96, 192) == [(64, 128), (96, 192)]
    assert [tuple(latents.shape) for latents in batch[1]] == [(2, 4, 2, 2), (2, 4, 3, 3)]


def test_path_starts_at_the_picture_and_ends_in_noise():
    clean, noise = (torch.randn(3, 4, 2, 2, generator=seeded(seed)) for seed in (0, 1))
    values, velocity = noised(clean, noise, torch.tensor([0.0, 1.0, 0.25]))
    torch.testing.assert_close(values[:2], torch.stack([clean[0], noise[1]]))
    torch.testing.assert_close(values[2] - 0.25 * velocity[2], clean[2])


def test_noise_levels_are_logit_normal():
    sigmas = sample_sigmas(20_000, seeded())
    assert sigmas.min() > 0 and sigmas.max() < 1
    assert torch.special.logit(sigmas.double()).std() == pytest.approx(1, abs=0.03)
    assert sigmas.median() == pytest.approx(0.5, abs=0.02)
    shifted = sample_sigmas(20_000, seeded(), shift=3.0)
    assert shifted.median() == pytest.approx(0.75, abs=0.02)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)  # as the sampler moves its own
    unshifted = torch.arange(1, 1001) / 1000
    torch.testing.assert_close(scheduler.sigmas.flip(0), 3 * unshifted / (1 + 2 * unshifted))


def test_loss_is_flow_matching_at_every_scale(image_gen, batch):
    """Against the formula, with the random numbers drawn by hand in the same order."""
    states, latents = batch
    losses = drawing_loss(image_gen, states, latents, condition_dropout=0.0, generator=seeded(4))
    generator, expected = seeded(4), []
    for scale_states, clean in zip(states, latents, strict=True):
        sigmas = torch.randn(2, generator=generator).sigmoid()
        noise = torch.randn(clean.shape, generator=generator)
        torch.rand(2, generator=generator)
        values = clean + sigmas.view(-1, 1, 1, 1) * (noise - clean)
        caption = image_gen.mlp(image_gen.condition(scale_states))
        out = image_gen.transformer(values, caption, timestep=1000 * sigmas, return_dict=False)[0]
        expected.append((out - (noise - clean)).square().mean())
    torch.testing.assert_close(torch.stack(losses.flow), torch.stack(expected))
    torch.testing.assert_close(losses.loss, torch.stack(expected).mean())
    assert losses.alignment == []


def test_an_image_noised_several_times_is_read_once(image_gen, batch):
    states, latents = batch
    calls, condition = [], image_gen.condition
    image_gen.condition = lambda states: calls.append(len(states)) or condition(states)
    once = drawing_loss(image_gen, states, latents, head_of(image_gen), generator=seeded(4), noises=3)
    assert calls == [len(states[0])] * len(states)
    del image_gen.condition
    repeated = [[scale.repeat_interleave(3, dim=0) for scale in scales] for scales in (states, latents)]
    plain = drawing_loss(image_gen, *repeated, head_of(image_gen), generator=seeded(4))
    torch.testing.assert_close(once.flow, plain.flow)


def test_weights_count_places_for_more(image_gen, batch):
    states, latents = batch
    plain = drawing_loss(image_gen, states, latents, generator=seeded(4)).flow
    ones = [torch.ones_like(clean[:, :1]) for clean in latents]
    torch.testing.assert_close(drawing_loss(image_gen, states, latents, generator=seeded(4), weights=ones).flow, plain)
    corner = [torch.zeros_like(one) for one in ones]
    for weights in corner:
        weights[:, :, 0, 0] = weights[0, 0].numel()
    weighted = drawing_loss(image_gen, states, latents, generator=seeded(4), weights=corner).flow
    assert all(abs(one - other) > 1e-3 for one, other in zip(weighted, plain, strict=True))


def test_dropped_conditions_are_those_that_guidance_subtracts(image_gen, batch):
    states, latents = batch
    captions = []
    handle = image_gen.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: captions.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    drawing_loss(image_gen, states, latents, condition_dropout=1.0, generator=seeded())
    handle.remove()
    for caption, scale_states in zip(captions, states, strict=True):
        torch.testing.assert_close(caption, image_gen.mlp(torch.zeros_like(scale_states)))


def test_alignment_is_zero_for_states_that_tell_the_latents(image_gen, batch):
    latents = batch[1][1]
    told = F.layer_norm(latents.flatten(2).transpose(1, 2), (4,))
    head = head_of(image_gen)
    head.layers = torch.nn.Identity()
    assert alignment_loss(head, told, latents).item() == pytest.approx(0, abs=1e-12)
    assert alignment_loss(head, -told, latents).item() > 1


def test_alignment_adds_to_the_loss_scale_by_scale(image_gen, batch):
    plain = drawing_loss(image_gen, *batch, generator=seeded(2))
    aligned = drawing_loss(image_gen, *batch, head_of(image_gen), alignment_weight=0.5, generator=seeded(2))
    assert len(aligned.alignment) == 2
    torch.testing.assert_close(aligned.loss, plain.loss + 0.5 * torch.stack(aligned.alignment).mean())


def test_middle_states_are_one_per_place(image_gen, batch):
    with middle_states(image_gen) as states:
        drawing_loss(image_gen, *batch, generator=seeded())
    assert [tuple(values.shape) for values in states] == [(2, 4, 16), (2, 9, 16)]
    drawing_loss(image_gen, *batch, generator=seeded())
    assert len(states) == 2


def test_queries_learn_through_a_frozen_language_model(image_gen):
    model = BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32).requires_grad_(False)
    model.components.use(image_gen=image_gen)
    image_gen.vae.requires_grad_(False)
    processor = AutoProcessor.from_pretrained(ROOT, trust_remote_code=True)
    chats = [[{"role": "user", "content": f"Draw a {colour} circle."}] for colour in ("red", "blue")]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    states = model.drawing.states(**processor.apply_chat_template(chats, **options))
    latents = encode_scales(image_gen, torch.zeros(2, 3, 96, 96))
    drawing_loss(image_gen, states, latents, head_of(image_gen), generator=seeded()).loss.backward()
    assert not [name for name, value in model.named_parameters() if value.grad is not None]
    learned = {name for name, value in image_gen.named_parameters() if value.grad is not None and value.grad.any()}
    assert {f"query_tokens_dict.{side}x{side}" for side in (2, 3)} <= learned
    assert {"proj_in.weight", "proj_out.weight", "mlp.fc1.weight", "transformer.proj_out.weight"} <= learned
    assert not [name for name in learned if name.startswith("vae.")]


def test_loss_falls_when_trained(image_gen, batch):
    states, latents = batch
    image_gen.requires_grad_(True).vae.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in image_gen.parameters() if p.requires_grad], 3e-3)
    losses = []
    for step in range(30):
        loss = drawing_loss(image_gen, states, latents, condition_dropout=0.0, generator=seeded(step % 3)).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
