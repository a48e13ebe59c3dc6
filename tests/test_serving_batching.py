"""What lies under the batches: text that comes token by token."""

import random
from pathlib import Path

import pytest

from ming.processing_bailingmm import BailingMMProcessor
from ming.serving.batching import ReplyText

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def processor():
    return BailingMMProcessor.from_pretrained(ROOT)


def pieces_of(processor, ids: list[int], *stop: str) -> tuple[list[str], ReplyText]:
    reply = ReplyText(processor.tokenizer, stop)
    pieces = []
    for token_id in ids:
        pieces.append(reply.push(token_id))
        if reply.stopped:
            break
    return [*pieces, reply.finish()], reply


@pytest.mark.parametrize("text", ["naïve 世界 😀 ok", "<role> is text, 👩‍👩‍👧 too"])
def test_half_characters_are_never_sent(processor, text):
    pieces, _ = pieces_of(processor, processor.tokenizer(text, split_special_tokens=True)["input_ids"])
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces) and "" in pieces[:-1]


def test_pieces_are_the_decoded_text_for_any_tokens(processor):
    choose = random.Random(0)
    for _ in range(50):
        ids = choose.choices(range(len(processor.tokenizer)), k=30)
        assert "".join(pieces_of(processor, ids)[0]) == processor.decode(ids, skip_special_tokens=True)


def test_a_character_cut_by_the_end_is_shown_as_such(processor):
    ids = processor.tokenizer("ok 😀")["input_ids"][:-1]
    pieces, _ = pieces_of(processor, ids)
    assert "".join(pieces) == processor.decode(ids) and "\ufffd" in pieces[-1]


@pytest.mark.parametrize(
    ("stop", "said", "stopped"),
    [
        (["circle"], "a red ", True),
        (["red circle on", "d c"], "a re", True),
        (["circles"], "a red circle", False),
        (["e!", "ccc"], "a red circle", False),
        (["a red circle"], "", True),
        (["unheard"], "a red circle", False),
    ],
)
def test_stop_strings_and_their_beginnings(processor, stop, said, stopped):
    pieces, reply = pieces_of(processor, processor.tokenizer("a red circle")["input_ids"], *stop)
    assert "".join(pieces) == said and reply.stopped == stopped
