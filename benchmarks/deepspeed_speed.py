"""FPS and memory of ppo_dialog.py and of ppo_dialog_deepspeed.py at each ZeRO stage, on the devices at hand.

    python benchmarks/deepspeed_speed.py                                # two processes, 5 minutes
    python benchmarks/deepspeed_speed.py --devices 1 --model gpt2-small --num-envs 64 --flags=--use-amp     # a GPU
    python benchmarks/deepspeed_speed.py --devices 8 --model opt-1.3b --flags=--use-amp

Weights are drawn at random. Plain trains on one device. FPS counts the tokens of replies, over all devices: the median
of a run's iterations but the first. GB is what the iterations need on a device at most, the largest of all ranks: on a
processor the resident memory over that of the imports, on a GPU what is allocated. Beside it stands what the table
in docs/deepspeed.md says of weights, gradients and moments, and the reference's weights; activations and the intent
model are not in it.
"""

import datetime
import json
import os
import platform
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
import tyro
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, OPTConfig

from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.runs import Run

ROOT = Path(__file__).parents[1]
OPT = {"hidden_size": 2048, "word_embed_proj_dim": 2048, "ffn_dim": 8192, "num_hidden_layers": 24}
MODELS = {
    "27M": GPT2Config(n_embd=512, n_layer=8, n_head=8, vocab_size=4096),
    "gpt2-small": GPT2Config(),
    "opt-1.3b": OPTConfig(num_attention_heads=32, **OPT),
}
# Stage and flags; by stage the bytes a parameter of docs/deepspeed.md, in float32 and with --use-amp, of N devices
VARIANTS = {
    "plain": (None, []),
    "stage 0 (data parallel)": (0, []),
    "stage 1": (1, []),
    "stage 2": (2, []),
    "stage 2, moments on the processor": (2, ["--offload-optimizer"]),
    "stage 3": (3, []),
    "stage 3, all on the processor": (3, ["--offload-optimizer", "--offload-param"]),
}
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
    """of which the first isn't counted"""
    num_envs: int = 16
    """replies an iteration, over all devices"""
    model: Literal["27M", "gpt2-small", "opt-1.3b"] = "27M"
    """a GPT-2 of 27 million parameters, or as large as its name says"""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """rows of the table"""
    flags: tyro.conf.UseAppendAction[tuple[str, ...]] = field(default=())
    """more flags of both scripts, each as --flags=--use-amp"""


def peak() -> int:
    """Bytes that were in use at most."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured_run(script: str, out: str, *flags: str) -> None:
    """Run a script in this process; every rank leaves the memory that it takes up to the end of the last iteration."""
    runpy.run_path(script)  # the imports
    before, needed = peak(), []
    Run.log = after(Run.log, lambda: needed.append(peak() - before))
    sys.argv = [script, *flags]
    rank = runpy.run_path(script, run_name="__main__").get("rank", 0)
    Path(out, f"peak{rank}").write_text(str(needed[-1]))


def after(function, also):
    def both(*args, **kwargs):
        also()
        return function(*args, **kwargs)

    return both


def measure(args: Args, model: Path, stage: int | None, flags: list[str]) -> tuple[float, float]:
    """FPS and GB of a variant."""
    devices = 1 if stage is None else args.devices
    script = ROOT / ("ppo_dialog.py" if stage is None else "ppo_dialog_deepspeed.py")
    launcher = [sys.executable] if stage is None else ["deepspeed", "--num_gpus", str(devices)]
    common = {"run-name": "run", "model": model, "num-envs": args.num_envs, "eval-samples": 4}
    common |= {"total-episodes": args.num_envs * args.iterations, "num-minibatches": 2, "checkpoint-every": 1000}
    common |= {"replies-per-prompt": 4}
    common |= {} if stage is None else {"zero-stage": stage}
    words = [str(word) for name, value in common.items() for word in (f"--{name}", value)]
    # Processes that have more threads than cores between them wait for each other most of the time
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // devices))}
    with tempfile.TemporaryDirectory() as folder:
        command = [*launcher, __file__, "measured", str(script), folder, *words, *args.flags, *flags]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, cwd=folder, env=environment, **output)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")
        rows = [json.loads(line) for line in Path(folder, "runs/run/metrics.jsonl").read_text().splitlines()]
        needed = max(int(path.read_text()) for path in Path(folder).glob("peak*"))
    return statistics.median(row["charts/FPS"] for row in rows[1:]), needed / 1e9


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores"


def main(args: Args) -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("deepspeed", "torch", "transformers"))
    print(f"{machine()}; Python {platform.python_version()}, {versions}; {datetime.date.today()}")
    print(", ".join([args.model, f"{args.num_envs} replies an iteration", *args.flags]))
    amp, shared = "--use-amp" in args.flags, "--critic=separate" not in args.flags
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_config(MODELS[args.model])
        num_params = model.num_parameters()
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(ASSETS / "policy").save_pretrained(folder)
        del model
        print("\n| | devices | FPS | GB a device | by the table |\n| --- | ---: | ---: | ---: | ---: |")
        for name in args.variants:
            stage, flags = VARIANTS[name]
            devices = 1 if stage is None else args.devices
            fps, needed = measure(args, Path(folder), stage, flags)
            reference = 2 if amp and stage is not None else 4
            trained = num_params * (1 if shared else 2) * BYTES[stage][amp](devices)
            table = "" if flags else f"{(trained + num_params * reference) / 1e9:.2f}"
            print(f"| {name} | {devices} | {fps:.1f} | {needed:.2f} | {table} |", flush=True)
    if not torch.cuda.is_available():
        print(
            "\nNot measured, for want of GPUs: GPT-2 small and OPT-1.3B, on one GPU or several, the +30% and +35% over "
            "data parallel of OpenRL's tutorial among them; and what offloading saves, as the processor is the device."
        )


if __name__ == "__main__":
    if "measured" in sys.argv[1:3]:  # after the launcher's --local_rank
        words = [word for word in sys.argv[1:] if not word.startswith("--local_rank=")]
        measured_run(*words[1:])
    else:
        main(tyro.cli(Args, description=__doc__))
