import asyncio
import json
import os
import runpy
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from transformers import AutoTokenizer

from dailydialog_gym.agent import DialogueAgent, save_agent
from dailydialog_gym.chat.conversation import (
    MAX_MESSAGE,
    Chat,
    apply_request,
    check_message,
    conversation_so_far,
    make_decoding,
    reply_turn,
)
from dailydialog_gym.chat.trained import find_agent, training_page
from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.models.decoding import Decoding
from dailydialog_gym.models.loading import load_model
from dailydialog_gym.text import escape_invisible


@pytest.fixture(scope="module")
def agents(tiny_models):
    return DialogueAgent.load(tiny_models["gpt2"]), DialogueAgent.load(tiny_models["llama"])


@pytest.fixture
def chat(agents, tmp_path):
    return Chat(*agents, None, tmp_path / "votes.jsonl")


def user(text):
    return {"role": "user", "text": text}


def agent(text):
    return {"role": "agent", "text": text}


TALK = [user("Hi"), agent("Hello."), user("How are you?"), agent("Fine.")]


def test_what_requests_make_of_a_conversation():
    assert apply_request(TALK, {"do": "send", "text": " And you? "}) == (TALK, "And you?")
    assert apply_request(TALK, {"do": "retry"}) == (TALK[:2], "How are you?")
    assert apply_request(TALK, {"do": "edit", "text": "Who are you?"}) == (TALK[:2], "Who are you?")
    assert apply_request(TALK, {"do": "undo"}) == (TALK[:2], None)
    assert apply_request(TALK, {"do": "reset"}) == ([], None)


@pytest.mark.parametrize(
    ("turns", "request_", "message"),
    [
        (TALK, None, "expected send, edit, retry, undo or reset"),
        (TALK, "send", "expected send, edit, retry, undo or reset"),
        (TALK, {}, "expected send, edit, retry, undo or reset"),
        (TALK, {"do": "sing"}, "expected send, edit, retry, undo or reset"),
        (TALK, {"do": "send"}, "expected text"),
        (TALK, {"do": "send", "text": " "}, "the message is empty"),
        (TALK, {"do": "send", "text": "a" * 1001}, "1,001 characters: expected at most 1,000"),
        (TALK, {"do": "edit", "text": 1}, "expected text"),
        ([], {"do": "undo"}, "nothing to undo"),
    ],
)
def test_an_impossible_request_is_refused(turns, request_, message):
    with pytest.raises(ValueError, match=message):
        apply_request(turns, request_)


def test_the_longest_message_is_accepted():
    assert check_message("a" * MAX_MESSAGE) == "a" * MAX_MESSAGE


def test_a_message_that_was_not_answered_is_not_read():
    turns = [user("Hi"), agent("Hello."), user("What?"), agent("")]
    assert conversation_so_far(turns, "Bye") == ["Hi", "Hello.", "Bye"]


def test_invisible_characters_are_escaped():
    assert escape_invisible("\u202eevil\u2066 \x00\x1b[31m\ud800\ufeff") == (
        "⟨U+202E⟩evil⟨U+2066⟩ ⟨U+0000⟩⟨U+001B⟩[31m⟨U+D800⟩⟨U+FEFF⟩"
    )
    ordinary = "Здравствуйте! שלום 你好 👩‍👩‍👧 a\nb <b>&amp;</b>"
    assert escape_invisible(ordinary) == ordinary


SETTINGS = st.tuples(
    st.booleans(),
    st.floats() | st.none() | st.text(max_size=3),
    st.integers(-5, 10**20) | st.floats(),
    st.floats(),
    st.integers(-5, 40) | st.floats(),
    st.none() | st.integers() | st.floats(),
)
REASONABLE = st.tuples(
    st.booleans(), st.floats(0.05, 10), st.integers(0, 50), st.floats(0.01, 1), st.integers(1, 8), st.none()
)


