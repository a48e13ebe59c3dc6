"""Arguments that cannot be used end in one error, which names the argument and says what is wanted.

The messages are written from what a user wants to read: the name that he wrote, what he gave, what to give instead.
Everything here is refused before a layer of the model runs.
"""

import numpy as np
import pytest
import torch
from thinker_helpers import Chat, batch
from transformers import DynamicCache, GenerationConfig, StaticCache, TextStreamer

IDS = torch.arange(30, 38)[None].repeat(2, 1)
VOCABULARY = 320
MASK = torch.ones_like(IDS)
QUANTISED = torch.quantize_per_tensor(IDS.float(), 1.0, 0, torch.quint8)
NO_VALUES = torch.tensor([])
WRONG = (ValueError, TypeError)

TENSORS = [  # argument, value, what the message says
    ("input_ids", 3, r"input_ids=3 must be a tensor \[B, L\] of integers"),
    ("input_ids", "hello", r"input_ids='hello' must be a tensor \[B, L\]"),
    ("input_ids", [[1, 2]], r"input_ids=.*must be a tensor \[B, L\] of integers"),
    ("input_ids", IDS.numpy(), r"input_ids=<ndarray of shape \(2, 8\) and dtype int64> must be a tensor"),
    ("input_ids", {"input_ids": IDS}, r"unpack the processor's output: generate\(\*\*inputs\)"),
    ("input_ids", IDS.float(), r"input_ids=<Tensor of shape \(2, 8\) and dtype torch.float32> .* of integers"),
    ("input_ids", IDS[0], r"input_ids=<Tensor of shape \(8,\) .* must be a tensor \[B, L\]"),
    ("input_ids", IDS[:, :0], r"input_ids=<Tensor of shape \(2, 0\) .* is empty"),
    ("input_ids", IDS.to_sparse(), "input_ids=.* is sparse, quantised, nested or on the meta device; pass a plain"),
    ("input_ids", IDS.to("meta"), "input_ids=.* is sparse, quantised, nested or on the meta device; pass a plain"),
    (
        "input_ids",
        torch.nested.nested_tensor([IDS[0], IDS[1, :3]]),
        "input_ids=<nested Tensor> is sparse, quantised, nested",
    ),
    ("input_ids", QUANTISED, "input_ids=.* is sparse, quantised, nested or on the meta device; pass a plain"),
    ("input_ids", IDS + VOCABULARY, "input_ids holds values from 350 to 357; only 0 to 319 are tokens of the model"),
    ("input_ids", -IDS, "input_ids holds values from -37 to -30; only 0 to 319 are tokens"),
    ("attention_mask", [[1] * 8] * 2, r"attention_mask=.*must be a tensor \[B, L\], 0 at padding"),
    ("attention_mask", MASK[:, 1:], r"attention_mask \(2, 7\) must have the shape of input_ids \(2, 8\)"),
    ("attention_mask", MASK[:1], r"attention_mask \(1, 8\) must have the shape of input_ids \(2, 8\)"),
    ("attention_mask", MASK[0], r"attention_mask=<Tensor of shape \(8,\)"),
    ("attention_mask", MASK * 1j, "attention_mask=.*complex64> must be"),
    ("attention_mask", MASK.to_sparse(), "attention_mask=.* is sparse"),
    ("attention_mask", MASK * 2, "attention_mask holds 2; it must be 1 where a token is and 0 at padding"),
    ("attention_mask", MASK * float("nan"), "attention_mask holds nan; it must be 1 where a token is"),
    ("attention_mask", -MASK.float(), "attention_mask holds -1.0; it must be 1 where a token is"),
    ("position_ids", -MASK, "position_ids holds values from -1 to -1; only 0 to .* are positions"),
    ("cache_position", torch.tensor([0.5]), r"cache_position=.* must be a tensor \[L\] of integers"),
    ("position_ids", 3, r"position_ids=3 must be a tensor \[B, L\] of integers"),
    ("position_ids", MASK[:, 1:], r"position_ids \(2, 7\) must have the shape of input_ids \(2, 8\)"),
    ("position_ids", MASK.float(), "position_ids=.*of integers"),
    ("mm_token_type_ids", MASK[:, 1:], r"mm_token_type_ids \(2, 7\) must have the shape of input_ids \(2, 8\)"),
    ("mm_token_type_ids", MASK.bool(), r"mm_token_type_ids=.*0 text, 1 image, 2 video, 3 audio of integers"),
    ("mm_token_type_ids", MASK * 4, "mm_token_type_ids holds values from 4 to 4; only 0 to 3 are types"),
    ("past_key_values", 3, "past_key_values=3 must be a cache of transformers, such as DynamicCache"),
    ("past_key_values", ((1, 2),), "past_key_values=.* must be a cache of transformers"),
    ("prompt_states", 3, "prompt_states=3 must be PromptStates"),
    ("use_cache", NO_VALUES, r"use_cache=<Tensor of shape \(0,\) .* must be True or False"),
    ("use_cache", "no", "use_cache='no' must be True or False"),
    ("output_hidden_states", "all", "output_hidden_states='all' must be True or False"),
    ("output_hidden_states", [0, 1.5], "output_hidden_states=1.5 must be a whole number"),
]


@pytest.mark.parametrize("call", ["forward", "generate", "stream", "draw"])
@pytest.mark.parametrize(("name", "value", "message"), TENSORS)
def test_tensors_of_a_prompt(tiny, monkeypatch, call, name, value, message):
    monkeypatch.setattr(tiny, "embed", lambda **inputs: pytest.fail("work began"))
    inputs = {"input_ids": IDS, "attention_mask": MASK, name: value}
    calls = {
        "forward": lambda: tiny(**inputs),
        "generate": lambda: tiny.generate(**inputs, max_new_tokens=2),
        "stream": lambda: tiny.stream(**inputs, max_new_tokens=2),
        "draw": lambda: tiny.generate(**inputs, generation_mode="image"),
    }
    with pytest.raises(WRONG, match=message):
        calls[call]()


