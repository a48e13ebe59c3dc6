"""Small local copies of the data sets, laid out as their owners lay them out, with the content of Ming-Tiny's world.

Pictures, clips and spoken sentences come from the generators of `training/tiny`, test split. Recordings are in English
also in the Chinese corpora, since Ming-Tiny knows no other speech.
"""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

from training.tiny.drawing import CENTRE, render, render_clip, sample_course
from training.tiny.judge import read_picture
from training.tiny.questions import QA_KINDS, Question, describe_scene, describe_shape, sample_fact, word
from training.tiny.scenes import COLOURS, KINDS, POSITIONS, Scene, Shape, choose, sample_clip, sample_scene
from training.tiny.speech import SAMPLE_RATE, LiveSpeaker, Utterance

from .asr import CORPORA
from .drawing import METADATA, VERDICTS
from .own_data import write_infoseek, write_parquet, write_task
from .tables import Row, Table

SPLIT = "test"
SIDE = 96  # pixels of pictures
FRAMES_PER_SECOND = 8
PAUSE = 0.5  # seconds between the sentences of a long recording
PLAIN = {"pre_prompt": "", "post_prompt": ""}  # Ming-Tiny takes the question alone
LETTERS = "ABCD"

Rng = np.random.Generator
Samples = list[dict[str, Any]]


def picture(scene: Scene, rng: Rng) -> Image.Image:
    """A scene as a square picture."""
    return render(scene, SIDE, SIDE, rng)


def asked_picture(rng: Rng) -> tuple[Image.Image, Question]:
    """A picture with a question."""
    scene = sample_scene(rng, SPLIT)
    return picture(scene, rng), word(sample_fact(scene, rng, QA_KINDS), rng)


def options_of(answer: str, rng: Rng, count: int = 4) -> tuple[list[str], int]:
    """`count` options of which one is the answer, and its place."""
    words = [*COLOURS, *KINDS, *POSITIONS, "small", "large"]
    same = next((kind for kind in (tuple(COLOURS), KINDS, POSITIONS) if answer in kind), tuple(words))
    others = [option for option in same if option != answer]
    options = [others[index] for index in rng.permutation(len(others))[: count - 1]]
    place = int(rng.integers(count))
    return [*options[:place], answer, *options[place:]], place


# Recordings


