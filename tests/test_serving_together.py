"""Several people at one server: chats join those that run, replies are spoken side by side, drawings stop nobody.

What happens beside what is arranged, by hooks and events, and not a matter of time.
"""

import asyncio
import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import openai
import pytest
import soundfile
import torch
from serving_helpers import DEADLINE, DEMO, EXPECTED, QUESTIONS, ask, asked, processor, reading_model, until
from thinker_helpers import batch as joined
from thinker_helpers import mixed_chats, tiny_model

from ming.events import AudioChunk, ImageDone, ImageProgress, TextDelta
from ming.serving.batching import to_model
from ming.serving.engine import Engine
from ming.serving.engine_jobs import Failed, Finished, Job, Sampling, StreamJob, TextJob
from ming.serving.forwarding import IDENTITY
from ming.serving.metrics import Metrics
from ming.serving.running_batch import RunningBatch
from ming.serving.settings import EngineSettings

GREEDY = Sampling(temperature=0)
LONG, LENGTH = QUESTIONS[1], 21  # a description of a picture, and how many tokens it has
PICTURE = {"type": "image", "image": str(DEMO / "picture.jpg")}
RECORDING = {"type": "audio", "audio": str(DEMO / "recording.wav")}
CLIP = {"type": "video", "video": str(DEMO / "clip.mp4")}
# Content, options of the processor.
CHATS = [
    ([PICTURE, "Describe the picture."], {}),
    (["What comes after three?"], {}),
    ([RECORDING, "Transcribe this recording."], {}),
    ([RECORDING, "Transcribe this recording."], {"use_whisper_encoder": True}),
    ([CLIP, "Which way does it move?"], {}),
    ([PICTURE, CLIP, RECORDING, "Look."], {}),
]


@pytest.fixture(scope="module")
def thinker():
    return reading_model()


@pytest.fixture(scope="module")
def chats():
    """The processor's outputs for `CHATS`."""
    prepare = processor().apply_chat_template
    inputs = []
    for content, options in CHATS:
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", **options}
        inputs.append(dict(prepare([[{"role": "user", "content": parts}]], add_generation_prompt=True, **options)))
    return inputs


class Heard:
    """What a job sends. Before an event is noted, `react` is told how many came before it; it runs in the engine."""

    def __init__(self, react=lambda number: None):
        self.events, self.done, self.react = [], threading.Event(), react

    def __call__(self, event) -> None:
        self.react(len(self.events))
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            self.done.set()

    @property
    def text(self) -> str:
        assert self.done.wait(DEADLINE)
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def waveform(self) -> torch.Tensor:
        assert self.done.wait(DEADLINE)
        return torch.cat([event.waveform for event in self.events if isinstance(event, AudioChunk)])


@contextmanager
def engine_of(model, **settings):
    engine = Engine(model, processor().tokenizer, EngineSettings(**settings), Metrics())
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def submit(engine: Engine, job: Job) -> None:
    engine.reserve()
    engine.submit(job)


def text_job(heard: Heard, inputs: dict, sampling: Sampling = GREEDY, new_tokens: int = 24) -> TextJob:
    return TextJob(heard, inputs, sampling, new_tokens)


def answers(engine: Engine, inputs: list[dict], samplings: list[Sampling], new_tokens: int = 24) -> list[str]:
    """The texts of chats, of which each comes at another token of the first one."""
    heard = [Heard() for _ in inputs]
    jobs = [text_job(*each, new_tokens) for each in zip(heard, inputs, samplings, strict=True)]

    def join(number: int) -> None:
        if number + 1 < len(jobs):
            submit(engine, jobs[number + 1])

    heard[0].react = join
    submit(engine, jobs[0])
    return [each.text for each in heard]


def generated(model, inputs: dict, new_tokens: int = 24) -> torch.Tensor:
    """What the library's loop writes [1, new tokens]."""
    tokens = model.generate(**to_model(inputs, model), max_new_tokens=new_tokens, do_sample=False)
    return tokens[:, inputs["input_ids"].shape[1] :]


def test_chats_that_join_at_different_tokens_are_answered_as_by_generate(thinker, chats):
    expected = [processor().decode(generated(thinker, each)[0], skip_special_tokens=True) for each in chats]
    with engine_of(thinker) as engine:
        assert answers(engine, chats, [GREEDY] * len(chats)) == expected


