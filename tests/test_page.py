"""The demo page: how messages and events are turned into each other, and the whole page in a real browser.

One model of random parts reads, speaks and draws; what reads is Ming-Tiny, so that its answers are known.
"""

import importlib
import io
import json
import os
import shutil
import threading
import time
from contextlib import chdir
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
import soundfile
import torch
from image_helpers import small_image_gen
from PIL import Image
from speech_helpers import SPEAKERS, build_speaking_repository
from test_media_files import write_audio, write_video

from ming.events import AudioChunk, Done, ImageDone, ImageProgress, SpokenPiece, TextDelta
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor

INSTALL = "the page is not tested: install what it needs (pip install -r requirements-dev.txt)"
gr = pytest.importorskip("gradio", reason=INSTALL)
playwright = pytest.importorskip("playwright.sync_api", reason=INSTALL)
app = importlib.import_module("ming.serving.page")  # needs both, so not above
command = importlib.import_module("ming.cli.page")

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
EXPECTED = json.loads((DEMO / "expected.json").read_text())
PATIENCE = 60_000  # milliseconds; only reached by failing tests
RATE = 24_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_OPTIONS = ["--no-sandbox", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    tmp_path_factory.getbasetemp()  # chosen now, it does not lie in the folder that is removed behind these tests
    with app.private_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> BailingMMNativeForConditionalGeneration:
    repository = build_speaking_repository(tmp_path_factory.mktemp("omni"))
    small_image_gen().save_pretrained(repository / "image_gen")
    return BailingMMNativeForConditionalGeneration.from_pretrained(repository, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def answerer(model, folder):
    streams = shutil.which("ffmpeg") is not None
    return app.Answerer(model, BailingMMProcessor.from_pretrained(ROOT), folder, max_new_tokens=64, streams=streams)


@pytest.fixture(scope="module")
def address(answerer) -> str:
    page = app.build_page(answerer)
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **app.LAUNCH)
    yield address
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    """A browser of this machine, without a window."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("there is no Chromium; install one to test the page in it (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        playwright.expect.set_options(timeout=PATIENCE)
        browser = driver.chromium.launch(executable_path=path, args=BROWSER_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """A tab with the page, fresh for every test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(address)
    page.locator("textarea").wait_for()
    yield page
    context.close()


def uploaded(folder: Path, name: str) -> str:
    """A file of the demo as Gradio stores what was uploaded."""
    path = folder / "gradio" / "of-this-test" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(shutil.copy(DEMO / name, path))


def turn(role: str, *content: str | dict, title: str | None = None) -> dict:
    """A message of the history as Gradio hands it over."""
    items = [{"type": "text", "text": item} if isinstance(item, str) else item for item in content]
    return {"role": role, "content": items, "metadata": {"title": title} if title else None}


def file(path: str) -> dict:
    return {"type": "file", "file": {"path": path}, "alt_text": None}


def say(page, text: str, *names: str) -> None:
    """Write a message, attach files, send it."""
    box = page.locator("textarea")
    playwright.expect(box).to_be_enabled(timeout=PATIENCE)
    if names:
        with page.expect_response(lambda response: "/upload?" in response.url):
            page.locator("input[type=file]").first.set_input_files([DEMO / name for name in names])
        playwright.expect(page.get_by_label("Remove file")).to_have_count(len(names))
    box.fill(text)
    page.get_by_label("Submit").click()


def answers(page):
    return page.get_by_test_id("bot")


# Without a browser


def test_pictures_stand_before_the_question_and_recordings_behind_it(folder):
    files = [uploaded(folder, name) for name in ("recording.wav", "picture.jpg", "clip.mp4")]
    content = app.content_of({"text": "What is this?", "files": files})
    assert [item["type"] for item in content] == ["image", "video", "text", "audio"]
    assert content[0]["image"] == str(Path(files[1]).resolve())


def test_only_uploaded_files_are_read(folder):
    for path in (str(DEMO / "picture.jpg"), uploaded(folder, "picture.jpg") + "/../../../../picture.jpg"):
        with pytest.raises(ValueError, match="picture.jpg was not uploaded to this page"):
            app.content_of({"text": "Describe the picture.", "files": [{"path": path}]})


def test_files_that_are_no_media_and_empty_messages_are_refused(folder):
    with pytest.raises(ValueError, match="expected.json is not an image, recording or video; attach .jpg"):
        app.content_of({"text": "?", "files": [uploaded(folder, "expected.json")]})
    with pytest.raises(ValueError, match="the message is empty"):
        app.content_of({"text": " ", "files": []})


SOUNDS = {"opus": ("ogg", "libopus", 48_000), "aac": ("adts", "aac"), "aiff": ("aiff", "pcm_s16be")}
INPUTS = {"image": "pixel_values", "audio": "audio_feats", "video": "pixel_values_videos"}


@pytest.mark.parametrize(
    ("ending", "kind"),
    [("tif", "image"), ("avif", "image"), ("avi", "video"), ("3gp", "video"), *((name, "audio") for name in SOUNDS)],
)
def test_files_of_other_cameras_and_recorders_are_read(folder, answerer, ending, kind):
    """Messengers send .opus, cameras .avi, scanners .tif: what the library reads can be attached."""
    path = Path(uploaded(folder, "picture.jpg")).with_name(f"a.{ending}")
    if kind == "image":
        Image.new("RGB", (64, 64)).save(path)
    else:
        path.write_bytes(write_audio(*SOUNDS[ending]) if kind == "audio" else write_video(ending, "mpeg4"))
    content = app.content_of({"text": "What is this?", "files": [str(path)]})
    assert {"type": kind, kind: str(path.resolve())} in content and path.suffix in app.ALL_ENDINGS
    chat = [{"role": "user", "content": content}]
    assert INPUTS[kind] in answerer.processor.apply_chat_template(chat, tokenize=True, return_dict=True)


def test_the_history_keeps_turns_that_were_answered(folder):
    """In words or with an image; of drawn images the last one, since it takes the place of the others."""
    picture, first = uploaded(folder, "picture.jpg"), uploaded(folder, "drawings.png")
    second = shutil.copy(first, Path(first).with_name("blue.png"))
    history = [
        turn("user", file(picture), "Describe the picture."),
        turn("assistant", "a star", file("spoken.wav")),
        turn("user", file("broken.jpg"), "And this?"),
        turn("assistant", "cannot read image 'broken.jpg'", title="Not answered"),
        turn("user", "stopped before the first word"),
        turn("user", "Draw a circle."),
        turn("assistant", file(first)),
        turn("user", "Make it blue."),
        turn("assistant", file(str(second))),
    ]
    question, answer, *drawn = app.messages_of(history)
    assert question["content"] == app.content_of({"text": "Describe the picture.", "files": [picture]})
    assert answer == {"role": "assistant", "content": "a star"}
    words = [item["text"] for message in drawn[::2] for item in message["content"]]
    assert words == ["Draw a circle.", "Make it blue."]
    images = [[item["image"] for item in message["content"] if item["type"] == "image"] for message in drawn[1::2]]
    assert images == [[], [str(Path(second).resolve())]]


def test_a_file_of_the_machine_is_no_drawn_image(folder):
    history = [turn("user", "Draw."), turn("assistant", file(str(DEMO / "picture.jpg")))]
    with pytest.raises(ValueError, match="picture.jpg was not uploaded to this page"):
        app.messages_of(history)


def test_a_file_that_is_gone_is_named_and_the_chat_goes_on(answerer, folder):
    """Uploads are deleted after a day; so are images that were drawn."""
    picture, sound, drawn = (uploaded(folder, name) for name in ("picture.jpg", "recording.wav", "drawings.png"))
    history = [
        turn("user", file(picture), file(sound), "Describe the picture."),
        turn("assistant", "a star"),
        turn("user", file(picture)),
        turn("assistant", "a star"),
        turn("user", "Draw a circle."),
        turn("assistant", file(drawn)),
    ]
    for path in (picture, drawn):
        Path(path).unlink()
    with pytest.warns(UserWarning, match="picture.jpg is no longer there; the conversation goes on without it"):
        messages = app.messages_of(history)
    words = [item["text"] for message in messages[::2] for item in message["content"] if item["type"] == "text"]
    gone = "[picture.jpg is no longer there]"
    assert words == [f"Describe the picture.\n{gone}", gone, "Draw a circle."]
    assert [item["type"] for item in messages[0]["content"]] == ["text", "audio"]
    assert messages[-1]["content"][0] == {"type": "text", "text": "[the image that was drawn is no longer there]"}
    message = {"text": "What comes after three?", "files": []}
    with pytest.warns(UserWarning, match="no longer there"):
        *_, ((reply,), _) = answerer.answer(message, history, "text", None, None)
    assert reply.get("metadata") is None and reply["content"]


@pytest.mark.parametrize("name", ["broken.png", f"{'long' * 20}.png"])
def test_errors_hold_no_path_of_the_server(answerer, folder, name):
    """Of a new message and of the messages before it."""
    path = folder / "gradio" / ("5" * 64) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no picture")
    asked = {"text": "What is this?", "files": []}
    history = [turn("user", file(str(path)), "And this?"), turn("assistant", "a star")]
    for message, before in (({**asked, "files": [str(path)]}, []), (asked, history)):
        (reply,), _ = next(answerer.answer(message, before, "text", None, None))
        assert f"cannot read image &#x27;{name[:10]}" in reply["content"]
        assert not any(part in reply["content"] for part in (str(folder), str(folder.resolve()), "5" * 64))


def test_an_empty_answer_is_said_to_be_empty(answerer, folder, monkeypatch):
    """The model is not told these words, but that it was asked, and about which image."""
    monkeypatch.setattr(answerer.model, "stream", lambda **options: iter_of([TextDelta(" "), Done(" ")]))
    picture = uploaded(folder, "picture.jpg")
    *_, ((reply,), _) = answerer.answer({"text": "hi", "files": [picture]}, [], "text", None, None)
    assert reply == {"content": "The model answered with nothing.", "metadata": {"title": "Empty answer"}}
    history = [turn("user", file(picture), "hi"), turn("assistant", reply["content"], title="Empty answer")]
    question, answer = app.messages_of(history)
    assert [item["type"] for item in question["content"]] == ["image", "text"] and answer["content"] == ""


def test_a_browsers_recording_is_heard(folder):
    """It ends in .webm or .mp4, like a video, but has no video track."""
    for name, codec in (("voice.webm", "libopus"), ("voice.mp4", "aac")):
        path = folder / "gradio" / "of-this-test" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=48000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), dtype="float32"), "fltp", "mono")
            frame.sample_rate = 48000
            resampler = av.AudioResampler(stream.format, stream.layout, 48000, frame_size=stream.frame_size)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
        (item,) = app.content_of({"text": "", "files": [str(path)]})
        assert item == {"type": "audio", "audio": str(path.resolve())}
    (item,) = app.content_of({"text": "", "files": [uploaded(folder, "clip.mp4")]})
    assert item["type"] == "video"


