"""Several people at the engine of a server: what a new chat waits for, and what chats and replies cost together.

Ming-Tiny answers, and no chat ends before its limit, so that all have the same work.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ming.events import AudioChunk
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor
from ming.serving.engine import Engine
from ming.serving.engine_jobs import Failed, Finished, Job, Sampling, StreamJob, TextJob
from ming.serving.metrics import Metrics
from ming.serving.settings import EngineSettings

from .report import Plot

ROOT = Path(__file__).resolve().parents[1]
LONG, PROMPT, NEW = 256, 32, 64  # tokens: of a long reply, of a prompt, of a reply
TOGETHER = 8  # chats, and spoken replies
SPOKEN = "A small red circle is on the left."
REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """A ratio of two times of one run."""

    name: str
    ratio: float


class Heard:
    """When a job sent its events, in seconds since it was made."""

    def __init__(self) -> None:
        self.started, self.times, self.done = time.perf_counter(), [], threading.Event()
        self.begun, self.error = threading.Event(), None

    def __call__(self, event) -> None:
        self.times.append(time.perf_counter() - self.started)
        self.begun.set()
        if isinstance(event, Finished | Failed):
            self.error = getattr(event, "error", None)
            self.done.set()

    def wait(self) -> None:
        """Wait for the end.

        Raises:
            Exception: that of the job.
        """
        self.done.wait()
        if self.error is not None:
            raise self.error


@contextmanager
def running(model, tokenizer) -> Iterator[Callable[[Job], None]]:
    """A function that hands a job to an engine which runs meanwhile."""
    engine = Engine(model, tokenizer, EngineSettings(batch=TOGETHER, streams=TOGETHER), Metrics())
    engine.start()

    def submit(job: Job) -> None:
        engine.reserve()
        engine.submit(job)

    try:
        yield submit
    finally:
        engine.close()


def chat(heard: Heard, new_tokens: int) -> TextJob:
    """A chat of letters, each of whose tokens is sent when it is drawn."""
    ids = torch.arange(100, 100 + PROMPT)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": torch.zeros_like(ids)}
    return TextJob(heard, inputs, Sampling(temperature=1.0, seed=0), new_tokens)


def first_token(submit: Callable[[Job], None]) -> list[Cost]:
    """A chat that comes while a long reply is written."""
    alone, joined, end = [], [], []
    for _ in range(REPEATS):
        single = Heard()
        submit(chat(single, 1))
        single.wait()
        long = Heard()
        submit(chat(long, LONG))
        long.begun.wait()
        came, new = time.perf_counter() - long.started, Heard()
        submit(chat(new, 1))
        long.wait()
        alone.append(single.times[-1])
        joined.append(new.times[-1])
        end.append(long.times[-1] - came)
    first = statistics.median(joined)
    return [
        Cost("first token of a new chat / wait for the end of the long reply", first / statistics.median(end)),
        Cost("first token of a new chat / first token of a chat alone", first / statistics.median(alone)),
    ]


def offline(model) -> float:
    """Median seconds of as many long chats in one call of `generate`."""
    ids, times = torch.arange(100, 100 + PROMPT).repeat(TOGETHER, 1).to(model.device), []
    for _ in range(REPEATS):
        started = time.perf_counter()
        model.generate(ids, do_sample=True, max_new_tokens=LONG)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def together(submit: Callable[[Job], None], make: Callable[[Heard], Job], count: int) -> tuple[float, float, float]:
    """Median seconds of jobs one after the other and side by side, and from then until the last one has begun."""
    apart, beside, begun = [], [], []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(count):
            heard = Heard()
            submit(make(heard))
            heard.wait()
        apart.append(time.perf_counter() - started)
        all_heard = [Heard() for _ in range(count)]
        for heard in all_heard:
            submit(make(heard))
        for heard in all_heard:
            heard.wait()
        beside.append(max(heard.times[-1] for heard in all_heard))
        begun.append(max(heard.times[0] for heard in all_heard))
    return statistics.median(apart), statistics.median(beside), statistics.median(begun)


def measure(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Cost]:
    """Ask an engine."""
    model = BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, dtype=dtype).to(device).eval()
    model.generation_config.eos_token_id = -1  # no id
    model.audio_detokenizer.load()
    tokenizer = BailingMMProcessor.from_pretrained(ROOT).tokenizer

    def spoken(heard: Heard) -> StreamJob:
        def events():
            for event in model.speak_stream(SPOKEN, seed=0, attempts=1):
                if isinstance(event, AudioChunk):
                    yield event
            yield Finished("stop")

        return StreamJob("speech", heard, events())

    with running(model, tokenizer) as submit:
        costs = first_token(submit)
        apart, beside, _ = together(submit, lambda heard: chat(heard, NEW), TOGETHER)
        costs.append(Cost(f"{TOGETHER} chats one by one / side by side", apart / beside))
        _, beside, _ = together(submit, lambda heard: chat(heard, LONG), TOGETHER)
        costs.append(Cost(f"{TOGETHER} long chats in one offline batch / side by side", offline(model) / beside))
        apart, beside, begun = together(submit, spoken, TOGETHER)
        costs.append(Cost(f"{TOGETHER} spoken replies side by side / one alone", beside / apart * TOGETHER))
        last = apart * (TOGETHER - 1) / TOGETHER
        costs.append(Cost("first audio of the last of them / wait for the end of the others", begun / last))
    return costs


def table(costs: list[Cost]) -> str:
    """Markdown table of ratios."""
    return "\n".join(["| | ratio |", "|---|---|", *(f"| {cost.name} | {cost.ratio:.2f} |" for cost in costs)])


def plot(costs: list[Cost]) -> Plot:
    """Bars of the ratios."""
    names = [cost.name.partition(" / ")[0] for cost in costs]
    return Plot("ratio", "", {"times of one run": (names, [cost.ratio for cost in costs])}, level=1.0)
