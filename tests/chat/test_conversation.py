import asyncio
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import gradio
import httpx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from own_code import add_code
from paths import ROOT
from served import chat_of

from dailydialog_gym.agent import AgentRecord, DialogueAgent, save_agent
from dailydialog_gym.chat import conversation
from dailydialog_gym.chat.closer import Token, closer_look, read_tokens, reward_by_token
from dailydialog_gym.chat.conversation import (
    MAX_MESSAGE,
    USUAL,
    Chat,
    check_message,
    conversation_so_far,
    make_decoding,
    reply_turn,
    turns_before,
)
from dailydialog_gym.chat.trained import TrainedAgent, find_agent, find_agents, results_page, samples_page
from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.models.decoding import Decoding
from dailydialog_gym.models.loading import load_model
from dailydialog_gym.text import escape_invisible


@pytest.fixture(scope="module")
def agents(tiny_models):
    return DialogueAgent.load(tiny_models["gpt2"]), DialogueAgent.load(tiny_models["llama"])


@pytest.fixture
def chat(agents):
    return chat_of(*agents)


FIRST, SECOND = "agent 0 <i>", "agent 1 <i>"


def user(text):
    return {"role": "user", "content": text}


def agent(text):
    return {"role": "assistant", "content": text}


TALK = [user("Hi"), agent("Hello."), user("How are you?"), agent("Fine.")]


def test_the_turns_before_one_that_a_browser_names():
    assert turns_before(TALK, 2, "user") == TALK[:2]
    assert turns_before(TALK, 3, "assistant") == TALK[:3]
    for index, role in (
        (3, "user"),
        (4, "user"),
        (-2, "user"),
        ("2", "user"),
        (2.0, "user"),
        (True, "assistant"),
        (None, "user"),
    ):
        with pytest.raises(ValueError, match="no longer in the conversation"):
            turns_before(TALK, index, role)


@pytest.mark.parametrize(
    ("text", "message"), [(" ", "is empty"), ("a" * 1001, "1,001 characters"), (1, "expected text")]
)
def test_a_message_that_cannot_be_sent_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        check_message(text)


def test_the_longest_message_is_accepted():
    assert check_message("a" * MAX_MESSAGE) == "a" * MAX_MESSAGE
    assert check_message("\tHi\tAnn !\r\nBye .\r") == "Hi Ann !\nBye ."


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


@given(st.lists(st.text(max_size=60), max_size=4), st.text() | st.none() | st.integers(), REASONABLE | SETTINGS)
@settings(max_examples=150, deadline=None)
def test_whatever_people_send_is_answered_or_refused_with_a_sentence(agents, talked, message, form):
    """All that the page does except Gradio: any conversation, message and settings give a reply or a ValueError."""
    turns = [turn for text in talked for turn in (user(escape_invisible(text)), agent(text))]
    try:
        message, decoding = check_message(message), make_decoding(*form)
        reply = agents[0].open_reply(conversation_so_far(turns, message), decoding)
    except ValueError as error:
        assert str(error)
        return
    batch = agents[0].decoding_batch()
    batch.add([reply])
    while batch.replies:
        batch.step()
    turn = reply_turn(FIRST, agents[0], reply)
    assert escape_invisible(turn["content"]) == turn["content"]
    assert json.dumps(turn, allow_nan=False).encode()
    assert len(turn["ids"]) == len(reply.ids) <= decoding.max_new_tokens


def test_twenty_people_at_once_get_their_own_replies(chat):
    async def talk(number):
        reply = chat.agent(FIRST).open_reply([f"I am number {number}."], Decoding(sample=True, seed=number))
        async with aclosing(chat.stream((FIRST, reply))) as growing:
            seen = [len(reply.ids) async for _ in growing]
        assert reply.done and seen[-1] == len(reply.ids)
        return chat.agent(FIRST).reply_text(reply.ids)

    async def everybody():
        return await asyncio.gather(*(talk(number) for number in range(20)))

    alone = [chat.agent(FIRST).chat(f"I am number {n}.", sample=True, seed=n) for n in range(20)]
    assert asyncio.run(everybody()) == alone


@pytest.fixture
def slow(agents):
    """Each token of the first agent takes 20 ms, so that nobody is too late to stop a reply."""
    hook = agents[0].model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    yield
    hook.remove()


