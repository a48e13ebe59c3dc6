"""The thinker's promises about itself, on a tiny random model: batches, caches, kernels, precision, training."""

import pytest
import torch
import torch.nn.functional as F
from thinker_helpers import IMAGE_TYPE, PAD, Chat, batch, mixed_chats, tiny_config, tiny_model, valid_tokens
from transformers.modeling_layers import GradientCheckpointingLayer

from ming.modeling_bailing_moe import BailingMoeExperts, router_losses
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration

EXPERTS = ("eager", "grouped_mm", "batched_mm")


def close(ours, expected, tolerance=5e-5):
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=0)


def without_mask(inputs):
    return {name: value for name, value in inputs.items() if name != "attention_mask"}


@pytest.fixture(scope="module", params=["sanm", "whisper"])
def encoder(request):
    return request.param


@pytest.fixture(scope="module")
def inputs(encoder):
    return batch(mixed_chats(encoder))


@torch.no_grad()
def logits_of(model, inputs, **options):
    """Logits of the tokens that are not padding, [valid, vocab]."""
    return model(**inputs, **options).logits[valid_tokens(inputs)]


def gradients(model, inputs, **options):
    """The training loss of every token, and its gradients by parameter name."""
    model.zero_grad()
    labels = inputs["input_ids"].masked_fill(~valid_tokens(inputs), -100)
    loss = model(**inputs, labels=labels, use_cache=False, **options).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


# Batches


@pytest.mark.parametrize("row", range(8))
def test_a_row_of_a_mixed_batch_equals_the_chat_alone(tiny, encoder, inputs, row):
    together = logits_of(tiny, inputs)
    counts = inputs["attention_mask"].sum(dim=1).tolist()
    chat = mixed_chats(encoder)[row]
    close(together.split(counts)[row], logits_of(tiny, batch([chat])))


def test_greedy_answers_of_a_mixed_batch_equal_the_single_ones(tiny, encoder, inputs):
    length = inputs["input_ids"].shape[1]
    together = tiny.generate(**inputs, max_new_tokens=6)[:, length:]
    for row, chat in enumerate(mixed_chats(encoder)):
        alone = tiny.generate(**batch([chat]), max_new_tokens=6)[0, len(chat.ids) :]
        new = together[row][: len(alone)]
        assert torch.equal(new, alone)
        assert (together[row][len(alone) :] == PAD).all()


def test_audio_features_do_not_depend_on_the_batch(tiny, encoder):
    frames = (21, 4, 13, 1, 8, 5)
    segments = Chat(11, encoder)
    for length in frames:
        segments.audio(length)
    width = segments.media["audio"][0].shape[1]
    alone = [
        tiny.get_audio_features(segment[None], torch.tensor([[len(segment)]])).pooler_output[0]
        for segment in segments.media["audio"]
    ]
    row = torch.cat(segments.media["audio"])[None]
    in_one_row = tiny.get_audio_features(row, torch.tensor([frames])).pooler_output
    rows = torch.zeros(3, 25, width)
    for row in range(3):
        rows[row, : frames[2 * row] + frames[2 * row + 1]] = torch.cat(segments.media["audio"][2 * row : 2 * row + 2])
    in_three_rows = tiny.get_audio_features(rows, torch.tensor(frames).view(3, 2)).pooler_output
    assert [len(segment) for segment in in_three_rows] == [len(features) for features in alone]
    close(torch.cat(in_one_row), torch.cat(alone), 5e-6)
    close(torch.cat(in_three_rows), torch.cat(alone), 5e-6)


def test_released_whisper_padding_leaks():
    """The switch does something: with `mask_padding=False` a short segment sees what it is batched with."""
    model = tiny_model(whisper_config={"mask_padding": False})
    chat = Chat(12, "whisper").audio(40).audio(9)
    together = model.get_audio_features(torch.cat(chat.media["audio"])[None], torch.tensor([[40, 9]]))
    alone = model.get_audio_features(chat.media["audio"][1][None], torch.tensor([[9]]))
    assert (together.pooler_output[1] - alone.pooler_output[0]).abs().max() > 1e-2


