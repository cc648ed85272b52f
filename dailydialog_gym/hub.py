"""Whether the Hugging Face hub can be reached, and whether a clone from it is whole."""

from __future__ import annotations

from pathlib import Path

from dailydialog_gym.files import check_file

TIMEOUT = 5.0  # seconds for the hub's first answer


def hub_is_off() -> bool:
    """Whether the Hugging Face hub is switched off or doesn't answer; its own clients would retry for half a minute."""
    import huggingface_hub

    if huggingface_hub.is_offline_mode():
        return True
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=TIMEOUT)
    except Exception:  # the client's library, and so the kind of error, differs between versions
        return True
    return False


def refuse_pointer(path: Path) -> None:
    """Raise ValueError if a path is no file, or what a clone without Git LFS has in the place of a large file."""
    check_file(path)
    mark = b"version https://git-lfs.github.com/spec/"
    with open(path, "rb") as file:
        if file.read(len(mark)) == mark:
            raise ValueError(f"{path} is a pointer of Git LFS, not the data itself: run git lfs pull in its folder")


def why(error: Exception) -> str:
    """The message of an error of transformers, or, if a model needs Python code of its own, how to allow that.

    In that case transformers names an argument of Python, which a command does not have.
    """
    if "trust_remote_code" not in str(error):
        return str(error)
    return (
        "it needs Python code that comes with it. Only an agent's may run: chat_app.py --trust-remote-code, or "
        "trust_remote_code=True of DialogueAgent.load"
    )


def only_local_files(name: str) -> bool:
    """Whether a model or tokenizer must be read from the disk: it is a folder, or the hub is off."""
    return Path(name).is_dir() or hub_is_off()
