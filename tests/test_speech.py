"""Speaking end to end on a small model of random weights: what is said is noise, how it is said is the real thing."""

import re
import shutil
import threading
import traceback
from dataclasses import fields
from pathlib import Path

import pytest
import soundfile
import torch
from speech_helpers import SMALLEST_VOCODER, SPEAKERS, build_speaking_repository, tiny_detokenizer, voice
from torch._dynamo.utils import counters
from transformers import AutoProcessor, CompileConfig, DynamicCache, GenerationConfig, StaticCache

import ming.speech
from ming.encoding import save_audio
from ming.events import AudioChunk, Done, ImageDone, TextDelta
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration as Model
from ming.randomness import row_generators
from ming.serving import compiling
from ming.speech import PromptStates, SpeechOutput
from ming.talker_steps import StopRules

RULES = StopRules(max_new_ids=40)
TEXT = "A small red circle is on the left. 蓝色的星星在右边。"
QUESTIONS = ("What comes after three?", "Say red in Chinese.")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return build_speaking_repository(tmp_path_factory.mktemp("speaking"))


@pytest.fixture(scope="module")
def model(repository) -> Model:
    return Model.from_pretrained(repository, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor(repository):
    return AutoProcessor.from_pretrained(repository, trust_remote_code=True)


def chat(processor, *questions: str):
    chats = [[{"role": "user", "content": [{"type": "text", "text": question}]}] for question in questions]
    return processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )


def joined(events) -> torch.Tensor:
    return torch.cat([event.waveform for event in events if isinstance(event, AudioChunk)])


def test_the_first_requests_after_start_up_compile_nothing(repository, processor, monkeypatch):
    """Spoken streams of texts and of a chat, and a drawing, as a server makes them; what is said here is short."""
    monkeypatch.setattr(compiling, "SPOKEN_FRAMES", 192)
    served = Model.from_pretrained(repository, dtype=torch.float32).eval()
    served.components.use(audio_detokenizer=tiny_detokenizer(**SMALLEST_VOCODER))
    served.compile_decoding = CompileConfig(fullgraph=True, dynamic=False, mode=None, backend="eager")
    compiling.compile_steps(served, batch=1, streams=1, new_tokens=100, drawings=1)
    start = counters["stats"]["unique_graphs"]
    for text, speaker in ((TEXT, SPEAKERS[0]), ("Three.", SPEAKERS[1]), ("A small red circle.", None)):
        assert joined(served.speak_stream(text, seed=2, speaker=speaker, rules=RULES)).numel()
    spoken = {"generation_mode": "audio", "talker_kwargs": {"rules": RULES}, "max_new_tokens": 20, "seed": 3}
    *_, done = served.stream(**chat(processor, QUESTIONS[0]), **spoken)
    request = {"generation_mode": "image", "num_inference_steps": 2, "seed": 4}
    drawn = list(served.stream(**chat(processor, "Draw a red circle."), **request))
    assert done.text and any(isinstance(event, ImageDone) for event in drawn)
    assert counters["stats"]["unique_graphs"] == start > 0 and not counters["graph_break"]


# speak


def test_speaking_gives_a_waveform_at_the_detokenizers_rate(model):
    output = model.speak(TEXT, seed=1, rules=RULES)
    (waveform,), (pieces,) = output.waveforms, output.pieces
    assert output.sampling_rate == 22050
    assert waveform.dtype == torch.float32 and waveform.ndim == 1 and waveform.abs().max() <= 1
    assert waveform.std() > 0
    assert sum(piece.seconds for piece in pieces) == pytest.approx(len(waveform) / 22050)
    assert "".join(piece.text for piece in pieces).replace(" ", "").startswith("Asmallredcircle")


def test_a_batch_speaks_like_its_rows_alone_and_seeds_repeat(model):
    texts = [TEXT, "red", "The star is blue. The circle is green."]
    state = torch.get_rng_state()
    together = model.speak(texts, seed=[3, 4, 5], rules=RULES)
    assert torch.equal(torch.get_rng_state(), state)
    for text, seed, waveform in zip(texts, (3, 4, 5), together.waveforms, strict=True):
        torch.rand(5)
        torch.testing.assert_close(model.speak(text, seed=seed, rules=RULES).waveforms[0], waveform, rtol=0, atol=1e-4)
    other = model.speak(texts[0], seed=4, rules=RULES).waveforms[0]
    assert other.shape != together.waveforms[0].shape or not torch.allclose(other, together.waveforms[0], atol=1e-3)


