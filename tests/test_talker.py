"""The talker beyond the release: batches, caches, seeds, stop rules, retries, errors."""

from dataclasses import replace

import pytest
import torch

from ming.configuration_bailingmm import BailingMMTalkerConfig
from ming.modeling_talker import BailingMMTalker
from ming.talker_steps import NO_ID, SeededDraw, StopRules, TalkerPrompt, filter_logits, inverted

TEXT_VOCAB, AUDIO_VOCAB, WIDTH, THINKER_WIDTH, SPEAKER_WIDTH = 60, 40, 32, 24, 12


def tiny_talker_config(**fields) -> BailingMMTalkerConfig:
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    defaults = {
        "text_vocab_size": TEXT_VOCAB,
        "audio_vocab_size": AUDIO_VOCAB,
        "qa_model_hidden_size": THINKER_WIDTH,
        "vp_feature_size": SPEAKER_WIDTH,
    }
    return BailingMMTalkerConfig(llm_config=sizes, **{**defaults, **fields})


@pytest.fixture(scope="module")
def talker() -> BailingMMTalker:
    """Random weights, large enough that every input matters; ends pieces of itself now and then."""
    model = BailingMMTalker(tiny_talker_config())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return model.eval()


def prompt(seed: int, num_text: int = 5, num_prompt: int = 4, num_states: int = 0) -> TalkerPrompt:
    generator = torch.Generator().manual_seed(seed)
    return TalkerPrompt(
        torch.randint(0, TEXT_VOCAB - 12, (num_text,), generator=generator),
        torch.randint(0, AUDIO_VOCAB, (num_prompt,), generator=generator),
        torch.randn(SPEAKER_WIDTH, generator=generator),
        torch.randn(num_states, THINKER_WIDTH, generator=generator) if num_states else None,
    )


PROMPTS = [prompt(0), prompt(1, 9, 0), prompt(2, 1, 11, 3), prompt(3, 3, 2, 8)]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def ids_of(pieces) -> list[list[int]]:
    return [piece.codec_ids.tolist() for piece in pieces]


def test_a_batch_says_what_its_rows_say_alone(talker):
    together = talker.generate(PROMPTS, generators(5, 6, 7, 8))
    alone = [talker.generate([row], generators(seed))[0] for row, seed in zip(PROMPTS, (5, 6, 7, 8), strict=True)]
    assert ids_of(together) == ids_of(alone)
    assert [piece.finish_reason for piece in together] == [piece.finish_reason for piece in alone]
    assert len({len(ids) for ids in ids_of(together)}) > 1  # rows of different lengths, or nothing was shown


@pytest.fixture
def ahead(talker):
    talker.runs_ahead = True
    yield talker
    talker.runs_ahead = None


def test_a_step_ahead_of_the_host_says_the_same(ahead):
    """As on a GPU: rows end at different steps, are drawn again, and one more step than needed is computed."""
    calls = []
    ahead.step_callbacks.append(lambda: calls.append(1))
    said = ahead.generate(PROMPTS, generators(5, 6, 7, 8))
    steps = [list(ahead.stream(PROMPTS[:2], generators(1, 2), StopRules(max_new_ids=9)))]
    num_ahead, ahead.runs_ahead = len(calls), False
    expected = ahead.generate(PROMPTS, generators(5, 6, 7, 8))
    steps.append(list(ahead.stream(PROMPTS[:2], generators(1, 2), StopRules(max_new_ids=9))))
    ahead.step_callbacks.clear()
    assert ids_of(said) == ids_of(expected)
    assert [piece.finish_reason for piece in said] == [piece.finish_reason for piece in expected]
    ours, theirs = ([(step.codec_ids.tolist(), step.finish_reasons) for step in each] for each in steps)
    assert ours == theirs and num_ahead > len(calls) - num_ahead


def test_ids_are_drawn_as_often_as_their_probabilities_say():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.2, 0.3, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    draw, counts = SeededDraw(generators(1, 2)), torch.zeros(2, 6)
    for _ in range(2000):
        counts[range(2), draw(probabilities)] += 1
    torch.testing.assert_close(counts / 2000, probabilities, rtol=0, atol=0.04)
    assert torch.equal(counts > 0, probabilities > 0)
    ends = torch.tensor([0.0, 1 - 2**-53])
    assert inverted(probabilities[:1].expand(2, -1), ends.double()).tolist() == [1, 4]