@pytest.mark.parametrize("options", [{}, {"use_sliding_window": True, "sliding_window": 6}])
def test_every_token_is_that_of_generate(options):
    """Random weights, whose tokens depend on all that they see, with and without a sliding window."""
    model = tiny_model(5, llm_config=options)
    inputs = [dict(joined([chat])) for chat in mixed_chats()]
    expected = [generated(model, each, 12)[0] for each in inputs]
    batch, jobs, rows = RunningBatch(model, processor().tokenizer), [], {}
    jobs = [text_job(Heard(), each, new_tokens=12) for each in inputs]
    waiting = list(jobs)
    while waiting or not batch.is_idle:
        if waiting and len(batch.rows) < 4:
            batch.join(waiting.pop(0))
        rows |= {row.job: row for row in batch.rows}
        batch.step()
    for job, each, wanted in zip(jobs, inputs, expected, strict=True):
        assert rows[job].ids[0, each["input_ids"].shape[1] :].tolist() == wanted[: rows[job].count].tolist()
        assert job.ended.completion_tokens == rows[job].count > 1


def test_sampled_text_of_a_seed_is_the_same_alone_and_in_company(thinker, chats):
    samplings = [Sampling(2.0, seed=7), Sampling(1.5, top_p=0.9, seed=1), GREEDY, Sampling(2.0, top_k=5, seed=7)]
    state = torch.get_rng_state()
    with engine_of(thinker) as engine:
        alone = [answers(engine, [each], [sampling])[0] for each, sampling in zip(chats[:4], samplings, strict=True)]
        assert answers(engine, chats[:4], samplings) == alone
        assert answers(engine, chats[3::-1], samplings[::-1]) == alone[::-1]
        assert answers(engine, chats[:1], [Sampling(2.0, seed=8)]) != alone[:1]
    assert torch.equal(torch.get_rng_state(), state)


@contextmanager
def passes(model, before):
    """Calls `before(rows, tokens)` before every pass of the model."""

    def hook(module, args, kwargs) -> None:
        given = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        before(*given.shape[:2])

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def test_a_chat_that_comes_later_is_answered_while_a_longer_one_runs(omni):
    """Over connections. The long reply is stopped at its 6th token until the short chat waits, and at its 14th until
    that one has its answer."""
    answered, tokens = threading.Event(), []

    def before(rows: int, length: int) -> None:
        tokens.append(rows)
        if len(tokens) == 6:
            until(lambda: omni.engine.waiting_jobs())
        if len(tokens) == 14:
            assert answered.wait(DEADLINE)

    with passes(omni.engine.model, before), ThreadPoolExecutor(1) as pool:
        longer = pool.submit(ask, omni, LONG)
        until(lambda: len(tokens) == 6)
        assert ask(omni, QUESTIONS[0]) == "four" and not longer.done()
        answered.set()
        assert longer.result(DEADLINE) == EXPECTED["picture"]
    assert max(tokens) == 2 and len(tokens) == LENGTH + 1  # passes, and one to read the short chat


def test_between_two_tokens_of_those_that_run_one_more_is_read(thinker, chats):
    seen: list[tuple[int, int]] = []
    heard = [Heard() for _ in range(4)]
    with engine_of(thinker) as engine, passes(thinker, lambda *shape: seen.append(shape)):

        def join(number: int) -> None:
            for each in heard[1:] if number == 0 else ():
                submit(engine, text_job(each, chats[0]))

        heard[0].react = join
        submit(engine, text_job(heard[0], chats[0]))
        assert len({each.text for each in heard}) == 1
    reads = [place for place, (_, length) in enumerate(seen) if length > 1]
    assert reads == [0, 2, 4, 6] and [rows for rows, _ in seen[:8]] == [1, 1, 1, 2, 1, 3, 1, 4]


