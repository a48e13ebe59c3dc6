"""The benchmarks' arithmetic and command line; their numbers are for tables, never for tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from image_helpers import small_image_gen
from PIL import Image
from thinker_helpers import tiny_config

from benchmarks import (
    audio,
    gpu,
    gpu_calls,
    gpu_models,
    image,
    layers,
    load,
    load_test,
    moe,
    processor,
    released,
    report,
    server,
    speech,
    thinker,
    vision,
    vllm,
)
from benchmarks.__main__ import IN_VLLM, LONG, NAMES, run
from benchmarks.growth import Cost, plot, table
from benchmarks.timing import OUTSIDE, profiled, share_table
from ming.configuration_bailingmm import BailingMoeConfig

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"hidden_size": 64, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2}


def test_table_has_a_line_per_input():
    lines = table([Cost("vision", "224 x 224 px", 256, 12.3, 1.0), Cost("SANM", "10 s", 166, 4.0, 0.9)]).splitlines()
    assert len(lines) == 4 and lines[2] == "| vision | 224 x 224 px | 256 | 12 | 1.00 |"


def test_command_line_lists_the_benchmarks():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert all(name in result.stdout for name in (*NAMES, *IN_VLLM, *LONG, "all"))


def test_results_are_written_beside_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(moe, "TOKENS", (1, 8))
    monkeypatch.setattr(moe, "BailingMoeConfig", lambda: BailingMoeConfig(**SMALL))
    table = run("moe", tmp_path, {"device": "cpu", "dtype": "float32"})
    record = json.loads((tmp_path / "moe.json").read_text())
    assert record["options"] == {"device": "cpu", "dtype": "float32"} and record["machine"]["threads"] == 1
    assert len(record["costs"]) == len(table.splitlines()) - 2
    assert Image.open(tmp_path / "moe.png").getbbox()


def test_released_sizes_have_a_column_per_way_to_load():
    costs = [
        released.Cost(way, "weights (GiB), measured", value) for way, value in (("bfloat16", 2.0), ("4 bit", 1.0))
    ]
    assert released.table(costs).splitlines()[2] == "| weights (GiB), measured | 2.00 | 1.00 |"
    assert released.plot(costs).lines == {"bfloat16": (["measured"], [2.0]), "4 bit": (["measured"], [1.0])}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: tests/test_cuda.py measures it")
def test_released_sizes_need_a_gpu():
    with pytest.raises(RuntimeError, match="ming memory released"):
        released.measure()


def test_a_gpu_is_measured_in_one_go_as_tried_on_a_cpu(tmp_path):
    """Files after every measurement; what found no time says so, and nothing fails."""
    command = [sys.executable, "-m", "benchmarks", "gpu", "--device", "cpu", "--sizes", "tiny", "--backend", "eager"]
    result = subprocess.run(
        [*command, "--minutes", "0.6", "--output", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "gpu_tiny_cpu.md").read_text()
    assert table == result.stdout and Image.open(tmp_path / "gpu_tiny_cpu.png").getbbox()
    costs = [gpu.Cost(**cost) for cost in json.loads((tmp_path / "gpu_tiny_cpu.json").read_text())["costs"]]
    assert len(costs) == len(table.splitlines()) - 2 == len(gpu.tasks(gpu_models.WORK["tiny"]))
    assert {cost.note for cost in costs} <= {"", gpu.NO_TIME, gpu.APART}
    measured = [cost for cost in costs if not cost.note]
    assert len(measured) >= 3 and all(cost.value > 0 for cost in measured)
    assert all(cost.limit > 0 for cost in measured if cost.unit not in ("GB/s", "TFLOP/s"))


def test_a_gpu_without_time_left_is_not_measured():
    written = []
    costs = gpu.measure("cpu", sizes="tiny", minutes=0, after_each=lambda costs: written.append(len(costs)))
    assert {cost.note for cost in costs} == {gpu.NO_TIME} and written == list(range(1, len(costs) + 1))
    assert [cost.bar for cost in costs] == [None] * len(costs)  # for the released sizes alone
    bars = [task.bar for task in gpu.tasks(gpu_models.WORK["released"])[2:]]
    assert bars[:8] == [150, 0.15, 0.5, 60, 15_000, 120, 1.5, 1.5] and set(bars[8:]) == {None}


def test_a_measurement_that_fails_leaves_the_others(monkeypatch):
    def fail(bench):
        raise RuntimeError("out of memory\nof the device")

    monkeypatch.setattr(gpu_calls, "bandwidth", fail)
    monkeypatch.setattr(gpu, "_barred", lambda work: [])
    monkeypatch.setattr(gpu, "_further", lambda work: [])
    costs = gpu.measure("cpu", sizes="tiny", minutes=1)
    assert [bool(cost.value) for cost in costs] == [False, True]
    assert gpu.failures(costs) == ["copying, float32: failed: RuntimeError: out of memory"]


def test_figures_of_a_gpu_stand_beside_limits_and_bars():
    costs = [
        gpu.Cost("tokens written", "bfloat16", "tokens/s", 180.0, 600.0, 150, 38.0, 35.5, 60.0),
        gpu.Cost("an image", "bfloat16", "s", 2.0, 0.5, 1.5),
        gpu.Cost("talker", "bfloat16", "real-time factor", bar=0.15, note=gpu.NO_TIME),
    ]
    lines = gpu.table(costs).splitlines()[2:]
    assert lines[0] == (
        "| tokens written | bfloat16 | 180 | tokens/s | 600 | 0.30 | ≥ 150, held | 38.00 | 35.50 | 60 |"
    )
    assert lines[1].startswith("| an image | bfloat16 | 2 | s | 0.5 | 0.25 | ≤ 1.5, **missed** |")
    assert lines[2].startswith("| talker | bfloat16 | no time left | real-time factor |  |  | ≤ 0.15 |")
    assert gpu.plot(costs).lines == {"bfloat16": (["tokens written", "an image"], [0.3, 0.25])}
    assert gpu.record_name({}) == "gpu" and gpu.record_name({"device": "cuda", "sizes": "tiny"}) == "gpu_tiny_cuda"


def test_random_models_of_any_size_need_no_checkpoint():
    """In 4 bit the experts are modules whose weights take two numbers a byte, with their scales."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "head_dim": 32}
    config = tiny_config(llm_config={**sizes, "num_hidden_layers": 1, "num_experts": 4})
    whole, small = (gpu_models.random_model(config, "cpu", torch.bfloat16, in_4_bit) for in_4_bit in (False, True))
    counts = [sum(map(gpu_models.numbers, model.parameters())) for model in (whole, small)]
    assert counts[0] == counts[1] == whole.num_parameters()
    packed = small.get_decoder().layers[0].mlp.experts[3].down_proj.weight
    assert gpu_models.stored(packed) > packed.nbytes == 64 * 64 // 2
    used = layers.used_weights(whole.model, 10, torch.numel) / layers.used_weights(whole.model)
    assert 1 < used < 2


