"""How many seconds of training until METEOR is 10% above the start? Later revisions are judged by this number.

    python benchmarks/speedrun.py --out speedrun

Each seed of ppo_dialog.py keeps its checkpoints. Afterwards they are scored in their order on the validation split, by
drawn replies to the same contexts as the model that the run started from, until one reaches the goal. The seconds are
those of the iterations up to it; loading, evaluations and checkpoints are not counted. A run that was stopped continues
when the same command is given again.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from machine import absolute, processor, revision, versions
from quality import SAMPLED, call, start_or_resume


@dataclass
class Args:
    out: Path = Path("speedrun")
    """folder for the runs, their logs and the scores"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """random seeds of ppo_dialog.py"""
    goal: float = 0.1
    """the relative gain in METEOR"""
    model: str = "builtin"
    """the model to start from"""
    dataset: str = "builtin"
    """the dialogues, as in ppo_dialog.py"""
    total_episodes: int = 40960
    """the longest training, over which the learning rate is annealed"""
    every: int = 10
    """iterations between two checkpoints that are scored"""
    flags: tuple[str, ...] = ()
    """further flags of ppo_dialog.py, as NAME=VALUE"""
    samples: int = 4000
    """replies to score each model by, spread evenly over the split"""
    jobs = 1  # not a flag: a run has all cores, so that its seconds are its own


def train(args: Args, seed: int) -> Path:
    """Train with one seed, or resume a run that was stopped. Returns: the run's folder."""
    run = args.out / "runs" / f"seed-{seed}"
    if not (run / "agent" / "config.json").exists():
        start_or_resume(args, run, seed, {"eval-samples": 0, "checkpoint-every": args.every, "keep-checkpoints": 10**6})
    return run


def meteor(args: Args, model: str, name: str) -> float:
    """The METEOR of drawn replies to contexts of the validation split."""
    file = args.out / f"{name}.json"
    if not file.exists():
        flags = {"dataset": args.dataset, "split": "validation", "samples": args.samples, "json": file.name}
        words = [f"--{flag}={value}" for flag, value in flags.items()]
        call(args, name.split("_")[0], ["-m", "dailydialog_gym.evaluate", model, *words, *SAMPLED])
    (scores,) = json.loads(file.read_text(encoding="utf-8")).values()
    return scores["meteor"]


def first_above(args: Args, run: Path, start: float) -> tuple[int, float, float] | None:
    """The first checkpoint that reaches the goal: its replies, its seconds of training, and its gain."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")]
    tokens = np.diff([row["episodes"] for row in rows], prepend=0) * [row["charts/episodic_length"] for row in rows]
    seconds = np.cumsum(tokens / [row["charts/FPS"] for row in rows])
    for checkpoint in sorted((run / "checkpoints").glob("[0-9]*[0-9]")):
        agent = checkpoint.relative_to(args.out) / "agent"
        gain = meteor(args, str(agent), f"{run.name}_{checkpoint.name}") / start - 1
        print(f"{run.name}, checkpoint {checkpoint.name}: METEOR {gain:+.1%}", flush=True)
        if gain >= args.goal:
            iteration = int(checkpoint.name)
            return rows[iteration - 1]["episodes"], seconds[iteration - 1], gain
    return None


def main(args: Args) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    args.dataset, args.model = absolute(args.dataset), absolute(args.model)
    start = meteor(args, args.model, "start")
    lines = ["| seed | replies | seconds | METEOR |", "| ---: | ---: | ---: | ---: |"]
    for seed in args.seeds:
        found = first_above(args, train(args, seed), start)
        cells = ["not reached", "", ""] if found is None else [f"{found[0]:,}", f"{found[1]:.0f}", f"{found[2]:+.1%}"]
        lines.append(" | ".join([f"| {seed}", *cells]) + " |")
    lines += ["", f"METEOR at the start {start:.4f}; {processor()}; {versions('torch', 'transformers')}; {revision()}"]
    print("\n".join(["", *lines]))
    (args.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
