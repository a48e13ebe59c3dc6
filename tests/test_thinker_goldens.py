"""The thinker against tensors recorded from the released code: each golden tensor is one test.

A group function returns, for its goldens, our value and the selection (a boolean mask or a slice) of what may be
compared; `compare` looks the golden up. Nothing of the padding is ever compared.
"""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from thinker_helpers import AUDIO_TYPE, IMAGE_TYPE, VIDEO_TYPE, golden_case, read_goldens
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from ming.modeling_encoders import sinusoids, split_audio_segments

EVERYTHING = slice(None)
# Same-math reorderings move logits (up to 7.5) by 2e-5; single blocks and norms are held tighter.
TOLERANCE = {"a": 1e-5, "b": 1e-5, "c": 5e-5, "d": 2e-5, "e": 2e-5, "f": 2e-5, "g": 5e-5, "h": 1e-4, "n": 1e-6}
CASES = (
    "text",
    "text_batch",
    "image",
    "image_batch",
    "video",
    "audio_sanm",
    "audio_sanm_batch",
    "audio_whisper",
    "image_audio",
)

# Goldens that are inputs of a comparison and not results.
INPUTS = {
    *("a.moe.x", "a.moe.image_mask", "a.moe.audio_mask", "b.attn.x", "b.attn.pad_mask", "b.attn.pad_position_ids"),
    *("c.llm.input_ids", "c.llm.attention_mask", "c.llm.position_ids"),
    *("c.llm.masks.image_mask", "c.llm.masks.audio_mask"),
    *("d.vision.pixel_values", "d.vision.grid_thw", "d.vision.video_pixel_values", "d.vision.video_grid_thw"),
    *("e.sanm.feats_batch", "e.sanm.lengths_batch", "e.sanm.feats_wrapped", "e.sanm.lengths_wrapped"),
    *("f.whisper.feats_batch", "f.whisper.lengths_batch", "f.whisper.feats_wrapped", "f.whisper.lengths_wrapped"),
    *(f"g.{case}.{name}" for case in CASES for name in ("input_ids", "attention_mask")),
    *(f"g.{case}.audio_placeholder_loc_lens" for case in CASES if "audio" in case),
    *(f"n.{norm}.x" for norm in ("llm_rmsnorm", "vision_rmsnorm", "vision_ln_q", "sanm_layernorm")),
    *(f"n.{norm}.x" for norm in ("whisper_layernorm", "whisper_attn_ln")),
}
# Goldens that are compared with our default of `mask_padding=True`; all others with the released behaviour.
MASKED = {"f.whisper.short_alone.out", "f.whisper.short_alone.feature", "f.whisper.short_alone.feature_lengths"}
# Results that only exist in one implementation, and why.
EAGER_ONLY = {"b.attn.nomask.y": "eager attention without a mask is not causal; sdpa then decides by is_causal"}
NAMES = sorted(set(read_goldens()) - INPUTS)


def compare(ours, golden, selection=EVERYTHING, tolerance=0.0):
    """Integer tensors must be equal, floats within the tolerance, on the selected positions."""
    assert ours.shape == golden.shape
    ours, golden = ours[selection], golden[selection]
    assert golden.numel() > 0
    if golden.dtype.is_floating_point:
        torch.testing.assert_close(ours, golden, atol=tolerance, rtol=0)
    else:
        assert torch.equal(ours.to(golden.dtype), golden)


def moe_block(model, g):
    """a.*: one MoE block: each gate alone, and the block under the four combinations of router masks."""
    block, x = model.model.model.layers[0].mlp, g["a.moe.x"]
    results = {}
    for gate in ("gate", "image_gate", "audio_gate"):
        logits = getattr(block, gate)(x.reshape(-1, x.shape[-1]))
        weights, experts = logits.softmax(dim=-1).topk(block.top_k)
        results[f"a.moe.{gate}.logits"] = logits
        results[f"a.moe.{gate}.topk_idx"] = experts
        results[f"a.moe.{gate}.topk_weight"] = weights / weights.sum(dim=-1, keepdim=True)
    image = g["a.moe.image_mask"].long() * IMAGE_TYPE
    audio = g["a.moe.audio_mask"].long() * AUDIO_TYPE
    types = {"text": None, "image": image, "audio": audio, "both": image + audio}
    for name, token_types in types.items():
        seen = []
        hook = block.experts.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[1]))
        y, logits = block(x, token_types)
        hook.remove()
        results[f"a.moe.{name}.y"] = y
        results[f"a.moe.{name}.router_logits"] = logits.view(*x.shape[:-1], -1)
        results[f"a.moe.{name}.topk_idx_set"] = seen[0].sort(dim=-1).values.view(*x.shape[:-1], -1)
    return results