def test_embeddings_of_another_kind(tiny):
    with pytest.raises(ValueError, match=r"inputs_embeds=<Tensor of shape \(2, 8, 5\).* must be a tensor .*64\]"):
        tiny.generate(inputs_embeds=torch.zeros(2, 8, 5), max_new_tokens=1)
    with pytest.raises(ValueError, match="inputs_embeds=.*int64> must be a tensor .* of floats"):
        tiny(inputs_embeds=torch.zeros(2, 8, 64, dtype=torch.long))
    with pytest.raises(ValueError, match="needs input_ids or inputs_embeds, got neither"):
        tiny(attention_mask=MASK)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (IDS + VOCABULARY, "labels holds values from 350 to 357; only 0 to 319 are tokens of the model, or -100"),
        (-IDS, "labels holds values from -37 to -30"),
        (IDS[:, 1:], r"labels \(2, 7\) must have the shape of input_ids \(2, 8\)"),
        (IDS.float(), "labels=.*of integers"),
    ],
)
def test_labels(tiny, labels, message):
    with pytest.raises(ValueError, match=message):
        tiny(IDS, labels=labels)
    ignored = IDS.masked_fill(IDS == 30, -100)
    assert tiny(IDS, labels=ignored).loss.isfinite()


@pytest.mark.parametrize("value", ["x", -1, 1.5, torch.ones(2)])
def test_logits_to_keep(tiny, value):
    with pytest.raises(TypeError, match="logits_to_keep=.* must be a whole number of at least 0, or a tensor of pos"):
        tiny(IDS, logits_to_keep=value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pixel_values", 3, r"pixel_values=3 must be a tensor \[P, 1176\]"),
        ("pixel_values", torch.zeros(0, 1176), "pixel_values=.* is empty"),
        ("image_grid_thw", 3, r"image_grid_thw=3 must be a tensor \[N, 3\]"),
        ("image_grid_thw", torch.tensor([[1.0, 4.0, 4.0]]), "image_grid_thw=.*float32> must be .* of integers"),
        ("image_grid_thw", torch.tensor([[-1, -4, 4]]), r"multiples of 2 patches, got \[\[-1, -4, 4\]\]"),
        ("image_grid_thw", torch.tensor([[4, 4]]), r"\[N, 3\] .* got \[\[4, 4\]\]"),
        ("audio_feats", "x", r"audio_feats='x' must be a tensor \[B, frames, width\]"),
        ("audio_feats_lengths", torch.tensor([[True]]), "audio_feats_lengths must be counts of frames, got"),
        ("audio_feats_lengths", [9], "audio_feats_lengths=.* must be a tensor"),
        ("use_whisper_encoder", NO_VALUES, "use_whisper_encoder=.* must be True or False"),
        ("use_whisper_encoder", 3, "use_whisper_encoder=3 must be True or False"),
    ],
)
@pytest.mark.parametrize("call", ["forward", "generate"])
def test_media(tiny, call, name, value, message):
    inputs = {**batch([Chat(1).text(3).image(1, 4, 4).text(2).audio(9)]), name: value}
    with pytest.raises(WRONG, match=message):
        tiny(**inputs) if call == "forward" else tiny.generate(**inputs, max_new_tokens=1)


def test_features_that_are_missing(tiny):
    with pytest.raises(ValueError, match=r"pixel_values are missing; image_grid_thw says .* shape \(16, 1176\)"):
        tiny.get_image_features(None, torch.tensor([[1, 4, 4]]))
    with pytest.raises(ValueError, match="audio_feats must be .* got None and None"):
        tiny.get_audio_features(None, None)
    inputs = batch([Chat(1).text(3).image(1, 4, 4)])
    del inputs["input_ids"]
    with pytest.raises(
        ValueError, match="media need the prompt that they belong to: pass input_ids, or inputs_embeds"
    ):
        tiny.generate(**inputs)
    with pytest.raises(ValueError, match="stream needs input_ids"):
        tiny.stream(**inputs)


def test_a_cache_of_other_chats(tiny):
    cache = DynamicCache(config=tiny.config.get_text_config())
    tiny(IDS, past_key_values=cache, use_cache=True)
    with pytest.raises(
        ValueError, match=r"past_key_values hold 2 row\(s\), but the inputs have 1; use a cache of these"
    ):
        tiny(IDS[:1], past_key_values=cache, use_cache=True)


def test_audio_positions_of_another_shape(tiny):
    inputs = batch([Chat(1).text(3).audio(9)])
    del inputs["mm_token_type_ids"]
    with pytest.raises(ValueError, match=r"audio_placeholder_loc_lens \(1, 1, 3\) must be \[B, N, 2\]"):
        tiny(**inputs, audio_placeholder_loc_lens=torch.zeros(1, 1, 3, dtype=torch.long))


