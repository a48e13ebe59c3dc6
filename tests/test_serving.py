"""The server, over real connections: uvicorn in a thread, OpenAI's client, Ming-Tiny's thinker.

Speech and pictures come from small random parts beside it. The engine is held by a job that waits for an event, so
that what is waiting is known and not a matter of time.
"""

import base64
import io
import json
import socket
import subprocess
import sys
import threading
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import av
import httpx
import numpy as np
import openai
import pytest
import soundfile
import torch
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from PIL import Image
from serving_helpers import (
    DEADLINE,
    DEMO,
    EXPECTED,
    OUTCOMES,
    QUESTIONS,
    ROOT,
    Server,
    ask,
    asked,
    processor,
    reading_model,
    until,
)

from ming.cli import serve
from ming.cli.main import main
from ming.events import TextDelta
from ming.serving.engine_jobs import Finished, Sampling, TextJob
from ming.serving.options import build_app
from ming.serving.responses import ChatResponse
from ming.serving.server import create_app
from ming.serving.settings import EngineSettings, Limits
from ming.serving.spoken_replies import SpokenReplies


def test_every_kind_of_input(omni):
    assert ask(omni, QUESTIONS[0]) == "four"
    assert ask(omni, QUESTIONS[1]) == EXPECTED["picture"]
    assert ask(omni, QUESTIONS[2]) == EXPECTED["recording"]
    assert ask(omni, QUESTIONS[2], extra_body={"use_whisper_encoder": True}) == EXPECTED["recording"]
    assert ask(omni, QUESTIONS[3]) == "down"


def test_reply_has_its_reason_and_counts(omni):
    client = omni.client()
    reply = client.chat.completions.create(model="omni", messages=QUESTIONS[1], max_tokens=3)
    assert reply.choices[0].finish_reason == "length" and reply.usage.completion_tokens == 3
    assert EXPECTED["picture"].startswith(reply.choices[0].message.content)
    whole = client.chat.completions.create(model="omni", messages=QUESTIONS[1])
    assert whole.choices[0].finish_reason == "stop" and whole.usage.completion_tokens > 3
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.model == "omni" and whole.choices[0].message.role == "assistant"


def raw(omni, **options) -> bytes:
    """The body of the answer to a chat, as it is sent."""
    return omni.http.post("/v1/chat/completions", json={"messages": QUESTIONS[0], **options}).content


def test_answers_have_openais_shape(omni):
    speech = {"modalities": ["text", "audio"], "audio": {"voice": "anna", "format": "wav"}, "seed": 3}
    for options in ({}, speech):
        reply = ChatCompletion.model_validate_json(raw(omni, **options), strict=True)
        parts = (reply, reply.choices[0], reply.choices[0].message, reply.usage, reply.choices[0].message.audio)
        assert not any(part.model_extra for part in parts if part is not None)


@pytest.mark.parametrize("audio", [False, True])
def test_streams_are_events_with_openais_chunks(omni, audio):
    speech = {"modalities": ["text", "audio"], "audio": {"voice": "anna", "format": "pcm16"}, "seed": 3}
    options = {"stream": True, "stream_options": {"include_usage": True}, **(speech if audio else {})}
    *events, end, rest = raw(omni, **options).split(b"\n\n")
    assert (end, rest) == (b"data: [DONE]", b"") and all(event.startswith(b"data: {") for event in events)
    chunks = [ChatCompletionChunk.model_validate_json(event.removeprefix(b"data: "), strict=True) for event in events]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert not any(part.model_extra for part in (*chunks, *choices, *(choice.delta for choice in choices)))
    assert all(bool(choice.delta.audio) == audio for choice in choices if choice.finish_reason is None)


def test_stop_strings(omni):
    before = EXPECTED["picture"].partition(" and a")[0]
    reply = omni.client().chat.completions.create(model="omni", messages=QUESTIONS[1], stop=["unheard", " and a"])
    assert reply.choices[0].message.content == before and reply.choices[0].finish_reason == "stop"