def test_images_do_not_influence_each_other(tiny):
    chat = Chat(13).image(1, 4, 6).image(1, 12, 10).image(3, 4, 4).image(1, 20, 2)
    grids, pixels = torch.tensor(chat.grids["image"]), chat.media["image"]
    together = tiny.get_image_features(torch.cat(pixels), grids).pooler_output
    for features, image, grid in zip(together, pixels, grids, strict=True):
        close(features, tiny.get_image_features(image, grid[None]).pooler_output[0], 5e-6)


def test_frame_pairs_of_a_video_do_not_see_each_other(tiny):
    chat = Chat(14).video(3, 4, 6)
    pixels = chat.media["video"][0]
    (together,) = tiny.get_video_features(pixels, torch.tensor([[3, 4, 6]])).pooler_output
    alone = [tiny.get_video_features(pair, torch.tensor([[1, 4, 6]])).pooler_output[0] for pair in pixels.split(24)]
    close(together, torch.cat(alone), 5e-6)


def test_padding_and_what_comes_later_change_nothing(tiny):
    inputs = batch([Chat(15).text(4).image().text(5), Chat(16).text(3)])
    expected = logits_of(tiny, inputs)
    other = dict(inputs, input_ids=inputs["input_ids"].masked_fill(~valid_tokens(inputs), 77))
    assert torch.equal(logits_of(tiny, other), expected)
    longer = batch([Chat(15).text(4).image().text(5).text(3)])
    length = inputs["input_ids"].shape[1]
    close(tiny(**longer).logits[:, :length], tiny(**batch([Chat(15).text(4).image().text(5)])).logits)


def test_media_decide_the_answer(tiny, encoder):
    """Every medium reaches the logits: another picture, clip or sound gives other logits at the last position."""
    inputs = batch([Chat(17, encoder).image().video().audio(9).text(4)])
    expected = logits_of(tiny, inputs)[-1]
    for name in ("pixel_values", "pixel_values_videos", "audio_feats"):
        changed = logits_of(tiny, inputs | {name: inputs[name].flip(-1)})[-1]
        assert (changed - expected).abs().max() > 1e-3, name


def test_routers_follow_the_token_type(tiny):
    """A token of another type is routed by another gate: only that changes the logits when embeddings are equal."""
    inputs = batch([Chat(18).text(6)])
    embeds = tiny.get_input_embeddings()(inputs["input_ids"])
    outputs = [tiny(inputs_embeds=embeds, mm_token_type_ids=torch.full((1, 6), kind)).logits for kind in (0, 1, 2, 3)]
    assert torch.equal(outputs[0], tiny(inputs_embeds=embeds).logits)
    assert torch.equal(outputs[1], outputs[2])
    for a, b in ((0, 1), (0, 3), (1, 3)):
        assert (outputs[a] - outputs[b]).abs().max() > 1e-3


def test_images_and_videos_of_another_number_of_patches_per_token():
    model = tiny_model(vision_config={"spatial_merge_size": 1})
    vision = model.config.vision_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(20, width, generator=torch.Generator().manual_seed(0)).split([12, 8])
    grids = torch.tensor([[1, 3, 4]]), torch.tensor([[2, 2, 2]])
    types = torch.tensor([[0] + [1] * 12 + [0] + [2] * 8])
    ids = torch.full_like(types, 30)
    embeds, _ = model.embed(ids, types, pixels[0], grids[0], None, pixels[1], grids[1])
    close(embeds[0, 1:13], model.get_image_features(pixels[0], grids[0]).pooler_output[0], 1e-5)
    close(embeds[0, 14:], model.get_video_features(pixels[1], grids[1]).pooler_output[0], 1e-5)
    assert torch.equal(embeds[0, [0, 13]], model.get_input_embeddings()(ids[0, [0, 13]]))