def test_a_draw_takes_one_number_of_a_generator_and_none_of_its_neighbours():
    probabilities, (own, other) = torch.rand(2, 30).softmax(dim=-1), generators(3, 4)
    both, alone = SeededDraw([own, other]), SeededDraw(generators(3))
    for _ in range(150):
        assert both(probabilities)[0] == alone(probabilities[:1])
    (again,) = generators(3)
    SeededDraw([again])
    assert torch.equal(again.get_state(), own.get_state())


def test_nan_is_named_also_by_a_step_ahead_of_the_host(ahead):
    weight = ahead.model.lm_head.weight
    with torch.no_grad():
        kept = weight[TEXT_VOCAB].clone()
        weight[TEXT_VOCAB] = torch.nan
    try:
        for draws in (None, generators(1)):
            with pytest.raises(FloatingPointError, match="lm_head|probabilities of the talker"):
                ahead.generate(PROMPTS[:1], draws)
    finally:
        with torch.no_grad():
            weight[TEXT_VOCAB] = kept


def test_logits_of_a_padded_row_equal_those_alone(talker):
    def logits(rows):
        return talker(**talker.prepare_inputs(rows)).logits[:, -1]

    torch.testing.assert_close(logits(PROMPTS), torch.cat([logits([row]) for row in PROMPTS]), rtol=0, atol=1e-4)


def test_static_cache_says_the_same(talker):
    rules = StopRules(max_new_ids=30)
    dynamic = talker.generate(PROMPTS, generators(1, 2, 3, 4), rules)
    static = talker.generate(PROMPTS, generators(1, 2, 3, 4), rules, cache_implementation="static")
    assert ids_of(static) == ids_of(dynamic)


def test_reading_the_prompt_at_once_equals_reading_it_step_by_step(talker):
    row = prompt(4, 7, 6, 2)
    inputs = talker.prepare_inputs([row])
    at_once = talker(**inputs).logits[:, -1]
    prefix = inputs["audio_ids"].shape[1] - len(row.prompt_ids)
    media = {name: value for name, value in inputs.items() if name.startswith(("speaker", "thinker"))}
    first = {name: inputs[name][:, :prefix] for name in ("audio_ids", "text_ids", "position_ids", "attention_mask")}
    outputs = talker(**first, **media, use_cache=True)
    for place in range(prefix, inputs["audio_ids"].shape[1]):
        step = {name: inputs[name][:, place : place + 1] for name in ("audio_ids", "text_ids", "position_ids")}
        outputs = talker(**step, past_key_values=outputs.past_key_values, use_cache=True)
    torch.testing.assert_close(outputs.logits[:, -1], at_once, rtol=0, atol=1e-4)


