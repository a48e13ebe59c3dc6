"""`generate`: every option of the library over text, images, video and audio."""

import copy

import pytest
import torch
import transformers
from packaging import version
from thinker_helpers import PAD, Chat, batch, mixed_chats, tiny_model, valid_tokens
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

NEW = 8
IS_OLD = version.parse(transformers.__version__) < version.parse("5.23")


@pytest.fixture(scope="module", params=["sanm", "whisper"])
def one(request):
    """One chat with every medium."""
    return batch([Chat(31, request.param).text(3).image().video().audio(9).text(4)])


@pytest.fixture(scope="module")
def many():
    return batch(mixed_chats())


def answer(model, inputs, **options):
    """New tokens [B, new]; the returned sequences must begin with the prompt."""
    sequences = model.generate(**inputs, max_new_tokens=NEW, **options)
    length = inputs["input_ids"].shape[1]
    assert (
        sequences[:, :length] == inputs["input_ids"].repeat_interleave(len(sequences) // len(inputs["input_ids"]), 0)
    ).all()
    return sequences[:, length:]


class Recorder(BaseStreamer):
    def __init__(self):
        self.values, self.ended = [], False

    def put(self, value):
        self.values.append(value.flatten().tolist())

    def end(self):
        self.ended = True


class StopAfter(StoppingCriteria):
    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


@torch.no_grad()
def teacher_forced(model, inputs, new):
    """Logits [1, n, vocab] for each of the tokens `new` [1, n] after a prompt, by one pass over both."""
    embeds, types = model.embed(**{name: value for name, value in inputs.items() if name != "attention_mask"})
    embeds = torch.cat([embeds, model.get_input_embeddings()(new)], dim=1)
    types = torch.cat([types, torch.zeros_like(new)], dim=1)
    return model(inputs_embeds=embeds, mm_token_type_ids=types).logits[:, -new.shape[1] - 1 : -1]


def log_likelihood(model, inputs, new):
    return teacher_forced(model, inputs, new).log_softmax(dim=-1).gather(-1, new[..., None]).sum()


def test_greedy_is_the_argmax_of_a_full_recomputation(tiny, one):
    new = answer(tiny, one)
    assert torch.equal(teacher_forced(tiny, one, new).argmax(dim=-1), new)


def test_streamer_gets_the_prompt_then_each_token(tiny, one):
    streamer = Recorder()
    new = answer(tiny, one, streamer=streamer)
    assert streamer.ended
    assert streamer.values[0] == one["input_ids"].flatten().tolist()
    assert [token for value in streamer.values[1:] for token in value] == new[0].tolist()


def test_beams_find_an_answer_at_least_as_likely_as_greedy(tiny, one):
    greedy = answer(tiny, one, eos_token_id=-1)
    beams = answer(tiny, one, num_beams=16, eos_token_id=-1)
    assert log_likelihood(tiny, one, beams) >= log_likelihood(tiny, one, greedy) - 1e-4
    assert not torch.equal(beams, greedy)


def test_beams_of_a_mixed_batch_equal_the_single_ones(tiny, many):
    together = answer(tiny, many, num_beams=3, eos_token_id=-1)
    for row, chat in enumerate(mixed_chats()):
        assert torch.equal(together[row], answer(tiny, batch([chat]), num_beams=3, eos_token_id=-1)[0])


def test_several_sequences_per_prompt(tiny, many):
    torch.manual_seed(0)
    sampled = answer(tiny, many, do_sample=True, num_return_sequences=2, eos_token_id=-1)
    assert sampled.shape == (2 * len(many["input_ids"]), NEW)
    assert not torch.equal(sampled[::2], sampled[1::2])
    beams = answer(tiny, many, num_beams=3, num_return_sequences=3, eos_token_id=-1)
    assert torch.equal(beams[::3], answer(tiny, many, num_beams=3, eos_token_id=-1))


def test_sampling_follows_the_seed(tiny, one):
    def sample(seed):
        torch.manual_seed(seed)
        return answer(tiny, one, do_sample=True, temperature=1.5, eos_token_id=-1)

    assert torch.equal(sample(3), sample(3))
    assert not torch.equal(sample(3), sample(4))


def test_stopping_criteria_and_end_tokens(tiny, one):
    new = answer(tiny, one)[0]
    length = one["input_ids"].shape[1]
    stopped = answer(tiny, one, stopping_criteria=StoppingCriteriaList([StopAfter(length + 3)]))
    assert torch.equal(stopped[0], new[:3])
    end = int(new[4])
    first = new.tolist().index(end)
    assert torch.equal(answer(tiny, one, eos_token_id=[end])[0], new[: first + 1])


def test_the_end_token_of_the_config_ends_a_saved_model(tmp_path, one):
    """`from_pretrained` takes end and pad token from the decoder's config: released files have no others."""
    model = tiny_model()
    end = int(answer(model, one)[0, 2])
    model = tiny_model(llm_config={"eos_token_id": end, "pad_token_id": end})
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == end
    assert loaded.generation_config.pad_token_id == end
    assert answer(loaded, one)[0, -1] == end
    assert len(answer(loaded, one)[0]) <= 3


def test_rows_that_ended_are_padded(tiny, many):
    plain = answer(tiny, many)
    end = int(plain[2, 3])
    ended = answer(tiny, many, eos_token_id=end, pad_token_id=7)
    for row, new in enumerate(plain.tolist()):
        if end in new:
            stop = new.index(end) + 1
            assert ended[row].tolist() == new[:stop] + [7] * (ended.shape[1] - stop)


def test_prefill_hidden_states_begin_with_embeddings_and_end_normed(tiny, one):
    """What the talker is fed: the first and the last entry of the prompt's hidden states."""
    out = tiny.generate(**one, max_new_tokens=3, return_dict_in_generate=True, output_hidden_states=True)
    embeds, types = tiny.embed(**{name: value for name, value in one.items() if name != "attention_mask"})
    layers = tiny.config.llm_config.num_hidden_layers
    assert [len(step) for step in out.hidden_states] == [layers + 1] * 3
    assert torch.equal(out.hidden_states[0][0], embeds)
    normed = tiny.model.model(inputs_embeds=embeds, mm_token_type_ids=types).last_hidden_state
    torch.testing.assert_close(out.hidden_states[0][-1], normed, atol=1e-5, rtol=0)
    first_new = tiny.get_input_embeddings()(out.sequences[:, -3:-2])
    assert torch.equal(out.hidden_states[1][0], first_new)


def forward_passes(model, inputs, **options):
    """The answer and how many passes of the decoder it took."""
    calls = []
    hook = model.model.register_forward_hook(lambda *_: calls.append(1))
    new = answer(model, inputs, eos_token_id=-1, **options)
    hook.remove()
    return new, len(calls)


@pytest.mark.parametrize("media", [False, True])
def test_prompt_lookup_decoding_gives_the_greedy_answer(tiny, media):
    """The prompt ends as it began, so that guesses are made from the first step on."""
    chat = Chat(32).add([50, 51, 52, 53, 54], 0)
    chat = chat.image().video().audio(9) if media else chat.text(4)
    inputs = batch([chat.add([50, 51], 0)])
    guessed = []
    hook = tiny.model.register_forward_pre_hook(
        lambda _, args, kwargs: guessed.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    ours = answer(tiny, inputs, prompt_lookup_num_tokens=3, eos_token_id=-1)
    hook.remove()
    assert torch.equal(ours, answer(tiny, inputs, eos_token_id=-1))
    assert guessed[0] == inputs["input_ids"].shape[1] + 3


def test_assisted_decoding_gives_the_greedy_answer_in_fewer_passes(tiny, one):
    """Text: the assistant is the model itself, so that its guesses are right. With media: the answer is the same."""
    text = batch([Chat(36).text(9)])
    expected, passes = forward_passes(tiny, text)
    ours, fewer = forward_passes(tiny, text, assistant_model=tiny_model())
    assert torch.equal(ours, expected)
    assert fewer < passes
    assert torch.equal(answer(tiny, one, assistant_model=tiny_model(seed=1)), answer(tiny, one))
    assert torch.equal(answer(tiny, one, assistant_model=tiny_model()), answer(tiny, one))


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
def test_prefill_in_chunks_gives_the_same_answer(tiny, many, options):
    """A chunk border may fall inside an image; with left padding, on both caches."""
    expected = answer(tiny, many)
    sizes = []
    hook = tiny.model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    ours = answer(tiny, many, prefill_chunk_size=7, **options)
    hook.remove()
    length = many["input_ids"].shape[1]
    assert sizes[: length // 7 + 1] == [7] * (length // 7) + [length % 7]
    assert torch.equal(ours, expected)


def test_generation_config_as_second_positional_argument(tiny, one):
    """As in the library: `generate(ids, config)`."""
    named = {name: value for name, value in one.items() if name != "input_ids"}
    out = tiny.generate(one["input_ids"], GenerationConfig(max_new_tokens=NEW), **named)
    assert torch.equal(out[:, one["input_ids"].shape[1] :], answer(tiny, one))


def test_generation_config_object_and_processors(tiny, one):
    """The released demo's form of the call, with repetition control that sees prompt ids."""
    config = GenerationConfig.from_dict({"no_repeat_ngram_size": 1, "output_hidden_states": True})
    new = answer(tiny, one, generation_config=config, use_cache=True, eos_token_id=[PAD])[0].tolist()
    assert len(set(new)) == len(new)
    assert not set(new) & set(one["input_ids"].flatten().tolist())


def test_positional_and_named_prompts_and_missing_masks(tiny, one):
    expected = answer(tiny, one)
    length = one["input_ids"].shape[1]
    named = {name: value for name, value in one.items() if name != "input_ids"}
    assert torch.equal(tiny.generate(one["input_ids"], **named, max_new_tokens=NEW)[:, length:], expected)
    assert torch.equal(tiny.generate(inputs=one["input_ids"], **named, max_new_tokens=NEW)[:, length:], expected)
    unmasked = {name: value for name, value in one.items() if name != "attention_mask"}
    assert torch.equal(answer(tiny, unmasked), expected)


def test_inputs_embeds_alone_and_with_ids(tiny, one):
    expected = answer(tiny, one)
    embeds, types = tiny.embed(**{name: value for name, value in one.items() if name != "attention_mask"})
    alone = tiny.generate(inputs_embeds=embeds, mm_token_type_ids=types, max_new_tokens=NEW)
    assert torch.equal(alone, expected)
    both = tiny.generate(one["input_ids"], inputs_embeds=embeds, mm_token_type_ids=types, max_new_tokens=NEW)
    assert torch.equal(both[:, -expected.shape[1] :], expected)


def test_media_are_encoded_once(tiny, one):
    """Towers run in the first step only; also with beams, several sequences and without a cache."""
    for options in ({}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}, {"use_cache": False}):
        calls = []
        hook = tiny.vision.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        answer(tiny, one, **options)
        hook.remove()
        assert len(calls) == 1  # images and videos together


def test_generate_leaves_no_gradients_and_does_not_change_its_inputs(tiny, one):
    before = {name: value.clone() for name, value in one.items()}
    out = tiny.generate(**one, max_new_tokens=2, return_dict_in_generate=True, output_logits=True)
    assert not out.logits[0].requires_grad
    for name, value in before.items():
        assert torch.equal(one[name], value)


def test_new_tokens_are_text_even_when_they_look_like_patches(tiny, one):
    """A generated patch id is embedded as a word and routed as text, as in the released goldens."""
    forced = [[290, 301, 290]]

    def force(step, ids):
        return [forced[0][min(len(ids) - one["input_ids"].shape[1], 2)]]

    out = tiny.generate(
        **one, max_new_tokens=3, prefix_allowed_tokens_fn=force, return_dict_in_generate=True, output_logits=True
    )
    assert out.sequences[:, -3:].tolist() == forced
    expected = teacher_forced(tiny, one, out.sequences[:, -3:])
    torch.testing.assert_close(torch.stack(out.logits, dim=1), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    "options", [{}, {"prompt_lookup_num_tokens": 3}, {"prefill_chunk_size": 3}, {"use_cache": False}]
)
@pytest.mark.parametrize("whole", [False, True])
def test_continued_conversation_on_a_kept_cache(tiny, one, whole, options):
    """A second turn on the first turn's cache gives what a fresh pass over the whole conversation gives.

    The media of the first turn may come again.
    """
    first = tiny.generate(**one, max_new_tokens=4, return_dict_in_generate=True, eos_token_id=-1)
    turn = Chat(33).text(3)
    ids = torch.cat([first.sequences, torch.tensor([turn.ids])], dim=1)
    types = torch.nn.functional.pad(one["mm_token_type_ids"], (0, ids.shape[1] - one["input_ids"].shape[1]))
    fresh = one | {"input_ids": ids, "mm_token_type_ids": types, "attention_mask": torch.ones_like(ids)}
    expected = tiny.generate(**fresh, max_new_tokens=4, eos_token_id=-1)
    again = fresh if whole else {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not whole and options.keys() & {"prompt_lookup_num_tokens", "use_cache"}:
        with pytest.raises(ValueError, match="(lookup_num_tokens=3|use_cache=False): .* pass all that the processor"):
            tiny.generate(**again, past_key_values=first.past_key_values, max_new_tokens=4, **options)
        return
    if "prefill_chunk_size" in options and IS_OLD:  # it cuts what the cache has, too
        with pytest.raises(ValueError, match="a chunk ends at token 3, and past_key_values hold .*, or take a newer"):
            tiny.generate(**again, past_key_values=first.past_key_values, max_new_tokens=4, **options)
        return
    kept = tiny.generate(**again, past_key_values=first.past_key_values, max_new_tokens=4, eos_token_id=-1, **options)
    assert torch.equal(kept, expected)


def test_padding_of_prompts_does_not_matter(tiny, many):
    """More left padding than needed changes no answer."""
    wider = dict(many)
    for name, value in (("input_ids", PAD), ("attention_mask", 0), ("mm_token_type_ids", 0)):
        wider[name] = torch.nn.functional.pad(many[name], (5, 0), value=value)
    assert valid_tokens(wider).sum() == valid_tokens(many).sum()
    assert torch.equal(answer(tiny, wider), answer(tiny, many))


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
def test_float64_reads_and_writes_as_float32(tiny, implementation):
    """Whichever experts are asked for: PyTorch has no grouped product in float64."""
    inputs = batch([Chat(1).text(3).image(1, 4, 4).text(2).audio(9)])
    double = copy.deepcopy(tiny).double()
    double.set_experts_implementation(implementation)
    torch.testing.assert_close(double(**inputs).logits.float(), tiny(**inputs).logits, rtol=0, atol=1e-4)
    options = {"max_new_tokens": 4, "eos_token_id": -1, "pad_token_id": 0}
    assert torch.equal(double.generate(**inputs, **options), tiny.generate(**inputs, **options))