def test_towers_whose_configurations_ask_for_tuples(tiny, encoder, inputs):
    model = tiny_model()
    for tower in (model.vision, model.audio, model.whisper_encoder):
        tower.config.return_dict = False
    assert torch.equal(logits_of(model, inputs), logits_of(tiny, inputs))


def test_positions_of_audio_may_lie_on_another_device(tiny):
    ids = torch.full((1, 6), 30, device="meta")
    types = tiny.get_token_types(ids, False, False, torch.tensor([[[1, 2], [4, 1]]]))
    assert types.device.type == "meta" and types.shape == ids.shape


# Caches, kernels, precision


def test_cached_equals_uncached(tiny, inputs):
    """One pass over everything, against the prompt first and then one token at a time."""
    full = tiny(**inputs, use_cache=False).logits[valid_tokens(inputs)]
    ids, mask, split = inputs["input_ids"], inputs["attention_mask"], 36
    embeds, types = tiny.embed(**without_mask(inputs))
    cache, pieces = None, []
    for start, end in [(0, split), *((at, at + 1) for at in range(split, ids.shape[1]))]:
        out = tiny(
            inputs_embeds=embeds[:, start:end],
            mm_token_type_ids=types[:, start:end],
            attention_mask=mask[:, :end],
            past_key_values=cache,
            use_cache=True,
        )
        cache, pieces = out.past_key_values, [*pieces, out.logits]
    close(torch.cat(pieces, dim=1)[valid_tokens(inputs)], full)


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}], ids=str)
def test_static_and_no_cache_decode_like_the_dynamic_one(tiny, inputs, options):
    arguments = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}
    dynamic = tiny.generate(**inputs, **arguments)
    other = tiny.generate(**inputs, **arguments, **options)
    assert torch.equal(other.sequences, dynamic.sequences)
    close(torch.stack(other.logits), torch.stack(dynamic.logits))


def test_sdpa_equals_eager(tiny, inputs):
    eager = tiny_model(attention="eager")
    towers = ("vision", "audio", "whisper_encoder", "model")
    assert {getattr(eager, tower).config._attn_implementation for tower in towers} == {"eager"}
    assert {getattr(tiny, tower).config._attn_implementation for tower in towers} == {"sdpa"}
    close(logits_of(eager, inputs), logits_of(tiny, inputs))


@pytest.mark.parametrize("implementation", EXPERTS)
def test_experts_implementations_agree_with_gradients(implementation, inputs):
    model = tiny_model()
    model.set_experts_implementation("eager")
    expected_loss, expected = gradients(model, inputs)
    model.set_experts_implementation(implementation)
    assert model.model.config._experts_implementation == implementation
    loss, ours = gradients(model, inputs)
    close(loss, expected_loss, 1e-5)
    assert set(ours) == set(expected)
    for name, gradient in expected.items():
        if gradient is None:
            assert ours[name] is None, name
        else:
            close(ours[name], gradient, 2e-5)


def test_bfloat16_is_close_to_float32(inputs):
    """Rounding only: errors stay at the size of bfloat16's 8 bits, and features keep their unit length."""
    expected = logits_of(tiny_model(), inputs)
    model = tiny_model().to(torch.bfloat16)
    ours = model(**inputs).logits[valid_tokens(inputs)]
    assert ours.dtype == torch.float32
    agreement = F.cosine_similarity(ours, expected, dim=-1)
    assert agreement.median() > 0.998
    assert agreement.mean() > 0.99
    images = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    assert images[0].dtype == torch.bfloat16


