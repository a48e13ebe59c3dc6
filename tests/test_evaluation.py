"""The evaluation without lmms-eval: tables, error rates, corpora, folders of images, going on after an interruption.

Tasks of lmms-eval are tested in tests/evaluation/, in an environment that has it.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from evaluation import asr, drawing, lmms, own_data, run, tiny
from evaluation.__main__ import main
from evaluation.lmms_tasks import utils
from evaluation.results import Measured, claim, markdown
from evaluation.run import Settings, TableRun
from evaluation.tables import NAMES, Row, read_table
from ming.evaluation.answering import Answerer
from ming.evaluation.journal import Journal
from ming.loading import LoadOptions
from tests.test_tiny_world import ToneSpeaker

ROOT = Path(__file__).resolve().parents[1]
TABLES = {name: read_table(name) for name in NAMES}


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `python -m evaluation` in this process; returns exit code, output and errors."""

    def start(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evaluation", *arguments])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return start


# Tables


PUBLISHED = {
    ("image", "MathVista"): 71.6,
    ("encyclopedia", "Plants"): 54.96,
    ("video", "VideoMME"): 67.0,
    ("speechqa", "AlpacaEval"): 4.63,
    ("asr", "aishell1"): 1.47,
    ("infoseek", "InfoSeek_H-mean"): 27.7,
    ("ocr", "TextVQA_VAL"): 82.8,
    ("gui", "ScreenSpot-V2"): 84.1,
    ("generation", "GenEval"): 0.64,
    ("generation", "FID"): 4.85,
}


def test_every_table_is_there_and_every_row_has_a_published_value():
    assert {name for name, _ in PUBLISHED} == set(TABLES)
    for (table, name), value in PUBLISHED.items():
        assert next(row for row in TABLES[table].rows if row.name == name).published == value
    assert all(row.published is not None for table in TABLES.values() for row in table.rows)


def test_what_the_rows_name_exists():
    for table in TABLES.values():
        assert len({row.name for row in table.rows}) == len(table.rows)
        assert all(row.task in asr.CORPORA for row in table.of_runner("asr"))
        copies = {row.tiny for row in table.of_runner("lmms") if row.tiny}
        assert copies <= tiny.LMMS.keys()
        assert any(row.tiny for row in table.rows)
        assert all(row.note for row in table.rows if row.runner == "none")
    assert TABLES["video"].video == {"sample": "uniform", "max_frames": 128, "fps": 1000}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"runner": "magic"}, "runner 'magic' is unknown"),
        ({"better": "bigger"}, "better='bigger'"),
        ({"metric": None}, "metric missing"),
    ],
)
def test_a_wrong_row_is_refused(change, words):
    fields = {"name": "a", "published": 1.0, "runner": "asr", "task": "aishell1", "metric": "cer", "data": "b"}
    with pytest.raises(ValueError, match=words):
        Row(**fields | change)


def test_an_unknown_key_of_a_table_is_refused(tmp_path):
    (tmp_path / "own.yaml").write_text("title: a\nsource: b\nprompts: c\nrows: []\n")
    with pytest.raises(ValueError, match="unknown prompts of a table"):
        read_table("own", tmp_path)


def test_published_and_measured_stand_side_by_side():
    table = TABLES["generation"]
    measured = {row.name: Measured(reason="nothing runs it") for row in table.rows}
    measured["GenEval"] = Measured(0.5, 24)
    text = markdown(table, measured, {"model": "m", "data": "folder", "seed": 3})
    assert "| GenEval | 0.64 | 0.5 | 24 |" in text and "seed 3" in text and table.source in text
    assert "| FID (lower is better) | 4.85 | - |" in text and "tiny" not in text


# Speech recognition


@pytest.mark.parametrize(
    ("wanted", "heard", "language", "metric", "expected"),
    [
        # One word more, one word less, of three and four words.
        (["the cat sat", "Dogs bark at night."], ["The cat sat down", "dogs at night"], "en", "wer", 100 * 2 / 7),
        # Fillers, case, punctuation and short forms are no errors.
        (["MISTER SMITH DOES NOT SLEEP"], ["Mr. Smith doesn't sleep, um"], "en", "wer", 0.0),
        # One of eight characters; spaces and punctuation are none, numbers are read.
        (["今天 是2025年。"], ["今天是二零二四年"], "zh", "cer", 12.5),
        (["打开 空调"], ["打开 ， 空调。"], "zh", "cer", 0.0),
        # Errors count over all texts, and a reference without words not at all.
        (["abc", "um"], ["abd", "x"], "en", "cer", 100 / 3),
    ],
)
def test_error_rates(wanted, heard, language, metric, expected):
    assert asr.error_rate(wanted, heard, language, metric) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wanted", "heard", "metric", "words"),
    [
        (["a"], ["a"], "ser", "metric 'ser' is unknown; give one of wer, cer"),
        (["a"], [], "wer", "1 references, but 0 hypotheses"),
        (["um"], ["a"], "wer", "no reference has words"),
    ],
)
def test_error_rates_refuse(wanted, heard, metric, words):
    with pytest.raises(ValueError, match=words):
        asr.error_rate(wanted, heard, "en", metric)


