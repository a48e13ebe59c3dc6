"""Questions in a time: `generate`, `ming serve`, vLLM's server, vLLM's batch; in the environment of `make test-vllm`.

Half of the questions are about an image. Every round has images of its own, so that no cache has what an earlier one
encoded, and all ways write the same tokens or nearly so: they give the same greedy answers.
"""

import base64
import io
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import httpx
import numpy as np
import torch

from ming.loading import load_model
from ming.processing_bailingmm import BailingMMProcessor
from training.tiny.world import sample_chat

from .report import Plot

ROOT = Path(__file__).resolve().parents[1]
ROWS = ("text_only", "image_count_describe")  # half of the questions each
SEED, NEW = 9100000, 32
WORDS = 6  # of an answer at least: most answers of these rows are one word
QUESTIONS, ROUNDS = 32, 3
START_SECONDS, ANSWER_SECONDS = 900.0, 600.0
ONE_BY_ONE = "generate, one by one"
OURS, SERVER = "ming serve", "vLLM's server"
SERVERS = {
    OURS: ("-m", "ming", "serve", "--model", ".", "--name", ".", "--queue", "1000"),
    SERVER: (
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        ".",
        "--dtype",
        "float32",
        "--max-model-len",
        "1024",
    ),
}
OFFLINE = "vLLM, offline batch"
# Room for these questions, and any core for any process: by itself vLLM takes half of the memory and ties itself to a
# part of the cores.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
Way = Callable[[list[list[dict]]], list[str]]  # chats -> answers


@dataclass(frozen=True)
class Cost:
    """How one way answers all questions of a round.

    Attributes:
        ratio: questions in a time, over those of `ONE_BY_ONE` in the same round; the median of the rounds.
        same: share of answers that are those of `ONE_BY_ONE`.
    """

    way: str
    ratio: float
    same: float


def chats(count: int, seed: int) -> list[list[dict]]:
    """Questions in OpenAI's form, text and images in turn, whose answers have some length."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        *asked, answer = sample_chat(ROWS[len(found) % 2], rng, "test").messages
        if len(answer["content"][0]["text"].split()) >= WORDS:
            found.append(in_openai_form(asked))
    return found


def in_openai_form(messages: list[dict]) -> list[dict]:
    """Messages whose images are data URLs."""

    def item(content: dict) -> dict:
        if content["type"] != "image":
            return content
        file = io.BytesIO()
        content["image"].save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    return [{**message, "content": [item(content) for content in message["content"]]} for message in messages]


def one_by_one() -> Way:
    """`generate`, chat after chat."""
    model = load_model(str(ROOT), device="cpu", dtype=torch.float32)
    processor = BailingMMProcessor.from_pretrained(ROOT)

    def answer(asked: list[list[dict]]) -> list[str]:
        found = []
        for messages in asked:
            inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
            sequences = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
            reply = sequences[0, inputs["input_ids"].shape[1] :]
            found.append(processor.decode(reply, skip_special_tokens=True))
        return found

    return answer


def offline(eager: bool, trust_remote_code: bool) -> Way:
    """vLLM in this process and its workers, all chats in one call."""
    from vllm import LLM, SamplingParams

    options = {"dtype": "float32", "max_model_len": 1024, "enforce_eager": eager}
    llm = LLM(str(ROOT), trust_remote_code=trust_remote_code, **options)
    sampling = SamplingParams(temperature=0, max_tokens=NEW)
    return lambda asked: [reply.outputs[0].text for reply in llm.chat(asked, sampling, use_tqdm=False)]


@contextmanager
def served(arguments: tuple[str, ...]) -> Iterator[Way]:
    """A server in a process of its own that gets all questions at once.

    Raises:
        RuntimeError: the server ended, or is not there in time; the end of its log is in the message.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log, httpx.Client(base_url=url, timeout=ANSWER_SECONDS) as client:
        command = [sys.executable, *arguments, "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)  # nosec B603

        def ask(messages: list[dict]) -> str:
            body = {"model": ".", "messages": messages, "max_tokens": NEW, "temperature": 0}
            reply = client.post("/v1/chat/completions", json=body).raise_for_status()
            return reply.json()["choices"][0]["message"]["content"]

        def answer(asked: list[list[dict]]) -> list[str]:
            with ThreadPoolExecutor(len(asked)) as pool:
                return list(pool.map(ask, asked))

        try:
            if not is_up(client, server):
                log.seek(0)
                raise RuntimeError(f"{' '.join(command)} did not start: {log.read()[-3000:]}")
            yield answer
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def is_up(client: httpx.Client, server: subprocess.Popen) -> bool:
    """Wait until a server answers; False if it ended, or time is over."""
    until = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < until:
        try:
            if client.get("/health").status_code == 200:
                return True
        except httpx.TransportError:
            time.sleep(0.5)
    return False


def measure(
    device: str = "cpu",
    questions: int = QUESTIONS,
    rounds: int = ROUNDS,
    eager: bool = False,
    trust_remote_code: bool = False,
) -> list[Cost]:
    """Ask all ways in turn, after a round that is not counted.

    Args:
        device: "cpu"; nothing else is measured here.
        questions: of a round.
        rounds: that are counted.
        eager: vLLM does not compile; it starts sooner.
        trust_remote_code: that vLLM runs the code of this checkpoint, which it needs.

    Raises:
        ValueError: another device, or no trust in the code.
    """
    if device != "cpu":
        raise ValueError(f"device={device!r} is not measured by this benchmark; use cpu")
    if not trust_remote_code:
        raise ValueError(
            "trust_remote_code=False: vLLM reads this checkpoint by its own code; say --trust-remote-code "
            "(trust_remote_code=True) if you trust it"
        )
    extra = ("--trust-remote-code", *(("--enforce-eager",) if eager else ()))
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, ENVIRONMENT))
        ways = {ONE_BY_ONE: one_by_one()}
        for name, arguments in SERVERS.items():
            ways[name] = stack.enter_context(served((*arguments, *(extra if name == SERVER else ()))))
        ways[OFFLINE] = offline(eager, trust_remote_code)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        same: dict[str, list[bool]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            asked, answers = chats(questions, SEED + number), {}
            for name, way in ways.items():
                started = time.perf_counter()
                answers[name] = way(asked)
                seconds[name].append(time.perf_counter() - started)
                same[name] += [one == two for one, two in zip(answers[name], answers[ONE_BY_ONE], strict=True)]
    return [
        Cost(name, ratio_of(seconds[ONE_BY_ONE][1:], seconds[name][1:]), statistics.mean(same[name])) for name in ways
    ]


def ratio_of(reference: list[float], own: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(one / two for one, two in zip(reference, own, strict=True))


def table(costs: list[Cost]) -> str:
    """Markdown table."""
    lines = [f"| | questions in a time / {ONE_BY_ONE} | the same answers |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {cost.way} | {cost.ratio:.2f} | {100 * cost.same:.0f} % |" for cost in costs)])


def plot(costs: list[Cost]) -> Plot:
    """Bars of the ratios."""
    bars = ([cost.way for cost in costs], [cost.ratio for cost in costs])
    return Plot("questions in a time (ratio)", "", {"rounds of one run": bars}, level=1.0)
