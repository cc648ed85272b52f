"""Votes: preference pairs in a file, and who won."""

import json
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.chat.votes import Votes, two_draws
from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.models.decoding import Decoding

NAMES = {side: {"name": name, "model": "m", "revision": "1"} for side, name in (("trained", "new"), ("start", "old"))}


@pytest.fixture(scope="module")
def agent(tiny_models):
    return DialogueAgent.load(tiny_models["gpt2"])


@pytest.fixture
def votes(tmp_path):
    return Votes(tmp_path / "votes.jsonl")


def add(votes, agent, asked=("Hello.",), blind=True, names=NAMES, **replies):
    replies = replies or {"trained": "Bye.", "start": "Hi."}
    return votes.add_pair(agent, names, asked, replies, two_draws(Decoding(sample=True, seed=3)), blind)


def test_votes_are_preference_pairs_in_the_training_format(votes, agent):
    asked = ["Hi!", "Hello.", "It's late, isn't it?"]
    replies = {"start": "No 你好.", "trained": "Yes, it is."}  # in any order
    for verdict in ("trained", "start", "tie", "both bad"):
        count = votes.vote(add(votes, agent, asked, **replies), verdict)
    assert count == 4
    rows = datasets.load_dataset("json", data_files=str(votes.path), split="train", cache_dir=str(votes.path.parent))
    assert rows[0]["prompt"] == "Hi ! <EOU> Hello . <EOU> It's late , isn't it ? <EOU>"
    assert (rows[0]["chosen"], rows[0]["rejected"]) == (" Yes , it is . <EOU>", " No 你好 . <EOU>")
    assert (rows[1]["chosen"], rows[1]["rejected"]) == (rows[0]["rejected"], rows[0]["chosen"])
    assert rows["preferred"][:] == ["trained", "start", "tie", "tie"]
    assert rows["both_bad"][:] == [False, False, False, True]
    assert rows[0]["conversation"] == asked and rows[0]["blind"] and rows[0]["time"].year > 2025
    assert (rows[0]["trained"]["name"], rows[0]["start"]["name"], rows[0]["trained"]["revision"]) == ("new", "old", "1")
    assert rows[0]["trained"]["seed"] == 3 != rows[0]["start"]["seed"]
    assert rows[0]["trained"]["temperature"] == rows[0]["start"]["temperature"] == 1.0


def test_votes_of_an_agent_with_a_template_are_messages(votes, agent, monkeypatch):
    monkeypatch.setattr(agent, "template", AutoTokenizer.from_pretrained(ASSETS / "policy"))
    monkeypatch.setattr(agent, "spacing", "ordinary")  # as of an instruct model
    votes.vote(add(votes, agent, ["Hi!"], trained="Yes.", start="No."), "trained")
    row = json.loads(votes.path.read_text(encoding="utf-8"))
    assert row["prompt"] == [{"role": "user", "content": "Hi!"}]
    assert row["chosen"] == [{"role": "assistant", "content": "Yes."}]


def test_a_vote_counts_once_and_for_one_of_the_two(votes, agent):
    ticket = add(votes, agent)
    with pytest.raises(ValueError, match="expected one of trained, start, tie, both bad"):
        votes.vote(ticket, "both")
    votes.vote(ticket, "trained")
    for used in (ticket, "guessed", None, ["x"]):
        with pytest.raises(ValueError, match="voted on already"):
            votes.vote(used, "trained")
    assert len(votes.path.read_text(encoding="utf-8").splitlines()) == 1


WORKING = b'{"prompt": "a"}\n'
FILES = {
    "none": (None, b"", 1),
    "empty": (b"", b"", 1),
    "whole lines": (WORKING * 2, WORKING * 2, 3),
    "half a line": (WORKING + b'{"prompt": "b', WORKING + b'{"prompt": "b\n', 3),
    "no text": (b"\xff\xfe\x00" * 9, b"\xff\xfe\x00" * 9 + b"\n", 2),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_vote_is_a_line_of_its_own_whatever_is_before_it(votes, agent, kind):
    before, kept, count = FILES[kind]
    if before is not None:
        votes.path.write_bytes(before)
    assert votes.vote(add(votes, agent), "start") == count
    content = votes.path.read_bytes()
    assert content.startswith(kept)
    assert json.loads(content[len(kept) :])["chosen"] == " Hi . <EOU>"


def test_a_vote_that_could_not_be_written_can_be_repeated(votes, agent, tmp_path):
    path, ticket = votes.path, add(votes, agent)
    for full in ("/dev/full", tmp_path / "no" / "folder", tmp_path):
        votes.path = Path(full)
        with pytest.raises(OSError, match=r"No space|No such file|Is a directory"):
            votes.vote(ticket, "start")
    votes.path = path
    assert votes.vote(ticket, "start") == 1


def test_the_result_counts_blind_votes_between_two_agents(votes, agent):
    assert votes.result("new", "old") == ""
    turned = {"trained": NAMES["start"], "start": NAMES["trained"]}
    for _ in range(3):
        votes.vote(add(votes, agent), "trained")
    votes.vote(add(votes, agent, names=turned), "start")  # for the new one too
    votes.vote(add(votes, agent), "both bad")
    votes.vote(add(votes, agent, blind=False), "start")
    votes.vote(add(votes, agent, names=dict.fromkeys(NAMES, NAMES["start"])), "start")
    expected = "new wins 90.0% of 5 votes against old (95% interval "
    assert votes.result("new", "old").startswith(expected) and "4 won, 0 lost, 1 ties" in votes.result("new", "old")
    assert votes.result("old", "new") == votes.result("new", "old")


def test_the_two_sides_never_share_a_draw():
    for seed in range(50):
        draws = two_draws(Decoding(sample=True, top_k=20, seed=seed))
        assert draws["trained"].seed == seed != draws["start"].seed
        assert two_draws(draws["trained"]) == draws
