"""`python -m ming` and the installed `ming`, as a user calls them: files in, files out, exit codes, one-line errors.

Text is Ming-Tiny's; speech and pictures come from small repositories of random weights.
"""

import importlib.util
import io
import json
import logging
import os
import pty
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
import tomllib
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from image_helpers import build_drawing_repository
from PIL import Image
from safetensors.torch import load_file, save_file
from speech_helpers import NUM_CODES, build_speaking_repository
from transformers import AutoModelForMultimodalLM
from transformers.utils import logging as library_logging

from ming.cli import ask, checks
from ming.cli.main import COMMANDS, main
from ming.cli.session import Session
from ming.voices import MAX_SECONDS
from training.tiny.judge import shows
from training.tiny.scenes import Scene, Shape

ROOT = Path(__file__).resolve().parents[1]
PICTURE, RECORDING, CLIP, QUESTION = (
    str(ROOT / "demo" / name) for name in ("picture.jpg", "recording.wav", "clip.mp4", "question.wav")
)
EXPECTED = json.loads((ROOT / "demo" / "expected.json").read_text(encoding="utf-8"))
SECONDS = 120  # that a process may take on a busy machine


@pytest.fixture(scope="module")
def speaking(tmp_path_factory) -> str:
    return str(build_speaking_repository(tmp_path_factory.mktemp("speaking")))


@pytest.fixture(scope="module")
def drawing(tmp_path_factory) -> str:
    return str(build_drawing_repository(tmp_path_factory.mktemp("drawing")))


