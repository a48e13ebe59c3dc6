"""Measure how Ming-Tiny speaks: `python -m training.tiny.evaluate_speech`, three rows of the table.

The model reads test sentences aloud in the voices of test recordings, whose speed and pitch training never shows.
Speaking: the model's own speech recognition transcribes the output. Duration: it is compared with that of espeak-ng
for the same sentence and voice. Voice: to the speaker encoder, the output must be nearer to its prompt than to the
prompts of other voices.

`--floor` measures the errors without the talker. The same speech recognition transcribes espeak-ng's recordings of
the sentences, and what flow and vocoder make of the speech codes of these recordings.

`--texts` reads texts of 1 to 12 sentences aloud in the preset voices, and the same sentences one by one: a text must
hold all of them, in about the time and with about the errors that they have alone. `--clauses` does the same for
sentences of 2 to 5 clauses.
"""

import re
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torchaudio.functional import resample
from tqdm import tqdm

from ming.cli.arguments import count
from ming.events import SpokenPiece
from ming.media import SILENCE_PEAK
from ming.voices import Voice as PromptVoice
from ming.voices import VoiceEncoder

from .evaluate import Result, answer, load, measuring_parser, parse, report, word_errors
from .questions import describe_shape
from .scenes import sample_scene
from .sentences import sample_sentence
from .speaking import long_enough
from .speech import SAMPLE_RATE, Voice, sample_voice, speak
from .world import TRANSCRIBE

WER_BAR, DURATION_BAR, VOICE_BAR = 8.0, 25.0, 90.0
SILENCE_SECONDS = 0.1  # around the audio to transcribe, as recordings have it
MOST_SENTENCES = 12  # in a text
CLAUSES = (2, 3, 4, 5)  # in a sentence
JOINTS = (", ", "; ", " and ")  # of clauses
NUM_OTHERS = 9  # other voices that an output is compared with


@dataclass(frozen=True)
class Case:
    """A test sentence, espeak-ng's recording of it (float32 [samples]), and a prompt of the same voice."""

    text: str
    voice: Voice
    recording: torch.Tensor
    prompt: PromptVoice


def sample_case(encoder: VoiceEncoder, seed: int, index: int, max_seconds: float) -> Case:
    """The case of an index; training never shows the speed and pitch of its voice.

    Args:
        max_seconds: of the prompt, that the talker takes.
    """
    rng = np.random.default_rng((seed, index))
    voice, text = sample_voice(rng, "test"), sample_sentence(rng, "test")
    while True:
        prompt_text = sample_sentence(rng, "test")
        recording = long_enough(torch.from_numpy(speak(prompt_text, voice)))
        if len(recording) <= max_seconds * SAMPLE_RATE:
            break
    prompt = encoder.encode((recording.numpy(), SAMPLE_RATE), prompt_text)
    return Case(text, voice, torch.from_numpy(speak(text, voice)), prompt)


@dataclass(frozen=True)
class Reading:
    """A sentence read in a voice.

    Args:
        text, heard: the sentence and its transcription.
        seconds, espeak_seconds: durations of the output and of espeak-ng's recording.
        similarity, best_other: cosines to the own prompt, and the largest to a prompt of another voice.
    """

    text: str
    heard: str
    voice: Voice
    seconds: float
    espeak_seconds: float
    similarity: float
    best_other: float


def listen(model, processor, waveforms: list[torch.Tensor], rate: int, batch_size: int = 32) -> list[str]:
    """Transcriptions by the model itself.

    Args:
        waveforms: float [samples] each; short silences are added around them.
        rate: their sampling rate in Hz.
    """
    heard: list[str] = []
    silence, ask = round(rate * SILENCE_SECONDS), {"type": "text", "text": TRANSCRIBE[0]}
    for start in tqdm(range(0, len(waveforms), batch_size), desc="transcribing"):
        batch = [wave.float().cpu() for wave in waveforms[start : start + batch_size]]
        padded = [F.pad(wave, (silence, silence)).numpy() for wave in batch]
        contents = [[ask, {"type": "audio", "audio": (wave, rate)}] for wave in padded]
        heard += answer(model, processor, [[{"role": "user", "content": c}] for c in contents], whisper=False)
    return heard


