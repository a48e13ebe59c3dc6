"""A server under load: the client of OpenAI asks `ming serve` for everything at once, for minutes.

Before, each kind of request is sent alone, which gives its time and the answer that must not change under load. While
several clients ask, the memory and the open files of the server are read from /proc (Linux).
"""

import base64
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

from .report import Plot

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
NAME = "load"
QUEUE = 4  # requests that may wait: fewer than there are clients, so that some are turned away
PATIENCE = 600.0  # seconds for the server to start and for an answer
SAMPLES = 200  # readings of memory and files
WARM_UP = 0.2  # share of the time after which memory must not grow
WINDOW = 0.1  # share of the time whose median is the value at the start and at the end
BAR = 1.05
ANSWERED, LEFT, REFUSED, FULL = "answered", "left", "refused", "turned away (429)"


@dataclass(frozen=True)
class Request:
    """A kind of request.

    Args:
        send: sends it; returns what was answered.
        outcome: what has to come of it; being turned away is always allowed.
        repeats: whether the answer is the same every time.
    """

    kind: str
    send: Callable[[openai.OpenAI], Any]
    outcome: str = ANSWERED
    repeats: bool = True


@dataclass(frozen=True)
class Answer:
    """One request that was sent, and what came of it."""

    kind: str
    seconds: float
    outcome: str


@dataclass(frozen=True)
class Kind:
    """All requests of a kind: how many, seconds of one alone, median and 95th percentile under load."""

    kind: str
    number: int
    alone: float
    p50: float
    p95: float


@dataclass(frozen=True)
class Outcome:
    """How many requests ended in a way."""

    outcome: str
    number: int


@dataclass(frozen=True)
class Sample:
    """The server at a time: resident memory in MB and open files."""

    minutes: float
    memory: float
    files: int


@dataclass(frozen=True)
class Verdict:
    """A condition with what was measured, and whether it holds."""

    condition: str
    measured: str
    holds: bool


def encoded(name: str) -> str:
    """A file of the demo in base64."""
    return base64.b64encode((DEMO / name).read_bytes()).decode()


def ask(text: str, *media: dict, **options: Any) -> Callable[[openai.OpenAI], str]:
    """A chat of one question, greedy unless the options say otherwise."""
    content = [*media, {"type": "text", "text": text}] if text else list(media)
    arguments = {"temperature": 0, "max_tokens": 48, **options}

    def send(client: openai.OpenAI) -> str:
        messages = [{"role": "user", "content": content}]
        answer = client.chat.completions.create(model=NAME, messages=messages, **arguments)
        if options.get("stream"):
            return "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
        message = answer.choices[0].message
        return f"{message.content} {message.audio.data}" if message.audio else message.content

    return send


def leave_chat(client: openai.OpenAI) -> None:
    """Leave a stream of text at its first event."""
    content = "Describe every shape that you know."
    messages = [{"role": "user", "content": content}]
    with client.chat.completions.create(model=NAME, messages=messages, stream=True) as stream:
        next(iter(stream))


def leave_speech(client: openai.OpenAI) -> None:
    """Leave speech after its first bytes."""
    text = " ".join(["A small red circle on the left."] * 12)
    create = client.audio.speech.with_streaming_response.create
    with create(model=NAME, voice="iris", input=text, response_format="pcm") as answer:
        next(answer.iter_bytes(1024))


def leave_drawing(client: openai.OpenAI) -> None:
    """Stop waiting for a drawing of many steps."""
    impatient = client.with_options(timeout=0.5)
    try:
        impatient.images.generate(model=NAME, prompt="Draw a red star.", extra_body={"num_inference_steps": 50})
    except openai.APITimeoutError:
        return


def speak(client: openai.OpenAI, voice: str = "iris") -> bytes:
    """A sentence, read aloud."""
    text = "a small red circle on the left"
    return client.audio.speech.create(model=NAME, voice=voice, input=text, extra_body={"seed": 1}).content


def transcribe(client: openai.OpenAI) -> str:
    """The words of a recording."""
    file = ("recording.wav", (DEMO / "recording.wav").read_bytes())
    return client.audio.transcriptions.create(model=NAME, file=file).text


def draw(client: openai.OpenAI) -> str | None:
    """An image in few steps."""
    prompt = "Draw a large green star in the center on a white background."
    few = {"num_inference_steps": 4, "seed": 3}
    return client.images.generate(model=NAME, prompt=prompt, extra_body=few).data[0].b64_json


def edit(client: openai.OpenAI) -> str | None:
    """An image that was changed, in few steps."""
    file = ("picture.jpg", (DEMO / "picture.jpg").read_bytes())
    few = {"num_inference_steps": "4", "seed": "3"}
    return client.images.edit(model=NAME, image=file, prompt="Make the circle blue.", extra_body=few).data[0].b64_json


