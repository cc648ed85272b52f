"""What the training recipes share: resuming after a kill, flags, and what has to be installed."""

import ast
import gzip
import json
import os
import re
import runpy
import shutil
import signal
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
import torch
from paths import ROOT
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dailydialog_gym.agent import find_agent_folder
from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.recipes import distill, intent, pairs, reward, sft
from dailydialog_gym.recipes.training import Training, TrainingArgs, check_flags, read_rows, read_unlabelled

RECIPES = {"sft": sft, "intent": intent}
SIZES = {"vocab_size": 400, "layers": 1, "width": 64, "epochs": 2, "warmup_steps": 10, "batch_tokens": 4096}
TOYS = {"sft": {**SIZES, "context": 64}, "intent": {**SIZES, "soft_weight": 0.0}}


def args_of(recipe, out, dataset, **flags):
    return RECIPES[recipe].Args(**{"out": out, "dataset": dataset, **TOYS[recipe], **flags})


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_equal_runs(one, two):
    assert metrics(one) == metrics(two)
    weights, others = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture(scope="module", params=RECIPES)
def run(request, dataset, tmp_path_factory):
    """A recipe, and the folder of its run."""
    out = tmp_path_factory.mktemp(request.param) / "out"
    RECIPES[request.param].main(args_of(request.param, out, dataset))
    return request.param, out


def test_a_killed_run_resumes_as_if_it_had_not_been_killed(run, server, dataset, tmp_path):
    (recipe, whole), out = run, tmp_path / "out"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TOYS[recipe].items()]
    command = ["-m", f"dailydialog_gym.recipes.{recipe}", f"--out={out}", f"--dataset={dataset}"]
    process = server.start(tmp_path, *command, *flags)
    server.wait_until((out / "training_state.pt").exists, "state of the first epoch")
    os.kill(process, signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    RECIPES[recipe].main(args_of(recipe, out, dataset))
    assert_equal_runs(whole, out)
    loss = {"sft": "bits_per_character", "intent": "validation nll"}[recipe]
    assert metrics(whole)[1][loss] < metrics(whole)[0][loss]


class Killed(Exception):  # noqa: N818
    """Ends a run within an epoch."""


def test_a_run_resumes_within_an_epoch(run, dataset, tmp_path, monkeypatch):
    recipe, whole = run
    update, count = Training.update, 0

    def update_three_times(*args, **losses):
        nonlocal count
        if count == 3:
            raise Killed
        count += 1
        update(*args, **losses)

    monkeypatch.setattr(Training, "update", update_three_times)
    with pytest.raises(Killed):
        RECIPES[recipe].main(args_of(recipe, tmp_path, dataset, checkpoint_minutes=0))
    assert not (tmp_path / "metrics.jsonl").exists()
    monkeypatch.setattr(Training, "update", update)
    RECIPES[recipe].main(args_of(recipe, tmp_path, dataset))
    steps = [torch.load(out / "training_state.pt")["scheduler"]["last_epoch"] for out in (whole, tmp_path)]
    assert steps[0] == steps[1]
    assert_equal_runs(whole, tmp_path)


def test_a_kill_before_the_metrics_are_written_loses_no_epoch(run, dataset):
    recipe, out = run
    before = (out / "metrics.jsonl").read_text(encoding="utf-8")
    (out / "metrics.jsonl").write_text(before.splitlines(keepends=True)[0], encoding="utf-8")
    RECIPES[recipe].main(args_of(recipe, out, dataset))
    assert (out / "metrics.jsonl").read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        ("sft", {"seed": 2}, "--seed is 2, but 1 in the run"),
        ("sft", {"epochs": 3}, "--epochs is 3, but 2 in the run"),
        ("sft", {"vocab_size": 300}, "--vocab-size is 300, but 400 in the run"),
        ("sft", {"start": "builtin"}, '--start is ".*", but null in the run'),
        ("intent", {"seed": 2}, "--seed is 2, but 1 in the run"),
        ("intent", {"teachers": ("a", "b")}, r'--teachers is \["a", "b"\], but \["a"\] in the run'),
        ("intent", {"unlabelled": ASSETS}, '--unlabelled is ".*", but null in the run'),
        ("intent", {"policy_replies": 9}, "--policy-replies is 9, but 0 in the run"),
        ("intent", {"max_new_tokens": 9}, "--max-new-tokens is 9, but 20 in the run"),
    ],
)
def test_a_run_is_not_resumed_with_other_flags(recipe, flags, message, dataset, tmp_path):
    own = {"teachers": ("a",)} if recipe == "intent" else {}
    check_flags(args_of(recipe, tmp_path, dataset, **own))
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(ValueError, match=message):
        RECIPES[recipe].main(args_of(recipe, tmp_path, dataset, **{**own, **flags}))
    check_flags(args_of(recipe, tmp_path, dataset, **own))