def test_one_seed_serves_every_row_as_if_alone(model):
    both = model.speak(["red", "red"], seed=7, rules=RULES).waveforms
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-4)


def test_a_generator_is_drawn_from_and_repeats(model):
    first, second = (
        model.speak("red", generator=torch.Generator().manual_seed(1), rules=RULES).waveforms[0] for _ in range(2)
    )
    assert torch.equal(first, second)


def test_speakers_sound_different_and_unknown_ones_are_refused(model):
    anna, bert = (model.speak("red", speaker=name, seed=1, rules=RULES).waveforms[0] for name in SPEAKERS)
    assert anna.shape != bert.shape or not torch.allclose(anna, bert, atol=1e-3)
    torch.testing.assert_close(model.speak("red", seed=1, rules=RULES).waveforms[0], anna)
    torch.testing.assert_close(model.speak("red", voice("own", 0), seed=1, rules=RULES).waveforms[0], anna)
    for unknown in ("carl", ["anna"], 3):
        with pytest.raises(ValueError, match=f"{re.escape(repr(unknown))}.*anna.*bert"):
            model.speak("red", speaker=unknown)


@pytest.mark.parametrize("text", ["", "  \n", "🙂"])
def test_nothing_to_say_is_an_empty_waveform(model, text):
    output = model.speak(["red", text], seed=1, rules=RULES)
    assert len(output.waveforms[0]) > 0
    assert output.waveforms[1].shape == (0,) and output.pieces[1] == []


def test_a_runaway_piece_is_reported(model, caplog):
    ming.speech.logger.parent.propagate = True
    output = model.speak("red", seed=1, rules=StopRules(min_new_ids=5, max_new_ids=5), attempts=2)
    assert [piece.finish_reason for piece in output.pieces[0]] == ["length"]
    ming.speech.logger.parent.propagate = False
    assert "'red'" in caplog.text and "try another seed" in caplog.text


# Streams


@pytest.mark.parametrize("text", ["red", TEXT])
def test_a_stream_speaks_what_speak_says(model, text):
    # One attempt: what was heard already of a runaway piece cannot be taken back.
    whole = model.speak(text, seed=2, rules=RULES, attempts=1)
    events = list(model.speak_stream(text, seed=2, rules=RULES, attempts=1))
    assert isinstance(events[-1], Done)
    assert [piece.text for piece in events[-1].pieces] == [piece.text for piece in whole.pieces[0]]
    assert joined(events).shape == whole.waveforms[0].shape
    assert [piece.finish_reason for piece in events[-1].pieces] == [p.finish_reason for p in whole.pieces[0]]
    # What follows the first piece is made in one go, as without a stream.
    first = round(whole.pieces[0][0].seconds * whole.sampling_rate)
    torch.testing.assert_close(joined(events)[first:], whole.waveforms[0][first:], rtol=0, atol=1e-3)


def test_pieces_that_run_away_are_drawn_again_where_nothing_was_heard(model):
    """Ids are cut off where none of the pieces has come to its end, so every draw is another one."""
    rules, draws, stream = StopRules(min_new_ids=5, max_new_ids=5), [], model.talker.stream
    model.talker.stream = lambda prompts, *args, **options: (
        draws.append(len(prompts)) or stream(prompts, *args, **options)
    )
    whole = model.speak(TEXT, seed=2, rules=rules, attempts=2)
    number = len(whole.pieces[0])
    assert draws == [number] * 2 and number > 1
    draws.clear()
    events = list(model.speak_stream(TEXT, seed=2, rules=rules, attempts=2))
    del model.talker.stream
    assert draws == [number] + [1] * (number - 1)  # the first was heard already
    last = round(whole.pieces[0][-1].seconds * whole.sampling_rate)
    torch.testing.assert_close(joined(events)[-last:], whole.waveforms[0][-last:], rtol=0, atol=1e-3)