def test_a_large_chat_is_not_overtaken_for_ever(thinker, chats):
    """It waits for room, and those behind it wait for it."""
    order: list[str] = []

    def named(name: str) -> Heard:
        return Heard(lambda number: order.append(name) if not number else None)

    heard = {name: named(name) for name in ("first", "large", "small")}
    with engine_of(thinker, batch_tokens=150) as engine:

        def join(number: int) -> None:
            if number == 0:
                order.append("first")
                submit(engine, text_job(heard["large"], chats[2]))  # 101 tokens
                submit(engine, text_job(heard["small"], chats[1]))

        heard["first"].react = join
        submit(engine, text_job(heard["first"], chats[0]))
        assert [each.text for each in heard.values()][2] == "four"
    assert order == ["first", "large", "small"]


def test_a_row_whose_values_are_not_finite_fails_alone(thinker, chats):
    heard = [Heard(), Heard()]

    def spoil(module, args, output):
        return torch.cat([output[:1] * float("nan"), output[1:]]) if len(output) == 2 else output

    handle = thinker.model.lm_head.register_forward_hook(spoil)
    try:
        with engine_of(thinker) as engine:
            heard[0].react = lambda number: number == 0 and submit(engine, text_job(heard[1], chats[1]))
            submit(engine, text_job(heard[0], chats[0]))
            assert heard[1].text == "four" and heard[0].text
    finally:
        handle.remove()
    assert isinstance(heard[0].events[-1].error, FloatingPointError)


def test_chats_of_a_pass_that_failed_go_on_alone(thinker, chats):
    """Where they were: what clients have got is not said again."""
    chosen, samplings = [chats[0], chats[2], chats[3]], [GREEDY, Sampling(1.0, seed=7), GREEDY]
    sizes: list[int] = []

    def before(rows: int, length: int) -> None:
        sizes.append(rows)
        if rows == 3:
            raise RuntimeError("no memory for three")

    with engine_of(thinker) as engine:
        expected = [answers(engine, [each], [own])[0] for each, own in zip(chosen, samplings, strict=True)]
        with passes(thinker, before):
            assert answers(engine, chosen, samplings) == expected
    assert sizes.count(3) == 1 and 2 in sizes


def speech_job(omni, heard: Heard, seed: int) -> StreamJob:
    def events():
        for event in omni.engine.model.speak_stream("A red circle. " * 4, speaker="anna", seed=seed):
            if isinstance(event, AudioChunk):
                yield event
        yield Finished("stop")

    return StreamJob("speech", heard, events())


def test_replies_are_spoken_side_by_side_with_the_waves_they_have_alone(omni):
    alone = []
    for seed in (1, 2):
        heard = Heard()
        submit(omni.engine, speech_job(omni, heard, seed))
        alone.append(heard.waveform)
    meeting = threading.Barrier(2)

    def meet(number: int) -> None:
        if number < 2:  # the first chunk of each waits for that of the other, and so does the second one
            meeting.wait(DEADLINE)

    both = [Heard(meet), Heard(meet)]
    for seed, heard in zip((1, 2), both, strict=True):
        submit(omni.engine, speech_job(omni, heard, seed))
    for heard, wanted in zip(both, alone, strict=True):
        torch.testing.assert_close(heard.waveform, wanted, atol=2e-3, rtol=0)  # rows of one pass round differently
        assert len(heard.events) > 2


def spoken(omni, seed: int) -> tuple[str, np.ndarray]:
    """Transcript and samples of a spoken reply whose text is sampled."""
    speech = {"modalities": ["text", "audio"], "audio": {"voice": "anna", "format": "wav"}}
    chat = omni.client().chat.completions
    reply = chat.create(model="omni", messages=QUESTIONS[1], seed=seed, temperature=1.5, max_tokens=6, **speech)
    audio = reply.choices[0].message.audio
    return audio.transcript, soundfile.read(io.BytesIO(base64.b64decode(audio.data)))[0]