@pytest.fixture(scope="module")
def reading(tmp_path_factory) -> str:
    """Ming-Tiny's files without weights and without anything that speaks or draws."""
    folder = tmp_path_factory.mktemp("reading")
    for path in (*ROOT.glob("*.json"), *ROOT.glob("*.jinja")):
        shutil.copy(path, folder / path.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"talker_config": None}), encoding="utf-8")
    return str(folder)


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def ming(capsys):
    """Runs a command that succeeds; returns its lines on stdout, and stderr."""

    def run(*arguments: str | Path) -> tuple[list[str], str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out.splitlines(), captured.err

    return run


@pytest.fixture
def refused(capsys):
    """Runs a command with wrong usage or input; returns its one line on stderr.

    One line also means that no weights were loaded before: that would have been remarked.
    """

    def run(*arguments: str | Path) -> str:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 2 and captured.out == ""
        assert captured.err.startswith("ming: error: ") and captured.err.count("\n") == 1
        return captured.err

    return run


# Text


def test_ask_answers_about_files(ming):
    assert ming("ask", "What comes after three?")[0] == ["four"]
    assert ming("ask", "Describe the picture.", "--image", PICTURE)[0] == [EXPECTED["picture"]]
    lines, _ = ming("ask", "In the video, which way does it move?", "--video", CLIP, "--image", PICTURE, "--json")
    assert json.loads(lines[0]) == {
        "question": "In the video, which way does it move?",
        "image": [PICTURE],
        "video": [CLIP],
        "answer": "down",
    }


def test_ask_hears_a_spoken_question(ming):
    assert ming("ask", "--image", PICTURE, "--audio", QUESTION)[0] == [EXPECTED["picture"]]


def test_max_new_tokens_cuts_the_answer(ming):
    (short,), (full,) = (
        ming("ask", "Describe the picture.", "--image", PICTURE, *options)[0]
        for options in (["--max-new-tokens", 3], [])
    )
    assert len(short) < len(full) and full.startswith(short)


@pytest.mark.parametrize("encoder", [[], ["--whisper"]])
def test_transcribe(ming, encoder):
    assert ming("transcribe", RECORDING, *encoder)[0] == [EXPECTED["recording"]]
    lines, _ = ming("transcribe", RECORDING, QUESTION, "--json", *encoder)
    first, second = map(json.loads, lines)
    assert first == {"file": RECORDING, "text": EXPECTED["recording"]} and second["file"] == QUESTION
    assert ming("transcribe", RECORDING, QUESTION, *encoder)[0] == [
        f"{item['file']}: {item['text']}" for item in (first, second)
    ]


def test_only_the_parts_that_are_needed_are_loaded(ming):
    for arguments, parts in (
        (["ask", "What comes after three?"], "text"),
        (["ask", "Describe the picture.", "--image", PICTURE], "text, vision"),
        (["transcribe", RECORDING], "text, audio"),
        (["transcribe", RECORDING, "--whisper"], "text, whisper"),
    ):
        assert f"({parts})" in ming(*arguments)[1]


def test_bars_and_remarks_stay_on_stderr_and_quiet_takes_them_away(ming):
    lines, stderr = ming("transcribe", RECORDING, QUESTION)
    assert len(lines) == 2 and "transcribing: 100%" in stderr and "Loading weights: 100%" in stderr
    assert ming("transcribe", RECORDING, QUESTION, "--quiet") == (lines, "")


def test_quiet_is_for_warnings_too_and_for_this_command_alone(ming, tmp_path):
    """Ours, those of libraries, and those of Python; the process that called main() sees its own again."""
    recording = tmp_path / "cut.wav"
    recording.write_bytes(Path(RECORDING).read_bytes()[:-20000])
    listen = ("transcribe", recording)

    def state():
        logger = logging.getLogger("ming")
        own = (tuple(logger.handlers), logger.propagate, logger.level, logging.root.manager.disable)
        return own, list(warnings.filters), library_logging.is_progress_bar_enabled(), library_logging.get_verbosity()

    before = state()
    loud = ming(*listen)
    assert "it is probably cut off" in loud[1] and "Loading weights" in loud[1] and state() == before
    assert ming(*listen, "--quiet") == (loud[0], "") and state() == before
    assert main(["ask", "What is it?", "--image", str(tmp_path / "none.png"), "--quiet"]) == 2 and state() == before


def test_quiet_silences_torch(monkeypatch, capfd):
    """`--compile` makes torch look for CUDA's compiler, and say that there is no GPU."""

    def noisy(arguments):
        Session.of_arguments(ask.build_parser().parse_args(arguments))
        logging.getLogger("torch.utils.cpp_extension").warning("No CUDA runtime is found")
        warnings.warn("a lossy conversion", stacklevel=1)
        logging.getLogger("torch").error("it broke")

    monkeypatch.setattr(ask, "main", noisy)
    assert main(["ask", "hi", "--model", str(ROOT), "--quiet"]) == 0
    written = capfd.readouterr().err
    assert "it broke" in written and "CUDA" not in written and "lossy" not in written


def test_four_bits_and_other_number_types(ming):
    assert ming("ask", "What comes after three?", "--load-in-4bit", "--quiet")[0] == ["four"]
    assert ming("ask", "What comes after three?", "--dtype", "bfloat16", "--device", "cpu")[0] == ["four"]


# Chat


def chat(ming, monkeypatch, typed: str, *arguments: str) -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    return ming("chat", "--quiet", *arguments)[0]


def test_chat_reads_questions_from_a_file(ming, monkeypatch):
    typed = f"/image {PICTURE}\nDescribe the picture.\n\nWhat colour is the background?\n"
    assert chat(ming, monkeypatch, typed) == [EXPECTED["picture"], "black"]
    lines = chat(ming, monkeypatch, typed + "/quit\nWhat comes after three?\n", "--json")
    assert [json.loads(line) for line in lines] == [
        {"question": "Describe the picture.", "image": [PICTURE], "answer": EXPECTED["picture"]},
        {"question": "What colour is the background?", "answer": "black"},
    ]


def test_chat_with_sound_only_and_after_a_reset(ming, monkeypatch):
    typed = f"/audio {QUESTION}\n/image {PICTURE}\n/reset\n/audio {RECORDING}\nTranscribe this recording.\n"
    assert chat(ming, monkeypatch, typed) == [EXPECTED["recording"]]


def test_chat_draws_and_changes_what_it_drew(ming, monkeypatch, tmp_path):
    """With Ming-Tiny's own image head: the second image is the first one with what was asked for changed."""
    monkeypatch.chdir(tmp_path)
    typed = (
        "/draw Draw a large red circle on the left, on a white background.\n"
        "/draw Make the circle blue.\n"
        "What colour is the circle?\n"
        "/draw Change the background to black.\n"
    )
    model = ["--model", str(ROOT), "--seed", "0"]
    assert chat(ming, monkeypatch, typed, *model) == ["drawing-1.png", "drawing-2.png", "blue", "drawing-3.png"]
    images = [Image.open(tmp_path / f"drawing-{number}.png") for number in (1, 2, 3)]
    for image, colour, background in zip(images, ("red", "blue", "blue"), ("white", "white", "black"), strict=True):
        assert shows(image, Scene(background, (Shape("circle", colour, "large", "left"),)))
    typed = f"/image {PICTURE}\n/draw Make the circle blue.\n"
    (line,) = chat(ming, monkeypatch, typed, *model, "--json")
    assert json.loads(line) == {
        "prompt": "Make the circle blue.",
        "image": [PICTURE],
        "file": "drawing-4.png",  # no file is written over
        "width": 106,  # the proportions of the image that is changed, 220 x 180
        "height": 87,
        "seed": 0,
    }


def test_a_conversation_is_the_same_after_a_reset(ming, monkeypatch, tmp_path):
    """Nothing that was drawn is left."""
    monkeypatch.chdir(tmp_path)
    typed = "/draw Draw a large red circle on the left, on a white background.\n/reset\nWhat comes after three?\n"
    assert chat(ming, monkeypatch, typed, "--model", str(ROOT)) == ["drawing-1.png", "four"]


def test_chat_takes_names_of_files_as_terminals_paste_them_and_any_blank_behind_a_command(ming, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "it's here").mkdir()
    for name in ("my picture.jpg", "it's here/one.jpg"):
        shutil.copy(PICTURE, tmp_path / name)
    escaped, plain, at_home = f"{tmp_path}/my\\ picture.jpg", f"{tmp_path}/it's here/one.jpg", "~/'my picture.jpg'"
    typed = "".join(f"/image\t{name}\n/drop\n" for name in (escaped, plain, at_home, f"{escaped} '{PICTURE}'"))
    typed += f"What comes after three?\n/image {escaped}\nDescribe the picture.\n"
    lines = [json.loads(line) for line in chat(ming, monkeypatch, typed, "--json")]
    assert lines == [
        {"question": "What comes after three?", "answer": "four"},
        {
            "question": "Describe the picture.",
            "image": [str(tmp_path / "my picture.jpg")],
            "answer": EXPECTED["picture"],
        },
    ]


@pytest.mark.parametrize("ending", ["wav", "ogg", "mp3"])
def test_an_empty_answer_is_spoken_without_any_sample(ming, speaking, tmp_path, ending):
    out = tmp_path / f"nothing.{ending}"
    (line,), _ = ming("ask", "hi", "--speak", out, "--seed", 2, "--model", speaking, "--json")
    assert (json.loads(line)["answer"], json.loads(line)["seconds"]) == ("", 0.0)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("/image nowhere.png\n", "/image nowhere.png: no such file"),
        ("/image  \n", "/image names no file"),
        ("/reset now\n", "/reset now: this command takes no words; write /reset alone"),
        (f"/image {CLIP}\n", "cannot read image"),
        (f"/audio {ROOT / 'README.md'}\n", "save it as wav; accepted is"),
        ("/fly\n", "/fly is not understood; use /image"),
        ("/draw \n", "say what to draw"),
    ],
)
def test_a_piped_chat_ends_at_bad_input(capsys, monkeypatch, typed, message):
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert main(["chat", "--quiet"]) == 2
    assert message in capsys.readouterr().err


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, command: list[str], cwd: Path = ROOT):
        self.end, inner = pty.openpty()
        termios.tcsetwinsize(inner, (40, 120))  # a bar fits into its line
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env=environment,
            start_new_session=True,
            # What runs in the background of a shell ignores Ctrl-C, and would hand that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(inner)
        os.set_blocking(self.end, False)
        self.shown = ""

    def wait_for(self, text: str) -> None:
        """Reads on until `text` has been shown; what is before it has then been read."""
        deadline = time.monotonic() + SECONDS
        while text not in self.shown:
            assert time.monotonic() < deadline and self.process.poll() is None, self.shown
            try:
                self.shown += os.read(self.end, 4096).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.05)
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory) -> str:
    """Ming-Tiny with prompts of at most 150 tokens, and without anything that speaks or draws."""
    folder = tmp_path_factory.mktemp("forgetful")
    for path in (*ROOT.glob("*.json"), *ROOT.glob("*.jinja"), ROOT / "model.safetensors"):
        (folder / path.name).symlink_to(path)
    config = json.loads((ROOT / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 150}), encoding="utf-8")
    return str(folder)