@pytest.mark.parametrize("implementation", EXPERTS)
def test_bfloat16_routing_and_summing_are_float32(implementation):
    """Router softmax, routing weights and the sum over experts: each output is rounded to bfloat16 only once."""
    torch.manual_seed(0)
    model = tiny_model(llm_config={"num_experts_per_tok": 6}).to(torch.bfloat16)
    model.set_experts_implementation(implementation)
    block, x = model.model.model.layers[0].mlp, torch.randn(1, 40, 64).bfloat16()
    seen = []
    hook = block.experts.register_forward_hook(lambda _, args, output: seen.append((*args, output)))
    _, logits = block(x)
    hook.remove()
    tokens, experts, weights, output = seen[0]
    assert weights.dtype == torch.float32
    close(weights, F.normalize(logits.float().softmax(dim=-1).topk(6).values, p=1, dim=-1), 1e-6)
    expected = torch.zeros(40, 64)
    for slot in range(6):
        gate_up, down = block.experts.gate_up_proj[experts[:, slot]], block.experts.down_proj[experts[:, slot]]
        gate, up = torch.einsum("th,tih->ti", tokens, gate_up).chunk(2, dim=-1)
        expected += torch.einsum("ti,thi->th", F.silu(gate) * up, down).float() * weights[:, slot, None]
    exact = (output == expected.bfloat16()).float().mean()
    assert exact > 0.95  # a few values lie on a rounding border; sums in bfloat16 agree in far fewer


def test_gradient_checkpointing_gives_equal_gradients(inputs):
    model = tiny_model().train()
    expected_loss, expected = gradients(model, inputs)
    model.gradient_checkpointing_enable()
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert len(layers) == 2 + 2 + 2 + 2 + 2  # decoder, vision, SANM, Whisper, talker
    assert all(layer.gradient_checkpointing for layer in layers)
    loss, ours = gradients(model, inputs)
    close(loss, expected_loss, 1e-6)
    for name, gradient in expected.items():
        if gradient is None:
            assert ours[name] is None, name
        else:
            close(ours[name], gradient, 1e-6)


def test_gradients_reach_every_part(encoder, inputs):
    """Nothing on the way is detached: only the audio encoder that was not used, and the talker, have no gradient."""
    unused = {
        "sanm": ("talker.", "whisper_encoder.", "linear_proj_whisper."),
        "whisper": ("talker.", "audio.", "linear_proj_audio."),
    }
    _, ours = gradients(tiny_model(), inputs)
    for name, gradient in ours.items():
        if name.startswith(unused[encoder]):
            assert gradient is None, name
        else:
            assert gradient is not None, name
            assert gradient.abs().sum() > 0, name


# Losses


def test_loss_is_the_cross_entropy_of_the_next_token(tiny, inputs):
    labels = inputs["input_ids"].masked_fill(~valid_tokens(inputs) | (inputs["mm_token_type_ids"] > 0), -100)
    out = tiny(**inputs, labels=labels)
    terms = []
    for row in range(labels.shape[0]):
        for at in range(labels.shape[1] - 1):
            if (target := int(labels[row, at + 1])) != -100:
                terms.append(-out.logits[row, at].log_softmax(dim=-1)[target])
    close(out.loss, torch.stack(terms).mean(), 1e-5)
    assert out.load_balancing_loss is None


def plain_router_losses(layers, top_k, types, mask):
    """Load balancing and z-loss per router by loops over tokens and experts, from the formulas of the papers."""
    balancing, z_losses = [], []
    for kinds in ((0,), (1, 2), (3,)):
        tokens = [i for i, (kind, real) in enumerate(zip(types, mask, strict=True)) if kind in kinds and real]
        if not tokens:
            balancing.append(0.0)
            z_losses.append(0.0)
            continue
        balance, z = 0.0, 0.0
        for logits in layers:
            experts = logits.shape[1]
            share, probability = [0.0] * experts, [0.0] * experts
            for token in tokens:
                probabilities = logits[token].exp() / logits[token].exp().sum()
                for expert in sorted(range(experts), key=lambda e, p=probabilities: -float(p[e]))[:top_k]:
                    share[expert] += 1 / top_k / len(tokens)
                for expert in range(experts):
                    probability[expert] += float(probabilities[expert]) / len(tokens)
                z += float(logits[token].exp().sum().log()) ** 2 / len(tokens) / len(layers)
            balance += experts * sum(f * p for f, p in zip(share, probability, strict=True)) / len(layers)
        balancing.append(balance)
        z_losses.append(z)
    return torch.tensor(balancing), torch.tensor(z_losses)


