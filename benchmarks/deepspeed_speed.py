"""FPS and memory of ppo_dialog.py and of ppo_dialog_deepspeed.py at each ZeRO stage, on the devices at hand.

    python benchmarks/deepspeed_speed.py                                # two processes, 5 minutes
    python benchmarks/deepspeed_speed.py --devices 1 --model gpt2-small --num-envs 64 --flags=--use-amp     # a GPU
    python benchmarks/deepspeed_speed.py --devices 8 --model opt-1.3b --flags=--use-amp

The weights are random. The row "plain" is ppo_dialog.py on one device. FPS is the number of reply tokens per second on
all devices together: the median over the iterations of a run without the first. GB is the largest amount of memory that
the iterations need on any device: on a CPU the resident memory minus that after the imports, on a GPU the allocated
memory. The column next to it is the memory of weights, gradients, optimizer moments and the reference's weights by the
documented bytes per parameter, without the activations and the intent model.
"""

import json
import os
import resource
import runpy
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro
from machine import environment, processor, revision, versions
from random_models import MODELS, random_model
from speed_tables import deepspeed_table
from transformers import AutoModelForCausalLM

from dailydialog_gym.runs import Run

ROOT = Path(__file__).parents[1]
# By name: the ZeRO stage, None for ppo_dialog.py, and more flags
VARIANTS = {
    "plain": (None, []),
    "stage 0 (data parallel)": (0, []),
    "stage 1": (1, []),
    "stage 2": (2, []),
    "stage 2, moments on the processor": (2, ["--offload-optimizer"]),
    "stage 3": (3, []),
    "stage 3, all on the processor": (3, ["--offload-optimizer", "--offload-param"]),
}
# By ZeRO stage: the bytes per parameter on each of n devices, in float32 and with --use-amp
BYTES = {
    None: (lambda n: 16, lambda n: 16),  # autocast keeps float32 weights
    0: (lambda n: 16, lambda n: 18),
    1: (lambda n: 8 + 8 / n, lambda n: 4 + 14 / n),
    2: (lambda n: 4 + 12 / n, lambda n: 2 + 16 / n),
    3: (lambda n: 16 / n, lambda n: 18 / n),
}


@dataclass
class Args:
    devices: int = 2
    """processes of the `deepspeed` command"""
    iterations: int = 3
    """PPO iterations of each run; the first one is not counted"""
    num_envs: int = 16
    """replies per iteration, over all devices"""
    model: Literal["27M", "gpt2-small", "gpt2-medium", "opt-1.3b"] = "27M"
    """size of the model; 27M is a GPT-2 of 27 million parameters"""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """the rows of the table"""
    flags: tyro.conf.UseAppendAction[tuple[str, ...]] = field(default=())
    """more flags for both scripts, each as --flags=--use-amp"""
    out: Path | None = None
    """a JSON file for all that was measured; `speed_tables.py` turns it into the table of docs/deepspeed.md"""


def peak() -> int:
    """The largest number of bytes that this process has used at one time."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured_run(script: str, out: str, *flags: str) -> None:
    """Run a script in this process, and write to a file of each rank how much memory its iterations needed."""
    runpy.run_path(script)  # the imports
    before, needed, log = peak(), [], Run.log

    def measured_log(*args, **kwargs):
        needed.append(peak() - before)
        return log(*args, **kwargs)

    Run.log = measured_log  # the scripts call it at the end of each iteration
    sys.argv = [script, *flags]
    rank = runpy.run_path(script, run_name="__main__").get("rank", 0)
    Path(out, f"peak{rank}").write_text(str(needed[-1]), encoding="utf-8")


def measure(args: Args, model: Path, stage: int | None, flags: list[str]) -> tuple[float, float]:
    """The FPS and the GB per device of a variant."""
    devices = 1 if stage is None else args.devices
    script = ROOT / ("ppo_dialog.py" if stage is None else "ppo_dialog_deepspeed.py")
    launcher = [sys.executable] if stage is None else ["deepspeed", "--num_gpus", str(devices)]
    common = {"run-name": "run", "model": model, "num-envs": args.num_envs, "eval-samples": 4}
    common |= {"total-episodes": args.num_envs * args.iterations, "num-minibatches": 2, "checkpoint-every": 1000}
    common |= {"replies-per-prompt": 4, "top-k": 0}  # among few candidates a random model's replies would end at once
    common |= {} if stage is None else {"zero-stage": stage}
    words = [str(word) for name, value in common.items() for word in (f"--{name}", value)]
    # If the processes have more threads than there are cores, they wait for each other most of the time
    threads = max(1, os.cpu_count() // devices)
    with tempfile.TemporaryDirectory() as folder:
        command = [*launcher, __file__, "measured", str(script), folder, *words, *args.flags, *flags]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, cwd=folder, env=environment(threads), **output)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")
        rows = [
            json.loads(line) for line in Path(folder, "runs/run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        needed = max(int(path.read_text(encoding="utf-8")) for path in Path(folder).glob("peak*"))
    return statistics.median(row["charts/FPS"] for row in rows[1:]), needed / 1e9


def main(args: Args) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    measured = {
        "kind": "deepspeed",
        "machine": device,
        "versions": versions("deepspeed", "torch", "transformers"),
        "revision": revision(),
        "setting": ", ".join([args.model, f"{args.num_envs} replies per iteration", *args.flags]),
        "command": shlex.join(["python", "benchmarks/deepspeed_speed.py", *sys.argv[1:]]),
        "rows": [],
    }
    print("; ".join(measured[key] for key in ("machine", "versions", "revision", "setting")))
    amp, shared = "--use-amp" in args.flags, "--critic=separate" not in args.flags
    with tempfile.TemporaryDirectory() as folder:
        random_model(args.model, Path(folder))
        with torch.device("meta"):
            num_params = AutoModelForCausalLM.from_config(MODELS[args.model]).num_parameters()
        for name in args.variants:
            stage, flags = VARIANTS[name]
            devices = 1 if stage is None else args.devices
            fps, needed = measure(args, Path(folder), stage, flags)
            reference = 2 if amp and stage is not None else 4
            trained = num_params * (1 if shared else 2) * BYTES[stage][amp](devices)
            row = {"variant": name, "devices": devices, "fps": fps, "gb": needed}
            row["table_gb"] = None if flags else (trained + num_params * reference) / 1e9
            measured["rows"].append(row)
            print(json.dumps(row), flush=True)
            if args.out:  # after each row, because the next one may need more memory than there is
                args.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print("\n" + deepspeed_table(measured["rows"]))
    if not torch.cuda.is_available():
        print(
            "\nWithout GPUs this is no comparison with OpenRL's tutorial (GPT-2 small and OPT-1.3B, +30% and +35% over "
            "data parallel), and offloading to the CPU saves no memory."
        )


if __name__ == "__main__":
    if "measured" in sys.argv[1:3]:  # the launcher may put --local_rank before it
        words = [word for word in sys.argv[1:] if not word.startswith("--local_rank=")]
        measured_run(*words[1:])
    else:
        main(tyro.cli(Args, description=__doc__))
