"""How much does training improve the replies? Several seeds of ppo_dialog.py, a table of changes and a figure.

    python benchmarks/quality.py --out quality                                    # the embedded dialogues
    python benchmarks/quality.py --out quality --dataset daily_dialog --total-episodes 10240

A run that was stopped continues when the same command is given again; when all runs are done, the command only prints
the table again. Each seed's agent and the model it started from answer the same contexts of the split, once with tokens
sampled from the 20 likeliest and once greedily.
"""

import datetime
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from machine import absolute, environment

from dailydialog_gym.reports.curves import plot_curves
from dailydialog_gym.reports.tables import markdown, score_cells

ROOT = Path(__file__).parents[1]
SAMPLED = ("--sample", "--top-k", "20")
DECODINGS = {"sampled": SAMPLED, "greedy": ()}


@dataclass
class Args:
    out: Path = Path("quality")
    """folder for the runs, the scores, the table and the figure"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """random seeds of ppo_dialog.py and of the sampling in the evaluation"""
    model: str = "builtin"
    """the model to start from"""
    dataset: str = "builtin"
    """the dialogues, as in ppo_dialog.py"""
    total_episodes: int = 2560
    """number of replies to train on"""
    flags: tuple[str, ...] = ()
    """further flags of ppo_dialog.py, as NAME=VALUE"""
    split: str = "test"
    """dataset split of the table; use validation while you tune"""
    samples: int = 2000
    """number of replies, spread evenly over the split"""
    jobs: int = 1
    """number of seeds that run at the same time; the cores are divided among them"""


def call(args: Any, name: str, command: list[str]) -> None:
    """Run a Python command in the output folder and append its output to a run's log."""
    log = args.out / f"{name}.log"
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with log.open("a", encoding="utf-8") as output:
        done = subprocess.run(
            [sys.executable, *command], cwd=args.out, stdout=output, stderr=output, env=environment(threads)
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed, see the end of {log}")


def start_or_resume(args: Any, run: Path, seed: int, flags: dict[str, Any]) -> None:
    """Run ppo_dialog.py with the benchmark's model, dataset, length and flags, or resume a run that was stopped."""
    flags = {"model": args.model, "dataset": args.dataset, "total-episodes": args.total_episodes, "seed": seed, **flags}
    new = [f"--{name}={value}" for name, value in flags.items()] + [f"--{flag}" for flag in args.flags]
    new += ["--run-name", run.name]
    call(args, run.name, [str(ROOT / "ppo_dialog.py"), *(["--resume", f"runs/{run.name}"] if run.exists() else new)])


def train(args: Args, seed: int) -> Path:
    """Train with one seed, or resume a run that was stopped. Returns: the run's folder."""
    run = args.out / "runs" / f"seed-{seed}"
    if not (run / "evaluation.json").exists():
        started = time.time()
        start_or_resume(args, run, seed, {"eval-split": "validation"})
        with (run / "seconds").open("a", encoding="utf-8") as file:
            file.write(f"{time.time() - started}\n")
    return run


def scores(args: Args, decoding: str, seed: int, run: Path) -> dict[str, dict[str, float]]:
    """The scores of the initial model, "before", and of the trained agent, "after"."""
    file = args.out / f"{run.name}-{decoding}.json"
    if not file.exists():
        flags = {"dataset": args.dataset, "split": args.split, "samples": args.samples, "seed": seed, "json": file.name}
        flags |= {"baseline": args.model}
        words = [f"--{name}={value}" for name, value in flags.items()]
        command = ["-m", "dailydialog_gym.evaluate", f"runs/{run.name}/agent", *words, *DECODINGS[decoding]]
        call(args, run.name, command)
    before, after = json.loads(file.read_text(encoding="utf-8")).values()
    return {"before": before, "after": after}


def table(rows: list[dict[str, dict[str, float]]]) -> str:
    """Means over the seeds, and the relative change: its mean, lowest and highest."""
    means = {name: {key: np.mean([row[name][key] for row in rows]) for key in rows[0][name]} for name in rows[0]}
    *cells, _ = score_cells(means)  # without the change of the means
    changes = [[row["after"][key] / row["before"][key] - 1 for row in rows] for key in means["before"]]
    cells.append(["change", *(f"{np.mean(change):+.1%}" for change in changes)])
    cells.append(["lowest, highest", *(f"{min(change):+.0%}, {max(change):+.0%}" for change in changes)])
    return markdown(cells)


def plot(runs: list[Path], path: Path) -> None:
    """Rewards and divergence over training."""
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")] for run in runs]
    plot_curves({"": rows}, ["reward/meteor", "reward/intent", "metric/kl_per_token"]).savefig(path, dpi=120)


def main(args: Args) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    args.dataset, args.model = absolute(args.dataset), absolute(args.model)
    print("\n".join(f"seed {seed}: {args.out}/seed-{seed}.log" for seed in args.seeds), flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(pool.map(partial(train, args), args.seeds))
    minutes = [sum(map(float, (run / "seconds").read_text(encoding="utf-8").split())) / 60 for run in runs]
    lines = []
    for decoding in DECODINGS:
        with ThreadPoolExecutor(args.jobs) as pool:
            rows = list(pool.map(partial(scores, args, decoding), args.seeds, runs))
        lines += [f"{decoding}, {args.samples:,} replies to {args.dataset}, {args.split}", "", table(rows), ""]
    took = f"{np.mean(minutes):.1f} minutes a seed, {args.jobs} at a time"
    lines += [f"{args.total_episodes:,} replies, {len(runs)} seeds, {took}"]
    lines += [f"{os.cpu_count()} cores, {datetime.date.today()}; flags: {' '.join(args.flags) or 'none'}"]
    (args.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(runs, args.out / "curves.png")
    print("\n".join(["", *lines, "", f"table     {args.out}/table.md", f"figure    {args.out}/curves.png"]))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