def test_audio_mode_answers_in_text_and_speech(model, processor):
    inputs = chat(processor, *QUESTIONS)
    text_only = model.generate(**inputs, max_new_tokens=20)
    output = model.generate(
        **inputs, max_new_tokens=20, generation_mode="audio", seed=1, talker_kwargs={"rules": RULES}
    )
    assert torch.equal(output.sequences, text_only)
    assert output[0] is output.sequences and list(output) == [field.name for field in fields(SpeechOutput)]
    new = text_only[:, inputs["input_ids"].shape[1] :]
    assert output.text == processor.batch_decode(new, skip_special_tokens=True)
    assert len(output.waveforms) == 2 and all(len(waveform) for waveform in output.waveforms)


@pytest.mark.parametrize("where", ["the call", "the call's configuration", "the model's configuration"])
def test_every_reply_is_spoken_wherever_their_number_is_said(model, processor, monkeypatch, where):
    asked, limit = {"do_sample": True, "num_return_sequences": 2}, {"max_new_tokens": 8}
    options = asked | limit if where == "the call" else limit
    if where == "the call's configuration":
        options = {"generation_config": GenerationConfig(**asked, **limit)}
    if where == "the model's configuration":
        for name, value in asked.items():
            monkeypatch.setattr(model.generation_config, name, value)
    inputs = chat(processor, QUESTIONS[0])
    output = model.generate(**inputs, **options, generation_mode="audio", seed=0, talker_kwargs={"rules": RULES})
    assert len(output.text) == len(output.waveforms) == len(output.sequences) == 2
    for mode in ("text", "audio"):
        with pytest.raises(ValueError, match="num_return_sequences=2: stream gives one reply as it grows; use gen"):
            model.stream(**inputs, **options, generation_mode=mode)


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_a_cache_that_holds_part_of_the_prompt_is_refused_and_an_empty_one_serves(model, processor, kind):
    """The talker is told the states of the whole prompt; those of tokens in a cache are gone."""
    config = model.config.get_text_config()
    cache = kind(config=config, max_cache_len=64) if kind is StaticCache else kind(config=config)
    inputs, options = chat(processor, QUESTIONS[0]), {"max_new_tokens": 6, "seed": 1, "generation_mode": "audio"}
    options["talker_kwargs"] = {"rules": RULES}
    expected = model.generate(**inputs, **options).waveforms[0]
    assert torch.equal(model.generate(**inputs, **options, past_key_values=cache).waveforms[0], expected)
    for call in (model.generate, model.stream):
        with pytest.raises(ValueError, match="past_key_values hold .* tokens: generation_mode='audio' .* leave past_"):
            call(**inputs, **options, past_key_values=cache)
    cache.reset()
    assert kind is DynamicCache or not cache.get_seq_length()
    if not cache.get_seq_length():  # transformers 5.16 keeps the length of a dynamic cache
        assert torch.equal(model.generate(**inputs, **options, past_key_values=cache).waveforms[0], expected)


def test_the_chat_reaches_the_talker(model, processor):
    """Each row speaks under its own prompt: rows in a batch equal single ones, and the prompt changes the voice."""
    options = {"max_new_tokens": 12, "generation_mode": "audio", "seed": 1, "talker_kwargs": {"rules": RULES}}
    together = model.generate(**chat(processor, *QUESTIONS), **options)
    for row, question in enumerate(QUESTIONS):
        alone = model.generate(**chat(processor, question), **options)
        assert alone.text[0] == together.text[row]
        torch.testing.assert_close(alone.waveforms[0], together.waveforms[row], rtol=0, atol=1e-3)
    without = model.speak(together.text[0], seed=1, rules=RULES).waveforms[0]
    spoken = together.waveforms[0]
    assert without.shape != spoken.shape or not torch.allclose(without, spoken, atol=1e-3)


def test_the_talker_gets_embeddings_plus_last_states_of_the_prompt(model, processor):
    inputs = chat(processor, *QUESTIONS)
    length = inputs["input_ids"].shape[1]
    states = PromptStates(length, inputs["attention_mask"])
    options = {"max_new_tokens": 4, "output_hidden_states": True, "return_dict_in_generate": True}
    outputs = model.generate(**inputs, **options, prompt_states=states)
    first = outputs.hidden_states[0]
    expected = first[0] + first[-1]
    for row, mask, found in zip(expected, inputs["attention_mask"].bool(), states.rows(), strict=True):
        torch.testing.assert_close(found, row[mask])


