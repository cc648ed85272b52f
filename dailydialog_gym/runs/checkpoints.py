"""Folders that are written whole or not at all, and what of a run they hold."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch


class Stateful(Protocol):
    """What a checkpoint can hold: torch's modules and optimizers, the environment, the KL coefficient."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class RandomState:
    """The generators that a script draws from: torch's, of the processor and of every GPU, and one of numpy."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": self.rng.bit_generator.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        torch.set_rng_state(state_dict["torch"])
        if state_dict["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state_dict["cuda"])
        self.rng.bit_generator.state = state_dict["numpy"]


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Make the folder ``target`` of what ``write`` puts into the empty folder it is given.

    Whenever the process is killed or the machine stops, ``target`` is whole: the new one, the old one, or (for an
    instant, where there was an old one) missing.
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


def write_text(target: Path, text: str) -> None:
    """Replace the file ``target``; it is whole at any time, as a folder of `write_folder` is."""
    fresh = target.with_name(f".{target.name}.new")
    try:
        fresh.write_text(text)
        _sync(fresh)
        fresh.replace(target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Checkpoints:
    """The last checkpoint of a run, ``<folder>/<iteration>``: ``agent/``, as `save_agent` writes it, and ``state.pt``.

    Args:
        folder: where they stand.
        write_agent: saves the policy into a folder.
        parts: all that the run depends on, by name.
    """

    def __init__(self, folder: Path, write_agent: Callable[[Path], None], parts: Mapping[str, Stateful]):
        self.folder, self._write_agent, self._parts = folder, write_agent, parts

    @property
    def last(self) -> Path | None:
        """The newest checkpoint."""
        numbers = [int(path.name) for path in self.folder.glob("*") if path.name.isdecimal()]
        return self.folder / f"{max(numbers):06}" if numbers else None

    def save(self, iteration: int, progress: dict[str, Any]) -> Path:
        """Write a checkpoint, then remove the one before.

        Args:
            iteration: how many are done.
            progress: what else `load` is to give back; tensors, numbers, texts, lists and dicts.

        Raises:
            SystemExit: the disk is full or fails; the message names the last checkpoint, which stays whole.
        """
        last, target = self.last, self.folder / f"{iteration:06}"
        try:
            write_folder(target, lambda folder: self._write(folder, iteration, progress))
        except Exception as error:  # each library has its own for a full disk: OSError, RuntimeError, SafetensorError
            whole = f"the last checkpoint, {last}, is whole" if last else "there is none before it"
            # torch hides the system's error behind one of its own
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            raise SystemExit(f"cannot save checkpoint {target}: {reason}; {whole}") from error
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
        """Put the newest checkpoint into the parts, and remove what a killed run has left beside it.

        Returns: its iteration and progress; 0 and {} where none is.
        """
        if self.last is None:
            return 0, {}
        # weights_only: tensors and plain data, nothing that a file could make run
        saved = torch.load(self.last / "state.pt", map_location="cpu", weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(saved["parts"][name])
        self._remove_all_but(self.last)
        return saved["iteration"], saved["progress"]
