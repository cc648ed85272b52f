"""What README and the pages in docs/ show works as it is written there, and what they list is what there is."""

import json
import re
import runpy
import shutil
import sys
import tomllib

import datasets
import numpy as np
import pytest
import yaml
from code_blocks import PAGES, blocks_of, write_files
from commands import parse
from paths import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dailydialog_gym
from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.runs import parse_args

README, PPO = ROOT / "README.md", ROOT / "docs/ppo.md"
OWN_MODULES = ("my_rewards", "my_metrics", "my_wrappers", "my_models")
BASH = [block for page in PAGES for block in blocks_of(page) if block.language == "bash"]
SMALL = ["--num-envs=4", "--replies-per-prompt=2", "--num-minibatches=1", "--total-episodes=8", "--eval-samples=4"]


@pytest.fixture
def train(tiny_model, tiny_intent_model, tmp_path, monkeypatch, no_curves):
    """Runs ppo_dialog.py on tiny models in an empty folder; returns the script's names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    models = ["--model", tiny_model, "--intent-model", tiny_intent_model]

    def train(*flags, script=ROOT / "ppo_dialog.py"):
        monkeypatch.setattr(sys, "argv", ["ppo_dialog.py", *SMALL, *models, *flags])
        return runpy.run_path(str(script), run_name="__main__")

    yield train
    forget_own_modules()


def forget_own_modules():
    for name in OWN_MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def finished_run(tiny_model, tiny_intent_model, tmp_path_factory):
    """The folder of a run, which pages call runs/NAME."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("finished")
        patch.chdir(folder)
        models = ["--model", tiny_model, "--intent-model", tiny_intent_model]
        patch.setattr(sys, "argv", ["ppo_dialog.py", *SMALL, *models, "--run-name=NAME"])
        runpy.run_path(str(ROOT / "ppo_dialog.py"), run_name="__main__")
    return folder / "runs/NAME"


@pytest.fixture
def readers_folder(finished_run, tmp_path, monkeypatch, no_curves):
    """What a reader of a page has around: a finished run, the repository, the files that the page says to save."""
    shutil.copytree(finished_run, tmp_path / "runs/NAME")
    for name in ("benchmarks", "configs", "constraints.txt", "dailydialog_gym"):
        (tmp_path / name).symlink_to(ROOT / name)
    for script in ROOT.glob("*.py"):
        (tmp_path / script.name).symlink_to(script)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield lambda page: write_files(page, tmp_path)
    forget_own_modules()


def test_every_block_is_of_a_kind_that_is_tested():
    blocks = [block for page in PAGES for block in blocks_of(page)]
    fences = sum(page.read_text(encoding="utf-8").count("\n```") for page in PAGES)
    assert fences == 2 * len(blocks)  # nothing escapes the pattern
    assert {block.language for block in blocks} == {"python", "bash", "json", "text", "bibtex"}
    assert not [str(block) for block in blocks if block.language == "python" and block.why_not_run]
    assert all(block.title for block in blocks if block.language == "json")  # a dataset, which commands train on


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_one_after_the_other(page, readers_folder):
    readers_folder(page)
    names = {}
    for block in blocks_of(page):
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), names)
    if page == README:
        assert names["info"]["response"] is not None
    if page.name == "your_own.md":
        envs = names["CutShare"](names["envs"])
        envs.reset(seed=0)
        done = False
        while not done:
            *_, terminated, truncated, infos = envs.step(np.full(64, envs.single_action_space.n - 1))
            done = (terminated | truncated).all()
        assert infos["reward/brevity"].shape == (64,) and infos["metric/cut_share"].tolist() == [1.0] * 64


def check_other(program, arguments):
    """Check a command that is no Python script of this repository."""
    if program == "pip":
        (extras,) = re.fullmatch(r"install -c constraints.txt -e \.\[([\w,]+)\]", " ".join(arguments)).groups()
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    elif program == "deepspeed":
        from deepspeed.launcher.runner import parse_args as parse_launcher

        launch = parse_launcher(arguments)
        assert launch.user_script == "ppo_dialog_deepspeed.py"
        parse_args(runpy.run_path(launch.user_script)["Args"], "", launch.user_args)
    elif program != "benchmarks/gpu.sh":  # tests/test_benchmarks.py runs it
        assert program in ("ruff", "mypy", "pytest", "mkdocs")


