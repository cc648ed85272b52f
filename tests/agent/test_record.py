"""What an agent's folder tells about its training."""

import json

import pytest

from dailydialog_gym.agent import AgentRecord, DialogueAgent, find_agent_folder, save_agent
from dailydialog_gym.agent.record import FILE
from dailydialog_gym.env import EOU, load_samples
from dailydialog_gym.models.decoding import Decoding
from dailydialog_gym.models.loading import load_model
from dailydialog_gym.text import join_punctuation

RECORD = AgentRecord("my.jsonl", 0.1, 3, 64, 12, "ordinary")


@pytest.fixture
def run(tmp_path):
    """A run folder with an agent."""
    folder = tmp_path / "runs/NAME"
    save_agent(load_model("builtin"), "builtin", folder / "agent", RECORD)
    return folder


def test_a_run_folder_is_its_agents_folder(run):
    for name in (run, run / "agent"):
        assert find_agent_folder(str(name)) == (str(run / "agent"), RECORD)
    assert find_agent_folder("builtin") == ("builtin", AgentRecord())
    assert find_agent_folder("someone/model") == ("someone/model", None)
    with pytest.raises(ValueError, match="the name of the agent is empty"):
        find_agent_folder("")


def test_an_agent_has_the_shape_and_the_spacing_that_it_was_trained_with(run):
    agent = DialogueAgent.load(str(run))
    assert (agent.context_size, agent.max_prompt_length, agent.max_new_tokens) == (3, 64, 12)
    said = "Hi, Ann! How are you?"
    read = {name: DialogueAgent.load(name).open_reply([said], Decoding()).prompt_ids for name in (str(run), "builtin")}
    tokenizer = agent.tokenizer
    assert read[str(run)] == tokenizer.encode([f"{said} <EOU>"])[0]
    assert read["builtin"] == tokenizer.encode(["Hi , Ann ! How are you ? <EOU>"])[0]
    ids = tokenizer.encode(["Fine , thanks ."])[0]
    assert (agent.reply_text(ids), DialogueAgent.load("builtin").reply_text(ids)) == (
        "Fine , thanks .",
        "Fine, thanks.",
    )
    assert DialogueAgent.load(str(run), max_new_tokens=5).max_new_tokens == 5


def test_replies_are_given_in_the_spacing_of_the_prompts(run):
    ordinary, agent = DialogueAgent.load(str(run)), DialogueAgent.load("builtin", max_new_tokens=12)
    prompts = [text for text in load_samples("builtin", "test").prompts if EOU not in text.removesuffix(EOU)][:8]
    replies = agent.reply(prompts)
    expected = [join_punctuation(text) for text in replies]
    assert expected != replies
    assert agent.reply([join_punctuation(text) for text in prompts], spacing="ordinary") == expected
    assert ordinary.own_text("Yes, I do.") == "Yes, I do." and agent.own_text("Yes, I do.") == "Yes , I do ."


def test_a_class_of_its_own_must_be_named_again(run):
    """No class is imported because a folder names it."""
    values = json.loads((run / "agent" / FILE).read_text(encoding="utf-8")) | {"policy_class": "my_models:MyPolicy"}
    (run / "agent" / FILE).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match="was trained with a class of its own: add --policy-class my_models:MyPolicy"):
        DialogueAgent.load(str(run))
    model_class = type(load_model("builtin"))
    assert isinstance(DialogueAgent.load(str(run), model_class=model_class).model, model_class)


def test_the_flags_of_a_run_count_where_its_agent_has_no_record(run):
    (run / "agent" / FILE).unlink()
    (run / "config.json").write_text(
        '{"context_size": 2, "model": "builtin", "policy_class": "my_models:MyPolicy"}', encoding="utf-8"
    )
    assert find_agent_folder(str(run))[1] == AgentRecord(context_size=2, policy_class="my_models:MyPolicy")


def test_a_run_without_an_agent_names_its_last_checkpoint(run):
    (run / "metrics.jsonl").touch()
    (run / "checkpoints/000010").mkdir(parents=True)
    (run / "agent").rename(run / "checkpoints/000010/agent")
    with pytest.raises(ValueError, match=r"has not saved an agent yet; its last checkpoint's agent is .*000010/agent"):
        find_agent_folder(str(run))
    assert find_agent_folder(str(run / "checkpoints/000010/agent"))[1] == RECORD


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read .*: expected what an agent was trained with, as JSON"),
        ("[" * 100_000, "cannot read .*: expected what an agent was trained with, as JSON"),
        ("[]", "expected a JSON object, got list"),
        ('{"memory": 3}', "unknown entries memory: the agent is of a newer version"),
        ('{"context_size": "5"}', "expected context_size to be like 5, got '5'"),
        ('{"context_size": 0}', "expected context_size to be like 5, got '0'"),
        ('{"max_new_tokens": true}', "expected max_new_tokens to be like 20, got 'True'"),
        ('{"spacing": "wide"}', "expected spacing to be like 'spaced', got 'wide'"),
    ],
)
def test_a_record_that_cannot_be_honoured_is_one_sentence(run, content, message):
    (run / "agent" / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        DialogueAgent.load(str(run))


def test_an_agent_with_a_template_keeps_it(tiny_instruct_model, tmp_path):
    record = AgentRecord(chat_template=True, max_new_tokens=4)
    save_agent(load_model(tiny_instruct_model), tiny_instruct_model, tmp_path, record)
    agent = DialogueAgent.load(str(tmp_path))
    assert agent.template and agent.max_prompt_length == 128
    text = agent.template.decode(agent.open_reply(["Hi!"], Decoding(max_new_tokens=4)).prompt_ids)
    assert text.split() == ["<|im_start|>", "user", "Hi", "!", "<|im_end|>", "<|im_start|>", "assistant"]
    assert isinstance(agent.chat("Hi!"), str)