SETTINGS = [
    ("streamer", 3, r"streamer=3 must be a streamer with put\(\) and end\(\), such as TextStreamer"),
    ("generation_config", {"top_k": 3}, "generation_config=.* must be a GenerationConfig"),
    ("logits_processor", 3, "logits_processor=3 must be a LogitsProcessorList, or a list of functions"),
    ("stopping_criteria", [3], r"stopping_criteria=\[3\] must be a StoppingCriteriaList, or a list of functions"),
    ("assistant_model", "small", "assistant_model='small' must be a model to guess tokens with"),
    ("prefix_allowed_tokens_fn", 3, "prefix_allowed_tokens_fn=3 must be a function"),
    ("watermarking_config", 3, "watermarking_config=3 must be a WatermarkingConfig"),
    ("watermarking_config", {"ratio": 0.3}, "watermarking_config has no 'ratio'; it takes greenlist_ratio, bias"),
    (
        "watermarking_config",
        {"greenlist_ratio": "a"},
        r"watermarking_config\['greenlist_ratio'\]='a' must be a finite",
    ),
    ("watermarking_config", {"hashing_key": 1.5}, r"watermarking_config\['hashing_key'\]=1.5 must be a whole number"),
    ("cache_implementation", "offloaded", "cache_implementation='offloaded' moves keys and values .*; leave it out"),
    (
        "cache_implementation",
        "offloaded_static",
        "cache_implementation='offloaded_static' moves keys .*leave it",
    ),
    ("talker_kwargs", 3, "talker_kwargs=3 must be a dict"),
    ("generation_mode", 3, "generation_mode=3 must be one of text, audio, image"),
    ("generation_mode", [], r"generation_mode=\[\] is empty; it must hold: text, audio, image"),
    ("generation_mode", "", "generation_mode='' is not available; this model answers in: text, audio, image"),
    ("early_stopping", {}, "early_stopping=<dict of length 0> must be True, False or 'never'"),
    ("suppress_tokens", 1, "suppress_tokens=1 must be a list of token ids"),
    ("do_sample", NO_VALUES, "do_sample=.* must be True or False"),
    ("max_new_tokens", "many", "max_new_tokens='many' must be a whole number of at least 1"),
    ("max_new_tokens", 10**30, "max_new_tokens=<an integer of 100 bits> must be a whole number"),
    ("num_beams", 0, "num_beams=0 must be a whole number of at least 1"),
    ("num_return_sequences", "x", "num_return_sequences='x' must be a whole number of at least 1"),
    ("temperature", float("nan"), "temperature=nan must be a finite number of at least 0"),
    ("temperature", 1e-40, "temperature=1e-40 must be at least 0.0001; 0 or do_sample=False takes the likeliest"),
    ("repetition_penalty", 1e-40, "repetition_penalty=1e-40 must be a finite number of at least 0.0001"),
    ("encoder_repetition_penalty", 0, "encoder_repetition_penalty=0 must be a finite number of at least 0.0001"),
    ("top_p", "x", "top_p='x' must be a finite number of at least 0"),
    ("eos_token_id", "</s>", "eos_token_id='</s>' must be a whole number"),
    ("eos_token_id", [1, "x"], "eos_token_id='x' must be a whole number"),
    ("pad_token_id", [1, 2], r"pad_token_id=\[1, 2\] must be one whole number"),
    ("pad_token_id", VOCABULARY, "pad_token_id=320 is no token of the model, which has 320"),
    ("length_penalty", 1000.0, "length_penalty=1000.0 must be from -8 to 8; 1 is none, more favours long replies"),
    ("exponential_decay_length_penalty", 3, r"penalty=3 must be \(tokens before it, factor per token\)"),
    ("exponential_decay_length_penalty", [1], r"penalty=\[1\] must be \(tokens before it, factor per token\)"),
    ("exponential_decay_length_penalty", (1, 1e17), r"length_penalty\[1\]=1e\+17 must be at most 100"),
    ("exponential_decay_length_penalty", (1, float("nan")), r"length_penalty\[1\]=nan must be a finite number"),
    ("sequence_bias", [1], r"sequence_bias=\[1\] must be a dict such as"),
    ("sequence_bias", {(1,): float("nan")}, r"sequence_bias of \[1\]=nan must be a finite number"),
    ("num_beam_groups", "x", "num_beam_groups='x' must be a whole number of at least 1"),
    ("encoder_no_repeat_ngram_size", "x", "encoder_no_repeat_ngram_size='x' must be a whole number of at least 0"),
    ("forced_eos_token_id", VOCABULARY, "forced_eos_token_id=320 is no token of the model, which has 320"),
    ("forced_bos_token_id", -1, "forced_bos_token_id=-1 is no token of the model, which has 320"),
    ("pad_token_id", -5, "pad_token_id=-5 is no token of the model, which has 320"),
    ("bos_token_id", 10**7, "bos_token_id=10000000 is no token of the model"),
    ("eos_token_id", 10**7, "eos_token_id=10000000 is no token of the model"),
    ("eos_token_id", [3, VOCABULARY], r"eos_token_id=\[3, 320\] is no token of the model"),
    ("eos_token_id", torch.tensor([VOCABULARY]), "eos_token_id=.* is no token of the model"),
    ("suppress_tokens", [10**7], r"suppress_tokens=\[10000000\] is no token of the model"),
    ("begin_suppress_tokens", [-3], r"begin_suppress_tokens=\[-3\] is no token of the model"),
    ("assistant_early_exit", 1, "assistant_early_exit=1: this model cannot guess with its first layers"),
    ("custom_generate", "user/repo", "custom_generate='user/repo' runs the code of that repository; pass trust_"),
    ("seed", 3, "seed: only generation_mode='audio' or 'image' takes it"),
]


@pytest.mark.parametrize("call", ["generate", "stream"])
@pytest.mark.parametrize(("name", "value", "message"), SETTINGS)
def test_settings(tiny, monkeypatch, call, name, value, message):
    monkeypatch.setattr(tiny, "forward", lambda **inputs: pytest.fail("work began"))
    with pytest.raises(WRONG, match=message):
        getattr(tiny, call)(IDS[:1], **{"max_new_tokens": 2, name: value})


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        ([3, 10**7], r"prefix_allowed_tokens_fn=\[3, 10000000\] is no token of the model, which has 320"),
        (torch.tensor([VOCABULARY]), "prefix_allowed_tokens_fn=.* is no token of the model, which has 320"),
        ([-1], "prefix_allowed_tokens_fn holds -1, which is no token id"),
        (["three"], "prefix_allowed_tokens_fn='three' must be token ids"),
        (None, "prefix_allowed_tokens_fn=None must be token ids"),
    ],
)
def test_what_a_function_allows_are_tokens(tiny, allowed, message):
    with pytest.raises(WRONG, match=message):
        tiny.generate(IDS[:1], max_new_tokens=1, prefix_allowed_tokens_fn=lambda row, ids: allowed)
    reply = tiny.generate(IDS[:1], max_new_tokens=1, prefix_allowed_tokens_fn=lambda row, ids: torch.tensor([7]))
    assert reply[0, -1] == 7


@pytest.mark.parametrize("scale", [1.0, 3e4])
def test_the_lowest_numbers_are_drawn_with(tiny, monkeypatch, scale):
    """Also from logits as large as half precision has them; whole numbers are numbers."""
    head = tiny.get_output_embeddings().weight
    monkeypatch.setattr(head, "data", head.data * scale / tiny(IDS).logits.abs().max().item())
    for options in ({"temperature": 1e-4}, {"temperature": 2}, {"repetition_penalty": 1e-4, "temperature": 1e-4}):
        reply = tiny.generate(IDS, max_new_tokens=3, do_sample=True, eos_token_id=-1, pad_token_id=0, **options)
        assert reply.shape == (2, 11)
    greedy = tiny.generate(IDS, max_new_tokens=3, repetition_penalty=2, eos_token_id=-1, pad_token_id=0)
    assert greedy.shape == (2, 11)