def test_spoken_replies_of_a_seed_are_the_same_in_company(omni):
    """Their texts are decoded among the chats of others."""
    alone = [spoken(omni, seed) for seed in (1, 2)]
    most: list[int] = []
    with passes(omni.engine.model, lambda rows, length: most.append(rows)), ThreadPoolExecutor(4) as pool:
        with omni.held():
            chats = [pool.submit(ask, omni, LONG) for _ in range(2)]
            until(lambda: len(omni.engine.waiting_jobs()) == 2)
            together = [pool.submit(spoken, omni, seed) for seed in (1, 2)]
            until(lambda: len(omni.engine.waiting_jobs()) == 4)
        for each, (text, samples) in zip(together, alone, strict=True):
            transcript, in_company = each.result(DEADLINE)
            assert transcript == text
            np.testing.assert_allclose(in_company, samples, atol=2e-3)
        assert {each.result(DEADLINE) for each in chats} == {EXPECTED["picture"]}
    assert not np.array_equal(alone[0][1], alone[1][1]) and max(most) >= 3


def test_a_drawing_stops_neither_text_nor_speech(omni):
    """The drawing waits in its first step until both are answered."""
    began, answered = threading.Event(), threading.Event()

    def wait(module, args) -> None:
        began.set()
        assert answered.wait(DEADLINE)

    image_gen = omni.engine.model.image_gen.load()
    handle = image_gen.transformer.register_forward_pre_hook(wait)
    client = omni.client()
    try:
        with ThreadPoolExecutor(1) as pool:
            few = {"num_inference_steps": 1, "seed": 4}
            drawing = pool.submit(client.images.generate, model="omni", prompt="A circle.", extra_body=few)
            assert began.wait(DEADLINE)
            assert ask(omni, QUESTIONS[0]) == "four"
            assert client.audio.speech.create(model="omni", voice="anna", input="A red circle.").content
            assert not drawing.done()
            answered.set()
            assert drawing.result(DEADLINE).data[0].b64_json
    finally:
        answered.set()
        handle.remove()


def test_images_are_drawn_one_at_a_time(omni):
    """Memory of one drawing is enough, however many are asked for."""
    working, seen = [], []

    def events(number: int):
        working.append(number)
        seen.append(tuple(working))
        yield ImageProgress(0, 1, torch.zeros(1))
        working.remove(number)
        yield ImageDone([], None)
        yield Finished("stop")

    heard = [Heard() for _ in range(3)]
    for number, each in enumerate(heard):
        submit(omni.engine, StreamJob("image", each, events(number)))
    assert all(each.done.wait(DEADLINE) for each in heard) and seen == [(0,), (1,), (2,)]


def test_a_spoken_chat_whose_client_leaves_frees_the_place_of_its_text(omni):
    """Also while the text waits for the chats before it."""
    cancelled = omni.metric("ming_jobs_total", kind="speech", outcome="cancelled")
    speech = {"modalities": ["text", "audio"], "audio": {"voice": "anna", "format": "wav"}}
    reached, leave = threading.Event(), threading.Event()

    def before(rows: int, length: int) -> None:
        reached.set()
        assert leave.wait(DEADLINE)

    with passes(omni.engine.model, before), ThreadPoolExecutor(1) as pool:
        chat = pool.submit(ask, omni, QUESTIONS[0])
        assert reached.wait(DEADLINE)
        with pytest.raises(openai.APITimeoutError):
            omni.client().with_options(timeout=1.0).chat.completions.create(
                model="omni", messages=QUESTIONS[0], **speech
            )
        until(lambda: omni.metric("ming_jobs_total", kind="speech", outcome="cancelled") == cancelled + 1)
        leave.set()
        assert chat.result(DEADLINE) == "four"
    until(lambda: omni.metric("ming_jobs_running") == 0)


def test_a_request_that_a_proxy_repeats_draws_the_same_text(omni):
    """A replica that takes over gets the name of the request, and makes a seed of it where the client gave none."""

    def asked_as(name: str) -> str:
        async def named(scope, receive, send):
            await omni.app({**scope, "extensions": {IDENTITY: {"id": name, "created": 1}}}, receive, send)

        async def ask() -> str:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(named), base_url=omni.url) as client:
                body = {"messages": asked("Tell me something."), "temperature": 2.0, "max_tokens": 12}
                answer = await client.post("/v1/chat/completions", json=body, timeout=DEADLINE)
            return answer.json()["choices"][0]["message"]["content"]

        return asyncio.run(ask())

    names = [f"{number:x}" for number in range(7)]
    texts = [asked_as(name) for name in names]
    assert [asked_as(name) for name in names] == texts and len(set(texts)) > 1
