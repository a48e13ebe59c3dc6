"""Speaking: what the model's calls for speech share, and what they return.

    reply text -> pieces -> talker -> codec ids -> speech codes -> audio detokenizer -> waveform

`SpeechMixin` gives a model `speak`, `stream` and the audio mode of `generate`. Randomness: every row has its own
generator, from which each piece of text gets two seeds, one for the talker and one for the detokenizer. A row's speech
therefore depends neither on its neighbours nor on whether it is streamed.
"""

import os
import queue
import secrets
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral

import soundfile
import torch
from torch import nn
from transformers import AutoModel, PreTrainedTokenizerFast, StoppingCriteria, StoppingCriteriaList, TextStreamer
from transformers.utils import ModelOutput, logging

from .configuration_bailingmm import has_component
from .modeling_talker import NO_ID, BailingMMTalker, TalkerPiece, TalkerPrompt
from .speech_text import SpeechTextStream
from .talker_processor import BailingMMTalkerProcessor
from .voices import Voice

logger = logging.get_logger(__name__)

DETOKENIZER_FOLDER = "audio_detokenizer"
VOICE_INPUTS = ("speaker", "prompt_audio", "prompt_text")
MAX_SEED = 2**62
TALKER_BATCH = 8  # pieces said at once


@dataclass(frozen=True)
class SpokenPiece:
    """A piece of a spoken reply: its normalised text, seconds, and why it ended, "stop", "length" or "empty"."""

    text: str
    seconds: float
    finish_reason: str


@dataclass
class SpeechOutput(ModelOutput):
    """A spoken reply per row.

    Args:
        sequences: int64 [B, L + new], prompt and reply as text ids; None from `speak`.
        text: the replies.
        waveforms: float32 [N] per row, within -1 and 1; [0] where there was nothing to say.
        sampling_rate: Hz.
        pieces: what was said in which piece, per row.
    """

    sequences: torch.Tensor | None = None
    text: list[str] | None = None
    waveforms: list[torch.Tensor] | None = None
    sampling_rate: int | None = None
    pieces: list[list[SpokenPiece]] | None = None

    def save(self, path: str | os.PathLike, row: int = 0) -> None:
        """Write one row's waveform as a sound file; the ending chooses the format (.wav, .flac, .ogg, .mp3)."""
        save_audio(path, self.waveforms[row], self.sampling_rate)


@dataclass(frozen=True)
class TextDelta:
    """More text of the reply."""

    text: str


@dataclass(frozen=True)
class AudioChunk:
    """More sound of the reply: waveform float32 [N] at sampling_rate Hz."""

    waveform: torch.Tensor
    sampling_rate: int


@dataclass(frozen=True)
class Done:
    """The reply is complete: its text, and what was spoken in which piece."""

    text: str
    pieces: list[SpokenPiece] = field(default_factory=list)


StreamEvent = TextDelta | AudioChunk | Done


def save_audio(path: str | os.PathLike, waveform: torch.Tensor, sampling_rate: int) -> None:
    """Write a waveform float [N] as 16-bit sound file.

    Raises:
        ValueError: the ending of the path names no sound format.
    """
    ending = os.path.splitext(path)[1].lstrip(".").upper()
    if ending not in soundfile.available_formats():
        raise ValueError(f"{path}: cannot write .{ending.lower()} files; use .wav, .flac, .ogg or .mp3")
    soundfile.write(path, waveform.detach().float().cpu().numpy(), sampling_rate)


