"""The audio detokenizer against tensors recorded from the released code: each golden tensor is one test.

Stored goldens may hold only the leading rows, frames or samples of a result (all goldens here would be 4 MB); then
those are compared. `SPEECH_GOLDENS` may name the directory of a complete set.
"""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import load_file

from audio_detokenizer.configuration_audio_detokenizer import AudioDetokenizerConfig
from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from audio_detokenizer.modeling_flow import cosine_timesteps, length_mask, nearest_tokens, relative_positions
from ming.training.flow import flow_matching_loss

GOLDENS = Path(os.environ.get("SPEECH_GOLDENS", Path(__file__).resolve().parent / "goldens" / "speech"))
# Values and tolerances: mel up to 5 after 16 calls of the estimator, waveforms up to 1, gradients up to 0.5.
TOLERANCE = {"encoder": 1e-5, "length_regulator": 1e-5, "time": 1e-4, "est": 2e-5, "flow": 1e-5, "decode": 1e-5}
TOLERANCE |= {"source_rand": 1e-5, "source_zero": 1e-5, "hift": 5e-5, "e2e": 2e-5, "train": 5e-6, "istft": 1e-6}
FLOW_CASES = ("flow_noprompt", "flow_prompt", "flow_prompt_extra_frame", "flow_negative_token")
# Goldens that are inputs of a comparison and not results.
INPUT_ENDINGS = (".token", ".token_len", ".input", ".x", ".cond", ".t", ".noise", ".prompt_token", ".prompt_feat")
INPUT_ENDINGS += (".noise_randn", ".phase", ".uniform", ".z", ".t_uniform", ".cfg_uniform", ".ylens", ".temb")
INPUT_ENDINGS += (".attn_mask", ".embedding", ".mel_fp16_run", ".source", ".source_b2")
INPUTS = {"est_even.mask", "est_even.mu", "est_even.spks", "est_mask.mask", "est_mask.mu", "est_mask.spks"}
INPUTS |= {"resblock.mask", "hift.mel", "hift.mel_b2", "source.f0", "istft.magnitude", "train.speech_feat"}
INPUTS |= {"train.speech_feat_len", "train.speech_token", "train.speech_token_len"}


def read_goldens() -> dict[str, torch.Tensor]:
    tensors = load_file(GOLDENS / "goldens.safetensors")
    tensors = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}
    if any(name.startswith("audio.") for name in tensors):
        tensors = {name.removeprefix("audio."): tensors[name] for name in tensors if name.startswith("audio.")}
    return tensors


RESULTS = [name for name in sorted(read_goldens()) if name not in INPUTS and not name.endswith(INPUT_ENDINGS)]
# Ends in an input's name, but is one.
RESULTS += [name for name in ("istft.phase",) if name in RESULTS]


@pytest.fixture(scope="module")
def g() -> dict[str, torch.Tensor]:
    return read_goldens()


@pytest.fixture(scope="module")
def meta() -> dict:
    data = json.loads((GOLDENS / "goldens.json").read_text(encoding="utf-8"))
    return data.get("audio", data)


@pytest.fixture(scope="module")
def released() -> AudioDetokenizer:
    """The golden model with the released treatment of padding."""
    settings = json.loads((GOLDENS / "config.json").read_text(encoding="utf-8"))
    config = AudioDetokenizerConfig(flow=settings["flow"], hift=settings["hift"], mask_padding=False)
    model = AudioDetokenizer(config).eval()
    for part in ("flow", "hift"):
        getattr(model, part).load_state_dict(load_file(GOLDENS / f"{part}.safetensors"))
    return model


def encoder(model, g):
    """encoder.*, encoder_proj.*, length_regulator.*: two rows of different lengths, and single stretches."""
    flow, mask = model.flow, g["encoder.mask"][:, 0]
    embedded = flow.input_embedding(g["encoder.token"].clamp(min=0)) * mask[:, :, None]
    positions = relative_positions(mask.shape[1], flow.encoder.width, mask.device)
    hidden_states = flow.encoder.embed.out(embedded) * flow.encoder.width**0.5
    results = {"encoder.mask": length_mask(g["encoder.token_len"], mask.shape[1])[:, None]}
    results |= {"encoder.embed_out": hidden_states, "encoder.pos_emb": positions}
    results["encoder.layer0_out"] = flow.encoder.encoders[0](hidden_states, mask[:, None], positions)
    results["encoder.output"] = flow.encoder(embedded, mask)
    encoded = flow.embed_codes(g["encoder.token"], mask)
    results["encoder_proj.output"] = encoded
    frames = g["length_regulator.ylens"]
    mu, _ = flow.condition(g["encoder.token"], g["encoder.token_len"], frames)
    results["length_regulator.output"] = mu.transpose(1, 2)
    for single in ("single0", "single1", "single2"):
        if (x := g.get(f"length_regulator.{single}.input")) is not None:
            length = g[f"length_regulator.{single}.output"].shape[1]
            tokens = nearest_tokens(torch.tensor([x.shape[1]]), torch.tensor([length]), torch.arange(length))
            results[f"length_regulator.{single}.output"] = flow.length_regulator(x, tokens, None).transpose(1, 2)
    return results