@pytest.mark.parametrize("name", ["repetition_penalty", "encoder_repetition_penalty", "length_penalty"])
def test_whole_numbers_are_numbers_within_a_generation_config(tiny, name):
    ends = {"max_new_tokens": 3, "num_beams": 2, "eos_token_id": -1, "pad_token_id": 0}
    config = GenerationConfig(**ends, **{name: 2})
    replies = tiny.generate(IDS, generation_config=config), tiny.generate(IDS, **ends, **{name: 2})
    assert torch.equal(*replies) and type(getattr(config, name)) is int


def something(model, input_ids, **kwargs):
    return "four"


def test_a_function_of_ones_own_answers_in_text_alone(model, monkeypatch):
    """What it returns is returned; a stream of it would be empty, and speech lack the states of the prompt."""
    assert model.generate(IDS[:1], custom_generate=something) == "four"
    monkeypatch.setattr(model, "embed", lambda *inputs, **media: pytest.fail("work began"))
    with pytest.raises(ValueError, match="custom_generate=something: stream gives a reply as it grows; use generate"):
        model.stream(IDS[:1], custom_generate=something)
    for mode in ("audio", "image"):
        with pytest.raises(ValueError, match="custom_generate=something: speech and images need .*; answer in text"):
            model.generate(IDS[:1], generation_mode=mode, custom_generate=something)


@pytest.mark.parametrize("penalty", [-8, 8])
def test_the_largest_length_penalties_are_taken(tiny, penalty):
    reply = tiny.generate(IDS, max_new_tokens=3, num_beams=2, length_penalty=penalty, eos_token_id=-1, pad_token_id=0)
    assert reply.shape == (2, 11)


@pytest.mark.parametrize("name", ["prefill_chunk_size", "prompt_lookup_num_tokens"])
def test_what_needs_token_ids_beside_embeddings(tiny, name):
    embeds = tiny.get_input_embeddings()(IDS[:1]).detach()
    options = {"max_new_tokens": 3, "eos_token_id": -1, "pad_token_id": 0}
    with pytest.raises(ValueError, match=f"{name}=4 needs the token ids of the prompt; pass input_ids beside"):
        tiny.generate(inputs_embeds=embeds, **options, **{name: 4})
    both = tiny.generate(IDS[:1], inputs_embeds=embeds, **options, **{name: 4})
    assert torch.equal(both, tiny.generate(IDS[:1], **options))


def test_settings_within_a_generation_config(tiny):
    with pytest.raises(ValueError, match="temperature=1e-40 must be at least 0.0001"):
        tiny.generate(IDS, generation_config=GenerationConfig(temperature=1e-40, do_sample=True))
    with pytest.raises(ValueError, match="num_beams='x' must be a whole number of at least 1"):
        tiny.generate(IDS, generation_config=GenerationConfig(num_beams="x"))
    with pytest.raises(ValueError, match="inputs and input_ids are two names of one argument"):
        tiny.generate(IDS, input_ids=IDS)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_beams", -1, "num_beams=-1 must be a whole number of at least 1"),
        ("temperature", "x", "temperature='x' must be a finite number"),
        ("pad_token_id", "x", "pad_token_id='x' must be a whole number"),
        ("do_sample", "no", "do_sample='no' must be True or False"),
    ],
)
def test_settings_of_the_models_own_generation_config(tiny, monkeypatch, name, value, message):
    monkeypatch.setattr(tiny.generation_config, name, value)
    with pytest.raises((TypeError, ValueError), match=message):
        tiny.generate(IDS, max_new_tokens=2)


# What is usual goes on working.


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_caches_go_on_in_generate_and_in_forward(tiny, kind):
    """A conversation goes on over a cache with ids and mask of all tokens, step by step with a mask of all tokens."""
    text = tiny.config.get_text_config()

    def cache():
        return kind(config=text, max_cache_len=32) if kind is StaticCache else kind(config=text)

    options = {"max_new_tokens": 4, "eos_token_id": -1, "pad_token_id": 0}
    expected = tiny.generate(IDS, attention_mask=MASK, **options)
    used = cache()
    first = tiny.generate(IDS, attention_mask=MASK, past_key_values=used, **{**options, "max_new_tokens": 2})
    mask = torch.ones_like(first)
    rest = tiny.generate(first, attention_mask=mask, past_key_values=used, **{**options, "max_new_tokens": 2})
    assert torch.equal(rest, expected)
    used = cache()
    logits = tiny(IDS, attention_mask=MASK, past_key_values=used, use_cache=True).logits
    assert torch.equal(logits[:, -1].argmax(-1), expected[:, 8])
    mask = torch.ones(2, 9, dtype=torch.long)
    logits = tiny(expected[:, 8:9], attention_mask=mask, past_key_values=used, use_cache=True).logits
    assert torch.equal(logits[:, -1].argmax(-1), expected[:, 9])


def test_usual_kinds_of_arguments_are_taken(tiny):
    options = {"max_new_tokens": np.int64(3), "eos_token_id": [-1], "pad_token_id": 0}
    expected = tiny.generate(IDS, **options)
    assert torch.equal(tiny.generate(IDS.int(), attention_mask=MASK.bool(), **options), expected)
    assert torch.equal(
        tiny.generate(IDS, attention_mask=MASK.float(), position_ids=(MASK.cumsum(1) - 1), **options), expected
    )
    embeds = tiny.get_input_embeddings()(IDS)
    assert torch.equal(tiny.generate(inputs_embeds=embeds, **options), expected[:, 8:])
    assert torch.equal(tiny.generate(IDS, inputs_embeds=embeds, **options), expected)
    assert torch.equal(tiny.generate(IDS, num_beams=None, num_return_sequences=None, **options), expected)
    beams = tiny.generate(IDS, num_beams=2, num_return_sequences=2, early_stopping="never", **options)
    assert beams.shape == (4, 11)
    never = lambda ids, scores, **kwargs: torch.zeros(len(ids), dtype=torch.bool)  # noqa: E731
    assert torch.equal(tiny.generate(IDS, stopping_criteria=[never], do_sample=np.bool_(False), **options), expected)
    guessed = tiny.generate(IDS[:1], assistant_model=tiny, **options)
    assert torch.equal(guessed, expected[:1])


