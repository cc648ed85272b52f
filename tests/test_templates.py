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

from dailydialog_gym import templates
from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.tokenizer import load_tokenizer
from dailydialog_gym.templates import InTime, check_template

NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
ENDS = "{% endfor %}{% endfor %}{% endfor %}"
GOOD = (
    "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content | tojson }}{% else %}"
    "{% generation %}<a>{{ m['content'] }}{% endgeneration %}{% endif %}{% endfor %}{{ strftime_now('%Y') }}"
)


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
    monkeypatch.setattr(templates, "SECONDS", 1.5)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"^the chat template of 'a' (does not end within 1.5|writes more than 1,0)"):
        check_template("a", template)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "template", [GOOD, "", "{% nonsense", "{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ x.y }}"]
)
def test_other_templates_pass(template):
    check_template("a", template)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_have_no_limit_of_memory(monkeypatch, platform):
    monkeypatch.setattr(templates.sys, "platform", platform)
    monkeypatch.setattr(templates.sys, "stdin", io.StringIO(json.dumps(GOOD)))
    monkeypatch.setitem(sys.modules, "resource", None)  # importing it would fail
    templates._render()


def test_a_process_that_cannot_render_says_why(monkeypatch, tmp_path):
    (tmp_path / "jinja2.py").write_text("raise ImportError('no such luck')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"of 'a' could not be rendered in a process .*: ImportError: no such luck"):
        check_template("a", GOOD)


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
    monkeypatch.setattr(templates, "SECONDS", 1.5)
    for load in partial(load_tokenizer, chat_template=True), DialogueAgent.load:
        with pytest.raises(ValueError, match=f"^the chat template of '{folder}' does not end within 1.5 seconds"):
            load(str(folder))


def test_a_template_that_has_no_end_for_some_messages_hangs_nobody(tiny_instruct_model, tmp_path):
    """In a process of its own, since the thread that renders it can't be ended."""
    folder = shutil.copytree(tiny_instruct_model, tmp_path / "model")
    assert (folder / "chat_template.jinja").exists()
    command = [sys.executable, "-c", LOAD, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    said = "loaded\nthe chat template did not end within 10 seconds, so it is not used any more"
    assert done.stdout.strip() == said
