"""Compiled decoding says what decoding says, with one graph for prompts of a size, and waits for no device in it.

Most tests capture graphs and run them as they are (`backend="eager"`), which needs no compiler. Those of generated
code take the default backend where there is a C++ compiler, and the same graphs lowered to PyTorch's core operators
where there is none.
"""

import copy
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from speech_helpers import SMALLEST_VOCODER, tiny_detokenizer
from test_talker import PROMPTS, generators, ids_of, talker  # noqa: F401
from thinker_helpers import Chat, batch, mixed_chats, tiny_model
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForMultimodalLM, CompileConfig, DynamicCache, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from handler import EndpointHandler
from ming.cli.arguments import add_device_options, load_options
from ming.cli.main import main as run_command
from ming.cli.usage import Parser
from ming.events import AudioChunk
from ming.loading import load_model
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.quantization import four_bit
from ming.serving import compiling
from ming.serving.engine_jobs import Sampling, TextJob
from ming.serving.running_batch import RunningBatch
from ming.serving.running_speech import RunningSpeech
from ming.talker_steps import StopRules

ROOT = Path(__file__).resolve().parents[1]
PICTURE = {"type": "image", "image": str(ROOT / "demo" / "picture.jpg")}
TURNS = [[PICTURE, {"type": "text", "text": "Describe the picture."}], "What colour is the background?"]
CAPTURED = CompileConfig(fullgraph=True, dynamic=False, mode=None, backend="eager")
GENERATED = True if shutil.which("g++") else CompileConfig(fullgraph=True, mode=None, backend="aot_eager")
GREEDY = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 25}
ONE = {
    "text": Chat(1).text(7),
    "image": Chat(2).text(3).image(1, 4, 6).text(4),
    "video": Chat(3).video(2, 4, 4).text(5),
    "audio": Chat(4).text(2).audio(13).text(3),
}


@pytest.fixture(scope="module")
def small():
    return tiny_model()


@pytest.fixture
def graphs():
    """The number of graphs that were captured since the beginning of the test; it must not have broken any."""
    torch._dynamo.reset()  # a graph of another test's model of the same shape would serve here
    start = counters["stats"]["unique_graphs"]
    yield lambda: counters["stats"]["unique_graphs"] - start
    assert not counters["graph_break"]


def test_prompts_of_a_size_share_one_graph_and_say_the_same(graphs):
    own = tiny_model(1)
    for chat in ONE.values():
        inputs = batch([chat])
        expected = own.generate(**inputs, **GREEDY)
        assert torch.equal(own.generate(**inputs, **GREEDY, compile=CAPTURED), expected)
    assert graphs() == 1
    longer = {**GREEDY, "max_new_tokens": 30}  # within the same cache
    assert torch.equal(own.generate(**inputs, **longer, compile=CAPTURED), own.generate(**inputs, **longer))
    assert graphs() == 1


def test_batches_are_padded_to_few_sizes(small, graphs):
    """Chats of different lengths, so with padding on the left; 3 and 4 of them run the same graph."""
    for chats in (mixed_chats()[:4], mixed_chats()[5:8], mixed_chats()[1:4]):
        inputs = batch(chats)
        expected = small.generate(**inputs, **GREEDY)
        assert torch.equal(small.generate(**inputs, **GREEDY, compile=CAPTURED), expected)
    assert graphs() == 1


def test_generated_code_says_the_same():
    small = tiny_model(2, llm_config={"num_hidden_layers": 1})
    for chats in ([ONE["image"]], [ONE["audio"]]):
        inputs = batch(chats)
        expected = small.generate(**inputs, **GREEDY)
        assert torch.equal(small.generate(**inputs, **GREEDY, compile=GENERATED), expected)