def attention_block(model, g):
    """b.*: one attention layer: causal, padded, without a mask, and in chunks through a cache."""
    decoder, x = model.model.model, g["b.attn.x"]
    layer, length = decoder.layers[1].attention, x.shape[1]

    def attend(x, positions, padding=None, cache=None, past=0):
        mask = create_causal_mask(
            config=decoder.config,
            inputs_embeds=x,
            attention_mask=padding,
            past_key_values=cache,
            position_ids=positions,
        )
        cos_sin = decoder.rotary_emb(x, positions)
        return layer(x, position_embeddings=cos_sin, attention_mask=mask, past_key_values=cache)[0]

    positions = torch.arange(length)[None]
    results = {"b.attn.causal.y": attend(x, positions)}
    padding = g["b.attn.pad_mask"]
    results["b.attn.padded.y"] = (attend(x, g["b.attn.pad_position_ids"], padding), padding.bool())
    if decoder.config._attn_implementation == "eager":
        results["b.attn.nomask.y"] = layer(x, decoder.rotary_emb(x, positions), attention_mask=None)[0]
    cache, chunks, start = DynamicCache(), [], 0
    for size in (5, 1, 3):
        # The library's mask reads the length of layer 0; this cache only ever sees layer 1.
        at = positions[:, start : start + size]
        allowed = torch.arange(start + size) <= at[0, :, None]
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]
        cos_sin = decoder.rotary_emb(x, at)
        chunks.append(layer(x[:, start : start + size], cos_sin, attention_mask=mask, past_key_values=cache)[0])
        start += size
    results["b.attn.cached.y"] = torch.cat(chunks, dim=1)
    results["b.attn.cache.k"], results["b.attn.cache.v"] = cache.layers[1].keys, cache.layers[1].values
    return results


def decoder(model, g):
    """c.*: the decoder with default and explicit positions, without padding, and with router masks."""
    ids, mask, llm = g["c.llm.input_ids"], g["c.llm.attention_mask"], model.model
    results, valid = {}, mask.bool()
    for name, positions in (("default", None), ("explicit", g["c.llm.position_ids"])):
        out = llm(ids, mask, positions, output_hidden_states=True, output_router_logits=True)
        routers = torch.stack(out.router_logits).view(len(out.router_logits), *ids.shape, -1)
        experts = routers.topk(llm.config.num_experts_per_tok).indices.sort(dim=-1).values
        results[f"c.llm.pos_{name}.logits"] = (out.logits, valid)
        results[f"c.llm.pos_{name}.hidden_states"] = (torch.stack(out.hidden_states), (EVERYTHING, valid))
        results[f"c.llm.pos_{name}.router_logits"] = (routers, (EVERYTHING, valid))
        results[f"c.llm.pos_{name}.topk_idx_set"] = (experts, (EVERYTHING, valid))
    results["c.llm.nomask_row0.logits"] = llm(ids[:1]).logits
    types = g["c.llm.masks.image_mask"].long() * IMAGE_TYPE + g["c.llm.masks.audio_mask"].long() * AUDIO_TYPE
    out = llm(ids[:1], mm_token_type_ids=types, output_hidden_states=True)
    results["c.llm.masks.logits"] = out.logits
    results["c.llm.masks.hidden_states"] = torch.stack(out.hidden_states)
    return results


