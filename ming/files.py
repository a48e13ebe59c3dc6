"""Files of a checkpoint: written whole or not at all, also when the process is killed or the disk is full meanwhile,
and read from its own directory.

    with replacing("reply.json") as path:   # one file
        path.write_text("{}")
    with saving("model") as folder:         # files that belong together
        ...

`saving` gives a folder inside the directory to write into. At the end of the block the folder is renamed: from this
moment on the save counts, and its files are moved to their places. A process that is killed earlier leaves the
directory as it was. One that is killed while the files are moved leaves the rest of them in the renamed folder; all
that reads such a directory calls `finish_saving` first, which moves them.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

PARTIAL, DONE = ".saving", ".saved"  # the folder before and after its renaming
OUTDATED = ".outdated"  # in this folder: names of the files that the save replaces by others
WEIGHTS = re.compile(r"(?P<name>.+?)(-\d{5}-of-\d{5})?\.safetensors(\.index(?P<variant>\.[^.]+)?\.json)?")
# A full disk, a quota, a limit of the process, a directory that may not be written, a broken disk, a file in the way.
NOT_WRITTEN = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
}


class SavingError(OSError):
    """Something cannot be written; `reason` is the error behind it."""

    def __init__(self, path: str | os.PathLike, error: Exception):
        self.reason = getattr(error, "reason", error)
        super().__init__(
            f"cannot write {path}: {self.reason}. What was there before is unchanged; make room or allow writing, "
            "then save again, or save elsewhere"
        )


def raise_if_outside(path: str | os.PathLike, root: str | os.PathLike) -> None:
    """Refuse a path that leads out of the directory `root`, by its words or by links.

    Raises:
        ValueError: it does.
    """
    if not Path(path).resolve().is_relative_to(Path(root).resolve()):
        raise ValueError(f"{path} leads out of {root}; a file of a checkpoint lies in its directory")


def raise_if_shards_elsewhere(directory: str | os.PathLike) -> None:
    """Refuse an index of weights that names files outside its directory; what is no directory has none.

    Raises:
        ValueError: it does, or it is no index.
    """
    for path in sorted(Path(directory).glob("*.safetensors.index*.json")):
        index = json.loads(path.read_text(encoding="utf-8"))
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict):
            raise ValueError(f"{path} has no weight_map of tensors; take the index that came with the shards")
        for name in weight_map.values():
            # A backslash separates folders on other systems.
            if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
                raise ValueError(f"{path} names the file {name!r}; shards lie beside their index, not in a folder")


def prepare_reading(directory: str | os.PathLike, subfolder: str | None = None, config: Any = None) -> None:
    """What comes before weights are read from a directory: an interrupted save is finished, an index is checked.

    Args:
        directory, subfolder: as of `from_pretrained`; on the Hub there is nothing to do.
        config: what the caller has read already.

    Raises:
        OSError, ValueError: as of `finish_saving` and `raise_if_shards_elsewhere`; or the configuration may be older
            than the save that was just finished.
    """
    if finish_saving(directory, subfolder or "") and config is not None:
        raise ValueError(
            f"{directory}: an interrupted save was finished just now, after config.json had been read; load again"
        )
    raise_if_shards_elsewhere(Path(directory) / (subfolder or ""))


def is_write_error(error: Exception) -> bool:
    """Whether an exception says that the system did not write a file."""
    if isinstance(error, OSError):
        return isinstance(error, SavingError) or error.errno in NOT_WRITTEN
    # `safetensors` and `tokenizers` tell in words only, the latter by a bare Exception.
    return (type(error) is Exception or isinstance(error, SafetensorError)) and "(os error" in str(error)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A path beside `path`, with the same ending, whose file takes the place of `path` at the end of the block.

    What is no regular file, such as /dev/stdout, is written itself. A link stays a link.

    Raises:
        FileNotFoundError: its directory does not exist.
        SavingError: the file cannot be written; it is unchanged.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the directory {target.parent} does not exist; make it first")
    if target.exists() and not target.is_file():
        yield target
        return
    partial = target.with_name(f".{target.stem}{PARTIAL}-{os.getpid()}{target.suffix}")
    try:
        yield partial
        if target.exists():
            shutil.copymode(target, partial)
        partial.replace(target)
    except Exception as error:
        partial.unlink(missing_ok=True)
        if is_write_error(error):
            raise SavingError(path, error) from error
        raise
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def saving(directory: str | os.PathLike) -> Iterator[Path]:
    """A folder to write into, whose files all take their places in `directory` at the end of the block, or none does.

    Other files of the directory stay, but for weights of the same name in other shards. Meanwhile old and new files
    need room beside each other. One process at a time may save into a directory.

    Raises:
        SavingError: it cannot be written; it is unchanged.
    """
    target, made = Path(directory), []
    partial = target / PARTIAL
    try:
        finish_saving(target)
        made = [each for each in (target, *target.parents) if not each.exists()]
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        names = [str(path.relative_to(target)) for path in _outdated(partial, target)]
        (partial / OUTDATED).write_text("\n".join(names), encoding="utf-8")
        partial.rename(target / DONE)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for each in made:
            with suppress(OSError):  # somebody else put a file there
                each.rmdir()
        if isinstance(error, Exception) and is_write_error(error):
            raise SavingError(directory, error) from error
        raise
    finish_saving(target)


def finish_saving(directory: str | os.PathLike, subfolder: str = "") -> bool:
    """Move the files of a save that counts, but whose process was killed; returns whether there was one.

    Processes may do so at the same time.

    Args:
        directory: may be the name of a repository elsewhere; then there is nothing to do.
        subfolder: is looked into as well.

    Raises:
        OSError: the directory cannot be written; the message names the files that wait.
        ValueError: a file would leave the directory.
    """
    found = False
    for root in dict.fromkeys((Path(directory), Path(directory) / subfolder)):
        if not (root / DONE).is_dir():
            continue
        found = True
        try:
            _move(root / DONE, root)
        except OSError as error:
            raise OSError(
                f"{root / DONE} holds the files of a save that was interrupted, and they cannot be moved to {root}: "
                f"{error}. Make {root} writable and try again"
            ) from error
    return found


def _move(done: Path, target: Path) -> None:
    """Move all files of a folder to the same names below `target`, and remove the folder."""
    raise_if_outside(done, target)
    with suppress(FileNotFoundError):
        for name in (done / OUTDATED).read_text(encoding="utf-8").splitlines():
            raise_if_outside((target / name).parent, target)
            (target / name).unlink(missing_ok=True)
        (done / OUTDATED).unlink()  # at once: a file of such a name that comes later is not meant
    files = [path for path in done.rglob("*") if path.is_symlink() or not path.is_dir()]
    # Code first, then configurations: what reads a directory reads them before anything else.
    for path in sorted(files, key=lambda path: (path.suffix != ".py", path.suffix != ".json", path)):
        moved = target / path.relative_to(done)
        raise_if_outside(moved.parent, target)
        moved.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process was faster
            path.replace(moved)
    shutil.rmtree(done, ignore_errors=True)


def _outdated(partial: Path, target: Path) -> list[Path]:
    """Weights in `target` that the new ones replace under other names: one file by shards, or shards by others.

    The library prefers a single file to shards, so that an old one would be read instead of them.
    """
    found = []
    for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
        kept = target / folder.relative_to(partial)
        new = {path.name for path in folder.iterdir()}
        weights = {_weights_name(name) for name in new} - {None}
        old = sorted(kept.iterdir()) if kept.is_dir() else []
        found += [path for path in old if path.name not in new and _weights_name(path.name) in weights]
    return found


def _weights_name(file: str) -> str | None:
    """The name that the shards of a model and their index share: `model`, or `model.fp16` of a variant."""
    match = WEIGHTS.fullmatch(file)
    return match and match["name"] + (match["variant"] or "")


__all__ = [
    "DONE",
    "OUTDATED",
    "PARTIAL",
    "SavingError",
    "finish_saving",
    "prepare_reading",
    "raise_if_outside",
    "raise_if_shards_elsewhere",
    "replacing",
    "saving",
]
