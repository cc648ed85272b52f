"""Where does a learned reward get fooled? PPO against a reward model, with and without the KL penalty.

    python -m dailydialog_gym.recipes.reward --out reward
    python benchmarks/overoptimization.py --reward-model reward --out overoptimization

While the learned reward rises, do the judges that are not trained on, METEOR and intent, rise too? The figure shows all
three over the KL divergence from the initial model, as Gao et al. (2022, arXiv:2210.10760) do; the table compares the
agents with their start on a split that neither PPO nor the reward model was trained on. A command that was stopped
continues where it ended; when all runs are done, it only prints the table again.
"""

import datetime
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from machine import absolute
from quality import start_or_resume

from dailydialog_gym.reports.curves import plot_curves, running_mean
from dailydialog_gym.reports.tables import markdown, score_cells

CONDITIONS = ("without a penalty", "with the penalty")


@dataclass
class Args:
    reward_model: Path
    """the reward model, a folder"""
    out: Path = Path("overoptimization")
    """folder for the runs, the table and the figure"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """random seeds of ppo_dialog.py"""
    kl_coef: float = 1.0
    """the coefficient of the KL penalty of the runs that have one, in standard deviations of the reward per nat"""
    total_episodes: int = 5120
    """number of replies to train on"""
    model: str = "builtin"
    """the initial model"""
    dataset: str = "builtin"
    """the dialogues"""
    flags: tuple[str, ...] = ()
    """further flags of ppo_dialog.py, as NAME=VALUE"""
    jobs: int = 1
    """number of runs at the same time; the cores are divided among them"""


def train(args: Args, condition: str, seed: int) -> Path:
    """Train one agent, or resume a run that was stopped. Returns: the run's folder."""
    run = args.out / "runs" / f"{condition.replace(' ', '-')}-{seed}"
    if not (run / "evaluation.json").exists():
        flags = {"reward-model": args.reward_model, "meteor-weight": 0, "intent-weight": 0, "kl-rule": "fixed"}
        flags["top-k"] = 0  # the estimate of the KL divergence is unbiased only where all tokens may be drawn
        flags |= {"kl-coef": args.kl_coef if condition == "with the penalty" else 0, "eval-samples": 924}
        start_or_resume(args, run, seed, flags)
    return run


def read_rows(run: Path) -> list[dict[str, float]]:
    """The metrics of each iteration."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def plot(runs: dict[str, list[Path]], name: str, path: Path) -> None:
    """The learned reward and the judges over the KL divergence."""
    groups = {condition: [read_rows(run) for run in folders] for condition, folders in runs.items()}
    figure = plot_curves(groups, [f"reward/{name}", "reward/meteor", "reward/intent"], over="reward/kl")
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)


def means(scores: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}


def table(runs: dict[str, list[Path]], name: str) -> list[str]:
    """Means over the seeds of the scores before and after, and for each run how far it went."""
    scores = {
        condition: [json.loads((run / "evaluation.json").read_text(encoding="utf-8")) for run in folders]
        for condition, folders in runs.items()
    }
    rows = {"start": means([score["before"] for each in scores.values() for score in each])}
    rows |= {condition: means([score["after"] for score in each]) for condition, each in scores.items()}
    cells = [["run", "KL", "learned reward", "METEOR, change", "intent, change", "METEOR in training: highest, last"]]
    for condition, folders in runs.items():
        for run, score in zip(folders, scores[condition], strict=True):
            keys = (f"reward/{name}", "reward/meteor", "reward/kl")
            learned, meteor, kl = (running_mean(np.array([row[key] for row in read_rows(run)], float)) for key in keys)
            cells.append(
                [
                    run.name,
                    f"{kl[-1]:.1f}",
                    f"{learned[0]:.2f} to {learned[-1]:.2f}",
                    *(f"{score['after'][key] / score['before'][key] - 1:+.1%}" for key in ("meteor", "intent")),
                    f"{meteor.max():.4f}, {meteor[-1]:.4f}",
                ]
            )
    return [markdown(score_cells(rows)), "", markdown(cells)]


def main(args: Args) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    args.reward_model = args.reward_model.resolve()  # the runs have another working directory
    args.dataset, args.model = absolute(args.dataset), absolute(args.model)
    jobs = [(condition, seed) for condition in CONDITIONS for seed in args.seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        folders = list(pool.map(lambda job: train(args, *job), jobs))
    runs = {
        condition: [f for f, job in zip(folders, jobs, strict=True) if job[0] == condition] for condition in CONDITIONS
    }
    lines = table(runs, args.reward_model.name)
    lines += ["", f"{args.total_episodes:,} replies, {len(args.seeds)} seeds, KL coefficient {args.kl_coef} or 0"]
    lines += [f"{os.cpu_count()} cores, {datetime.date.today()}; flags: {' '.join(args.flags) or 'none'}"]
    (args.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(runs, args.reward_model.name, args.out / "overoptimization.png")
    print("\n".join([*lines, "", f"table     {args.out}/table.md", f"figure    {args.out}/overoptimization.png"]))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