def test_seeded_sampling_repeats_and_random_state_stays(omni):
    options = {"temperature": 2.0, "seed": 5, "max_tokens": 12}
    state = torch.get_rng_state()
    replies = {ask(omni, asked("Tell me something."), **options) for _ in range(3)}
    assert len(replies) == 1
    until(lambda: omni.metric("ming_jobs_running") == 0)
    assert torch.equal(state, torch.get_rng_state())
    others = {ask(omni, asked("Tell me something."), **{**options, "seed": seed}) for seed in range(6, 12)}
    assert len(others | replies) > 1


def test_streaming_equals_not_streaming(omni):
    for messages in QUESTIONS:
        stream = omni.client().chat.completions.create(
            model="omni", messages=messages, stream=True, stream_options={"include_usage": True}, temperature=0
        )
        chunks = list(stream)
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        assert deltas[0].role == "assistant"
        assert "".join(delta.content or "" for delta in deltas) == ask(omni, messages)
        assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].usage.completion_tokens > 0
        assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_comes_in_pieces(omni):
    chunks = list(omni.client().chat.completions.create(model="omni", messages=QUESTIONS[1], stream=True))
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert len(texts) > 5 and "".join(texts) == EXPECTED["picture"]


class Rows:
    """How many chats were decoded side by side, on the average of all tokens since the beginning."""

    def __init__(self, server: Server):
        self.server = server
        self.steps, self.rows = self._counted()

    def _counted(self) -> tuple[float, float]:
        return self.server.metric("ming_batch_rows_count"), self.server.metric("ming_batch_rows_sum")

    def mean(self) -> float:
        steps, rows = self._counted()
        return (rows - self.rows) / (steps - self.steps)