@pytest.mark.parametrize(("rows", "named"), [([[0], [0]], r"\[0, 1\]"), ([[1], [0]], r"\[1\]")])
def test_prompts_that_a_mask_hides(tiny, rows, named):
    """Part of a prompt may be padding alone: `forward` takes it."""
    mask = MASK * torch.tensor(rows)
    with pytest.raises(ValueError, match=rf"attention_mask hides all of row\(s\) {named}; leave them out"):
        tiny.generate(IDS, attention_mask=mask, max_new_tokens=1)
    assert tiny(IDS, attention_mask=mask).logits.isfinite().all()


def test_values_are_read_once_and_not_while_compiling(tiny, monkeypatch):
    """At every step of decoding a GPU would have to wait for them; a graph cannot hold the comparison."""
    seen = []
    original = torch.Tensor.aminmax
    monkeypatch.setattr(torch.Tensor, "aminmax", lambda tensor: seen.append(tensor.shape) or original(tensor))
    tiny.generate(IDS, max_new_tokens=6, eos_token_id=-1, pad_token_id=0)
    assert seen.count((2, 8)) == len(seen) <= 3  # the ids twice, in generate and forward, and the positions
    step = torch.compile(tiny, backend="eager", fullgraph=True)
    seen.clear()
    assert step(IDS, use_cache=False).logits.shape == (2, 8, VOCABULARY) and not seen


# Ming-Tiny: speech, drawings, chats, decoding, continuous batching


SPEECH = [
    ("text", 3, "text=3 must be a text"),
    ("text", None, "text=None must be a text"),
    ("speaker", [], r"unknown speaker \[\]; available are: "),
    ("seed", "x", "seed='x' must be a whole number"),
    ("seed", 2**64, "seed=<an integer of 65 bits> must be a whole number of 64 bits"),
    ("generator", 3, "generator=3 must be a torch.Generator, or a list of one per row"),
    ("generator", [3], r"generator=\[3\] must be a torch.Generator, or a list of one per row"),
    ("thinker_states", [torch.zeros(2, 3)], r"thinker_states=.* must be a list of 1 tensor\(s\) \[n, 192\] of floats"),
    ("prompt_text", NO_VALUES, "prompt_text=.* must be the words of prompt_audio, a text"),
    ("top_k", "x", "top_k='x' must be a whole number"),
    ("temperature", float("inf"), "temperature=inf must be a finite number"),
    ("temperature", 1e-40, "temperature=1e-40 must be a finite number of at least 0.0001"),
    ("rules", 3, "rules=3 must be StopRules"),
    (
        "max_new_tokens",
        3,
        "max_new_tokens=3: speech does not take it; it takes seed, generator, speaker, prompt_audio",
    ),
    ("compiled", True, "compiled=True: speech does not take it"),
    ("cache_implementation", NO_VALUES, "cache_implementation must be 'dynamic' or 'static', got <Tensor"),
]


@pytest.mark.parametrize("call", ["speak", "speak_stream"])
@pytest.mark.parametrize(("name", "value", "message"), SPEECH)
def test_speech(model, monkeypatch, call, name, value, message):
    monkeypatch.setattr(model.talker, "forward", lambda **inputs: pytest.fail("work began"))
    with pytest.raises(WRONG, match=message):
        getattr(model, call)(**{"text": "red", name: value})


@pytest.mark.parametrize("call", ["speak", "generate", "both"])
@pytest.mark.parametrize(
    "refused",
    [{"speaker": "bob"}, {"speaker": "iris", "prompt_audio": "x"}, {"prompt_text": "x"}, {"no_such": 1}],
)
def test_a_refused_call_draws_nothing(model, call, refused):
    """A caller who corrects his call and repeats it hears what he would have heard at once."""
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    modes = {"generate": "audio", "both": ["audio", "image"]}
    with pytest.raises(WRONG):
        if call == "speak":
            model.speak("red", generator=generator, **refused)
        else:
            model.generate(IDS[:1], generator=generator, generation_mode=modes[call], **refused)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("refused", [{"height": 3}, {"num_images_per_prompt": 0}, {"image_sizes": IDS[:1, :2]}])
@pytest.mark.parametrize("modes", ["image", ["audio", "image"]])
def test_a_refused_drawing_draws_nothing(model, modes, refused):
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    with pytest.raises(ValueError, match=next(iter(refused))):
        model.generate(IDS[:1], generator=generator, generation_mode=modes, **refused)
    assert torch.equal(generator.get_state(), before)


def test_options_that_were_left_out(model):
    """None is what an option is that was not given, in every call."""
    options = dict.fromkeys(("top_k", "temperature", "rules", "attempts", "cache_implementation", "compile"))
    assert torch.equal(model.speak("red", seed=1, **options).waveforms[0], model.speak("red", seed=1).waveforms[0])
    options = dict.fromkeys((*(name for name, *_ in DRAWING if name != "seed"), "compile", "num_return_sequences"))
    drawn = model.generate(IDS[:1], generation_mode="image", seed=1, **options | {"num_inference_steps": 1})
    plain = model.generate(IDS[:1], generation_mode="image", seed=1, num_inference_steps=1)
    assert [image.tobytes() for image in drawn.images] == [image.tobytes() for image in plain.images]
    text = {"seed": None, "speaker": None, "height": None, "max_new_tokens": 2}
    assert torch.equal(model.generate(IDS[:1], **text), model.generate(IDS[:1], max_new_tokens=2))


def test_compiled_speech_has_one_cache(model):
    with pytest.raises(ValueError, match="cache_implementation='dynamic' does not go with compile=True"):
        model.speak("red", compile=True, cache_implementation="dynamic")