def test_chat_on_a_terminal(forgetful, tmp_path):
    """What fails or is interrupted takes neither the conversation nor the files that were attached to it."""
    picture, notes = tmp_path / "my picture.jpg", tmp_path / "notes.txt"
    shutil.copy(PICTURE, picture)
    notes.write_text("three", encoding="utf-8")
    terminal = Terminal([sys.executable, "-m", "ming", "chat", "--quiet", "--model", forgetful])

    def answered(line: str, *shown: str) -> None:
        terminal.wait_for("> ")
        terminal.type(line + "\n")
        for text in shown:
            terminal.wait_for(text)

    def press_ctrl_c() -> None:
        terminal.wait_for("> ")
        os.kill(terminal.process.pid, signal.SIGINT)

    try:
        answered("/image nowhere.png", "/image nowhere.png: no such file")
        answered(f"/image {tmp_path}", "it is a directory; give a file in it")
        answered(f"/image {CLIP}", "cannot read image")
        answered(f"/image '{picture}'")  # as a terminal pastes a dragged file
        answered(f"/audio {notes}", "cannot read audio", "attached: my picture.jpg (/drop takes files away)")
        answered("/fly", "/fly is not understood")
        answered("/quit now", "write /quit alone")
        answered("three " * 160, "longer than the limit of 150; shorten it, or send fewer media", "my picture.jpg")
        answered("Describe the picture.", "Describe the picture.", EXPECTED["picture"][:40])
        press_ctrl_c()
        terminal.wait_for("Ctrl-C once more, Ctrl-D or /quit ends the conversation")
        answered("What colour is the background?", "background?", "black")
        press_ctrl_c()
        terminal.wait_for("Ctrl-C once more")
        press_ctrl_c()
        assert terminal.process.wait(timeout=SECONDS) == 130
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.end)