def test_waiting_requests_are_decoded_together_with_the_answers_they_have_alone(omni):
    alone = [ask(omni, messages) for messages in QUESTIONS]

    def answer(index: int) -> str:
        if index % 2:
            return ask(omni, QUESTIONS[index])
        stream = omni.client().chat.completions.create(
            model="omni", messages=QUESTIONS[index], stream=True, temperature=0
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        with omni.held():
            answers = [pool.submit(answer, index) for index in range(len(QUESTIONS))]
            until(lambda: len(omni.engine.waiting_jobs()) == len(QUESTIONS))
            rows = Rows(omni)
        assert [future.result(DEADLINE) for future in answers] == alone
    assert rows.mean() > 1


def test_chats_that_choose_tokens_differently_are_decoded_together(omni):
    """Also with a seed, and recordings for both encoders."""
    whisper = {"extra_body": {"use_whisper_encoder": True}}
    options = [{}, {"temperature": 0.01}, {"temperature": 0.01, "seed": 1}, whisper]
    with ThreadPoolExecutor(4) as pool:
        with omni.held():
            answers = [pool.submit(ask, omni, QUESTIONS[2], **more) for more in options]
            until(lambda: len(omni.engine.waiting_jobs()) == 4)
            rows = Rows(omni)
        texts = [future.result(DEADLINE) for future in answers]
    assert texts == [EXPECTED["recording"]] * 4
    assert rows.mean() > 3  # of 20 tokens each, and one more chat joins at each of the first four


def test_a_full_queue_is_429(omni):
    with ThreadPoolExecutor(8) as pool:
        with omni.held():
            answers = [pool.submit(ask, omni, QUESTIONS[0]) for _ in range(8)]
            until(lambda: len(omni.engine.waiting_jobs()) == 8)
            with pytest.raises(openai.RateLimitError) as caught:
                ask(omni, QUESTIONS[0])
        assert {future.result(DEADLINE) for future in answers} == {"four"}
    assert caught.value.response.headers["retry-after"] == "2" and caught.value.code == "queue_full"
    assert ask(omni, QUESTIONS[0]) == "four"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(omni, stream):
    cancelled = omni.metric("ming_jobs_total", kind="text", outcome="cancelled")
    body = json.dumps({"messages": QUESTIONS[0], "stream": stream}).encode()
    with omni.held():
        connection = socket.create_connection(omni.socket.getsockname())
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        until(lambda: len(omni.engine.waiting_jobs()) == 1)
        connection.close()
        until(lambda: not omni.engine.waiting_jobs())
        assert omni.metric("ming_jobs_total", kind="text", outcome="cancelled") == cancelled + 1
        assert omni.metric("ming_jobs_waiting") == 0


def test_speech_is_sent_while_it_is_made_and_leaving_ends_it(omni):
    before = {outcome: omni.metric("ming_jobs_total", kind="speech", outcome=outcome) for outcome in OUTCOMES}
    long_text = "A red circle is above a green square. " * 100
    with omni.client().audio.speech.with_streaming_response.create(
        model="omni", voice="anna", input=long_text, response_format="wav"
    ) as response:
        assert response.headers["content-type"] == "audio/wav"
        assert next(response.iter_bytes()).startswith(b"RIFF")
        assert omni.metric("ming_jobs_running") == 1
    until(lambda: omni.metric("ming_jobs_running") == 0)
    after = {outcome: omni.metric("ming_jobs_total", kind="speech", outcome=outcome) for outcome in OUTCOMES}
    assert after == {**before, "cancelled": before["cancelled"] + 1}


def test_a_row_that_is_cancelled_ends_and_its_neighbour_does_not(omni):
    prepare = processor().apply_chat_template

    def job(deliver) -> TextJob:
        chat = [{"role": "user", "content": [{"type": "image", "image": str(DEMO / "picture.jpg")}]}]
        inputs = dict(prepare([chat], tokenize=True, return_dict=True, return_tensors="pt"))
        return TextJob(deliver, inputs, Sampling(temperature=0), 12)

    events: list[list] = [[], []]
    done = [threading.Event(), threading.Event()]
    jobs: list[TextJob] = []

    def deliver_to(index: int):
        def deliver(event) -> None:
            events[index].append(event)
            if index == 0 and isinstance(event, TextDelta):
                jobs[0].cancel()  # in the engine's thread, at the first piece of text
            if isinstance(event, Finished):
                done[index].set()

        return deliver

    jobs += [job(deliver_to(0)), job(deliver_to(1))]
    with omni.held():
        for each in jobs:
            omni.engine.reserve()
            omni.engine.submit(each)
    assert all(event.wait(DEADLINE) for event in done)
    assert len(events[0]) == 2 and events[0][-1].reason == "cancelled"
    assert len(events[1]) > 2 and events[1][-1].completion_tokens > events[0][-1].completion_tokens


def test_spoken_reply(omni):
    options = {"model": "omni", "messages": QUESTIONS[0], "modalities": ["text", "audio"], "seed": 3}
    client = omni.client()
    reply = client.chat.completions.create(**options, audio={"voice": "bert", "format": "wav"})
    sound = reply.choices[0].message.audio
    assert sound.transcript == "four" and reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == 2  # the word and the end
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sound.data)), dtype="int16")
    assert rate == 22050 and len(samples) > 0
    stream = client.chat.completions.create(**options, audio={"voice": "bert", "format": "pcm16"}, stream=True)
    parts = [chunk.choices[0].delta.model_dump().get("audio") or {} for chunk in stream]
    assert "".join(part.get("transcript") or "" for part in parts) == "four"
    streamed = np.frombuffer(b"".join(base64.b64decode(part.get("data") or "") for part in parts), "<i2")
    assert len({part["id"] for part in parts if part}) == 1
    assert len(streamed) == len(samples) and abs(streamed.astype(int) - samples).max() <= 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_spoken_chat_goes_on_by_the_id_of_its_audio(omni, stream):
    """As OpenAI's guide says; clients also send back the message as they got it."""
    client = omni.client()
    options = {"model": "omni", "messages": QUESTIONS[0], "modalities": ["text", "audio"], "seed": 3}
    options |= {"audio": {"voice": "bert", "format": "pcm16"}, "stream": stream}
    reply = client.chat.completions.create(**options)
    if stream:
        parts = [(chunk.choices[0].delta.model_dump().get("audio") or {}) for chunk in reply]
        name, expires_at = parts[0]["id"], max(part.get("expires_at") or 0 for part in parts)
    else:
        name, expires_at = reply.choices[0].message.audio.id, reply.choices[0].message.audio.expires_at
    assert 3500 < expires_at - time.time() <= 3600
    said, question = {"role": "assistant", "audio": {"id": name}}, asked("What is your last answer?")
    written = {"role": "assistant", "content": "four"}
    known, same = (
        client.chat.completions.create(model="omni", messages=[*QUESTIONS[0], message, *question])
        for message in (said, written)
    )
    assert known.choices[0].message == same.choices[0].message
    assert known.usage == same.usage
    if not stream:
        whole = reply.choices[0].message
        assert ask(omni, [*QUESTIONS[0], whole, *question]) == same.choices[0].message.content