def test_a_spoken_answer_is_four_frames_from_the_talkers_loop(model, processor):
    """The flow can be followed by reading down: the call, the speaker, the talker, its loop."""
    seen = set()

    def look(module, args, kwargs):
        frames = [frame for frame in traceback.extract_stack() if "ming" in Path(frame.filename).parts[-2:-1]]
        seen.add(tuple((Path(frame.filename).stem, frame.name) for frame in frames))

    handle = model.talker.register_forward_pre_hook(look, with_kwargs=True)
    talker_kwargs = {"rules": RULES}
    inputs = chat(processor, QUESTIONS[0])
    model.generate(**inputs, generation_mode="audio", max_new_tokens=20, talker_kwargs=talker_kwargs)
    handle.remove()
    (frames,) = seen
    assert frames == (
        ("modeling_bailingmm", "generate"),
        ("speech", "say"),
        ("modeling_talker", "generate"),
        ("modeling_talker", "_decode"),
    )


def test_stream_yields_text_and_speech_and_ends(model, processor):
    inputs = chat(processor, QUESTIONS[0])
    whole = model.generate(**inputs, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
    expected = processor.decode(whole, skip_special_tokens=True)
    events = list(
        model.stream(**inputs, max_new_tokens=20, generation_mode="audio", seed=1, talker_kwargs={"rules": RULES})
    )
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == expected
    assert isinstance(events[-1], Done) and events[-1].text == expected
    assert len(joined(events)) > 0
    texts = list(model.stream(**inputs, max_new_tokens=20))
    assert {type(event) for event in texts[:-1]} == {TextDelta}
    assert texts[-1] == Done(expected)


def test_audio_begins_before_the_text_ends(model, processor):
    """The writer waits before its last sentence until something has been heard, and fails if nothing is."""
    inputs, heard = chat(processor, QUESTIONS[0]), threading.Event()
    ids = processor.tokenizer("A small red circle is on the left of a star. " * 3)["input_ids"]
    ids.append(processor.tokenizer.eos_token_id)
    prompt = inputs["input_ids"].shape[1]

    def write(row, so_far):
        place = len(so_far) - prompt
        assert place <= len(ids) * 2 // 3 or heard.wait(60), "nothing was heard before the text was complete"
        return [ids[min(place, len(ids) - 1)]]

    options = {"generation_mode": "audio", "seed": 1, "talker_kwargs": {"rules": RULES}, "max_new_tokens": len(ids)}
    events = []
    for event in model.stream(**inputs, **options, prefix_allowed_tokens_fn=write):
        events.append(type(event))
        if isinstance(event, AudioChunk):
            heard.set()
    assert TextDelta in events[events.index(AudioChunk) :]


def test_closing_a_stream_stops_its_work(model, processor):
    threads, passes = threading.active_count(), []
    handle = model.get_decoder().register_forward_pre_hook(lambda *_: passes.append(1))
    for mode in ("text", "audio"):
        passes.clear()
        inputs = chat(processor, QUESTIONS[0])
        stream = model.stream(**inputs, max_new_tokens=400, min_new_tokens=400, generation_mode=mode)
        next(stream)
        stream.close()
        assert threading.active_count() == threads and len(passes) < 400
    handle.remove()


def test_an_error_in_a_stream_reaches_the_reader(model, processor):
    inputs = chat(processor, QUESTIONS[0])
    with pytest.raises(ValueError, match="no_such_option"):
        list(model.stream(**inputs, no_such_option=3))


# Files, parts, errors


def test_waveforms_are_written_and_read_back(model, tmp_path):
    output = model.speak("red", seed=1, rules=RULES)
    for ending in ("wav", "flac"):
        output.save(tmp_path / f"reply.{ending}")
        samples, rate = soundfile.read(tmp_path / f"reply.{ending}", dtype="float32")
        assert rate == 22050
        torch.testing.assert_close(torch.from_numpy(samples), output.waveforms[0], rtol=0, atol=1e-4)
    both = model.speak(["red", "a long blue star"], seed=1, rules=RULES)
    for ending, kind in (("ogg", "OGG"), ("mp3", "MP3")):  # one row, in formats that lose a little
        both.save(tmp_path / f"reply.{ending}", row=1)
        assert soundfile.info(tmp_path / f"reply.{ending}").format == kind
        samples, rate = soundfile.read(tmp_path / f"reply.{ending}")
        assert rate == 22050 and len(both.waveforms[0]) < len(samples)
        assert len(samples) == pytest.approx(len(both.waveforms[1]), abs=3000)
    for row in (2, -3, 1.0):
        with pytest.raises(ValueError, match=rf"row={row}( must be a whole number|: there are 2 waveforms)"):
            both.save(tmp_path / "none.wav", row=row)
    with pytest.raises(ValueError, match="cannot write .docx"):
        save_audio(tmp_path / "reply.docx", output.waveforms[0], 22050)


def test_a_saved_model_speaks_the_same_from_its_new_directory(model, repository, tmp_path):
    model.save_pretrained(tmp_path / "again")
    again = Model.from_pretrained(tmp_path / "again", dtype=torch.float32).eval()
    assert set(again.components.talker_processor().voices) == set(SPEAKERS)
    first, second = (m.speak("red", seed=1, rules=RULES).waveforms[0] for m in (model, again))
    assert torch.equal(first, second)


def test_without_a_talker_speech_is_refused_before_any_work(repository, processor):
    silent = Model.from_pretrained(repository, load_talker=False)
    for call in (
        lambda: silent.speak("red"),
        lambda: silent.generate(**chat(processor, "hi"), generation_mode="audio"),
        lambda: silent.stream(**chat(processor, "hi"), generation_mode="audio"),
    ):
        with pytest.raises(ValueError, match="load_talker=True"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1, "generator": torch.Generator()}, "either seed or generator"),
        ({"seed": [1, 2]}, "2 seeds for 1 rows"),
        ({"generator": [torch.Generator()] * 3}, "3 generators for 1 rows"),
        ({"prompt_text": "red"}, "without prompt_audio"),
        ({"prompt_audio": "x.wav"}, "needs prompt_text"),
        ({"prompt_audio": "x.wav", "prompt_text": "red", "speaker": "anna"}, "not both"),
    ],
)
def test_bad_speech_arguments_are_refused(model, processor, options, message):
    inputs = chat(processor, QUESTIONS[0])
    for call in (
        lambda: model.speak("red", **options),
        lambda: model.generate(**inputs, generation_mode="audio", **options),
        lambda: model.stream(**inputs, generation_mode="audio", **options),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("talker_kwargs", "error", "message"),
    [
        ({"top_k": 1}, ValueError, "top_k must be at least 2"),
        ({"attempts": 0}, ValueError, "attempts=0: a piece is drawn at least once"),
        ({"temprature": 1.0}, TypeError, "temprature"),
    ],
)
def test_bad_talker_options_are_refused_before_the_text_is_written(
    model, processor, monkeypatch, talker_kwargs, error, message
):
    monkeypatch.setattr(model, "embed", lambda *args, **kwargs: pytest.fail("work began"))
    inputs = chat(processor, QUESTIONS[0])
    for call in (model.generate, model.stream):
        with pytest.raises(error, match=message):
            call(**inputs, generation_mode="audio", talker_kwargs=talker_kwargs)
    with pytest.raises(error, match=message):
        model.speak("red", **talker_kwargs)