def write_waveform(path: Path, waveform: np.ndarray, **options: Any) -> None:
    """Write a recording at 16 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, SAMPLE_RATE, **options)


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tsv(path: Path, rows: list[list[str]]) -> None:
    """Write a table with tabulators."""
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n").writerows(rows)
    write_lines(path, buffer.getvalue().splitlines())


def write_aishell1(folder: Path, said: list[Utterance]) -> None:
    """As AISHELL-1."""
    keys = [f"BAC009S0764W{index + 121:04d}" for index in range(len(said))]
    for key, utterance in zip(keys, said, strict=True):
        write_waveform(folder / "wav" / "test" / "S0764" / f"{key}.wav", utterance.waveform)
    lines = [f"{key} {utterance.text}" for key, utterance in zip(keys, said, strict=True)]
    write_lines(folder / "transcript" / "aishell_transcript_v0.8.txt", lines)


def write_aishell2(folder: Path, said: list[Utterance]) -> None:
    """As a channel of AISHELL-2."""
    keys = [f"IT0011W{index + 1:04d}" for index in range(len(said))]
    for key, utterance in zip(keys, said, strict=True):
        write_waveform(folder / "wav" / "T0011" / f"{key}.wav", utterance.waveform)
    write_lines(folder / "wav.scp", [f"{key}\twav/T0011/{key}.wav" for key in keys])
    write_lines(folder / "trans.txt", [f"{key}\t{each.text}" for key, each in zip(keys, said, strict=True)])


def write_librispeech(folder: Path, said: list[Utterance]) -> None:
    """As LibriSpeech: FLAC, transcripts in capitals."""
    place, lines = folder / "1089" / "134686", []
    for index, utterance in enumerate(said):
        key = f"1089-134686-{index:04d}"
        write_waveform(place / f"{key}.flac", utterance.waveform)
        lines.append(f"{key} {utterance.text.upper()}")
    write_lines(place / "1089-134686.trans.txt", lines)


def write_wenetspeech(folder: Path, said: list[Utterance]) -> None:
    """As WenetSpeech: one long recording per test set, cut into segments."""
    audios = []
    for subset in ("TEST_NET", "TEST_MEETING"):
        name = f"audio/{subset.lower()}/Y0000000000_tiny.opus"
        parts, segments, time = [], [], 0.0
        for index, utterance in enumerate(said):
            seconds = len(utterance.waveform) / SAMPLE_RATE
            segment = {"sid": f"{subset}_S{index:05d}", "subsets": [subset], "text": utterance.text}
            segments.append({**segment, "begin_time": round(time, 3), "end_time": round(time + seconds, 3)})
            parts += [utterance.waveform, np.zeros(int(PAUSE * SAMPLE_RATE), np.float32)]
            time += seconds + PAUSE
        write_waveform(folder / name, np.concatenate(parts), format="OGG", subtype="OPUS")
        audios.append({"aid": f"{subset}_tiny", "path": name, "segments": segments})
    write_lines(folder / "WenetSpeech.json", [json.dumps({"audios": audios})])


def write_fleurs(folder: Path, said: list[Utterance]) -> None:
    """As a language of FLEURS."""
    rows = []
    for index, utterance in enumerate(said):
        name = f"{10_000 + index}.wav"
        write_waveform(folder / "audio" / "test" / name, utterance.waveform)
        raw = f"{utterance.text.capitalize()}."
        rows.append([str(index), name, raw, utterance.text, "", str(len(utterance.waveform)), "FEMALE"])
    write_tsv(folder / "test.tsv", rows)


def write_common_voice(folder: Path, said: list[Utterance]) -> None:
    """As a language of Common Voice: MP3."""
    rows = [["client_id", "path", "sentence", "up_votes", "down_votes"]]
    for index, utterance in enumerate(said):
        name = f"common_voice_tiny_{index:08d}.mp3"
        write_waveform(folder / "clips" / name, utterance.waveform, format="MP3")
        rows.append(["tiny", name, f"{utterance.text.capitalize()}.", "2", "0"])
    write_tsv(folder / "test.tsv", rows)


WRITERS: dict[str, Callable[[Path, list[Utterance]], None]] = {
    "aishell1": write_aishell1,
    "aishell2_android": write_aishell2,
    "aishell2_ios": write_aishell2,
    "wenetspeech": write_wenetspeech,
    **dict.fromkeys(("librispeech_test_clean", "librispeech_test_other"), write_librispeech),
    **dict.fromkeys(("fleurs_zh", "fleurs_en"), write_fleurs),
    **dict.fromkeys(("cv15_zh", "cv15_en"), write_common_voice),
}


def write_corpora(folder: Path, tasks: list[str], samples: int, seed: int, speaker: Any = None) -> None:
    """Write the corpora of tasks of speech recognition; a speaker of None is espeak-ng."""
    speaker = speaker or LiveSpeaker(SPLIT)
    for name in dict.fromkeys(CORPORA[task].folder for task in tasks):
        rng = np.random.default_rng((seed, list(WRITERS).index(name)))
        WRITERS[name](folder / name, [speaker.sentence(rng) for _ in range(samples)])


# Tasks of lmms-eval


def ai2d(rng: Rng, folder: Path) -> dict[str, Any]:
    """A sample of AI2D."""
    image, question = asked_picture(rng)
    options, place = options_of(question.answer, rng)
    return {"image": image, "question": question.text, "options": options, "answer": str(place)}


def mmstar(rng: Rng, folder: Path) -> dict[str, Any]:
    """A sample of MMStar."""
    image, question = asked_picture(rng)
    options, place = options_of(question.answer, rng)
    listed = ", ".join(f"{letter}: {option}" for letter, option in zip(LETTERS, options, strict=True))
    kind = {"category": "coarse perception", "l2_category": "image scene and topic"}
    text = f"{question.text}\nOptions: {listed}"
    return {"index": int(rng.integers(2**31)), "image": image, "question": text, "answer": LETTERS[place], **kind}


def plain_question(rng: Rng, folder: Path) -> dict[str, Any]:
    """A sample of the encyclopedia, and the part that question-answering sets have in common."""
    image, question = asked_picture(rng)
    return {"image": image, "question": question.text, "answer": question.answer}


def chartqa(rng: Rng, folder: Path) -> dict[str, Any]:
    """A sample of ChartQA."""
    return {**plain_question(rng, folder), "type": choose(rng, ("human_test", "augmented_test"))}


def docvqa(rng: Rng, folder: Path) -> dict[str, Any]:
    """A sample of DocVQA."""
    image, question = asked_picture(rng)
    number = str(int(rng.integers(2**31)))
    return {"image": image, "question": question.text, "answers": [question.answer], "questionId": number}


def textvqa(rng: Rng, folder: Path) -> dict[str, Any]:
    """A sample of TextVQA: ten people agree."""
    image, question = asked_picture(rng)
    sample = {"image": image, "question": question.text, "answers": [question.answer] * 10, "ocr_tokens": [""]}
    return {**sample, "question_id": int(rng.integers(2**31))}


def screenspot(rng: Rng, folder: Path) -> dict[str, Any]:
    """A sample of ScreenSpot: where a shape is."""
    scene = sample_scene(rng, SPLIT, 1)
    x, y = CENTRE[scene.shapes[0].position]
    box = [max(0.0, x - 0.15), max(0.0, y - 0.15), min(1.0, x + 0.15), min(1.0, y + 0.15)]
    sample = {"file_name": f"{int(rng.integers(2**31))}.png", "image": picture(scene, rng), "bbox": box}
    instruction = f"click the {scene.shapes[0].colour} {scene.shapes[0].kind}"
    return {**sample, "instruction": instruction, "data_type": "icon", "data_source": "tiny"}


def write_clip(path: Path, frames: list[Image.Image]) -> None:
    """Write frames as an mp4 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = (side // 2 * 2 for side in frames[0].size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame.crop((0, 0, width, height)))))
        container.mux(stream.encode())


def videomme(rng: Rng, folder: Path) -> dict[str, Any]:
    """A sample of Video-MME; its clip lies where lmms-eval would unpack it."""
    clip = sample_clip(rng, SPLIT)
    name = f"tiny{int(rng.integers(2**31))}"
    frames = render_clip(sample_course(clip, rng), SIDE, SIDE, rng)
    write_clip(folder / "hub" / "videomme" / "data" / f"{name}.mp4", frames)
    options, place = options_of(clip.colour, rng)
    listed = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    kind = {"duration": "short", "domain": "Life Record", "sub_category": "Daily Life"}
    sample = {"videoID": name, "question_id": name, "question": "What colour is it?", "options": listed}
    return {**sample, "answer": LETTERS[place], "task_type": "Attribute Perception", **kind}


def voicebench(rng: Rng, folder: Path) -> dict[str, Any]:
    """A sample of VoiceBench: a spoken question."""
    utterance = LiveSpeaker(SPLIT).sentence(rng)
    decoded = {"array": utterance.waveform.tolist(), "sampling_rate": SAMPLE_RATE}  # as the library decodes
    sample = {"audio": decoded, "prompt": utterance.text}
    return {**sample, "reference": choose(rng, LETTERS)}


# Kind of tiny copy -> file of the task in lmms-eval, the split it tests on, its samples, what differs from it.
LMMS: dict[str, tuple[str, str, Callable[[Rng, Path], dict[str, Any]], dict[str, Any]]] = {
    "ai2d": (
        "ai2d/ai2d.yaml",
        "test",
        ai2d,
        {
            "lmms_eval_specific_kwargs": {"default": {**PLAIN, "prompt_format": "qa", "pre_prompt": ""}},
            "model_specific_target_kwargs": {"default": "qa"},
        },
    ),
    "mmstar": ("mmstar/mmstar.yaml", "val", mmstar, {}),
    "chartqa": ("chartqa/chartqa.yaml", "test", chartqa, {"lmms_eval_specific_kwargs": {"default": PLAIN}}),
    "docvqa": ("docvqa/docvqa_val.yaml", "validation", docvqa, {"lmms_eval_specific_kwargs": {"default": PLAIN}}),
    "textvqa": ("textvqa/textvqa_val.yaml", "validation", textvqa, {"lmms_eval_specific_kwargs": {"default": PLAIN}}),
    "screenspot": ("screenspot/screenspot_rec_test.yaml", "test", screenspot, {}),
    "videomme": ("videomme/videomme.yaml", "test", videomme, {}),
    "voicebench_openbookqa": ("voicebench/voicebench_openbookqa.yaml", "test", voicebench, {}),
    "voicebench_advbench": ("voicebench/voicebench_advbench.yaml", "test", voicebench, {}),
    "object_recognition": ("ming_object_recognition.yaml", "test", plain_question, {}),
    "infoseek": ("ming_infoseek.yaml", "test", plain_question, {"lmms_eval_specific_kwargs": {"default": PLAIN}}),
}


def task_name(row: Row) -> str:
    """The name of the tiny copy of a row's task in lmms-eval."""
    return f"tiny_{row.task}"


def write_lmms_tasks(folder: Path, rows: list[Row], bases: list[Path], samples: int, seed: int) -> Path:
    """Write tiny copies of the tasks of rows; returns the folder of their files.

    Args:
        bases: folders in which the files of the tasks are looked for.
    """
    for row in {row.task: row for row in rows}.values():
        assert row.tiny is not None
        file, split, sample, changes = LMMS[row.tiny]
        rng = np.random.default_rng((seed, list(LMMS).index(row.tiny)))
        made = [sample(rng, folder) for _ in range(samples)]
        parquet = folder / "parquet" / f"{row.task}.parquet"
        if row.tiny == "infoseek":
            write_owners_infoseek(folder / "infoseek", made)
            write_infoseek(folder / "infoseek", parquet, None)
        else:
            write_parquet(parquet, made)
        base = next(path for path in (base / file for base in bases) if path.is_file())
        write_task(folder / "tasks", task_name(row), base, split, parquet, **changes)
    return folder / "tasks"


def write_owners_infoseek(folder: Path, samples: Samples) -> None:
    """Pictures and questions as InfoSeek's owner lays them out."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for index, sample in enumerate(samples):
        name = f"oven_{index:08d}"
        sample["image"].save(folder / "images" / f"{name}.jpg", quality=95)
        split = ("val_unseen_question", "val_unseen_entity")[index % 2]
        entry: dict[str, Any] = {"data_id": f"infoseek_val_{index:08d}", "image_id": name, "data_split": split}
        entry |= {"question": sample["question"], "answer": [sample["answer"]], "answer_eval": [sample["answer"]]}
        lines.append(json.dumps(entry))
    write_lines(folder / "infoseek_val.jsonl", lines)


# Image generation


def geneval_prompt(tag: str, rng: Rng) -> dict[str, Any]:
    """A prompt of Ming-Tiny's world with what must be in the image, for one of GenEval's tags."""
    single = tag in ("single_object", "colors", "position")
    scene = sample_scene(rng, SPLIT, 1 if single else 2)
    if tag == "counting":
        first, second = scene.shapes
        alike = Shape(first.kind, first.colour, first.size, second.position)
        scene = Scene(scene.background, (first, alike))
    wanted = []
    for shape in scene.shapes[: 1 if tag == "counting" else None]:
        item: dict[str, Any] = {"class": shape.kind, "count": 2 if tag == "counting" else 1}
        item |= {"color": shape.colour} if tag in ("colors", "color_attr") else {}
        wanted.append(item | ({"position": shape.position} if tag == "position" else {}))
    return {"tag": tag, "include": wanted, "prompt": f"Draw {describe_scene(scene)}."}


TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def write_generation(folder: Path, samples: int, seed: int) -> None:
    """GenEval's prompts, and prompts with pictures as of MJHQ-30K."""
    rng = np.random.default_rng((seed, 1))
    prompts = [geneval_prompt(tag, rng) for tag in TAGS for _ in range(max(1, samples // len(TAGS)))]
    write_lines(folder / "geneval" / METADATA, list(map(json.dumps, prompts)))
    entries = {}
    (folder / "fid" / "images").mkdir(parents=True, exist_ok=True)
    for index in range(samples):
        scene = sample_scene(rng, SPLIT, 1)
        picture(scene, rng).save(folder / "fid" / "images" / f"tiny{index:05d}.png")
        entries[f"tiny{index:05d}"] = {"category": "shapes", "prompt": f"Draw {describe_scene(scene)}."}
    write_lines(folder / "fid" / "meta_data.json", [json.dumps(entries)])


def judge_geneval(folder: Path) -> None:
    """Write the verdicts that the authors' detector writes, by the judge of Ming-Tiny's world."""
    lines = []
    for place in sorted(folder.glob("[0-9]*")):
        metadata = json.loads((place / "metadata.jsonl").read_text(encoding="utf-8"))
        for path in sorted((place / "samples").glob("*.png")):
            with Image.open(path) as image:
                shapes = read_picture(image)[0].shapes
            wrong = [item for item in metadata["include"] if _count(shapes, item) != item["count"]]
            seen = ", ".join(map(describe_shape, shapes))
            verdict = {"filename": str(path), "tag": metadata["tag"], "prompt": metadata["prompt"]}
            lines.append(json.dumps({**verdict, "correct": not wrong, "reason": f"shows {seen}" if wrong else ""}))
    write_lines(folder / VERDICTS, lines)


def _count(shapes: tuple[Shape, ...], item: dict[str, Any]) -> int:
    return sum(
        shape.kind == item["class"]
        and item.get("color", shape.colour) == shape.colour
        and item.get("position", shape.position) == shape.position
        for shape in shapes
    )


def raise_if_no_copy(table: Table, rows: list[Row]) -> None:
    """Refuse a choice of rows of which none has a tiny copy.

    Raises:
        ValueError: it is such a choice.
    """
    if not any(row.tiny for row in rows):
        there = ", ".join(row.name for row in table.rows if row.tiny)
        raise ValueError(f"none of the rows has a tiny copy; those of the table {table.name} are {there}")