@given(
    st.lists(st.text(max_size=60), max_size=4),
    st.dictionaries(st.sampled_from(["do", "text"]), st.sampled_from(["send", "edit", "retry"]) | st.text(), max_size=2)
    | st.none()
    | st.integers(),
    REASONABLE | SETTINGS,
)
@settings(max_examples=150, deadline=None)
def test_whatever_people_send_is_answered_or_refused_with_a_sentence(agents, talked, request_, form):
    """All that the page does except Gradio: any conversation, request and settings give a reply or a ValueError."""
    turns = [turn for text in talked for turn in (user(escape_invisible(text)), agent(text))]
    try:
        before, message = apply_request(turns, request_)
        decoding = make_decoding(*form)
        if message is None:
            return
        reply = agents[0].open_reply(conversation_so_far(before, message), decoding)
    except ValueError as error:
        assert str(error)
        return
    batch = agents[0].decoding_batch()
    batch.add([reply])
    while batch.replies:
        batch.step()
    turn = reply_turn(agents[0], reply)
    assert escape_invisible(turn["text"]) == turn["text"]
    assert json.dumps(turn, allow_nan=False).encode()
    assert len(turn["pieces"]) == len(reply.ids) <= decoding.max_new_tokens


def test_twenty_people_at_once_get_their_own_replies(chat):
    async def talk(number):
        reply = chat.trained.open_reply([f"I am number {number}."], Decoding(sample=True, seed=number))
        async with aclosing(chat.stream(reply)) as growing:
            seen = [len(reply.ids) async for _ in growing]
        assert reply.done and seen[-1] == len(reply.ids)
        return chat.trained.reply_text(reply.ids)

    async def everybody():
        return await asyncio.gather(*(talk(number) for number in range(20)))

    alone = [chat.trained.chat(f"I am number {n}.", sample=True, seed=n) for n in range(20)]
    assert asyncio.run(everybody()) == alone


def test_leaving_a_stream_frees_the_worker(chat):
    async def leave():
        reply = chat.trained.open_reply(["Hi!"], Decoding(max_new_tokens=32))
        async with aclosing(chat.stream(reply)) as growing:
            await anext(growing)
        return reply

    reply = asyncio.run(leave())
    assert reply.cancelled and len(reply.ids) < 32


def test_a_reply_that_is_cancelled_ends_its_stream(chat):
    async def cancel_at(count):
        reply = chat.trained.open_reply(["Hi!"], Decoding(max_new_tokens=32))
        if count == 0:
            reply.cancel()
        async with aclosing(chat.stream(reply)) as growing:
            async for _ in growing:
                if len(reply.ids) >= count:
                    reply.cancel()
        return reply_turn(chat.trained, reply)

    for count in (0, 2):
        turn = asyncio.run(cancel_at(count))
        assert turn["note"] == "Stopped." and len(turn["pieces"]) < 32


def test_both_agents_answer_and_an_error_is_raised(chat, agents):
    async def last(decoding):
        async with aclosing(chat.stream_both(["Hi!"], decoding)) as growing:
            return [replies async for replies in growing][-1]

    replies = asyncio.run(last(Decoding(sample=True, seed=3)))
    said = [a.reply_text(replies[side].ids) for a, side in zip(agents, ("trained", "start"), strict=True)]
    assert said == [a.chat("Hi!", sample=True, seed=3) for a in agents]
    with pytest.raises(ValueError, match="max_new_tokens"):
        asyncio.run(last(Decoding(max_new_tokens=10**6)))