class Synchronisations(TorchDispatchMode):
    """Counts what a GPU would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(mask is not None and mask.dtype == torch.bool for mask in masks)
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def watched(found: list[str]) -> CompileConfig:
    """Runs graphs as they are and notes the synchronisations in them."""

    def backend(graph, inputs):
        def run(*args):
            with Synchronisations() as mode:
                outputs = graph(*args)
            found.extend(["step", *mode.found])
            return outputs

        return run

    return CompileConfig(fullgraph=True, dynamic=False, mode=None, backend=backend)


@pytest.mark.parametrize(
    "wait",
    [torch.Tensor.item, lambda x: bool(x.any()), lambda x: x[x > 0], torch.Tensor.nonzero],
    ids=["item", "any", "mask", "nonzero"],
)
def test_what_waits_is_seen(wait):
    with Synchronisations() as mode:
        wait(torch.ones(1))
    assert mode.found


def test_steps_wait_for_nothing(small, talker):  # noqa: F811
    found: list[str] = []
    small.generate(**batch(mixed_chats()[:3]), **{**GREEDY, "eos_token_id": 319}, compile=watched(found))
    assert set(found) == {"step"} and len(found) == GREEDY["max_new_tokens"] - 1
    found.clear()
    talker.generate(PROMPTS, generators(1, 2, 3, 4), StopRules(max_new_ids=5), compiled=watched(found))
    assert set(found) == {"step"}


def test_flow_and_vocoder_wait_for_nothing():
    found: list[str] = []
    detokenizer = tiny_detokenizer(**SMALLEST_VOCODER)
    detokenizer.decode([torch.arange(10)], torch.ones(1, 192), num_steps=2, compile=watched(found))
    assert found == ["step"] * 3  # two of the flow


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1, 2, 3], [2]], ids=len)
def test_the_talker_says_the_same_with_the_same_seeds(talker, rows, graphs):  # noqa: F811
    prompts, seeds = [PROMPTS[row] for row in rows], [5 + row for row in rows]
    expected = talker.generate(prompts, generators(*seeds))
    compiled = talker.generate(prompts, generators(*seeds), compiled=CAPTURED)
    assert ids_of(compiled) == ids_of(expected)
    assert [piece.finish_reason for piece in compiled] == [piece.finish_reason for piece in expected]
    assert graphs() <= 2  # 4 rows, and those that are drawn again


def test_texts_of_all_lengths_share_the_graph_of_a_row(talker, graphs):  # noqa: F811
    for words in (1, 2, 5):
        prompt = replace(PROMPTS[0], text_ids=PROMPTS[0].text_ids[:1].repeat(words))
        talker.generate([prompt], generators(3), StopRules(max_new_ids=8), 1, compiled=CAPTURED)
    assert graphs() <= 1


def test_a_long_piece_moves_to_a_longer_cache(talker):  # noqa: F811
    rules = StopRules(min_new_ids=560, max_new_ids=560)  # beyond 512
    expected = talker.generate(PROMPTS[:1], generators(3), rules, 1)
    assert ids_of(talker.generate(PROMPTS[:1], generators(3), rules, 1, compiled=CAPTURED)) == ids_of(expected)


def test_generated_code_of_the_talker_says_the_same(talker):  # noqa: F811
    rules = StopRules(max_new_ids=30)
    expected = talker.generate(PROMPTS[:1], generators(3), rules, attempts=1)
    assert ids_of(talker.generate(PROMPTS[:1], generators(3), rules, 1, compiled=GENERATED)) == ids_of(expected)


class Collect(BaseStreamer):
    """Keeps what a streamer is given."""

    def __init__(self):
        self.given = []

    def put(self, value):
        self.given.append(value.tolist())

    def end(self):
        self.given.append("end")


class StopRow(StoppingCriteria):
    """Ends the second of three rows after five tokens."""

    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        assert len(input_ids) == 3
        return torch.tensor([False, input_ids.shape[1] >= self.length + 5, False])


def bar_best(input_ids, scores):
    """Bars the likeliest token of every row."""
    assert len(input_ids) == len(scores) == 3
    return scores.scatter(1, scores.argmax(dim=1, keepdim=True), -torch.inf)


def test_who_looks_at_a_padded_batch_sees_its_own_rows(small):
    inputs = batch(mixed_chats()[:3])
    results = []
    for compiled in (False, CAPTURED):
        streamer = Collect()
        options = {"streamer": streamer, "logits_processor": [bar_best]}
        criteria = StoppingCriteriaList([StopRow(inputs["input_ids"].shape[1])])
        reply = small.generate(**inputs, **GREEDY, **options, stopping_criteria=criteria, compile=compiled)
        results.append((reply.tolist(), streamer.given))
    assert results[0] == results[1]


def test_a_reply_with_its_cache_keeps_it(small):
    """The cache of a reply is not that of the next one."""
    inputs = batch([ONE["text"]])
    options = {**GREEDY, "return_dict_in_generate": True, "output_scores": True}
    plain = small.generate(**inputs, **options)
    first, again = (small.generate(**inputs, **options, compile=CAPTURED) for _ in range(2))
    assert torch.equal(first.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(first.scores), torch.stack(plain.scores), atol=1e-4, rtol=0)
    assert first.past_key_values is not again.past_key_values


def test_stops_and_settings_of_a_configuration_count(small):
    """Lengths and stops may come from a `GenerationConfig`, too."""
    inputs, settings = batch([ONE["text"]]), copy.deepcopy(small.generation_config)
    settings.update(max_length=60, do_sample=False, pad_token_id=25, eos_token_id=319)
    ours = small.generate(**inputs, generation_config=settings, compile=CAPTURED)
    assert torch.equal(ours, small.generate(**inputs, generation_config=settings))
    assert ours.shape[1] == 60


def test_a_copy_computes_with_its_own_weights(small):
    inputs = batch([ONE["text"]])
    before = small.generate(**inputs, **GREEDY, compile=CAPTURED)
    other = copy.deepcopy(small)
    with torch.no_grad():
        other.model.lm_head.weight.neg_()
    ours = other.generate(**inputs, **GREEDY, compile=CAPTURED)
    assert torch.equal(ours, other.generate(**inputs, **GREEDY)) and not torch.equal(ours, before)


def test_inference_mode_and_other_dtypes_have_caches_of_their_own(small):
    inputs = batch([ONE["text"]])
    expected = small.generate(**inputs, **GREEDY)
    with torch.inference_mode():
        assert torch.equal(small.generate(**inputs, **GREEDY, compile=CAPTURED), expected)
    assert torch.equal(small.generate(**inputs, **GREEDY, compile=CAPTURED), expected)
    half = copy.deepcopy(small).bfloat16()
    assert torch.equal(half.generate(**inputs, **GREEDY, compile=CAPTURED), half.generate(**inputs, **GREEDY))


def test_nan_in_a_padded_batch_names_its_layer():
    broken = tiny_model()
    with torch.no_grad():
        broken.model.model.layers[1].attention.dense.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"model\.model\.layers\.1\.attention\.dense"):
        broken.generate(**batch(mixed_chats()[:3]), **GREEDY, compile=CAPTURED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "num_beams=2 does not go with compile=True"),
        ({"use_cache": False}, "use_cache=False does not go"),
        ({"cache_implementation": "dynamic"}, "cache_implementation='dynamic' does not go"),
        ({"past_key_values": DynamicCache()}, "past_key_values=<DynamicCache> does not go"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3 does not go"),
        ({"compile": "yes"}, "compile='yes' must be True, False or a CompileConfig"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_compile_is_refused(small, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        small.generate(**batch([ONE["text"]]), **{**GREEDY, "compile": True, **options})


@pytest.mark.parametrize(
    "options", [{"quantization": "4bit", "device": "cpu"}, {"quantization": "8bit", "device": "cuda"}]
)
def test_quantised_models_are_refused_before_they_are_read(options):
    with pytest.raises(ValueError, match="compile: a quantised model"):
        load_model("no/such/model", compile=True, **options)


def test_experts_in_4_bit_that_are_dequantised_together_compile(tmp_path, graphs):
    """As on a GPU; one token and four at once take the two ways through the experts."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "head_dim": 32}
    tiny_model(4, llm_config={**sizes, "num_hidden_layers": 1, "num_experts": 4}).save_pretrained(tmp_path)
    own = BailingMMNativeForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=four_bit(torch.float32), device_map="cpu"
    ).eval()
    chats = batch([ONE["text"]]), batch([ONE["text"]] * 4)
    with pytest.raises(ValueError, match="compile: a quantised model whose experts are called one by one"):
        own.generate(**chats[0], **GREEDY, compile=CAPTURED)
    experts = own.get_decoder().layers[0].mlp.experts
    experts.stacked = True
    for inputs in chats:
        expected = own.generate(**inputs, **GREEDY)
        assert torch.equal(own.generate(**inputs, **GREEDY, compile=CAPTURED), expected)
    assert experts._stacks is not None and graphs() == 2


