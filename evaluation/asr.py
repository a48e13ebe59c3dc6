"""Speech recognition: corpora as their owners distribute them, transcribed as `ming transcribe` does, and error rates.

One folder per corpus below the directory of data, named as in `CORPORA`, holding what the owner's archive holds:

    aishell1      wav/test/SPEAKER/ID.wav, transcript/aishell_transcript_v0.8.txt
    aishell2_*    wav.scp, trans.txt, wav/SPEAKER/ID.wav
    librispeech_* SPEAKER/CHAPTER/ID.flac, SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt
    wenetspeech   WenetSpeech.json, audio/test_net/.../ID.opus
    fleurs_*      test.tsv, audio/test/ID.wav
    cv15_*        test.tsv, clips/ID.mp3
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import soundfile
from tqdm import tqdm
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from ming.evaluation.answering import Answerer
from ming.evaluation.journal import Journal
from ming.prompts import TRANSCRIPTION_PROMPT, message_content

from .results import Measured

METRICS = ("wer", "cer")


@dataclass(frozen=True)
class Recording:
    """A recording and what is said in it.

    Args:
        key: unique in its corpus.
        path: of the file.
        text: the reference.
        begin, end: seconds; the part of a long file. None is all of it.
    """

    key: str
    path: Path
    text: str
    begin: float | None = None
    end: float | None = None

    def source(self) -> Any:
        """What the processor reads: the file, or (waveform float32 [N], rate in Hz) of a part of it."""
        if self.begin is None or self.end is None:
            return str(self.path)
        with soundfile.SoundFile(self.path) as file:
            start, stop = (round(seconds * file.samplerate) for seconds in (self.begin, self.end))
            file.seek(start)
            waveform = file.read(stop - start, dtype="float32", always_2d=True).mean(axis=1)
            return waveform, file.samplerate


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    """Lines "KEY REST" of a text file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, rest = line.strip().replace("\t", " ").partition(" ")
        if key:
            yield key, rest.strip()


def read_aishell1(folder: Path) -> Iterator[Recording]:
    """The test set of AISHELL-1 (openslr.org/33)."""
    texts = dict(_pairs(folder / "transcript" / "aishell_transcript_v0.8.txt"))
    for path in sorted(folder.glob("wav/test/*/*.wav")):
        if path.stem in texts:  # as in Kaldi's recipe: some recordings have no transcript
            yield Recording(path.stem, path, texts[path.stem])


def read_aishell2(folder: Path) -> Iterator[Recording]:
    """One channel of the test set of AISHELL-2: `wav.scp` and `trans.txt`."""
    files = dict(_pairs(folder / "wav.scp"))
    for key, text in _pairs(folder / "trans.txt"):
        yield Recording(key, folder / files[key], text)


def read_librispeech(folder: Path) -> Iterator[Recording]:
    """A set of LibriSpeech (openslr.org/12)."""
    for transcript in sorted(folder.glob("*/*/*.trans.txt")):
        for key, text in _pairs(transcript):
            yield Recording(key, transcript.parent / f"{key}.flac", text)


def read_wenetspeech(folder: Path, subset: str) -> Iterator[Recording]:
    """A test set of WenetSpeech (openslr.org/121): segments of long recordings."""
    content = json.loads((folder / "WenetSpeech.json").read_text(encoding="utf-8"))
    for audio in content["audios"]:
        for segment in audio["segments"]:
            if subset in segment["subsets"]:
                times = segment["begin_time"], segment["end_time"]
                yield Recording(segment["sid"], folder / audio["path"], segment["text"], *times)


