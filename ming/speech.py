"""Speaking: text aloud, whole or as a stream, for a model with a talker.

    text -> pieces -> talker -> codec ids -> speech codes -> audio detokenizer -> waveform

Shape letters: N samples of a waveform, D hidden size of the thinker, n tokens of a chat.
"""

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import CompileConfig
from transformers.utils import ModelOutput, logging

from .argument_checks import raise_if_no_number, raise_if_no_settings, shown
from .background import Arrivals
from .compiled import raise_if_not_compilable, step_config
from .components import AUDIO_DETOKENIZER
from .encoding import save_audio
from .events import AudioChunk, Done, SpokenPiece, StreamEvent, TextDelta
from .finite import naming_layers, raise_if_not_finite
from .generation_arguments import VOICE_ARGUMENTS
from .modeling_talker import BailingMMTalker
from .randomness import PieceGenerators, raise_if_unusable, row_generators
from .speech_text import SpeechTextStream
from .talker_steps import NO_ID, StopRules, TalkerPiece, TalkerPrompt
from .voices import Voice, raise_if_longer

if TYPE_CHECKING:
    from .modeling_bailingmm import BailingMMNativeForConditionalGeneration

logger = logging.get_logger(__name__)

# What `Speaker.resolve` takes beside `seed` and `generator`.
SPEECH_ARGUMENTS = (
    *VOICE_ARGUMENTS,
    *("top_k", "temperature", "rules", "attempts", "cache_implementation", "compile"),
)
TALKER_BATCH = 8  # pieces said at once


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
        """Write one row's waveform as an audio file; the ending chooses the format (.wav, .flac, .ogg, .mp3).

        Raises:
            ValueError: the reply was not spoken, there is no such row, or the ending names no audio format.
        """
        if self.waveforms is None or self.sampling_rate is None:
            raise ValueError("this reply has no audio; ask for it with generation_mode='audio'")
        raise_if_no_number("row", row, whole=True)
        if not -len(self.waveforms) <= row < len(self.waveforms):
            raise ValueError(f"row={shown(row)}: there are {len(self.waveforms)} waveforms, from row 0 on")
        save_audio(path, self.waveforms[row], self.sampling_rate)