def row_generators(
    seed: int | list[int] | None, generator: torch.Generator | list[torch.Generator] | None, rows: int
) -> list[torch.Generator]:
    """One generator per row. One seed serves all rows, as if each were alone; no seed is a fresh one.

    Raises:
        ValueError: both were given, or a list of another length.
    """
    if seed is not None and generator is not None:
        raise ValueError("pass either seed or generator, not both")
    if isinstance(generator, torch.Generator):
        seed = torch.randint(MAX_SEED, (rows,), generator=generator, device=generator.device).tolist()
    elif generator is not None:
        if len(generator) != rows:
            raise ValueError(f"{len(generator)} generators for {rows} rows; give one per row")
        return list(generator)
    if seed is None:
        seed = [secrets.randbelow(MAX_SEED) for _ in range(rows)]
    seeds = [seed] * rows if isinstance(seed, Integral) else list(seed)
    if len(seeds) != rows:
        raise ValueError(f"{len(seeds)} seeds for {rows} rows; give one per row, or one for all")
    return [torch.Generator().manual_seed(int(value)) for value in seeds]


class PieceSeeds:
    """Hands out, piece after piece, the generators of talker and detokenizer of a row."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def __call__(self) -> tuple[torch.Generator, torch.Generator]:
        draws = torch.randint(MAX_SEED, (2,), generator=self.generator, device=self.generator.device)
        talker, detokenizer = draws.tolist()
        return torch.Generator().manual_seed(talker), torch.Generator().manual_seed(detokenizer)


class PrefillStates:
    """Hook on a decoder that keeps what the talker is told about a chat.

    That is the sum of the embeddings and the last hidden states of the prompt, as in the released code. It listens to
    the thread that made it only, so that replies can be decoded side by side.
    """

    def __init__(self, attention_mask: torch.Tensor | None, num_tokens: int):
        self.attention_mask, self.num_tokens = attention_mask, num_tokens
        self.thread = threading.get_ident()
        self.parts: list[torch.Tensor] = []

    def __call__(self, module, args, kwargs, output):
        if threading.get_ident() != self.thread:
            return
        if sum(part.shape[1] for part in self.parts) < self.num_tokens:
            self.parts.append(kwargs["inputs_embeds"] + output.last_hidden_state)

    def rows(self) -> list[torch.Tensor]:
        """[n, D] per row of the batch that was decoded (beams included), without padding."""
        states = torch.cat(self.parts, dim=1)[:, : self.num_tokens]
        if self.attention_mask is None:
            return list(states)
        repeats = len(states) // len(self.attention_mask)
        mask = self.attention_mask.bool().repeat_interleave(repeats, dim=0)
        return [row[kept] for row, kept in zip(states, mask[:, : self.num_tokens], strict=True)]


class QueueStreamer(TextStreamer):
    """Puts decoded text into a queue as soon as it is certain."""

    def __init__(self, tokenizer, text_queue: queue.SimpleQueue):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.text_queue = text_queue

    def on_finalized_text(self, text: str, stream_end: bool = False):
        if text:
            self.text_queue.put(text)


class Cancelled(StoppingCriteria):
    """Stops decoding when an event is set."""

    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


class BackgroundReply:
    """A thread that decodes a reply and hands over its text; `close` stops it at the next token."""

    def __init__(self, generate, tokenizer, kwargs: dict):
        kwargs = dict(kwargs)
        self.queue: queue.SimpleQueue = queue.SimpleQueue()
        self.cancel = threading.Event()
        self.error: BaseException | None = None
        criteria = StoppingCriteriaList([*(kwargs.pop("stopping_criteria", None) or []), Cancelled(self.cancel)])
        self.kwargs = {**kwargs, "streamer": QueueStreamer(tokenizer, self.queue), "stopping_criteria": criteria}
        self.generate = generate
        self.finished = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.generate(**self.kwargs)
        except BaseException as error:  # handed to the reader, who raises it
            self.error = error
        finally:
            self.queue.put(None)

    def deltas(self, wait: bool) -> Iterator[str]:
        """The text that has come by now; with `wait`, at least one delta unless the reply is complete."""
        while not self.finished:
            try:
                delta = self.queue.get(block=wait)
            except queue.Empty:
                return
            if delta is None:
                self.finished = True
                if self.error is not None:
                    raise self.error
                return
            wait = False
            yield delta

    def close(self) -> None:
        self.cancel.set()
        self.thread.join()


class SpeechMixin:
    """`speak`, `stream` and the audio mode of `generate` for a model with a `talker` (or None)."""

    _components: dict

    def _component(self, name: str, read):
        """A part that lives beside the main weights, read on first use."""
        parts = self.__dict__.setdefault("_components", {})
        if name not in parts:
            source = self.config._name_or_path
            if not source:
                raise ValueError(
                    f"this model was not read from a directory, so its {name} is unknown; set model.{name} = ... first"
                )
            parts[name] = read(source, getattr(self.config, "_commit_hash", None))
        return parts[name]

    @property
    def audio_detokenizer(self) -> nn.Module:
        """Speech codes -> waveform; read from its folder on first use, on the model's device and dtype."""

        def read(source, revision):
            if not has_component(source, DETOKENIZER_FOLDER, revision):
                raise ValueError(f"{source} has no {DETOKENIZER_FOLDER}/ folder; take a repository that speaks")
            options = {"subfolder": DETOKENIZER_FOLDER, "trust_remote_code": True, "revision": revision or "main"}
            return AutoModel.from_pretrained(source, dtype=self.dtype, **options).eval()

        return self._component("audio_detokenizer", read).to(self.device)

    @audio_detokenizer.setter
    def audio_detokenizer(self, value: nn.Module):
        self.__dict__.setdefault("_components", {})["audio_detokenizer"] = value

    @property
    def talker_processor(self) -> BailingMMTalkerProcessor:
        """Voices, codec vocabulary and the talker's tokenizer; read from the repository on first use."""
        return self._component("talker_processor", BailingMMTalkerProcessor.from_pretrained)

    @talker_processor.setter
    def talker_processor(self, value: BailingMMTalkerProcessor):
        self.__dict__.setdefault("_components", {})["talker_processor"] = value

    @property
    def text_tokenizer(self):
        """The thinker's tokenizer, for calls that return text; read from the repository on first use."""

        def read(source, revision):
            return PreTrainedTokenizerFast.from_pretrained(source, revision=revision or "main")

        return self._component("text_tokenizer", read)

    @text_tokenizer.setter
    def text_tokenizer(self, value):
        self.__dict__.setdefault("_components", {})["text_tokenizer"] = value

    def _require_talker(self) -> BailingMMTalker:
        if getattr(self, "talker", None) is None:
            raise ValueError(
                "this model has no talker: load a checkpoint with a talker_config, and with load_talker=True (default)"
            )
        return self.talker

    @torch.no_grad()
    def speak(
        self,
        text: str | list[str],
        speaker: str | Voice | None = None,
        prompt_audio=None,
        prompt_text: str | None = None,
        seed: int | list[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        thinker_states: list[torch.Tensor] | None = None,
        **talker_options,
    ) -> SpeechOutput:
        """Read text aloud.

        Args:
            text: one text or several, any length, Chinese and English.
            speaker: a preset voice by name or a `Voice`; None takes the first preset one.
            prompt_audio, prompt_text: clone the voice of a recording of at most 30 s, and what is said in it.
            seed, generator: see `row_generators`; the same seed gives the same waveform, alone or in a batch.
            thinker_states: [n, D] per text, what the thinker made of the chat that is answered.
            talker_options: `top_k`, `temperature`, `rules`, `attempts`, `cache_implementation` of
                `BailingMMTalker.generate`.

        Raises:
            ValueError: no talker, unknown speaker, unusable recording, or an argument that does not fit the others.
        """
        talker, texts = self._require_talker(), [text] if isinstance(text, str) else list(text)
        generators = row_generators(seed, generator, len(texts))
        processor = self.talker_processor
        voice = processor.voice(speaker, prompt_audio, prompt_text)
        states = thinker_states or [None] * len(texts)
        pieces, prompts, seeds, owners = [], [], [], []
        for row, (reply, row_states) in enumerate(zip(texts, states, strict=True)):
            next_seeds = PieceSeeds(generators[row])
            for piece in processor.pieces(reply):
                pieces.append(piece)
                prompts.append(processor.prompt(piece, voice, row_states))
                seeds.append(next_seeds())
                owners.append(row)
        said: list[TalkerPiece] = []
        for start in range(0, len(prompts), TALKER_BATCH):
            part = slice(start, start + TALKER_BATCH)
            said += talker.generate(prompts[part], [first for first, _ in seeds[part]], **talker_options)
        waveforms = self._detokenize([item.codec_ids for item in said], [second for _, second in seeds], voice)
        rate = self.audio_detokenizer.config.sample_rate
        output = SpeechOutput(text=texts, sampling_rate=rate, pieces=[[] for _ in texts])
        parts: list[list[torch.Tensor]] = [[torch.zeros(0)] for _ in texts]
        for piece, item, waveform, row in zip(pieces, said, waveforms, owners, strict=True):
            output.pieces[row].append(_spoken(piece, len(waveform) / rate, item.finish_reason))
            parts[row].append(waveform)
        output.waveforms = [torch.cat(row) for row in parts]
        return output

    def _detokenize(
        self, codec_ids: list[torch.Tensor], generators: list[torch.Generator], voice: Voice
    ) -> list[torch.Tensor]:
        """Waveforms float32 [N] on the CPU, empty where there are no codes."""
        codes = [self.talker_processor.codes(ids) for ids in codec_ids]
        waveforms = [torch.zeros(0) for _ in codes]
        voiced = [index for index, row in enumerate(codes) if len(row)]
        for start in range(0, len(voiced), TALKER_BATCH):
            part = voiced[start : start + TALKER_BATCH]
            decoded = self.audio_detokenizer.decode(
                [codes[index] for index in part],
                speaker_embedding=voice.speaker_embedding[None],
                prompt_codes=[voice.prompt_codes],
                prompt_mel=[voice.prompt_mel],
                generator=[generators[index] for index in part],
            )
            for index, waveform in zip(part, decoded, strict=True):
                waveforms[index] = waveform.float().cpu()
        return waveforms

    @contextmanager
    def _prefill_states(self, attention_mask: torch.Tensor | None, num_tokens: int) -> Iterator[PrefillStates]:
        states = PrefillStates(attention_mask, num_tokens)
        handle = self.get_decoder().register_forward_hook(states, with_kwargs=True)
        try:
            yield states
        finally:
            handle.remove()

    def _generate_speech(self, generate_text, kwargs: dict, speech: dict) -> SpeechOutput:
        """The audio mode of `generate`: text first, then speech."""
        num_rows, num_tokens = kwargs["input_ids"].shape
        speech = self._check_speech(speech, num_rows * (kwargs.get("num_return_sequences") or 1))
        with self._prefill_states(kwargs.get("attention_mask"), num_tokens) as states:
            outputs = generate_text(**kwargs)
        sequences = outputs if isinstance(outputs, torch.Tensor) else outputs.sequences
        texts = self.text_tokenizer.batch_decode(sequences[:, num_tokens:], skip_special_tokens=True)
        rows = states.rows()
        thinker_states = [rows[row * len(rows) // len(texts)] for row in range(len(texts))]
        output = self.speak(texts, thinker_states=thinker_states, **speech)
        output.sequences = sequences
        return output

    def _check_speech(self, speech: dict, rows: int) -> dict:
        """Arguments of speech with the voice that they ask for, checked before any work, as are the parts it needs."""
        speech, generator = dict(speech), speech.get("generator")
        options = {name: value for name, value in speech.items() if name not in (*VOICE_INPUTS, "seed", "generator")}
        self._require_talker().check_options(**options)
        if speech.get("seed") is not None or not isinstance(generator, torch.Generator):  # one would move on
            row_generators(speech.get("seed"), generator, rows)
        _ = self.audio_detokenizer, self.text_tokenizer
        return {**speech, "speaker": self.talker_processor.voice(*(speech.pop(name, None) for name in VOICE_INPUTS))}

    def _stream_text(self, generate_text, kwargs: dict) -> Generator[StreamEvent, None, Done]:
        """The text mode of `stream`; returns its last event."""
        reply, text = BackgroundReply(generate_text, self.text_tokenizer, kwargs), ""
        try:
            while not reply.finished:
                for delta in reply.deltas(wait=True):
                    text += delta
                    yield TextDelta(delta)
        finally:
            reply.close()
        return Done(text)

    def _stream_speech(self, generate_text, kwargs: dict, speech: dict) -> Generator[StreamEvent, None, Done]:
        """The audio mode of `stream`: a thread decodes the text, this one speaks it; returns the last event."""
        states: list[PrefillStates] = []

        def decode(**kwargs):
            with self._prefill_states(kwargs.get("attention_mask"), kwargs["input_ids"].shape[1]) as own:
                states.append(own)
                generate_text(**kwargs)

        reply = BackgroundReply(decode, self.text_tokenizer, kwargs)
        speaker, text = None, ""
        try:
            while not reply.finished:
                for delta in reply.deltas(wait=True):
                    text += delta
                    yield TextDelta(delta)
                    speaker = speaker or PieceSpeaker(self, speech, states[0].rows()[0], reply)
                    for event in speaker.push(delta):
                        text += event.text if isinstance(event, TextDelta) else ""
                        yield event
            if speaker is not None:
                yield from speaker.finish()
        finally:
            reply.close()
        return Done(text, speaker.spoken if speaker else [])

    def speak_stream(self, text: str, **speech) -> Iterator[StreamEvent]:
        """`speak` for one text, as `AudioChunk`s while it is being spoken, then `Done`. Arguments as in `speak`."""
        thinker_states = speech.pop("thinker_states", [None])
        speech = self._check_speech(speech, 1)

        def events():
            speaker = PieceSpeaker(self, speech, thinker_states[0])
            speaker.waiting += speaker.cutter.push(text)
            yield from speaker.finish()
            yield Done(text, speaker.spoken)

        return events()


class PieceSpeaker:
    """Speaks a reply piece by piece, also while its text is still coming.

    Args:
        model: has talker, talker_processor and audio_detokenizer.
        speech: voice, seed and talker options as in `SpeechMixin.speak`.
        thinker_states: [n, D] of the chat that is answered, or None.
        reply: source of more text, asked between chunks of sound.
    """

    def __init__(
        self,
        model: SpeechMixin,
        speech: dict,
        thinker_states: torch.Tensor | None = None,
        reply: BackgroundReply | None = None,
    ):
        options = dict(speech)
        self.model, self.talker, self.processor = model, model.talker, model.talker_processor
        self.detokenizer = model.audio_detokenizer
        self.voice = self.processor.voice(*(options.pop(name, None) for name in VOICE_INPUTS))
        self.seeds = PieceSeeds(row_generators(options.pop("seed", None), options.pop("generator", None), 1)[0])
        self.attempts, self.rules = options.pop("attempts", 3), options.pop("rules", None)
        self.options, self.thinker_states, self.reply = options, thinker_states, reply
        self.rate = self.detokenizer.config.sample_rate
        self.cutter = SpeechTextStream()
        self.spoken: list[SpokenPiece] = []
        self.waiting: list[str] = []

    def push(self, delta: str) -> Iterator[StreamEvent]:
        """Sound of the pieces that are complete with this delta, and text that arrives while they are spoken."""
        self.waiting += self.cutter.push(delta)
        yield from self._say_waiting()

    def finish(self) -> Iterator[StreamEvent]:
        """Sound of what is left when the text is complete."""
        self.waiting += self.cutter.finish()
        yield from self._say_waiting()

    def _say_waiting(self) -> Iterator[StreamEvent]:
        together = 1 if self.rules is not None and self.rules.released else TALKER_BATCH
        while self.waiting:
            pieces, self.waiting = self.waiting[:together], self.waiting[together:]
            yield from self.say(pieces)

    def say(self, pieces: list[str]) -> Iterator[StreamEvent]:
        """Sound of pieces, and the text that arrives meanwhile.

        The talker says them side by side. The first is heard chunk by chunk while it is said; while that plays, the
        others are made, each in one go.
        """
        prompts = [self.processor.prompt(piece, self.voice, self.thinker_states) for piece in pieces]
        seeds = [self.seeds() for _ in pieces]
        stream = self.detokenizer.stream(
            speaker_embedding=self.voice.speaker_embedding[None],
            prompt_codes=[self.voice.prompt_codes],
            prompt_mel=[self.voice.prompt_mel],
            generator=seeds[0][1],
        )
        said: list[TalkerPiece] = []
        samples = 0
        for ids, ended in self._steps(prompts, [first for first, _ in seeds], said):
            waveforms = [stream.push(self.processor.codes(torch.tensor(ids)))] if ids else []
            waveforms += [stream.finish()] if ended else []
            samples += sum(len(waveform) for waveform in waveforms)
            yield from self._sound(waveforms)
            yield from self._arrived()
        for index, piece in enumerate(pieces):
            item = said[index]
            if index > 0 or not samples:
                item = self._again(prompts[index], seeds[index][0], item)
                waveforms = self.model._detokenize([item.codec_ids], [seeds[index][1]], self.voice)
                samples = len(waveforms[0])
                yield from self._sound(waveforms)
                yield from self._arrived()
            self.spoken.append(_spoken(piece, samples / self.rate, item.finish_reason))

    def _steps(
        self, prompts: list[TalkerPrompt], generators: list[torch.Generator], said: list[TalkerPiece]
    ) -> Iterator[tuple[list[int], bool]]:
        """Of every step the codec id of the first prompt, if it has one, and whether it ends there; `said` gets what
        became of every prompt."""
        steps = self.talker.stream(prompts, generators, self.rules, **self.options)
        rows: list[list[int]] = [[] for _ in prompts]
        ended, reasons = False, None
        while reasons is None:
            try:
                step = next(steps).tolist()
            except StopIteration as stop:
                reasons, step = stop.value, [NO_ID] * len(rows)
            for row, step_id in zip(rows, step, strict=True):
                row += [step_id] if step_id != NO_ID else []
            ends = not ended and step[0] == NO_ID
            ended = ended or ends
            yield [step_id for step_id in step[:1] if step_id != NO_ID], ends and bool(rows[0])
        said += [
            TalkerPiece(torch.tensor(row, dtype=torch.long), reason) for row, reason in zip(rows, reasons, strict=True)
        ]

    def _again(self, prompt: TalkerPrompt, generator: torch.Generator, item: TalkerPiece) -> TalkerPiece:
        """A piece that stayed empty or ran away is drawn again, as `BailingMMTalker.generate` would."""
        if item.finish_reason == "stop" or self.attempts <= 1 or (self.rules is not None and self.rules.released):
            return item
        return self.talker.generate([prompt], [generator], self.rules, self.attempts - 1, **self.options)[0]

    def _sound(self, waveforms: list[torch.Tensor]) -> Iterator[AudioChunk]:
        for waveform in waveforms:
            if len(waveform):
                yield AudioChunk(waveform.float().cpu(), self.rate)

    def _arrived(self) -> Iterator[TextDelta]:
        """Text that came while a piece was spoken; its pieces are spoken next."""
        if self.reply is not None:
            for delta in self.reply.deltas(wait=False):
                self.waiting += self.cutter.push(delta)
                yield TextDelta(delta)


def _spoken(piece: str, seconds: float, finish_reason: str) -> SpokenPiece:
    """The record of a piece; one that is empty or ran away is reported."""
    if finish_reason != "stop":
        what = "nothing was said of it" if finish_reason == "empty" else f"it was cut off after {seconds:.1f} s"
        logger.warning(f"speech: the piece {piece!r} did not come to its end: {what}; try another seed")
    return SpokenPiece(piece, seconds, finish_reason)


__all__ = [
    "AudioChunk",
    "Done",
    "PieceSpeaker",
    "SpeechMixin",
    "SpeechOutput",
    "SpokenPiece",
    "TextDelta",
    "save_audio",
]
