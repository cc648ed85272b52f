"""Files and folders are written whole or not at all."""

import pytest

from dailydialog_gym.files import write_folder, write_text


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "parent/folder"
    write_folder(target, lambda folder: (folder / "a").write_text("old", encoding="utf-8"))

    def fail(folder):
        (folder / "b").write_text("new", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(target, fail)
    assert [path.name for path in target.parent.iterdir()] == ["folder"]
    assert [path.name for path in target.iterdir()] == ["a"]
    write_folder(target, lambda folder: (folder / "b").write_text("new", encoding="utf-8"))
    assert [path.name for path in target.iterdir()] == ["b"]
    with pytest.raises(UnicodeEncodeError):
        write_text(target / "b", "half a character: \ud800")
    assert [path.read_text(encoding="utf-8") for path in target.iterdir()] == ["new"]
    write_text(target / "b", "newer")
    assert [path.read_text(encoding="utf-8") for path in target.iterdir()] == ["newer"]