def test_text_and_sound_of_a_reply(folder):
    sound = torch.linspace(-0.5, 0.5, 240)
    spoken = [SpokenPiece("one two", 0.02, "stop")]
    events = [TextDelta("one"), AudioChunk(sound, RATE), TextDelta(" two"), AudioChunk(sound, RATE)]
    events.append(Done("one two", spoken))
    shown = list(app.updates(iter_of(events), folder, streams=True))
    assert [reply["content"] for reply, _ in shown[:-1]] == ["one", "one", "one two", "one two"]
    assert [isinstance(chunk, bytes) for _, chunk in shown] == [False, True, False, True, False]
    text, recording = shown[-1][0]["content"]
    waveform, rate = soundfile.read(recording["path"])
    assert (text, rate, len(waveform)) == ("one two", RATE, 480)
    *before, (_, whole) = app.updates(iter_of(events), folder, streams=False)
    assert all(chunk == gr.skip() for _, chunk in before)
    assert soundfile.info(whole).frames == 480


def iter_of(events):
    yield from events


def test_a_piece_that_was_cut_off_is_reported(folder):
    events = [TextDelta("one"), Done("one", [SpokenPiece("one", 9.0, "length")])]
    with pytest.warns(UserWarning, match="'one' was cut off; another seed may do better".replace("'", "&#x27;")):
        list(app.updates(iter_of(events), folder, streams=True))