def test_a_drawing_that_is_interrupted_leaves_conversation_and_file(tmp_path):
    terminal = Terminal([sys.executable, "-m", "ming", "chat", "--model", str(ROOT)], cwd=tmp_path)
    try:
        terminal.wait_for("> ")
        terminal.type(f"/image {PICTURE}\n")
        terminal.wait_for("> ")
        terminal.type("/draw Make the circle blue.\n")
        terminal.wait_for("drawing: ")
        os.kill(terminal.process.pid, signal.SIGINT)
        terminal.wait_for("interrupted; the conversation is as it was before")
        terminal.wait_for("attached: picture.jpg")
        terminal.wait_for("> ")
        terminal.type("Describe the picture.\n")
        terminal.wait_for("picture.")
        terminal.wait_for(EXPECTED["picture"][:40])
        terminal.wait_for("> ")
        terminal.type("/quit\n")
        assert terminal.process.wait(timeout=SECONDS) == 0 and not list(tmp_path.iterdir())
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.end)


# Speech


def test_speak_writes_what_the_model_says_with_that_seed_and_voice(ming, speaking, tmp_path):
    out = tmp_path / "red.wav"
    lines, stderr = ming("speak", "red", "--out", out, "--voice", "bert", "--seed", 4, "--model", speaking, "--json")
    samples, rate = soundfile.read(out, dtype="float32")
    model = AutoModelForMultimodalLM.from_pretrained(speaking, trust_remote_code=True, dtype=torch.float32).eval()
    expected = model.speak("red", speaker="bert", seed=4)
    torch.testing.assert_close(torch.from_numpy(samples), expected.waveforms[0], rtol=0, atol=1e-3)
    assert json.loads(lines[0]) == {
        "text": "red",
        "voice": "bert",
        "speech": str(out),
        "seconds": round(len(samples) / rate, 3),
        "sampling_rate": rate,
        "seed": 4,
    }
    assert "speaking: " in stderr


def test_a_random_seed_is_told_so_that_it_can_be_repeated(ming, speaking, tmp_path):
    first, second = tmp_path / "first.flac", tmp_path / "second.flac"
    (line,), _ = ming("speak", "red", "--out", first, "--model", speaking, "--json", "--quiet")
    assert ming("speak", "red", "--out", second, "--model", speaking, "--seed", json.loads(line)["seed"])[0] == [
        str(second)
    ]
    assert first.read_bytes() == second.read_bytes()


def test_ask_answers_aloud_too(ming, speaking, tmp_path):
    out = tmp_path / "four.wav"
    lines, _ = ming("ask", "What comes after three?", "--speak", out, "--seed", 2, "--model", speaking, "--json")
    told = json.loads(lines[0])
    samples, rate = soundfile.read(out)
    assert told["answer"] == "four" and told["speech"] == str(out)
    assert told["seconds"] == round(len(samples) / rate, 3) > 0


