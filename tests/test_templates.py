"""A chat template that does not end, or writes without end, is refused; and good ones are not."""

import io
import json
import shutil
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from transformers import AutoTokenizer

from dailydialog_gym import templates
from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.tokenizer import load_tokenizer
from dailydialog_gym.templates import InTime, render_apart

NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
ENDS = "{% endfor %}{% endfor %}{% endfor %}"
GOOD = (
    "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content | tojson }}{% else %}"
    "{% generation %}<a>{{ m['content'] }}{% endgeneration %}{% endif %}{% endfor %}{{ strftime_now('%Y') }}"
)
# All that transformers adds to Jinja
RICH = (
    "{% set ns = namespace(count=0) %}{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{% set ns.count = ns.count + 1 %}<{{ m | tojson(indent=1) }}>\n{% endfor %}{{ ns.count }}"
    "{% if messages | length > 9 %}{{ raise_exception('long') }}{% endif %}{{ dict(a='<é>') | tojson }}"
    "{{ tools is none }}{{ documents is none }}{{ tools is defined }}{{ eos_token }}{{ unk_token }}{{ bos_token }}"
    "{{ raise_exception is defined }}{% if add_generation_prompt %}<a>{% endif %}"
)
TURNS = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b\u00e9"), ("user", "<c>"))]


def render(template):
    return render_apart("a", template, TURNS, {"eos_token": "</s>"})


@pytest.mark.parametrize(
    "template",
    [
        NESTED + ENDS,
        "{% generation %}" + NESTED + ENDS + "{% endgeneration %}",
        NESTED + "{{ messages }}" + ENDS,
        "{{ 'x' * 10 ** 12 }}",
        "{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    ],
)
def test_a_template_without_an_end_is_refused(monkeypatch, template):
    monkeypatch.setattr(templates, "SECONDS", 0.5)
    start = time.monotonic()
    fault = "(does not end within 0.5 seconds|writes more than 1,000,000 characters)"
    with pytest.raises(ValueError, match=rf"^the chat template of tokenizer 'a' {fault}: .* \(no --chat-template;"):
        render(template)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("template", [GOOD, RICH, ""])
def test_the_text_is_that_of_transformers(tiny_instruct_model, template):
    tokenizer = AutoTokenizer.from_pretrained(tiny_instruct_model)
    tokenizer.chat_template = template
    expected = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert render_apart("a", template, TURNS, tokenizer.special_tokens_map) == expected


def bomb(condition):
    """A template that writes without end, and at once, under some condition."""
    return f"{{% if {condition} %}}{{{{ messages[0].role * 10 ** 12 }}}}{{% endif %}}"


@pytest.mark.parametrize(
    "condition",
    [
        "raise_exception is defined",
        "tools is defined",
        "messages[1].content == 'MARK'",
        "eos_token != ''",
        "add_generation_prompt",
    ],
)
def test_no_condition_lets_a_template_run_in_this_process_while_it_is_loaded(tiny_instruct_model, tmp_path, condition):
    tokenizer = AutoTokenizer.from_pretrained(tiny_instruct_model)
    tokenizer.chat_template = bomb(condition) + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="writes more than 1,000,000 characters"):
        load_tokenizer(str(tmp_path), chat_template=True)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_have_no_limit_of_memory(monkeypatch, capsys, platform):
    monkeypatch.setattr(templates.sys, "platform", platform)
    monkeypatch.setattr(templates.sys, "stdin", io.StringIO(json.dumps([GOOD, TURNS, {}])))
    monkeypatch.setitem(sys.modules, "resource", None)  # importing it would fail
    templates._render()
    text, fault = json.loads(capsys.readouterr().out)
    assert text.startswith('<u>"a"<a>bé<u>"<c>"2') and fault is None


def test_a_process_that_cannot_render_says_why(monkeypatch, tmp_path):
    (tmp_path / "jinja2.py").write_text("raise ImportError('no such luck')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"of tokenizer 'a' could not be rendered in a process .*: ImportError: no such luck"
    ):
        render(GOOD)


def test_what_does_not_end_in_time_is_never_called_again():
    forever, calls = threading.Event(), []
    in_time = InTime("the wait", 0.2)
    assert in_time(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(KeyError, match="own"):
        in_time({}.__getitem__, "own")
    with pytest.raises(ValueError, match=r"^the wait did not end within 0.2 seconds"):
        in_time(forever.wait)
    with pytest.raises(ValueError, match=r"^the wait did not end"):
        in_time(calls.append, 1)
    assert calls == []
    forever.set()


LOAD = """
import sys
from pathlib import Path
from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.models.decoding import Decoding

folder = sys.argv[1]
file = Path(folder, "chat_template.jinja")
good = file.read_text(encoding="utf-8")
forever = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
file.write_text("{% if 'bomb' in messages[0].content %}" + forever + "{% endif %}" + good, encoding="utf-8")
try:
    agent = DialogueAgent.load(folder)
    agent._in_time._seconds = 1
    agent.open_reply(["Hello."], Decoding())
    print("loaded")
    agent.open_reply(["bomb"], Decoding())
except ValueError as error:
    print(error)
"""


def test_a_model_whose_template_has_no_end_is_refused(tiny_instruct_model, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_instruct_model, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(NESTED + ENDS, encoding="utf-8")
    monkeypatch.setattr(templates, "SECONDS", 0.5)
    for load in partial(load_tokenizer, chat_template=True), DialogueAgent.load:
        with pytest.raises(
            ValueError, match=f"^the chat template of tokenizer '{folder}' does not end within 0.5 seconds"
        ):
            load(str(folder))


def test_a_template_that_has_no_end_for_some_messages_hangs_nobody(tiny_instruct_model, tmp_path):
    """In a process of its own, since the thread that renders it can't be ended."""
    folder = shutil.copytree(tiny_instruct_model, tmp_path / "model")
    assert (folder / "chat_template.jinja").exists()
    command = [sys.executable, "-c", LOAD, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    said = "loaded\nthe chat template did not end within 10 seconds, so it is not used any more"
    assert done.stdout.strip() == said