def test_progress_and_pictures_of_a_drawing(folder):
    image = Image.new("RGB", (8, 8), "red")
    events = [ImageProgress(0, 2, torch.zeros(1)), ImageProgress(1, 2, torch.zeros(1)), ImageDone([image], (8, 8))]
    first, second, last = [reply for reply, _ in app.updates(iter_of([*events, Done("")]), folder, streams=True)]
    assert [first["content"], second["content"]] == ["step 1 of 2", "step 2 of 2"]
    assert first["metadata"] == {"title": "Drawing"} and "metadata" not in last
    assert Image.open(last["content"][0]["path"]).getpixel((0, 0)) == (255, 0, 0)


def test_closing_an_answer_stops_the_model(answerer):
    replies = answerer.answer({"text": "What comes after three?", "files": []}, [], "audio", SPEAKERS[1], 1)
    next(replies)
    replies.close()
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("(_run)")]


@pytest.mark.parametrize("mode", ["text", "audio", "image"])
def test_each_answer_gets_its_own_settings(answerer, monkeypatch, mode):
    calls = []
    monkeypatch.setattr(answerer.model, "stream", lambda **options: calls.append(options) or iter_of([Done("")]))
    history = [turn("user", "What comes after one?"), turn("assistant", "two")]
    for earlier in (history, []):
        list(answerer.answer({"text": "What comes after three?", "files": []}, earlier, mode, "bert", 7))
    lengths = [call.pop("input_ids").shape[1] for call in calls]
    assert lengths[0] > lengths[1]  # the earlier messages count, for an image as well
    settings = {name: calls[0].get(name) for name in ("generation_mode", "speaker", "seed", "max_new_tokens")}
    speaker, seed, tokens = {"text": (None, None, 64), "audio": ("bert", 7, 64), "image": (None, 7, None)}[mode]
    assert settings == {"generation_mode": mode, "speaker": speaker, "seed": seed, "max_new_tokens": tokens}