def vision(model, g, pixels, grid, prefix):
    """d.*: every stage of the vision tower for images or for a video, the projector and the features."""
    tower, recorded = model.vision, {}

    def record(name):
        return lambda module, args, output: recorded.setdefault(name, output)

    modules = {"patch_embed": tower.patch_embed, "merger": tower.merger, "proj": model.linear_proj}
    modules |= {f"block{i}": block for i, block in enumerate(tower.blocks)}
    hooks = [module.register_forward_hook(record(name)) for name, module in modules.items()]
    hooks.append(
        tower.blocks[0].register_forward_pre_hook(
            lambda module, args, kwargs: recorded.update(kwargs), with_kwargs=True
        )
    )
    feature = torch.cat(model.get_image_features(g[pixels], g[grid]).pooler_output)
    for hook in hooks:
        hook.remove()
    size = tower.spatial_merge_size
    positions = get_vision_position_ids(g[grid], size)
    window_index, windows = get_vision_window_index(g[grid], size, tower.window_size, tower.patch_size)
    return {
        f"{prefix}.rotary_freqs": rotary_angles(tower, positions, window_index, recorded["position_embeddings"]),
        f"{prefix}.window_index": window_index,
        f"{prefix}.cu_window_seqlens": windows,
        f"{prefix}.patch_embed": recorded["patch_embed"],
        f"{prefix}.blocks": torch.stack([recorded[f"block{i}"] for i in range(len(tower.blocks))]),
        f"{prefix}.merger_window_order": recorded["merger"],
        f"{prefix}.out": tower(g[pixels], grid_thw=g[grid]).pooler_output,
        f"{prefix}.proj": recorded["proj"],
        f"{prefix}.feature": feature,
    }


def rotary_angles(tower, positions, window_index, position_embeddings):
    """The angles [P, head_dim / 2] behind the cosines and sines that the blocks get, rebuilt and checked by both."""
    angles = (positions[..., None] * tower.rotary_pos_emb.inv_freq).flatten(1)
    in_windows = angles.view(len(window_index), -1, angles.shape[1])[window_index].flatten(0, 1)
    for values, function in zip(position_embeddings, (torch.cos, torch.sin), strict=True):
        torch.testing.assert_close(values, function(torch.cat([in_windows, in_windows], dim=1)), atol=1e-6, rtol=0)
    return angles


def image_tower(model, g):
    return vision(model, g, "d.vision.pixel_values", "d.vision.grid_thw", "d.vision")


def video_tower(model, g):
    return vision(model, g, "d.vision.video_pixel_values", "d.vision.video_grid_thw", "d.vision.video")


def wrap(rows, like):
    """Flat features [sum of lengths, H] -> the released layout [B, T, H], zero where a row has ended."""
    present = like.abs().sum(dim=-1) > 0
    assert int(present.sum()) == rows.shape[0]
    return torch.zeros_like(like).masked_scatter(present[..., None], rows)


def features(model, g, prefix, kind):
    """The features of one layout ("batch": a segment per row, "wrapped": all in one row) in the released form."""
    segments = model.get_audio_features(g[f"{prefix}.feats_{kind}"], g[f"{prefix}.lengths_{kind}"]).pooler_output
    rows, lengths = torch.cat(segments), torch.tensor([len(segment) for segment in segments])
    golden = g[f"{prefix}.feature_{kind}"]
    return {
        f"{prefix}.feature_{kind}": wrap(rows, golden),
        f"{prefix}.feature_lengths_{kind}": lengths.view(g[f"{prefix}.feature_lengths_{kind}"].shape),
    }


def sanm(model, g):
    """e.*: unwrapping, position table, every layer, output, projector, features; frames within a segment."""
    segments, lengths = split_audio_segments(g["e.sanm.feats_wrapped"], g["e.sanm.lengths_wrapped"])
    encoder, layers = model.audio, []
    blocks = (*encoder.encoders0, *encoder.encoders)
    hooks = [block.register_forward_hook(lambda _, args, output: layers.append(output)) for block in blocks]
    out = encoder(segments, lengths).last_hidden_state
    for hook in hooks:
        hook.remove()
    valid = torch.arange(segments.shape[1]) < lengths[:, None]
    return {
        "e.sanm.unwrapped": segments,
        "e.sanm.unwrapped_lengths": lengths,
        "e.sanm.pos_enc": sinusoids(torch.arange(1, segments.shape[1] + 1), segments.shape[2])[None],
        "e.sanm.layers": (torch.stack(layers), (EVERYTHING, valid)),
        "e.sanm.out": (out, valid),
        "e.sanm.out_lengths": lengths,
        "e.sanm.proj": (model.linear_proj_audio(out.transpose(1, 2)), valid),
        **features(model, g, "e.sanm", "batch"),
        **features(model, g, "e.sanm", "wrapped"),
    }