def test_spoken_replies_that_are_not_known(omni):
    """After a restart or their time; and what the user says has no id."""
    lost = {"role": "assistant", "audio": {"id": "audio-of-yesterday"}}
    with pytest.raises(
        openai.BadRequestError, match="'audio-of-yesterday' is not known, .* send what was said as the"
    ):
        ask(omni, [*QUESTIONS[0], lost, *QUESTIONS[0]])
    assert ask(omni, [*QUESTIONS[0], {**lost, "content": "four"}, *QUESTIONS[0]]) == "four"
    with pytest.raises(openai.BadRequestError, match=r"messages.0.audio: messages of the role 'user' name no reply"):
        ask(omni, [{"role": "user", "audio": {"id": "x"}}])
    with pytest.raises(openai.BadRequestError, match=r"messages.0.content: Field required"):
        ask(omni, [{"role": "user"}])


def test_spoken_replies_are_few_and_expire():
    kept, now = SpokenReplies(most=2, seconds=5.0), int(time.time())
    for number in range(3):
        kept.keep(str(number), f"reply {number}", now + 100)
    assert [kept.find(str(number)) for number in range(3)] == [None, "reply 1", "reply 2"]
    kept.keep("past", "reply", now)
    assert kept.find("past") is None
    none = SpokenReplies(most=0, seconds=5.0)
    none.keep("0", "reply", now + 100)
    assert none.find("0") is None
    forwarded = {"id": "1", "created": now}  # by a cluster, whose next request may go to another process
    assert ChatResponse.of_request("omni", forwarded, 3600).expires_at == now


def test_speech_formats(omni):
    options = {"model": "omni", "voice": "anna", "input": "A red circle.", "extra_body": {"seed": 1}}
    said = {
        format: omni.client().audio.speech.create(**options, response_format=format).content
        for format in ("wav", "pcm", "flac")
    }
    with wave.open(io.BytesIO(said["wav"])) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 22050)
    assert said["wav"][44:] == said["pcm"] and len(said["pcm"]) > 2000
    with av.open(io.BytesIO(said["flac"])) as container:
        frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    assert np.array_equal(np.concatenate(frames), np.frombuffer(said["pcm"], "<i2"))