@pytest.mark.parametrize("task", asr.CORPORA)
def test_a_corpus_is_read_as_it_was_written(task, tmp_path):
    tiny.write_corpora(tmp_path, [task], 3, 5, ToneSpeaker())
    speaker, name = ToneSpeaker(), asr.CORPORA[task].folder
    rng = np.random.default_rng((5, list(tiny.WRITERS).index(name)))
    said = [speaker.sentence(rng) for _ in range(3)]
    recordings = asr.read_corpus(task, tmp_path, None)
    wanted = [asr.normalise(utterance.text, "en") for utterance in said]
    assert [asr.normalise(recording.text, "en") for recording in recordings] == wanted
    for recording, utterance in zip(recordings, said, strict=True):
        source = recording.source()
        waveform, rate = source if isinstance(source, tuple) else soundfile.read(source, dtype="float32")
        assert rate >= 16_000
        assert len(waveform) / rate == pytest.approx(len(utterance.waveform) / 16_000, abs=0.08)  # MP3 pads
        assert np.abs(waveform).max() > 0.3
    assert len(asr.read_corpus(task, tmp_path, 2)) == 2


def test_a_corpus_in_another_layout_is_refused(tmp_path):
    assert asr.read_corpus("aishell1", tmp_path, None) == []
    (tmp_path / "aishell1").mkdir()
    with pytest.raises(ValueError, match="is not laid out as aishell1"):
        asr.read_corpus("aishell1", tmp_path, None)
    tiny.write_corpora(tmp_path, ["aishell2_ios"], 2, 0, ToneSpeaker())
    next((tmp_path / "aishell2_ios").glob("wav/*/*.wav")).unlink()
    with pytest.raises(ValueError, match="1 recordings are missing"):
        asr.read_corpus("aishell2_ios", tmp_path, None)


# Going on


class Interrupted(Answerer):
    """Stops the run after so many batches, as Control-C does."""

    def __init__(self, *arguments, batches: int, **options):
        super().__init__(*arguments, **options)
        self.batches = batches

    def answers(self, chats, **decoding):
        if not self.batches:
            raise KeyboardInterrupt
        self.batches -= 1
        return super().answers(chats, **decoding)


def test_a_run_goes_on_where_it_was_interrupted(tmp_path):
    tiny.write_corpora(tmp_path, ["fleurs_en"], 4, 1)
    recordings = asr.read_corpus("fleurs_en", tmp_path, None)
    file, settings = tmp_path / "answers.jsonl", {"seed": 1}

    def measure(batches: int) -> Measured:
        answerer = Interrupted(str(ROOT), LoadOptions(), 1, batches=batches)
        journal = Journal(file, settings)
        return asr.measure(answerer, "fleurs_en", "wer", recordings, journal, batch_size=1, max_new_tokens=64)

    with pytest.raises(KeyboardInterrupt):
        measure(2)
    assert len(Journal(file, settings).records) == 2
    with file.open("a") as broken:
        broken.write('{"key": "10002.wav", "repl')  # killed while writing
    result = measure(2)
    assert result.samples == 4 and result.value < 40
    assert measure(0) == result


def test_other_settings_do_not_go_on(tmp_path):
    Journal(tmp_path / "a.jsonl", {"seed": 1, "model": "a"})
    with pytest.raises(ValueError, match="was made with another model; give another --output"):
        Journal(tmp_path / "a.jsonl", {"seed": 1, "model": "b"})
    claim(tmp_path / "table", {"seed": 1})
    claim(tmp_path / "table", {"seed": 1})
    with pytest.raises(ValueError, match="another seed"):
        claim(tmp_path / "table", {"seed": 2})