@pytest.fixture(scope="module")
def cloning(speaking, tmp_path_factory) -> str:
    """The speaking repository with Ming-Tiny's listening networks; their codes brought into the small range."""
    folder = tmp_path_factory.mktemp("cloning") / "model"
    shutil.copytree(speaking, folder)
    shutil.copy(ROOT / "talker" / "campplus.onnx", folder / "talker")
    network = onnx.load(ROOT / "talker" / "speech_tokenizer_v1.onnx")
    (output,) = network.graph.output
    kind = output.type.tensor_type.elem_type
    network.graph.initializer.append(onnx.helper.make_tensor("number_of_codes", kind, [1], [NUM_CODES]))
    network.graph.node.append(onnx.helper.make_node("Mod", [output.name, "number_of_codes"], ["small_codes"]))
    output.name = "small_codes"
    onnx.save(network, folder / "talker" / "speech_tokenizer_v1.onnx")
    return str(folder)


def test_speak_in_the_voice_of_a_recording(ming, cloning, tmp_path):
    spoken = {}
    for name, recording in (("recording", RECORDING), ("question", QUESTION)):
        out = tmp_path / f"{name}.wav"
        clone = ["--prompt-audio", recording, "--prompt-text", EXPECTED[name]]
        (line,), _ = ming("speak", "red", "--out", out, *clone, "--model", cloning, "--seed", 2, "--json")
        assert json.loads(line)["voice"] == "prompt"
        spoken[name] = soundfile.read(out)[0]
    assert all(len(samples) for samples in spoken.values())
    assert not np.array_equal(spoken["recording"], spoken["question"])


def test_a_recording_that_the_talker_cannot_follow_is_refused_before_loading(refused, tmp_path):
    """Ming-Tiny's talker follows 6 s."""
    samples, rate = soundfile.read(RECORDING)
    soundfile.write(tmp_path / "long.wav", np.resize(samples, 7 * rate), rate)
    clone = ["--prompt-audio", tmp_path / "long.wav", "--prompt-text", EXPECTED["recording"]]
    for command in (["speak", "red", "--out"], ["ask", "hi", "--speak"]):
        said = refused(*command, tmp_path / "x.wav", *clone, "--model", ROOT)
        assert "lasts 7.0 s; the talker of this checkpoint takes at most 6 s" in said


def test_a_repository_without_detokenizer_is_refused_before_loading(refused, speaking, tmp_path):
    silent = shutil.copytree(speaking, tmp_path / "silent", ignore=shutil.ignore_patterns("audio_detokenizer"))
    assert "silent has no audio_detokenizer/ folder" in refused("speak", "red", "--out", "x.wav", "--model", silent)


def test_a_repository_that_cannot_listen_does_not_clone(refused, speaking, tmp_path):
    clone = ["--prompt-audio", RECORDING, "--prompt-text", EXPECTED["recording"]]
    assert "campplus.onnx" in refused("speak", "red", "--out", tmp_path / "x.wav", *clone, "--model", speaking)


def test_speech_is_refused_before_loading(refused, speaking, reading, tmp_path):
    out = ["--out", tmp_path / "x.wav"]
    assert "unknown speaker 'carl'; available are: anna, bert" in refused(
        "speak", "red", *out, "--voice", "carl", "--model", speaking
    )
    assert "has no talker" in refused("speak", "red", *out, "--model", reading)
    assert "there is nothing to say in '🙂'" in refused("speak", "🙂", *out, "--model", speaking)
    assert "belong together" in refused("speak", "red", *out, "--prompt-audio", RECORDING)
    assert "two voices" in refused(
        "speak", "red", *out, "--voice", "anna", "--prompt-audio", RECORDING, "--prompt-text", "red"
    )
    assert "--voice chooses a voice for --speak FILE" in refused("ask", "hello", "--voice", "anna")


# Pictures


