"""The wheel is enough: it has the scripts and the commands, and a base installation says which extra is missing."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile

import pytest
from packaging.requirements import Requirement
from paths import ROOT

import dailydialog_gym
from dailydialog_gym import commands
from dailydialog_gym.env import load_dialogues
from dailydialog_gym.recipes import sft, smollm2
from dailydialog_gym.runs import Run, RunArgs

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPTS = ("ppo_dialog.py", "ppo_dialog_deepspeed.py", "chat_app.py")
# By what is imported or run: the extra that it needs, and the libraries that are missed before torch is imported
NEEDED = {
    "import dailydialog_gym.models": ("train", "torch transformers"),
    "import dailydialog_gym.agent": ("train", "torch transformers"),
    "import dailydialog_gym.rewards.intent": ("train", "torch transformers"),
    "import dailydialog_gym.rewards.kl": ("train", "torch transformers"),
    "import dailydialog_gym.rewards.model": ("train", "torch transformers"),
    "import dailydialog_gym.evaluate": ("train", "torch transformers tyro datasets evaluate rouge_score sacrebleu"),
    "import dailydialog_gym.runs": ("train", "torch transformers tyro filelock matplotlib tensorboard tqdm yaml"),
    "import dailydialog_gym.recipes.sft": ("train", "torch transformers tyro filelock scipy sklearn tqdm yaml"),
    "import dailydialog_gym.distributed": ("deepspeed", "torch transformers deepspeed"),
    "import dailydialog_gym.chat.page": ("chat", "torch transformers gradio matplotlib tyro"),
    "import ppo_dialog": ("train", "torch transformers tyro filelock matplotlib tensorboard tqdm yaml"),
    "import ppo_dialog_deepspeed": ("train", "torch transformers tyro filelock matplotlib tensorboard tqdm yaml"),
    "import chat_app": ("chat", "torch transformers gradio matplotlib tyro"),
    "dailydialog_gym.commands.train()": ("train", "torch tyro"),
    "dailydialog_gym.commands.chat()": ("chat", "torch gradio"),
    "dailydialog_gym.commands.evaluate()": ("train", "torch evaluate"),
    "dailydialog_gym.env.load_tokenizer('gpt2')": ("train", "transformers"),
    "dailydialog_gym.env.load_dialogues('daily_dialog', 'train')": ("train", "datasets"),
}
# Libraries that a function imports when it is called, and the extra that it names
LATER = {"wandb": "train", "peft": "lora", "gguf": "smollm2", "accelerate": "smollm2", "datasets": "train"}
MODULES = {"pyyaml": "yaml", "scikit-learn": "sklearn"}  # where the name of a distribution is another one
# Hides one library after the other, and prints the errors
HIDE = """
import sys
from importlib.machinery import PathFinder
import dailydialog_gym.commands, dailydialog_gym.env
find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(lambda module, *args: None if module == name else find(module, *args))
for statement, (_, names) in eval(sys.argv[1]).items():
    for name in names.split():
        found = {name: sys.modules.pop(name)} if name in sys.modules else {}
        try:
            exec(statement)
        except (ModuleNotFoundError, SystemExit) as error:
            print(error)
        sys.modules |= found
assert "torch" not in sys.modules
"""


def test_without_a_library_the_extra_is_named():
    command = [sys.executable, "-c", HIDE, repr(NEEDED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = [
        f'{"error: " * ("commands" in statement)}{name} is not installed: pip install "dailydialog-gym[{extra}]"'
        for statement, (extra, names) in NEEDED.items()
        for name in names.split()
    ]
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("name", LATER)
def test_a_library_that_is_imported_later_is_named_too(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ModuleNotFoundError, match=rf'{name} is not installed: pip install "dailydialog-gym\[{LATER[name]}\]"'
    ):
        if name == "wandb":
            Run(RunArgs(track=True), total_episodes=1)
        elif name == "peft":
            sft.add_lora(None, 1, 0)
        elif name == "datasets":
            (tmp_path / "rows.parquet").write_bytes(b"")
            load_dialogues(str(tmp_path / "rows.parquet"), "train")
        else:
            smollm2.main(smollm2.Args(out=tmp_path / "out"))


def test_every_library_of_an_extra_is_named():
    named = {(extra, name) for extra, names in NEEDED.values() for name in names.split()}
    named |= {(extra, name) for name, extra in LATER.items()}
    for extra in ("train", "chat", "deepspeed", "lora", "smollm2"):
        for text in PROJECT["optional-dependencies"][extra]:
            name = Requirement(text).name
            assert name == "dailydialog-gym" or (extra, MODULES.get(name, name)) in named, text


def test_a_script_runs_as_main_under_the_name_of_its_command(tmp_path, monkeypatch, capsys):
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint(__name__, sys.modules['__main__'].sys.argv)\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/dailydialog-train", "--help"])
    monkeypatch.setitem(sys.modules, "__main__", None)
    commands._run(script, "dailydialog_gym.env")
    assert capsys.readouterr().out == "__main__ ['dailydialog-train', '--help']\n"


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