@pytest.mark.usefixtures("slow")
def test_leaving_a_stream_frees_the_worker(chat):
    async def leave():
        reply = chat.agent(FIRST).open_reply(["Hi!"], Decoding(max_new_tokens=32))
        async with aclosing(chat.stream((FIRST, reply))) as growing:
            await anext(growing)
        return reply

    reply = asyncio.run(leave())
    assert reply.cancelled and len(reply.ids) < 32
    deadline = time.monotonic() + 5
    while chat.worker.load:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.usefixtures("slow")
def test_a_reply_that_is_cancelled_ends_its_stream(chat):
    async def cancel_at(count):
        reply = chat.agent(FIRST).open_reply(["Hi!"], Decoding(max_new_tokens=32))
        if count == 0:
            reply.cancel()
        async with aclosing(chat.stream((FIRST, reply))) as growing:
            async for _ in growing:
                if len(reply.ids) >= count:
                    reply.cancel()
        return reply_turn(FIRST, chat.agent(FIRST), reply)

    for count in (0, 2):
        turn = asyncio.run(cancel_at(count))
        assert turn["note"] == "Stopped." and len(turn["ids"]) < 32


def test_both_agents_answer_and_an_error_is_raised(chat, agents):
    async def last(decoding):
        replies = [await chat.open_reply(title, ["Hi!"], decoding) for title in (FIRST, SECOND)]
        async with aclosing(chat.stream(*zip((FIRST, SECOND), replies, strict=True))) as growing:
            async for _ in growing:
                pass
        return replies

    replies = asyncio.run(last(Decoding(sample=True, seed=3)))
    said = [a.reply_text(reply.ids) for a, reply in zip(agents, replies, strict=True)]
    assert said == [a.chat("Hi!", sample=True, seed=3) for a in agents]
    with pytest.raises(ValueError, match="max_new_tokens"):
        asyncio.run(last(Decoding(max_new_tokens=10**6)))


def test_an_agent_is_loaded_when_it_is_first_asked_for_and_once(agents):
    loaded = []
    choices = [TrainedAgent(name, name, "") for name in ("a", "b")]
    chat = Chat(choices, lambda choice: loaded.append(choice.title) or agents[0])
    assert chat.agent("b") is chat.agent("b") is agents[0] and loaded == ["b"]
    for title in ("/etc/passwd", None):
        with pytest.raises(ValueError, match="there is no agent"):
            chat.agent(title)


def visit(chat, title):
    return asyncio.run(chat.open_reply(title, ["Hi!"], Decoding()))


def look(chat, title):
    return chat.look_closer(["Hi!"], {"agent": title, "content": "Hello.", "prompt_ids": [1], "ids": [2]})


@pytest.mark.parametrize(
    ("slow", "wait"),
    [("agent", Chat.agent), ("agent", visit), ("rewards", look)],
    ids=["it is chosen", "it is asked", "its rewards are looked at"],
)
def test_while_an_agent_is_loaded_the_others_answer(agents, monkeypatch, slow, wait):
    begun, released, late = threading.Event(), threading.Event(), []

    def load_slowly():
        begun.set()
        late.append(not released.wait(30))

    def load(choice):
        if (choice.title, slow) == ("slow", "agent"):
            load_slowly()
        return agents[0]

    monkeypatch.setattr(conversation, "load_reward_models", lambda flags, *_: [load_slowly() for _ in flags][:0])
    chat = Chat([TrainedAgent("a", "quick", ""), TrainedAgent("b", "slow", "", reward_models=("judge",))], load)
    chat.agent("quick")
    if slow == "rewards":
        look(chat, "quick")
        chat.agent("slow")

    async def answer():
        reply = await chat.open_reply("quick", ["Hi!"], Decoding(max_new_tokens=4))
        async with aclosing(chat.stream(("quick", reply))) as growing:
            async for _ in growing:
                chat.agent("quick").reply_text(reply.ids)
        await asyncio.to_thread(look, chat, "quick")

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait, chat, "slow")
        assert begun.wait(30)
        asyncio.run(answer())
        released.set()
        waiting.result()
    assert late == [False]


def test_many_who_wait_for_an_agent_leave_the_others_their_threads(agents):
    released, late = threading.Event(), []

    def load(choice):
        if choice.title == "slow":
            late.append(not released.wait(30))
        return agents[0]

    async def visit_both():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(3))  # asyncio's own has more, by the number of cores
        waiting = [asyncio.ensure_future(chat.open_reply("slow", ["Hi!"], Decoding())) for _ in range(5)]
        await asyncio.sleep(0)
        await chat.open_reply("quick", ["Hi!"], Decoding())
        released.set()
        return await asyncio.gather(*waiting)

    chat = Chat([TrainedAgent(name, name, "") for name in ("quick", "slow")], load)
    chat.agent("quick")
    replies = asyncio.run(visit_both())
    assert late == [False] and len(replies) == 5