def requests() -> list[Request]:
    """Everything that is asked for."""
    image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded('picture.jpg')}"}}
    video = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{encoded('clip.mp4')}"}}
    sound = {"type": "input_audio", "input_audio": {"data": encoded("question.wav"), "format": "wav"}}
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,bm8gaW1hZ2U="}}
    aloud = {"modalities": ["text", "audio"], "audio": {"voice": "iris", "format": "wav"}, "seed": 1}
    question = "What comes after three?"
    return [
        Request("text", ask(question)),
        Request("text, sampled", ask(question, temperature=1.5), repeats=False),
        Request("text, sampled with a seed", ask(question, temperature=1.5, seed=7)),
        Request("text, streamed", ask("What comes before seven?", stream=True)),
        Request("image", ask("Describe the picture.", image)),
        Request("two images", ask("Do both pictures show the same?", image, image)),
        Request("image and sound", ask("", image, sound)),
        Request("video", ask("Which way does it move?", video)),
        Request("transcription", transcribe),
        Request("spoken reply", ask(question, **aloud)),
        Request("speech", speak),
        Request("drawing", draw),
        Request("edit", edit),
        Request("text, left", leave_chat, LEFT),
        Request("speech, left", leave_speech, LEFT),
        Request("drawing, left", leave_drawing, LEFT),
        Request("broken image", ask("Describe the picture.", broken), REFUSED),
        Request("unknown field", ask("Hello", extra_body={"colour": 1}), REFUSED),
        Request("unknown voice", lambda client: speak(client, "nobody"), REFUSED),
        Request("too many tokens", ask("Hello", max_tokens=10**9), REFUSED),
    ]


def outcome_of(request: Request, client: openai.OpenAI, known: dict[str, Any]) -> str:
    """Send a request and say what came of it.

    Args:
        known: kind -> the answer that a request alone got; filled in where it is missing.
    """
    try:
        answer = request.send(client)
    except openai.RateLimitError:
        return FULL
    except openai.APIStatusError as error:
        if request.outcome == REFUSED and error.status_code < 500:
            return REFUSED
        return f"failed ({error.status_code}: {error.message[:80]})"
    except (openai.APIConnectionError, httpx.HTTPError) as error:
        return f"failed ({type(error).__name__})"
    if request.outcome == ANSWERED and request.repeats and known.setdefault(request.kind, answer) != answer:
        return "another answer than alone"
    return LEFT if request.outcome == LEFT else ANSWERED


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


def endlessly_shuffled(kinds: list[Request], seed: int) -> Iterator[Request]:
    """All kinds in an order of their own, again and again."""
    order = random.Random(seed)  # nosec B311
    while True:
        yield from order.sample(kinds, len(kinds))