def test_votes_are_preference_pairs_in_the_training_format(chat):
    asked = ["Hi!", "Hello.", "It's late, isn't it?"]
    for preferred in ("trained", "start"):
        ticket = chat.add_pair(asked, {"trained": "Yes, it is.", "start": "No 你好."})
        count = chat.vote(ticket, preferred)
    assert count == 2
    rows = datasets.load_dataset("json", data_files=str(chat.votes), split="train", cache_dir=str(chat.votes.parent))
    assert rows[0] == {
        "prompt": "Hi ! <EOU> Hello . <EOU> It's late , isn't it ? <EOU>",
        "chosen": " Yes , it is . <EOU>",
        "rejected": " No 你好 . <EOU>",
        "preferred": "trained",
    }
    assert (rows[1]["chosen"], rows[1]["rejected"]) == (rows[0]["rejected"], rows[0]["chosen"])


def test_votes_of_an_agent_with_a_template_are_messages(chat, monkeypatch):
    monkeypatch.setattr(chat.trained, "template", AutoTokenizer.from_pretrained(ASSETS / "policy"))
    monkeypatch.setattr(chat.trained, "spacing", "ordinary")  # as of an instruct model
    chat.vote(chat.add_pair(["Hi!"], {"trained": "Yes.", "start": "No."}), "trained")
    row = json.loads(chat.votes.read_text(encoding="utf-8"))
    assert row["prompt"] == [{"role": "user", "content": "Hi!"}]
    assert row["chosen"] == [{"role": "assistant", "content": "Yes."}]


def test_a_vote_counts_once_and_for_one_of_the_two(chat):
    ticket = chat.add_pair(["Hi!"], {"trained": "Yes.", "start": "No."})
    with pytest.raises(ValueError, match="expected 'trained' or 'start'"):
        chat.vote(ticket, "both")
    chat.vote(ticket, "trained")
    for used in (ticket, "guessed", None, ["x"]):
        with pytest.raises(ValueError, match="voted on already"):
            chat.vote(used, "trained")
    assert len(chat.votes.read_text(encoding="utf-8").splitlines()) == 1


