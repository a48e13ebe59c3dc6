"""Kill what writes files, at random moments, and look at what is left.

    python -m tools.faults                              # everything, 30 kills each
    python -m tools.faults save adopt --kills 10 --seed 1

Every trial starts from the same state, in a process that is killed (SIGKILL) after a random time or at a random
operation on a file, whichever number of the trial is even or odd. Then the files must be those from before, or those
that an undisturbed process writes. Training and fine-tuning are started again, and must end with the losses and
weights of an undisturbed run; a server must answer as before.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ming.cli.adopt import adopt
from ming.cli.arguments import count, seed
from ming.cli.main import main as run_ming
from ming.configuration_bailingmm import BailingMMConfig
from ming.files import DONE, PARTIAL
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor
from ming.release import IMAGE_SETTINGS
from ming.talker_processor import BailingMMTalkerProcessor
from ming.training.loop import fit
from training.tiny.warmup import VisionWarmUp, VisionWarmUpData

ROOT = Path(__file__).resolve().parents[1]
WRITES = {"os.rename": 0, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.link": 1, "os.symlink": 1}
PRELOADED = ["ming.cli.adopt", "ming.cli.serve", "ming.training.finetune", "training.tiny.warmup", "wetext"]
STEPS, SAVE_STEPS = 6, 2
PATIENCE = 300.0  # seconds; a process that takes longer has failed
OLD, NEW = "old state", "new state"


def digest(folder: Path) -> dict[str, str]:
    """Relative path -> hash of every file of a folder, without what a killed save leaves to be cleared away."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and PARTIAL not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# What is done and how it is judged


class Save:
    """`save_pretrained` of model and processor over another checkpoint, which has fewer but larger weight files."""

    work_is_measured = True

    def prepare(self, folder: Path) -> None:
        """A checkpoint, and the one to write over it, which the child loads before the clock starts."""
        ming_tiny().save_pretrained(folder / "old")
        BailingMMProcessor.from_pretrained(ROOT).save_pretrained(folder / "old")

    def work(self, folder: Path, begin: Callable[[], None]) -> None:
        """Another model and another template over the old ones."""
        model = changed_model()
        processor = BailingMMProcessor.from_pretrained(ROOT)
        processor.chat_template += "{# changed #}"
        shutil.copytree(folder / "old", folder / "saved")
        begin()
        model.save_pretrained(folder / "saved", max_shard_size="16MB")
        processor.save_pretrained(folder / "saved")

    def check(self, folder: Path) -> str:
        """Configuration and weights belong together, the processor is one of the two, and the rest is there."""
        target = folder / "saved"
        waits = (target / DONE).exists()
        model = BailingMMNativeForConditionalGeneration.from_pretrained(target, dtype=torch.bfloat16)
        is_new = model.config.llm_config.rms_norm_eps == 1e-3
        wanted = changed_model() if is_new else ming_tiny()
        for name, tensor in wanted.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), f"{name} is not of this configuration"
        processor = BailingMMProcessor.from_pretrained(target)
        template = BailingMMProcessor.from_pretrained(ROOT).chat_template
        assert processor.chat_template in (template, template + "{# changed #}")
        assert set(BailingMMTalkerProcessor.from_pretrained(target).voices) == {"iris", "oscar"}
        assert not (target / DONE).exists() and (target / "image_gen" / "model.safetensors").is_file()
        return (NEW if is_new else OLD) + (", moved when it was read" if waits else "")

    def clear(self, folder: Path) -> None:
        """As before a trial."""
        shutil.rmtree(folder / "saved", ignore_errors=True)


def ming_tiny() -> BailingMMNativeForConditionalGeneration:
    """Ming-Tiny as it is."""
    return BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, dtype=torch.bfloat16)


def changed_model() -> BailingMMNativeForConditionalGeneration:
    """Ming-Tiny with other weights and another configuration."""
    model = ming_tiny()
    model.config.llm_config.rms_norm_eps = 1e-3
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    return model