def read_fleurs(folder: Path) -> Iterator[Recording]:
    """The test set of a language of FLEURS: the normalised transcript, without quotes around it."""
    with (folder / "test.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield Recording(row[1], folder / "audio" / "test" / row[1], row[3])


def read_common_voice(folder: Path) -> Iterator[Recording]:
    """The test set of a language of Common Voice."""
    with (folder / "test.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield Recording(row["path"], folder / "clips" / row["path"], row["sentence"])


@dataclass(frozen=True)
class Corpus:
    """A test set.

    Args:
        folder: below the directory of data.
        language: "en" or "zh".
        read: its recordings, from the folder.
    """

    folder: str
    language: str
    read: Callable[[Path], Iterator[Recording]]


CORPORA = {
    "aishell1": Corpus("aishell1", "zh", read_aishell1),
    "aishell2_android": Corpus("aishell2_android", "zh", read_aishell2),
    "aishell2_ios": Corpus("aishell2_ios", "zh", read_aishell2),
    "cv15_zh": Corpus("cv15_zh", "zh", read_common_voice),
    "fleurs_zh": Corpus("fleurs_zh", "zh", read_fleurs),
    "wenetspeech_meeting": Corpus("wenetspeech", "zh", lambda folder: read_wenetspeech(folder, "TEST_MEETING")),
    "wenetspeech_net": Corpus("wenetspeech", "zh", lambda folder: read_wenetspeech(folder, "TEST_NET")),
    "librispeech_test_clean": Corpus("librispeech_test_clean", "en", read_librispeech),
    "librispeech_test_other": Corpus("librispeech_test_other", "en", read_librispeech),
    "cv15_en": Corpus("cv15_en", "en", read_common_voice),
    "fleurs_en": Corpus("fleurs_en", "en", read_fleurs),
}


@cache
def _english() -> EnglishTextNormalizer:
    # The table of British spellings is not in the library; such spellings count as errors.
    return EnglishTextNormalizer({})


@cache
def _chinese():
    from wetext import Normalizer

    return Normalizer(lang="zh", operator="tn")


def normalise(text: str, language: str) -> str:
    """What is compared: Whisper's normaliser of English; Chinese with numbers in words, no punctuation, no spaces.

    Args:
        language: "en" or "zh".
    """
    if language == "en":
        return _english()(text).strip()
    return "".join(BasicTextNormalizer()(_chinese().normalize(text)).split())


def error_rate(references: list[str], hypotheses: list[str], language: str, metric: str) -> float:
    """Errors of all texts together in percent of the words ("wer") or characters ("cer") of the references.

    Raises:
        ValueError: an unknown metric, different numbers of texts, or references without words.
    """
    import jiwer

    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is unknown; give one of {', '.join(METRICS)}")
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, but {len(hypotheses)} hypotheses; give one for each")
    pairs = [(normalise(r, language), normalise(h, language)) for r, h in zip(references, hypotheses, strict=True)]
    pairs = [(reference, hypothesis) for reference, hypothesis in pairs if reference]
    if not pairs:
        raise ValueError("no reference has words; give the transcripts of the recordings")
    wanted, heard = (list(texts) for texts in zip(*pairs, strict=True))
    return 100 * (jiwer.wer if metric == "wer" else jiwer.cer)(wanted, heard)


def read_corpus(task: str, data: Path, limit: int | None) -> list[Recording]:
    """The recordings of a task in the directory of data; [] if its folder is not there.

    Raises:
        ValueError: the folder holds no recordings of this corpus, or a file of them is missing.
    """
    corpus = CORPORA[task]
    folder = data / corpus.folder
    if not folder.is_dir():
        return []
    try:
        recordings = list(corpus.read(folder))[:limit]
    except (OSError, KeyError, IndexError) as error:
        raise ValueError(f"{folder} is not laid out as {task}: {error!r}; see evaluation/asr.py") from error
    if missing := [recording.path for recording in recordings if not recording.path.is_file()]:
        raise ValueError(f"{folder}: {len(missing)} recordings are missing, the first is {missing[0]}")
    if not recordings:
        raise ValueError(f"{folder} holds no recordings of {task}; see evaluation/asr.py for the layout")
    return recordings


def transcribe(
    answerer: Answerer,
    recordings: list[Recording],
    journal: Journal,
    batch_size: int,
    prompt: str | None = None,
    **decoding: Any,
) -> list[str]:
    """What the model hears in recordings; those that the journal has are not asked again.

    Args:
        prompt: before the recording; None is that of the release.
        decoding: options of `generate`.
    """
    prompt = prompt or TRANSCRIPTION_PROMPT
    waiting = [recording for recording in recordings if recording.key not in journal.records]
    for start in tqdm(range(0, len(waiting), batch_size), desc=journal.path.stem, disable=not waiting, leave=False):
        batch = waiting[start : start + batch_size]
        contents = [message_content(prompt, {"audio": [recording.source()]}) for recording in batch]
        replies = answerer.answers([[{"role": "user", "content": content}] for content in contents], **decoding)
        journal.add({"key": r.key, "text": r.text, "reply": reply} for r, reply in zip(batch, replies, strict=True))
    return [journal.records[recording.key]["reply"] for recording in recordings]


def measure(
    answerer: Answerer, task: str, metric: str, recordings: list[Recording], journal: Journal, **options: Any
) -> Measured:
    """The error rate of a task; options as of `transcribe`."""
    answerer.load(answerer.hearing)
    heard = transcribe(answerer, recordings, journal, **options)
    value = error_rate([recording.text for recording in recordings], heard, CORPORA[task].language, metric)
    return Measured(round(value, 3), len(recordings))