def test_versus_divides_by_the_same_input():
    costs = [report.Versus("a", "library", 4.0), report.Versus("a", "ours", 2.0)]
    costs += [report.Versus("b", "library", 3.0), report.Versus("b", "ours", 6.0)]
    lines = report.versus_table(costs, "library").splitlines()
    assert lines[3] == "| a | ours | 2.0 | 2.00 |" and lines[5] == "| b | ours | 6.0 | 0.50 |"
    assert report.versus_plot(costs, "library").lines == {"ours": (["a", "b"], [2.0, 0.5])}


def test_towers_agree():
    """What is compared computes the same, so that the times are of the same work."""
    sizes = {"hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 16, "depth": 2}
    towers = vision.towers("cpu", torch.float32, **sizes, fullatt_block_indexes=[1])
    pixels, grid = torch.randn(2 * 16**2, 1176), torch.tensor([[1, 16, 16]] * 2)
    with torch.no_grad():
        library, ours, quadratic = (tower(pixels, grid_thw=grid).pooler_output for tower in towers.values())
    torch.testing.assert_close(ours, library)
    assert not torch.allclose(ours, quadratic)


def test_the_processor_is_measured(monkeypatch):
    for name, value in (("REPEATS", 1), ("CHATS", 2), ("RECORDINGS", 1)):
        monkeypatch.setattr(processor, name, value)
    costs = processor.measure()
    assert [cost.implementation for cost in costs] == ["library", "one batch", "library", "SANM", "Whisper"]


def test_audio_is_measured(monkeypatch):
    monkeypatch.setattr(audio, "REPEATS", 1)
    costs = audio.measure(recordings=((1,),))
    assert {(cost.input, cost.implementation) for cost in costs} == {
        (f"{part}, 1 s", kind) for part in ("SANM", "Whisper") for kind in ("library", "ours")
    }


def test_drawing_draws_what_the_pipeline_draws():
    image_gen = small_image_gen(16)
    condition = torch.nn.functional.normalize(torch.randn(1, 9, 16), dim=-1)
    generators = [[torch.Generator().manual_seed(1)] for _ in range(2)]
    with torch.no_grad():
        captions = image_gen.mlp(condition)
        image_gen.mlp.forward = lambda condition: captions if condition.any() else torch.zeros_like(captions)
        (theirs,) = image.Library(image_gen)(captions, generators[0]).images
        (ours,) = image_gen.draw(condition, num_inference_steps=image.STEPS, generator=generators[1]).images
    assert list(ours.get_flattened_data()) == list(theirs.get_flattened_data())


def test_speech_table_shows_ratios():
    lines = speech.table([speech.Cost("red", 2.0, 4.0, 1.0, 5.0)]).splitlines()
    assert lines[2] == "| 3 | 2.0 | 0.25 | 1.25 | 2.50 |"


def test_several_people_are_measured(monkeypatch):
    small = {"LONG": 6, "NEW": 2, "TOGETHER": 2, "REPEATS": 1, "SPOKEN": "Red."}
    for name, value in small.items():
        monkeypatch.setattr(server, name, value)
    costs = server.measure()
    assert len(costs) == 6 and all(cost.ratio > 0 for cost in costs)
    assert len(server.table(costs).splitlines()) == 8 and len(server.plot(costs).lines["times of one run"][0]) == 6


def test_all_implementations_of_the_experts_are_measured_and_agree():
    costs = moe.measure(dtype=torch.bfloat16, **SMALL)
    names = {cost.implementation for cost in costs if cost.tokens == 1}
    assert names == {cost.implementation for cost in costs if cost.tokens == 8}
    assert len(names) == 8 and all(cost.milliseconds > 0 and cost.share > 0 for cost in costs)
    config = BailingMoeConfig(**SMALL)
    modules = moe.implementations(config, torch.float32, "cpu")
    states, (index, weights) = torch.randn(5, 64), moe.routes(5, config, "cpu")
    with torch.no_grad():
        ours, library, apart = (module(states, index, weights) for module in modules.values())
    torch.testing.assert_close(ours, library)
    torch.testing.assert_close(ours, apart)


def test_moe_table_sorts_by_time():
    costs = [moe.Cost("slow", 1, 2.0, 0.4), moe.Cost("quick", 1, 1.0, 0.8), moe.Cost("slow", 8, 3.0, 0.1)]
    lines = moe.table(costs).splitlines()[2:]
    assert lines == ["| 1 | quick | 1.00 | 0.80 |", "| 1 | slow | 2.00 | 0.40 |", "| 8 | slow | 3.00 | 0.10 |"]


def test_a_profile_tells_operators_from_python():
    def call():
        for _ in range(20):
            torch.randn(200, 200) @ torch.randn(200, 200)
        sum(range(300_000))

    shares = profiled(call)
    assert sum(item.share for item in shares) <= 1.01
    named = {item.operator: item for item in shares}
    assert named["aten::mm"].calls == 20 and named[OUTSIDE].share > 0.05
    assert share_table(shares).count("\n") == len(shares) + 1


def test_products_alone_are_those_of_the_experts_that_are_hit():
    costs = moe.measure(dtype=torch.bfloat16, **SMALL)
    assert {cost.tokens for cost in costs if cost.implementation == moe.PRODUCTS} == set(moe.TOKENS)


def test_layers_read_and_write_after_the_same_tokens_every_time():
    sizes = SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    costs = layers.measure(dtype=torch.float32, **sizes)
    assert {cost.tokens for cost in costs} == {1, layers.PROMPT} and len(costs) == 8
    config = BailingMoeConfig(**layers.UNLIKE_RELEASED | sizes)
    ours, library = layers.models(config, torch.float32, "cpu").values()
    heads, expert, router, norms = 4 + 2 + 2 + 4, 3 * 64 * 32, 8 * 64, 2 * 64
    per_layer = 64 * 16 * heads + (2 + 2) * expert + router + norms  # two experts of eight, two shared
    assert layers.used_weights(ours) == 4 * per_layer + 64
    assert library.layers[1].mlp.experts.down_proj is ours.layers[1].mlp.experts.down_proj
    lengths = []
    ours.register_forward_hook(lambda module, args, output: lengths.append(output.past_key_values.get_seq_length()))
    call = layers._call(ours, "eager", torch.randn(1, 10, 64), 2, 8)
    call(), call()
    assert lengths == [8, 10, 10]


def test_thinker_table_compares_with_library_and_batch_of_one():
    costs = [thinker.Cost("ours", 1, 30.0), thinker.Cost("library, Aria", 1, 20.0)]
    costs += [thinker.Cost("ours", 8, 120.0), thinker.Cost("library, Aria", 8, 60.0)]
    lines = thinker.table(costs).splitlines()[2:]
    assert lines[0] == "| ours | 1 | 30 | 1.50 | 1.00 |" and lines[2] == "| ours | 8 | 120 | 2.00 | 4.00 |"
    assert thinker.plot(costs).lines["ours"] == (["batch of 1", "batch of 8"], [1.5, 2.0])


def test_models_that_are_compared_have_the_same_work():
    """Aria has no modality routers beside the text's; everything else is as large as ours."""
    ours, aria, qwen = thinker.models("cpu", torch.float32).values()
    routers = sum(p.numel() for name, p in ours.named_parameters() if "image_gate" in name or "audio_gate" in name)
    assert ours.num_parameters() - routers == aria.num_parameters()
    shared = sum(p.numel() for name, p in ours.named_parameters() if "shared_experts" in name)
    assert abs(ours.num_parameters() - routers - shared - qwen.num_parameters()) < 2000  # norms of heads


def test_growth_plot_starts_at_one():
    lines = plot([Cost("SANM", "5 s", 83, 10.0, 1.0), Cost("SANM", "10 s", 166, 25.0, 1.25)]).lines
    assert lines == {"SANM": ([1.0, 2.0], [1.0, 2.5]), "linear": ([1, 2.0], [1, 2.0])}


def test_loading_is_measured():
    costs = {cost.name: cost.value for cost in load.measure(layers=1)}
    assert set(costs) == {"parameters (MB)", "loading / reading and casting", "peak memory / parameters"}
    assert costs["peak memory / parameters"] > 0.9


def answer(kind: str, outcome: str, seconds: float = 1.0) -> load_test.Answer:
    return load_test.Answer(kind, seconds, outcome)


def test_a_load_that_leaks_or_fails_is_said_to():
    grown = [load_test.Sample(index, 100.0 + max(index - 20, 0), 40 + (index > 90)) for index in range(100)]
    answers = [
        answer("text", load_test.ANSWERED),
        answer("text", load_test.FULL),
        answer("broken image", "failed (500)"),
    ]
    found = {item.condition.split()[0]: item for item in load_test.verdicts(answers, grown, 1.0, "Traceback")}
    assert found["memory"].measured == "+67.0%" and not found["memory"].holds
    assert found["open"].measured == "+2.5%" and found["open"].holds
    assert not any(found[word].holds for word in ("every", "no", "nothing"))
    assert [item.outcome for item in load_test.outcomes(answers)] == [
        load_test.ANSWERED, load_test.FULL, "unexpected: broken image: failed (500)",
    ]  # fmt: skip
    alone, under_load = [answer("text", load_test.ANSWERED, 2.0)], [answer("text", load_test.ANSWERED, 3.0)] * 19
    costs = load_test.kinds(alone, [*under_load, answer("text", load_test.ANSWERED, 8.0)])
    assert load_test.table(costs).splitlines()[2] == "| text | 20 | 2.00 | 1.5 | 4.0 |"
    lines = load_test.plot(grown).lines
    assert [values[30] for _, values in lines.values()] == pytest.approx([110 / 104.5, 1.0])


def test_a_server_under_load(tmp_path):
    """Every kind of request, alone and then from three clients at once, for a few seconds."""
    table = run("load_test", tmp_path, {"device": "cpu", "minutes": 0.05, "clients": 3, "repeats": 1})
    costs = json.loads((tmp_path / "load_test.json").read_text())["costs"]
    ended = {cost["outcome"]: cost["number"] for cost in costs if set(cost) == {"outcome", "number"}}
    assert set(ended) <= {load_test.ANSWERED, load_test.LEFT, load_test.REFUSED, load_test.FULL}, ended
    assert all(ended[outcome] for outcome in (load_test.ANSWERED, load_test.LEFT, load_test.REFUSED))
    held = {cost["condition"]: cost["holds"] for cost in costs if "condition" in cost}
    assert [holds for condition, holds in held.items() if "grow" not in condition] == [True] * 3, table
    assert sum(ended.values()) > len(load_test.requests()) and any(cost.get("memory", 0) > 50 for cost in costs)
    assert Image.open(tmp_path / "load_test.png").getbbox()


def test_ways_to_answer_are_compared_round_by_round():
    """That they do answer, `make test-vllm` shows."""
    costs = [vllm.Cost("one", vllm.ratio_of([2.0, 4.0, 9.0], [1.0, 4.0, 3.0]), 0.75)]
    assert vllm.table(costs).splitlines()[2] == "| one | 2.00 | 75 % |"
    assert vllm.plot(costs).lines == {"rounds of one run": (["one"], [2.0])}


def test_every_round_of_questions_has_images_of_its_own():
    rounds = [vllm.chats(6, seed) for seed in (1, 2)]
    urls = [
        item["image_url"]["url"]
        for chats in rounds
        for chat in chats
        for message in chat
        for item in message["content"]
        if item["type"] == "image_url"
    ]
    assert len(urls) == len(set(urls)) == 6 and all(url.startswith("data:image/png;base64,") for url in urls)