WORKING = b'{"prompt": "a"}\n'
FILES = {
    "none": (None, b"", 1),
    "empty": (b"", b"", 1),
    "whole lines": (WORKING * 2, WORKING * 2, 3),
    "half a line": (WORKING + b'{"prompt": "b', WORKING + b'{"prompt": "b\n', 3),
    "no text": (b"\xff\xfe\x00" * 9, b"\xff\xfe\x00" * 9 + b"\n", 2),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_vote_is_a_line_of_its_own_whatever_is_before_it(chat, kind):
    before, kept, count = FILES[kind]
    if before is not None:
        chat.votes.write_bytes(before)
    ticket = chat.add_pair(["Hello ."], {"start": "Hi .", "trained": "Bye ."})
    assert chat.vote(ticket, "start") == count
    content = chat.votes.read_bytes()
    assert content.startswith(kept)
    assert json.loads(content[len(kept) :])["chosen"] == " Hi . <EOU>"


def test_a_vote_that_could_not_be_written_can_be_repeated(chat, tmp_path):
    votes = chat.votes
    ticket = chat.add_pair(["Hello ."], {"start": "Hi .", "trained": "Bye ."})
    for path in ("/dev/full", tmp_path / "no" / "folder", tmp_path):
        chat.votes = Path(path)
        with pytest.raises(OSError, match=r"No space|No such file|Is a directory"):
            chat.vote(ticket, "start")
    chat.votes = votes
    assert chat.vote(ticket, "start") == 1


def test_the_intent_model_reads_the_reply_after_the_message(agents, intent, tmp_path, monkeypatch):
    read = []
    classify = intent.classify
    monkeypatch.setattr(intent, "classify", lambda texts: read.extend(texts) or classify(texts))
    act, probability = Chat(*agents, intent, tmp_path).read_act("Where's he?", "At home, I think.")
    assert read == ["Where's he ? At home , I think ."]
    assert act in ("inform", "question", "directive", "commissive") and 0.25 <= probability <= 1


def make_run(folder, finished=True, model="builtin"):
    (folder / "agent").mkdir(parents=True)
    save_agent(load_model("builtin"), "builtin", folder / "agent")
    flags = {"model": model, "context_size": 3, "max_prompt_length": 64, "max_new_tokens": 12}
    (folder / "config.json").write_text(json.dumps(flags), encoding="utf-8")
    rows = [{"episodes": 64 * i, "charts/episodic_return": 0.1 * i, "reward/meteor": 0.1} for i in range(1, 4)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"episodes": 25', encoding="utf-8")
    if finished:
        scores = {"before": {"meteor": 0.125, "length": 9.0}, "after": {"meteor": 0.25, "length": 8.0}}
        (folder / "evaluation.json").write_text(json.dumps(scores), encoding="utf-8")
        sample = {"context": ["Hi <b>"], "before": "*No* .", "after": "<i>Yes</i> .", "people": "Ok"}
        (folder / "samples.json").write_text(json.dumps([sample]), encoding="utf-8")
    return folder


def test_agents_are_found_by_run_agent_folder_and_name(tmp_path):
    runs = tmp_path / "runs"
    assert find_agent(None, runs).model == "builtin"
    old, new = make_run(runs / "old"), make_run(runs / "new")
    make_run(runs / "unfinished", finished=False)
    os.utime(old / "evaluation.json", (1, 1))
    newest = find_agent(None, runs)
    assert (newest.run, newest.model, newest.baseline) == (new, str(new / "agent"), "builtin")
    assert find_agent(str(old)).run == find_agent(str(old / "agent")).run == old
    assert "not finished" in find_agent(str(runs / "unfinished")).story
    assert find_agent(str(ASSETS / "policy")).run is None
    assert find_agent("gpt2").model == "gpt2"


def test_a_run_without_an_agent_or_with_a_broken_configuration_is_a_clear_error(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="has not saved an agent yet"):
        find_agent(str(tmp_path))
    (tmp_path / "agent").mkdir()
    (tmp_path / "config.json").write_text('{"mod', encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot read .*config\.json"):
        find_agent(str(tmp_path))


def test_the_training_page_shows_a_run_as_text(tmp_path):
    html = training_page(make_run(tmp_path / "run"))
    assert "charts/episodic_return: from 0.1 to 0.3" in html
    assert "<td>0.1250</td><td>0.2500</td><td>+100.0%</td>" in html
    assert "Hi &lt;b&gt;" in html and "&lt;i&gt;Yes&lt;/i&gt; ." in html and "*No*" in html
    assert "<b>" not in html


def test_the_training_page_tells_what_is_not_there_yet(tmp_path):
    html = training_page(make_run(tmp_path / "run", finished=False))
    assert "has not written evaluation.json yet" in html
    (tmp_path / "run" / "metrics.jsonl").write_text("[]\n", encoding="utf-8")
    assert "Cannot read" in training_page(tmp_path / "run")


def in_terminal(typed, *flags):
    return subprocess.run(
        [sys.executable, str(ROOT / "chat_app.py"), "--terminal", *flags],
        input=typed,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )


def test_the_terminal_talks_over_a_pipe():
    ended = in_terminal("Hi!\nHow are you?\nreset\nHi!\n\nquit\nnever read\n", "--agent", "builtin", "--seed", "1")
    assert ended.returncode == 0, ended.stderr
    replies = [line[9:] for line in ended.stdout.splitlines() if line.startswith("> Agent: ")]
    builtin = DialogueAgent.load("builtin")
    how = {"sample": True, "top_k": 20, "seed": 1}
    assert replies[0] == replies[2] == builtin.chat("Hi!", **how)
    assert replies[1] == builtin.chat("How are you?", ["Hi!", replies[0]], **how)
    assert "(the message is empty)" in ended.stdout and "never read" not in ended.stdout


def test_an_agent_that_is_not_there_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["chat_app.py", "--agent", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: cannot load model"):
        runpy.run_path(str(ROOT / "chat_app.py"), run_name="__main__")
