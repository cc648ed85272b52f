"""Flags from the command line, from a YAML file, and from the run that is to go on."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
import yaml

T = TypeVar("T")
# What a resumed run may do otherwise and still end where the uninterrupted one does.
CHANGEABLE = {"checkpoint_every", "sample_every"}


@dataclass
class StartArgs:
    config: Path | None = None
    """a YAML file of flags by name, such as configs/openrl.yaml; flags given beside it win"""
    resume: Path | None = None
    """the folder of an unfinished run, which goes on from its last checkpoint with its own flags"""


def parse_args(cls: type[T], description: str, argv: Sequence[str] | None = None) -> tuple[T, Path | None]:
    """The script's arguments, and the run to go on with, if any.

    ``cls`` is a dataclass that inherits its fields from others, which are the groups of ``--help``: ``RewardArgs``
    gives "rewards options". Where `--config` or `--resume` is given, its values are the defaults of the other flags.

    Raises:
        SystemExit: a flag, or a key or value in the file, is wrong or contradicts the run; the message names it.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    start = _start_args(argv)
    if start.config and start.resume:
        raise SystemExit("--config and --resume contradict each other: a resumed run has its own flags")
    given: dict[str, Any] = {}
    if start.config:
        given = read_flags(cls, start.config, yaml.safe_load)
    elif start.resume:
        given = read_flags(cls, start.resume / "config.json", json.loads)

    groups = {
        base.__name__.removesuffix("Args").lower(): base
        for base in (StartArgs, *reversed(cls.__bases__))
        if is_dataclass(base)
    }
    grouped = make_dataclass("Grouped", [(name, group, field(default_factory=group)) for name, group in groups.items()])
    defaults = {
        name: group(**{f.name: given[f.name] for f in fields(group) if f.name in given})
        for name, group in groups.items()
    }
    parsed = tyro.cli(
        grouped, default=grouped(**defaults), description=description, args=argv, config=(tyro.conf.OmitArgPrefixes,)
    )
    values = {key: value for name in groups if name != "start" for key, value in vars(getattr(parsed, name)).items()}
    args = cls(**values)
    if start.resume:
        _refuse_changes(cls(**given), args, start.resume)
    return args, start.resume


def _start_args(argv: list[str]) -> StartArgs:
    """`--config` and `--resume` alone: the defaults of the other flags depend on them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for start in fields(StartArgs):
        parser.add_argument(f"--{start.name}", type=Path)
    return StartArgs(**vars(parser.parse_known_args(argv)[0]))


def _refuse_changes(run: Any, asked: Any, folder: Path) -> None:
    for key, value in asdict(run).items():
        if key not in CHANGEABLE and getattr(asked, key) != value:
            raise SystemExit(
                f"--{key.replace('_', '-')} {getattr(asked, key)} contradicts {folder}, which runs with {value}: leave "
                f"the flag out, or start a new run (only {', '.join(sorted(CHANGEABLE))} may change on the way)"
            )


def read_flags(cls: type, path: Path, parse: Any) -> dict[str, Any]:
    """Some fields of the dataclass ``cls`` from a YAML or JSON file, checked.

    Raises:
        SystemExit: the file can't be read, or has an unknown key or a value of another type than the field's.
    """
    try:
        values = parse(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SystemExit(f"cannot read flags from {path}: {error}") from error
    if not isinstance(values, dict):
        raise SystemExit(f"{path}: expected a flag and its value on each line, such as 'learning_rate: 1.0e-6'")
    hints = get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, 1, cutoff=0)
            raise SystemExit(f"{path}: unknown key {key!r}: did you mean {near[0]!r}?")
        values[key] = _converted(value, hints[key], f"{path}: {key}")
    return values


def _converted(value: Any, hint: Any, where: str) -> Any:
    """The value as the field's type wants it, or an error."""
    kinds = get_args(hint) if get_origin(hint) not in (None, Literal, list, tuple) else (hint,)
    for kind in kinds:
        if kind is NoneType and value is None:
            return value
        if get_origin(kind) is Literal and value in get_args(kind):
            return value
        if get_origin(kind) in (list, tuple) and isinstance(value, list):
            item = get_args(kind)[0]
            return get_origin(kind)(_converted(entry, item, where) for entry in value)
        if kind is float and not isinstance(value, bool):
            try:
                return float(value)  # also of a string: YAML takes 1e-6, without a point, for one
            except (TypeError, ValueError):
                continue
        if isinstance(kind, type) and type(value) is kind:  # not isinstance: True is an int
            return value
    expected = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")
    raise SystemExit(f"{where}: expected {expected}, got {value!r}")