def test_the_option_of_the_command_line():
    parser = Parser("test", "")
    add_device_options(parser)
    assert load_options(parser.parse_args(["--compile", "--device", "cpu"])).load(ROOT).compile_decoding is True
    assert load_options(parser.parse_args(["--device", "cpu"])).load(ROOT).compile_decoding is False


@pytest.mark.parametrize("command", ["ask", "chat", "draw", "edit", "serve", "speak", "transcribe"])
def test_every_command_compiles_where_asked(command, capsys):
    with pytest.raises(SystemExit):
        run_command([command, "--help"])
    assert "--compile" in capsys.readouterr().out


DOORS = {
    "load_model": lambda: load_model(ROOT, device="cpu", compile=CAPTURED),
    "AutoModelForMultimodalLM": lambda: AutoModelForMultimodalLM.from_pretrained(ROOT, compile=CAPTURED).eval(),
    "EndpointHandler": lambda: EndpointHandler(str(ROOT), device="cpu", compile=CAPTURED).model,
}


@pytest.mark.parametrize("door", DOORS)
def test_a_model_that_is_loaded_to_compile_does(door, processor, graphs):
    inputs = asked(processor, ["What comes after three?"])
    loaded = DOORS[door]()
    assert torch.equal(
        loaded.generate(**inputs, max_new_tokens=3), loaded.generate(**inputs, max_new_tokens=3, compile=False)
    )
    assert graphs() == 1