def test_a_small_model_uses_one_thread_and_a_large_one_all(agents, monkeypatch):
    sizes = [sum(p.numel() for p in one.model.parameters()) for one in agents]
    monkeypatch.setattr(conversation, "SMALL", max(sizes))
    small, large = (f"agent {sizes.index(size)} <i>" for size in (min(sizes), max(sizes)))
    usual, used = torch.get_num_threads(), []
    torch.set_num_threads(3)
    chat = chat_of(*agents)
    count = [one.model.register_forward_hook(lambda *_: used.append(torch.get_num_threads())) for one in agents]

    async def talk(title):
        reply = await chat.open_reply(title, ["Hi!"], Decoding(max_new_tokens=1))
        async with aclosing(chat.stream((title, reply))) as growing:
            async for _ in growing:
                pass

    try:
        for title, threads in ((small, 1), (large, 3), (small, 1), (large, 3)):
            used.clear()
            asyncio.run(talk(title))
            look(chat, title)
            assert set(used) == {threads}
    finally:
        torch.set_num_threads(usual)
        for hook in count:
            hook.remove()


OWN_CLASS = """
from transformers import GPT2LMHeadModel

class Policy(GPT2LMHeadModel):
    pass
"""


@pytest.mark.parametrize("baseline", [None, "runs/own", "runs/plain"])
def test_an_agent_is_of_the_class_that_its_own_record_names(tiny_model, tmp_path, monkeypatch, baseline):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_policies.py").write_text(OWN_CLASS, encoding="utf-8")
    records = {name: AgentRecord(policy_class=f"own_policies:{name}") for name in ("Policy", "Other")}
    model = load_model(tiny_model)
    for run, record in (
        ("own", records["Policy"]),
        ("other", records["Other"]),
        ("plain", None),
        ("a", records["Policy"]),
    ):
        folder = tmp_path / "runs" / run / "agent"
        folder.mkdir(parents=True)
        save_agent(model, "builtin", folder, record)
        (folder.parent / "config.json").write_text(json.dumps({"model": tiny_model}), encoding="utf-8")
    chat = Chat.open("runs/a", baseline, "own_policies:Policy", intent_model=None)
    titles = {choice.model.removesuffix("/agent"): title for title, choice in chat.choices.items()}
    classes = {name: type(chat.agent(titles[name]).model).__name__ for name in ("runs/a", "runs/own", "runs/plain")}
    assert classes == {"runs/a": "Policy", "runs/own": "Policy", "runs/plain": "GPT2LMHeadModel"}
    if baseline is None:
        assert type(chat.agent(titles[tiny_model]).model).__name__ == "Policy"  # the run loaded it so
    with pytest.raises(ValueError, match="add --policy-class own_policies:Other"):
        chat.agent(titles["runs/other"])


def test_the_identity_of_an_agent_changes_with_its_weights(tiny_models):
    models = [DialogueAgent.load(tiny_models["gpt2"]) for _ in range(3)]
    for number, one in enumerate(models):
        one.model.scale = torch.nn.Parameter(torch.tensor(float(number == 2)))  # a class of the user's own may have one
    first, same, other = (chat_of(model).identity(FIRST) for model in models)
    assert first == same == {"name": FIRST, "model": "0", "revision": first["revision"]}
    assert first["revision"] != other["revision"]


def test_the_tokens_of_a_reply_have_the_probabilities_that_they_were_drawn_with(agents):
    for one in agents:
        reply = one.open_reply(["Hi!", "Hello."], Decoding(sample=True, seed=4))
        batch = one.decoding_batch()
        batch.add([reply])
        while batch.replies:
            batch.step()
        tokens = read_tokens(one, reply.prompt_ids, reply.ids)
        assert [token.probability for token in tokens] == pytest.approx(reply.probabilities, abs=1e-5)
        for token in tokens:
            shares = [share for _, share in token.likeliest]
            assert len(shares) == 5 and shares == sorted(shares, reverse=True) and shares[0] >= token.probability - 1e-6
        assert read_tokens(one, reply.prompt_ids, []) == []