def test_router_losses_against_plain_python(tiny, inputs):
    out = tiny(**inputs, output_router_logits=True)
    types, mask = inputs["mm_token_type_ids"].flatten().tolist(), inputs["attention_mask"].flatten().tolist()
    top_k = tiny.config.llm_config.num_experts_per_tok
    balancing, z = plain_router_losses([layer.detach() for layer in out.router_logits], top_k, types, mask)
    assert (balancing > 0).all()
    close(out.load_balancing_loss.detach(), balancing, 1e-4)
    close(out.router_z_loss.detach(), z, 1e-4)


def test_router_losses_of_unused_routers_are_zero(tiny):
    out = tiny(**batch([Chat(20).text(5).image().text(3)]), output_router_logits=True)
    assert (out.load_balancing_loss > 0).tolist() == [True, True, False]
    assert (out.router_z_loss > 0).tolist() == [True, True, False]
    text = tiny(batch([Chat(20).text(5)])["input_ids"], output_router_logits=True)
    assert (text.load_balancing_loss > 0).tolist() == [True, False, False]


def test_router_losses_leave_padding_out_of_every_router():
    """Whatever a masked position claims to be, it counts for no router."""
    torch.manual_seed(0)
    logits, types = torch.randn(12, 4), torch.tensor([[0, 1, 3, 1, 3, 0, 0, 1, 3, 2, 0, 1]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0]])
    keep = mask[0].bool()
    for ours, expected in zip(
        router_losses((logits,), 2, types, mask), router_losses((logits[keep],), 2, types[:, keep]), strict=True
    ):
        close(ours, expected, 1e-6)


def test_load_balancing_loss_at_its_extremes():
    """1 when experts are used equally, the number of experts over k when always the same k are, z = log(E)^2."""
    even = 20 * torch.eye(4).repeat(3, 1)
    balancing, _ = router_losses((even, even), top_k=1)
    close(balancing, torch.tensor([1.0, 0.0, 0.0]), 1e-4)
    same = torch.tensor([[20.0, 20.0, 0.0, 0.0]]).repeat(5, 1)
    balancing, _ = router_losses((same,), top_k=2, mm_token_type_ids=torch.full((1, 5), IMAGE_TYPE))
    close(balancing, torch.tensor([0.0, 2.0, 0.0]), 1e-4)
    for tokens in (5, 1):
        _, z = router_losses((torch.zeros(tokens, 4),), top_k=2)
        close(z[0], torch.tensor(4.0).log().square(), 1e-5)