def test_a_table_is_printed_written_and_not_measured_twice(command, tmp_path):
    rows = ("librispeech_test_clean", "wenetspeech_net")
    arguments = ("table", "asr", "--model", str(ROOT), "--data", "tiny", "--limit", "3", "--output", str(tmp_path))
    code, said, _ = command(*arguments, "--rows", *rows)
    assert code == 0
    assert "| librispeech_test_clean | 1.44 | " in said and "not run here on the real data" in said
    assert "| cv15_en | 6.89 | - |  | not asked for |" in said
    assert (tmp_path / "asr" / "results.md").read_text() == said.strip() + "\n"
    content = json.loads((tmp_path / "asr" / "results.json").read_text())
    measured = {row["name"]: row["measured"] for row in content["rows"]}
    assert content["settings"]["seed"] == 0 and measured[rows[0]]["samples"] == 3
    assert measured[rows[0]]["value"] < 40 and measured["cv15_en"]["value"] is None
    answers = tmp_path / "asr" / "librispeech_test_clean.jsonl"
    answers.unlink()
    assert command(*arguments, "--rows", *rows)[1] == said and not answers.exists()


# Images


def test_images_lie_as_genevals_authors_want_them_and_are_drawn_once(tmp_path):
    prompts = [tiny.geneval_prompt("colors", np.random.default_rng(3))]
    answerer = Answerer(str(ROOT), LoadOptions(), 0)
    drawing.draw_geneval(answerer, prompts, tmp_path, 4)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["00000/metadata.jsonl", *(f"00000/samples/{number:04d}.png" for number in range(4))]
    assert json.loads((tmp_path / "00000" / "metadata.jsonl").read_text()) == prompts[0]
    assert drawing.geneval_scores(tmp_path) == {}
    (tmp_path / "00000" / "samples" / "0001.png").unlink()
    kept = (tmp_path / "00000" / "samples" / "0000.png").stat().st_mtime_ns
    drawing.draw_geneval(answerer, prompts, tmp_path, 4)
    assert (tmp_path / "00000" / "samples" / "0000.png").stat().st_mtime_ns == kept
    tiny.judge_geneval(tmp_path)
    assert drawing.geneval_scores(tmp_path)["overall"].samples == 4


def test_scores_are_those_of_genevals_summary(tmp_path):
    verdicts = [("colors", True), ("colors", False), ("position", True), ("colors", False)]
    lines = [json.dumps({"tag": tag, "correct": correct}) for tag, correct in verdicts]
    (tmp_path / drawing.VERDICTS).write_text("\n".join(lines))
    scores = drawing.geneval_scores(tmp_path)
    assert scores["colors"] == Measured(1 / 3, 3) and scores["position"] == Measured(1.0, 1)
    assert scores["overall"] == Measured(pytest.approx(2 / 3), 4)  # the mean over tags, not over images


def test_images_without_verdicts_name_the_authors_command(tmp_path):
    tiny.write_generation(tmp_path / "data", 1, 0)
    prompts = tmp_path / "data" / "geneval" / drawing.METADATA
    prompts.write_text(prompts.read_text().splitlines()[0] + "\n")
    settings = Settings(str(ROOT), str(tmp_path / "data"))
    text = TableRun(TABLES["generation"], settings, tmp_path / "out").measure(["GenEval"])
    assert "| GenEval | 0.64 | - |" in text and "python evaluation/evaluate_images.py" in text


# lmms-eval


def test_without_lmms_eval_its_tables_say_how_to_install_it(command, tmp_path, monkeypatch):
    monkeypatch.setattr(lmms, "find_spec", lambda name: None)
    code, _, said = command(
        "table", "gui", "--model", str(ROOT), "--data", "tiny", "--limit", "1", "--output", str(tmp_path)
    )
    assert code == 2 and said.endswith("lmms-eval, which is not installed: pip install '.[evaluation]'\n")


def test_without_jiwer_error_rates_say_how_to_install_it(command, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "find_spec", lambda name: None if name == "jiwer" else importlib.util.find_spec(name))
    code, _, said = command("table", "asr", "--model", str(ROOT), "--data", "tiny", "--output", str(tmp_path))
    assert code == 2 and said.endswith("jiwer, which is not installed: pip install '.[evaluation]'\n")


def test_values_are_found_in_the_results_of_lmms_eval():
    row = Row("a", 50.0, "lmms", "t", ["first", "second"], 100, data="d")
    results = {
        "results": {
            "t": {"alias": "t", "first,none": 0.5, "first_stderr,none": 0.1, "second,flexible-extract": 0.75},
            "t_1": {"first,none": 0.2, "second,none": 0.4},
            "t_2": {"first,none": 0.4, "second,none": 1.0},
            "group": {"alias": "group"},
        },
        "group_subtasks": {"group": ["t_1", "t_2"]},
        "n-samples": {"t": {"original": 9, "effective": 4}, "t_1": {"effective": 2}, "t_2": {"effective": 3}},
    }
    assert lmms.measured(row, "t", results) == Measured(62.5, 4)
    assert lmms.measured(row, "group", results) == Measured(50.0, 5)
    with pytest.raises(ValueError, match="gave nothing, not"):
        lmms.measured(row, "other", results)


