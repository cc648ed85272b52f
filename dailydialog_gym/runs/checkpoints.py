"""A run's checkpoints, and files and folders that are complete at any moment, even if the process is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch


class Stateful(Protocol):
    """An object that a checkpoint can hold: a torch module or optimizer, the environment, the KL coefficient."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class RandomState:
    """The random generators that a script uses: torch's for the CPU and for the current GPU, and one of numpy."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": self.rng.bit_generator.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        torch.set_rng_state(state_dict["torch"])
        if state_dict["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state_dict["cuda"])
        self.rng.bit_generator.state = state_dict["numpy"]


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Replace the folder ``target`` with what ``write`` puts into the empty folder that it is given.

    If the process is killed or the machine stops, ``target`` is the complete old or the complete new folder. For an
    instant between the two it does not exist.
    """
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        write(fresh)
        for path in (*fresh.rglob("*"), fresh):
            _sync(path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_file(target: Path, write: Callable[[Path], Any]) -> None:
    """Replace the file ``target`` with what ``write`` puts into the path that it is given.

    ``target`` is the complete old or the complete new file at any moment.
    """
    fresh = target.with_name(f".{target.name}.new")
    try:
        write(fresh)
        _sync(fresh)
        fresh.replace(target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_text(target: Path, text: str) -> None:
    """Replace the content of the file ``target``, see `write_file`."""
    write_file(target, lambda fresh: fresh.write_text(text))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Checkpoints:
    """The last checkpoint of a run, ``<folder>/<iteration>``, with the agent folder ``agent/`` and ``state.pt``.

    Args:
        folder: the folder for the checkpoints.
        write_agent: writes the policy as an agent folder.
        parts: by name, all objects whose state the run depends on.
    """

    def __init__(self, folder: Path, write_agent: Callable[[Path], None], parts: Mapping[str, Stateful]):
        self.folder, self._write_agent, self._parts = folder, write_agent, parts

    @property
    def last(self) -> Path | None:
        """The folder of the newest checkpoint, None if there is none."""
        numbers = [int(path.name) for path in self.folder.glob("*") if path.name.isdecimal()]
        return self.folder / f"{max(numbers):06}" if numbers else None

    def save(self, iteration: int, progress: dict[str, Any]) -> Path:
        """Write a checkpoint, then remove the previous one. Returns: the checkpoint's folder.

        Args:
            iteration: the number of iterations that are done.
            progress: what else `load` shall return: tensors, numbers, texts, lists and dicts of them.

        Raises:
            SystemExit: the disk is full or fails; the message names the previous checkpoint, which stays complete.
        """
        last, target = self.last, self.folder / f"{iteration:06}"
        try:
            write_folder(target, lambda folder: self._write(folder, iteration, progress))
        except Exception as error:  # a full disk is an OSError, a RuntimeError or a SafetensorError, by library
            rest = f"the last checkpoint, {last}, is whole" if last else "there is no earlier checkpoint"
            # torch replaces the system's error by one of its own
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            raise SystemExit(f"cannot save checkpoint {target}: {reason}; {rest}") from error
        self._remove_all_but(target)
        return target

    def _remove_all_but(self, kept: Path) -> None:
        for path in self.folder.iterdir():
            if path != kept:
                shutil.rmtree(path)

    def _write(self, folder: Path, iteration: int, progress: dict[str, Any]) -> None:
        self._write_agent(folder / "agent")
        state = {name: part.state_dict() for name, part in self._parts.items()}
        with open(folder / "state.pt", "wb") as file:
            torch.save({"iteration": iteration, "progress": progress, "parts": state}, file)

    def load(self) -> tuple[int, dict[str, Any]]:
        """Load the newest checkpoint into the parts, and remove incomplete ones that a killed run has left.

        Returns: the checkpoint's iteration and progress; 0 and {} if there is no checkpoint.
        """
        if self.last is None:
            return 0, {}
        # weights_only admits tensors and plain data, but no code
        saved = torch.load(self.last / "state.pt", map_location="cpu", weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(saved["parts"][name])
        self._remove_all_but(self.last)
        return saved["iteration"], saved["progress"]