def test_router_losses_join_the_loss_with_their_weights():
    model = tiny_model(llm_config={"router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.25})
    inputs = batch(mixed_chats())
    plain = model(**inputs, labels=inputs["input_ids"])
    full = model(**inputs, labels=inputs["input_ids"], output_router_logits=True)
    expected = plain.loss + 0.5 * full.load_balancing_loss.sum() + 0.25 * full.router_z_loss.sum()
    close(full.loss, expected, 1e-5)
    assert plain.load_balancing_loss is None
    assert plain.router_logits is None


def test_router_logits_come_from_the_gate_of_each_token(tiny):
    """output_router_logits: one [T, E] tensor a layer, also by config, and the right router for each token."""
    inputs = batch([Chat(21).text(3).image().audio(5).text(2)])
    recorded = []
    layer = tiny.model.model.layers[1]
    hook = layer.post_attention_layernorm.register_forward_hook(lambda _, args, output: recorded.append(output[0]))
    out = tiny(**inputs, output_router_logits=True)
    hook.remove()
    experts = tiny.config.llm_config.num_experts
    assert [tuple(logits.shape) for logits in out.router_logits] == [(len(recorded[0]), experts)] * 2
    gates = {0: layer.mlp.gate, 1: layer.mlp.image_gate, 3: layer.mlp.audio_gate}
    for at, kind in enumerate(inputs["mm_token_type_ids"][0].tolist()):
        close(out.router_logits[1][at], gates[kind].weight @ recorded[0][at], 1e-5)
    model = tiny_model(llm_config={"output_router_logits": True})
    close(model(**inputs).router_logits[1], out.router_logits[1])


def test_logits_to_keep_keeps_the_last(tiny, inputs):
    full = tiny(**inputs).logits
    close(tiny(**inputs, logits_to_keep=3).logits, full[:, -3:])


def test_hidden_states_begin_with_embeddings_and_end_normed(tiny, inputs):
    out = tiny(**inputs, output_hidden_states=True, output_attentions=False)
    embeds, _ = tiny.embed(**without_mask(inputs))
    assert len(out.hidden_states) == tiny.config.llm_config.num_hidden_layers + 1
    assert torch.equal(out.hidden_states[0], embeds)
    close(tiny.model.lm_head(out.hidden_states[-1]), out.logits, 1e-6)


def test_attentions_are_causal_and_skip_padding():
    inputs = batch([Chat(22).text(6), Chat(23).text(3)])
    out = tiny_model(attention="eager")(**inputs, output_attentions=True)
    assert len(out.attentions) == 2
    weights = out.attentions[0][1, :, 3:]  # row 1 has three pads on the left
    assert weights.triu(diagonal=4).abs().max() == 0
    assert weights[..., :3].abs().max() == 0
    close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]), 1e-5)


def test_dense_leading_layers_and_single_router():
    """Config variants: a dense first layer has no router; without `multi_gate` types do not matter."""
    inputs = batch([Chat(24).text(4).image().text(2)])
    model = tiny_model(llm_config={"first_k_dense_replace": 1, "multi_gate": False, "num_shared_experts": 0})
    names = set(model.state_dict())
    assert not any("image_gate" in name or "shared_experts" in name for name in names)
    assert "model.model.layers.0.mlp.gate_proj.weight" in names
    out = model(**inputs, output_router_logits=True)
    assert len(out.router_logits) == 1
    embeds, types = model.embed(**without_mask(inputs))
    assert torch.equal(model(inputs_embeds=embeds, mm_token_type_ids=types).logits, model(inputs_embeds=embeds).logits)


def test_decoder_compiles_into_one_graph(tiny):
    """No graph break, whatever the token types: what `torch.compile(fullgraph=True)` and static caches need."""
    embeds, types = tiny.embed(**without_mask(batch([Chat(25).text(3).image().audio(5).text(2)])))
    compiled = torch.compile(tiny.model, fullgraph=True, backend="eager")
    with torch.no_grad():
        ours = compiled(inputs_embeds=embeds, mm_token_type_ids=types, use_cache=False).logits
        close(ours, tiny.model(inputs_embeds=embeds, mm_token_type_ids=types, use_cache=False).logits)


def test_loss_after_resizing_the_vocabulary():
    model = tiny_model()
    model.resize_token_embeddings(330, mean_resizing=False)
    ids = torch.arange(30, 62)[None]
    out = model(ids, labels=ids)
    assert out.logits.shape[-1] == model.config.llm_config.vocab_size == 330
    close(out.loss, F.cross_entropy(out.logits[0, :-1], ids[0, 1:]), 1e-5)