@pytest.mark.parametrize(
    ("answer", "wanted", "expected"),
    [
        ("The Eiffel Tower.", ["eiffel tower"], True),
        ("a tower", ["eiffel tower", "Tower"], True),
        ("about 1,050 m", ["1000..1100"], True),
        ("1200", ["1000..1100"], False),
        ("high", ["1000..1100"], False),
        ("-5 degrees", ["-6.5..-4"], True),
    ],
)
def test_answers_of_infoseek(answer, wanted, expected):
    assert utils.is_right(answer, wanted) is expected


def test_infoseeks_score_is_the_harmonic_mean_of_both_splits():
    samples = [("val_unseen_question", "yes"), ("val_unseen_question", "no"), ("val_unseen_entity", "yes")]
    docs = [{"data_split": split, "answer_eval": ["yes"]} for split, _ in samples]
    verdicts = [
        utils.infoseek_process_results(doc, [answer])["h_mean"] for doc, (_, answer) in zip(docs, samples, strict=True)
    ]
    assert utils.infoseek_unseen_question(verdicts) == 0.5 and utils.infoseek_unseen_entity(verdicts) == 1.0
    assert utils.infoseek_h_mean(verdicts) == pytest.approx(2 / 3)
    assert utils.infoseek_h_mean(verdicts[:2]) == 0.0


def test_infoseek_is_read_as_its_owner_lays_it_out(tmp_path):
    from datasets import Dataset

    image = Image.new("RGB", (32, 32), "red")
    samples = [{"image": image, "question": "What is it?", "answer": "red"}] * 2
    tiny.write_owners_infoseek(tmp_path / "infoseek", samples)
    lines = (tmp_path / "infoseek" / "infoseek_val.jsonl").read_text().splitlines()
    entry = json.loads(lines[0]) | {"answer_eval": [{"wikidata": 4.0, "range": [3.5, 4.5]}]}
    (tmp_path / "infoseek" / "infoseek_val.jsonl").write_text("\n".join([json.dumps(entry), lines[1]]))
    own_data.write_infoseek(tmp_path / "infoseek", tmp_path / "out.parquet", None)
    first, second = Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache"))
    assert first["answer_eval"] == ["3.5..4.5"] and second["answer_eval"] == ["red"]
    assert second["data_split"] == "val_unseen_entity" and second["image"].size == (32, 32)
    (tmp_path / "infoseek" / "images" / "oven_00000000.jpg").unlink()
    with pytest.raises(ValueError, match="is not laid out as InfoSeek"):
        own_data.write_infoseek(tmp_path / "infoseek", tmp_path / "out.parquet", None)


# Errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("table", "pictures"), "there is no table 'pictures'; there are image, encyclopedia"),
        (("table", "asr", "--model", "nowhere/at/all"), "--model nowhere/at/all: no such directory"),
        (("table", "asr", "--data", "nowhere"), "--data nowhere: no such directory; give one, or tiny"),
        (("table", "asr", "--rows", "aishell9"), "table asr has no row aishell9; it has aishell1"),
        (("table", "video", "--data", "tiny", "--rows", "MVBench"), "none of the rows has a tiny copy"),
        (("table", "asr", "--limit", "0"), "argument --limit: 0 is not accepted; give a whole number of at least 1"),
        (("table", "asr", "--seed", "-1"), "argument --seed: -1 is not accepted; give a whole number of"),
        (("table", "asr", "--batch-size", "x"), "argument --batch-size: x is not accepted; give a whole number of"),
        (("table", "asr", "--device", "abacus"), "--device abacus"),
    ],
)
def test_wrong_arguments_are_one_line(command, arguments, words, tmp_path):
    given = arguments if "--model" in arguments else (*arguments, "--model", str(ROOT))
    code, _, said = command(*given, "--output", str(tmp_path))
    assert code == 2 and words in said and "Traceback" not in said


def test_rows_without_data_say_what_is_missing(command, tmp_path):
    (tmp_path / "data").mkdir()
    arguments = ("table", "asr", "--model", str(ROOT), "--rows", "aishell1", "--output", str(tmp_path / "out"))
    assert "| aishell1 | 1.47 | - |  | needs --data: openslr.org/33 |" in command(*arguments)[1]
    arguments = (*arguments[:-1], str(tmp_path / "other"), "--data", str(tmp_path / "data"))
    assert f"no aishell1 in {tmp_path / 'data'}; from openslr.org/33" in command(*arguments)[1]
