import pytest

from dailydialog_gym.embedded import ASSETS


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A fifth of the builtin dialogues."""
    path = tmp_path_factory.mktemp("data") / "dialogues.jsonl"
    path.write_text(
        "".join((ASSETS / "dialogues.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[::5]),
        encoding="utf-8",
    )
    return str(path)
