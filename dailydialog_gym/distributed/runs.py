"""A training run of several ranks. Rank 0 writes the files and prints; all ranks save and load checkpoints together."""

from __future__ import annotations

import signal
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.checkpoint import ds_to_universal
from torch import distributed
from transformers import PreTrainedModel

from dailydialog_gym.distributed import ranks
from dailydialog_gym.distributed.engines import gathered
from dailydialog_gym.env.samples import Samples
from dailydialog_gym.evaluate import Evaluation
from dailydialog_gym.models.memory import return_freed_memory
from dailydialog_gym.rewards.intent import IntentMatch
from dailydialog_gym.runs.checkpoints import Checkpoints, Stateful, as_plain
from dailydialog_gym.runs.run import Run


class RankedCheckpoints(Checkpoints):
    """`Checkpoints` of several ranks, to which DeepSpeed adds a folder ``engines/``.

    There each rank writes its share of the weights and of the optimizer's moments. ``state.pt`` holds the parts of all
    ranks.

    Args:
        folder, write_agent, parts, fingerprint, keep: as for `Checkpoints`, on each rank.
        engines: the engines that train; the first one has the policy.
    """

    def __init__(self, *args: Any, engines: Sequence[DeepSpeedEngine]):
        super().__init__(*args)
        self._engines = engines

    def save(self, iteration: int, progress: dict[str, Any]) -> Path:
        """`Checkpoints.save` on all ranks at the same time, with rank 0's progress. All must see the same folder."""
        if distributed.get_rank() == 0:
            target = super().save(iteration, progress)
        else:
            target = self.last = self.folder / f"{iteration:06}"
            self._write(target.with_name(f".{target.name}.new"), iteration, progress)
        distributed.barrier()
        return target

    def _write(self, folder: Path, iteration: int, progress: dict[str, Any]) -> None:
        distributed.barrier()  # rank 0 has made the folder
        for i, engine in enumerate(self._engines):
            engine.save_checkpoint(folder / "engines", f"engine{i}", save_latest=False)
        parts = ranks.all_gather({name: as_plain(part.state_dict()) for name, part in self._parts.items()})
        with gathered(self._engines[0]):
            if distributed.get_rank() == 0:
                self._write_agent(folder / "agent")
                with open(folder / "state.pt", "wb") as file:
                    torch.save({"iteration": iteration, "progress": progress, "parts": parts}, file)

    def load(self, check: Callable[[dict[str, Any]], None] = lambda fingerprint: None) -> tuple[int, dict[str, Any]]:
        """`Checkpoints.load` on all ranks at the same time; rank 0 checks the files and the fingerprint.

        If the number of ranks has changed, DeepSpeed converts its part to a universal checkpoint. Each rank then keeps
        the torch generators that its own seed has given it, since rank 0's would give all ranks the same tokens.

        Raises:
            ValueError: as `Checkpoints.load`, or DeepSpeed can't convert the checkpoint to a universal one.
        """
        if distributed.get_rank() == 0:
            self._find(check)
        self.last = ranks.broadcast(self.last)
        if self.last is None:
            return 0, {}
        saved = self._read_state(self.last)
        resized = len(saved["parts"]) != distributed.get_world_size()
        self._load_engines(self.last, universal=resized)
        gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(gpus, enabled=resized):
            self._load_parts(self.last, saved["parts"][0 if resized else distributed.get_rank()])
        return saved["iteration"], saved["progress"]

    def _load_engines(self, checkpoint: Path, universal: bool) -> None:
        folder, converted = checkpoint / "engines", checkpoint.with_name(f".{checkpoint.name}.universal")
        for i, engine in enumerate(self._engines):
            tag = f"engine{i}"
            if not universal or engine.zero_optimization_stage() == 0:  # at stage 0 each rank has all weights
                engine.load_checkpoint(folder, tag)
                continue
            if distributed.get_rank() == 0:
                _make_universal(folder / tag, converted / tag)  # until the next `save` removes it
            distributed.barrier()
            engine._config.load_universal_checkpoint = True  # DeepSpeed reads it only when it builds an engine
            engine.load_checkpoint(converted, tag)
            engine._config.load_universal_checkpoint = False


def _make_universal(source: Path, target: Path) -> None:
    options = Namespace(input_folder=str(source), output_folder=str(target), num_extract_workers=1, num_merge_workers=1)
    vars(options).update(keep_temp_folder=False, strict=True, inject_missing_state=True)
    try:
        with redirect_stdout(StringIO()):
            ds_to_universal.main(options)
    except Exception as error:  # DeepSpeed documents no particular error
        raise ValueError(
            f"cannot resume on another number of ranks: DeepSpeed makes no universal checkpoint of {source} "
            f"({error}); use as many ranks as before"
        ) from error


class DistributedRun(Run):
    """A `Run` of all ranks: the same folder, metrics averaged over the ranks, and one decision to stop."""

    _launcher = "deepspeed"
    # The launcher forwards the signal that the terminal has already sent, so a second one is not a second request
    _second_signal = signal.SIG_IGN
    _stop_notice = "stopping after this iteration and a checkpoint"

    def __init__(self, args: Any, total_episodes: int, resume: Path | None = None):
        super().__init__(args, total_episodes, resume, is_main=distributed.get_rank() == 0)

    def _set_allocator(self) -> None:
        return_freed_memory()  # ZeRO saves memory only if what a partition frees is returned

    def _broadcast(self, value: Any) -> Any:
        return ranks.broadcast(value)

    def _average(self, metrics: dict[str, float]) -> dict[str, float]:
        values = ranks.all_gather([*metrics.values()])
        return dict(zip(metrics, np.mean(values, axis=0).tolist(), strict=True))

    def _size(self, model: torch.nn.Module) -> int:
        with gathered(model):
            return super()._size(model)

    def restore(  # type: ignore[override]  # the engines, too, are part of what a checkpoint holds
        self, policy: torch.nn.Module, engines: Sequence[DeepSpeedEngine], **parts: Stateful
    ) -> None:
        self._load(RankedCheckpoints, policy, parts, engines=engines)

    def evaluate(self, policy: PreTrainedModel, samples: Samples, intent: IntentMatch | None) -> Evaluation | None:
        with gathered(policy, *([intent.classifier] if intent else [])):
            return super().evaluate(policy, samples, intent)
