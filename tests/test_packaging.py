"""The wheel is enough: it has the scripts and the commands, and a base installation says which extra is missing."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile

import pytest
from paths import ROOT

import dailydialog_gym

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPTS = ("ppo_dialog.py", "ppo_dialog_deepspeed.py", "chat_app.py")
NEED_TORCH = {
    **dict.fromkeys(("models", "agent", "evaluate", "runs", "recipes.sft", "rewards.intent", "rewards.kl"), "train"),
    "rewards.model": "train",
    "distributed": "deepspeed",
    "chat.page": "chat",
}


# Python code that hides a library.
HIDE = (
    "from importlib.machinery import PathFinder; find = PathFinder.find_spec\n"
    "PathFinder.find_spec = lambda name, *args: None if name.split('.')[0] == {!r} else find(name, *args)\n"
)


def test_without_torch_the_extra_is_named():
    code = HIDE.format("torch") + (
        "import importlib, dailydialog_gym, dailydialog_gym.wrappers.vector\n"
        f"for name in {[*NEED_TORCH]}:\n"
        "    try: importlib.import_module(f'dailydialog_gym.{name}')\n"
        "    except ModuleNotFoundError as error: print(name, error)\n"
        "from dailydialog_gym import commands\n"
        "for name in ('train', 'chat', 'evaluate'):\n"
        "    try: getattr(commands, name)()\n"
        "    except SystemExit as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    sentence = 'torch is not installed: pip install "dailydialog-gym[{}]"'
    expected = [f"{name} {sentence.format(extra)}" for name, extra in NEED_TORCH.items()]
    expected += [f"error: {sentence.format(extra)}" for extra in ("train", "chat", "train")]
    assert done.stdout.splitlines() == expected


def test_without_transformers_a_tokenizer_names_the_extra():
    code = HIDE.format("transformers") + "import dailydialog_gym.env as env; env.load_tokenizer('gpt2')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith('transformers is not installed: pip install "dailydialog-gym[train]"')


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The folder of an sdist, and of a wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.packaging
def test_the_distributions_are_valid_and_have_the_files_of_git(distributions):
    files = sorted(distributions.iterdir())
    assert [re.sub(r"\d[\d.]*\d", "VERSION", path.name) for path in files] == [
        "dailydialog_gym-VERSION-py3-none-any.whl",
        "dailydialog_gym-VERSION.tar.gz",
    ]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    with zipfile.ZipFile(files[0]) as wheel:
        names = set(wheel.namelist())
        for script in SCRIPTS:
            assert wheel.read(f"dailydialog_gym/scripts/{script}") == (ROOT / script).read_bytes()
        metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    listed = subprocess.run(["git", "ls-files", "dailydialog_gym"], cwd=ROOT, capture_output=True, text=True).stdout
    assert set(listed.split()) <= names
    assert f"License-Expression: {PROJECT['license']}" in metadata
    for file in PROJECT["license-files"]:
        assert f"License-File: {file}" in metadata


@pytest.mark.packaging
def test_the_wheel_alone_runs_the_three_commands(distributions, tiny_model, tiny_intent_model, tmp_path):
    """In a virtual environment with this one's libraries, but without the checkout."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    (packages,) = home.glob("lib/python*/site-packages")
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    wheel = next(distributions.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin/python"), "install", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--force-reinstall", "--ignore-installed", str(wheel)], check=True, capture_output=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(name, *flags, **kwargs):
        command = [str(home / "bin" / name), *flags]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, **kwargs)
        assert done.returncode == 0, done.stderr
        return done.stdout

    small = ["--num-envs=4", "--replies-per-prompt=2", "--num-minibatches=1", "--total-episodes=8", "--eval-samples=4"]
    models = ["--model", tiny_model, "--intent-model", tiny_intent_model]
    assert "meteor" in run("dailydialog-train", *small, *models, "--run-name=one").lower()
    assert (tmp_path / "runs/one/agent/model.safetensors").exists()
    assert (
        "meteor"
        in run("dailydialog-evaluate", "runs/one", "--samples=2", f"--intent-model={tiny_intent_model}").lower()
    )
    assert "> Agent: " in run("dailydialog-chat", "--agent=runs/one", "--terminal", input="Hi .\nquit\n")
    where = "import dailydialog_gym; print(dailydialog_gym.__file__)"
    assert run("python", "-c", where).startswith(str(home))


def test_the_changelog_begins_with_this_version_and_the_hooks_are_valid():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == dailydialog_gym.__version__
    command = [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"]
    subprocess.run(command, cwd=ROOT, check=True)
