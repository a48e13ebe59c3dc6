"""Where a checkpoint was read from: what every later read of the same checkpoint needs, and how its files are copied.

A checkpoint is a directory or a Hub repository. Beside its main weights lie code (`ming/`, entry points, the code of
the components) and parts (voices, codec vocabulary, the weights of the components), which are read when they are first
needed and copied when the model is saved.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, create_repo, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers.utils import cached_file, logging
from transformers.utils.hub import extract_commit_hash

from .files import finish_saving, raise_if_outside

logger = logging.get_logger(__name__)

# Folders stay flat: the library uploads one level of them. `ming/__init__.py` and the nested packages belong to an
# installed package; a checkpoint needs neither.
CODE = ("*.py", "ming/[!_]*.py", "audio_detokenizer/*.py", "image_gen/*.py")
PARTS = ("talker/*", "codec_bpe/*", "voices/*", "audio_detokenizer/*", "image_gen/*")
COMPONENT_CONFIG = "config.json"
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class CheckpointSource:
    """How a checkpoint was asked for, in the words of `from_pretrained`.

    Args:
        name: a directory or a Hub id.
        revision: the commit on the Hub; None is the newest.
        cache_dir, token, local_files_only: as in `from_pretrained`.
        subfolder: of the repository, in which the checkpoint lies.
        trust_remote_code: whether the user agreed that code of this checkpoint is run. Without, parts are read by
            the classes of this package alone.
    """

    name: str
    revision: str | None = None
    cache_dir: str | os.PathLike | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    subfolder: str = ""
    trust_remote_code: bool = False

    @classmethod
    def of_call(cls, name: str | os.PathLike | None, options: dict[str, Any]) -> "CheckpointSource | None":
        """The source of a call `from_pretrained(name, **options)`; options of other kinds are passed over.

        Without a name there is none: the call brings configuration and weights as `config=` and `state_dict=`.
        """
        if name is None:
            return None
        known = {field.name for field in fields(cls)} - {"name"}
        given = {key: value for key, value in options.items() if key in known and value is not None}
        # The library resolves a branch to its commit once and hands on a string with both.
        revision = getattr(given.get("revision"), "resolved", None) or given.get("revision")
        name = os.path.abspath(name) if os.path.isdir(name) else str(name)  # the working directory may change
        return cls(name, **{**given, "revision": revision, "trust_remote_code": bool(given.get("trust_remote_code"))})

    def pinned(self) -> "CheckpointSource":
        """This source at the commit that its revision names now, so that what is read later is of the same state.

        Raises:
            OSError: there is no such repository or revision, or it cannot be reached and is not in the cache.
        """
        if os.path.isdir(self.name) or COMMIT.fullmatch(self.revision or ""):
            return self
        missing = {"_raise_exceptions_for_missing_entries": False}
        path = cached_file(self.name, COMPONENT_CONFIG, subfolder=self.subfolder, **missing, **self.options())
        return replace(self, revision=extract_commit_hash(path, None) or self.revision)

    def of_components(self, reference: Any) -> "CheckpointSource":
        """The source of the parts: this one, or the one that `components_from` of a configuration names.

        The configuration names a place and nothing else. Above all it says nothing about trust: the user agreed to
        run code of this checkpoint, not of the other one.

        Raises:
            ValueError: it is not what `reference` writes.
        """
        if reference is None:
            return self
        fields = {"revision": None, "subfolder": "", **reference} if isinstance(reference, dict) else {}
        kinds = {"name": (str,), "revision": (str, type(None)), "subfolder": (str,)}
        if fields.keys() != kinds.keys() or not all(isinstance(fields[name], kinds[name]) for name in kinds):
            raise ValueError(
                f"{self.name}: components_from in config.json is {reference!r}; it may hold the strings {list(kinds)}"
            )
        return replace(self, **fields, trust_remote_code=False)

    def reference(self) -> dict[str, Any]:
        """What another checkpoint's configuration says to find the parts here."""
        name = os.path.abspath(self.name) if os.path.isdir(self.name) else self.name
        return {"name": name, "revision": self.revision, "subfolder": self.subfolder}

    def options(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` and of the Hub's downloads that lead to the same repository state."""
        return {
            "revision": self.revision,
            "cache_dir": self.cache_dir,
            "token": self.token,
            "local_files_only": self.local_files_only,
        }

    def folder(self, name: str) -> str:
        """A folder of the checkpoint as `subfolder=` of the repository."""
        return f"{self.subfolder}/{name}" if self.subfolder else name

    def has_component(self, name: str) -> bool:
        """Whether the checkpoint holds a component, which is a folder with a configuration.

        Raises:
            ValueError: it is on the Hub, not in the cache, and the Hub cannot be reached.
        """
        if os.path.isdir(self.name):
            return (Path(self.name) / self.folder(name) / COMPONENT_CONFIG).is_file()
        try:
            hf_hub_download(self.name, f"{self.folder(name)}/{COMPONENT_CONFIG}", **self.options())
        except LocalEntryNotFoundError as error:
            raise ValueError(
                f"{self.name} has no folder {self.folder(name)}/ in the cache, and the Hub cannot be asked; "
                "download the repository first, or take one that has it"
            ) from error
        except EntryNotFoundError:
            return False
        return True

    def directory(self, patterns: Iterable[str]) -> Path:
        """A local directory with the files of the checkpoint that match the patterns, downloaded if need be."""
        if os.path.isdir(self.name):
            root = Path(self.name) / self.subfolder
            for folder in {root / pattern.rpartition("/")[0] for pattern in ("", *patterns)}:
                finish_saving(folder)
            return root
        allowed = [self.folder(pattern) for pattern in patterns]
        return Path(snapshot_download(self.name, allow_patterns=allowed, **self.options())) / self.subfolder

    def is_in(self, directory: str | os.PathLike) -> bool:
        """Whether this is the checkpoint in a local directory."""
        return os.path.isdir(self.name) and (Path(self.name) / self.subfolder).resolve() == Path(directory).resolve()

    def copy(self, patterns: Iterable[str], destination: str | os.PathLike, what: str) -> None:
        """Copy the matching files into a directory (into itself: nothing); `what` they are is for the log.

        A source that is gone is only a warning: the weights, perhaps days of training, are saved beside this. So is a
        link that leads out of the checkpoint: what is saved may be published, and the file may be anybody's.
        """
        patterns, target = tuple(patterns), Path(destination)
        try:
            root = self.directory(patterns)
        except (OSError, ValueError) as error:
            logger.warning(f"{target} is saved without {what}: {self.name} cannot be read any more ({error})")
            return
        if root.resolve() == target.resolve():
            return
        for path in {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}:
            try:
                raise_if_outside(path, files_root(root))
            except ValueError as error:
                logger.warning(f"{target} is saved without {path.relative_to(root)}: {error}")
                continue
            copied = target / path.relative_to(root)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copied)


def files_root(directory: str | os.PathLike) -> Path:
    """Where the files of a checkpoint may lie: in its directory, or in that of its repository in the Hub's cache.

    There, the files of `models--owner--name/snapshots/COMMIT` are links into `models--owner--name/blobs`.
    """
    root = Path(directory).resolve()
    return next((each.parent for each in root.parents if each.name == "snapshots"), root)


@contextmanager
def pushed_to_hub(directory: str | os.PathLike, push_to_hub: bool, options: dict[str, Any]) -> Iterator[None]:
    """Upload the files of a directory that are new or changed after the block, if `push_to_hub`.

    The library's own `save_pretrained(push_to_hub=True)` uploads before code and parts are there.

    Args:
        options: of `save_pretrained`; `repo_id`, `commit_message`, `create_pr` and `private` are taken out of it.
    """
    if not push_to_hub:
        yield
        return
    folder = Path(directory)
    token, message = options.get("token"), options.pop("commit_message", None) or "Upload model"
    create_pr, private = options.pop("create_pr", False), options.pop("private", None)
    repo_id = options.pop("repo_id", folder.name)
    repo_id = create_repo(repo_id, token=token, private=private, exist_ok=True).repo_id
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    yield
    changed = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and before.get(path) != path.stat().st_mtime_ns
    ]
    HfApi(token=token).upload_folder(
        repo_id=repo_id, folder_path=folder, allow_patterns=changed, commit_message=message, create_pr=create_pr
    )


__all__ = ["CODE", "PARTS", "CheckpointSource", "files_root", "pushed_to_hub"]
