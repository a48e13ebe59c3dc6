"""What the benchmark of a GPU measures: every call with the least time that the device could need for it.

A step that writes a token reads the weights that the token uses; a batch reads the experts that its tokens hit, as
many as even routing hits. All else multiplies matrices. Both rates are measured in the same run: one copies a large
tensor, the other multiplies two large matrices in the dtype of the model.

Shape letters: B chats, L tokens.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import CompileConfig

from ming.talker_steps import NO_ID, StopRules, TalkerPrompt

from .gpu_models import Models, Work, numbers, stored
from .layers import used_weights

REPEATS = 3
NO_END = -1  # no model writes this id, so that answers have the length that is asked for
MERGE, PATCH, PATCH_NUMBERS = 2, 14, 1176  # of the vision tower: patches a side of a token, pixels a side, numbers
SANM_FRAMES, WHISPER_FRAMES = 1000 / 60, 100  # a second


@dataclass
class Bench:
    """A run: what is measured, on which models, and when it must end.

    Args:
        compiled: what `compile=` is given where steps are compiled.
        deadline: of `time.monotonic`.

    Attributes:
        warming: seconds of the first calls since `measured` was last asked to begin anew.
        bandwidth: bytes a second. rate: floating-point operations a second.
    """

    models: Models
    work: Work
    compiled: bool | CompileConfig
    deadline: float
    warming: float = 0.0
    bandwidth: float = field(default=0.0)
    rate: float = field(default=0.0)

    @torch.no_grad()
    def seconds(self, call: Callable[[], object]) -> float:
        """Seconds of one call, until the device is done."""
        self.wait()
        started = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Wait for the device."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def measured(self, call: Callable[[], object], warm_ups: int = 1) -> float:
        """Median seconds of a call after its first ones; fewer repeats where time runs short."""
        first = sum(self.seconds(call) for _ in range(warm_ups))
        times = [self.seconds(call)]
        while len(times) < REPEATS and time.monotonic() + times[-1] < self.deadline:
            times.append(self.seconds(call))
        self.warming += max(first - warm_ups * median(times), 0.0)
        return median(times)

    def asked(self, compiles: bool) -> tuple[bool | CompileConfig, int]:
        """What `compile=` is given, and how many calls it takes until nothing is compiled or recorded any more."""
        return (self.compiled, 3) if compiles else (False, 1)

    def draw(self, high: int, *shape: int) -> torch.Tensor:
        """Ids below `high`, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, high, shape, generator=generator).to(self.models.device)


@dataclass(frozen=True)
class Measured:
    """A figure and its limit, in the unit of the measurement; None: it has none."""

    value: float
    limit: float | None = None


Call = Callable[[Bench], Measured]


def bandwidth(bench: Bench) -> Measured:
    """Bytes a second, read or written, of copying a tensor; in GB/s."""
    tensor = torch.zeros(bench.work.limit[1] << 20, dtype=torch.uint8, device=bench.models.device)
    copy = torch.empty_like(tensor)
    bench.bandwidth = 2 * tensor.nbytes / bench.measured(partial(copy.copy_, tensor), 3)
    return Measured(bench.bandwidth / 1e9)


def rate(bench: Bench) -> Measured:
    """Operations a second of a product of large matrices; in TFLOP/s."""
    side = bench.work.limit[0]
    matrix = torch.randn(side, side, device=bench.models.device, dtype=bench.models.dtype)
    bench.rate = 2 * side**3 / bench.measured(partial(F.linear, matrix, matrix), 3)
    return Measured(bench.rate / 1e12)


