"""Does training make the replies better? Several seeds of ppo_dialog.py, a table of changes, and a figure.

    python benchmarks/quality.py --out quality                                    # the embedded dialogues
    python benchmarks/quality.py --out quality --dataset daily_dialog --total-episodes 10240

The first call trains; the same command goes on where it was stopped, and prints what is there once more when all is
done. Every seed's agent and the model it started from answer the same contexts of the split, once drawn from the
likeliest 20 tokens and once greedily.
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

import numpy as np
import tyro
from matplotlib.figure import Figure

from dailydialog_gym.evaluate.metrics import LABELS

ROOT = Path(__file__).parents[1]
SAMPLED = ("--sample", "--top-k", "20")
DECODINGS = {"sampled": SAMPLED, "greedy": ()}


@dataclass
class Args:
    out: Path = Path("quality")
    """folder for runs, scores, table and figure"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """of ppo_dialog.py and of the drawing"""
    model: str = "builtin"
    """the model to start from"""
    dataset: str = "builtin"
    """the dialogues"""
    total_episodes: int = 2560
    """replies to train on"""
    flags: tuple[str, ...] = ()
    """more flags of ppo_dialog.py, as NAME=VALUE"""
    split: str = "test"
    """what is answered for the table; use validation while tuning"""
    samples: int = 2000
    """how many replies, spread evenly over the split"""
    jobs: int = 1
    """seeds at work at the same time, each on its share of the cores; a small model learns more in all on one each"""


def call(args: Args, name: str, command: list[str]) -> None:
    """Run a Python command in the output folder; what it prints goes to a run's log."""
    log = args.out / f"{name}.log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.getenv("PYTHONPATH")])])}
    environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // args.jobs))
    with log.open("a") as output:
        done = subprocess.run([sys.executable, *command], cwd=args.out, stdout=output, stderr=output, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed, see the end of {log}")


def train(args: Args, seed: int) -> Path:
    """The run's folder; a run that was stopped goes on."""
    run = args.out / "runs" / f"seed-{seed}"
    if not (run / "evaluation.json").exists():
        flags = {"model": args.model, "dataset": args.dataset, "total-episodes": args.total_episodes, "seed": seed}
        new = [f"--{name}={value}" for name, value in flags.items()] + [f"--{flag}" for flag in args.flags]
        new += ["--run-name", run.name, "--eval-split", "validation"]
        started = time.time()
        again = ["--resume", f"runs/{run.name}"]
        call(args, run.name, [str(ROOT / "ppo_dialog.py"), *(again if run.exists() else new)])
        with (run / "seconds").open("a") as file:
            file.write(f"{time.time() - started}\n")
    return run


def scores(args: Args, decoding: str, seed: int, run: Path) -> dict[str, dict[str, float]]:
    """Of the model at the start and of the agent."""
    file = args.out / f"{run.name}-{decoding}.json"
    if not file.exists():
        flags = {"dataset": args.dataset, "split": args.split, "samples": args.samples, "seed": seed, "json": file.name}
        flags |= {"baseline": args.model}
        words = [f"--{name}={value}" for name, value in flags.items()]
        command = ["-m", "dailydialog_gym.evaluate", f"runs/{run.name}/agent", *words, *DECODINGS[decoding]]
        call(args, run.name, command)
    before, after = json.loads(file.read_text()).values()
    return {"before": before, "after": after}


def table(rows: list[dict[str, dict[str, float]]]) -> str:
    """Means over the seeds, and the relative change: its mean, lowest and highest."""
    keys = list(rows[0]["before"])
    changes = {key: [row["after"][key] / row["before"][key] - 1 for row in rows] for key in keys}
    lines = [["", *(LABELS[key] for key in keys)], ["---"] + ["---:"] * len(keys)]
    for name in ("before", "after"):
        lines.append([name, *(f"{np.mean([row[name][key] for row in rows]):.4g}" for key in keys)])
    lines.append(["change", *(f"{np.mean(changes[key]):+.1%}" for key in keys)])
    lines.append(["lowest, highest", *(f"{min(changes[key]):+.0%}, {max(changes[key]):+.0%}" for key in keys)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(runs: list[Path], path: Path) -> None:
    """Rewards and divergence over training, running means: the mean of the seeds, and their range."""
    histories = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in runs]
    keys = ("reward/meteor", "reward/intent", "metric/kl_per_token")
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axis, key in zip(figure.subplots(1, 3), keys, strict=True):
        values = np.array([[row[key] for row in history] for history in histories])  # (seeds, iterations)
        width = max(1, values.shape[1] // 10)
        smooth = np.array([np.convolve(row, np.ones(width) / width, "valid") for row in values])
        episodes = [row["episodes"] for row in histories[0]][width - 1 :]
        axis.fill_between(episodes, smooth.min(0), smooth.max(0), color="tab:blue", alpha=0.2, linewidth=0)
        axis.plot(episodes, smooth.mean(0), color="tab:blue")
        axis.set(title=key, xlabel="replies")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main(args: Args) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    if Path(args.dataset).exists():
        args.dataset = str(Path(args.dataset).resolve())  # the runs have a working folder of their own
    if Path(args.model).exists():
        args.model = str(Path(args.model).resolve())
    print("\n".join(f"seed {seed}: {args.out}/seed-{seed}.log" for seed in args.seeds), flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(pool.map(partial(train, args), args.seeds))
    minutes = [sum(map(float, (run / "seconds").read_text().split())) / 60 for run in runs]
    lines = []
    for decoding in DECODINGS:
        with ThreadPoolExecutor(args.jobs) as pool:
            rows = list(pool.map(partial(scores, args, decoding), args.seeds, runs))
        lines += [f"{decoding}, {args.samples:,} replies to {args.dataset}, {args.split}", "", table(rows), ""]
    took = f"{np.mean(minutes):.1f} minutes a seed, {args.jobs} at a time"
    lines += [f"{args.total_episodes:,} replies, {len(runs)} seeds, {took}"]
    lines += [f"{os.cpu_count()} cores, {datetime.date.today()}; flags: {' '.join(args.flags) or 'none'}"]
    (args.out / "table.md").write_text("\n".join(lines) + "\n")
    plot(runs, args.out / "curves.png")
    print("\n".join(["", *lines, "", f"table     {args.out}/table.md", f"figure    {args.out}/curves.png"]))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
