"""The win rate by a file of votes."""

import json
from pathlib import Path

import pytest

from dailydialog_gym.evaluate import __main__ as evaluate
from dailydialog_gym.reports.votes import count_votes


def write(path: Path, *results: str) -> Path:
    path.write_text("".join(json.dumps({"prompt": "A", "preferred": r}) + "\n" for r in results), encoding="utf-8")
    return path


def test_the_command_prints_the_win_rate_with_its_interval(tmp_path, capsys):
    votes = write(tmp_path / "votes.jsonl", *["trained"] * 6, *["start"] * 2, *["tie"] * 2)
    evaluate.main(evaluate.Args(votes=votes))
    assert capsys.readouterr().out == (
        "The agent wins 70.0% of 10 votes against its start (95% interval 39.7% to 89.2%): 6 won, 2 lost, 2 ties.\n"
    )


def test_only_blind_votes_between_two_agents_count(tmp_path):
    names = {"trained": {"name": "a"}, "start": {"name": "a"}}
    rows = [{"preferred": "start", "blind": False}, {"preferred": "start", **names}]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ValueError, match="has no blind vote between two agents"):
        evaluate.main(evaluate.Args(votes=tmp_path / "votes.jsonl"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n", "line 1: expected .*, got '{"),
        ('{"preferred": "start"}\n{}\n', "line 2: expected .*preferred"),
        ('{"preferred": "start"}\nnaïve\n'.encode("latin-1"), "line 2: expected UTF-8 text, got byte 0xef"),
        ("[" * 100_000, "line 1: expected .*preferred"),
        ('{"preferred": "start", "trained": {"name": []}}\n', "line 1: expected texts as names of the agents"),
        ('{"preferred": "left"}\n', "line 1: 'preferred' is 'left': expected trained, start, tie"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, text, message):
    (tmp_path / "votes.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"votes.jsonl, {message}"):
        count_votes(tmp_path / "votes.jsonl")


def test_a_file_that_windows_wrote_counts(tmp_path):
    row = '{"preferred": "start"}\r\n'
    (tmp_path / "votes.jsonl").write_text(row * 2, encoding="utf-8-sig", newline="")
    assert count_votes(tmp_path / "votes.jsonl") == {("the agent", "its start"): {"start": 2}}