def test_the_same_seed_says_the_same_and_leaves_the_global_state_alone(talker):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = ids_of(talker.generate(PROMPTS[:1], generators(9)))
    torch.rand(3)
    assert ids_of(talker.generate(PROMPTS[:1], generators(9))) == first
    assert ids_of(talker.generate(PROMPTS[:1], generators(10))) != first
    torch.set_rng_state(state)
    talker.generate(PROMPTS, generators(1, 2, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_only_codec_ids_and_the_end_can_be_drawn(talker):
    logits = torch.randn(3, TEXT_VOCAB + AUDIO_VOCAB)
    logits[:, :TEXT_VOCAB] += 100
    eos = talker.config.special_token_ids["<audio_eos>"]
    filtered = filter_logits(logits, 5, eos, torch.tensor([True, False, True]), TEXT_VOCAB)
    allowed = filtered.isfinite()
    assert allowed[:, TEXT_VOCAB:].sum(dim=-1).tolist() == [4, 4, 4]
    assert allowed[:, :TEXT_VOCAB].nonzero().tolist() == [[0, eos], [2, eos]]


def scripted(*ids: int):
    """A draw that says the given audio ids in turn, over and over."""
    said = []

    def draw(probabilities):
        said.append(ids[len(said) % len(ids)])
        return torch.tensor([said[-1]] * len(probabilities))

    return draw


@pytest.mark.parametrize("min_new_ids", [1, 4])
def test_the_end_is_barred_at_the_start_of_every_piece(talker, min_new_ids):
    eos = talker.config.special_token_ids["<audio_eos>"]

    def eager_to_end(probabilities):
        return torch.where(probabilities[:, eos] > 0, eos, probabilities.argmax(dim=-1))

    with torch.no_grad():
        bias = talker.model.lm_head.weight[eos].clone()
        talker.model.lm_head.weight[eos] = 0  # a middling logit: among the best 50 of all
    rules = StopRules(min_new_ids=min_new_ids)
    for row in PROMPTS:  # whatever the lengths of prefix and prompt
        *said, last = talker.stream([row], rules=rules, draw=eager_to_end, top_k=100)
        assert len(said) == min_new_ids and all(step.codec_ids.item() != NO_ID for step in said)
        assert last.codec_ids.item() == NO_ID and last.finish_reasons == ["stop"]
    with torch.no_grad():
        talker.model.lm_head.weight[eos] = bias


def test_the_config_says_how_ids_are_drawn_unless_a_call_does(talker):
    rules = StopRules(max_new_ids=12)
    likeliest = talker.generate(PROMPTS[:1], rules=rules)[0].codec_ids
    warm = talker.generate(PROMPTS[:1], generators(3), rules, attempts=1)[0].codec_ids
    assert warm.tolist() != likeliest.tolist()
    cold = BailingMMTalker(BailingMMTalkerConfig(**{**talker.config.to_dict(), "sampling_temperature": 1e-4})).eval()
    cold.load_state_dict(talker.state_dict())
    assert cold.generate(PROMPTS[:1], generators(3), rules, attempts=1)[0].codec_ids.tolist() == likeliest.tolist()
    again = cold.generate(PROMPTS[:1], generators(3), rules, attempts=1, temperature=1.0)[0].codec_ids
    assert again.tolist() == warm.tolist()


def test_a_runaway_is_cut_and_reported(talker):
    draw = scripted(TEXT_VOCAB + 3)
    piece = talker.generate([PROMPTS[0]], rules=StopRules(max_new_ids=17), draw=draw)[0]
    assert piece.codec_ids.tolist() == [3] * 17
    assert piece.finish_reason == "length"
    assert StopRules().limit(prompt(0, 5)) == 60 + 40 * 5


def test_empty_and_runaway_pieces_are_drawn_again(talker):
    eos = talker.config.special_token_ids["<audio_eos>"]
    audio = TEXT_VOCAB + 3
    rules = StopRules(min_new_ids=0, max_new_ids=2)
    # First attempt: empty. Second: runs away. Third: one id and the end.
    draw = scripted(eos, audio, audio, audio + 1, eos)
    piece = talker.generate([PROMPTS[0]], generators(0), rules, draw=draw)[0]
    assert (piece.codec_ids.tolist(), piece.finish_reason) == ([4], "stop")
    empty = talker.generate([PROMPTS[0]], generators(0), rules, draw=scripted(eos), attempts=2)[0]
    assert (empty.codec_ids.tolist(), empty.finish_reason) == ([], "empty")


def test_a_piece_is_drawn_three_times_in_all(talker):
    eos, drawn = talker.config.special_token_ids["<audio_eos>"], []

    def draw(probabilities):
        drawn.append(eos)
        return torch.tensor([eos])

    (piece,) = talker.generate([PROMPTS[0]], generators(0), StopRules(min_new_ids=0), draw=draw)
    assert (piece.finish_reason, len(drawn)) == ("empty", 3)


def test_defaults_are_the_released_ones():
    """Pieces hold as much as the release puts into them; Ming-Tiny's checkpoint asks for one sentence."""
    config = BailingMMTalkerConfig()
    assert (config.sampling_top_k, config.sampling_temperature) == (20, 1.0)
    assert (config.one_sentence_pieces, config.clause_units, config.max_prompt_seconds) == (False, None, 30.0)


@pytest.mark.parametrize("units", [0, -1, 2.5, True])
def test_a_bound_of_clauses_must_be_a_whole_number(units):
    with pytest.raises(ValueError, match="clause_units is .* give a whole number of at least 1"):
        BailingMMTalkerConfig(clause_units=units)


def test_pieces_that_lack_words_are_drawn_again(talker):
    """The voice says 4 text ids in 8 codec ids, so 10 text ids take about 20; 5 of them are a third of the text."""
    eos, audio = talker.config.special_token_ids["<audio_eos>"], TEXT_VOCAB + 3
    row = replace(prompt(0, 14, 8), num_prompt_text=4)
    assert row.expected_ids() == 20
    rules = StopRules(min_new_ids=0)
    early, right = [*[audio] * 5, eos], [*[audio] * 18, eos]
    piece = talker.generate([row], generators(0), rules, draw=scripted(*early, *right))[0]
    assert (len(piece.codec_ids), piece.finish_reason) == (18, "stop")
    piece = talker.generate([row], generators(0), rules, draw=scripted(*early, *early), attempts=2)[0]
    assert (len(piece.codec_ids), piece.finish_reason) == (5, "short")
    for judged in (replace(row, num_prompt_text=0), replace(prompt(0, 8, 8), num_prompt_text=4)):  # unknown; a word
        assert talker.generate([judged], generators(0), rules, draw=scripted(*early))[0].finish_reason == "stop"


def test_an_ended_row_yields_no_ids(talker):
    eos = talker.config.special_token_ids["<audio_eos>"]

    def first_row_ends(probabilities):
        return torch.tensor([eos, TEXT_VOCAB + 1])

    rules = StopRules(min_new_ids=0, max_new_ids=3)
    steps = [step.codec_ids.tolist() for step in talker.stream(PROMPTS[:2], rules=rules, draw=first_row_ends)]
    assert steps == [[NO_ID, 1]] * 3


def test_bfloat16_is_close(talker):
    expected = talker(**talker.prepare_inputs(PROMPTS[2:3])).logits
    half = BailingMMTalker(talker.config).eval()
    half.load_state_dict(talker.state_dict())
    half.to(torch.bfloat16)
    logits = half(**half.prepare_inputs(PROMPTS[2:3])).logits.float()
    assert torch.nn.functional.cosine_similarity(logits.flatten(), expected.flatten(), dim=0) > 0.999
    assert half.generate(PROMPTS, generators(1, 2, 3, 4))[0].codec_ids.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"generators": generators(1, 2)}, "2 generators for 1 prompts"),
        ({"top_k": 1}, "top_k must be at least 2"),
        ({"temperature": 0.0}, "temperature above 0, got 20 and 0.0"),
        ({"cache_implementation": "paged"}, "'paged'"),
        ({"prompts": [prompt(0, 0)]}, "at least one"),
        ({"prompts": [TalkerPrompt(torch.tensor([TEXT_VOCAB]), PROMPTS[0].prompt_ids, torch.zeros(12))]}, "below 60"),
        ({"prompts": [TalkerPrompt(torch.tensor([1]), torch.tensor([AUDIO_VOCAB]), torch.zeros(12))]}, "below 40"),
        ({"prompts": [TalkerPrompt(torch.tensor([1]), torch.tensor([1]), torch.zeros(1, 12))]}, r"shape \(12,\)"),
        (
            {"prompts": [TalkerPrompt(torch.tensor([1]), torch.tensor([1]), torch.zeros(12), torch.zeros(2, 3))]},
            r"\(n, 24\), got \(2, 3\)",
        ),
        ({"prompts": PROMPTS[:2], "rules": StopRules(released=True)}, "one piece at a time, got 2"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(talker, change, message):
    with pytest.raises(ValueError, match=message):
        talker.stream(**{"prompts": PROMPTS[:1], **change})


def test_config_refuses_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="vocab_size is 99"):
        tiny_talker_config(vocab_size=99)
    with pytest.raises(ValueError, match="special_token_ids lack"):
        tiny_talker_config(special_token_ids={"<vp>": 3})
    with pytest.raises(ValueError, match="vp_stride=2"):
        tiny_talker_config(vp_stride=2)