@torch.no_grad()
def read_aloud(model, processor, samples: int, seed: int, batch_size: int) -> list[Reading]:
    """Let the model read test sentences in test voices."""
    encoder = model.components.talker_processor().load_voice_encoder()
    max_seconds = model.talker.config.max_prompt_seconds
    cases = [sample_case(encoder, seed, index, max_seconds) for index in range(samples)]
    embeddings = F.normalize(torch.stack([case.prompt.speaker_embedding for case in cases]), dim=-1)
    waves = []
    for index, case in enumerate(tqdm(cases, desc="speaking")):
        output = model.speak(case.text, speaker=case.prompt, seed=seed + index)
        waves.append(resample(output.waveforms[0].float().cpu(), output.sampling_rate, SAMPLE_RATE))
    heard = listen(model, processor, waves, SAMPLE_RATE, batch_size)
    readings = []
    for index, case in enumerate(cases):
        rng = np.random.default_rng((seed, samples + index))
        # The same espeak-ng voice in another pitch does not count as another voice.
        different = [other for other in range(samples) if cases[other].voice.name != case.voice.name]
        others = rng.permutation(different)[:NUM_OTHERS]
        cosines = torch.full((samples,), -1.0)  # silence is like no voice
        if len(waves[index]) and waves[index].abs().max() > 2 * SILENCE_PEAK:
            cosines = embeddings @ F.normalize(encoder.embed(long_enough(waves[index])), dim=-1)
        readings.append(
            Reading(
                case.text,
                heard[index].strip(),
                case.voice,
                len(waves[index]) / SAMPLE_RATE,
                len(case.recording) / SAMPLE_RATE,
                cosines[index].item(),
                cosines[torch.from_numpy(others)].max().item(),
            )
        )
    return readings


@torch.no_grad()
def floor(model, processor, samples: int, seed: int, batch_size: int) -> dict[str, float]:
    """Word error rates in percent: of espeak-ng's recordings, and of these through codes, flow and vocoder."""
    encoder = model.components.talker_processor().load_voice_encoder()
    detokenizer = model.audio_detokenizer.load()
    max_seconds = model.talker.config.max_prompt_seconds
    cases = [sample_case(encoder, seed, index, max_seconds) for index in range(samples)]
    recordings, again = [long_enough(case.recording) for case in cases], []
    for index, case in enumerate(tqdm(cases, desc="resynthesis")):
        waveform = detokenizer.decode(
            [encoder.encode_codes(recordings[index])],
            speaker_embedding=case.prompt.speaker_embedding[None],
            prompt_codes=[case.prompt.prompt_codes],
            prompt_mel=[case.prompt.prompt_mel],
            generator=[torch.Generator().manual_seed(seed + index)],
        )[0]
        again.append(resample(waveform.float().cpu(), detokenizer.config.sample_rate, SAMPLE_RATE))
    shares = {}
    for name, waves in {"espeak-ng's recordings": recordings, "the same through codes": again}.items():
        heard = listen(model, processor, waves, SAMPLE_RATE, batch_size)
        shares[name] = error_rate([case.text for case in cases], heard)
    return shares