def whisper(model, g):
    """f.*: the released behaviour, in which every frame attends to the padding of its batch."""
    segments, lengths = split_audio_segments(g["f.whisper.feats_wrapped"], g["f.whisper.lengths_wrapped"])
    out = model.whisper_encoder(segments, lengths).last_hidden_state
    return {
        "f.whisper.unwrapped": segments,
        "f.whisper.unwrapped_lengths": lengths,
        "f.whisper.out": out,
        "f.whisper.proj": model.linear_proj_whisper(out.transpose(1, 2)),
        **features(model, g, "f.whisper", "batch"),
        **features(model, g, "f.whisper", "wrapped"),
    }


def whisper_short(model, g):
    """f.whisper.short_alone.*: the second segment, here taken out of a batch with the longer first one."""
    segments, lengths = split_audio_segments(g["f.whisper.feats_batch"], g["f.whisper.lengths_batch"])
    frames = g["f.whisper.short_alone.out"].shape[1]
    features = model.get_audio_features(g["f.whisper.feats_batch"], g["f.whisper.lengths_batch"]).pooler_output
    return {
        "f.whisper.short_alone.out": model.whisper_encoder(segments, lengths).last_hidden_state[1:, :frames],
        "f.whisper.short_alone.feature": features[1][None],
        "f.whisper.short_alone.feature_lengths": torch.tensor([[len(features[1])]]),
    }


def whole_model(model, g, meta, case):
    """g.*: one forward pass over prompt and media, and the token types we find in it."""
    inputs = golden_case(meta, g, case)
    valid = inputs["attention_mask"].bool()
    media = {name: value for name, value in inputs.items() if name != "attention_mask"}
    embeds, types = model.embed(**media)
    out = model(**inputs, output_hidden_states=True)
    results = {
        f"g.{case}.inputs_embeds": (embeds, valid),
        f"g.{case}.logits": (out.logits, valid),
        f"g.{case}.last_hidden": (out.hidden_states[-1], valid),
    }
    if case.startswith(("image", "video")):
        results[f"g.{case}.image_mask"] = (types == IMAGE_TYPE) | (types == VIDEO_TYPE)
    if "audio" in case:
        results[f"g.{case}.audio_mask"] = types == AUDIO_TYPE
    return results


def greedy(model, g, meta, case):
    """h.*: greedy decoding with a cache; the new tokens, the raw logits of each step, the talker's input."""
    inputs = golden_case(meta, g, case)
    out = model.generate(
        **inputs,
        max_new_tokens=g[f"h.{case}.new_tokens"].shape[1],
        return_dict_in_generate=True,
        output_logits=True,
        output_hidden_states=True,
    )
    length = inputs["input_ids"].shape[1]
    assert torch.equal(out.sequences[:, :length], inputs["input_ids"])
    results = {
        f"h.{case}.new_tokens": out.sequences[:, length:],
        f"h.{case}.step_logits": torch.stack(out.logits, dim=1),
    }
    if f"h.{case}.thinker_reply_part" in g:
        results[f"h.{case}.thinker_reply_part"] = out.hidden_states[0][0] + out.hidden_states[0][-1]
    return results


def norms(model, g):
    """n.*: norms of inputs so small that a wrong epsilon shows."""
    sanm_encoder, whisper_encoder = model.audio, model.whisper_encoder
    modules = {
        "llm_rmsnorm": model.model.model.layers[0].input_layernorm,
        "vision_rmsnorm": model.vision.blocks[0].norm1,
        "vision_ln_q": model.vision.merger.ln_q,
        "sanm_layernorm": sanm_encoder.encoders[0].norm1,
        "whisper_layernorm": whisper_encoder.ln_post,
        "whisper_attn_ln": whisper_encoder.blocks[0].self_attn_layer_norm,
    }
    return {f"n.{name}.y": module(g[f"n.{name}.x"]) for name, module in modules.items()}