CONTRADICTIONS = [
    (
        {"speaker": "iris", "talker_kwargs": {"speaker": "oscar"}},
        r"speaker='iris' and talker_kwargs\['speaker'\]='oscar'",
    ),
    ({"seed": 0, "talker_kwargs": {"seed": 1}}, r"seed=0 and talker_kwargs\['seed'\]=1"),
    ({"compile": True, "talker_kwargs": {"compile": False}}, r"compile=True and talker_kwargs\['compile'\]=False"),
    ({"compile": False, "talker_kwargs": {"compile": True}}, r"compile=False and talker_kwargs\['compile'\]=True"),
    ({"seed": 0, "talker_kwargs": {"generator": torch.Generator()}}, "either seed or generator"),
    ({"image_gen": True, "image_gen_seed": 0, "seed": 5}, "seed=5 and image_gen_seed=0 contradict"),
    ({"image_gen": True, "image_gen_height": 64, "height": 128}, "height=128 and image_gen_height=64 contradict"),
    ({"image_gen": True, "generation_mode": "text"}, "image_gen=True and generation_mode='text' contradict"),
    ({"generation_mode": "image", "num_return_sequences": 2}, "num_return_sequences=2 is for texts; pass num_images_"),
    (
        {"generation_mode": "image", "generation_config": GenerationConfig(num_return_sequences=2, do_sample=True)},
        "num_return_sequences=2 is for texts; pass num_images_per_prompt=2",
    ),
]


@pytest.mark.parametrize("call", ["generate", "stream"])
@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS)
def test_contradictions(model, monkeypatch, call, options, message):
    monkeypatch.setattr(model, "embed", lambda *inputs, **media: pytest.fail("work began"))
    mode = {"generation_mode": "audio"} if "talker_kwargs" in options else {}
    with pytest.raises(ValueError, match=message):
        getattr(model, call)(IDS[:1], **mode, **options)


def test_the_same_said_twice_is_taken(model):
    options = {"generation_mode": "audio", "max_new_tokens": 2, "seed": 1, "speaker": "iris"}
    once = model.generate(IDS[:1], **options)
    twice = model.generate(IDS[:1], **options, talker_kwargs={"seed": 1, "speaker": "iris", "attempts": None})
    assert torch.equal(once.waveforms[0], twice.waveforms[0])
    drawn = model.generate(IDS[:1], image_gen=True, image_gen_seed=1, seed=1, image_gen_steps=1, image_gen_cfg=None)
    assert drawn.tobytes() == model.generate(IDS[:1], image_gen=True, seed=1, image_gen_steps=1).tobytes()


def test_arguments_by_position(tiny):
    """`generate` takes them in the library's order, in which a configuration follows the prompt."""
    with pytest.raises(
        TypeError, match="generation_config='audio' must be a GenerationConfig; .* is generation_mode="
    ):
        tiny.generate(IDS, "audio")
    config = GenerationConfig(max_new_tokens=2)
    assert tiny.generate(IDS, config).shape == (2, 10)
    with pytest.raises(TypeError, match="generation_config: given by position and by name"):
        tiny.generate(IDS, config, generation_config=config)
    with pytest.raises(TypeError, match="by position behind the prompt, got 20"):
        tiny.generate(IDS, *[None] * 20)


@pytest.mark.parametrize(
    ("prompts", "generators", "message"),
    [
        ("red", [torch.Generator()], "prompts='red' must be a list of TalkerPrompt"),
        (["red"], [torch.Generator()], r"prompts=\['red'\] must be a list of TalkerPrompt"),
        (None, torch.Generator(), "generators=<Generator> must be a list of torch.Generator"),
        (None, ["x"], r"generators=\['x'\] must be a list of torch.Generator"),
    ],
)
@pytest.mark.parametrize("call", ["generate", "stream"])
def test_prompts_of_the_talker(model, call, prompts, generators, message):
    processor = model.components.talker_processor()
    prompts = [processor.prompt("red", processor.voice())] if prompts is None else prompts
    with pytest.raises(TypeError, match=message):
        getattr(model.talker, call)(prompts, generators)


DETOKENIZER = [
    *((name, value) for name in ("codes", "prompt_codes", "prompt_mel") for value in ("x", 3, ["x"], [3])),
    *((name, value) for name in ("speaker_embedding", "generator", "compile") for value in ("x", 3, [3])),
    *(("code_lengths", value) for value in ("x", 3, ["x"], [None])),
    ("num_steps", "x"),
]


@pytest.mark.parametrize(("name", "value"), DETOKENIZER)
def test_the_audio_detokenizer(model, monkeypatch, name, value):
    voice, detokenizer = model.components.talker_processor().voice(), model.audio_detokenizer.load()
    monkeypatch.setattr(detokenizer.flow, "forward", lambda *inputs: pytest.fail("work began"))
    rows = {"prompt_codes": [voice.prompt_codes], "prompt_mel": [voice.prompt_mel]}
    arguments = {"codes": [torch.arange(9)], "speaker_embedding": voice.speaker_embedding[None], **rows}
    with pytest.raises(WRONG, match=name):
        detokenizer.decode(**{**arguments, name: value})


HEAD = [
    *(
        ("condition", value, "condition=.* must be a tensor")
        for value in ("x", None, [1], torch.ones(1, 4, 192).long())
    ),
    *(
        ("condition", value, r"condition of shape .* must be \[B, N, H\]")
        for value in (torch.ones(2), torch.ones(1, 2, 3))
    ),
    *(("generator", value, "generator=.* must be a torch.Generator, or a list") for value in ("x", 3, [3])),
    *(("callback", value, r"callback=.* must be a function of \(step") for value in ("x", 3)),
    *((name, "x", f"{name}='x' must be True") for name in ("progress", "resize", "compile")),
]


@pytest.mark.parametrize(("name", "value", "message"), HEAD)
def test_the_image_head(model, name, value, message):
    with pytest.raises(WRONG, match=message):
        model.image_gen.draw(**{"condition": torch.ones(1, 4, 192), name: value})


def test_states_and_latents(model):
    for call, name in ((model.image_gen.condition, "states"), (model.image_gen.decode, "latents")):
        for value in ("x", None, torch.ones(2)):
            with pytest.raises(WRONG, match=f"{name}(=| of shape).* must be"):
                call(value)


