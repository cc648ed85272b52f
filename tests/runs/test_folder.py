"""A run's folder: names, and two processes that want the same one."""

import re
import threading

import pytest

from dailydialog_gym.runs.folder import lock, make_folder


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "../../x",
        "/tmp/x",
        "a/b",
        "a\\b",
        "C:x",
        ".hidden",
        "a.",
        "a ",
        "a\nb",
        "what?",
        "x" * 201,
        "é" * 101,
        "\udcff",
        "x\udcff",
        "con",
        "NUL",
        "aux.txt",
        "Com1",
        "lpt¹.tar.gz",
        "prn .x",
        "CONIN$",
    ],
)
def test_a_name_that_is_no_folder_in_runs_is_refused(tmp_path, name):
    with pytest.raises(
        ValueError, match=re.escape(f"--run-name {name[:80]!r}: expected the name of a folder in runs/")
    ):
        make_folder(tmp_path / "runs", name, "{}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "lr=1e-3, seed 2", "v1.2", "é" * 100, "x" * 200, "console", "com10", "a.con"])
def test_other_names_are_folders(tmp_path, name):
    folder = make_folder(tmp_path / "runs", name, "{}")
    assert folder == tmp_path / "runs" / name
    assert [path.name for path in folder.parent.iterdir()] == [name]
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_one_of_several_that_want_a_name_gets_it(tmp_path):
    won, lost = [], []
    barrier = threading.Barrier(8)

    def run(number):
        barrier.wait()
        try:
            won.append(make_folder(tmp_path, "run", str(number)))
        except FileExistsError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert all("run exists: choose another --run-name" in text for text in lost)
    assert len(lost) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path):
    held = lock(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (tmp_path, tmp_path / "link"):
        with pytest.raises(ValueError, match=r"is in use \(locked by process \d+ on .* at .*\): wait until it ends"):
            lock(path)
    held.release()
    lock(tmp_path).release()
