"""A run of several ranks: rank 0 has the folder and talks, the others take part in what all do together."""

from __future__ import annotations

import os
import signal
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.checkpoint import ds_to_universal
from torch import distributed

from dailydialog_gym.agent import DialogueAgent, save_agent
from dailydialog_gym.distributed import ranks
from dailydialog_gym.distributed.engines import gathered
from dailydialog_gym.evaluate.evaluation import Evaluation
from dailydialog_gym.models.memory import forget_shapes, keep_freed_memory
from dailydialog_gym.runs.checkpoints import Checkpoints, Stateful
from dailydialog_gym.runs.run import Run


class RankedCheckpoints(Checkpoints):
    """`Checkpoints` with DeepSpeed's own beside, in which each rank writes its share of the weights and moments.

    Args:
        engines: what trains; the first has the policy.
        others: as in `Checkpoints`; each rank has its own parts.
    """

    def __init__(
        self,
        folder: Path,
        write_agent: Callable[[Path], None],
        parts: Mapping[str, Stateful],
        engines: Sequence[DeepSpeedEngine],
    ):
        super().__init__(folder, write_agent, parts)
        self._engines = engines

    def save(self, iteration: int, progress: dict[str, Any]) -> Path:
        """As `Checkpoints.save`, by all ranks together, with rank 0's progress; the folder must be one they share."""
        if distributed.get_rank() == 0:
            target = super().save(iteration, progress)
        else:
            target = self.folder / f"{iteration:06}"
            self._write(target.with_name(f".{target.name}.new"), iteration, progress)
        distributed.barrier()
        return target

    def _write(self, folder: Path, iteration: int, progress: dict[str, Any]) -> None:
        distributed.barrier()  # the folder is there
        for i, engine in enumerate(self._engines):
            engine.save_checkpoint(folder / "engines", f"engine{i}", save_latest=False)
        parts = ranks.gather({name: part.state_dict() for name, part in self._parts.items()})
        with gathered(self._engines[0]):
            if distributed.get_rank() == 0:
                self._write_agent(folder / "agent")
                with open(folder / "state.pt", "wb") as file:
                    torch.save({"iteration": iteration, "progress": progress, "parts": parts}, file)

    def load(self) -> tuple[int, dict[str, Any]]:
        """As `Checkpoints.load`, by all ranks together; another number of ranks goes by a universal checkpoint.

        On another number of ranks the tokens are drawn anew: those of the old ranks' generators belong to nobody.

        Raises:
            SystemExit: DeepSpeed can't turn the checkpoint into a universal one.
        """
        last = ranks.share(self.last)
        if last is None:
            return 0, {}
        # weights_only: tensors and plain data, nothing that a file could make run
        saved = torch.load(last / "state.pt", map_location="cpu", weights_only=True)
        before, now = len(saved["parts"]), distributed.get_world_size()
        rank = distributed.get_rank()
        self._load_engines(last / "engines", universal=before != now)
        generator = torch.get_rng_state()
        for name, part in self._parts.items():
            part.load_state_dict(saved["parts"][rank if before == now else 0][name])
        if before != now:
            torch.set_rng_state(generator)
        return saved["iteration"], saved["progress"]

    def _load_engines(self, folder: Path, universal: bool) -> None:
        for i, engine in enumerate(self._engines):
            tag = f"engine{i}"
            if not universal or engine.zero_optimization_stage() == 0:  # at stage 0 each rank has everything
                engine.load_checkpoint(folder, tag)
                continue
            converted = self.folder / ".universal"  # the next `save` removes it
            if distributed.get_rank() == 0:
                _make_universal(folder / tag, converted / tag)
            distributed.barrier()
            engine._config.load_universal_checkpoint = True  # otherwise to be known before there is an engine
            engine.load_checkpoint(converted, tag)
            engine._config.load_universal_checkpoint = False


def _make_universal(source: Path, target: Path) -> None:
    options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
    options |= {"input_folder": str(source), "output_folder": str(target), "inject_missing_state": True}
    try:
        with redirect_stdout(StringIO()):
            ds_to_universal.main(Namespace(**options))
    except Exception as error:  # it raises what it likes
        raise SystemExit(
            f"cannot go on with another number of ranks: DeepSpeed makes no universal checkpoint of {source} "
            f"({error}); use as many ranks as before"
        ) from error


