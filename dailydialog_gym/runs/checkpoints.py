"""A run's checkpoints, and the state of the random generators in them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dailydialog_gym.files import checksum, read_text, write_folder

_MANIFEST = "checkpoint.json"


class Stateful(Protocol):
    """An object that a checkpoint can hold: a torch module or optimizer, the KL coefficient, a reward model."""

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


def as_plain(state: Any) -> Any:
    """A state with numbers and tensors instead of NumPy's, which a checkpoint is not read with."""
    if isinstance(state, np.generic):
        return state.item()
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy())
    if isinstance(state, dict):
        return {key: as_plain(value) for key, value in state.items()}
    return [as_plain(value) for value in state] if isinstance(state, list) else state


class Checkpoints:
    """The last checkpoints of a run, folders ``<folder>/<iteration>`` of which each is complete at any moment.

    A checkpoint holds the agent folder ``agent/``, ``state.pt``, and ``checkpoint.json``: the iteration, the checksum
    of every other file, and the fingerprint. What else is in the folder is the user's, and is left alone.

    Args:
        folder: the folder for the checkpoints.
        write_agent: writes the policy as an agent folder.
        parts: by name, all objects whose state the run depends on.
        fingerprint: what the run depends on besides its flags, see `dailydialog_gym.runs.fingerprint`.
        keep: the number of checkpoints that are kept.

    Attributes:
        last: the folder of the newest checkpoint; None before `load` and `save` have found or written one.
    """

    def __init__(
        self,
        folder: Path,
        write_agent: Callable[[Path], None],
        parts: Mapping[str, Stateful],
        fingerprint: Mapping[str, Any] | None = None,
        keep: int = 2,
    ):
        self.folder, self._write_agent, self._parts = folder, write_agent, parts
        self._fingerprint, self._keep = fingerprint, keep
        self.last: Path | None = None

    def save(self, iteration: int, progress: dict[str, Any]) -> Path:
        """Write a checkpoint, then remove all but the last ones. Returns: the checkpoint's folder.

        Args:
            iteration: the number of iterations that are done.
            progress: what else `load` shall return: tensors, numbers, texts, lists and dicts of them.

        Raises:
            SystemExit: the disk is full or fails; the message names the previous checkpoint, which stays complete.
        """
        target = self.folder / f"{iteration:06}"

        def write(folder: Path) -> None:
            self._write(folder, iteration, progress)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            checksums = {path.relative_to(folder).as_posix(): checksum(path) for path in files}
            manifest = {"iteration": iteration, "files": checksums, "fingerprint": self._fingerprint}
            (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

        try:
            write_folder(target, write)
        except Exception as error:  # a full disk is an OSError, a RuntimeError or a SafetensorError, by library
            rest = f"the last checkpoint, {self.last}, is whole" if self.last else "there is no earlier checkpoint"
            # torch replaces the system's error by one of its own
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            raise SystemExit(f"error: cannot save checkpoint {target}: {reason}; {rest}") from error
        self.last = target
        self._remove_old()
        return target

    def _remove_old(self) -> None:
        """Remove all but the last checkpoints, and what a killed process has left while it wrote or removed one."""
        for path in self._all()[: -self._keep]:
            path.rename(path.with_name(f".{path.name}.old"))  # a kill never leaves a part of a checkpoint
        for path in self.folder.glob(".*"):
            if re.fullmatch(r"\.\d{6,}\.(new|old|universal)", path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _all(self) -> list[Path]:
        """The checkpoints from the oldest to the newest, damaged ones too, but no copy under another number."""
        numbered = sorted(
            (path for path in self.folder.glob("*") if re.fullmatch(r"\d{6,}", path.name)), key=lambda p: int(p.name)
        )
        return [
            path
            for path in numbered
            if any((path / name).exists() for name in ("state.pt", _MANIFEST))
            and _manifest(path).get("iteration", int(path.name)) == int(path.name)
        ]

    def _write(self, folder: Path, iteration: int, progress: dict[str, Any]) -> None:
        self._write_agent(folder / "agent")
        state = {name: as_plain(part.state_dict()) for name, part in self._parts.items()}
        with open(folder / "state.pt", "wb") as file:
            torch.save({"iteration": iteration, "progress": progress, "parts": state}, file)

    def load(self, check: Callable[[dict[str, Any]], None] = lambda fingerprint: None) -> tuple[int, dict[str, Any]]:
        """Load the newest checkpoint into the parts, and remove incomplete ones that a killed run has left.

        Args:
            check: gets the checkpoint's fingerprint, and raises an error if the run must not go on from it.

        Returns: the checkpoint's iteration and progress; 0 and {} if there is no checkpoint.

        Raises:
            ValueError: the checkpoint is damaged or of another run. The message names the file, and the checkpoint
                before it.
        """
        self._find(check)
        if self.last is None:
            return 0, {}
        saved = self._read_state(self.last)
        self._load_parts(self.last, saved["parts"])
        self._remove_old()
        return saved["iteration"], saved["progress"]

    def _find(self, check: Callable[[dict[str, Any]], None]) -> None:
        """Find the newest checkpoint, and compare its files with their checksums."""
        found = self._all()
        if not found:
            return
        self.last = last = found[-1]
        manifest = _manifest(last)
        if not manifest:
            raise self._unusable(last / _MANIFEST, "is missing or damaged")
        for name, expected in manifest["files"].items():
            if not (last / name).is_file():
                raise self._unusable(last / name, "is missing")
            if checksum(last / name) != expected:
                raise self._unusable(last / name, f"is damaged (its SHA-256 is not the one in {_MANIFEST})")
        check(manifest["fingerprint"])

    def _read_state(self, checkpoint: Path) -> dict[str, Any]:
        # weights_only admits tensors and plain data, but no code
        return torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)

    def _load_parts(self, checkpoint: Path, states: dict[str, Any]) -> None:
        try:
            for name, part in self._parts.items():
                part.load_state_dict(states[name])
        except (KeyError, RuntimeError, ValueError) as error:  # torch has no error of its own for another model's state
            raise self._unusable(checkpoint / "state.pt", f"does not fit this run ({error})") from error

    def _unusable(self, file: Path, fault: str) -> ValueError:
        before = [path for path in self._all() if path != self.last]
        cure = f"to go on from {before[-1]}, move {self.last} away" if before else "there is no earlier checkpoint"
        return ValueError(f"{file} {fault}; {cure}")


def _manifest(checkpoint: Path) -> dict[str, Any]:
    """The content of checkpoint.json; empty if it is missing or damaged."""
    try:
        manifest = json.loads(read_text(checkpoint / _MANIFEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) and manifest.keys() == {"iteration", "files", "fingerprint"} else {}
