"""The talker against what the released one computed from the same small random weights (speech.md 1)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from ming.codec_bpe import CodecBPE
from ming.configuration_bailingmm import BailingMMTalkerConfig
from ming.modeling_talker import BailingMMTalker
from ming.talker_steps import NO_ID, StopRules, TalkerPrompt, filter_logits

GOLDENS = Path(__file__).resolve().parent / "goldens" / "talker"
TENSORS = load_file(GOLDENS / "goldens.safetensors")
FACTS = json.loads((GOLDENS / "goldens.json").read_text(encoding="utf-8"))
CASES = [name.removeprefix("gen.") for name in FACTS if name.startswith("gen.") and "positions" in FACTS[name]]
TOLERANCE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def talker() -> BailingMMTalker:
    sizes = json.loads((GOLDENS / "config.json").read_text(encoding="utf-8"))
    model = BailingMMTalker(
        BailingMMTalkerConfig(llm_config=sizes["qwen"], special_token_ids=FACTS["special_ids"], **sizes["talker"])
    )
    model.load_state_dict(load_file(GOLDENS / "talker.safetensors"))
    return model.eval()


@pytest.fixture(scope="module")
def codec_bpe() -> CodecBPE:
    return CodecBPE.from_pretrained(GOLDENS / "s3_bpe")


def golden(name: str) -> torch.Tensor:
    return TENSORS[f"talker.{name}"]


def prompt_ids() -> torch.Tensor:
    offset = FACTS["len_tokenizer"]
    return torch.tensor([index - offset for index in FACTS["prompt_bpe_ids_with_offset"]])


def test_special_tokens_stand_at_the_end_of_the_text_vocabulary():
    config = BailingMMTalkerConfig()
    assert config.special_token_ids["<audio_bos>"] == 151665
    assert config.special_token_ids["</vp>"] == config.text_vocab_size - 1 == 151676


@pytest.mark.parametrize("kind", ["nothinker", "thinker"])
@torch.no_grad()
def test_prefix_and_cached_steps(talker, kind):
    facts = FACTS[f"step.{kind}"]
    states = golden("thinker_reply_part")[0] if kind == "thinker" else None
    steps = facts["next_text_ids"]
    prompt = TalkerPrompt(
        text_ids=torch.tensor([facts["text_prefix"][0][-1], *steps]),
        prompt_ids=prompt_ids()[: len(steps)],
        speaker_embedding=golden("vp_emb")[0],
        thinker_states=states,
    )
    inputs = talker.prepare_inputs([prompt])
    length = inputs["audio_ids"].shape[1] - len(steps)
    assert inputs["audio_ids"][:, :length].tolist() == facts["audio_prefix"]
    assert inputs["text_ids"][:, :length].tolist() == facts["text_prefix"]
    assert inputs["speaker_position"].tolist() == [facts["vp_insert_loc"]]
    assert inputs["position_ids"][0, :length].unique().tolist() == facts["position_ids_step0"][0]
    assert inputs["position_ids"][0, length:].tolist() == facts["positions_next"]
    media = {name: inputs[name] for name in inputs if name.startswith(("speaker", "thinker"))}
    embeds = talker.embed(inputs["audio_ids"], inputs["text_ids"], **media)
    torch.testing.assert_close(embeds[:, :length], golden(f"step.{kind}.inputs_embeds"), **TOLERANCE)
    logits = talker(**inputs).logits
    torch.testing.assert_close(logits[:, :length], golden(f"step.{kind}.logits0"), **TOLERANCE)
    for step in range(len(steps)):
        expected = golden(f"step.{kind}.logits{step + 1}")
        torch.testing.assert_close(logits[:, length + step : length + step + 1], expected, **TOLERANCE)
    ordinary = talker(**{**inputs, "position_ids": None}).logits[:, :length]
    expected = golden(f"step.{kind}.logits0_if_positions_were_arange")
    torch.testing.assert_close(ordinary, expected, **TOLERANCE)


@pytest.mark.parametrize("allowed", [True, False])
def test_filtered_logits(talker, allowed):
    name = "sample.eos_allowed" if allowed else "sample.eos_suppressed"
    eos = talker.config.special_token_ids["<audio_eos>"]
    filtered = filter_logits(golden("sample.logits_in"), 20, eos, torch.tensor([allowed]))
    torch.testing.assert_close(filtered, golden(f"{name}.filtered_logits"))
    torch.testing.assert_close(filtered.softmax(dim=-1), golden(f"{name}.probs"))
    assert int(filtered.isfinite().sum()) == FACTS[name]["kept"]


def test_training_loss_and_logits(talker):
    ids = {name: golden(f"train.{name}") for name in ("audio_ids", "text_ids", "attention_mask", "labels")}
    outputs = talker(
        **ids,
        speaker_embedding=golden("train.vp_emb")[:, 0],
        speaker_position=golden("train.vp_insert_loc"),
        thinker_states=golden("train.thinker_reply_part"),
        thinker_start=golden("train.thinker_prefix_insert_loc"),
        thinker_length=golden("train.thinker_reply_length"),
    )
    kept = ids["attention_mask"].bool()
    torch.testing.assert_close(outputs.logits[kept], golden("train.logits")[kept], **TOLERANCE)
    torch.testing.assert_close(outputs.loss[None], golden("train.loss"), **TOLERANCE)


class Rule:
    """How the recorded runs chose an id from the filtered probabilities (speech.md, header)."""

    def __init__(self, case: dict, eos: int):
        self.rule, self.eos = case["rule"], eos
        self.uniforms = iter(case["uniforms"] or [])

    def __call__(self, probabilities: torch.Tensor) -> torch.Tensor:
        if self.rule == "invcdf":
            summed = probabilities[0].double().cumsum(dim=0)
            return (summed > next(self.uniforms) * summed[-1]).nonzero()[0]
        if self.rule == "eosfirst" and probabilities[0, self.eos] > 0:
            return torch.tensor([self.eos])
        return probabilities.argmax(dim=-1)


def recorded_pieces(case: dict) -> list[dict[str, list]]:
    """What the released loop fed, cut at the prefixes: per piece its prefix, text ids and positions."""
    pieces: list[dict[str, list]] = []
    steps = zip(case["audio_ids_per_step"], case["text_ids_per_step"], case["positions"], strict=True)
    for audio_id, text_id, position in steps:
        if isinstance(audio_id, list):
            pieces.append({"prefix": audio_id, "text_ids": [text_id[-1]], "positions": [position]})
        else:
            pieces[-1]["text_ids"].append(text_id)
            pieces[-1]["positions"].append(position)
    return pieces


@pytest.mark.parametrize("name", CASES)
def test_generated_ids_under_the_released_rules(talker, codec_bpe, name):
    case, pad = FACTS[f"gen.{name}"], talker.config.special_token_ids["<text_pad>"]
    tokenizer = AutoTokenizer.from_pretrained(GOLDENS / "tokenizer")
    draw = Rule(case, talker.config.special_token_ids["<audio_eos>"])
    forced = torch.tensor(codec_bpe.encode(case["prompt_codes"]))
    assert forced.tolist() == prompt_ids().tolist()
    rules = StopRules(released=True, max_new_ids=case["max_steps_patched"] - len(forced))
    recorded, wanted = recorded_pieces(case), case["generated_ids_per_piece_before_offset"]
    for text, piece, expected in zip(case["pieces_text"], recorded, wanted, strict=True):
        num_states = len(piece["prefix"]) - 8
        states = golden("thinker_reply_part")[0].repeat(-(-num_states // 5), 1)[:num_states] if num_states else None
        text_ids = tokenizer(case["prompt_text"])["input_ids"] + tokenizer(text)["input_ids"]
        row = TalkerPrompt(torch.tensor(text_ids), forced, golden("vp_emb")[0], states)
        fed = [*text_ids, talker.config.special_token_ids["<text_eos>"], *[pad] * 1000][: len(piece["text_ids"])]
        assert piece["text_ids"] == fed
        start = int(piece["positions"][0]) - len(piece["prefix"]) + 1
        steps = talker.stream([row], rules=rules, draw=draw, start_position=start)
        said = [step.codec_ids.item() for step in steps]
        said = said[:-1] if said[-1] == NO_ID else said  # the step that ends the piece
        assert NO_ID not in said
        assert [index + FACTS["len_tokenizer"] for index in said] == expected
    assert next(draw.uniforms, None) is None or case["rule"] == "invcdf"
    if "speech_codes_per_piece" in case:
        codes = [codec_bpe.decode([index - FACTS["len_tokenizer"] for index in ids]) for ids in wanted]
        assert codes == [piece[0] for piece in case["speech_codes_per_piece"]]