def test_the_rewards_of_the_tokens_sum_to_that_of_the_reply(agents):
    class ByLength:
        def scores(self, contexts, replies):
            assert contexts == [["Hi!"]] * len(replies)
            return np.array([len(reply) for reply in replies], float)

    ids = agents[0].open_reply(["Hi!"], Decoding()).prompt_ids[:3]
    rewards = reward_by_token(ByLength(), agents[0], ["Hi!"], ids)
    assert rewards.shape == (3,) and rewards.sum() == len(agents[0].reply_text(ids))


def test_the_closer_look_at_a_reply_is_text():
    token = Token("<b>", 0.5, [("<i>", 0.5)] * 5)
    html = closer_look([token], {"<u>": np.array([0.25])}, ("question", 0.9))
    assert not {"<b>", "<i>", "<u>"} & set(re.findall("<[biu]>", html))
    assert all(text in html for text in ("50%", "+0.25", "question (it asks), 90% sure"))


def test_the_intent_model_reads_the_reply_after_the_message(agents, intent, monkeypatch):
    read = []
    classify = intent.classify
    monkeypatch.setattr(intent, "classify", lambda texts: read.extend(texts) or classify(texts))
    turn = {"agent": FIRST, "content": "At home, I think.", "prompt_ids": [1], "ids": [2]}
    assert "The intent model reads" in chat_of(*agents, intent=intent).look_closer(["Where's he?"], turn)
    assert read == ["Where's he ? At home , I think ."]


def make_run(folder, finished=True, model="builtin"):
    (folder / "agent").mkdir(parents=True)
    save_agent(load_model("builtin"), "builtin", folder / "agent")
    flags = {
        "model": model,
        "context_size": 3,
        "max_prompt_length": 64,
        "max_new_tokens": 12,
        "kl_rule": "openrl",
        "kl_target": 0.1,
    }
    (folder / "config.json").write_text(json.dumps(flags), encoding="utf-8")
    rows = [{"episodes": 64 * i, "charts/episodic_return": 0.1 * i, "reward/meteor": 0.1} for i in range(1, 4)]
    rows = [row | {"metric/kl_per_token": 0.01} for row in rows]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"episodes": 25', encoding="utf-8")
    if finished:
        scores = {"before": {"meteor": 0.125, "length": 9.0}, "after": {"meteor": 0.25, "length": 8.0}}
        (folder / "evaluation.json").write_text(json.dumps(scores), encoding="utf-8")
        (folder / "intervals.json").write_text('{"meteor": [0.1, 0.15]}', encoding="utf-8")
        sample = {"context": ["Hi <b>"], "before": "*No* .", "after": "<i>Yes</i> .", "people": "Ok"}
        sample["rewards"] = [0.25, 0.5]
        (folder / "samples.json").write_text(json.dumps([sample]), encoding="utf-8")
    return folder


def test_agents_are_found_by_run_agent_folder_and_name(tmp_path):
    runs = tmp_path / "runs"
    assert find_agent(None, runs).model == "builtin"
    old, new = make_run(runs / "old"), make_run(runs / "ppo_dialog__3__1795692409")
    make_run(runs / "unfinished", finished=False)
    os.utime(old / "evaluation.json", (1, 1))
    newest = find_agent(None, runs)
    assert (newest.run, newest.model, newest.baseline) == (new, str(new / "agent"), "builtin")
    assert newest.title.endswith(", seed 3") and "ppo_dialog" not in newest.title
    assert find_agent(str(old)).run == find_agent(str(old / "agent")).run == old
    assert "not finished" in find_agent(str(runs / "unfinished")).story
    assert find_agent(str(ASSETS / "policy")).run is None
    assert find_agent("gpt2").model == "gpt2"


def test_the_page_offers_the_agent_its_start_the_runs_and_the_embedded_policy(tmp_path):
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    first, same_name = make_run(runs / "a", model=str(ASSETS / "policy")), make_run(elsewhere / "a")
    make_run(runs / "broken") / "config.json"
    (runs / "broken" / "config.json").write_text("{", encoding="utf-8")
    offered = find_agents(str(same_name), None, runs)
    assert [agent.model for agent in offered] == [str(same_name / "agent"), "builtin", str(first / "agent")]
    assert len({agent.title for agent in offered}) == 3
    offered = find_agents(str(first), None, runs)
    assert [agent.model for agent in offered] == [str(first / "agent"), str(ASSETS / "policy"), "builtin"]
    offered = find_agents("builtin", "gpt2", runs)
    assert [agent.model for agent in offered] == ["builtin", "gpt2", str(first / "agent")]