class Adopt:
    """`ming adopt` of a small release (text, vision, hearing) with copied weights."""

    work_is_measured = True

    def prepare(self, folder: Path) -> None:
        """The release."""
        write_release(folder / "release")
        self.release = digest(folder / "release")

    def work(self, folder: Path, begin: Callable[[], None]) -> None:
        begin()
        adopt(folder / "release", folder / "adopted", "copy")

    def check(self, folder: Path) -> str:
        """Nothing under the name, or all of it; the release is untouched, and adopting again succeeds."""
        target, is_new = folder / "adopted", (folder / "adopted").exists()
        if not is_new:
            adopt(folder / "release", target, "copy")
        assert digest(folder / "release") == self.release
        model = BailingMMNativeForConditionalGeneration.from_pretrained(target, dtype=torch.bfloat16)
        wanted = load_file(ROOT / "model.safetensors")
        assert torch.equal(model.model.lm_head.weight, wanted["model.lm_head.weight"])
        BailingMMProcessor.from_pretrained(target)
        return NEW if is_new else OLD

    def clear(self, folder: Path) -> None:
        """As before a trial."""
        for name in ("adopted", "adopted.partial"):
            shutil.rmtree(folder / name, ignore_errors=True)


def write_release(root: Path) -> None:
    """Ming-Tiny without its outputs, with the files of a release."""
    model = BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, dtype=torch.bfloat16, load_talker=False)
    model.config.talker_config = None
    processor = BailingMMProcessor.from_pretrained(ROOT)
    model.components.source = model.config.source = None
    model.config.name_or_path = ""
    model.save_pretrained(root, max_shard_size="8MB")
    processor.tokenizer.save_pretrained(root)
    settings = {name: getattr(processor.image_processor, name) for name in IMAGE_SETTINGS[2:]}
    size = processor.image_processor.size
    settings |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    (root / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    vectors = {
        "AddShift": processor.feature_extractor.cmvn_shift,
        "Rescale": processor.feature_extractor.cmvn_scale,
    }
    lines = [f"<{name}> [ {' '.join(map(str, vector))} ]" for name, vector in vectors.items()]
    (root / "am.mvn").write_text("\n".join(lines), encoding="utf-8")


class Trained:
    """What finetuning and training share: a run that is killed is started again until it ends."""

    work_is_measured = True

    def prepare(self, folder: Path) -> None:
        """The undisturbed run."""
        self.write_data(folder)
        in_process(self.train, folder, folder / "wanted")

    def work(self, folder: Path, begin: Callable[[], None]) -> None:
        begin()
        self.train(folder, folder / "run")

    def check(self, folder: Path) -> str:
        """The same command ends with the losses and weights of the undisturbed run."""
        done = (folder / "run").exists() and self.is_done(folder / "run")
        in_process(self.train, folder, folder / "run")
        (losses, weights), (wanted_losses, wanted) = self.result(folder / "run"), self.result(folder / "wanted")
        assert losses == wanted_losses, f"losses {losses} instead of {wanted_losses}"
        for name, tensor in wanted.items():
            assert torch.equal(tensor, weights[name]), f"{name} differs"
        return NEW if done else "resumed to equal losses and weights"

    def clear(self, folder: Path) -> None:
        """As before a trial."""
        shutil.rmtree(folder / "run", ignore_errors=True)

    def write_data(self, folder: Path) -> None:
        """What a run reads."""

    def train(self, folder: Path, output: Path) -> None:
        """Run, or continue."""
        raise NotImplementedError

    def is_done(self, output: Path) -> bool:
        """Whether the result was there before the second start."""
        return any(output.glob("*.safetensors"))

    def result(self, output: Path) -> tuple[dict[int, float], dict[str, torch.Tensor]]:
        """Losses by step, and the trained weights."""
        state = json.loads((output / f"checkpoint-{STEPS}" / "trainer_state.json").read_text(encoding="utf-8"))
        losses = {entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry}
        (weights,) = output.glob("*.safetensors")
        return losses, load_file(weights)


class Finetune(Trained):
    """`ming finetune` with LoRA: six steps, a checkpoint after every second one."""

    options: tuple[str, ...] = ("--lora", "4")

    def write_data(self, folder: Path) -> None:
        """Chats without media."""
        chats = [
            [{"role": "user", "content": f"What comes after {n}?"}, {"role": "assistant", "content": f"{n} and one"}]
            for n in range(8)
        ]
        lines = (json.dumps({"messages": chat}) for chat in chats)
        (folder / "chats.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def train(self, folder: Path, output: Path) -> None:
        """The command."""
        numbers = {"--steps": STEPS, "--save-steps": SAVE_STEPS, "--logging-steps": 1, "--batch-size": 2}
        options = [str(item) for pair in numbers.items() for item in pair] + list(self.options)
        files = ["--model", str(ROOT), "--data", str(folder / "chats.jsonl"), "--output", str(output)]
        assert run_ming(["finetune", *files, *options]) == 0


class FinetuneFull(Finetune):
    """`ming finetune --full`: the result is a whole repository."""

    options = ("--full",)


class Training(Trained):
    """The loop of Ming-Tiny's training on its vision warm-up with one layer, and the file of weights of a stage."""

    def train(self, folder: Path, output: Path) -> None:
        """Six steps, a checkpoint after every second one."""
        torch.manual_seed(0)
        config = BailingMMConfig.from_pretrained(ROOT, load_talker=False, load_audio=False, load_whisper=False)
        config.vision_config.depth, config.llm_config.num_hidden_layers = 1, 1
        model = BailingMMNativeForConditionalGeneration(config)
        task = VisionWarmUp(model)
        data = VisionWarmUpData(BailingMMProcessor.from_pretrained(ROOT).image_processor, STEPS, 1, 0, "train")
        parameters = [*model.vision.parameters(), *task.dense.parameters(), *task.heads.parameters()]
        options: dict[str, Any] = {"save_steps": SAVE_STEPS, "logging_steps": 1, "dataloader_num_workers": 0}
        options["dataloader_prefetch_factor"] = None
        fit(task, data, output, 1e-3, 0, parameters=parameters, **options)
        save_file(model.vision.state_dict(), output / "vision.safetensors")


class Serving:
    """`ming serve` under questions: the checkpoint is untouched, nothing is left, and it answers as before."""

    work_is_measured = False  # a server has no end
    seconds = 6.0

    def prepare(self, folder: Path) -> None:
        """A checkpoint of its own, and what it answers."""
        ming_tiny().save_pretrained(folder / "served")
        BailingMMProcessor.from_pretrained(ROOT).save_pretrained(folder / "served")
        (folder / "tmp").mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.served = digest(folder / "served")
        self.answer = self._asked(folder)

    def work(self, folder: Path, begin: Callable[[], None]) -> None:
        """Serve; the parent process asks."""
        begin()
        tempfile.tempdir = str(folder / "tmp")
        without = ("--without", "talker", "image_gen")
        run_ming(["serve", "--model", str(folder / "served"), "--port", str(self.port), "--name", "m", *without])

    def meanwhile(self) -> None:
        """A question; a server that is gone, or not there yet, is no error."""
        try:
            self._ask(stream=True)
        except OSError:
            time.sleep(0.05)

    def check(self, folder: Path) -> str:
        assert digest(folder / "served") == self.served, "the checkpoint changed"
        assert not [*(folder / "tmp").iterdir()], "temporary files are left"
        assert self._asked(folder) == self.answer
        return "checkpoint untouched, same answer after a restart"

    def clear(self, folder: Path) -> None:
        """Nothing to clear."""

    def _ask(self, stream: bool = False) -> bytes:
        body = {"messages": [{"role": "user", "content": "What comes after three?"}], "stream": stream}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps({**body, "temperature": 0}).encode(),
            {"Content-Type": "application/json"},
        )
        # Our own server, by http.
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # nosec B310
            return answer.read()

    def _asked(self, folder: Path) -> str:
        """The answer of a server that is started for it, and killed."""
        child = Child(self.work, folder)
        deadline = time.monotonic() + PATIENCE
        try:
            while True:
                try:
                    return json.loads(self._ask())["choices"][0]["message"]["content"]
                except urllib.error.URLError:
                    assert child.process.is_alive() and time.monotonic() < deadline, child.log.read_text()
                    time.sleep(0.1)
        finally:
            child.kill()


EXPERIMENTS: dict[str, list[Callable[[], Any]]] = {
    "save": [Save],
    "adopt": [Adopt],
    "finetune": [Finetune, FinetuneFull],
    "training": [Training],
    "serving": [Serving],
}


# Children that are killed


def _child(work: Callable, folder: Path, log: Path, connection: Any, operation: int | None) -> None:
    """Body of a child: work, count operations on files, and die before the one of the given number."""
    torch.set_num_threads(1)
    count = 0

    def begin() -> None:
        def hook(event: str, args: tuple) -> None:
            nonlocal count
            if not _is_write(event, args, str(folder)):
                return
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        sys.addaudithook(hook)
        connection.send("begin")

    with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        work(folder, begin)
    connection.send(count)


def _is_write(event: str, args: tuple, folder: str) -> bool:
    """Whether an audit event is an operation that changes files below a folder."""
    if event == "open":
        path, flags = args[0], args[2]
        return isinstance(path, (str, bytes)) and bool(flags & os.O_CREAT) and os.fsdecode(path).startswith(folder)
    return event in WRITES and os.fsdecode(args[WRITES[event]]).startswith(folder)


class Child:
    """A process that works in a folder. It is forked from a server that has imported everything."""

    def __init__(self, work: Callable, folder: Path, operation: int | None = None):
        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.log = folder.with_suffix(".log")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_child, args=(work, folder, self.log, theirs, operation))
        self.process.start()
        theirs.close()
        assert self.connection.poll(PATIENCE) and self.connection.recv() == "begin"

    def wait(self, seconds: float) -> bool:
        """Wait for the end; returns whether it came."""
        self.process.join(seconds)
        return not self.process.is_alive()

    def kill(self) -> None:
        """End it now."""
        self.process.kill()
        self.process.join()

    def operations(self) -> int:
        """How many operations on files it took, once it ended by itself."""
        assert self.process.exitcode == 0, self.log.read_text()[-2000:]
        return self.connection.recv()