def test_a_repository_without_detokenizer_is_refused_before_the_text_is_written(repository, processor, tmp_path):
    silent = shutil.copytree(repository, tmp_path / "silent", ignore=shutil.ignore_patterns("audio_detokenizer"))
    model = Model.from_pretrained(silent)
    with pytest.raises(ValueError, match=r"silent has no audio_detokenizer/ folder; take a repository that speaks"):
        model.stream(**chat(processor, "hi"), generation_mode="audio")


def test_speaking_streamed_or_not_leaves_a_generator_at_the_same_place(model):
    first, second = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    options = {"rules": RULES, "attempts": 1}
    whole = model.speak(TEXT, generator=first, **options)
    done = list(model.speak_stream(TEXT, generator=second, **options))[-1]
    assert [piece.seconds for piece in done.pieces] == [piece.seconds for piece in whole.pieces[0]]
    assert torch.equal(first.get_state(), second.get_state())


def test_speech_arguments_need_the_audio_mode(model, processor):
    inputs = chat(processor, QUESTIONS[0])
    with pytest.raises(ValueError, match="speaker: only generation_mode='audio' speaks"):
        model.generate(**inputs, speaker="anna")
    with pytest.raises(ValueError, match="a batch of 2"):
        model.stream(**chat(processor, *QUESTIONS), generation_mode="audio")


def test_row_generators_without_a_seed_differ():
    first, second = (torch.rand(1, generator=g) for g in row_generators(None, None, 2))
    assert first != second