def test_a_run_that_goes_on_is_offered_with_the_agent_of_its_last_checkpoint(tmp_path):
    run = make_run(tmp_path / "runs" / "going", finished=False)
    for checkpoint in ("000010", "000020", ".000030.new"):  # the last one is half written
        shutil.copytree(run / "agent", run / "checkpoints" / checkpoint / "agent")
    shutil.rmtree(run / "agent")
    last = run / "checkpoints" / "000020" / "agent"
    offered = find_agents(None, None, run.parent)
    assert [(agent.model, agent.run) for agent in offered] == [("builtin", None), (str(last), run)]
    assert find_agent(str(last)) == offered[1]
    assert "from its checkpoint 000020, started from builtin. It has not finished." in offered[1].story
    with pytest.raises(ValueError, match=f"has not saved an agent yet; its last checkpoint's agent is {last}"):
        find_agent(str(run))


def test_the_agent_of_a_run_that_goes_on_is_that_of_a_checkpoint_that_is_still_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("runs") / "going", finished=False)
    for checkpoint in ("000010", "copy-of-10"):
        shutil.copytree(run / "agent", run / "checkpoints" / checkpoint / "agent")
    shutil.rmtree(run / "agent")
    chat = Chat.open(intent_model=None)
    assert chat.choices["going"].model == str(run / "checkpoints" / "000010" / "agent")
    (run / "checkpoints" / "000010").rename(run / "checkpoints" / "000020")
    assert chat.agent("going").chat("Hi!")