def _chats(bench: Bench, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Prompts [B, L] of `forward`; every row has other tokens, as chats do."""
    ids = bench.draw(bench.models.main.config.llm_config.vocab_size // 2, rows, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _written(bench: Bench, rows: int, compiles: bool, number: int) -> Callable[[], object]:
    """A call that answers so many chats by a number of tokens."""
    options = {"do_sample": False, "eos_token_id": NO_END, "pad_token_id": 0, "max_new_tokens": number}
    compiled, _ = bench.asked(compiles)
    main = bench.models.main
    return partial(main.generate, **_chats(bench, rows, bench.work.chat), **options, compile=compiled)


def step_bytes(bench: Bench, rows: int) -> float:
    """Bytes that are read to write one token in every chat: weights, and keys and values."""
    config, work = bench.models.main.config.llm_config, bench.work
    per_token = (
        2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * bench.models.dtype.itemsize
    )
    context = work.chat + work.new / 2
    return used_weights(bench.models.main.model, rows, stored) + rows * context * per_token


def prompt_operations(bench: Bench, length: int) -> float:
    """Operations of reading a prompt of so many tokens: its last one alone is multiplied with the output head."""
    decoder = bench.models.main.model
    config, head = decoder.config, numbers(decoder.lm_head.weight)
    attention = 2 * length**2 * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    return 2 * length * (used_weights(decoder, 1, numbers) - head) + 2 * head + attention


def writing(bench: Bench, rows: int, compiles: bool) -> Measured:
    """Tokens a second, over all chats, of the tokens after the first."""
    _, warm_ups = bench.asked(compiles)
    number = bench.work.new
    whole = bench.measured(_written(bench, rows, compiles, number), warm_ups)
    first = bench.measured(_written(bench, rows, compiles, 1))
    limit = rows * bench.bandwidth / step_bytes(bench, rows)
    return Measured(rows * (number - 1) / max(whole - first, 1e-9), limit)


def reading(bench: Bench) -> Measured:
    """Tokens of a prompt a second."""
    length = bench.work.prompt
    call = partial(bench.models.main, **_chats(bench, 1, length), logits_to_keep=1)
    return Measured(length / bench.measured(call), length * bench.rate / prompt_operations(bench, length))


def _against_operations(bench: Bench, call: Callable[[], object]) -> Measured:
    """Seconds of a call, and those that its operations take at the measured rate."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return Measured(bench.measured(call), counter.get_total_flops() / bench.rate)


def seeing(bench: Bench) -> Measured:
    """Seconds of the vision tower for one square image."""
    main, side = bench.models.main, bench.work.side // PATCH // MERGE * MERGE
    pixels = torch.randn(side**2, PATCH_NUMBERS, device=bench.models.device, dtype=bench.models.dtype)
    grid = torch.tensor([[1, side, side]], device=bench.models.device)
    return _against_operations(bench, partial(main.get_image_features, pixels, grid))


def hearing(bench: Bench, whisper: bool) -> Measured:
    """Seconds of an audio encoder for one recording."""
    main, device, dtype = bench.models.main, bench.models.device, bench.models.dtype
    width = main.config.whisper_config.num_mel_bins if whisper else main.config.audio_config.input_size
    frames = int(bench.work.seconds * (WHISPER_FRAMES if whisper else SANM_FRAMES))
    features = torch.randn(1, frames, width, device=device, dtype=dtype)
    lengths = torch.tensor([[frames]], device=device)
    return _against_operations(bench, partial(main.get_audio_features, features, lengths, whisper))


def _prompt(bench: Bench) -> TalkerPrompt:
    """What the talker is to say."""
    config, work = bench.models.main.talker.config, bench.work
    low = min(config.special_token_ids.values())
    speaker = torch.nn.functional.normalize(torch.ones(config.vp_feature_size), dim=0)
    text, voice = bench.draw(low, work.text).cpu(), bench.draw(config.audio_vocab_size, work.voice).cpu()
    return TalkerPrompt(text, voice, speaker)


def _generators(rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(rows)]


def _said(bench: Bench, rows: int, compiles: bool) -> Callable[[], list[Any]]:
    """A call that says the same piece for so many people, with ids of their own."""
    compiled, _ = bench.asked(compiles)
    rules = StopRules(min_new_ids=bench.work.ids, max_new_ids=bench.work.ids)
    prompts, talker = [_prompt(bench)] * rows, bench.models.main.talker
    return lambda: talker.generate(prompts, _generators(rows), rules, attempts=1, compiled=compiled)


def talker_step_bytes(bench: Bench) -> int:
    """Bytes of the weights that a step of the talker reads, whatever the number of rows."""
    llm = bench.models.main.talker.model
    return sum(stored(weight) for weight in (*llm.model.layers.parameters(), llm.lm_head.weight))


def _audio_seconds(bench: Bench) -> float:
    """Seconds of speech of an answer, at one code an id: an id may stand for more."""
    return bench.work.ids / bench.models.detokenizer.config.token_rate


def saying(bench: Bench, rows: int, compiles: bool) -> Measured:
    """Real-time factor of the talker."""
    _, warm_ups = bench.asked(compiles)
    seconds = bench.measured(_said(bench, rows, compiles), warm_ups)
    limit = bench.work.ids * talker_step_bytes(bench) / bench.bandwidth
    return Measured(seconds / _audio_seconds(bench), limit / _audio_seconds(bench))


def _codes(bench: Bench, ids: torch.Tensor) -> torch.Tensor:
    """One speech code for every codec id: which one changes no time."""
    return ids % bench.models.detokenizer.config.flow["vocab_size"]


def _spoken(bench: Bench, codes: torch.Tensor, compiles: bool = False) -> list[torch.Tensor]:
    """The waveform of codes."""
    compiled, _ = bench.asked(compiles)
    speaker = torch.ones(1, bench.models.detokenizer.config.flow["spk_embed_dim"])
    return bench.models.detokenizer.decode([codes], speaker, generator=_generators(1), compile=compiled)


def sounding(bench: Bench, compiles: bool) -> Measured:
    """Real-time factor of the audio detokenizer, flow and vocoder; the flow alone is compiled."""
    _, warm_ups = bench.asked(compiles)
    codes = bench.draw(bench.models.detokenizer.config.flow["vocab_size"], bench.work.ids)
    seconds = bench.measured(partial(_spoken, bench, codes, compiles), warm_ups)
    limit = _operations(partial(_spoken, bench, codes)) / bench.rate
    return Measured(seconds / _audio_seconds(bench), limit / _audio_seconds(bench))


def speaking(bench: Bench, compiles: bool) -> Measured:
    """Real-time factor of talker and audio detokenizer together."""
    _, warm_ups = bench.asked(compiles)
    say = _said(bench, 1, compiles)
    seconds = bench.measured(lambda: _spoken(bench, _codes(bench, say()[0].codec_ids), compiles), warm_ups)
    operations = _operations(partial(_spoken, bench, _codes(bench, torch.arange(bench.work.ids))))
    limit = bench.work.ids * talker_step_bytes(bench) / bench.bandwidth + operations / bench.rate
    return Measured(seconds / _audio_seconds(bench), limit / _audio_seconds(bench))


@torch.no_grad()
def _operations(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _first_sound(bench: Bench, compiles: bool) -> None:
    """A reply until its first samples: first words, then codec ids, each given to the stream at once."""
    compiled, _ = bench.asked(compiles)
    _written(bench, 1, compiles, bench.work.first_text)()
    detokenizer, rules = bench.models.detokenizer, StopRules(min_new_ids=bench.work.ids, max_new_ids=bench.work.ids)
    speaker = torch.ones(1, detokenizer.config.flow["spk_embed_dim"])
    stream = detokenizer.stream(speaker, generator=torch.Generator().manual_seed(0), compile=compiled)
    for step in bench.models.main.talker.stream([_prompt(bench)], _generators(1), rules, compiled=compiled):
        if len(stream.push(_codes(bench, step.codec_ids[step.codec_ids != NO_ID]).cpu())):
            return
    raise RuntimeError(f"{bench.work.ids} ids are too few for a first chunk of speech")


def sounding_first(bench: Bench, compiles: bool) -> Measured:
    """Seconds from the end of the prompt to the first sound of a spoken answer."""
    _, warm_ups = bench.asked(compiles)
    seconds = bench.measured(partial(_first_sound, bench, compiles), warm_ups)
    settings = bench.models.detokenizer.config.streaming
    ids = settings["first_chunk"] + settings["look_ahead"]
    moved = bench.work.first_text * step_bytes(bench, 1) + ids * talker_step_bytes(bench)
    return Measured(seconds, prompt_operations(bench, bench.work.chat) / bench.rate + moved / bench.bandwidth)


def _drawn(bench: Bench, count: int, compiles: bool, steps: int) -> Callable[[], object]:
    """A call that draws so many images at once."""
    config, side = bench.models.image_gen.config, bench.work.picture
    condition = torch.ones(count, config.scales[-1] ** 2, config.hidden_size, device=bench.models.device)
    condition = F.normalize(condition, dim=-1).to(bench.models.dtype)
    draw, (compiled, _) = bench.models.image_gen.draw, bench.asked(compiles)
    options = {"num_inference_steps": steps, "compile": compiled}
    return lambda: draw(condition, side, side, generator=_generators(count), **options)


def drawing(bench: Bench, count: int, compiles: bool) -> Measured:
    """Seconds of drawing so many images at once."""
    _, warm_ups = bench.asked(compiles)
    one, two = (_operations(_drawn(bench, count, False, steps)) for steps in (1, 2))
    operations = one + (bench.work.steps - 1) * (two - one)
    seconds = bench.measured(_drawn(bench, count, compiles, bench.work.steps), warm_ups)
    return Measured(seconds, operations / bench.rate)


def drawing_many(bench: Bench, count: int, compiles: bool) -> Measured:
    """Images a minute of drawing so many at once."""
    found = drawing(bench, count, compiles)
    assert found.limit is not None
    return Measured(60 * count / found.value, 60 * count / found.limit)


def denoising(bench: Bench, compiles: bool) -> Measured:
    """Steps a second of one image, without its autoencoder."""
    _, warm_ups = bench.asked(compiles)
    one, two = (_operations(_drawn(bench, 1, False, steps)) for steps in (1, 2))
    times = [bench.measured(_drawn(bench, 1, compiles, number), warm_ups) for number in (1, bench.work.steps)]
    return Measured((bench.work.steps - 1) / max(times[1] - times[0], 1e-9), bench.rate / (two - one))