@pytest.mark.parametrize(("words", "said"), [(5000, "longer than the limit of 4096"), (4089, "context is 4096")])
def test_a_conversation_that_is_too_long_is_said_to_be(answerer, words, said):
    (reply,), _ = next(answerer.answer({"text": "three " * words, "files": []}, [], "text", None, None))
    assert reply["metadata"] == {"title": "Not answered"}
    assert said in reply["content"]


def test_what_nobody_foresaw_is_logged_and_said(answerer, monkeypatch, caplog):
    def fail(*args, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(answerer.model, "stream", fail)
    (reply,), _ = next(answerer.answer({"text": "three", "files": []}, [], "text", None, None))
    assert reply["content"] == "Something failed; the log of the page has the details."
    assert "out of memory" in caplog.text


def test_answers_that_a_model_lacks_are_not_offered(folder):
    options = {"load_talker": False, "load_image_gen": False, "load_whisper": False}
    reader = BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32, **options).eval()
    page = app.build_page(app.Answerer(reader, BailingMMProcessor.from_pretrained(ROOT), folder))
    (mode,) = [block for block in page.blocks.values() if isinstance(block, gr.Radio)]
    assert mode.choices == [("Text", "text")]
    said = " ".join(block.value for block in page.blocks.values() if isinstance(block, gr.Markdown))
    assert "This model has no talker" in said and "without its image head" in said


def test_working_and_temporary_directory_are_the_pages_own(tmp_path):
    with chdir(tmp_path), app.private_folder() as folder:
        assert folder.samefile(os.getcwd()) and folder != tmp_path
        assert Path(gr.utils.get_upload_folder()).parent.samefile(folder)
    assert not folder.exists()


def test_help_tells_how(capsys):
    with pytest.raises(SystemExit):
        command.build_parser().parse_args(["--help"])
    said = capsys.readouterr().out
    assert "ming page --model ." in said and "--share" in said


# Over HTTP


def test_files_of_the_machine_are_not_handed_out(address):
    for path in (DEMO / "picture.jpg", ROOT / "config.json", Path("/etc/hostname")):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code == 403


@pytest.mark.parametrize("trigger", ["submit", "example_select"])
def test_files_of_the_machine_are_not_taken_for_uploads(address, trigger):
    config = httpx.get(f"{address}config").json()
    called = next(call for call in config["dependencies"] if trigger in [name for _, name in call["targets"]])
    file = {"path": str(DEMO / "picture.jpg"), "meta": {"_type": "gradio.FileData"}}
    message = {"text": "Describe the picture.", "files": [file]}
    body = {"fn_index": called["id"], "session_hash": "forged", "trigger_id": called["targets"][0][0]}
    body |= {"data": [message]} if trigger == "submit" else {"data": [], "event_data": {"index": 0, "value": message}}
    reply = httpx.post(f"{address}gradio_api/run/predict", json=body)
    assert reply.status_code == 500, reply.text


# In a browser


