"""Two replicas by Ray Serve on this machine, one of which is killed while it answers."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import psutil
import pytest
from serving_helpers import EXPECTED, QUESTIONS, ROOT, asked

from ming.cli.cluster import build_parser
from ming.serving.cluster import ClusterOptions

START_SECONDS = 300.0
REQUESTS = 64


class Cluster:
    """`ming cluster` as a subprocess."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        options = ["--port", str(port), "--replicas", "2", "--without", "talker", "image_gen", "--name", "ming"]
        command = [sys.executable, "-m", "ming", "cluster", "--model", ".", *options]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.log: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        self.client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=START_SECONDS
        )
        wait(lambda: self.process.poll() is not None or self.says("running on"))
        assert self.process.poll() is None, "".join(self.log)

    def _read(self) -> None:
        self.log.extend(self.process.stdout)

    def says(self, text: str) -> bool:
        return any(text in line for line in self.log)

    def replicas(self) -> list[psutil.Process]:
        """Processes of the replicas; Ray names them after what they run."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "ServeReplica" in " ".join(child.cmdline())]

    def ask(self, index: int) -> str:
        """The index-th of some questions, every other one streamed."""
        messages, stream = QUESTIONS[index % 2], index % 4 > 1
        answer = self.client.chat.completions.create(model="ming", messages=messages, stream=stream)
        if not stream:
            return answer.choices[0].message.content
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer)

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(START_SECONDS)
        finally:
            for child in psutil.Process().children(recursive=True):
                if "ray" in " ".join(child.cmdline()).lower():
                    child.kill()
        self.reader.join(START_SECONDS)


def wait(condition) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster()
    yield cluster
    cluster.close()


def test_no_request_is_lost_with_a_killed_replica(cluster):
    before = {process.pid for process in cluster.replicas()}
    assert len(before) == 2
    with ThreadPoolExecutor(REQUESTS) as pool:
        for _ in range(5):
            victim = cluster.replicas()[0].pid
            answers = [pool.submit(cluster.ask, index) for index in range(REQUESTS)]
            wait(answers[0].done)  # the others are waiting or being answered
            os.kill(victim, signal.SIGKILL)
            expected = ["four" if index % 2 == 0 else EXPECTED["picture"] for index in range(REQUESTS)]
            assert [answer.result() for answer in answers] == expected
            if cluster.says("a replica died, asking another one"):
                break
    assert cluster.says("a replica died, asking another one")
    wait(lambda: len(cluster.replicas()) == 2)
    assert {process.pid for process in cluster.replicas()} != before
    assert cluster.ask(1) == EXPECTED["picture"]


def test_routes_and_refusals_pass_the_door(cluster):
    assert [model.id for model in cluster.client.models.list()] == ["ming"]
    health = httpx.get(str(cluster.client.base_url).replace("/v1/", "/health")).json()
    assert health == {"status": "ok", "model": "ming", "outputs": ["text"]}
    with pytest.raises(openai.NotFoundError, match="ask for 'ming'"):
        cluster.client.chat.completions.create(model="gpt", messages=asked("What comes after three?"))


def options(*arguments: str) -> dict:
    args = build_parser().parse_args(["--model", ".", *arguments])
    return ClusterOptions(args.replicas, args.max_replicas, args.address, args.cpus, args.gpus).deployment("cpu", 8)


def test_replicas_come_with_the_requests():
    assert options("--replicas", "3")["num_replicas"] == 3
    scale = options("--replicas", "1", "--max-replicas", "4")["autoscaling_config"]
    assert scale == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8}
    assert options("--address", "auto")["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0}
    assert options("--cpus", "6", "--gpus", "0.5")["ray_actor_options"] == {"num_cpus": 6.0, "num_gpus": 0.5}


@pytest.mark.parametrize("numbers", [(0, 2), (3, 2)])
def test_impossible_numbers_of_replicas_are_refused(numbers):
    with pytest.raises(ValueError, match=f"--replicas {numbers[0]} --max-replicas 2"):
        ClusterOptions(*numbers)
