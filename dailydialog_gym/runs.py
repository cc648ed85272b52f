"""A run's folder and what people see of a run: configuration, metrics, curves, samples. Nothing of PPO."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dailydialog_gym.evaluate import Evaluation
from dailydialog_gym.metrics import table
from dailydialog_gym.tokenizer import EOU


class Run:
    """The folder ``runs/<name>`` of one training run, its logs and its progress bar.

    It comes to hold ``config.json``, ``metrics.jsonl`` (a line an iteration), TensorBoard events, ``agent/`` (written
    by the script), ``evaluation.json``, ``samples.md`` and ``curves.png``.

    Args:
        args: the script's arguments, a dataclass with ``run_name``, ``seed``, ``track``, ``wandb_project_name`` and
            ``wandb_entity``.
        total_episodes: how many replies the run is to train on.
    """

    def __init__(self, args: Any, total_episodes: int):
        name = args.run_name or f"ppo_dialog__{args.seed}__{int(time.time())}"
        self.folder = Path("runs") / name
        if self.folder.exists():
            raise FileExistsError(f"{self.folder} exists: choose another --run-name, or remove it")
        self.folder.mkdir(parents=True)
        config = asdict(args)
        (self.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        self._wandb = _start_wandb(args, name, config) if args.track else None
        self._writer = SummaryWriter(self.folder)
        self._writer.add_text("config", "\n".join(f"- {key}: {value}" for key, value in config.items()))
        self._total_episodes = total_episodes
        self.history: list[dict[str, float]] = []

    def describe(self, **facts: str) -> None:
        """Print what was loaded, and how to get the full thing where it is the embedded default."""
        for name, fact in {**facts, "run": str(self.folder)}.items():
            print(f"{name:<10}{fact}")
        if any(fact.startswith("builtin") for fact in facts.values()):
            print(
                "builtin is the small embedded default. The full dataset and GPT-2, from the hub: "
                "--dataset daily_dialog --model rajkumarrrk/gpt2-fine-tuned-on-daily-dialog"
            )

    def start(self) -> None:
        """Show the progress bar, from which the time left is told."""
        self._bar = tqdm(total=self._total_episodes, unit="reply", dynamic_ncols=True)

    def log(self, metrics: dict[str, float], episodes: int) -> None:
        """Log an iteration's metrics by the number of replies trained on so far, and move the progress bar."""
        row = {"episodes": episodes, **metrics}
        self.history.append(row)
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, episodes)
        if self._wandb:
            self._wandb.log(row)
        self._bar.set_postfix_str(
            f"reward {metrics['charts/episodic_return']:.3f}, KL/token {metrics['metric/kl_per_token']:.3f}, "
            f"{metrics['charts/FPS']:.0f} tokens/s"
        )
        self._bar.update(episodes - self._bar.n)

    def show(self, prompts: list[str], responses: list[str], rewards: np.ndarray) -> None:
        """Print replies above the progress bar."""
        for prompt, response, reward in zip(prompts, responses, rewards, strict=True):
            tqdm.write(f"  {prompt.split(EOU)[-2].strip()}\n  > {response}   [{reward:+.3f}]")

    def finish(self, before: Evaluation, after: Evaluation) -> None:
        """Write the evaluation, the samples and the curves, and print the table and where everything is."""
        self._bar.close()
        self._writer.close()
        rows = {"before": before.scores, "after": after.scores}
        (self.folder / "evaluation.json").write_text(json.dumps(rows, indent=2) + "\n")
        (self.folder / "samples.md").write_text(_side_by_side(before, after))
        self._plot()
        if self._wandb:
            self._wandb.log({f"eval/{key}": value for key, value in after.scores.items()})
            self._wandb.finish()
        print(f"\n{table(rows)}\n\n{before.manner}\n")
        print(f"agent     {self.folder}/agent\nsamples   {self.folder}/samples.md\ncurves    {self.folder}/curves.png")
        print(f"logs      tensorboard --logdir {self.folder.parent}")

    def _plot(self) -> None:
        from matplotlib.figure import Figure  # not pyplot: no window system, no global state

        keys = ["charts/episodic_return", *(key for key in self.history[0] if key.startswith(("reward/", "metric/")))]
        figure = Figure(figsize=(4 * len(keys), 3), layout="constrained")
        episodes = [row["episodes"] for row in self.history]
        for axis, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
            values = [row[key] for row in self.history]
            axis.plot(episodes, values, color="0.8")
            axis.plot(episodes, _running_mean(values, max(1, len(values) // 10)), color="tab:blue")
            axis.set(title=key, xlabel="replies")
        figure.savefig(self.folder / "curves.png", dpi=120)


def describe_amp(device: torch.device, dtype: torch.dtype) -> str:
    """Mixed precision in words, with a warning where the processor only emulates bfloat16."""
    there = {name for name, value in torch.cpu.get_capabilities().items() if value is True}
    if device.type == "cpu" and not there & {"amx_bf16", "avx512_bf16", "bf16"}:
        return f"{dtype} mixed precision (slower than float32 here: this processor has no bfloat16 instructions)"
    return f"{dtype} mixed precision"


def _running_mean(values: list[float], width: int) -> list[float]:
    return [float(np.mean(values[max(0, i + 1 - width) : i + 1])) for i in range(len(values))]


def _side_by_side(before: Evaluation, after: Evaluation) -> str:
    lines = ["# Replies before and after\n"]
    for i in range(min(20, len(before.prompts))):
        context = "".join(f"> {utterance.strip()}\n>\n" for utterance in before.prompts[i].split(EOU)[:-1])
        lines.append(
            f"{context}\n- before: {before.replies[i]}\n- after: {after.replies[i]}\n- people: {before.references[i]}\n"
        )
    return "\n".join(lines)


def _start_wandb(args: Any, name: str, config: dict[str, Any]):
    import wandb

    # Without a login wandb would ask for one and wait; what is logged offline can be uploaded later.
    mode = None if wandb.api.api_key or "WANDB_MODE" in os.environ else "offline"
    if mode:
        print("wandb: not logged in, so this run is logged offline; `wandb sync` uploads it")
    return wandb.init(
        project=args.wandb_project_name, entity=args.wandb_entity, name=name, config=config, mode=mode, dir="runs"
    )
