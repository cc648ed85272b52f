"""What --log-rollouts costs: the seconds that it takes of an iteration of ppo_dialog.py, and the bytes that it writes.

    python benchmarks/rollouts_cost.py                          # the defaults, some minutes
    python benchmarks/rollouts_cost.py --log-rollouts 64        # with other flags of ppo_dialog.py

Both are timed in the same run, so that other work on the machine slows down both. The first iteration is not counted.
"""

import os
import runpy
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import processor, revision, versions

from dailydialog_gym.runs.run import Run

SCRIPT = Path(__file__).parents[1] / "ppo_dialog.py"
SHORT = ["--total-episodes", "1024", "--eval-samples", "8", "--run-name", "run"]


def main(flags: list[str]) -> None:
    log_rollouts, spent = Run.log_rollouts, []

    def timed(*args: object) -> None:
        start = time.perf_counter()
        log_rollouts(*args)
        spent.append(time.perf_counter() - start)

    Run.log_rollouts = timed
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.argv = [SCRIPT.name, *SHORT, *flags]
        script = runpy.run_path(str(SCRIPT), run_name="__main__")
        size = Path("runs/run/rollouts.jsonl").stat().st_size / len(spent)
        os.chdir(SCRIPT.parent)
    args, rows = script["args"], script["run"].history
    iterations = [row["charts/episodic_length"] * args.num_envs / row["charts/FPS"] for row in rows]
    mine, all_of_it = (1000 * statistics.median(seconds[1:]) for seconds in (spent, iterations))
    print(
        f"\n--log-rollouts {args.log_rollouts}: {mine:.0f} ms of an iteration's {all_of_it:.0f} ms "
        f"({mine / all_of_it:.1%}), {size / 1000:.0f} kB; medians of {len(spent) - 1} iterations"
    )
    print(f"{processor()}, {torch.get_num_threads()} threads; {revision()}; {versions('torch', 'transformers')}")


if __name__ == "__main__":
    main(sys.argv[1:])