@torch.no_grad()
def test_a_single_token_reads_its_experts_in_place():
    """The way of decoding on a CPU gives what the library's implementations give."""
    model = tiny_model()
    experts = model.model.model.layers[0].mlp.experts
    states = torch.randn(1, experts.gate_up_proj.shape[-1], generator=torch.Generator().manual_seed(0))
    index, weights = torch.tensor([[3, 0]]), torch.tensor([[0.7, 0.3]])
    for name in ("eager", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(name)
        two = experts(states.repeat(2, 1), index.repeat(2, 1), weights.repeat(2, 1))
        torch.testing.assert_close(experts(states, index, weights), two[:1])


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_compiled_code_reads_the_experts_of_a_single_token(implementation, monkeypatch):
    """In float64, for which PyTorch has no grouped product, many tokens are computed by expert."""
    model = tiny_model().double()
    model.set_experts_implementation(implementation)
    experts = model.model.model.layers[0].mlp.experts
    states = torch.randn(2, experts.gate_up_proj.shape[-1], generator=torch.Generator().manual_seed(0)).double()
    index, weights = torch.tensor([[3, 0], [1, 3]]), torch.tensor([[0.7, 0.3], [0.1, 0.9]]).double()
    both = experts(states, index, weights)
    rows = [(states[row : row + 1], index[row : row + 1], weights[row : row + 1]) for row in range(2)]
    torch.testing.assert_close(torch.cat([experts(*row) for row in rows]), both)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # what it computes; the compiler has own tests
    torch.testing.assert_close(torch.cat([experts(*row) for row in rows]), both)


def test_a_single_token_off_the_cpu_gathers_its_experts():
    """The device "meta" shows the way that a GPU takes, without values."""
    experts = BailingMoeExperts(tiny_config().llm_config).to("meta")
    states, weights = torch.empty(1, 64, device="meta"), torch.empty(1, 2, device="meta")
    output = experts(states, torch.zeros(1, 2, dtype=torch.long, device="meta"), weights)
    assert output.shape == (1, 64) and output.device.type == "meta"


@torch.no_grad()
@pytest.mark.parametrize("normed", [True, False])
def test_a_block_is_the_weighted_sum_of_its_chosen_experts(normed):
    """By plain arithmetic: the probabilities of the chosen experts, over their sum if `normed`."""
    block = tiny_model(llm_config={"norm_topk_prob": normed}).model.model.layers[0].mlp
    x = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(0))
    output, logits = block(x)
    for token, row in enumerate(x[0]):
        weights, chosen = logits[token].softmax(dim=-1).topk(block.top_k)
        expected = block.shared_experts(row)
        for weight, expert in zip(weights / weights.sum() if normed else weights, chosen, strict=True):
            gate, up = F.linear(row, block.experts.gate_up_proj[expert]).chunk(2)
            expected = expected + weight * F.linear(F.silu(gate) * up, block.experts.down_proj[expert])
        close(output[0, token], expected, 1e-5)


# What the library's own tools ask of a model


def test_feature_methods_are_those_of_the_library(tiny):
    """Engines and extractors of embeddings call them by the library's names and read `pooler_output`."""
    chat = Chat(3).image(1, 4, 6).image(1, 8, 4)
    pixels, grids = torch.cat(chat.media["image"]), torch.tensor(chat.grids["image"])
    images = tiny.get_image_features(pixel_values=pixels, image_grid_thw=grids, return_dict=True)
    videos = tiny.get_video_features(pixel_values_videos=pixels, video_grid_thw=grids)
    for output in (images, videos):
        assert [tuple(each.shape) for each in output.pooler_output] == [(6, 64), (8, 64)]
        assert output.last_hidden_state.shape == (4 * 14, 32) and output.hidden_states is None
    states = tiny.get_image_features(pixels, grids, return_dict=False, output_hidden_states=True)
    close(states[0], images.last_hidden_state, 0)
    assert [len(part) for part in states[1:]] == [2, 3]


@pytest.mark.parametrize("width", [560, 128])
def test_audio_states_are_handed_out(width):
    """Both encoders tell their states and attention on request, in the order of the library's outputs."""
    model = tiny_model(attention="eager")
    feats, lengths = torch.randn(1, 13, width, generator=torch.Generator().manual_seed(0)), torch.tensor([[8, 5]])
    plain = model.get_audio_features(feats, lengths)
    states = model.get_audio_features(feats, lengths, output_hidden_states=True, output_attentions=True)
    close(torch.cat(states.pooler_output), torch.cat(plain.pooler_output), 0)
    frames = 8 if width == 560 else 4  # Whisper's convolution halves them
    assert plain.hidden_states is None and plain.last_hidden_state.shape == (2, frames, 32)
    assert len(states.hidden_states) == 3 and [each.shape[-2:] for each in states.attentions] == [(frames, frames)] * 2