@pytest.mark.parametrize("block", BASH, ids=str)
def test_flags_of_commands_are_read_by_their_own_parsers(block, readers_folder, monkeypatch):
    readers_folder(block.page)
    for program, *arguments in block.commands:
        with monkeypatch.context() as patch:
            if program != "python":
                check_other(program, arguments)
            elif block.why_not_run:  # the others are read below, where they run
                parse(arguments, patch)


# How a command becomes a small one: its models are tiny, its replies few.
TINY = {
    ("ppo_dialog.py",): ["--model={model}", "--intent-model={intent}", "--run-name=small", *SMALL],
    ("-m", "dailydialog_gym.evaluate"): ["--intent-model={intent}", "--samples=2"],
    ("-m", "dailydialog_gym.recipes.pairs"): ["--dataset={dialogues}"],
    ("-m", "dailydialog_gym.recipes.reward"): ["--start={intent}", "--epochs=1", "--max-length=32"],
}


# Two dialogues of each split.
FEW = "".join(
    json.dumps({"split": split, "dialog": [f"Is it {word} ?", f"It is {word} .", "I see ."], "act": [2, 1, 1]}) + "\n"
    for split in ("train", "validation", "test")
    for word in (f"{split} tea", f"{split} rain")
)


@pytest.mark.parametrize("block", [block for block in BASH if not block.why_not_run], ids=str)
def test_commands_run_with_small_models(block, readers_folder, tiny_model, tiny_intent_model, tmp_path, monkeypatch):
    readers_folder(block.page)
    (tmp_path / "few.jsonl").write_text(FEW, encoding="utf-8")
    for program, *arguments in block.commands:
        if program != "python":
            continue
        (kind,) = (kind for kind in TINY if tuple(arguments[: len(kind)]) == kind)
        names = {"model": tiny_model, "intent": tiny_intent_model, "dialogues": tmp_path / "few.jsonl"}
        small = [flag.format(**names) for flag in TINY[kind]]
        if "--resume" in arguments:
            small = []  # a resumed run has its own flags
        monkeypatch.setattr(sys, "argv", [kind[-1], *arguments[len(kind) :], *small])
        if kind[0] == "-m":
            runpy.run_module(kind[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(kind[0], run_name="__main__")
            if small:
                assert (tmp_path / "runs/small/agent").is_dir()
                logged = json.loads((tmp_path / "runs/small/metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
                own = re.findall(r"--reward \S+:(\w+)=", " ".join(arguments))
                assert {f"reward/{name}" for name in own} <= logged.keys()
                shutil.rmtree(tmp_path / "runs/small")


@pytest.mark.parametrize("file", ["votes.jsonl", "pairs.jsonl.gz"])
def test_votes_and_pairs_have_the_columns_that_trl_reads(file, tmp_path):
    """``prompt``, ``chosen`` and ``rejected`` as texts: https://huggingface.co/docs/trl/dataset_formats#preference"""
    write_files(ROOT / "docs/rewards-from-votes.md", tmp_path)
    path = tmp_path / file if file == "votes.jsonl" else ASSETS / file
    pairs = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path))
    assert {pairs.features[name].dtype for name in ("prompt", "chosen", "rejected")} == {"string"}
    assert all(text.endswith("<EOU>") for text in pairs["chosen"])  # so that the policy learns to end its replies


def test_a_reward_and_metrics_of_the_users_own_are_logged(train, tmp_path, monkeypatch):
    """README's scorer, a scorer with the weight 0, and a wrapper in the script: metrics.jsonl and TensorBoard."""
    for page in (ROOT / "docs/your_own.md", README):
        write_files(page, tmp_path)
    lines = (ROOT / "ppo_dialog.py").read_text(encoding="utf-8").splitlines(keepends=True)
    (penalty,) = (i for i, line in enumerate(lines) if line.startswith("    envs = KLPenalty("))
    lines[penalty:penalty] = ["    from my_wrappers import CutShare\n", "    envs = CutShare(envs)\n"]
    (tmp_path / "own.py").write_text("".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    own = ("my_rewards:brevity=0.2", "my_metrics:question_share=0", "dailydialog_gym.rewards:Meteor=0.1")
    rewards = [word for each in own for word in ("--reward", each)]
    script = train("--replies-per-prompt=1", "--intent-model=builtin", *rewards, script=tmp_path / "own.py")
    rows = [
        json.loads(row) for row in (script["run"].folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    infos = script["batch"].infos
    assert rows[-1]["reward/brevity"] == pytest.approx(infos["reward/brevity"].mean())
    assert rows[-1]["reward/Meteor"] == pytest.approx(rows[-1]["reward/meteor"])
    asks = ["?" in response for response in infos["response"]]
    assert rows[-1]["reward/question_share"] == pytest.approx(np.mean(asks))
    lengths = script["batch"].reply_mask.sum(1).numpy()
    assert 0 < rows[-1]["metric/cut_share"] <= (lengths == script["T"]).mean()
    expected = (
        0.6 * infos["reward/meteor"]
        + script["args"].intent_weight * infos["reward/intent"]
        + 0.2 * infos["reward/brevity"]
    )
    expected -= infos["metric/kl_coef"] * infos["reward/kl"]
    np.testing.assert_allclose(infos["token_rewards"].sum(1), expected, atol=1e-9)
    events = EventAccumulator(str(script["run"].folder)).Reload()
    assert [event.step for event in events.Scalars("reward/brevity")] == [4, 8]
    assert events.Scalars("metric/cut_share")[-1].value == pytest.approx(rows[-1]["metric/cut_share"])
    assert events.Scalars("reward/brevity")[-1].value == pytest.approx(rows[-1]["reward/brevity"], rel=1e-6)


def test_every_logged_metric_is_defined_and_every_file_listed(finished_run):
    page = PPO.read_text(encoding="utf-8")
    logged = set(json.loads((finished_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])) - {
        "episodes"
    }
    rows = re.findall(r"^\| (`(?:charts|time|reward|metric|losses)/.*?) \|", page, re.MULTILINE)
    assert logged == set(re.findall(r"`(\w+/\w+)`", " ".join(rows)))
    rows = page.split("| file | content |")[1].split("\n\n")[0].splitlines()
    listed = {name for row in rows[2:] for name in re.findall(r"`(.*?)`", row.split("|")[1])}
    present = {path.name + "/" * path.is_dir() for path in finished_run.iterdir()}
    assert {re.sub(r"events\..*", "events.*", name) for name in present} == listed


def test_the_layout_has_the_two_commands_on_the_first_screen():
    first_screen = "\n".join(README.read_text(encoding="utf-8").splitlines()[:24])
    assert '-e ".[train]" && python ppo_dialog.py' in first_screen
    assert "&& ruff check . && ruff format --check . && mypy && pytest" in first_screen
    assert "mkdocs build --strict" in first_screen


def test_readme_is_short_and_its_links_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    targets = [target for target in re.findall(r"\]\((.*?)\)", text) if not target.startswith("http")]
    assert len(targets) > 10
    for file, _, anchor in (target.partition("#") for target in targets):
        assert (ROOT / file).exists(), file
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], anchor


def test_the_table_of_flags_has_the_defaults_of_the_script():
    script = ROOT / "ppo_dialog.py"
    defaults = vars(runpy.run_path(str(script))["Args"]())
    defaults["kl_target"] = float(re.search(r'"openrl": ([\d.]+)', script.read_text(encoding="utf-8"))[1])
    rows = re.findall(r"^\| (`--.*?) \| (.*?) \|", (ROOT / "docs/ppo.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 8
    for flags, values in rows:
        found = [defaults[flag.replace("-", "_")] for flag in re.findall(r"`--([\w-]+)`", flags)]
        assert [
            type(default)(value.replace(",", "")) for default, value in zip(found, values.split(", "), strict=True)
        ] == found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_functions_that_a_page_names_exist(page):
    for path, name in re.findall(r"`([\w/]+\.(?:py|yaml|ipynb))(?:::(\w+))?`", page.read_text(encoding="utf-8")):
        file = ROOT / path
        assert file.exists() or any((folder / path).exists() for folder in (ROOT / "docs", ROOT / "benchmarks")), path
        assert not name or re.search(rf"^(?:def|class) {name}\b", file.read_text(encoding="utf-8"), re.MULTILINE), (
            path,
            name,
        )


def test_readmes_file_tree_is_the_repositorys():
    (tree,) = (block.text for block in blocks_of(README) if "chat_app.py  " in block.text)
    folder, listed = "", []
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        listed.append((folder if indent else "") + name)
        folder = folder if indent else name
    assert not [name for name in listed if not (ROOT / name).exists()]
    rooms = {f"dailydialog_gym/{init.parent.name}/" for init in ROOT.glob("dailydialog_gym/*/__init__.py")}
    assert rooms <= set(listed)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == dailydialog_gym.__version__
    assert f"version = {{{dailydialog_gym.__version__}}}" in README.read_text(encoding="utf-8")
