"""What Windows, macOS and other Pythons need, as far as it shows on the system that runs the tests."""

import ast
import io
import os
import re
import signal
import subprocess
import sys
import tomllib

import pytest
from paths import ROOT

from dailydialog_gym import files
from dailydialog_gym.errors import print_any_character
from dailydialog_gym.files import write_folder, write_text
from dailydialog_gym.runs.run import stop_signals, terminal_signals

CODE = [*sorted((ROOT / "dailydialog_gym").rglob("*.py")), *sorted(ROOT.glob("*.py"))]
FILES = [*CODE, *sorted(ROOT.glob("benchmarks/*.py")), *sorted(ROOT.glob("tests/**/*.py"))]
SCRIPTS = [path for path in CODE if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def calls(path):
    """The calls in a file: the name that is called, and the node."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "attr", None) or getattr(node.func, "id", None), node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_has_an_encoding(path):
    """Windows would take the language's own. ruff's PLW1514 overlooks paths whose type it can't infer."""
    for name, call in calls(path):
        keywords = {keyword.arg for keyword in call.keywords}
        if name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute):
            assert "encoding" in keywords, f"{path}:{call.lineno}"
        if name == "open" and not ast.unparse(call.func).startswith(("os.", "Chat.", "Image.")):
            modes = [word.value for word in call.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
            binary = any(mode in ("rb", "wb", "ab", "ab+") for mode in modes)
            assert binary or "encoding" in keywords, f"{path}:{call.lineno}"


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_that_windows_lacks_are_imported_only_where_they_exist(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "sys.platform" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert node in guarded or not {"fcntl", "resource", "pwd", "grp", "termios"} & set(names), f"{path}: {names}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_can_be_imported_by_a_process_that_they_start(path):
    """Windows and macOS start processes by importing the script again, which must not run it again."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Expr, ast.If)
    assert all(isinstance(node, allowed) for node in tree.body)
    assert all("__name__" in ast.unparse(node.test) for node in tree.body if isinstance(node, ast.If))
    assert all(isinstance(node.value, ast.Constant) for node in tree.body if isinstance(node, ast.Expr))


def test_on_windows_no_folder_is_opened_and_files_are_synced(tmp_path, monkeypatch):
    opened = []

    def open_file(path, flags):
        assert not path.is_dir()
        assert flags & (os.O_RDWR | os.O_WRONLY)
        opened.append(path.name)
        return open_really(path, flags)

    open_really = os.open
    monkeypatch.setattr(files.sys, "platform", "win32")
    monkeypatch.setattr(files.os, "open", open_file)
    write_folder(tmp_path / "folder", lambda new: [(new / name).write_bytes(b"1") for name in "ab"])
    assert sorted(opened) == ["a", "b"]
    monkeypatch.undo()
    write_text(tmp_path / "é", "é")
    assert (tmp_path / "é").read_bytes() == "é".encode()


def test_a_system_without_sigterm_handlers_still_stops_by_ctrl_c():
    assert stop_signals("win32") == terminal_signals("win32") == (signal.SIGINT,)
    for platform in ("linux", "darwin"):
        assert terminal_signals(platform) == (signal.SIGINT, signal.SIGHUP)
        assert stop_signals(platform) == (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)


def test_texts_are_read_as_utf_8_under_another_encoding(tmp_path):
    """Python's own encoding here is ASCII, so a file that is read or written without one fails."""
    code = (
        "import locale, gymnasium, dailydialog_gym, sys; assert locale.getencoding() != 'UTF-8', 'the test is void'\n"
        "env = gymnasium.make('DailyDialog-v0'); env.reset(seed=1)\n"
        "from dailydialog_gym.rewards.meteor import meteor; meteor('a', 'b')\n"
        "from dailydialog_gym.agent import DialogueAgent; DialogueAgent.load('builtin').chat('Hi.')\n"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error::EncodingWarning", "-c", code]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)


def test_a_reply_of_any_characters_can_be_printed(monkeypatch):
    """Windows redirects to a file in an encoding of one language."""
    file = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", file)
    print_any_character()
    print("é 你", flush=True)
    assert file.buffer.getvalue().decode("cp1252").strip() == "é \\u4f60"


def test_the_oldest_python_is_the_same_everywhere():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = pyproject["project"]["requires-python"].removeprefix(">=")
    assert pyproject["tool"]["mypy"]["python_version"] == oldest
    newest = re.search(rf"^for version in {oldest} .*(3\.\d+); do$", read(".ci/pythons"), re.MULTILINE)[1]
    assert f"Python {oldest} or newer" in read("README.md")
    assert f"every Python from {oldest} to {newest} that is installed" in read(".ci/pythons")
    promised = " ".join(read("docs/reliability.md").split())
    assert f"the fast tests under every Python from {oldest} to {newest} that it finds" in promised