@pytest.mark.parametrize("audio_format", ["wav", "flac", "pcm16"])
def test_an_empty_reply_is_an_empty_transcript_without_audio(omni, audio_format):
    """Ming-Tiny answers "hi" with no word; in text mode that is an answer, too."""
    client, options = omni.client(), {"model": "omni", "messages": asked("hi"), "seed": 3}
    assert client.chat.completions.create(**options).choices[0].message.content == ""
    speech = {"modalities": ["text", "audio"], "audio": {"voice": "anna", "format": audio_format}}
    reply = client.chat.completions.create(**options, **speech)
    data = base64.b64decode(reply.choices[0].message.audio.data)
    assert reply.choices[0].message.audio.transcript == "" and reply.choices[0].finish_reason == "stop"
    if audio_format == "pcm16":
        assert data == b""
    else:  # a flac file holds one sample at least
        samples, rate = soundfile.read(io.BytesIO(data))
        assert len(samples) == (audio_format == "flac") and not samples.any() and rate == 22_050
    speech["audio"]["format"] = "pcm16"
    chunks = list(client.chat.completions.create(**options, **speech, stream=True))
    assert not any((chunk.choices[0].delta.model_dump().get("audio") or {}).get("data") for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_neutral_values_of_what_is_not_supported_change_nothing(omni):
    """What clients and frameworks send as a matter of course."""
    neutral = {
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "functions": [],
        "prediction": {},
        "web_search_options": {},
        "chat_template_kwargs": {},
        "truncation": "disabled",
        "repetition_penalty": 1.0,
        "min_p": 0,
        "best_of": 1,
        "echo": False,
        "ignore_eos": False,
        "stop": "",
        "function_call": "none",
        "response_format": {"type": "text"},
        "logit_bias": {},
        "logprobs": False,
        "top_logprobs": 0,
        "service_tier": "auto",
        "reasoning_effort": "none",
        "prompt_cache_key": "mine",
        "prompt_cache_retention": "in_memory",
        "prompt_cache_options": {"ttl": "30m"},
        "safety_identifier": "me",
        "user": "me",
        "metadata": {"mine": "yes"},
        "n": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "store": False,
    }
    known = ("stream", "use_whisper_encoder", "load_audio_from_video", "stop", "modalities", "audio", "n", "metadata")
    nulls = dict.fromkeys((*neutral, *known, "prediction", "web_search_options", "reasoning_content"))
    answer = {"role": "assistant", "content": "four", "refusal": None, "annotations": [], "tool_calls": []}
    mark = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    question = {"type": "text", "text": "What comes after six?", **mark}
    messages = [*QUESTIONS[0], answer, {"role": "user", "name": "", "content": [question]}]
    for options in (neutral, nulls):
        reply = omni.http.post("/v1/chat/completions", json={"messages": messages, "temperature": 0, **options})
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"][0]["message"]["content"] == "seven"
    spoken = {
        "input": "A red circle.",
        "seed": 1,
        "instructions": "",
        "response_format": None,
        "voice": None,
        "speed": 1,
    }
    assert omni.http.post("/v1/audio/speech", json=spoken).headers["content-type"] == "audio/wav"


NEUTRAL_DRAWING = {"quality": "auto", "background": "auto", "moderation": "auto", "partial_images": 0, "n": 1}
NEUTRAL_DRAWING |= {"stream": False, "output_compression": 100, "style": "vivid", "size": "auto", "user": "me"}
NEUTRAL_DRAWING |= {"output_format": "png", "response_format": "b64_json", "safety_identifier": "me"}


def test_neutral_values_of_drawings_change_nothing(omni):
    """As JSON, and as texts of a form, where an empty field is one that is left out."""

    def drawn(path: str, **body) -> str:
        answer = omni.http.post(path, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"][0]["b64_json"]

    image = {"prompt": "A circle.", "seed": 4, "num_inference_steps": 1}
    nulls = dict.fromkeys((*NEUTRAL_DRAWING, "guidance_scale", "svg"))
    others = {"quality": "standard", "background": "opaque", "moderation": "low"}
    bodies = [{**image, **more} for more in ({}, nulls, NEUTRAL_DRAWING, others)]
    assert len({drawn("/v1/images/generations", json=body) for body in bodies}) == 1
    files = {"image": ("picture.jpg", (DEMO / "picture.jpg").read_bytes())}
    form = {name: str(value).lower() for name, value in {**NEUTRAL_DRAWING, "input_fidelity": "low"}.items()}
    empty = dict.fromkeys((*form, "mask", "language"), "")
    edits = [{**image, **more} for more in ({}, form, empty)]
    assert len({drawn("/v1/images/edits", data=data, files=files) for data in edits}) == 1


def test_neutral_values_of_transcriptions_change_nothing(omni):
    file = ("recording.wav", (DEMO / "recording.wav").read_bytes())
    options = {"prompt": "", "language": "", "temperature": 0, "stream": False, "include": []}
    options |= {"chunking_strategy": "auto", "timestamp_granularities": ["segment"], "response_format": "verbose_json"}
    heard = omni.client().audio.transcriptions.create(model="omni", file=file, **options)
    assert heard.text == EXPECTED["recording"]


def test_a_recording_may_come_as_a_data_url_or_with_line_ends(omni):
    """Browsers' FileReader makes the first, base64 of the command line the second."""
    plain = QUESTIONS[2][0]["content"][0]["input_audio"]["data"]
    lines = base64.encodebytes(base64.b64decode(plain)).decode()
    for data in (
        f"data:audio/wav;base64,{plain}",
        lines,
        lines.replace("\n", "\r\n"),
        f"data:audio/wav;base64,{lines}",
    ):
        part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        assert ask(omni, asked("Transcribe this recording.", part)) == EXPECTED["recording"]
    picture = base64.encodebytes((DEMO / "picture.jpg").read_bytes()).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}}
    assert ask(omni, asked("Describe the picture.", part)) == EXPECTED["picture"]


