"""Text files of released checkpoints, read as plain data without executing anything: HyperPyYAML and `am.mvn`."""

import os
import re
from pathlib import Path
from typing import Any

import yaml


class Reference(str):
    """The name inside `!ref <name>`."""


class PlainLoader(yaml.SafeLoader):
    """YAML whose tags build dicts, lists and strings only: nothing is imported, called or looked up."""


def construct_plain(loader: PlainLoader, tag: str, node: yaml.Node) -> Any:
    """The arguments of a tag; the tag itself is dropped, except that `!ref` becomes a `Reference`."""
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return Reference(node.value.strip("<>")) if tag == "ref" else node.value


PlainLoader.add_multi_constructor("!", construct_plain)
# PyYAML reads 1e-06 (no dot), as the released file writes it, as a string.
PlainLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+"), list("-+0123456789"))


def read_released_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """A HyperPyYAML file as plain data.

    `!new:`, `!name:` and `!apply:` only give their arguments; `!ref <name>` gives the value of a top-level name.

    Raises:
        ValueError: the file is not YAML or not a mapping, has other tags, or a reference names nothing.
    """
    try:
        # A SafeLoader, although it has another name.
        data = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=PlainLoader)  # nosec B506
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} does not hold names and values")
    return resolve_references(data, data, str(path))


def resolve_references(value: Any, names: dict[str, Any], path: str) -> Any:
    """`value` with every reference, at any depth, replaced by the value that it names."""
    if isinstance(value, dict):
        return {name: resolve_references(item, names, path) for name, item in value.items()}
    if isinstance(value, list):
        return [resolve_references(item, names, path) for item in value]
    if isinstance(value, Reference):
        if value not in names:
            raise ValueError(f"{path}: !ref <{value}> names nothing at the top of the file")
        return names[value]
    return value


def read_cmvn(path: str | os.PathLike) -> tuple[list[float], list[float]]:
    """Read the shift and scale vectors of a kaldi `am.mvn` text file: `(features + shift) * scale`.

    Returns:
        Two lists of D floats, for `cmvn_shift` and `cmvn_scale` of `BailingMMFeatureExtractor`.

    Raises:
        ValueError: the file holds no `<AddShift>` and `<Rescale>` vectors of equal length.
    """
    text = Path(path).read_text(encoding="utf-8")
    vectors = []
    for name in ("AddShift", "Rescale"):
        match = re.search(rf"<{name}>[^\[]*\[([^\]]*)\]", text)
        if match is None:
            raise ValueError(f"{path} has no <{name}> [ ... ] vector; expected is a kaldi am.mvn text file")
        vectors.append([float(value) for value in match.group(1).split()])
    shift, scale = vectors
    if len(shift) != len(scale):
        raise ValueError(f"{path}: {len(shift)} shifts do not match {len(scale)} scales")
    return shift, scale


__all__ = ["read_cmvn", "read_released_yaml"]