def test_draw_repeats_with_its_seed_and_has_the_size_asked_for(ming, drawing, tmp_path):
    first, second = tmp_path / "first.png", tmp_path / "second.webp"
    options = ["--seed", 3, "--steps", 2, "--size", "100x64", "--guidance", 2, "--model", drawing]
    lines, stderr = ming("draw", "a red circle", "--out", first, *options)
    assert lines == [str(first)] and "drawing: 100%" in stderr and "2/2" in stderr
    (line,), _ = ming("draw", "a red circle", "--out", first, *options, "--json")
    made = {"file": str(first), "width": 100, "height": 64, "seed": 3}
    assert json.loads(line) == {"prompt": "a red circle", **made}
    pictures = [Image.open(first).copy()]
    for path, seed in ((first, 3), (second, 4)):
        ming("draw", "a red circle", "--out", path, *options, "--seed", seed)
        pictures.append(Image.open(path).convert("RGB"))
    assert {picture.size for picture in pictures} == {(100, 64)}
    assert pictures[0] == pictures[1] != pictures[2]


def test_edit_looks_at_the_picture(ming, drawing, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (200, 200), "white").save(other)
    results = []
    for number, picture in enumerate((PICTURE, other)):
        out = tmp_path / f"{number}.png"
        lines, _ = ming("edit", picture, "Make it blue.", "--out", out, "--seed", 3, "--model", drawing, "--json")
        told = json.loads(lines[0])
        assert (told["image"], told["file"]) == (str(picture), str(out))
        results.append(Image.open(out).copy())
    assert results[0] != results[1]


def test_a_chat_with_a_model_that_does_not_draw_says_so(capsys, monkeypatch, speaking, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(speaking, model, ignore=shutil.ignore_patterns("image_gen"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("/draw a circle\n"))
    assert main(["chat", "--quiet", "--model", str(model)]) == 2
    assert "there is no image head in its folder image_gen/" in capsys.readouterr().err


def test_a_model_that_does_not_draw_is_refused_before_loading(refused, reading, tmp_path):
    refusal = refused("draw", "a circle", "--out", tmp_path / "x.png", "--model", reading)
    assert "there is no image head in its folder image_gen/" in refusal


def test_words_that_leave_no_room_for_an_image_are_refused_before_loading(refused, tmp_path):
    said = refused("draw", "three " * 4080, "--out", tmp_path / "x.png", "--model", ROOT)
    assert "the prompt with its query tokens has " in said and "context is 4096" in said


# Help, and what is refused


def test_help_lists_every_command_with_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    for name, command in COMMANDS.items():
        assert f"  {name:12}{command.summary}\n" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_own_help_and_refuses_unknown_options(capsys, refused, command):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith(f"usage: ming {command} ")
    assert f"see ming {command} --help" in refused(command, "--no-such-option")


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("serve", "uvicorn", "serving"),
        ("page", "gradio", "page"),
        ("cluster", "ray", "cluster"),
        ("finetune", "peft", "finetuning"),
    ],
)
def test_a_missing_optional_package_is_one_line_with_the_remedy(refused, monkeypatch, command, module, extra):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    message = refused(command, "--help")
    assert f"ming {command} needs {module}; " in message
    assert f'pip install "ming-lite-omni[{extra}]"' in message


COMMON_OPTIONS = re.findall(
    r"`(--[\w-]+)`",
    (ROOT / "docs" / "inference.md").read_text("utf-8").partition("share these options")[2].partition("Answers go")[0],
)


@pytest.mark.parametrize("command", ["chat", "ask", "speak", "draw", "edit", "transcribe"])
def test_help_names_every_command_and_its_common_options(capsys, command):
    """Those of docs/inference.md."""
    assert len(COMMON_OPTIONS) == 8
    for arguments, expected in (([], [command]), ([command], COMMON_OPTIONS)):
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--help"])
        shown = capsys.readouterr().out
        assert end.value.code == 0 and all(word in shown for word in expected)


