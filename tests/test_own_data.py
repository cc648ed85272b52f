"""From a file of dialogues to an agent that is evaluated and talked to, by the scripts."""

import json
import runpy
import sys
from dataclasses import replace

import datasets
import pytest
from code_blocks import blocks_of, write_files
from paths import ROOT

from dailydialog_gym.agent import AgentRecord, DialogueAgent, find_agent_folder
from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.evaluate import __main__ as evaluate
from dailydialog_gym.text import join_punctuation


@pytest.fixture
def train(tmp_path, tiny_model, monkeypatch, no_curves):
    """Runs ppo_dialog.py with a tiny model in an empty folder, and returns the run's folder."""
    monkeypatch.chdir(tmp_path)

    def train(*flags, model=tiny_model):
        small = ["--num-envs=8", "--total-episodes=16", "--replies-per-prompt=4", "--num-minibatches=2"]
        small += ["--eval-samples=4", "--run-name=mine", "--max-new-tokens=8", "--model", model]
        monkeypatch.setattr(sys, "argv", ["ppo_dialog.py", *small, *flags])
        runpy.run_path(str(ROOT / "ppo_dialog.py"), run_name="__main__")
        return tmp_path / "runs/mine"

    return train


def chats(count=40):
    """Dialogues in ordinary English."""
    dialogues = load_dialogues("builtin", "train")[:count]
    return [[join_punctuation(text) for text in dialogue.utterances] for dialogue in dialogues]


def messages(chat):
    said = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(chat)]
    return {"messages": [{"role": "system", "content": "Be brief."}, *said]}


def write_lines(folder):
    file = folder / "chats.jsonl"
    file.write_text("".join(json.dumps({"dialog": chat}) + "\n" for chat in chats()), encoding="utf-8")
    return file


def write_parquet(folder):
    datasets.Dataset.from_list([messages(chat) for chat in chats()]).to_parquet(folder / "chats.parquet")
    return folder / "chats.parquet"


