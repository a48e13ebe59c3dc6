"""Break a copy of this repository on purpose, one way after another, and see that a test notices.

python -m tools.breakages                 # all, some minutes
python -m tools.breakages router sentence # these

A table of what was broken, which tests ran, and whether they failed; the exit status is 1 if one was not noticed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Breakage:
    """One way to break the package.

    Args:
        name: for the table and the command line.
        file: from the root.
        right, wrong: the text in the file that is exchanged; `right` stands there exactly once.
        tests: arguments of pytest: the tests that a change of this file would run.
    """

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


BREAKAGES = (
    Breakage(
        "requirement",
        "requirements-dev.txt",
        "espeakng-loader>=0.2.4,<0.3\n",
        "",
        ("tests/test_repository.py", "-k", "required"),
    ),
    Breakage(
        "router",
        "ming/modeling_bailing_moe.py",
        "torch.where(token_types == AUDIO_TYPE, self.audio_gate(hidden_states), router_logits)",
        "torch.where(token_types == AUDIO_TYPE, self.image_gate(hidden_states), router_logits)",
        ("tests/test_thinker_goldens.py", "tests/test_routing.py"),
    ),
    Breakage(
        "sentence",
        "ming/talker_processor.py",
        "return [*cutter.push(text), *cutter.finish()]",
        "return [*cutter.push(text), *cutter.finish()][:2]",
        ("tests/test_ming_tiny_outputs.py", "-k", "sentence"),
    ),
    Breakage(
        "weight",
        "ming/modeling_bailingmm.py",
        "super().save_pretrained(folder, is_main_process=is_main_process, **kwargs)",
        "super().save_pretrained(folder, is_main_process=is_main_process, "
        'state_dict={k: v for k, v in self.state_dict().items() if "linear_q_k_v" not in k}, **kwargs)',
        ("tests/test_weights.py",),
    ),
    Breakage(
        "joint",
        "audio_detokenizer/streaming.py",
        "return torch.cat([before[..., :hold], faded, after[..., hold + fade :]], dim=-1)",
        "return after",
        ("tests/test_audio_detokenizer_stream.py",),
    ),
    Breakage(
        "control tokens",
        "ming/messages.py",
        '{"type": "text", "text": mark_literals(item.text, pattern)}',
        '{"type": "text", "text": item.text}',
        ("tests/test_processor_chat.py",),
    ),
    Breakage(
        "transparency",
        "ming/media.py",
        'white = Image.new("RGB", image.size, "white")',
        'white = Image.new("RGB", image.size, "black")',
        ("tests/test_media_files.py",),
    ),
    Breakage(
        "private addresses",
        "ming/serving/fetch.py",
        "return address.is_global and not address.is_multicast",
        "return True",
        ("tests/test_serving_fetch.py",),
    ),
    Breakage(
        "consent",
        "ming/modeling_bailingmm.py",
        "if source.trust_remote_code and is_remote_code(cls):",
        "if source is not None:",
        ("tests/test_loading_routes.py", "-k", "consent"),
    ),
    Breakage(
        "seeds of a batch",
        "ming/randomness.py",
        "return [torch.Generator().manual_seed(int(value)) for value in seeds]",
        "return [torch.Generator().manual_seed(int(value) + row) for row, value in enumerate(seeds)]",
        ("tests/test_speech.py", "tests/test_drawing.py"),
    ),
    Breakage(
        "proportions",
        "image_gen/configuration_image_gen.py",
        "native = self._nearest(height / width)",
        "native = self._nearest(width / height)",
        ("tests/test_drawing.py",),
    ),
    Breakage(
        "padding of a batch",
        "ming/drawing.py",
        "            attention_mask=attention_mask,\n            position_ids",
        "            attention_mask=torch.ones_like(attention_mask),\n            position_ids",
        ("tests/test_drawing.py",),
    ),
)


def copy_repository(target: Path) -> None:
    """Copy the files that git knows, or would know."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")  # nosec B603
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def raise_if_gone(breakage: Breakage) -> None:
    """Raise a ValueError if the text to exchange does not stand in its file exactly once."""
    count = (ROOT / breakage.file).read_text(encoding="utf-8").count(breakage.right)
    if count != 1:
        raise ValueError(f"{breakage.name}: {breakage.right!r} stands {count} times in {breakage.file}, not once")


def is_noticed(breakage: Breakage, copy: Path) -> bool:
    """Whether the tests of a breakage fail in a copy of the repository that has it; the copy is mended afterwards.

    Raises:
        RuntimeError: the tests did not run.
    """
    path = copy / breakage.file
    right = path.read_text(encoding="utf-8")
    path.write_text(right.replace(breakage.right, breakage.wrong), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *breakage.tests]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)  # nosec B603
    path.write_text(right, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}"
        )
    return done.returncode == 1


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.breakages", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(each.name for each in BREAKAGES))
    args = parser.parse_args()
    if unknown := set(args.names) - {each.name for each in BREAKAGES}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    chosen = [each for each in BREAKAGES if not args.names or each.name in args.names]
    for breakage in chosen:
        raise_if_gone(breakage)
    missed = 0
    sys.stdout.write("| broken | file | tests | noticed |\n|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        copy_repository(Path(folder))
        for breakage in chosen:
            noticed = is_noticed(breakage, Path(folder))
            missed += not noticed
            result = "yes" if noticed else "**no**"
            sys.stdout.write(f"| {breakage.name} | {breakage.file} | {' '.join(breakage.tests)} | {result} |\n")
            sys.stdout.flush()
    raise SystemExit(missed > 0)


if __name__ == "__main__":
    main()
