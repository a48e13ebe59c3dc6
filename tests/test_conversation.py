"""`Chat`: the answers of whole conversations, each token read once; failures leave a conversation as it was."""

from pathlib import Path

import pytest
from transformers import GenerationConfig

ROOT = Path(__file__).resolve().parents[1]
PICTURE = {"type": "image", "image": str(ROOT / "demo" / "picture.jpg")}
RECORDING = {"type": "audio", "audio": str(ROOT / "demo" / "recording.wav")}
TURNS = [
    [PICTURE, {"type": "text", "text": "Describe the picture."}],
    "What colour is the background?",
    [{"type": "text", "text": "Transcribe this recording."}, RECORDING],
    [PICTURE, {"type": "text", "text": "Do both pictures have the same background?"}],
]


def whole(model, processor, messages: list[dict], **options) -> str:
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    sequences = model.generate(**inputs, **options)
    return processor.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture
def read(model):
    """Numbers of tokens that go through the decoder, call by call."""
    counts = []
    handle = (
        model.get_decoder()
        .layers[0]
        .register_forward_pre_hook(lambda module, args: counts.append(args[0].shape[1]), prepend=True)
    )
    yield counts
    handle.remove()


@pytest.mark.parametrize("system", [None, "Answer in few words."])
def test_every_reply_is_that_of_the_whole_conversation(model, processor, read, system):
    chat = model.chat(processor, system, max_new_tokens=48)
    messages = [] if system is None else [{"role": "system", "content": system}]
    lengths = []
    for content in TURNS:
        read.clear()
        reply = chat.say(content)
        lengths.append(read[0])
        messages.append({"role": "user", "content": content})
        assert reply == whole(model, processor, messages, max_new_tokens=48)
        messages.append({"role": "assistant", "content": reply})
    assert chat.messages == messages
    alone = processor.apply_chat_template(
        [{"role": "user", "content": TURNS[1]}], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    assert lengths[1] == len(alone["input_ids"][0])  # nothing of the first turn is read again


def test_a_reply_that_was_cut_off_goes_on_from_its_last_token(model, processor, read):
    chat = model.chat(processor)
    first = chat.say(TURNS[0], max_new_tokens=4)
    read.clear()
    reply = chat.say(TURNS[1], max_new_tokens=8)
    turn = "<role>HUMAN</role>What colour is the background?<role>ASSISTANT</role>"
    assert read[0] == 1 + len(processor.tokenizer(turn)["input_ids"])
    messages = [
        {"role": "user", "content": TURNS[0]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": TURNS[1]},
    ]
    assert reply == whole(model, processor, messages, max_new_tokens=8)


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(model, processor, monkeypatch):
    chat = model.chat(processor, max_new_tokens=16)
    chat.say(TURNS[0])
    messages, length = list(chat.messages), chat.cache.get_seq_length()

    class Interruption(Exception):
        pass

    def stop(ids, scores, **kwargs):
        raise Interruption

    with pytest.raises(Interruption):
        chat.say(TURNS[1], stopping_criteria=[stop])
    with monkeypatch.context() as patch:
        patch.setattr(model.config.llm_config, "max_position_embeddings", length + 5)
        with pytest.raises(ValueError, match=f"the model's context is {length + 5}"):
            chat.say(TURNS[1])
    layer = model.get_decoder().layers[1].mlp
    for turn in ("the prompt", "a token"):  # within a pass, when the first layers have grown already
        with monkeypatch.context() as patch:
            patch.setattr(layer, "forward", stop_at(layer.forward, 1 if turn == "the prompt" else 2, Interruption))
            with pytest.raises(Interruption):
                chat.say(TURNS[1])
        assert {kept.get_seq_length() for kept in chat.cache.layers} == {length}
    assert (chat.messages, chat.cache.get_seq_length()) == (messages, length)
    reply = chat.say(TURNS[1])
    assert reply == whole(model, processor, [*messages, {"role": "user", "content": TURNS[1]}], max_new_tokens=16)


def stop_at(forward, call: int, error: type[Exception]):
    """`forward` that raises when it is called for the n-th time."""
    calls = []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise error
        return forward(*args, **kwargs)

    return stopping


def test_the_encoder_of_recordings_is_chosen_for_all_turns_or_for_one(model, processor, monkeypatch):
    used = []
    monkeypatch.setattr(model.whisper_encoder, "forward", counted(model.whisper_encoder.forward, used))
    for_all = model.chat(processor, use_whisper_encoder=True, max_new_tokens=16)
    assert for_all.say(TURNS[2]) == model.chat(processor, max_new_tokens=16).say(TURNS[2], use_whisper_encoder=True)
    assert len(used) == 2
    for_all.say(TURNS[2], use_whisper_encoder=False)
    assert len(used) == 2


def counted(forward, calls: list):
    """`forward` that notes its calls."""
    return lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)


SEVERAL = [
    {"num_beams": 2},
    {"num_return_sequences": 2, "do_sample": True},
    {"generation_config": GenerationConfig(num_beams=3)},
]


@pytest.mark.parametrize("options", SEVERAL)
def test_a_turn_of_several_replies_is_refused_and_nothing_is_lost(model, processor, monkeypatch, options):
    """A chat goes on from one reply: rows of others must not get into its cache."""
    message = "=[23]: a chat goes on from one reply, .*; use model.generate on the whole conversation"
    chat = model.chat(processor, max_new_tokens=16)
    chat.say(TURNS[0])
    messages = list(chat.messages)
    with pytest.raises(ValueError, match=message):
        chat.say(TURNS[1], **options)
    with pytest.raises(ValueError, match=message):
        model.chat(processor, **options)
    assert chat.messages == messages
    asked = {**vars(options.get("generation_config", GenerationConfig())), **options}
    with monkeypatch.context() as patch:
        for name in ("num_beams", "num_return_sequences"):
            patch.setattr(model.generation_config, name, asked.get(name))
        with pytest.raises(ValueError, match=message):
            chat.say(TURNS[1])
    reply = chat.say(TURNS[1], num_beams=1, num_return_sequences=None)
    assert reply == whole(model, processor, [*messages, {"role": "user", "content": TURNS[1]}], max_new_tokens=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_cache": False}, "use_cache=False: a chat reads every turn once"),
        ({"custom_generate": whole}, "custom_generate=whole: a chat goes on from the cache of a reply"),
        ({"generation_mode": "image"}, "generation_mode='image': a chat answers in text"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate: a chat sets this itself"),
    ],
)
def test_options_that_a_conversation_cannot_take(model, processor, options, message):
    with pytest.raises(ValueError, match=message):
        model.chat(processor, **options)
    with pytest.raises(ValueError, match=message):
        model.chat(processor).say(TURNS[0], **options)


def test_a_conversation_can_start_again(model, processor):
    chat = model.chat(processor, max_new_tokens=16)
    first = chat.say("What comes after three?")
    chat.reset()
    assert chat.messages == [] and chat.cache.get_seq_length() == 0
    assert chat.say("What comes after three?") == first