@pytest.mark.parametrize("command", ["speak", "ask"])
def test_help_names_the_longest_recording_of_a_voice(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    seconds = json.loads((ROOT / "config.json").read_text("utf-8"))["talker_config"]["max_prompt_seconds"]
    assert f"{seconds:g} s of Ming-Tiny" in shown and f"{MAX_SECONDS:g} s of the release" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        ([], "COMMAND"),
        (["ask"], "there is no question"),
        (["ask", "hi", "--image", "nowhere.png"], "--image nowhere.png: no such file"),
        (
            ["ask", "hi", "--image", "S3://bucket/a.png"],
            "--image S3://bucket/a.png: s3:// is not read",
        ),
        (["ask", "hi", "--audio", str(ROOT / "README.md")], "cannot read audio"),
        (["ask", "word " * 9000], "longer than the limit of 4096"),
        (["transcribe", RECORDING, "nowhere.wav"], "recording nowhere.wav: no such file"),
        (["transcribe", RECORDING, PICTURE], "cannot read audio"),
        (["ask", "hi", "--model", "nowhere"], "--model nowhere: no such directory"),
        (["ask", "hi", "--model", str(ROOT / "demo")], "holds no config.json of model_type 'bailingmm'"),
        (["ask", "hi", "--model", "nobody/nothing"], "--model nobody/nothing: "),
        (["ask", "hi", "--device", "abacus"], "--device abacus: unknown; use cpu"),
        (["ask", "hi", "--device", "cuda:99"], "--device cuda:99: there is none here"),
        (["ask", "hi", "--device", "cpu:1"], "--device cpu:1: there is none here"),
        (["ask", "hi", "--device", "meta"], "--device meta: PyTorch cannot compute on it here"),
        (["ask", "hi", "--dtype", "int3"], "invalid choice: 'int3'"),
        (["ask", "hi", "--max-new-tokens", "0"], "give a whole number of at least 1"),
        (["ask", "hi", "--max-new-tokens", "1" * 20], "give a whole number of at most 1000000000000000"),
        (["ask", "hi", "--image", str(ROOT)], "it is a directory"),
        (["ask", "hi", "--seed", "-1"], "give a whole number of 0"),
        (["ask", "hi", "--speak", "x.txt"], "--speak x.txt: .txt is not an audio format; use .wav"),
        (["speak", "hi", "--out", "nowhere/x.wav"], "the directory nowhere does not exist"),
        (["draw", "a circle", "--out", "x.wav"], ".wav is not an image format; use .png"),
        (["draw", "a circle", "--out", "x"], "no ending is not an image format"),
        (["draw", "a circle"], "--out"),
        (["draw", " ", "--out", "x.png"], "the prompt is empty"),
        (["draw", "a circle", "--out", "x.png", "--size", "63x64"], "63x64 is not a size; give WIDTHxHEIGHT"),
        (["draw", "a circle", "--out", "x.png", "--size", "big"], "big is not a size"),
        (["draw", "a circle", "--out", "x.png", "--steps", "0"], "0 is not accepted"),
        (["draw", "a circle", "--out", "x.png", "--steps", "100000"], "--steps: 100000 is not accepted; give a whole"),
        (["draw", "a circle", "--out", "x.png", "--guidance", "nan"], "nan is not accepted"),
        (["draw", "a circle", "--out", "x.png", "--guidance", "1e300"], "--guidance: 1e300 is not accepted"),
        (["draw", "a circle", "--out", "x.png", "--max-new-tokens", "5"], "unrecognized arguments: --max-new-tokens"),
        (["speak", "hi", "--out", "x.wav", "--max-new-tokens", "5"], "unrecognized arguments: --max-new-tokens"),
        (["cluster", "--model", ".", "--cpus", "nan"], "--cpus: nan is not accepted; give a number of at least 0"),
        (["memory", "nowhere"], "repository nowhere: no such directory"),
        (["memory", "."], "repository .: the directory holds no config.json"),
        (["memory", "released", "--seconds", "inf"], "--seconds: inf is not accepted; give a number of 0 to 100000"),
        (["memory", "released", "--seconds", "-1"], "--seconds: -1 is not accepted"),
        (["memory", "released", "--seconds", "nan"], "--seconds: nan is not accepted"),
        (["memory", "released", "--image-size", "10x10"], "--image-size: 10x10 is not a size; give WIDTHxHEIGHT"),
        (["memory", "released", "--images", "-1"], "--images: -1 is not accepted; give a whole number of 0 to"),
        (["memory", "released", "--batch", "1e22"], "--batch: 1e22 is not accepted"),
        (["memory", "released", "--batch", "1" * 23], "give a whole number of 1 to 1000000"),
        (["memory", "released", "--parts", "smell"], "--parts: there is no part 'smell'; give text, vision"),
        (["edit", "nowhere.png", "Make it blue.", "--out", "x.png"], "image nowhere.png: no such file"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_before_any_loading(refused, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["serve", "page", "cluster"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nowhere"], "--model nowhere: no such directory"),
        (["--model", "owner/name/more"], "--model owner/name/more: no such directory"),
        (["--model", str(ROOT / "demo")], "holds no config.json of model_type 'bailingmm'"),
        (["--device", "meta"], "--device meta: PyTorch cannot compute on it here"),
        (["--port", "99999"], "--port: 99999 is not accepted; give a whole number of"),
        (["--port", "-1"], "--port: -1 is not accepted"),
        (["--host", "nohost.invalid"], "--host nohost.invalid: no such host"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 --port 0: cannot listen there"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_serves_is_refused_before_any_loading(refused, free_port, command, options, message):
    """A port that is free, so that nothing else is wrong."""
    message = message.replace("--port 0", f"--port {free_port}")
    assert message in refused(command, "--model", ROOT, "--port", free_port, *options)


@pytest.mark.parametrize("command", ["serve", "page", "cluster"])
def test_a_port_that_is_in_use_is_refused_before_any_loading(refused, command):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refused(command, "--model", ROOT, "--port", port)
    assert f"--port {port}: cannot listen there (Address already in use); give another" in said


def test_finetuning_a_model_that_is_nowhere_is_refused(refused, tmp_path):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    data = tmp_path / "chats.jsonl"
    data.write_text(json.dumps({"messages": chat}) + "\n", encoding="utf-8")
    for target in ([], ["--full"]):
        said = refused("finetune", *target, "--model", "nowhere", "--data", data, "--output", tmp_path / "out")
        assert "--model nowhere: no such directory" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "nowhere.jpg"], "--image nowhere.jpg: no such file"),
        (["--image", str(ROOT / "README.md")], "cannot read image"),
        (["--audio", str(ROOT / "README.md")], "cannot read audio"),
        (["--model", "nowhere"], "--model nowhere: no such directory"),
        (["--output", str(ROOT / "README.md")], "--output: "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_demo_refuses_before_any_loading(monkeypatch, capsys, options, message):
    monkeypatch.setattr(sys, "argv", ["demo", *options])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("demo", run_name="__main__")
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("demo: error: ") and said.count("\n") == 1 and message in said


def test_an_output_that_is_a_directory_is_refused(refused, tmp_path):
    (tmp_path / "x.png").mkdir()
    assert "it is a directory" in refused("draw", "a circle", "--out", tmp_path / "x.png")


def test_without_a_model_nearby_one_must_be_named(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "__file__", str(tmp_path / "site" / "ming" / "checks.py"))
    assert "give --model DIRECTORY_OR_HUB_ID" in refused("ask", "hi")


def test_what_the_user_cannot_put_right_is_raised(monkeypatch):
    """Python ends with exit code 1, and shows where."""

    def fail():
        raise RuntimeError("the driver is broken")

    monkeypatch.setattr(torch.cuda, "is_available", fail)
    with pytest.raises(RuntimeError, match="the driver is broken"):
        main(["ask", "hi"])


def test_a_checkpoint_with_missing_weights_is_refused(capsys, reading, tmp_path):
    shutil.copytree(reading, tmp_path / "model")
    tensors = load_file(ROOT / "model.safetensors")
    tensors = {name: value for name, value in tensors.items() if not name.startswith(("talker.", "model.lm_head."))}
    save_file(tensors, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    assert main(["ask", "hi", "--model", str(tmp_path / "model"), "--quiet"]) == 2
    assert re.fullmatch(r"ming: error: --model .*missing keys: model.lm_head.weight.*\n", capsys.readouterr().err)


def test_the_installed_command_takes_the_model_of_its_working_directory(tmp_path):
    """`pip install`, then `ming` in a directory of weights without any code."""
    source, target, weights = tmp_path / "source", tmp_path / "site", tmp_path / "weights"
    source.mkdir()
    weights.mkdir()
    names = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE")
    for path in (*ROOT.glob("*.py"), *(ROOT / name for name in names)):
        shutil.copy(path, source / path.name)
    packages = tomllib.loads((source / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    for package in {name.partition(".")[0] for name in packages}:
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
        )
    for path in (*ROOT.glob("*.json"), *ROOT.glob("*.jinja"), ROOT / "model.safetensors"):
        (weights / path.name).symlink_to(path)
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", *install, str(source)], check=True, timeout=SECONDS)
    shutil.rmtree(source)
    environment = os.environ | {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    command = [target / "bin" / "ming", "ask", "Describe the picture.", "--image", PICTURE, "--quiet"]
    result = subprocess.run(command, cwd=weights, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert (result.returncode, result.stdout.strip()) == (0, EXPECTED["picture"]), result.stderr