@torch.no_grad()
def read_texts(model, processor, texts: int, seed: int, batch_size: int) -> dict[str, float]:
    """Word error rates in percent of sentences within texts and alone, their difference with its standard error (each
    text is compared with its own sentences), and the ratio of their durations."""
    voices = list(model.components.talker_processor().voices)
    spoken: list[list[str]] = []  # sentences of each text
    waves: tuple[list[list[torch.Tensor]], ...] = ([], [])  # sound of each text, within and alone
    for index in tqdm(range(texts), desc="speaking"):
        rng = np.random.default_rng((seed, index))
        own = [sample_sentence(rng, "test") for _ in range(rng.integers(1, MOST_SENTENCES + 1))]
        how = {"speaker": voices[index % len(voices)], "seed": seed + index}
        output = model.speak(" ".join(f"{sentence}." for sentence in own), **how)
        within = of_sentences(output.waveforms[0], output.pieces[0], output.sampling_rate)
        waves[0].append(within if len(within) == len(own) else [output.waveforms[0]])
        waves[1].append([model.speak(f"{sentence}.", **how).waveforms[0] for sentence in own])
        spoken.append(own)
        rate = output.sampling_rate
    sides = []  # wrong words of each text
    for side in waves:
        sounds = [resample(wave, rate, SAMPLE_RATE) for text in side for wave in text]
        heard = iter(listen(model, processor, sounds, SAMPLE_RATE, batch_size))
        said = [" ".join(next(heard).strip() for _ in text) for text in side]
        sides.append([word_errors(" ".join(own), own_said) for own, own_said in zip(spoken, said, strict=True)])
    words = sum(len(sentence.split()) for own in spoken for sentence in own)
    differences = np.subtract(*sides)
    spread = differences.std(ddof=1) if texts > 1 else float("nan")
    seconds = [sum(len(wave) for text in side for wave in text) / rate for side in waves]
    return {
        "sentences": sum(map(len, spoken)),
        "words": words,
        "word errors within texts, %": round(100 * sum(sides[0]) / words, 2),
        "word errors alone, %": round(100 * sum(sides[1]) / words, 2),
        "difference, points": round(100 * differences.sum() / words, 2),
        "standard error of the difference, points": round(100 * texts**0.5 * spread / words, 2),
        "seconds within texts over seconds alone": round(seconds[0] / seconds[1], 3),
    }


def of_sentences(waveform: torch.Tensor, pieces: list[SpokenPiece], rate: int) -> list[torch.Tensor]:
    """The sound of each sentence of a text, of one piece or several; every sentence ends with a full stop."""
    sentences: list[list[torch.Tensor]] = [[]]
    for piece, wave in zip(pieces, waveform.split([round(piece.seconds * rate) for piece in pieces]), strict=True):
        sentences[-1].append(wave)
        if piece.text.endswith("."):
            sentences.append([])
    return [torch.cat(waves) for waves in sentences if waves]