def estimator(model, g):
    """time.*, resblock.*, tblock.*, est_*: parts of the velocity network and the whole, with padded rows."""
    net = model.flow.decoder.estimator
    sinusoid = get_timestep_embedding(1000 * g["time.t"], net.in_channels)
    results = {"time.sinusoid": sinusoid, "time.mlp": net.time_mlp(sinusoid)}
    resnet, (block,), _ = net.down_blocks[0]
    results["resblock.output"] = resnet(g["resblock.input"], g["resblock.mask"], g["resblock.temb"])
    results["tblock.output"] = block(g["tblock.input"], attention_mask=g["tblock.attn_mask"])
    results["tblock.output_nomask"] = block(g["tblock.input"])
    for case in ("est_even", "est_mask"):
        if f"{case}.x" in g:
            inputs = [g[f"{case}.{name}"] for name in ("x", "mask", "mu", "t", "spks", "cond")]
            results[f"{case}.output"] = net(*inputs)
    return results


def flow_matching(model, g):
    """flow_*: whole mels with recorded noise; the prompt's frames are cut."""
    results = {}
    for case in (case for case in FLOW_CASES if f"{case}.token" in g):
        codes = torch.cat([g[f"{case}.prompt_token"], g[f"{case}.token"]], dim=1)
        lengths = torch.tensor([codes.shape[1]])
        frames = torch.tensor([model.config.num_frames(codes.shape[1])])
        cut = g[f"{case}.prompt_feat"].shape[1] if f"{case}.prompt_feat" in g else 0
        embedding = g["flow.embedding"]
        results[f"{case}.mu"] = model.flow.condition(codes, lengths, frames)[0]
        results[f"{case}.spks"] = model.flow.embed_speaker(embedding)
        results[f"{case}.mel"] = model.flow(codes, lengths, embedding, g[f"{case}.noise"])[:, :, cut:]
    return results


def vocoder(model, g):
    """hift.*, source_*, decode.*, istft.*, hift_full.*, snake_resblock.*"""
    hift = model.hift
    results = {"hift.f0": hift.f0_predictor(g["hift.mel"])}
    hop = model.config.hop_length
    for case in ("source_rand", "source_zero"):
        noise = g.get(f"{case}.noise_randn", torch.zeros_like(g["source_rand.noise_randn"]))
        signal, _ = hift.m_source(g["source.f0"], g[f"{case}.phase"][:, :, 0], noise)
        results[f"{case}.sine_merge"] = signal.transpose(1, 2)
        results[f"{case}.uv"] = hift.m_source.voiced(g["source.f0"]).repeat_interleave(hop, dim=1)[:, :, None]
    results["decode.stft_real"], results["decode.stft_imag"] = hift.stft(g["decode.source"][:, 0]).chunk(2, dim=1)
    results["decode.wav"] = hift.decode(g["hift.mel"], g["decode.source"])
    if "decode.source_b2" in g:
        results["hift.f0_b2"] = hift.f0_predictor(g["hift.mel_b2"])
        results["decode.wav_b2"] = hift.decode(g["hift.mel_b2"], g["decode.source_b2"])
    if "hift_full.phase" in g:
        noise = g["hift_full.noise_randn"]
        results["hift_full.wav"] = hift(g["hift.mel"], g["hift_full.phase"][:, :, 0], noise)
    hift.conv_post.bias.data += 3
    results["decode.wav_loud"] = hift.decode(g["hift.mel"], g["decode.source"])
    hift.conv_post.bias.data -= 3
    results["istft.wav"] = hift.istft(g["istft.magnitude"], g["istft.phase"])
    results["snake_resblock.output"] = hift.resblocks[0](g["snake_resblock.input"])
    return results


