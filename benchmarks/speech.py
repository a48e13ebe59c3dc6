"""Streamed against offline speech: time to the first audio, total time, real-time factor."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ming.events import AudioChunk
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration

from .report import Plot

ROOT = Path(__file__).resolve().parents[1]
TEXTS = (
    "A small red circle is on the left.",
    "A small red circle is on the left, a large blue star is on the right, and a green square is in the center, "
    "on a white background.",
    "There are three shapes. A small red circle is on the left. A large blue star is on the right. A green square is "
    "in the center. The background is white. What comes after three? Four comes after three.",
)
SEED = 0


@dataclass(frozen=True)
class Cost:
    """One reply: seconds of audio, and the median seconds of each way.

    Args:
        seconds: of audio.
        offline: time of the whole reply by `speak`.
        first_chunk, streamed: times of the first audio and of the whole reply by `speak_stream`.
    """

    text: str
    seconds: float
    offline: float
    first_chunk: float
    streamed: float


def measure(
    model: str | Path = ROOT, device: str = "cpu", dtype: torch.dtype = torch.float32, repeats: int = 3
) -> list[Cost]:
    """Speak every text both ways alternately, after a warm-up.

    Args:
        model: a repository with a model that speaks.

    Raises:
        ValueError: it has no talker.
    """
    speaker = BailingMMNativeForConditionalGeneration.from_pretrained(model, dtype=dtype).to(device).eval()
    speaker.speak(TEXTS[0], seed=SEED)
    costs = []
    for text in TEXTS:
        offline, first, streamed = [], [], []
        for _ in range(repeats):
            started = time.perf_counter()
            output = speaker.speak(text, seed=SEED, attempts=1)
            offline.append(time.perf_counter() - started)
            started = time.perf_counter()
            events = speaker.speak_stream(text, seed=SEED, attempts=1)
            times = [time.perf_counter() - started for event in events if isinstance(event, AudioChunk)]
            streamed.append(time.perf_counter() - started)
            first.append(min([*times, streamed[-1]]))
        seconds = len(output.waveforms[0]) / output.sampling_rate
        costs.append(Cost(text, seconds, *(statistics.median(times) for times in (offline, first, streamed))))
    return costs


def table(costs: list[Cost]) -> str:
    """Markdown table of ratios."""
    lines = [
        "| letters | audio (s) | first chunk / offline | streamed / offline | real-time factor, streamed |",
        "|---|---|---|---|---|",
    ]
    for cost in costs:
        lines.append(
            f"| {len(cost.text)} | {cost.seconds:.1f} | {cost.first_chunk / cost.offline:.2f} | "
            f"{cost.streamed / cost.offline:.2f} | {cost.streamed / max(cost.seconds, 1e-9):.2f} |"
        )
    return "\n".join(lines)


def plot(costs: list[Cost]) -> Plot:
    """Both ratios over the seconds of audio."""
    seconds = [cost.seconds for cost in costs]
    lines = {
        "first chunk / offline": (seconds, [cost.first_chunk / cost.offline for cost in costs]),
        "streamed / offline": (seconds, [cost.streamed / cost.offline for cost in costs]),
    }
    return Plot("time / offline", "seconds of audio", lines, level=1.0)