def test_a_picture_and_a_question(page):
    say(page, "Describe the picture.", "picture.jpg")
    playwright.expect(answers(page)).to_have_text(EXPECTED["picture"])
    say(page, "What colour is the background?")
    playwright.expect(answers(page).nth(1)).to_have_text("black")


def test_an_example_is_asked_by_a_click(page):
    page.get_by_text("Ask aloud about an image").click()
    playwright.expect(answers(page)).to_have_text(EXPECTED["picture"])


def test_a_recording_is_answered_aloud(page, answerer):
    page.get_by_role("radio", name="Text and speech").check()
    page.get_by_label("Seed").fill("3")
    with page.expect_response(lambda reply: reply.url.endswith(".wav") and "recording" not in reply.url) as spoken:
        say(page, "Transcribe this recording.", "recording.wav")
    waveform, rate = soundfile.read(io.BytesIO(spoken.value.body()))
    assert rate == answerer.model.audio_detokenizer.config.sample_rate
    assert len(waveform) > rate / 2 and abs(waveform).max() > 0.01
    playwright.expect(answers(page).first).to_have_text(EXPECTED["recording"])


def test_speech_is_played_while_it_is_made(page, answerer, endless):
    if not answerer.streams:
        pytest.skip(
            "there is no ffmpeg, with whose help the page streams; install it (Debian: apt-get install ffmpeg)"
        )
    page.get_by_role("radio", name="Text and speech").check()
    playwright.expect(page.get_by_label("Voice")).to_be_visible()
    say(page, "What comes after three?")
    player = page.get_by_test_id("audio-player-Speech")
    player.wait_for()
    page.wait_for_function("player => player.currentTime > 0", arg=player.element_handle())
    assert not endless.is_set()
    page.get_by_label("Stop").click()
    assert endless.wait(PATIENCE / 1000)


@pytest.fixture
def endless(answerer, monkeypatch) -> threading.Event:
    """The model goes on writing behind each answer until it is stopped, and the event says that it was."""
    stream, stopped = answerer.model.stream, threading.Event()

    def stream_on(**options):
        try:
            yield from stream(**options)
            while True:
                time.sleep(0.05)
                yield TextDelta(" and")
        finally:
            stopped.set()

    monkeypatch.setattr(answerer.model, "stream", stream_on)
    return stopped


def test_the_stop_button_stops_the_model(page, endless, monkeypatch):
    say(page, "What comes after three?")
    playwright.expect(answers(page)).to_contain_text("four and and")
    page.get_by_label("Stop").click()
    assert endless.wait(PATIENCE / 1000)
    monkeypatch.undo()
    say(page, "What comes after six?")
    playwright.expect(answers(page).nth(1)).to_have_text("seven")


def test_an_image_that_was_drawn_is_seen_in_the_next_message(page, answerer, monkeypatch):
    """The model gets what it drew before; with Ming-Tiny's own image head it changes it."""
    page.get_by_role("radio", name="Image").check()
    say(page, "Draw a red circle.")
    answers(page).locator("img").wait_for()
    drawn = answers(page).locator("img").first
    picture = Image.open(io.BytesIO(page.request.get(drawn.get_attribute("src")).body())).convert("RGB")
    calls, stream = [], answerer.model.stream
    monkeypatch.setattr(answerer.model, "stream", lambda **inputs: calls.append(inputs) or stream(**inputs))
    say(page, "Make it blue.")
    playwright.expect(answers(page).locator("img")).to_have_count(2)
    chat = [
        {"role": "user", "content": "Draw a red circle."},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Make it blue."}]},
    ]
    expected = answerer.processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(calls[0]["input_ids"], expected["input_ids"])
    torch.testing.assert_close(calls[0]["pixel_values"], expected["pixel_values"])


def test_a_picture_is_changed(page):
    page.get_by_role("radio", name="Image").check()
    say(page, "Make the circle blue.", "picture.jpg")
    drawn = answers(page).locator("img")
    drawn.wait_for()
    picture = Image.open(io.BytesIO(page.request.get(drawn.get_attribute("src")).body()))
    assert (picture.format, picture.size) == ("PNG", (78, 64))  # the proportions of 220 x 180


def test_what_cannot_be_read_is_said_and_the_chat_goes_on(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    say(page, "What is this?", tmp_path / "broken.png")
    playwright.expect(answers(page)).to_contain_text("cannot read image 'broken.png'")
    say(page, "What comes after three?")
    playwright.expect(answers(page).nth(1)).to_have_text("four")