def test_images_that_the_assistant_made_are_seen(omni):
    """They stand in its messages, as clients keep them."""
    picture = QUESTIONS[1][0]["content"][0]
    made = [*asked("Draw something."), {"role": "assistant", "content": [picture]}]
    both = [{"role": "assistant", "content": [{"type": "text", "text": "Here it is."}, picture]}]
    for history in (made, [*made[:1], *both]):
        assert ask(omni, [*history, {"role": "user", "content": "What colour is the background?"}]) == "black"
        assert ask(omni, [*history, *asked("What colour is the background?")]) == "black"


def read_back(omni, data: bytes, name: str):
    return omni.http.post("/v1/audio/transcriptions", files={"file": (name, data)})


@pytest.mark.parametrize("audio_format", ["wav", "flac"])
def test_complete_speech_has_its_length_and_is_read_back(omni, audio_format):
    """A player shows the length of the header; a whole file is no stream of 97,391 s."""
    options = {"model": "omni", "voice": "anna", "input": "A red circle.", "extra_body": {"seed": 1}}
    speech = omni.client().audio.speech
    pcm = speech.create(**options, response_format="pcm").content
    whole = speech.create(**options, response_format=audio_format)
    assert soundfile.info(io.BytesIO(whole.content)).frames == len(pcm) // 2
    assert int(whole.response.headers["content-length"]) == len(whole.content)
    assert read_back(omni, whole.content, f"a.{audio_format}").status_code == 200


def test_streamed_speech_is_read_back(omni):
    """By us and by soundfile; a flac of any length is complete, since soundfile reads no other."""
    options = {"model": "omni", "voice": "anna", "extra_body": {"seed": 1}}
    speech = omni.client().audio.speech
    wav, pcm = (
        speech.create(**options, input="A red circle. " * 18, response_format=name, timeout=300)
        for name in ("wav", "pcm")
    )
    flac = speech.create(**options, input="A red circle. " * 18, response_format="flac", timeout=300)
    assert "content-length" not in wav.response.headers and "content-length" in flac.response.headers
    for answer in (wav, flac):
        assert len(soundfile.read(io.BytesIO(answer.content))[0]) == len(pcm.content) // 2
    options["extra_body"]["stream_format"] = "audio"
    short = speech.create(**options, input="A red circle.", response_format="wav")
    assert "content-length" not in short.response.headers
    assert read_back(omni, short.content, "a.wav").status_code == 200
    with pytest.raises(openai.BadRequestError, match="a flac begins with its length; ask for wav or pcm"):
        speech.create(**options, input="A red circle.", response_format="flac")


def test_joined_recordings_are_measured_as_a_whole(omni):
    """A file of several MP3 files has the length of the first in its header."""
    tone, file = np.sin(np.arange(2 * 16000) / 20), io.BytesIO()
    soundfile.write(file, tone, 16000, format="MP3")
    answer = read_back(omni, file.getvalue() * 4, "joined.mp3")  # the limit is 6 s
    assert answer.status_code == 400 and "s are more than the 6 s" in answer.json()["error"]["message"]
    assert read_back(omni, file.getvalue(), "one.mp3").status_code == 200


@pytest.fixture
def beside():
    """A server of the same process that answers somebody else."""
    server = Server(create_app(reading_model(), processor()))
    yield server
    server.close()


def test_warnings_about_media_reach_the_client_who_sent_them(omni, beside):
    """Once, although another app of the process collects those of its own clients."""
    raw = omni.client().with_raw_response
    whole = (DEMO / "recording.wav").read_bytes()
    cut = whole[: len(whole) * 6 // 10]
    telephone = io.BytesIO()
    soundfile.write(telephone, np.sin(np.arange(8000) / 5), 8000, format="wav")

    def warnings(name: str, data: bytes, **options) -> list[str]:
        answer = raw.audio.transcriptions.create(model="omni", file=(name, data), **options)
        return json.loads(answer.headers.get("X-Ming-Warnings", "[]"))

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(warnings, f"{i}.wav", cut if i % 2 else whole, stream=i == 3) for i in range(4)]
        found = [job.result() for job in jobs]
    assert found[0] == found[2] == []
    for index in (1, 3):
        (told,) = found[index]
        assert f"audio '{index}.wav'" in told and "it is probably cut off" in told
    for _ in range(2):
        (told,) = warnings("phone.wav", telephone.getvalue())
        assert "telephone quality" in told
    encoded = {"data": base64.b64encode(cut).decode(), "format": "wav"}
    question = asked("Transcribe this recording.", {"type": "input_audio", "input_audio": encoded})
    for options in (
        {},
        {"stream": True},
        {"modalities": ["text", "audio"], "audio": {"voice": "anna", "format": "wav"}},
    ):
        answer = raw.chat.completions.create(model="omni", messages=question, **options)
        (told,) = json.loads(answer.headers["X-Ming-Warnings"])
        assert "it is probably cut off" in told