class PromptStates:
    """What the talker is told about a chat: the sum of embeddings and last hidden states of its prompt, as released.

    The model's `forward` adds to it while it reads the prompt.

    Args:
        num_tokens: length of the prompt, padding included.
        attention_mask: [B, L >= num_tokens], 0 at padding.
    """

    def __init__(self, num_tokens: int, attention_mask: torch.Tensor | None):
        self.num_tokens, self.attention_mask = num_tokens, attention_mask
        self._parts: list[torch.Tensor] = []

    def __deepcopy__(self, memo: dict) -> None:
        # Assisted decoding hands a copy of all arguments to the assistant, which reads the prompt for itself.
        return None

    def add(self, inputs_embeds: torch.Tensor, last_hidden_state: torch.Tensor) -> None:
        """Take the states [B, L, D] of the next part of the prompt; what follows the prompt is passed over."""
        if sum(part.shape[1] for part in self._parts) < self.num_tokens:
            self._parts.append(inputs_embeds + last_hidden_state)

    def rows(self) -> list[torch.Tensor]:
        """[n, D] per row of the batch that was decoded (beams included), without padding."""
        states = torch.cat(self._parts, dim=1)[:, : self.num_tokens]
        if self.attention_mask is None:
            return list(states)
        repeats = len(states) // len(self.attention_mask)
        mask = self.attention_mask.bool().repeat_interleave(repeats, dim=0)
        return [row[kept] for row, kept in zip(states, mask[:, : self.num_tokens], strict=True)]

    def of_replies(self, num_replies: int) -> list[torch.Tensor]:
        """[n, D] per reply; the replies of one chat (`num_return_sequences`) share its states."""
        rows = self.rows()
        return [rows[reply * len(rows) // num_replies] for reply in range(num_replies)]


@dataclass(frozen=True)
class SpeechSettings:
    """How a call speaks, with everything resolved that a call may leave open.

    Args:
        voice: to speak with.
        generators: one per reply.
        options: of `BailingMMTalker.generate`: `top_k`, `temperature`, `cache_implementation`, `compiled`, `rules`,
            `attempts`.
        compiled: whether the audio detokenizer's flow is compiled, and how.
    """

    voice: Voice
    generators: list[torch.Generator]
    options: dict[str, Any]
    compiled: bool | CompileConfig = False


class Speaker:
    """Reads text aloud with the talker of a model.

    Args:
        model: has `talker` and `components`.
    """

    def __init__(self, model: "BailingMMNativeForConditionalGeneration"):
        self.model = model

    @property
    def one_sentence(self) -> bool:
        """Whether a piece may hold one sentence at most, since the talker stops behind the first."""
        return self.require_talker().config.one_sentence_pieces

    @property
    def clause_units(self) -> int | None:
        """The length from which on a piece ends at a clause end (`SpeechTextStream`); None leaves it open."""
        return self.require_talker().config.clause_units

    def require_talker(self) -> BailingMMTalker:
        """The talker.

        Raises:
            ValueError: the model has none.
        """
        talker = getattr(self.model, "talker", None)
        if talker is None:
            raise ValueError(
                "this model has no talker: load a checkpoint with a talker_config, and with load_talker=True (default)"
            )
        return talker

    def raise_if_no_states(self, thinker_states: Any, rows: int) -> None:
        """Refuse states that are not [n, D] for each of the texts; None stands for no states.

        Raises:
            ValueError: it names what was given.
        """
        if thinker_states is None:
            return
        width = self.require_talker().config.qa_model_hidden_size
        listed = isinstance(thinker_states, (list, tuple)) and len(thinker_states) == rows
        if not listed or not all(_are_states(states, width) for states in thinker_states):
            raise ValueError(
                f"thinker_states={shown(thinker_states)} must be a list of {rows} tensor(s) [n, {width}] of floats, "
                "one per text"
            )

    def resolve(
        self,
        rows: int,
        seed: int | list[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        **arguments: Any,
    ) -> SpeechSettings:
        """Arguments of a call as settings, before any work; reads the parts that speech needs.

        Args:
            rows: number of replies.
            seed, generator: see `row_generators`.
            arguments: `speaker`, `prompt_audio` and `prompt_text` choose the voice, the others are of the talker.

        A generator of the caller's is drawn from at last: a call that is refused leaves it where it was.

        Raises:
            ValueError: no talker, unknown speaker, unusable recording, or an argument that does not fit the others.
            TypeError: an argument that speaking does not take, or of another kind than its name says.
        """
        if unknown := [name for name in arguments if name not in SPEECH_ARGUMENTS]:
            value, accepted = shown(arguments[unknown[0]]), ", ".join(SPEECH_ARGUMENTS)
            raise TypeError(f"{unknown[0]}={value}: speech does not take it; it takes seed, generator, {accepted}")
        arguments = {name: value for name, value in arguments.items() if value is not None}
        # The talker's own limits of a temperature follow in `resolve_options`.
        raise_if_no_settings({name: value for name, value in arguments.items() if name != "temperature"})
        voice_arguments = {name: arguments.pop(name) for name in VOICE_ARGUMENTS if name in arguments}
        compiled = arguments.pop("compile", None)
        arguments["compiled"] = self.model.compile_decoding if compiled is None else compiled
        self.require_talker().resolve_options(**arguments)
        if arguments["compiled"]:
            raise_if_not_compilable(self.model)
        raise_if_unusable(seed, generator, rows)
        self.model.components.audio_detokenizer.load()
        voice = self.model.components.talker_processor().voice(**voice_arguments)
        raise_if_longer(voice, self.require_talker().config.max_prompt_seconds)
        compiled = step_config(self.model.device, arguments["compiled"]) or False
        return SpeechSettings(voice, row_generators(seed, generator, rows), arguments, compiled)

    def say(
        self, texts: list[str], settings: SpeechSettings, thinker_states: list[torch.Tensor] | None = None
    ) -> SpeechOutput:
        """Read texts aloud.

        Args:
            thinker_states: [n, D] per text, what the thinker made of the chat that is answered.
        """
        processor, voice = self.model.components.talker_processor(), settings.voice
        states = thinker_states or [None] * len(texts)
        pieces: list[str] = []
        prompts: list[TalkerPrompt] = []
        generators: list[tuple[torch.Generator, torch.Generator]] = []
        owners: list[int] = []
        for row, (text, row_states) in enumerate(zip(texts, states, strict=True)):
            row_pieces = processor.pieces(text, self.one_sentence, self.clause_units)
            dealer = PieceGenerators(settings.generators[row])
            pieces += row_pieces
            prompts += [processor.prompt(piece, voice, row_states) for piece in row_pieces]
            generators += [dealer.next_pair() for _ in row_pieces]
            owners += [row] * len(row_pieces)
        said: list[TalkerPiece] = []
        for start in range(0, len(prompts), TALKER_BATCH):
            part = slice(start, start + TALKER_BATCH)
            said += self.model.talker.generate(
                prompts[part], [talker for talker, _ in generators[part]], **settings.options
            )
        waveforms = self.detokenize([item.codec_ids for item in said], [own for _, own in generators], settings)
        rate = self.model.components.audio_detokenizer.load().config.sample_rate
        spoken: list[list[SpokenPiece]] = [[] for _ in texts]
        parts: list[list[torch.Tensor]] = [[torch.zeros(0)] for _ in texts]
        for piece, item, waveform, row in zip(pieces, said, waveforms, owners, strict=True):
            spoken[row].append(record_piece(piece, len(waveform) / rate, item.finish_reason))
            parts[row].append(waveform)
        return SpeechOutput(text=texts, waveforms=[torch.cat(row) for row in parts], sampling_rate=rate, pieces=spoken)

    def detokenize(
        self, codec_ids: list[torch.Tensor], generators: list[torch.Generator], settings: SpeechSettings
    ) -> list[torch.Tensor]:
        """Codec ids [n] per piece -> waveforms float32 [N] on the CPU, empty where there are no codes."""
        processor, detokenizer = self.model.components.talker_processor(), self.model.components.audio_detokenizer
        codes, voice = [processor.codes(ids) for ids in codec_ids], settings.voice
        waveforms = [torch.zeros(0) for _ in codes]
        voiced = [index for index, row in enumerate(codes) if len(row)]
        for start in range(0, len(voiced), TALKER_BATCH):
            part = voiced[start : start + TALKER_BATCH]
            decode = partial(
                detokenizer.load().decode,
                [codes[index] for index in part],
                speaker_embedding=voice.speaker_embedding[None],
                prompt_codes=[voice.prompt_codes],
                prompt_mel=[voice.prompt_mel],
            )
            decoded = decode(generator=[generators[index] for index in part], compile=settings.compiled)
            with naming_layers({AUDIO_DETOKENIZER: detokenizer.load()}, decode):
                for index, waveform in zip(part, decoded, strict=True):
                    waveforms[index] = waveform.float().cpu()
                    raise_if_not_finite("the waveform is", waveforms[index])
        return waveforms

    def stream(
        self, text: str, settings: SpeechSettings, thinker_states: torch.Tensor | None = None
    ) -> Iterator[StreamEvent]:
        """`say` for one text, as `AudioChunk`s while it is being spoken, then `Done`."""
        reply = SpokenReply(PieceSpeaker(self, settings, thinker_states))
        yield from reply.finish(text)
        yield Done(text, reply.speaker.spoken)

    def stream_reply(
        self, work: Arrivals, settings: SpeechSettings, states: PromptStates
    ) -> Generator[StreamEvent, None, Done]:
        """Speak a reply that `work` is decoding; returns the last event.

        Args:
            work: its items are deltas of text.
            states: of the prompt; complete when the first delta has come.
        """
        text, reply = "", None
        for delta in work:
            if not delta:
                continue
            text += delta
            yield TextDelta(delta)
            if reply is None:
                reply = SpokenReply(PieceSpeaker(self, settings, states.rows()[0]), work)
            for event in reply.push(delta):
                text += event.text if isinstance(event, TextDelta) else ""
                yield event
        if reply is None:
            return Done(text)
        yield from reply.finish()
        return Done(text, reply.speaker.spoken)


class PieceSpeaker:
    """Speaks pieces of one reply, step by step.

    Args:
        settings: of one reply.
        thinker_states: [n, D] of the chat that is answered, or None.

    Attributes:
        spoken: a record of every piece so far.
    """

    def __init__(self, speaker: Speaker, settings: SpeechSettings, thinker_states: torch.Tensor | None = None):
        self.speaker, self.settings, self.thinker_states = speaker, settings, thinker_states
        self.talker, self.processor = speaker.require_talker(), speaker.model.components.talker_processor()
        self.detokenizer = speaker.model.components.audio_detokenizer.load()
        self.rate = self.detokenizer.config.sample_rate
        self.dealer = PieceGenerators(settings.generators[0])
        self.spoken: list[SpokenPiece] = []

    @property
    def num_together(self) -> int:
        """How many pieces the talker can say side by side."""
        return 1 if self._rules().released else TALKER_BATCH

    def _rules(self) -> StopRules:
        return self.settings.options.get("rules") or StopRules()

    def say(self, pieces: list[str]) -> Iterator[torch.Tensor]:
        """Waveforms [N] of pieces, one after every step of the talker, most of them empty.

        The talker says them side by side. The first is heard chunk by chunk while it is said; while that plays, the
        others are made, each in one go.
        """
        voice = self.settings.voice
        prompts = [self.processor.prompt(piece, voice, self.thinker_states) for piece in pieces]
        generators = [self.dealer.next_pair() for _ in pieces]
        stream = self.detokenizer.stream(
            speaker_embedding=voice.speaker_embedding[None],
            prompt_codes=[voice.prompt_codes],
            prompt_mel=[voice.prompt_mel],
            generator=generators[0][1],
            compile=self.settings.compiled,
        )
        options = {name: value for name, value in self.settings.options.items() if name != "attempts"}
        ids: list[list[int]] = [[] for _ in pieces]
        reasons: list[str | None] = [None] * len(pieces)
        samples = 0
        for step in self.talker.stream(prompts, [talker for talker, _ in generators], **options):
            waveform = self._heard(stream, step.codec_ids[0].item(), reasons[0], step.finish_reasons[0])
            samples += len(waveform)
            yield waveform
            reasons = step.finish_reasons
            for row, step_id in zip(ids, step.codec_ids.tolist(), strict=True):
                row += [step_id] if step_id != NO_ID else []
        for index, piece in enumerate(pieces):
            item = TalkerPiece.judged(ids[index], reasons[index], prompts[index], self._rules())
            if index > 0 or not samples:
                item = self._drawn_again(prompts[index], generators[index][0], item)
                (waveform,) = self.speaker.detokenize([item.codec_ids], [generators[index][1]], self.settings)
                samples = len(waveform)
                yield waveform
            self.spoken.append(record_piece(piece, samples / self.rate, item.finish_reason))

    def _heard(self, stream: Any, codec_id: int, before: str | None, now: str | None) -> torch.Tensor:
        """What the first piece adds to the stream of audio at a step: its codec id, and its end when it ends."""
        parts = [torch.zeros(0)]
        if codec_id != NO_ID:
            parts.append(stream.push(self.processor.codes(torch.tensor([codec_id]))).float().cpu())
        if before is None and now not in (None, "empty"):
            parts.append(stream.finish().float().cpu())
        waveform = torch.cat(parts)

        def decode_again() -> None:
            voice, codes = self.settings.voice, stream.codes[stream.num_prompt_codes :]
            self.detokenizer.decode([codes], voice.speaker_embedding[None], [voice.prompt_codes], [voice.prompt_mel])

        with naming_layers({AUDIO_DETOKENIZER: self.detokenizer}, decode_again):
            raise_if_not_finite("the waveform is", waveform)
        return waveform

    def _drawn_again(self, prompt: TalkerPrompt, generator: torch.Generator, item: TalkerPiece) -> TalkerPiece:
        """A piece that stayed empty, did not stop or lacks words is drawn again, as in `BailingMMTalker.generate`."""
        options = dict(self.settings.options)
        attempts = options.pop("attempts", BailingMMTalker.ATTEMPTS)
        if item.finish_reason == "stop" or attempts <= 1 or self._rules().released:
            return item
        return self.talker.generate([prompt], [generator], attempts=attempts - 1, **options)[0]


class SpokenReply:
    """Cuts the text of a reply into pieces and has them spoken, also while more text is coming.

    Args:
        speaker: of the pieces.
        work: source of more text, asked after every step of the talker.
    """

    def __init__(self, speaker: PieceSpeaker, work: Arrivals | None = None):
        self.speaker, self.work = speaker, work
        own = speaker.speaker
        self.cutter = SpeechTextStream(one_sentence=own.one_sentence, clause_units=own.clause_units)
        self.waiting: list[str] = []

    def push(self, text: str) -> Iterator[StreamEvent]:
        """Audio of the pieces that are complete with this text, and text that arrives while they are spoken."""
        self.waiting += self.cutter.push(text)
        yield from self._speak_waiting()

    def finish(self, text: str = "") -> Iterator[StreamEvent]:
        """Audio of what is left when the text is complete with `text`."""
        self.waiting += [*self.cutter.push(text), *self.cutter.finish()]
        yield from self._speak_waiting()

    def _speak_waiting(self) -> Iterator[StreamEvent]:
        together = self.speaker.num_together
        while self.waiting:
            pieces, self.waiting = self.waiting[:together], self.waiting[together:]
            for waveform in self.speaker.say(pieces):
                if len(waveform):
                    yield AudioChunk(waveform, self.speaker.rate)
                yield from self._arrived()

    def _arrived(self) -> Iterator[TextDelta]:
        """Text that came while a piece was spoken; its pieces are spoken next."""
        if self.work is not None:
            for delta in self.work.read(wait=False):
                if delta:
                    self.waiting += self.cutter.push(delta)
                    yield TextDelta(delta)


def _are_states(value: Any, width: int) -> bool:
    plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
    return value is None or (plain and value.is_floating_point() and value.ndim == 2 and value.shape[1] == width)


def record_piece(piece: str, seconds: float, finish_reason: str) -> SpokenPiece:
    """The record of a piece; one that is empty, did not stop or lacks words is logged as a warning."""
    problems = {
        "empty": "nothing was said of it",
        "short": f"words must be missing in {seconds:.1f} s",
        "length": f"it was cut off after {seconds:.1f} s",
    }
    what = problems.get(finish_reason)
    if what is not None:
        logger.warning(f"speech: the piece {piece!r} did not come to its end: {what}; try another seed")
    return SpokenPiece(piece, seconds, finish_reason)


__all__ = ["PieceSpeaker", "PromptStates", "Speaker", "SpeechOutput", "SpeechSettings", "SpokenReply"]
