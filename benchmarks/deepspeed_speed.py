"""FPS and memory of ppo_dialog.py and of ppo_dialog_deepspeed.py at each ZeRO stage, on the devices at hand.

    python benchmarks/deepspeed_speed.py --num-envs 32 --iterations 3     # embedded model, two processes
    python benchmarks/deepspeed_speed.py --devices 1 --model gpt2 --flags --use-amp --num-envs 64

Plain trains on one device. FPS is the median of a run's iterations but the first, over all devices; memory is the peak
of a process on the processor (resident), or of a GPU (allocated), the largest of all ranks.
"""

import json
import os
import resource
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).parents[1]
VARIANTS = {
    "plain": None,
    "stage 0 (data parallel)": ["--zero-stage", "0"],
    "stage 1": ["--zero-stage", "1"],
    "stage 2": ["--zero-stage", "2"],
    "stage 2, moments on the processor": ["--zero-stage", "2", "--offload-optimizer"],
    "stage 3": ["--zero-stage", "3"],
    "stage 3, all on the processor": ["--zero-stage", "3", "--offload-optimizer", "--offload-param"],
}


@dataclass
class Args:
    devices: int = 2
    """processes of the `deepspeed` command"""
    iterations: int = 4
    """of which the first isn't counted"""
    num_envs: int = 64
    """replies an iteration, over all devices"""
    model: str = "builtin"
    """as in the scripts"""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """rows of the table"""
    flags: tyro.conf.UseAppendAction[tuple[str, ...]] = field(default=())
    """more flags of both scripts, each as --flags=--use-amp"""


def measured_run(script: str, out: str, *flags: str) -> None:
    """Run a script in this process; every rank leaves its peak of memory, in bytes."""
    sys.argv = [script, *flags]
    rank = runpy.run_path(script, run_name="__main__").get("rank", 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    Path(out, f"peak{rank}").write_text(str(peak))


def measure(args: Args, flags: list[str] | None) -> tuple[float, float]:
    """FPS and GB of a variant."""
    folder = Path(tempfile.mkdtemp())
    script = ROOT / ("ppo_dialog.py" if flags is None else "ppo_dialog_deepspeed.py")
    launcher = [sys.executable] if flags is None else ["deepspeed", "--num_gpus", str(args.devices)]
    common = {"run-name": "run", "model": args.model, "num-envs": args.num_envs, "eval-samples": 4}
    common |= {"total-episodes": args.num_envs * args.iterations, "checkpoint-every": 1000}
    words = [str(word) for name, value in common.items() for word in (f"--{name}", value)]
    command = [*launcher, __file__, "measured", str(script), str(folder), *words, *args.flags, *(flags or [])]
    # Processes that have more threads than cores between them wait for each other most of the time
    threads = max(1, os.cpu_count() // (1 if flags is None else args.devices))
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=folder, env=environment, **output)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")
    rows = [json.loads(line) for line in (folder / "runs/run/metrics.jsonl").read_text().splitlines()]
    peak = max(int(path.read_text()) for path in folder.glob("peak*"))
    shutil.rmtree(folder)
    return statistics.median(row["charts/FPS"] for row in rows[1:]), peak / 1e9


if __name__ == "__main__":
    if "measured" in sys.argv[1:3]:  # after the launcher's --local_rank
        words = [word for word in sys.argv[1:] if not word.startswith("--local_rank=")]
        measured_run(*words[1:])
    else:
        args = tyro.cli(Args, description=__doc__)
        print(f"{'':<36}{'devices':>8}{'FPS':>8}{'GB a device':>13}", flush=True)
        for name in args.variants:
            fps, memory = measure(args, VARIANTS[name])
            devices = 1 if VARIANTS[name] is None else args.devices
            print(f"{name:<36}{devices:>8}{fps:>8.1f}{memory:>13.2f}", flush=True)