def write_clone(folder):
    """The folder of a hub dataset, with shards and without a validation split."""
    clone = folder / "clone"
    (clone / "data").mkdir(parents=True)
    (clone / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    rows = [messages(chat) for chat in chats()]
    for name, part in {
        "train-00000-of-00002": rows[:20],
        "train-00001-of-00002": rows[20:35],
        "test": rows[35:],
    }.items():
        datasets.Dataset.from_list(part).to_parquet(clone / f"data/{name}.parquet")
    return clone


def test_the_page_shows_what_is_printed_about_its_chats(tmp_path, monkeypatch, capsys):
    page = ROOT / "docs/your-own-data.md"
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    load_dialogues("my_chats.jsonl", "train")
    (shown,) = (block.text for block in blocks_of(page) if block.language == "text")
    assert capsys.readouterr().err.split() == shown.split()


@pytest.mark.parametrize("write", [write_lines, write_parquet, write_clone])
def test_dialogues_without_acts_and_splits_train_an_agent(train, tmp_path, write, capsys):
    source = write(tmp_path)
    run = train("--dataset", str(source))
    output, notes = capsys.readouterr()
    assert notes.count(f"{source}, train: ") == notes.count(f"{source}, test: ") == 1
    assert "; no intent reward, because the dialogues have no acts" in output and "ordinary text" in output
    assert "| METEOR" in output and "| Intent" not in output
    scores = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert "intent" not in scores["before"] and scores["before"].keys() == scores["after"].keys()
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[-1]["episodes"] == 16 and "reward/intent" not in rows[-1] and "reward/meteor" in rows[-1]
    record = AgentRecord(dataset=str(source), max_new_tokens=8, spacing="ordinary")
    assert find_agent_folder(str(run)) == (str(run / "agent"), record)

    evaluate.main(evaluate.Args(agent=str(run), samples=3))
    table = capsys.readouterr().out
    assert f"contexts of {source}, test" in table and "| Intent" not in table
    evaluate.main(evaluate.Args(agent=str(run / "agent"), baseline="builtin", dataset="builtin", samples=3))
    assert "| Intent" in capsys.readouterr().out


def test_an_intent_reward_without_acts_is_an_error_and_a_weight_of_zero_is_not(train, tmp_path):
    source = str(write_lines(tmp_path))
    with pytest.raises(ValueError, match=r"--intent-weight 0.3: the dialogues of .* have no acts"):
        train("--dataset", source, "--intent-weight", "0.3")
    assert not (tmp_path / "runs").exists()
    train("--dataset", source, "--intent-weight", "0")


def test_a_run_without_acts_resumes_with_its_own_flags(train, tmp_path, monkeypatch):
    run = train("--dataset", str(write_lines(tmp_path)), "--spacing", "spaced")
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert config["intent_weight"] is None and config["spacing"] == "spaced"
    monkeypatch.setattr(sys, "argv", ["ppo_dialog.py", "--resume", str(run)])
    runpy.run_path(str(ROOT / "ppo_dialog.py"), run_name="__main__")


def test_some_acts_reward_only_the_replies_that_have_them(train, tmp_path, tiny_intent_model):
    rows = [{"dialog": chat, "act": ["question"] * len(chat) if i % 2 else None} for i, chat in enumerate(chats())]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = train("--dataset", str(file), "--intent-model", tiny_intent_model)
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["intent_weight"] == 0.3
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(0 <= row["reward/intent"] < 0.3 for row in rows)  # a random classifier gives about 0.25 to each act


def test_ppo_on_an_instruct_model_needs_no_end_of_utterance_marker(
    train, tiny_instruct_model, tiny_intent_model, capsys
):
    flags = ("--chat-template", "--intent-model", tiny_intent_model, "--learning-rate", "0")
    run = train(*flags, model=tiny_instruct_model)
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(row["losses/approx_kl"] < 1e-9 for row in rows)
    agent = DialogueAgent.load(str(run))
    assert agent.template and isinstance(agent.chat("How are you?"), str)
    evaluate.main(evaluate.Args(agent=str(run), baseline=tiny_instruct_model, samples=3))
    lines = [line.split("|")[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[2] == lines[3]  # it has learned nothing


def test_an_instruct_model_that_was_never_trained_here_is_scored_with_its_template(
    train, tiny_instruct_model, tiny_model, capsys
):
    with pytest.raises(ValueError, match=r"cannot represent the end-of-utterance marker .*--chat-template"):
        evaluate.main(evaluate.Args(agent=tiny_instruct_model, samples=2))
    args = evaluate.Args(agent=tiny_instruct_model, samples=2, chat_template=True, max_new_tokens=8)
    evaluate.main(args)
    untrained = capsys.readouterr().out.splitlines()[2]
    run = train("--chat-template", "--learning-rate", "0", "--intent-weight", "0", model=tiny_instruct_model)
    capsys.readouterr()
    evaluate.main(replace(args, agent=str(run)))
    assert capsys.readouterr().out.splitlines()[2].split("|")[2:] == untrained.split("|")[2:]
    with pytest.raises(ValueError, match="builtin was trained without one"):
        evaluate.main(replace(args, agent="builtin"))


def test_a_run_with_a_class_of_its_own_is_refused_until_the_class_is_named(train, tmp_path, monkeypatch):
    (tmp_path / "own_policy.py").write_text(
        "from transformers import GPT2LMHeadModel\n\n\nclass Own(GPT2LMHeadModel):\n    pass\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = train("--policy-class", "own_policy:Own")
    for name in (run, run / "agent"):
        with pytest.raises(ValueError, match="add --policy-class own_policy:Own"):
            evaluate.main(evaluate.Args(agent=str(name), samples=2))
        evaluate.main(evaluate.Args(agent=str(name), samples=2, policy_class="own_policy:Own"))
    monkeypatch.setattr(sys, "argv", ["chat_app.py", "--terminal", "--agent", str(run)])
    with pytest.raises(SystemExit, match=r"error: .* add --policy-class own_policy:Own"):
        runpy.run_path(str(ROOT / "chat_app.py"), run_name="__main__")