def test_a_finished_run_can_be_scored_on_the_test_split_later(dataset, tmp_path):
    check_flags(args_of("intent", tmp_path, dataset))
    (tmp_path / "tokenizer.json").touch()
    check_flags(args_of("intent", tmp_path, dataset, test=True))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("Chapter 1", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{tmp_path} holds files, but no flags.json of a run: choose another --out"):
        sft.main(sft.Args(out=tmp_path))


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        ("sft", ["--dataset=builtin", "--pretraining=none.jsonl"], "error: .*none.jsonl'"),
        ("intent", ["--policy-replies=3"], "error: --unlabelled and --policy-replies need --teachers, .*"),
        ("reward", ["--pairs=none.jsonl"], "error: .*none.jsonl'"),
        ("synonyms", ["--wordnet=nowhere"], "error: --wordnet nowhere is not a folder: .*"),
    ],
)
def test_bad_input_gets_one_line(recipe, flags, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [recipe, f"--out={tmp_path}/out", *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / f"dailydialog_gym/recipes/{recipe}.py"), run_name="__main__")
    assert re.fullmatch(message, ended.value.code)  # Python prints it and ends with the code 1


def test_unlabelled_dialogues_get_the_spacing_of_the_dataset_and_a_bad_line_is_named(tmp_path):
    file = tmp_path / "dialogues.jsonl.gz"
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        lines.write('{"dialog": ["Hello!", "Don\'t go."]}\n' * 20)
    assert read_unlabelled(file, "spaced") == [["Hello !", "Don't go ."]] * 20
    assert read_unlabelled(file, "ordinary") == [["Hello!", "Don't go."]] * 20
    with gzip.open(file, "at", encoding="utf-8") as lines:
        lines.write('{"text": "Hello"}\n')
    with pytest.raises(ValueError, match=r"dialogues.jsonl.gz, line 21: expected {\"dialog\""):
        read_unlabelled(file, "spaced")