def test_a_run_without_an_agent_or_with_a_broken_configuration_is_a_clear_error(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="has not saved an agent yet"):
        find_agent(str(tmp_path))
    (tmp_path / "agent").mkdir()
    (tmp_path / "config.json").write_text('{"mod', encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot read .*config\.json"):
        find_agent(str(tmp_path))


def test_the_results_page_shows_a_run_as_text(tmp_path):
    run = make_run(tmp_path / "run")
    html = results_page(run) + samples_page(run)
    assert "The run's reward" in html
    assert not re.search(r"<p\b[^>]*>\s*<p\b", html)  # a browser would end the outer paragraph before the inner one
    assert "Return: from 0.1 to 0.3" in html
    assert "<td>0.1250</td><td>0.2500</td><td>+100.0%</td><td>+80.0%</td><td>+120.0%</td>" in html
    assert "stroke-dasharray" in html  # the target of the KL
    assert "Hi &lt;b&gt;" in html and "&lt;i&gt;Yes&lt;/i&gt; ." in html and "*No*" in html
    assert "0.250 before, 0.500 after (+0.250)" in html
    assert "<b>" not in html


def test_samples_are_sorted_by_their_change_and_other_runs_are_laid_over(tmp_path):
    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other")
    sample = {"context": ["Hi"], "before": "b", "after": "a", "people": "p"}
    samples = [{**sample, "after": f"number {r}", "rewards": [0.5, 0.5 + r]} for r in (0.1, -0.5, 0.7)]
    (run / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
    for order, expected in (("", "0.1 -0.5 0.7"), ("improved", "0.7 0.1 -0.5"), ("worsened", "-0.5 0.1 0.7")):
        assert " ".join(re.findall(r"number ([\d.-]+)", samples_page(run, order))) == expected
    assert "<u>" not in results_page(run, {"<u>": other}) and "&lt;u&gt;" in results_page(run, {"<u>": other})


def test_the_results_page_tells_what_is_not_there_yet(tmp_path):
    html = results_page(make_run(tmp_path / "run", finished=False))
    assert "has not written evaluation.json yet" in html
    (tmp_path / "run" / "metrics.jsonl").write_text("[]\n", encoding="utf-8")
    assert "Cannot read" in results_page(tmp_path / "run")


def in_terminal(typed, *flags):
    return subprocess.run(
        [sys.executable, str(ROOT / "chat_app.py"), "--terminal", *flags],
        input=typed,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        cwd=ROOT,
        timeout=120,
    )


def test_the_terminal_talks_over_a_pipe():
    lines = ("Hi!", "How are you?", "reset", "Hi!", "", "no UTF-8: \udce9", "quit", "never read")
    ended = in_terminal("\n".join(lines), "--agent", "builtin", "--seed", "1")
    assert ended.returncode == 0, ended.stderr
    replies = [line[9:] for line in ended.stdout.splitlines() if line.startswith("> Agent: ")]
    builtin = DialogueAgent.load("builtin")
    how = {"sample": True, "temperature": USUAL.temperature, "top_k": 20, "seed": 1}
    assert len(replies) == 4
    assert replies[0] == replies[2] == builtin.chat("Hi!", **how)
    assert replies[1] == builtin.chat("How are you?", ["Hi!", replies[0]], **how)
    assert "(the message is empty)" in ended.stdout and "never read" not in ended.stdout


def test_an_agent_that_is_not_there_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["chat_app.py", "--agent", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: cannot load model"):
        runpy.run_path(str(ROOT / "chat_app.py"), run_name="__main__")


@pytest.fixture
def app(monkeypatch):
    """Runs chat_app.py in this process with some flags and lines that are typed."""

    def app(*flags: str, typed: str = "") -> None:
        monkeypatch.setattr(sys, "argv", ["chat_app.py", *flags])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        runpy.run_path(str(ROOT / "chat_app.py"), run_name="__main__")

    return app


def said(output: str) -> list[str]:
    return [line.removeprefix("> Agent: ") for line in output.splitlines() if line.startswith("> Agent: ")]


def test_the_greedy_terminal_always_takes_the_likeliest_token(app, capsys):
    app("--agent", "builtin", "--terminal", "--greedy", typed="Hi!\nHow are you?\n")
    builtin = DialogueAgent.load("builtin")
    first = builtin.chat("Hi!")
    assert said(capsys.readouterr().out) == [first, builtin.chat("How are you?", ["Hi!", first])]


@pytest.mark.parametrize("model_type", ["gpt2", "own"])
def test_python_code_of_an_agent_runs_only_where_it_is_trusted(app, model_type, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(ASSETS / "policy", tmp_path / "agent")
    mark = add_code(folder, tmp_path, monkeypatch, model_type=model_type)
    talk = ("--agent", str(folder), "--terminal", "--seed", "1")
    if model_type == "own":
        with pytest.raises(
            SystemExit, match=r"^error: cannot load model .*Only an agent's may run: chat_app.py --trust-remote-code"
        ):
            app(*talk, typed="Hi!\n")
    else:
        app(*talk, typed="Hi!\n")
    assert not mark.exists()
    app(*talk, "--trust-remote-code", typed="Hi!\n")
    assert mark.exists()
    builtin = DialogueAgent.load("builtin")
    how = {"sample": True, "temperature": USUAL.temperature, "top_k": USUAL.top_k, "seed": 1}
    assert said(capsys.readouterr().out)[-1] == builtin.chat("Hi!", **how)


def test_the_page_of_the_command_line(app, tiny_intent_model, tmp_path, monkeypatch):
    """All but the wait at the end: the default address, the flags of `launch`, and where votes go."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs/a")
    served, chats, find = [], [], Chat.open
    monkeypatch.setattr(Chat, "open", lambda *args: chats.append(find(*args)) or chats[0])
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda page: served.append(page))
    proxy, acts = "https://talk.example.org/chat", ("question", "inform", "directive", "commissive")
    judge = ("--intent-model", tiny_intent_model, "--intent-labels", *acts)
    try:
        app("--root-path", proxy, "--auth", "me:secret", *judge)
        (page,) = served
        assert page.server_name == "127.0.0.1" and 7860 <= page.server_port < 7960 and not page.share
        assert chats[0].intent.acts.tolist() == [2, 1, 3, 4]
        with httpx.Client(base_url=f"http://127.0.0.1:{page.server_port}/") as client:
            assert client.get("config").status_code == 401
            client.post("login", data={"username": "me", "password": "secret"})
            assert client.get("config").json()["root"].startswith(proxy)
            talk = ["Hi!", [], True, 1.0, 20, 1.0, 4, 1]  # and the settings
            answer = client.post("gradio_api/run/compare", json={"data": talk}).json()
            ticket = answer["data"][0]["ticket"]
            count = client.post("gradio_api/run/vote", json={"data": [ticket, "start"]}).json()["data"]
    finally:
        for each in served:
            each.close()
    assert count == [1]
    assert json.loads((tmp_path / "runs/a/votes.jsonl").read_text(encoding="utf-8"))["preferred"] == "start"
