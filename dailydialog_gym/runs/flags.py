"""Flags from the command line, from a YAML file, and from the configuration of a run that is resumed."""

from __future__ import annotations

import difflib
import json
import reprlib
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass, make_dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import transformers
import tyro
import yaml

from dailydialog_gym.errors import MISTAKES, print_any_character, report_in_one_line
from dailydialog_gym.files import read_text
from dailydialog_gym.ranges import check_numbers

T = TypeVar("T")
# The flags that may change when a run is resumed, because they do not influence its result
CHANGEABLE = {"checkpoint_every", "keep_checkpoints", "resume_anyway", "sample_every"}


@dataclass
class StartArgs:
    config: Path | None = None
    """a YAML file of flags by name, such as configs/openrl.yaml; the command line overrides it and adds rewards"""
    resume: Path | None = None
    """the folder of an unfinished run, which continues from its last checkpoint with its own flags"""
    traceback: bool = False
    """show where an error occurred, instead of one line"""


def parse_args(cls: type[T], description: str, argv: Sequence[str] | None = None) -> tuple[T, Path | None]:
    """Parse the command line of a training script. With --config or --resume, the file's values are the defaults.

    transformers' progress bars are switched off, since a run shows its own, and standard output escapes the characters
    that its encoding lacks. One of `dailydialog_gym.errors.MISTAKES` until `Run.start`, and then an OSError, that
    nobody catches is a mistake of the user, which ends the script in one line, or with --traceback in a traceback.

    Args:
        cls: a dataclass whose base classes are the groups of ``--help``: ``RewardArgs`` becomes "reward options".
        description: the text at the top of ``--help``.
        argv: the command line without the program, by default ``sys.argv[1:]``.

    Returns: the arguments, and the folder of the run to resume, or None.

    Raises:
        ValueError: a flag is wrong, a key or value of the file is wrong, or a flag contradicts the resumed run. The
            message names it.
    """
    transformers.utils.logging.disable_progress_bar()
    print_any_character()
    argv = sys.argv[1:] if argv is None else list(argv)
    # The defaults of the other flags depend on these
    start, _ = tyro.cli(StartArgs, args=argv, add_help=False, return_unknown_args=True)
    sys.excepthook = sys.__excepthook__
    if not start.traceback:
        report_in_one_line(*MISTAKES)
    if start.config and start.resume:
        raise ValueError("--config and --resume contradict each other: a resumed run keeps its own flags")
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
    check_numbers(args)
    if start.resume:
        _refuse_changes(cls(**given), args, start.resume)
    return args, start.resume


def _refuse_changes(run: Any, asked: Any, folder: Path) -> None:
    for key, value in asdict(run).items():
        if key not in CHANGEABLE and getattr(asked, key) != value:
            raise ValueError(
                f"--{key.replace('_', '-')} {getattr(asked, key)} contradicts {folder}, which runs with {value}: leave "
                f"the flag out, or start a new run (a resumed run may change only {', '.join(sorted(CHANGEABLE))})"
            )


def read_flags(cls: type, path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Read fields of the dataclass ``cls`` from a YAML or JSON file.

    Raises:
        ValueError: the file can't be read, a key is not a field, or a value does not have the field's type.
    """
    try:
        values = parse(read_text(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read flags from {path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a flag and its value on each line, such as 'learning_rate: 1.0e-6'")
    hints = get_type_hints(cls)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, 1, cutoff=0)
            raise ValueError(f"{path}: unknown key {key!r}: did you mean {near[0]!r}?")
    return {key: _parse_value(value, hints[key], f"{path}: {key}") for key, value in values.items()}


def _parse_value(value: Any, hint: Any, where: str) -> Any:
    """A value of a file, parsed by tyro as if it were given on the command line."""
    words = value if isinstance(value, list) else [value]
    # YAML reads the words no, off and yes as booleans; only a flag without a value is one
    if hint is bool or not any(isinstance(word, (bool, list, dict)) for word in words):
        with redirect_stderr(StringIO()), suppress(SystemExit):
            return tyro.cli(hint, args=[str(word) for word in words], add_help=False)
    expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    raise ValueError(f"{where}: expected {expected}, got {reprlib.repr(value)}")