@pytest.fixture(scope="session")
def results(golden_model, goldens, golden_meta):
    """Every golden's counterpart in the released behaviour, by name: ours, or (ours, selection)."""
    computed = {}
    with torch.no_grad():
        for group in (moe_block, attention_block, decoder, image_tower, video_tower, sanm, whisper, norms):
            computed |= group(golden_model, goldens)
        for case in CASES:
            computed |= whole_model(golden_model, goldens, golden_meta, case)
            computed |= greedy(golden_model, goldens, golden_meta, case)
    return computed


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MASKED | set(EAGER_ONLY)])
def test_golden(results, goldens, name):
    ours, selection = results[name] if isinstance(results[name], tuple) else (results[name], EVERYTHING)
    compare(ours, goldens[name], selection, TOLERANCE[name[0]])


@pytest.mark.parametrize("name", sorted(MASKED))
def test_golden_short_whisper_segment_in_a_batch(masked_golden_model, goldens, name):
    with torch.no_grad():
        compare(whisper_short(masked_golden_model, goldens)[name], goldens[name], tolerance=TOLERANCE["f"])


@pytest.mark.parametrize("golden_model", ["eager"], indirect=True)
@pytest.mark.parametrize("name", sorted(EAGER_ONLY))
def test_golden_of_eager_attention(results, goldens, name):
    compare(results[name], goldens[name], tolerance=TOLERANCE["b"])


def test_every_golden_is_an_input_or_compared(results, goldens, golden_meta):
    """The lists above name only goldens that exist, and nothing is computed that has no golden."""
    assert set(goldens) >= INPUTS | MASKED | set(EAGER_ONLY)
    assert set(NAMES) - set(results) <= MASKED | set(EAGER_ONLY)
    assert set(results) <= set(NAMES)
    assert {name[0] for name in NAMES} == set(TOLERANCE)
    assert Counter(name[0] for name in NAMES) == Counter(a=21, b=6, c=11, d=18, e=11, f=11, g=35, h=20, n=6)
    assert tuple(golden_meta["case_inputs"]) == CASES


def test_first_step_of_generation_equals_the_forward_pass(results, goldens):
    for case in CASES:
        first, last = results[f"h.{case}.step_logits"][:, 0], results[f"g.{case}.logits"][0][:, -1]
        torch.testing.assert_close(first, last, atol=3e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_greedy_without_cache_gives_the_same_tokens(golden_model, goldens, golden_meta, case):
    """The released code always cached; a full recomputation with the media must not change the answer."""
    inputs = golden_case(golden_meta, goldens, case)
    out = golden_model.generate(
        **inputs, max_new_tokens=12, use_cache=False, return_dict_in_generate=True, output_logits=True
    )
    length = inputs["input_ids"].shape[1]
    compare(out.sequences[:, length:], goldens[f"h.{case}.new_tokens"])
    compare(torch.stack(out.logits, dim=1), goldens[f"h.{case}.step_logits"], tolerance=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_token_types_given_or_found_are_the_same(masked_golden_model, goldens, golden_meta, case):
    """`mm_token_type_ids`, as our processor gives them, replace the placeholder positions of the released one."""
    inputs = golden_case(golden_meta, goldens, case)
    inputs.pop("attention_mask")
    with torch.no_grad():
        embeds, types = masked_golden_model.embed(**inputs)
        given = {name: value for name, value in inputs.items() if name != "audio_placeholder_loc_lens"}
        again, _ = masked_golden_model.embed(**given, mm_token_type_ids=types)
    assert torch.equal(embeds, again)
    assert (types is None) == case.startswith("text")


def test_image_features_are_of_unit_length(golden_model, goldens):
    with torch.no_grad():
        images = golden_model.get_image_features(goldens["d.vision.pixel_values"], goldens["d.vision.grid_thw"])
        rows = torch.cat(images.pooler_output)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(len(rows)), atol=1e-6, rtol=0)
    torch.testing.assert_close(rows, F.normalize(goldens["d.vision.proj"], dim=-1), atol=1e-5, rtol=0)