def test_transcription(omni):
    client = omni.client()
    file = ("recording.wav", (DEMO / "recording.wav").read_bytes())
    assert client.audio.transcriptions.create(model="omni", file=file).text == EXPECTED["recording"]
    whisper = {"use_whisper_encoder": True}
    text = client.audio.transcriptions.create(model="omni", file=file, response_format="text", extra_body=whisper)
    assert text.strip() == EXPECTED["recording"]
    verbose = client.audio.transcriptions.create(model="omni", file=file, response_format="verbose_json")
    assert (verbose.text, verbose.language) == (EXPECTED["recording"], "english")
    assert verbose.duration == pytest.approx(soundfile.info(DEMO / "recording.wav").duration, abs=0.01)
    events = list(client.audio.transcriptions.create(model="omni", file=file, stream=True))
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == EXPECTED["recording"]


def test_drawing(omni):
    client = omni.client()
    few = {"num_inference_steps": 1, "seed": 4}
    two = client.images.generate(model="omni", prompt="A circle.", n=2, size="96x64", extra_body=few)
    pictures = [Image.open(io.BytesIO(base64.b64decode(item.b64_json))) for item in two.data]
    assert [(picture.format, picture.size) for picture in pictures] == [("PNG", (96, 64))] * 2
    again = client.images.generate(model="omni", prompt="A circle.", size="96x64", extra_body=few)
    assert again.data[0].b64_json == two.data[0].b64_json != two.data[1].b64_json
    jpeg = client.images.generate(model="omni", prompt="A circle.", output_format="jpeg", extra_body=few)
    picture = Image.open(io.BytesIO(base64.b64decode(jpeg.data[0].b64_json)))
    assert picture.format == "JPEG" and picture.size == (64, 64)


def test_edits(omni):
    file = ("picture.jpg", (DEMO / "picture.jpg").read_bytes())
    few = {"num_inference_steps": "1", "seed": "4"}
    client = omni.client()
    prompts = {"one": file, "two": [file, file]}
    drawn = {
        name: client.images.edit(model="omni", image=files, prompt="Make it blue.", extra_body=few).data[0].b64_json
        for name, files in prompts.items()
    }
    plain = client.images.generate(model="omni", prompt="Make it blue.", extra_body=few).data[0].b64_json
    assert len({plain, *drawn.values()}) == 3  # the pictures matter


def test_models_health_and_metrics(omni):
    assert [model.id for model in omni.client().models.list()] == ["omni"]
    assert omni.client().models.retrieve("omni").id == "omni"
    assert omni.http.get("/health").json() == {"status": "ok", "model": "omni", "outputs": ["text", "audio", "image"]}
    ask(omni, QUESTIONS[0])
    text = omni.http.get("/metrics").text
    for line in ("ming_batch_rows_bucket", 'ming_requests_total{route="/v1/chat/completions",status="200"}'):
        assert line in text
    assert omni.metric("ming_prompt_tokens_total") > 0 and omni.metric("ming_new_tokens_total") > 0


@pytest.fixture
def broken():
    """A model whose pictures do not fit its words."""
    model = reading_model()
    model.linear_proj = torch.nn.Linear(model.config.vision_config.out_hidden_size, 7)
    server = Server(create_app(model, processor()))
    yield server
    server.close()


def test_a_failing_job_is_a_server_error_and_the_engine_goes_on(broken):
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            ask(broken, QUESTIONS[1], model="ming", stream=stream)
        assert caught.value.code == "internal_error" and "its log says why" in caught.value.message
    assert broken.metric("ming_jobs_total", kind="text", outcome="failed") == 2
    assert ask(broken, QUESTIONS[0], model="ming") == "four"