def test_the_text_configuration_has_the_librarys_name(tiny):
    assert tiny.config.text_config is tiny.config.llm_config
    assert "text_config" not in tiny.config.to_dict()


def test_predictions_of_a_trainer_are_logits(tiny, tmp_path):
    from transformers import Trainer, TrainingArguments

    ids = torch.arange(5, 13)
    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True, per_device_eval_batch_size=2)
    for model in (tiny_model(), tiny_model(llm_config={"output_router_logits": True}), tiny_model().model):
        predicted = Trainer(model, arguments).predict([{"input_ids": ids, "labels": ids}] * 2)
        assert predicted.predictions.shape == (2, 8, tiny.config.llm_config.vocab_size)


def test_output_modalities_are_those_of_the_parts():
    """What the checkpoint does not have is not listed; what was left out on request is named when it is asked for."""
    assert tiny_model().output_modalities == ("text", "audio", "image")
    silent = tiny_config()
    silent.talker_config = None
    assert BailingMMNativeForConditionalGeneration(silent).output_modalities == ("text", "image")


def test_a_sliding_window_with_and_without_a_cache():
    model = tiny_model(llm_config={"use_sliding_window": True, "sliding_window": 4})
    ids = torch.arange(30, 46)[None]
    whole = model(input_ids=ids).logits
    cached = model(input_ids=ids[:, :10], use_cache=True)
    rest = [model(input_ids=ids[:, [place]], past_key_values=cached.past_key_values).logits for place in range(10, 16)]
    close(torch.cat([cached.logits, *rest], dim=1), whole, 1e-5)
    assert (tiny_model()(input_ids=ids).logits - whole).abs().max() > 1e-3  # the window does something


def test_tied_embeddings_are_tied_and_stay_so(tmp_path):
    model = tiny_model(llm_config={"tie_word_embeddings": True})
    model.tie_weights()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    ids = torch.arange(30, 36)[None]
    close(again(input_ids=ids).logits, model(input_ids=ids).logits, 0)


def test_embeddings_are_tied_where_a_user_asks_for_it(tmp_path):
    """`tie_word_embeddings` of the whole model is what `from_pretrained` takes."""
    tiny_model(llm_config={"tie_word_embeddings": True}).save_pretrained(tmp_path)
    config = tiny_model().config
    config.tie_word_embeddings = True
    for model in (
        BailingMMNativeForConditionalGeneration(config),
        BailingMMNativeForConditionalGeneration.from_pretrained(tmp_path, tie_word_embeddings=True),
    ):
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("trained", ["whole", "layers"])
@pytest.mark.parametrize("part", ["vision", "audio", "whisper_encoder"])
def test_checkpointing_of_both_kinds_trains_every_encoder(part, trained):
    """`layers`: what comes before the layers is frozen, as with adapters."""
    found = {}
    for use_reentrant in (None, False, True):
        model = tiny_model().train()
        if use_reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        for name, parameter in getattr(model, part).named_parameters():
            parameter.requires_grad_(trained == "whole" or name.startswith(("blocks.", "encoders")))
        chat = Chat(21, "whisper" if part == "whisper_encoder" else "sanm").text(3)
        inputs = batch([chat.image() if part == "vision" else chat.audio(13)])
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        found[use_reentrant] = {n: weight.grad for n, weight in getattr(model, part).named_parameters()}
    for name, expected in found[None].items():
        is_trained = trained == "whole" or name.startswith(("blocks.", "encoders"))
        assert (expected is not None) == is_trained
        for use_reentrant in (False, True):
            close(found[use_reentrant][name], expected, 1e-4)
