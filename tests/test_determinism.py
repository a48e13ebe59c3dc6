"""The same seed gives the same answer in every process, and no call leaves a trace in the process of the user.

Of batches, streams and seeds within one process `test_speech.py`, `test_drawing.py`, `test_ming_tiny_outputs.py` and
`test_thinker_generate.py` have tests of their own.
"""

import hashlib
import importlib
import json
import os
import subprocess
import sys
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from image_helpers import small_image_gen
from process_state import changes, leaves_no_trace, libraries, process_state
from speech_helpers import build_speaking_repository
from starlette.testclient import TestClient
from transformers import set_seed

from ming.events import AudioChunk
from ming.loading import load_model
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
PACKAGES = [ROOT / name for name in ("ming", "audio_detokenizer", "image_gen")]
WORDS = json.loads((DEMO / "expected.json").read_text(encoding="utf-8"))["request"]
OWN_VOICE = {"prompt_audio": str(DEMO / "request.wav"), "prompt_text": WORDS}
PICTURE = {"type": "image", "image": str(DEMO / "picture.jpg")}
RECORDING = {"type": "audio", "audio": str(DEMO / "recording.wav")}
CLIP = {"type": "video", "video": str(DEMO / "clip.mp4")}
LOOK = {"type": "text", "text": "Describe the picture."}
WISH = [{"role": "user", "content": "Draw a large green star in the center on a white background."}]


def prepare(processor, chats, **options) -> dict:
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True} | options
    return processor.apply_chat_template(chats, **options)


# The same answers


def answers(model, processor) -> dict[str, list]:
    """Answers of every kind from seeds, as text, numbers and hashes."""
    seen = prepare(processor, [[{"role": "user", "content": [PICTURE, LOOK]}], WISH])
    text, wish = prepare(processor, WISH), prepare(processor, [WISH, WISH])
    set_seed(5)
    sampled = model.generate(**seen, max_new_tokens=12, do_sample=True, temperature=2.0, top_k=0)
    spoken = model.speak(["red", "two stars"], seed=[3, 4])
    cloned = model.speak("red", seed=3, **OWN_VOICE)
    streamed = [event.waveform for event in model.speak_stream("two stars", seed=4) if isinstance(event, AudioChunk)]
    reply = model.generate(**text, generation_mode="audio", seed=3, max_new_tokens=6)
    drawn = model.generate(**wish, generation_mode="image", seed=[8, 9], num_inference_steps=2)
    return {
        "greedy": model.generate(**seen, max_new_tokens=12).tolist(),
        "sampled": sampled.tolist(),
        "speak": [digest(waveform) for waveform in spoken.waveforms],
        "cloned": [digest(cloned.waveforms[0])],
        "speak_stream": [digest(torch.cat(streamed))],
        "generate, audio": [*reply.text, *map(digest, reply.waveforms)],
        "generate, image": [hashlib.sha256(image.tobytes()).hexdigest() for image in drawn.images],
    }


def digest(waveform: torch.Tensor) -> str:
    return hashlib.sha256(waveform.numpy().tobytes()).hexdigest()