def _only_run(run: Callable, arguments: tuple, folder: Path, begin: Callable[[], None]) -> None:
    begin()
    run(*arguments)


def in_process(run: Callable, folder: Path, *arguments: Any) -> None:
    """Run a function with the folder and arguments in a child to its end."""
    child = Child(partial(_only_run, run, (folder, *arguments)), folder)
    assert child.wait(PATIENCE), child.log.read_text()[-2000:]
    child.operations()


def measure(experiment: Any, folder: Path) -> tuple[float, int]:
    """Seconds of the undisturbed work, and its operations on files."""
    if not experiment.work_is_measured:
        return experiment.seconds, 0
    child, began = Child(experiment.work, folder), time.monotonic()
    assert child.wait(PATIENCE)
    seconds, operations = time.monotonic() - began, child.operations()
    assert experiment.check(folder) == NEW
    return seconds, operations


def trial(experiment: Any, folder: Path, seconds: float | None, operation: int | None) -> str:
    """Kill the work after a time, or before an operation on a file, and say what was left."""
    experiment.clear(folder)
    child = Child(experiment.work, folder, operation)
    deadline = time.monotonic() + (PATIENCE if seconds is None else seconds)
    while time.monotonic() < deadline and child.process.is_alive():
        if experiment.work_is_measured:
            child.wait(deadline - time.monotonic())
        else:
            experiment.meanwhile()
    child.kill()
    assert child.process.exitcode in (-signal.SIGKILL, 0), child.log.read_text()[-2000:]
    with redirect_stderr(io.StringIO()):  # bars
        return experiment.check(folder)