@pytest.mark.parametrize("options", [{}, {"generation_mode": "image", "seed": 0, "num_inference_steps": 1}], ids=str)
def test_a_stream_that_is_told_to_compile_does(options, model, processor, graphs):
    inputs, own = asked(processor, ["What comes after three?"]), copy.deepcopy(model)  # whose graphs no other test has
    assert list(own.stream(**inputs, **options, max_new_tokens=3, compile=CAPTURED)) and graphs() == 1


def test_what_compile_cannot_be_is_refused_by_from_pretrained():
    with pytest.raises(TypeError, match="compile='yes' must be True, False or a CompileConfig"):
        BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, compile="yes")


def decoded(served, tokenizer, chats: list[dict], at_once: int) -> list[list]:
    """What chats of a server get, of which one more joins at each token."""
    sent: list[list] = [[] for _ in chats]
    batch = RunningBatch(served, tokenizer)
    jobs = [TextJob(got.append, chat, Sampling(temperature=0), 10) for got, chat in zip(sent, chats, strict=True)]
    while jobs or not batch.is_idle:
        if jobs and len(batch.rows) < at_once:
            batch.join(jobs.pop(0))
        batch.step()
    batch.close()
    return sent


def test_a_server_compiles_before_it_starts(processor, graphs, caplog, monkeypatch):
    """Chats that come and go run what was compiled, and are answered as without it."""
    monkeypatch.setattr(compiling, "SPOKEN_FRAMES", 96)
    served = tiny_model(3, llm_config={"num_hidden_layers": 1})
    each = [dict(batch([chat])) for chat in ONE.values()]
    plain = decoded(served, processor.tokenizer, each, at_once=1)
    served.compile_decoding = CAPTURED
    served.components.use(audio_detokenizer=tiny_detokenizer(**SMALLEST_VOCODER))
    with caplog.at_level(logging.INFO, "ming.serving.compiling"):
        compiling.compile_steps(served, batch=2, streams=2, new_tokens=100, drawings=4)
    assert caplog.messages[0] == "compiling text, 1 at once (1 of 9)"
    assert caplog.messages[13].startswith("compiled speech, 16 at once in ")
    assert caplog.messages[-1].startswith("compiled audio of 96 frames in ")
    compiled = graphs()
    assert compiled == 2 + 5 + 2 * 2  # flow and vocoder of 64 and 96 frames
    for chats in ([ONE["audio"]], [ONE["text"], ONE["image"]]):
        served.generate(**batch(chats), **{**GREEDY, "max_new_tokens": 100})
    voice = torch.zeros(served.talker.config.vp_feature_size)
    prompts = [replace(PROMPTS[1], speaker_embedding=voice)] * 3
    said = ids_of(served.talker.generate(prompts, generators(1, 2, 3), attempts=1, compiled=CAPTURED))
    speech = RunningSpeech(served.talker, CAPTURED)
    speech.start()
    speak = partial(served.talker.generate, prompts, attempts=1)
    with ThreadPoolExecutor(2) as pool:
        both = pool.map(speak, [generators(1, 2, 3) for _ in range(2)])
        assert [ids_of(pieces) for pieces in both] == [said, said]
    speech.close()
    for at_once in (1, 2):
        assert decoded(served, processor.tokenizer, each, at_once) == plain
    assert graphs() == compiled