@torch.no_grad()
def read_clauses(model, processor, sentences: int, seed: int, batch_size: int) -> dict[str, float | dict]:
    """Word error rates in percent of the pieces of sentences of several clauses and of the clauses alone, per what
    joins them, and the ratio of their durations, also per number of clauses."""
    voices = list(model.components.talker_processor().voices)
    pieces: list[SpokenPiece] = []
    waves: list[list[torch.Tensor]] = [[], []]
    texts: list[list[str]] = [[], []]
    joints: list[list[str]] = [[], []]  # of each piece
    seconds: dict[int | str, list[float]] = {key: [0.0, 0.0] for key in (*CLAUSES, *JOINTS)}
    for index in tqdm(range(sentences), desc="speaking"):
        rng = np.random.default_rng((seed, index))
        own = [describe_shape(sample_scene(rng, "test", 1).shapes[0]) for _ in range(CLAUSES[index % len(CLAUSES)])]
        how = {"speaker": voices[index // len(CLAUSES) % len(voices)], "seed": seed + index}
        joint = JOINTS[index // (len(CLAUSES) * len(voices)) % len(JOINTS)]
        outputs = [model.speak(joint.join(own) + ".", **how), model.speak([f"{clause}." for clause in own], **how)]
        rate = outputs[0].sampling_rate
        for side, output in enumerate(outputs):
            said = [piece for row in output.pieces for piece in row]
            lengths = [round(piece.seconds * rate) for piece in said]
            waves[side] += torch.cat(output.waveforms).split(lengths)
            texts[side] += [re.sub("[,.;，。]", "", piece.text) for piece in said]
            joints[side] += [joint] * len(said)
            for key in (len(own), joint):
                seconds[key][side] += sum(piece.seconds for piece in said)
            pieces += said if side == 0 else []
    errors = []
    for own, spoken, joined in zip(waves, texts, joints, strict=True):
        heard = listen(model, processor, [resample(wave, rate, SAMPLE_RATE) for wave in own], SAMPLE_RATE, batch_size)
        errors.append(errors_by_joint(spoken, heard, joined))
    return {
        "words": sum(len(text.split()) for text in texts[0]),
        "pieces": len(pieces),
        "pieces that did not end well": sum(piece.finish_reason != "stop" for piece in pieces),
        "word errors within sentences, %": errors[0],
        "word errors alone, %": errors[1],
        "seconds within sentences over seconds alone": {
            key: round(within / alone, 3) for key, (within, alone) in seconds.items() if alone
        },
    }


def error_rate(texts: list[str], heard: list[str]) -> float:
    """Word error rate of transcriptions in percent."""
    wrong = sum(word_errors(text, said.strip()) for text, said in zip(texts, heard, strict=True))
    return round(100 * wrong / sum(len(text.split()) for text in texts), 2)


def errors_by_joint(spoken: list[str], heard: list[str], joints: list[str]) -> dict[str, float]:
    """Word error rates in percent of all pieces and of those of each kind of joint."""
    rates = {"all": error_rate(spoken, heard)}
    for kind in dict.fromkeys(joints):
        own = [index for index, joint in enumerate(joints) if joint == kind]
        rates[kind] = error_rate([spoken[index] for index in own], [heard[index] for index in own])
    return rates


def results(readings: list[Reading]) -> list[Result]:
    """Lines of the table."""
    count = len(readings)
    errors = sum(word_errors(reading.text, reading.heard) for reading in readings)
    words = sum(len(reading.text.split()) for reading in readings)
    durations = [abs(reading.seconds / reading.espeak_seconds - 1) for reading in readings]
    near = sum(reading.similarity > reading.best_other for reading in readings)

    def line(name: str, title: str, metric: str, value: float, bar: float) -> Result:
        return Result(name, title, metric, round(float(value), 2), bar, count, count)

    return [
        line("speaking", "speaking, heard by its own recogniser", "wer", 100 * errors / words, WER_BAR),
        line(
            "duration",
            "speaking, duration against espeak-ng's",
            "difference",
            100 * float(np.mean(durations)),
            DURATION_BAR,
        ),
        line(
            "voice", f"voice nearer to its prompt than to {NUM_OTHERS} others", "exact", 100 * near / count, VOICE_BAR
        ),
    ]


def main() -> None:
    """Command line."""
    parser = measuring_parser("evaluate_speech", __doc__, batch_size=32)
    parser.add_argument(
        "--floor", action="store_true", help="measure recordings and their codes instead of the talker"
    )
    parser.add_argument("--texts", type=count, metavar="N", help="measure N texts of 1 to 12 sentences instead")
    parser.add_argument("--clauses", type=count, metavar="N", help="measure N sentences of 2 to 5 clauses instead")
    args = parse(parser)
    if (args.floor or args.texts or args.clauses) and (args.json or args.errors):
        parser.error("--json and --errors write the rows of the table; leave out --floor, --texts and --clauses")
    model, processor = load(args)
    started = time.monotonic()
    if args.texts or args.clauses:
        measure = read_texts if args.texts else read_clauses
        for name, value in measure(model, processor, args.texts or args.clauses, args.seed, args.batch_size).items():
            sys.stdout.write(f"{name}: {value}\n")
        return
    if args.floor:
        for name, share in floor(model, processor, args.samples, args.seed, args.batch_size).items():
            sys.stdout.write(f"{name}: {share} % word error rate, {args.samples} sentences\n")
        return
    readings = read_aloud(model, processor, args.samples, args.seed, args.batch_size)
    wrong = [asdict(reading) for reading in readings if word_errors(reading.text, reading.heard)]
    report(args, results(readings), wrong, started)


if __name__ == "__main__":
    main()