class FirstRun(Run):
    """Rank 0's `Run`: it tells the others where the folder is and when to stop, and logs means over all ranks."""

    _launcher = "deepspeed"

    def __init__(self, args: Any, total_episodes: int, resume: Path | None = None):
        super().__init__(args, total_episodes, resume)
        ranks.share(self.folder)

    def keep(self, policy: torch.nn.Module, engines: Sequence[DeepSpeedEngine], **parts: Stateful) -> None:
        self._restore(_checkpoints(self.folder, self.args, policy, engines, parts))

    def log(self, metrics: dict[str, float], episodes: int) -> None:
        super().log(_mean(metrics), episodes)

    def _asked_to_stop(self) -> int:
        return ranks.share(super()._asked_to_stop())

    def _on_signal(self, signum: int, _frame: Any) -> None:
        # The launcher passes on what the terminal has already sent, so a second signal means nothing
        for handled in self._handlers:
            signal.signal(handled, signal.SIG_IGN)
        self._signal = self._signal or signum
        if not self._training:
            self._stop()
        os.write(2, b"\nstopping after this iteration and a checkpoint\n")


class OtherRun:
    """The `Run` of a rank other than 0: silent, without a file of its own, it saves and stops together with rank 0."""

    def __init__(self, args: Any, total_episodes: int, resume: Path | None = None):
        forget_shapes()
        self.folder = ranks.share()
        self.args, self._total_episodes = args, total_episodes
        self._episodes = 0
        self.before = False

    def describe(self, **facts: str) -> None:
        """Rank 0 does it."""

    def keep(self, policy: torch.nn.Module, engines: Sequence[DeepSpeedEngine], **parts: Stateful) -> None:
        """As `Run.keep`."""
        self._checkpoints = _checkpoints(self.folder, self.args, policy, engines, parts)
        self.iteration, progress = self._checkpoints.load()
        self.before = bool(progress)  # whether rank 0 has it, and so won't evaluate

    def start(self, before: bool | None) -> None:
        """Leave Ctrl-C, which the terminal sends to all, to rank 0."""
        keep_freed_memory()
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def check_step(self, part: str, *numbers: torch.Tensor, loss_scale: float) -> bool:
        """As `Run.check_step`, which ends the job."""
        return bool(torch.stack([number.float() for number in numbers]).isfinite().all())

    def log(self, metrics: dict[str, float], episodes: int) -> None:
        """Give rank 0 this rank's numbers."""
        _mean(metrics)
        self._episodes = episodes

    def show(self, prompts: list[str], responses: list[str], rewards: np.ndarray) -> None:
        """Rank 0 does it."""

    def checkpoint(self, iteration: int) -> None:
        """As `Run.checkpoint`."""
        stop = ranks.share()
        if self._episodes == self._total_episodes or stop or iteration % self.args.checkpoint_every == 0:
            self._checkpoints.save(iteration, {})
        if stop:
            raise SystemExit(128 + stop)

    def finish(self, after: None) -> None:
        """Rank 0 does it."""


def start_run(args: Any, total_episodes: int, resume: Path | None) -> FirstRun | OtherRun:
    """This rank's part in a `Run`."""
    return (FirstRun if distributed.get_rank() == 0 else OtherRun)(args, total_episodes, resume)


def evaluation(agent: DialogueAgent, *args: Any, gather: Sequence[DeepSpeedEngine], **decoding: Any):
    """An `Evaluation` on rank 0, None on the others, with the whole weights of some engines."""
    with gathered(*gather):
        return Evaluation(agent, *args, **decoding) if distributed.get_rank() == 0 else None


def _checkpoints(folder, args, policy, engines, parts) -> RankedCheckpoints:
    return RankedCheckpoints(
        folder / "checkpoints", lambda target: save_agent(policy, args.model, target), parts, engines
    )


def _mean(metrics: dict[str, float]) -> dict[str, float]:
    values = ranks.gather([float(value) for value in metrics.values()])
    return dict(zip(metrics, np.mean(values, axis=0), strict=True))