class Load:
    """Clients that ask until a time is over.

    Args:
        url: of the server.
        known: see `outcome_of`.
        deadline: on the monotonic clock.
    """

    def __init__(self, url: str, known: dict[str, Any], deadline: float):
        self.url, self.known, self.deadline = url, known, deadline
        self.answers: list[Answer] = []

    def ask(self, seed: int) -> None:
        """One client: all kinds of requests, shuffled anew each time, one after the other."""
        with client_of(self.url) as client:
            for request in endlessly_shuffled(requests(), seed):
                self.send(request, client)
                if time.monotonic() >= self.deadline:
                    return

    def send(self, request: Request, client: openai.OpenAI) -> None:
        """Send a request and note what came of it."""
        started = time.monotonic()
        outcome = outcome_of(request, client, self.known)
        self.answers.append(Answer(request.kind, time.monotonic() - started, outcome))

    def send_all(self, kinds: list[Request]) -> None:
        """Send requests one after the other."""
        with client_of(self.url) as client:
            for request in kinds:
                self.send(request, client)

    def watched(self, process: subprocess.Popen, clients: int) -> list[Sample]:
        """Let clients ask, and read the server's memory and files meanwhile."""
        threads = [threading.Thread(target=self.ask, args=(seed,)) for seed in range(clients)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        samples = []
        while any(thread.is_alive() for thread in threads):
            samples.append(read_process(process.pid, (time.monotonic() - started) / 60))
            time.sleep(max((self.deadline - started) / SAMPLES, 0.05))
        return samples


def read_process(pid: int, minutes: float) -> Sample:
    """Resident memory and open files of a process now."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return Sample(minutes, int(status.split("VmRSS:")[1].split()[0]) / 1000, len(os.listdir(f"/proc/{pid}/fd")))


@contextmanager
def serving(model: str, device: str, log: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """`ming serve` as a process of its own: its address, and the process.

    Raises:
        RuntimeError: it did not start; its log is part of the message.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ming", "serve", "--model", model, "--name", NAME, "--port", str(port)]
    command += ["--device", device, "--queue", str(QUEUE), "--log-level", "warning"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)  # nosec B603
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
    try:
        while not is_healthy(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{log.read_text(encoding='utf-8')}")
            time.sleep(0.2)
        yield url, process
    finally:
        process.terminate()
        process.wait(PATIENCE)


def is_healthy(url: str) -> bool:
    """Whether the server answers."""
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def measure(
    device: str = "cpu", minutes: float = 15.0, clients: int = 6, repeats: int = 3, model: str | None = None
) -> list[Kind | Outcome | Verdict | Sample]:
    """Ask a server alone, then with several clients for some minutes.

    Args:
        repeats: of every kind of request before the load.
        model: directory or Hub id; default: Ming-Tiny.
    """
    known: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with serving(model or str(ROOT), device, log) as (url, process):
            alone = Load(url, known, float("inf"))
            alone.send_all(requests() * repeats)
            load = Load(url, known, time.monotonic() + 60 * minutes)
            samples = load.watched(process, clients)
            left = jobs_left(url)
        lines = log.read_text(encoding="utf-8", errors="replace")
    answers = [*alone.answers, *load.answers]
    judged = [*outcomes(answers), *verdicts(answers, samples, left, lines)]
    return [*kinds(alone.answers, load.answers), *judged, *samples]


def jobs_left(url: str, seconds: float = 120.0) -> float:
    """Jobs that the server still has when everybody has left, some seconds later at most."""
    deadline = time.monotonic() + seconds
    while True:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        jobs = sum(float(line.split()[1]) for line in lines if line.startswith(("ming_jobs_waiting", "ming_jobs_run")))
        if not jobs or time.monotonic() > deadline:
            return jobs
        time.sleep(0.2)


def kinds(alone: list[Answer], load: list[Answer]) -> list[Kind]:
    """Times of every kind of request; those that were turned away do not count."""
    found = []
    for request in requests():
        first, then = (
            sorted(answer.seconds for answer in some if answer.kind == request.kind and answer.outcome != FULL)
            for some in (alone, load)
        )
        if first and then:
            p95 = then[min(int(0.95 * len(then)), len(then) - 1)]
            found.append(Kind(request.kind, len(then), statistics.median(first), statistics.median(then), p95))
    return found


def outcomes(answers: list[Answer]) -> list[Outcome]:
    """How many requests ended how; those that ended otherwise than they had to are named by their kind."""
    expected = {request.kind: request.outcome for request in requests()}
    names = [
        answer.outcome
        if answer.outcome in (FULL, expected[answer.kind])
        else f"unexpected: {answer.kind}: {answer.outcome}"
        for answer in answers
    ]
    return [Outcome(name, names.count(name)) for name in sorted(set(names))]


def growth(values: list[float]) -> float:
    """The median at the end over the median behind the warm-up."""
    width = max(int(WINDOW * len(values)), 1)
    start = int(WARM_UP * len(values))
    return statistics.median(values[-width:]) / statistics.median(values[start : start + width])


def verdicts(answers: list[Answer], samples: list[Sample], jobs: float, log: str) -> list[Verdict]:
    """What has to hold."""
    memory, files = growth([sample.memory for sample in samples]), growth([float(sample.files) for sample in samples])
    unexpected = sum(item.number for item in outcomes(answers) if item.outcome.startswith("unexpected"))
    tracebacks = log.count("Traceback")
    return [
        Verdict("every request ends as it must", f"{unexpected} of {len(answers)} did not", unexpected == 0),
        Verdict("no error in the server's log", str(tracebacks), tracebacks == 0),
        Verdict("nothing is left in the queue", f"{jobs:.0f} jobs", jobs == 0),
        Verdict("memory grows by less than 5 % after the warm-up", f"{memory - 1:+.1%}", memory < BAR),
        Verdict("open files grow by less than 5 % after the warm-up", f"{files - 1:+.1%}", files < BAR),
    ]


def table(costs: list[Kind | Outcome | Verdict | Sample]) -> str:
    """Markdown tables: times by kind, requests by outcome, verdicts."""
    lines = ["| request | number | alone (s) | p50 / alone | p95 / alone |", "|---|---|---|---|---|"]
    for cost in costs:
        if isinstance(cost, Kind):
            ratios = f"{cost.p50 / cost.alone:.1f} | {cost.p95 / cost.alone:.1f}"
            lines.append(f"| {cost.kind} | {cost.number} | {cost.alone:.2f} | {ratios} |")
    lines += ["", "| outcome | requests |", "|---|---|"]
    lines += [f"| {cost.outcome} | {cost.number} |" for cost in costs if isinstance(cost, Outcome)]
    lines += ["", "| condition | measured | |", "|---|---|---|"]
    for cost in costs:
        if isinstance(cost, Verdict):
            lines.append(f"| {cost.condition} | {cost.measured} | {'pass' if cost.holds else 'FAIL'} |")
    return "\n".join(lines)


def plot(costs: list[Kind | Outcome | Verdict | Sample]) -> Plot:
    """Memory and open files over time, relative to those behind the warm-up."""
    samples = [cost for cost in costs if isinstance(cost, Sample)]
    minutes = [sample.minutes for sample in samples]
    series = {
        "resident memory": [sample.memory for sample in samples],
        "open files": [float(sample.files) for sample in samples],
    }
    start, width = int(WARM_UP * len(samples)), max(int(WINDOW * len(samples)), 1)
    lines = {}
    for name, values in series.items():
        base = statistics.median(values[start : start + width])
        lines[f"{name} (1 is {base:.0f}{' MB' if name == 'resident memory' else ''})"] = (
            minutes,
            [value / base for value in values],
        )
    return Plot("relative to the end of the warm-up", "minutes under load", lines, level=BAR)