def asked(processor, questions):
    """Chats of one question each, as inputs of the model."""
    chats = [[{"role": "user", "content": question}] for question in questions]
    return processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )


def test_a_conversation_moves_between_caches(model, processor, graphs):
    """Turns with and without compiled steps, one that fails, and a conversation that outgrows its cache."""
    own = copy.deepcopy(model)  # whose graphs no other test has
    plain, compiled = own.chat(processor, max_new_tokens=24), own.chat(processor, max_new_tokens=24)
    assert compiled.say(TURNS[0], compile=CAPTURED) == plain.say(TURNS[0])

    def fail(input_ids, scores):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiled.say(TURNS[1], compile=CAPTURED, stopping_criteria=[fail])
    assert compiled.say(TURNS[1], compile=CAPTURED) == plain.say(TURNS[1])
    assert compiled.say(TURNS[0]) == plain.say(TURNS[0])
    assert compiled.say(TURNS[1], compile=CAPTURED, max_new_tokens=300) == plain.say(TURNS[1], max_new_tokens=300)
    assert compiled.messages == plain.messages and graphs() == 2


def test_spoken_replies_say_the_same(model, processor, monkeypatch, graphs):
    """Three texts at once, padded to four; the setting of the model counts where a call says nothing."""
    inputs = asked(processor, ["What comes after three?", "What comes after five?", "Say red in Chinese."])
    options = {"generation_mode": "audio", "seed": 7, "max_new_tokens": 4, "talker_kwargs": {"attempts": 1}}
    expected = model.generate(**inputs, **options)
    monkeypatch.setattr(model, "compile_decoding", CAPTURED)
    ours = model.generate(**inputs, **options)
    assert graphs() >= 4  # text, talker, flow, vocoder
    assert ours.text == expected.text
    for waveform, wanted in zip(ours.waveforms, expected.waveforms, strict=True):
        torch.testing.assert_close(waveform, wanted, atol=1e-3, rtol=0)
    one = {name: value[:1] for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
    *events, done = model.stream(**one, **options)  # the text is written in a thread of its own
    assert done.text == expected.text[0]
    assert sum(len(event.waveform) for event in events if isinstance(event, AudioChunk)) == len(expected.waveforms[0])
