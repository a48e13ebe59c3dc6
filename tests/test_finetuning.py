"""`ming finetune` on text: data, trained weights, adapters, resuming, merging, other trainers."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForMultimodalLM, AutoProcessor, TrainerCallback

from ming.cli.main import main as run_ming
from ming.cli.usage import UsageError
from ming.modeling_bailing_moe import weighted_router_loss
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor
from ming.training.finetune import main, parse
from ming.training.finetune_data import ChatCollator, read_chats
from ming.training.finetune_text import (
    DEFAULT_TARGETS,
    LORA_TARGETS,
    ChatTrainer,
    Run,
    load_model,
    lora_config,
    train,
    training_arguments,
)
from ming.training.loop import last_checkpoint
from training.examples import new_colour
from training.tiny.scenes import COLOURS
from training.tiny.world import sample_chat

ROOT = Path(__file__).resolve().parents[1]
CHATS = 8
TUNED = ("--lora", "4", "--lora-targets", "attention", "dense", "experts", "--learning-rate", "5e-3", "--steps", "24")


@pytest.fixture(scope="module")
def processor():
    return BailingMMProcessor.from_pretrained(ROOT)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A JSONL file whose answers are new to Ming-Tiny, every other chat about a picture beside it."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(5)
    lines = []
    for index in range(CHATS):
        content = [{"type": "text", "text": f"What is the word number {index}?"}]
        if index % 2:
            picture = sample_chat("image_qa", rng, "train", max_side=80).media[0]["image"]
            (folder / "pictures").mkdir(exist_ok=True)
            picture.save(folder / "pictures" / f"{index}.png")
            content.insert(0, {"type": "image", "image": f"pictures/{index}.png"})
        answer = {"role": "assistant", "content": [{"type": "text", "text": f"a pink star and {index} more"}]}
        lines.append(json.dumps({"messages": [{"role": "user", "content": content}, answer]}))
    path = folder / "chats.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_tensorboard_gets_the_losses(data, tmp_path):
    main(command(data, tmp_path / "out", "--steps", "3", "--logging-steps", "1", "--report-to", "tensorboard"))
    (events,) = (tmp_path / "out").rglob("events.out.tfevents.*")
    scalars = EventAccumulator(str(events)).Reload().Scalars("train/loss")
    assert [scalar.step for scalar in scalars] == [1, 2, 3] and all(scalar.value > 0 for scalar in scalars)


def load(source=ROOT) -> BailingMMNativeForConditionalGeneration:
    return BailingMMNativeForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()


def command(data: Path, output: Path, *options: str) -> list[str]:
    return ["--model", str(ROOT), "--data", str(data), "--output", str(output), *options]


@torch.no_grad()
def logits(model, batch) -> torch.Tensor:
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


@pytest.fixture(scope="module")
def batch(processor, data):
    return ChatCollator(processor)(read_chats(data)[:4])


@pytest.fixture(scope="module")
def tuned(data, tmp_path_factory) -> tuple[dict, Path]:
    """Metrics and directory of an adapter that was trained for some steps."""
    output = tmp_path_factory.mktemp("tuned")
    args = parse(command(data, output, *TUNED, "--logging-steps", "1", "--eval-data", str(data)))
    return train(args, Run.prepare(args)), output


def spoken_chat() -> list[dict]:
    sound = (np.random.default_rng(0).standard_normal(16000).astype(np.float32) / 8, 16000)
    messages = [
        {"role": "user", "content": [{"type": "audio", "audio": sound}]},
        {"role": "assistant", "content": "no"},
    ]
    return [{"messages": messages}]


def test_only_assistant_tokens_are_trained(processor):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one two"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "<role>ASSISTANT</role> four"},
        {"role": "assistant", "content": "five six"},
    ]
    batch = ChatCollator(processor)([{"messages": messages}, {"messages": messages[:3]}])
    labels = batch["labels"]
    ends = processor.tokenizer.eos_token
    trained = [processor.tokenizer.decode(row[row != -100]) for row in labels]
    assert trained == [f"three{ends}five six{ends}", f"three{ends}"]
    with torch.no_grad():
        outputs = load()(**batch)
    wanted = F.cross_entropy(outputs.logits[:, :-1][labels[:, 1:] != -100], labels[:, 1:][labels[:, 1:] != -100])
    router = weighted_router_loss(load().config.llm_config, outputs.load_balancing_loss, outputs.router_z_loss)
    assert router > 0
    torch.testing.assert_close(outputs.loss, wanted + router)


def test_loss_falls_and_adapters_reload(tuned, data, processor, batch):
    metrics, output = tuned
    history = json.loads((last_checkpoint(output) / "trainer_state.json").read_text())["log_history"]
    assert metrics["eval_loss"] < 0.5 * history[0]["loss"]
    base, adapted = load(), PeftModel.from_pretrained(load(), output).eval()
    found = logits(adapted, batch)
    assert (found - logits(base, batch)).abs().max() > 1
    base.load_adapter(str(output))
    torch.testing.assert_close(logits(base.eval(), batch), found, atol=1e-5, rtol=0)
    AutoProcessor.from_pretrained(output, trust_remote_code=True)


def test_a_finished_run_is_left_as_it_is_and_merges_into_a_whole_repository(tuned, data, batch):
    _, output = tuned
    before = (output / "adapter_model.safetensors").read_bytes()
    main(command(data, output, *TUNED, "--merge"))
    assert (output / "adapter_model.safetensors").read_bytes() == before
    merged = AutoModelForMultimodalLM.from_pretrained(output / "merged", trust_remote_code=True, dtype=torch.float32)
    wanted = logits(PeftModel.from_pretrained(load(), output).eval(), batch)
    torch.testing.assert_close(logits(merged.eval(), batch), wanted, atol=1e-4, rtol=0)
    processor = AutoProcessor.from_pretrained(output / "merged", trust_remote_code=True)
    question = [{"role": "user", "content": "What is the word number 2?"}]
    inputs = processor.apply_chat_template(question, tokenize=True, return_tensors="pt")
    assert merged.generate(inputs, max_new_tokens=3).shape[1] == inputs.shape[1] + 3


@pytest.mark.parametrize("kind", [("--lora", "4"), ("--full", "--learning-rate", "1e-3")], ids=["lora", "full"])
def test_resuming_gives_the_weights_of_an_uninterrupted_run(kind, data, tmp_path):
    options = (*kind, "--steps", "5", "--save-steps", "3")  # 2 steps are an epoch: the cut is within the second one
    main(command(data, tmp_path / "whole", *options))
    killed = tmp_path / "killed"
    killed.mkdir()
    shutil.copy(tmp_path / "whole" / "finetune.json", killed)
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", killed / "checkpoint-3")
    shutil.copytree(killed / "checkpoint-3", killed / "checkpoint-5")
    (killed / "checkpoint-5" / "trainer_state.json").unlink()  # as if the kill came while this one was written
    main(command(data, killed, *options))
    read = load if "--full" in kind else lambda source: PeftModel.from_pretrained(load(), source)
    whole, resumed = (read(tmp_path / name).state_dict() for name in ("whole", "killed"))
    base = load().state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6)
    if "--full" in kind:
        experts = "model.model.layers.0.mlp.experts.gate_up_proj"
        assert (whole[experts] - base[experts]).abs().max() > 1e-4
        assert json.loads((tmp_path / "whole" / "config.json").read_text())["use_cache"] is True


def test_parts_that_an_adapter_trains():
    def adapted(targets) -> set[str]:
        model = get_peft_model(load(), lora_config(2, targets))
        names = [name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad]
        return {re.sub(r"\.\d+\.", ".", name.partition(".lora_")[0]) for name in names}

    base = "model.model.layers."
    attention = {f"{base}attention.{name}" for name in ("query_key_value", "dense")}
    default = {f"{base}mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")} | attention
    assert adapted(DEFAULT_TARGETS) == default
    more = adapted(LORA_TARGETS) - default
    encoders = ("vision", "linear_proj", "audio", "linear_proj_audio", "whisper_encoder", "linear_proj_whisper")
    assert {name.split(".")[0] for name in more} == {"model", *encoders}
    assert all("mlp.experts" in name for name in more if name.startswith("model."))


@pytest.mark.parametrize("whisper", [False, True])
@pytest.mark.parametrize("targets", [None, LORA_TARGETS], ids=["full", "lora"])
def test_gradient_checkpointing_gives_equal_gradients(processor, data, targets, whisper):
    torch.manual_seed(0)
    model = load()
    if targets:
        model = get_peft_model(model, lora_config(4, targets))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    batch = ChatCollator(processor, whisper)([*read_chats(data)[:2], *spoken_chat()])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            arguments = training_arguments(parse(command(data, Path("none"), "--gradient-checkpointing")))
            assert arguments.activation_checkpointing
            model.activation_checkpointing_enable(arguments.activation_checkpointing_kwargs)
        model.train().zero_grad()
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for part in ("attention", "experts", "vision", "whisper_encoder" if whisper else "audio.encoders"):
        assert any(part in name and plain[name].abs().max() > 0 for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=1e-6)


class Gradients(TrainerCallback):
    """Keeps the gradients of the first step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.kept = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_accumulated_batches_count_tokens_alike_and_average_the_routers(data, processor, tmp_path):
    rows = read_chats(data)[:2]
    rows[0]["messages"][-1]["content"] = "one"  # a short and a long reply
    args = parse(command(data, tmp_path, "--steps", "1", "--batch-size", "1", "--accumulation", "2"))
    arguments = training_arguments(args)
    arguments.max_grad_norm = 0.0
    model, collate, seen = load_model(args, torch.device("cpu")), ChatCollator(processor), Gradients()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    ChatTrainer(model, arguments, collate, rows, processing_class=processor, callbacks=[seen]).train()
    model.load_state_dict(start)
    model.zero_grad()
    outputs = [(batch["labels"], model(**batch)) for batch in (collate([row]) for row in rows)]
    tokens = sum(F.cross_entropy(o.logits[0, :-1], label[0, 1:], reduction="sum") for label, o in outputs)
    config = model.config.llm_config
    routers = [weighted_router_loss(config, o.load_balancing_loss, o.router_z_loss) for _, o in outputs]
    (tokens / sum((label != -100).sum() for label, _ in outputs) + sum(routers) / 2).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(seen.kept[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", [(), ("--bf16",)], ids=["float32", "bfloat16"])
def test_four_bit(precision, data, tmp_path, batch):
    options = ("--load-in-4bit", "--gradient-checkpointing", "--learning-rate", "3e-3", "--logging-steps", "1")
    main(command(data, tmp_path, *precision, *options, "--steps", "4", "--batch-size", "8"))
    history = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert history[3]["loss"] < 0.9 * history[0]["loss"]
    PeftModel.from_pretrained(load(), tmp_path)(**batch)  # fits what was not quantised


def test_two_processes_do_what_two_accumulated_batches_do(data, tmp_path):
    options = ("--lora", "4", "--steps", "2", "--batch-size", "2")
    main(command(data, tmp_path / "one", *options, "--accumulation", "2"))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    start += ["-m", "ming", "finetune", *command(data, tmp_path / "two", *options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(start, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (PeftModel.from_pretrained(load(), tmp_path / name).state_dict() for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)


USER = {"role": "user", "content": "hello"}
REPLY = {"role": "assistant", "content": "yes"}
ODD_NUMBERS = ("0", "-1", "nan", "inf", "x")


def user(*content: dict) -> list[dict]:
    return [{"role": "user", "content": list(content)}, REPLY]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"'{' is not JSON in UTF-8 .*write one object per line"),
        ('{"conversation": []}', r"the keys \['conversation'\] is not a chat; write"),
        ([], "none of 0 messages is an assistant's; add the reply"),
        ([USER], "none of 1 messages is an assistant's"),
        ([USER, REPLY, USER], "the last message is of role 'user'; end with"),
        ([{"role": "robot", "content": "hi"}, REPLY], "role 'robot' is unknown; accepted roles are"),
        ([{"role": ["user"], "content": "hi"}, REPLY], r"\['user'\] is not a role or type; roles are HUMAN, user"),
        ([{"role": "user", "content": [{"type": "smell"}]}, REPLY], "content type 'smell' .* accepted types are"),
        ([{"role": "user", "content": [{"type": "image"}]}, REPLY], "type 'image' has no image; give one"),
        (
            [{"role": "user", "content": [{"type": "image", "image": "no.png"}]}, REPLY],
            r"'no.png': no such file \(in .*\); paths are relative to the JSONL file",
        ),
        ([{"role": "user", "content": [{"type": "audio", "audio": ["no.wav"]}]}, REPLY], "'no.wav': no such file"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]}, REPLY], "no such file"),
        (user({"type": "image", "image": "."}), "'.' is a directory; give the file of the image"),
        ("[" * 100_000, "is not JSON in UTF-8 .*recursion"),
        ([USER, {"role": "assistant", "content": " "}], "an assistant's message is empty; write"),
        ([USER, {"role": "assistant", "content": [{"type": "audio", "audio": "a.wav"}]}], "which is not trained here"),
        (
            [USER, {"role": "assistant", "content": [{"type": "image", "image": "a.png"}]}],
            "ming finetune speech or ming finetune image",
        ),
    ],
)
def test_bad_lines_are_named(line, message, tmp_path):
    text = line if isinstance(line, str) else json.dumps({"messages": line})
    good = json.dumps({"messages": [USER, REPLY]})
    (tmp_path / "chats.jsonl").write_text(f"{good}\n\n{text}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"chats.jsonl: 1 of 2 chats are bad:\n  line 3: .*{message}"):
        read_chats(tmp_path / "chats.jsonl")


@pytest.fixture
def without_weights(tmp_path) -> Path:
    """Ming-Tiny without its weights: what is refused with it is refused before they are read."""
    directory = tmp_path / "model"
    directory.mkdir()
    for file in ROOT.iterdir():
        if file.suffix in (".json", ".jinja", ".py"):
            shutil.copy(file, directory)
    return directory


def medium(kind: str, source, **options) -> dict:
    return {"type": kind, kind: source, **options}


UNUSABLE = [  # chats that read well, and a word of the error
    ([{"role": "user", "content": "one " * 4096}, REPLY], "tokens is longer than the limit of 4096; shorten it"),
    (user(medium("image", "bad.jpg")), "bad.jpg': cannot identify image file"),
    (user(medium("image", "cut.jpg")), "cut.jpg': image file is truncated"),
    (user(medium("image", 5)), "cannot read image <int>"),
    (user(medium("image", "data:image/png;base64,AAAA")), "cannot identify image file"),
    (user(medium("image", "http://127.0.0.1:9/a.png")), "cannot read image 'http://127.0.0.1:9/a.png'"),
    (user(medium("video", "frames")), "no frames (.jpg"),
    (user(medium("video", str(ROOT / "demo" / "clip.mp4"), max_frames="x")), "max_frames='x' must be a whole number"),
    (user(medium("audio", "bad.jpg")), "cannot read audio"),
    (user(medium("audio", [0.1, 0.2], sampling_rate=16_000)), "audio of 2 samples"),
]


@pytest.mark.parametrize("option", ["--data", "--eval-data"])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_chat_is_used_before_the_weights_are_read(option, workers, without_weights, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_text("no image", encoding="utf-8")
    picture = (ROOT / "demo" / "picture.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(picture[: len(picture) // 2])
    (tmp_path / "frames").mkdir()
    good, path = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(json.dumps({"messages": [USER, REPLY]}), encoding="utf-8")
    rows = [[USER, REPLY], *(messages for messages, _ in UNUSABLE)]
    path.write_text("\n".join(json.dumps({"messages": row}) for row in rows), encoding="utf-8")
    paths = [option, str(path), *(("--data", str(good)) if option != "--data" else ())]
    options = [
        "--model",
        str(without_weights),
        "--output",
        str(tmp_path / "out"),
        "--workers",
        workers,
        "--steps",
        "1",
    ]
    assert run_ming(["finetune", *paths, *options]) == 2
    errors = capsys.readouterr().err
    first, *lines = errors[errors.index("ming: error: ") :].splitlines()
    assert first == f"ming: error: {path}: {len(UNUSABLE)} of {len(rows)} chats are bad:"
    for number, line, (_, message) in zip(range(2, len(rows) + 1), lines, UNUSABLE, strict=True):
        assert line.startswith(f"  line {number}: ") and message in line
    assert not (tmp_path / "out").exists()


def test_a_run_goes_on_with_chats_that_were_mended(data, tmp_path):
    """A relative path is the same model as its absolute one."""
    chats, output = tmp_path / "chats.jsonl", tmp_path / "out"
    lines = data.read_text(encoding="utf-8").splitlines()[::2]
    options = ("--lora", "4", "--batch-size", "2", "--save-steps", "1")
    chats.write_text("\n".join(lines), encoding="utf-8")
    main(command(chats, output, *options, "--steps", "1"))
    chats.write_text("\n".join(lines).replace("a pink star", "a red star"), encoding="utf-8")
    again = command(chats, output, *options, "--steps", "2")
    again[1] = os.path.relpath(ROOT)
    with pytest.raises(
        UsageError, match=r"chats.jsonl have changed since .*out was begun; give --changed-data to go on"
    ):
        main(again)
    main([*again, "--changed-data"])
    state = json.loads((last_checkpoint(output) / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 2
    main(again)  # the run is one of the new chats now


def in_capitals(address: str) -> str:
    """An address with its scheme in capitals."""
    scheme, colon, rest = address.partition(":")
    return scheme.upper() + colon + rest


@pytest.mark.parametrize("shown", [str, in_capitals])
def test_only_paths_are_changed(tmp_path, shown):
    """Schemes are the same in capitals."""
    (tmp_path / "a.png").write_bytes(b"")
    there, data_url = str((tmp_path / "a.png").resolve()), shown("data:image/png;base64,AAAA")
    items = [
        {"type": "image", "image": ["a.png", shown("https://example.org/b.png")]},
        {"type": "image_url", "image_url": {"url": shown((tmp_path / "a.png").as_uri()), "detail": "low"}},
        {"type": "image", "url": data_url},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "text", "text": "a.png \u2028 b"},
    ]
    chat = {"messages": [{"role": "user", "content": items}, REPLY]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(chat, ensure_ascii=False), encoding="utf-8")
    items[0]["image"][0] = items[1]["image_url"]["url"] = there
    assert read_chats(tmp_path / "chats.jsonl") == [chat]


def test_the_whole_file_is_checked_before_the_model_is_read(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("{\n" + json.dumps({"messages": [USER]}) + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"2 of 2 chats are bad:\n  line 1: .*\n  line 2: "):
        main(["--model", str(tmp_path / "nowhere"), "--data", str(path), "--output", str(tmp_path / "out")])
    path.write_text("\n", encoding="utf-8")
    for missing in (path, tmp_path / "none.jsonl"):
        with pytest.raises(ValueError, match="no chats in it; give|no such file; give"):
            read_chats(missing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--full", "--lora", "4", "--merge"), "--lora, --merge and --full exclude each other"),
        *(
            (("--lora", rank), f"--lora: {rank} is not accepted; give a whole number of 1 to 4096")
            for rank in ("0", "5000")
        ),
        *((("--epochs", value), f"--epochs: {value} is not accepted; give a number above 0") for value in ODD_NUMBERS),
        *((("--learning-rate", value), "give a number above 0, at most 1;") for value in (*ODD_NUMBERS, "1.5")),
        *((("--workers", value), "give a whole number of 0 to 1024") for value in ("-1", "nan", "1.5")),
        *((("--seed", value), "--seed: .* is not accepted; give a whole number of") for value in ("-1", "4294967296")),
        (("--steps", "9" * 5000), "give a whole number of 1 to 1000000000"),
        (("--freeze-encoders",), "--freeze-encoders needs --full"),
        (("--load-in-4bit", "--lora-targets", "experts"), "quantised experts are not stacked"),
    ],
)
def test_options_that_exclude_each_other_and_numbers_that_train_nothing(options, message, data):
    with pytest.raises(UsageError, match=message) as raised:
        parse(command(data, Path("out"), *options))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("target", ["speech", "image"])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--full",), "--full"),
        (("--accumulation", "1"), "--accumulation"),
        (("--merge", "--eval-data", "x"), "--eval-data, --merge"),
    ],
)
def test_options_of_another_target_are_refused(target, options, named, data):
    message = f"{named} belongs to the target text, not to {target}; leave it out"
    with pytest.raises(UsageError, match=message) as raised:
        parse([target, *command(data, Path("out"), *options)])
    assert "\n" not in str(raised.value)


def test_targets_have_their_own_defaults(data):
    plain, text, image = (parse([*target, *command(data, Path("out"))]) for target in ((), ("text",), ("image",)))
    assert vars(plain) == vars(text)
    assert (plain.target, plain.lora, plain.accumulation, plain.learning_rate) == ("text", 16, 1, 2e-4)
    assert (image.target, image.lora, image.learning_rate) == ("image", None, 1e-5) and not hasattr(image, "full")
    with pytest.raises(UsageError, match="invalid choice: 'sound'"):
        parse(["sound", *command(data, Path("out"))])


def test_a_directory_of_another_run_is_refused(tuned, data):
    _, output = tuned
    with pytest.raises(UsageError, match=r"was begun with .*lora 4, now 8.*; give the same, or another --output"):
        main(command(data, output, "--lora", "8"))
    with pytest.raises(UsageError, match="is the model's own directory"):
        main(command(data, ROOT))


@pytest.mark.parametrize("output", ["file", "file/out"])
def test_an_output_that_is_no_directory_is_refused(data, tmp_path, output):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match=r"--output .*: .*file is a file; give a directory"):
        main(command(data, tmp_path / output))


def test_the_help_says_the_defaults(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "default: 0.0002 for an adapter of text, else 1e-05" in text and "{'lora'" not in text


def test_frozen_encoders_of_a_full_run(data):
    model = load_model(parse(command(data, Path("out"), "--full", "--freeze-encoders")), torch.device("cpu"))
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"model"}


def test_trl_trains_with_our_collator(data, processor, tmp_path):
    import datasets
    import trl

    rows = read_chats(data)
    args = trl.SFTConfig(
        str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=2e-3,
        logging_steps=1,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        max_length=None,
        router_aux_loss_coef=0.0,  # its own loss for routers knows one router only
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
    )
    trainer = trl.SFTTrainer(
        model=load(),
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        data_collator=ChatCollator(processor),
        processing_class=processor,
        peft_config=lora_config(4),
    )
    batch = ChatCollator(processor)(rows[:4])
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, dict(batch))
        ours = load()(**{**batch, "output_router_logits": False}).loss
    torch.testing.assert_close(theirs, ours)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and losses[-1] < losses[0]


def test_the_example_keeps_unseen_combinations_apart_and_runs(tmp_path, capsys):
    rng = np.random.default_rng(0)
    scenes = {split: [new_colour.new_scene(rng, split) for _ in range(200)] for split in ("train", "test")}
    shapes = {
        split: {(s.size, s.kind, s.position) for scene in found for s in scene.shapes if s.colour == new_colour.WORD}
        for split, found in scenes.items()
    }
    assert len(shapes["test"]) == 8 and len(shapes["train"]) == 32 and not shapes["test"] & shapes["train"]
    options = ["--new", "4", "--old", "5", "--test", "2", "--epochs", "1", "--lora-targets", "attention"]
    measured = new_colour.main(["--output", str(tmp_path), *options])
    assert new_colour.WORD not in COLOURS
    chats = read_chats(tmp_path / "chats.jsonl")
    assert len(chats) == 9 and {path.suffix for path in (tmp_path / "chats").iterdir()} == {".png"}
    answers = [message["content"][0]["text"] for chat in chats for message in chat["messages"][1::2]]
    assert any(new_colour.WORD in answer for answer in answers)
    named = next(iter(measured))
    assert measured[named][0] == 0 and f"| {named} | 2 | 0.0 %" in capsys.readouterr().out