def run_fresh(script: str, *arguments: object, cwd: Path) -> dict:
    """Run a script in a process of its own, in another folder and with other hashes -> the JSON it prints last."""
    environment = os.environ | {"PYTHONHASHSEED": "77", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["HF_HOME"] = str(cwd / "hf")
    command = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


ANSWERS = """
import json, sys
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(1)
from transformers import AutoModelForMultimodalLM, AutoProcessor
from test_determinism import answers
options = {"trust_remote_code": True}
model = AutoModelForMultimodalLM.from_pretrained(sys.argv[1], dtype=torch.float32, **options).eval()
print(json.dumps(answers(model, AutoProcessor.from_pretrained(sys.argv[1], **options))))
"""


def test_another_process_gives_the_same_answers(model, processor, tmp_path):
    """Bit by bit: the same machine, float32, one thread."""
    expected = json.loads(json.dumps(answers(model, processor)))
    assert len(set(expected["speak"])) == 2 and len(set(expected["generate, image"])) == 2  # seeds matter
    assert expected["greedy"] != expected["sampled"]
    assert run_fresh(ANSWERS, ROOT, ROOT / "tests", cwd=tmp_path) == expected


# No traces

IMPORT_AND_LOAD = """
import json, sys
from pathlib import Path
root, tests, remote = sys.argv[1:]
sys.path.insert(0, tests)
from process_state import changes, libraries, process_state
libraries([Path(root, name) for name in ("ming", "audio_detokenizer", "image_gen")])
from transformers import AutoModelForMultimodalLM, AutoProcessor
from transformers.dynamic_module_utils import init_hf_modules
init_hf_modules()  # the library puts its folder for remote code on the import path
found, before = {}, process_state()
if remote == "no":
    sys.path.insert(0, root)
    before = process_state()
    import ming
    found["import"] = changes(before, process_state())
options = {"trust_remote_code": remote == "yes"}
for folder in (root, "nowhere/at/all"):
    try:
        model = AutoModelForMultimodalLM.from_pretrained(folder, **options)
        model.audio_detokenizer.load(), model.image_gen.load()
        processor = AutoProcessor.from_pretrained(folder, **options)
    except OSError:
        assert folder != root
    found[folder] = changes(before, process_state())
found["module"] = type(model).__module__
print(json.dumps(found))
"""


@pytest.mark.parametrize("remote", ["no", "yes"])
def test_import_and_loading_leave_no_trace(tmp_path, remote):
    """Beside what the import of the libraries alone changes. Loading that fails is looked at, too."""
    found = run_fresh(IMPORT_AND_LOAD, ROOT, ROOT / "tests", remote, cwd=tmp_path)
    module = found.pop("module")
    assert module.startswith("transformers_modules.") if remote == "yes" else module == "ming.modeling_bailingmm"
    assert len(found) == (2 if remote == "yes" else 3)
    assert not any(found.values()), found


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Ming-Tiny's thinker with a small talker, detokenizer and image head."""
    directory = build_speaking_repository(tmp_path_factory.mktemp("omni"))
    small_image_gen().save_pretrained(directory / "image_gen")
    return directory


@pytest.fixture(scope="module")
def small(repository):
    libraries(PACKAGES)  # what they change when they are first needed is theirs
    return BailingMMNativeForConditionalGeneration.from_pretrained(repository, dtype=torch.float32).eval()


def fail(*args, **kwargs):
    raise KeyError("of the caller")


def close_early(events) -> None:
    with closing(events):
        next(events)


@contextmanager
def damaged(model):
    """In the block the talker cannot be drawn from, which is found out in the middle of a call."""
    weight = model.talker.model.lm_head.weight
    before = weight.detach().clone()
    weight.data.fill_(float("nan"))
    try:
        yield model
    finally:
        weight.data.copy_(before)


@dataclass
class On:
    """What the calls need."""

    model: BailingMMNativeForConditionalGeneration
    processor: BailingMMProcessor
    folder: Path

    def __post_init__(self):
        self.text = prepare(self.processor, [[{"role": "user", "content": "What comes after three?"}]])
        self.seen = prepare(self.processor, [[{"role": "user", "content": [PICTURE, LOOK]}]])


FEW = {"max_new_tokens": 3}
IMAGE = {"generation_mode": "image", "seed": 0}
SPOKEN = {"generation_mode": "audio", "seed": 0, **FEW}
EVERYTHING = {"generation_mode": ["text", "audio", "image"], "seed": 0, **FEW}


def media(*items: dict) -> list:
    return [[{"role": "user", "content": list(items)}]]


def damaged_generate(on: On) -> None:
    with damaged(on.model) as model:
        model.generate(**on.text, **SPOKEN)


def damaged_stream(on: On) -> None:
    with damaged(on.model) as model:
        list(model.stream(**on.text, **SPOKEN))


def damaged_speech(on: On) -> None:
    with damaged(on.model) as model:
        list(model.speak_stream("red"))


# Every public call, as it ends well, is closed early, or raises.
CALLS = {
    "processor": lambda on: prepare(on.processor, media(PICTURE, RECORDING, CLIP)),
    "processor, raises": lambda on: prepare(on.processor, media({**CLIP, "video": __file__})),
    "processor, text": lambda on: on.processor.batch_decode(on.processor(text=["one"])["input_ids"]),
    "processor, saved": lambda on: on.processor.save_pretrained(on.folder),
    "generate": lambda on: on.model.generate(**on.seen, **FEW),
    "generate, everything": lambda on: on.model.generate(**on.text, **EVERYTHING),
    "generate, raises": lambda on: on.model.generate(**on.text, stopping_criteria=[fail]),
    "generate, audio, raises": damaged_generate,
    "generate, image, raises": lambda on: on.model.generate(**on.text, **IMAGE, callback=fail),
    "stream": lambda on: list(on.model.stream(**on.text, **EVERYTHING)),
    "stream, closed": lambda on: close_early(on.model.stream(**on.text, max_new_tokens=50)),
    "stream, audio, closed": lambda on: close_early(on.model.stream(**on.text, **SPOKEN)),
    "stream, image, closed": lambda on: close_early(on.model.stream(**on.text, **IMAGE)),
    "stream, raises": lambda on: list(on.model.stream(**on.text, stopping_criteria=[fail])),
    "stream, image, raises": lambda on: list(on.model.stream(**on.text, **IMAGE, callback=fail)),
    "stream, audio, raises": damaged_stream,
    "speak": lambda on: on.model.speak("red", attempts=1),
    "speak, raises": lambda on: on.model.speak("red", speaker="nobody"),
    "speak_stream": lambda on: list(on.model.speak_stream("red", attempts=1)),
    "speak_stream, closed": lambda on: close_early(on.model.speak_stream("red")),
    "speak_stream, raises": damaged_speech,
    "chat": lambda on: on.model.chat(on.processor, **FEW).say([PICTURE]),
    "chat, raises": lambda on: on.model.chat(on.processor, stopping_criteria=[fail]).say("one"),
    "save_pretrained": lambda on: on.model.save_pretrained(on.folder),
    "save_pretrained, raises": lambda on: on.model.save_pretrained(on.folder, max_shard_size="much"),
    "load_model": lambda on: load_model(ROOT, parts=["vision"]),
    "load_model, raises": lambda on: load_model(on.folder),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_leave_no_trace(small, processor, tmp_path, name):
    on = On(small, processor, tmp_path)
    raised = None
    with leaves_no_trace():
        try:
            CALLS[name](on)
        except (KeyError, ValueError, OSError, FloatingPointError) as error:
            raised = error
    assert (raised is not None) == name.endswith("raises"), raised


def test_a_server_and_the_page_leave_no_trace(small, processor, tmp_path):
    """From their start to their end, with a request that is answered and one that is refused."""
    server, page = (importlib.import_module(f"ming.serving.{name}") for name in ("server", "page"))
    with leaves_no_trace(), TestClient(server.create_app(small, processor)) as client:
        assert client.get("/health").status_code == 200
        body = {"messages": [{"role": "user", "content": "one"}], "max_tokens": 3}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert client.post("/v1/chat/completions", json=body | {"seed": 1, "temperature": 1}).status_code == 200
        assert client.post("/v1/chat/completions", json={"messages": 3}).status_code == 400
    with leaves_no_trace(), page.private_folder() as folder:
        page.build_page(page.Answerer(small, processor, folder, max_new_tokens=3, streams=False))


def test_sampled_text_draws_from_torchs_generator_alone(small, processor):
    """As in the library: `set_seed` repeats it. It takes no seed of its own."""
    inputs = prepare(processor, WISH)
    before = process_state()
    small.generate(**inputs, max_new_tokens=3, do_sample=True)
    after = process_state()
    assert set(changes(before, after)) == {"random numbers of torch"}