def test_several_texts(model):
    with pytest.raises(TypeError, match=r"text=\['red', 3\] must be a text or a list of texts"):
        model.speak(["red", 3])
    with pytest.raises(ValueError, match="text is an empty list; give at least one text"):
        model.speak([])
    assert model.speak(["", ""], seed=np.array([1, 2])).waveforms[1].shape == (0,)


@pytest.mark.parametrize("form", [torch.tensor, np.array, np.int64, lambda seed: [seed], lambda seed: (seed,)])
def test_a_seed_of_any_form_is_that_number(model, form):
    spoken = model.speak("red", seed=form(3)).waveforms[0]
    assert torch.equal(spoken, model.speak("red", seed=3).waveforms[0])
    options = {"generation_mode": "image", "num_inference_steps": 1}
    drawn = model.generate(IDS[:1], seed=form(3), **options).images[0]
    assert drawn == model.generate(IDS[:1], seed=3, **options).images[0]
    with pytest.raises(WRONG, match="seed=.* must be a whole number"):
        model.speak("red", seed=torch.tensor(1.5))


DRAWING = [
    ("height", 10**9, "height=1000000000: images have whole sides of 64 to 2048 pixels"),
    ("num_inference_steps", 10**9, "num_inference_steps must be at most 10,000, got 1000000000"),
    ("num_images_per_prompt", 10**9, "num_images_per_prompt must be at most 1,000, got 1000000000"),
    ("guidance_scale", "x", "guidance_scale='x' must be a finite number"),
    ("callback", 3, r"callback=3 must be a function of \(step, number of steps, latents\)"),
    ("progress", NO_VALUES, "progress=.* must be True or False"),
    ("resize", "x", "resize='x' must be True or False"),
    ("seed", 1.5, "seed=1.5 must be a whole number"),
    ("generator", [3], "generator=.* must be a torch.Generator, or a list of one per row"),
    ("image_gen", NO_VALUES, "image_gen=.* must be True or False"),
]


@pytest.mark.parametrize("call", ["generate", "stream"])
@pytest.mark.parametrize(("name", "value", "message"), DRAWING)
def test_drawing(model, monkeypatch, call, name, value, message):
    monkeypatch.setattr(model.drawing, "states", lambda **inputs: pytest.fail("work began"))
    with pytest.raises(WRONG, match=message):
        getattr(model, call)(IDS[:1], generation_mode="image", **{name: value})


@pytest.mark.parametrize("name", ["output_scores", "output_logits", "output_attentions", "output_hidden_states"])
@pytest.mark.parametrize(
    ("call", "mode"),
    [("generate", "audio"), ("generate", "image"), ("generate", ["text", "image"]), ("stream", "text")],
)
def test_outputs_that_a_reply_has_no_place_for(model, monkeypatch, name, call, mode):
    monkeypatch.setattr(model, "forward", lambda **inputs: pytest.fail("work began"))
    message = f"{name}: only generate with generation_mode='text' returns it; leave it out"
    for options in ({name: True}, {"generation_config": GenerationConfig(**{name: True})}):
        with pytest.raises(ValueError, match=message):
            getattr(model, call)(IDS[:1], generation_mode=mode, return_dict_in_generate=True, **options)


def test_a_config_that_asks_for_them_without_the_dict_goes_on(model):
    config = GenerationConfig(output_hidden_states=True, max_new_tokens=1)
    assert next(model.stream(IDS[:1], generation_config=config)) is not None


def test_chat(model, processor, monkeypatch):
    with pytest.raises(TypeError, match="processor=3 must be the processor of the model"):
        model.chat(3)
    with pytest.raises(TypeError, match="processor=<.*> must be the processor of the model"):
        model.chat(processor.tokenizer)
    with pytest.raises(ValueError, match="image_gen=True: a chat answers in text"):
        model.chat(processor, image_gen=True)
    with pytest.raises(TypeError, match="use_whisper_encoder='x' must be True or False"):
        model.chat(processor, use_whisper_encoder="x")
    with pytest.raises(TypeError, match="system=3 must be a text, or a list of content items"):
        model.chat(processor, system=3)
    with pytest.raises(TypeError, match="streamer=3 must be a streamer"):
        model.chat(processor, streamer=3)
    with pytest.raises(ValueError, match="generation_mode=<ndarray .*: a chat answers in text"):
        model.chat(processor, generation_mode=np.zeros(2))
    monkeypatch.setattr(model, "embed", lambda *inputs, **media: pytest.fail("work began"))
    chat = model.chat(processor)
    with pytest.raises(ValueError, match="max_new_tokens='x' must be a whole number"):
        chat.say("hi", max_new_tokens="x")
    with pytest.raises(ValueError, match="content of a HUMAN message is a int; give a string or a list of items"):
        chat.say(3)
    assert chat.messages == []


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (None, "=None must be token ids"),
        ("hello", "='hello' must be token ids"),
        (1.5, "=1.5 must be token ids"),
        ([1.5], "=1.5 must be token ids"),
        (True, "=True must be token ids"),
        (torch.tensor([1.5]), r"=<Tensor of shape \(1,\) and dtype torch.float32> must be token ids, integers"),
        (np.array(["x"]), "=<ndarray .* must be token ids"),
        (IDS[None], r"=<Tensor of shape \(1, 2, 8\) .* must be token ids, integers \[L\] or \[B, L\]"),
        ([[[1]]], r"=\[1\] must be token ids"),
        ({"logits": 1}, "=<dict of length 1> must be token ids"),
        (
            torch.tensor([[1, -100]]),
            "holds -100, which is no token id; replace the -100 of labels by the padding token",
        ),
        ([[1], [-1]], "holds -1, which is no token id; they go from 0 to 1023"),
        ([3, 10**9], "holds 1000000000, which is no token id; they go from 0 to 1023"),
        (np.array([[3], [1024]]), "holds 1024, which is no token id; they go from 0 to 1023"),
        (10**30, "holds <an integer of 100 bits>, which is no token id"),
        (IDS.to_sparse(), "=.* is sparse"),
        (IDS.to("meta"), "=.* on the meta device; pass a plain tensor"),
    ],
)
def test_decoding(processor, ids, message):
    with pytest.raises(WRONG, match=rf"token_ids {message}|token_ids{message}"):
        processor.decode(ids)
    with pytest.raises(WRONG, match=rf"sequences {message}|sequences{message}"):
        processor.batch_decode(ids, skip_special_tokens=True)