def end_to_end(model, g):
    """e2e.*: two pieces spoken with a prompt, their starts silenced, one after the other."""
    results, pieces = {}, []
    prompt, cut = g["e2e.prompt_token"], g["e2e.prompt_feat"].shape[1]
    for piece in ("e2e.piece0", "e2e.piece1"):
        codes = torch.cat([prompt, g[f"{piece}.token"]], dim=1)
        mel = model.flow(codes, torch.tensor([codes.shape[1]]), g["flow.embedding"], g[f"{piece}.z"])[:, :, cut:]
        waveform = model.hift(mel, g[f"{piece}.phase"][:, :, 0], g[f"{piece}.noise_randn"])
        results[f"{piece}.raw"] = waveform
        waveform = waveform.clone()
        waveform[:, : model.num_silent_samples] = 0
        pieces.append(waveform)
    return results | {"e2e.wav": torch.cat(pieces, dim=1)}


def training(model, g):
    """train*: loss and gradients of a padded batch, without dropout, with everything random recorded."""
    results, flow = {}, model.flow
    lengths = {"code_lengths": g["train.speech_token_len"], "mel_lengths": g["train.speech_feat_len"]}
    tensors = {"codes": g["train.speech_token"], "mel": g["train.speech_feat"]}
    batch = lengths | tensors | {"speaker_embedding": g["train.embedding"]}
    for case in (case for case in ("train0", "train1", "train2") if f"{case}.z" in g):
        randomness = {name: g[f"{case}.{name}"] for name in ("t_uniform", "z", "cfg_uniform", "cond")}
        with torch.enable_grad():
            flow.zero_grad()
            loss = flow_matching_loss(flow, batch, randomness=randomness)
            loss.backward()
        results[f"{case}.loss"] = loss.detach()[None]
        results[f"{case}.mu"] = flow.condition(batch["codes"], batch["code_lengths"], batch["mel_lengths"])[0]
        t = 1 - torch.cos(randomness["t_uniform"] * 0.5 * torch.pi)
        results[f"{case}.y"] = (1 - (1 - 1e-6) * t) * randomness["z"] + t * batch["mel"].transpose(1, 2)
        results |= {f"{case}.grad.{name}": p.grad.clone() for name, p in flow.named_parameters()}
    flow.zero_grad()
    return results


@pytest.fixture(scope="module")
def ours(released, g) -> dict[str, torch.Tensor]:
    results = {}
    with torch.no_grad():
        for group in (encoder, estimator, flow_matching, vocoder, end_to_end, training):
            results |= group(released, g)
    return results


@pytest.mark.parametrize("name", RESULTS)
def test_golden(name, ours, g):
    golden = g[name]
    value = ours[name][tuple(slice(size) for size in golden.shape)]
    assert value.shape == golden.shape and golden.numel() > 0
    if not golden.is_floating_point():
        assert torch.equal(value.to(golden.dtype), golden)
        return
    part = name.split(".")[0]
    tolerance = TOLERANCE.get(part, TOLERANCE.get(part.rstrip("0123456789"), TOLERANCE.get(part.split("_")[0], 1e-6)))
    torch.testing.assert_close(value, golden, atol=tolerance, rtol=1e-5)


def test_the_loud_golden_reaches_the_limit(ours, meta, released):
    assert ours["decode.wav_loud"].abs().max() == torch.tensor(released.config.hift["audio_limit"])


def test_times_of_the_euler_steps(meta, released):
    golden = torch.tensor(meta.get("t_span_fp32") or meta["cfm"]["t_span_fp32"])
    torch.testing.assert_close(torch.tensor(cosine_timesteps(released.config.num_steps)), golden, atol=1e-7, rtol=0)


def test_frames_of_tokens(meta, released):
    table = {int(tokens): frames for tokens, frames in meta["frame_count_table"].items()}
    assert {tokens: released.config.num_frames(tokens) for tokens in table} == table


def test_nearest_tokens_are_those_of_interpolate(released):
    """Also where exact arithmetic would round otherwise."""
    for num_tokens in range(1, 120):
        num_frames = released.config.num_frames(num_tokens)
        row = torch.arange(num_tokens, dtype=torch.float32)[None, None]
        expected = F.interpolate(row, size=num_frames, mode="nearest")[0, 0].long()
        one = torch.tensor([num_tokens]), torch.tensor([num_frames]), torch.arange(num_frames)
        assert torch.equal(nearest_tokens(*one)[0], expected)
