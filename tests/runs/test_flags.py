"""Flags: from the command line, from a YAML file, and from the configuration of a run that is resumed."""

import importlib.util
import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pytest
from paths import ROOT

from dailydialog_gym.objects import import_object
from dailydialog_gym.runs.flags import parse_args

# tyro finds the docstrings of the flags only in the source of a module in sys.modules
spec = importlib.util.spec_from_file_location("ppo_dialog", ROOT / "ppo_dialog.py")
sys.modules["ppo_dialog"] = ppo_dialog = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ppo_dialog)


@dataclass
class ModelArgs:
    model: str = "builtin"
    """what to train"""
    critic: Literal["separate", "shared"] = "separate"
    """its critic"""
    labels: tuple[str, ...] | None = None
    """some words"""


@dataclass
class RunArgs:
    learning_rate: float = 1e-3
    """how fast"""
    num_envs: int = 8
    """how many"""
    track: bool = False
    """whether to"""
    run_name: str | None = None
    """where"""
    sample_every: int = 10
    """how often"""


@dataclass
class Args(RunArgs, ModelArgs):
    pass


def parse(*argv: str):
    return parse_args(Args, "description", argv)


# A list of lists of lists, each of which is nine times the same: printed, it has gigabytes
LAUGHS = "model:\n" + "".join(f"- &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]\n" for i in range(12))


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "flags.yaml").write_text(text, encoding="utf-8")
        return str(tmp_path / "flags.yaml")

    return write


@pytest.fixture
def run_folder(tmp_path) -> str:
    config = asdict(Args(learning_rate=0.5, run_name="run", labels=("a", "b")))
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(tmp_path)


def test_without_flags_the_defaults_hold():
    assert parse() == (Args(), None)


def test_a_file_sets_flags_and_flags_win(yaml_file):
    file = yaml_file("learning_rate: 1e-6\nnum_envs: 4\ntrack: true\ncritic: shared\nlabels: [a, b]\nrun_name: null\n")
    expected = Args(learning_rate=1e-6, num_envs=16, track=True, critic="shared", labels=("a", "b"))
    assert parse("--config", file, "--num-envs", "16") == (expected, None)
    assert parse(f"--config={file}", "--num-envs", "16", "--no-track")[0].track is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 0.1", "unknown key 'learning_rat': did you mean 'learning_rate'?"),
        ("learning-rate: 0.1", "unknown key 'learning-rate': did you mean 'learning_rate'?"),
        ("lr: 0.1", "unknown key 'lr': did you mean"),
        ("resume: runs/run", "unknown key 'resume'"),
        ("learning_rate: fast", "learning_rate: expected float, got 'fast'"),
        ("learning_rate: true", "learning_rate: expected float, got True"),
        ("num_envs: 8.5", "num_envs: expected int, got 8.5"),
        ("num_envs: true", "num_envs: expected int, got True"),
        ("track: 1", "track: expected bool, got 1"),
        ("model: no", "model: expected str, got False"),
        ("model: [a, b]", "model: expected str, got ['a', 'b']"),
        ("model: {a: b}", "model: expected str, got {'a': 'b'}"),
        ("run_name: off", "run_name: expected str | None, got False"),
        ("critic: none", "critic: expected Literal['separate', 'shared'], got 'none'"),
        ("labels: [a, no]", "labels: expected tuple[str, ...] | None, got ['a', False]"),
        ("- learning_rate", "expected a flag and its value on each line"),
        ("a: [", "cannot read flags from"),
        ("[" * 100_000, "cannot read flags from"),
        (LAUGHS, "model: expected str, got ["),
        (None, "cannot read flags from"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_in_one_place(yaml_file, tmp_path, capfd, text, message):
    file = str(tmp_path / "missing.yaml") if text is None else yaml_file(text)
    with pytest.raises(ValueError) as error:
        parse("--config", file)
    assert file in str(error.value)
    assert message in str(error.value)
    assert capfd.readouterr() == ("", "")  # tyro's own error message would come on top


@pytest.mark.parametrize(("text", "name"), [("run_name: 3", "3"), ("run_name: 2024-01-01", "2024-01-01")])
def test_a_number_or_a_date_is_also_a_name_as_on_the_command_line(yaml_file, text, name):
    assert parse("--config", yaml_file(text))[0].run_name == parse("--run-name", name)[0].run_name == name


def test_nan_is_no_number(yaml_file):
    for flags in (("--learning-rate", "nan"), ("--config", yaml_file("learning_rate: .nan"))):
        with pytest.raises(ValueError, match="--learning-rate nan: expected a finite number"):
            parse(*flags)


def test_a_resumed_run_has_its_own_flags(run_folder):
    args = Args(learning_rate=0.5, run_name="run", labels=("a", "b"))
    assert parse("--resume", run_folder) == (args, Path(run_folder))
    assert parse("--resume", run_folder, "--learning-rate", "0.5")[0] == args
    assert parse("--resume", run_folder, "--sample-every", "3")[0].sample_every == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--learning-rate", "0.1"), "--learning-rate 0.1 contradicts {run}, which runs with 0.5"),
        (("--run-name", "other"), "--run-name other contradicts {run}"),
        (("--config", "some.yaml"), "--config and --resume contradict each other"),
        (("--resume", "no-run"), "cannot read flags from no-run/config.json"),
    ],
)
def test_a_resumed_run_refuses_other_flags_and_a_folder_without_a_run(run_folder, flags, message):
    with pytest.raises(ValueError, match=re.escape(message.format(run=run_folder))):
        parse("--resume", run_folder, *flags)


def test_help_groups_the_flags(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        parse_args(ppo_dialog.Args, "What it does.", ["--help"])
    text = capsys.readouterr().out
    groups = re.split(r"(\w+) options \W", text)
    contents = dict(zip(groups[1::2], groups[2::2], strict=True))
    assert list(contents) == ["start", "model", "data", "reward", "ppo", "run"]
    for flag, group in {
        "--model": "model",
        "--dataset": "data",
        "--meteor-weight": "reward",
        "--learning-rate": "ppo",
        "--track": "run",
        "--config": "start",
        "--resume": "start",
    }.items():
        assert f"{flag} " in contents[group] or f"{flag}," in contents[group]
    assert "What it does." in text


@pytest.mark.parametrize("preset", sorted((ROOT / "configs").iterdir()), ids=lambda path: path.name)
def test_the_presets_are_valid(preset):
    args, _ = parse_args(ppo_dialog.Args, "", ["--config", str(preset)])
    assert args.dataset == "daily_dialog"
    assert args.model != "builtin"


def test_what_a_flag_names_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "a_module_of_mine.py").write_text("class Thing: pass", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert import_object("a_module_of_mine:Thing", "--flag").__name__ == "Thing"
    for path in ("a_module_of_mine:Other", "no_such_module:Thing", "json"):
        with pytest.raises(ValueError, match=rf"--flag '{path}': expected module:name \("):
            import_object(path, "--flag")