def test_decoding_takes_every_usual_form(processor):
    ids = processor.tokenizer("a red circle")["input_ids"]
    forms = [ids, tuple(ids), np.array(ids), torch.tensor(ids), [np.int64(each) for each in ids]]
    assert {processor.decode(form, skip_special_tokens=True) for form in forms} == {"a red circle"}
    rows = [
        [ids, ids],
        np.array([ids] * 2),
        torch.tensor([ids] * 2),
        [torch.tensor(ids)] * 2,
        {"input_ids": [ids] * 2},
    ]
    for form in rows:
        assert processor.batch_decode(form, True) == ["a red circle"] * 2
    assert processor.decode([]) == ""


PROCESSOR = [
    (
        "pad_to_multiple_of",
        10**9,
        "rows padded to 1,000,000,000 tokens are more than 16,777,216; lower .*pad_to_multi",
    ),
    ("text", [], "text must be a prompt or a non-empty list of prompts"),
    ("text_kwargs", 3, "text_kwargs=3 must be a dict of options"),
    ("images_kwargs", 3, "images_kwargs=3 must be a dict of options"),
    ("size", 3, "size=3 must be a dict with shortest_edge and longest_edge"),
    ("do_rescale", NO_VALUES, "do_rescale=.* must be True or False"),
    ("resample", 177, "resample=177 must be a filter of PIL.Image.Resampling, 0 to 5"),
    ("image_mean", [1], r"image_mean=\[1\] must be a number, or one for each of three channels"),
    ("rescale_factor", float("nan"), "rescale_factor=nan must be a finite number"),
]


@pytest.mark.parametrize(("name", "value", "message"), PROCESSOR)
def test_options_of_the_processor(processor, name, value, message):
    with pytest.raises(WRONG, match=message):
        processor(**{"text": "hello", "return_tensors": "pt", name: value})


def test_a_huge_length_to_pad_to(processor):
    with pytest.raises(
        ValueError, match="10,000,000,000 tokens are more than 16,777,216; lower max_length=10000000000"
    ):
        processor("hello", padding="max_length", max_length=10**10)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokenize", NO_VALUES, "tokenize=.* must be True or False"),
        ("add_generation_prompt", "yes", "add_generation_prompt='yes' must be True or False"),
        ("chat_template", 3, "chat_template=3 must be a template"),
        ("chat_template", "{{", "the chat template cannot be rendered: .*; correct chat_template"),
        ("tools", 3, "tools=3 must be a list"),
        ("processor_kwargs", 3, "processor_kwargs=3 must be a dict"),
        ("conversation", [{"role": ["user"], "content": "hi"}], "role list is unknown; accepted roles are HUMAN"),
        ("conversation", [{"role": "user", "content": [{"type": ["text"]}]}], "content type list .* is unknown"),
    ],
)
def test_options_of_the_template(processor, name, value, message):
    chat = [{"role": "user", "content": "hi"}]
    with pytest.raises(WRONG, match=message):
        processor.apply_chat_template(**{"conversation": chat, name: value})


def test_messages_without_content_among_audio_tracks(processor):
    """The audio of videos is looked for in every message, those without content among them."""
    chat = [{"role": "system", "content": []}, {"role": "user", "content": "hi"}]
    plain, tracked = (processor.apply_chat_template(chat, load_audio_from_video=flag) for flag in (False, True))
    assert plain == tracked


# Continuous batching of the library takes text alone


def media_prompts(processor) -> dict[str, list[int]]:
    image, sound = np.zeros((56, 56, 3), np.uint8), (np.zeros(8000, np.float32), 16000)
    return {
        "image or video": processor("<image>What?", images=[image])["input_ids"][0],
        "audio": processor("<audio>What?", audios=[sound])["input_ids"][0],
    }


@pytest.mark.parametrize("kind", ["image or video", "audio"])
def test_continuous_batching_refuses_media(model, processor, kind):
    ids = media_prompts(processor)[kind]
    message = (
        f"{kind} tokens but no media were given; the library's continuous batching takes text alone; use generate"
    )
    with pytest.raises(ValueError, match=message):
        model.generate_batch([[40, 41], ids])
    implementation = model.config._attn_implementation
    manager = model.init_continuous_batching(generation_config=GenerationConfig(do_sample=False))
    for call in (lambda: manager.add_request(ids), lambda: manager.add_requests([ids])):
        with pytest.raises(ValueError, match=message):
            call()
    model.set_attn_implementation(implementation)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "inputs=.* must be prompts"), (["x"], "inputs='x' must be"), ([10**6], "1000000 to 1000000")],
)
def test_continuous_batching_refuses_what_are_no_ids(model, ids, message):
    with pytest.raises(WRONG, match=message):
        model.generate_batch([ids])


def test_paged_generation_refuses_media(tiny):
    inputs = batch([Chat(1).text(3).image(1, 4, 4)])
    with pytest.raises(ValueError, match="cache_implementation='paged' .* takes no media, got pixel_values"):
        tiny.generate(**inputs, cache_implementation="paged")


def test_streamers_are_called(tiny, processor, capsys):
    tiny.generate(IDS[:1], max_new_tokens=2, streamer=TextStreamer(processor.tokenizer))
    assert capsys.readouterr().out


@pytest.mark.parametrize("layers", [True, 1, [0, 1], (0, -1)])
def test_hidden_states_of_chosen_layers(tiny, layers):
    """True is all, as in the library; numbers choose: 0 is the embeddings, -1 the last."""
    everything = tiny(IDS, output_hidden_states=True).hidden_states
    chosen = tiny(IDS, output_hidden_states=layers).hidden_states
    numbers = range(len(everything)) if layers is True else np.atleast_1d(layers)
    wanted = [everything[number] for number in numbers]
    present = [state for state in chosen if state is not None]
    assert len(present) == len(wanted)
    assert all(torch.equal(one, other) for one, other in zip(present, wanted, strict=True))