def test_a_request_that_fails_does_not_fail_its_neighbours(broken):
    """Three chats that are decoded together, and the second cannot be read."""
    with ThreadPoolExecutor(3) as pool:
        with broken.held():
            answers = [pool.submit(ask, broken, QUESTIONS[index], model="ming") for index in (0, 1, 5)]
            until(lambda: len(broken.engine.waiting_jobs()) == 3)
        assert answers[0].result(DEADLINE) == "four" and answers[2].result(DEADLINE) == "six"
        with pytest.raises(openai.InternalServerError, match="its log says why"):
            answers[1].result(DEADLINE)
    assert broken.metric("ming_jobs_total", kind="text", outcome="failed") == 1
    assert broken.metric("ming_jobs_total", kind="text", outcome="stop") == 2
    assert broken.metric("ming_jobs_waiting") == 0


def test_an_end_of_the_engine_is_told_to_who_waits(broken):
    closing = threading.Thread(target=broken.engine.close)
    with ThreadPoolExecutor(1) as pool:
        with broken.held():
            answer = pool.submit(ask, broken, QUESTIONS[0], model="ming")
            until(lambda: len(broken.engine.waiting_jobs()) == 1)
            closing.start()
            until(lambda: broken.engine.waiting_jobs()[0].cancelled)
        with pytest.raises(openai.InternalServerError, match="shutting down") as caught:
            answer.result(DEADLINE)
    closing.join(DEADLINE)
    assert caught.value.status_code == 503 and broken.http.get("/health").status_code == 503
    with pytest.raises(openai.InternalServerError, match="shutting down"):
        ask(broken, QUESTIONS[0], model="ming")


def test_an_orderly_end_answers_what_waits():
    server = Server(create_app(reading_model(), processor()))
    with ThreadPoolExecutor(1) as pool:
        with server.held():
            answer = pool.submit(ask, server, QUESTIONS[0], model="ming")
            until(lambda: len(server.engine.waiting_jobs()) == 1)
            server.server.should_exit = True
        assert answer.result(DEADLINE) == "four"
    server.close()
    assert not server.engine.is_alive


def test_command_line():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ming", "serve", "--model", ".", "--port", str(port), "--new-tokens", "3"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: process.poll() is not None or "running on" in process.stderr.readline())
            assert process.poll() is None
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE) as http:
                answer = http.post("/v1/chat/completions", json={"messages": QUESTIONS[1]}).json()
        finally:
            process.terminate()
            _, log = process.communicate(timeout=DEADLINE)
    assert answer["choices"][0]["finish_reason"] == "length" and answer["model"] == ROOT.name
    assert "Application shutdown complete" in log


def server_options(*arguments: str):
    return serve.server_options(serve.build_parser().parse_args(["--model", str(ROOT), *arguments]))


def test_every_limit_has_an_option():
    """Of requests and of the engine; the app is built from what is read here."""
    for kind, part in ((Limits, "limits"), (EngineSettings, "settings")):
        for field in fields(kind):
            value = type(field.default)(field.default + 1)
            options = server_options("--" + field.name.replace("_", "-"), str(value))
            assert getattr(options, part) == replace(kind(), **{field.name: value})


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("MING_API_KEY", raising=False)
    assert server_options().site.api_key is None
    monkeypatch.setenv("MING_API_KEY", "open sesame")
    assert server_options().site.api_key == "open sesame"
    assert server_options("--api-key", "another").site.api_key == "another"


def test_served_in_4_bit():
    arguments = ["--model", str(ROOT), "--load-in-4bit", "--without", "talker", "image_gen", "--device", "cpu"]
    app = build_app(serve.server_options(serve.build_parser().parse_args(arguments)))
    assert app.state.service.engine.model.is_loaded_in_4bit
    server = Server(app)
    try:
        assert ask(server, QUESTIONS[0], model=ROOT.name) == "four"
    finally:
        server.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--api-key", ""], "the API key is empty"),
        (["--batch", "0"], "argument --batch: 0 is not accepted; give a whole number of at least 1"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        ([], "no such directory"),
    ],
)
def test_command_line_refuses_before_loading(capsys, arguments, message):
    assert main(["serve", "--model", "no such directory", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("ming: error: ") and said.count("\n") == 1