def kill_often(experiment: Any, kills: int, seed: int, say: Callable[[str], Any]) -> Counter[str]:
    """What was left after each of a number of kills -> how often."""
    rng, found = np.random.default_rng(seed), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="ming-faults-") as name:
        folder = Path(name) / "work"
        folder.mkdir()
        experiment.prepare(folder)
        seconds, operations = measure(experiment, folder)
        for number in range(kills):
            at, operation = float(rng.uniform(0, seconds)), int(rng.integers(max(1, operations)))
            by_operation = operations > 0 and number % 2 == 1
            say(f"{number + 1}/{kills}: {f'operation {operation}' if by_operation else f'{at:.3f} s'}")
            try:
                left = trial(experiment, folder, None if by_operation else at, operation if by_operation else None)
            except Exception as error:  # whatever it is, something was lost
                left = f"LOST: {type(error).__name__}: {error}"
            say(f"  {left}")
            found[left] += 1
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the experiments and print a table; returns 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*EXPERIMENTS, []], help="default: everything")
    parser.add_argument("--kills", type=count, default=30, help="of each (default: %(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="of the moments")
    args = parser.parse_args(arguments)
    rows = []
    for name in args.what or EXPERIMENTS:
        for kind in EXPERIMENTS[name]:
            found = kill_often(kind(), args.kills, args.seed, lambda line: sys.stderr.write(f"{line}\n"))
            rows += [(kind.__name__, left, count) for left, count in sorted(found.items())]
    for row in [("what", "left", "kills"), ("---", "---", "---"), *rows]:
        sys.stdout.write(f"| {' | '.join(map(str, row))} |\n")
    return int(any(left.startswith("LOST") for _, left, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