def test_unlabelled_dialogues_without_utterances_are_left_out_and_counted(tmp_path, capsys):
    file = tmp_path / "dialogues.jsonl"
    file.write_text('{"dialog": []}\n{"dialog": ["Hello!"]}\n', encoding="utf-8")
    assert read_unlabelled(file, "ordinary") == [["Hello!"]]
    assert capsys.readouterr().err == f"{file}: 1 of 2 dialogues left out because they have no utterances\n"


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "dailydialog_gym" / "recipes").glob("*.py")), ids=lambda path: path.stem
)
def test_all_that_a_recipe_imports_is_installed_by_its_extras(recipe):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = {"sft": ("train", "lora"), "smollm2": ("train", "lora", "smollm2")}.get(recipe.stem, ("train",))
    requirements = project["dependencies"] + [text for extra in own for text in project["optional-dependencies"][extra]]
    declared = {re.match(r"[\w.-]+", text)[0].lower().replace("_", "-") for text in requirements}
    imported = set()
    for node in ast.walk(ast.parse(recipe.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    of_module = packages_distributions()
    for module in imported - sys.stdlib_module_names - {"dailydialog_gym"}:
        assert {name.lower().replace("_", "-") for name in of_module[module]} <= declared, module


ROWS = '{"dialog": ["Hi ."]}\n'
NO_ROWS = {
    "no JSON": ("rows.jsonl", b"{\n", r"rows.jsonl, line 1: expected a dialogue, got '{"),
    "deep": ("rows.jsonl", b"[" * 100_000, "line 1: expected a dialogue"),
    "no UTF-8": ("rows.jsonl", ROWS.encode() + "é".encode("latin-1"), "line 2: expected UTF-8 text, got byte 0xe9"),
    "no gzip": ("rows.jsonl.gz", ROWS.encode(), "rows.jsonl.gz is not a whole gzip file"),
    "half a gzip": ("rows.jsonl.gz", gzip.compress(ROWS.encode() * 99)[:-9], "rows.jsonl.gz is not a whole gzip file"),
    "a folder": ("rows.jsonl", None, "rows.jsonl is a folder: expected a file"),
}


@pytest.mark.parametrize("kind", NO_ROWS)
def test_a_file_without_rows_is_named(tmp_path, kind):
    name, content, message = NO_ROWS[kind]
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name, lambda row: row["dialog"], "a dialogue")


@pytest.mark.parametrize("content", [b"", b"no state", gzip.compress(b"1", mtime=0)], ids=["empty", "text", "gzip"])
def test_a_damaged_state_is_named(tmp_path, content):
    (tmp_path / "training_state.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot resume from .*training_state.pt: remove it to begin anew"):
        Training(TrainingArgs(tmp_path), torch.nn.Linear(1, 1), [1], lambda share: 1.0)


def test_every_parameter_is_trained_and_weight_decay_is_for_matrices(tmp_path):
    model = torch.nn.Module()
    for name, shape in ("scalar", ()), ("vector", (2,)), ("matrix", (2, 2)):
        model.register_parameter(name, torch.nn.Parameter(torch.ones(shape)))
    training = Training(TrainingArgs(tmp_path), model, [1], lambda share: 1.0)
    decays = {p: group["weight_decay"] for group in training.optimizer.param_groups for p in group["params"]}
    assert {name: decays.get(p) for name, p in model.named_parameters()} == {"scalar": 0, "vector": 0, "matrix": 0.1}


@pytest.mark.parametrize("text", ["", "[1]", "3", "{"])
def test_damaged_flags_are_named(tmp_path, text):
    (tmp_path / "flags.json").write_text(text, encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot read .*flags.json: expected the flags of a run"):
        check_flags(TrainingArgs(tmp_path))


@pytest.mark.parametrize("name", ["dataset", "start"])
def test_a_run_is_not_resumed_with_other_dialogues_or_another_model(name, own, tiny_model, tmp_path):
    """It would return the model of the old ones, or train on what it then holds out."""
    start = shutil.copytree(tiny_model, tmp_path / "model")
    flags = {"context": 64, "epochs": 1, "batch_tokens": 512}
    args = sft.Args(tmp_path / "out", dataset=own, start=str(start), **flags)
    sft.main(args)
    sft.main(args)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    if name == "dataset":
        with open(own, "a", encoding="utf-8") as file:
            file.write(json.dumps({"dialog": ["Something new .", "Yes ."]}))
    else:
        model = AutoModelForCausalLM.from_pretrained(start)
        model.get_input_embeddings().weight.data[0] += 1
        model.save_pretrained(start)
    with pytest.raises(ValueError, match=f"what --{name} names is no longer what it was when the run in .*out began"):
        sft.main(args)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_votes_that_were_added_are_not_held_out_of_what_was_trained_on(tmp_path):
    rows = [{"prompt": f"{i} ? <EOU>", "chosen": " Yes . <EOU>", "rejected": " No . <EOU>"} for i in range(30)]
    file = tmp_path / "votes.jsonl"
    file.write_text("\n".join(map(json.dumps, rows[:20])), encoding="utf-8")
    args = reward.Args(tmp_path / "out", pairs=(str(file),), epochs=1, max_length=32)
    reward.main(args)
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(ValueError, match="what --pairs names is no longer what it was"):
        reward.main(args)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_width_that_is_no_multiple_of_a_head_is_refused(recipe, tmp_path, dataset):
    with pytest.raises(ValueError, match="--width 100: expected a multiple of 64"):
        RECIPES[recipe].main(args_of(recipe, tmp_path / "out", dataset, width=100))


def test_a_training_that_never_improves_is_an_error(tmp_path, dataset):
    """Otherwise it would name a folder without a model as its result."""
    args = args_of("sft", tmp_path / "out", dataset, learning_rate=1e30, warmup_steps=1, epochs=1)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"no validation score of 1 epoch\(s\) was a number, so no model was saved"
        ):
            sft.main(args)


@pytest.fixture
def own(tmp_path):
    """A dataset without splits."""
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"dialog": [f"{i} ?", f"{i} ."]}) + "\n" for i in range(40)), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("recipe", [sft, intent, distill, pairs])
def test_every_recipe_holds_out_the_share_that_it_is_told(recipe, own, tmp_path):
    """Or a model could be fine-tuned on the test dialogues of the run that goes on from it."""
    required = {"teacher": "builtin", "max_new_tokens": 100} if recipe is distill else {}
    with pytest.raises(ValueError, match=r"test_share must be .* below 0.5, got 0.7"):
        recipe.main(recipe.Args(out=tmp_path / "out", dataset=own, test_share=0.7, **required))


def test_a_fine_tuned_model_records_the_share_that_was_held_out(own, tmp_path):
    sft.main(sft.Args(tmp_path / "out", dataset=own, test_share=0.2, **{**TOYS["sft"], "vocab_size": 300}))
    _, record = find_agent_folder(str(tmp_path / "out"))
    assert (record.dataset, record.test_share) == (own, 0.2)
