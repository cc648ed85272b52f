"""PPO on dialogue: tokens a second of ppo_dialog.py, of a per-token loop in OpenRL's manner, and of TRL's PPO trainer.

    python benchmarks/ppo_speed.py                                   # the embedded model, some minutes
    python benchmarks/ppo_speed.py --models gpt2-small --precisions fp32 --trl-python trl_venv/bin/python

The tutorial's setting: prompts of up to 128 tokens, replies of up to 20, 5 epochs, a reference model, an intent model
and, where nothing else is said, a separate critic. FPS counts the tokens of replies, their end included, over the whole
loop: rollout, rewards (METEOR, intent and the reference's part in the KL penalty), update. Each contestant runs in a
process of its own, in turn, on the same prompts; its first iteration warms up and isn't counted. `contestants/` says
what each does and what was chosen in whose favour.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import transformers
import tyro
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from dailydialog_gym.env.samples import load_samples
from dailydialog_gym.models.loading import resolve

HERE = Path(__file__).parent
PHASES = ("rollout", "rewards", "update")
AMP = {"fp32": None, "amp": "bfloat16", "fp16": "float16"}  # by precision, the type of autocast


@dataclass
class Args:
    models: tuple[str, ...] = ("builtin",)
    """"builtin"; "gpt2-small", its 124 million parameters drawn at random; or a causal language model's folder"""
    contestants: tuple[Literal["ours", "per-token", "trl"], ...] = ("ours", "per-token", "trl")
    """ppo_dialog.py; the per-token loop in OpenRL's manner; TRL, where it is installed"""
    precisions: tuple[Literal["fp32", "amp", "fp16"], ...] = ("fp32",)
    """float32; "amp", automatic mixed precision with bfloat16; or, of ppo_dialog.py alone, "fp16", with float16"""
    critics: tuple[Literal["separate", "shared"], ...] = ("separate", "shared")
    """of ppo_dialog.py; the others' are separate"""
    replies_per_prompt: tuple[int, ...] = (1, 4, 8)
    """of ppo_dialog.py; the others can't share a context"""
    compiled: bool = False
    """ppo_dialog.py with the first of these once more, with --compile"""
    rollouts: tuple[int, ...] = ()
    """how many replies at once to compare the cost of a rollout at, "8 16 32 64" say"""
    num_envs: int = 32
    """replies of an iteration"""
    num_minibatches: int = 4
    """minibatches of an epoch"""
    iterations: int = 3
    """of each contestant, the first of which isn't counted"""
    epochs: int = 5
    """passes over each batch"""
    dataset: str = "builtin"
    """where the prompts come from, see `DailyDialog-v0`"""
    context_size: int = 5
    """utterances of a prompt; more make longer prompts"""
    intent_model: str = "builtin"
    """the classifier of ppo_dialog.py and of the per-token loop"""
    trl_python: str = sys.executable
    """a Python that has trl 1.12.0, torch and transformers, where it isn't this one"""
    threads: int = os.cpu_count() or 1
    """threads of each contestant"""


@dataclass
class Contestant:
    script: str
    label: str
    settings: dict


def contestants(args: Args) -> list[Contestant]:
    """What is to run for each model, the per-token loop first: the others are compared with it."""
    found = []
    for precision in args.precisions:
        amp = {"amp": AMP[precision], "critic": args.critics[0], "replies_per_prompt": 1, "compile": False}
        if "per-token" in args.contestants:
            found.append(Contestant("per_token.py", f"per-token loop in OpenRL's manner, {precision}", amp))
        if "trl" in args.contestants:
            found.append(Contestant("trl_ppo.py", f"TRL, {precision}", amp))
        if "ours" in args.contestants:
            for critic in args.critics:
                for copies in args.replies_per_prompt:
                    label = f"ppo_dialog.py, {precision}, {critic} critic"
                    settings = {**amp, "critic": critic, "replies_per_prompt": copies}
                    found.append(Contestant("ours.py", f"{label}, K={copies}" if copies > 1 else label, settings))
            if args.compiled:
                first = {**amp, "replies_per_prompt": args.replies_per_prompt[0], "compile": True}
                found.append(
                    Contestant("ours.py", f"ppo_dialog.py, {precision}, {args.critics[0]} critic, --compile", first)
                )
    return found


def random_gpt2_small(folder: Path) -> Path:
    """GPT-2 small without its weights, and the embedded tokenizer stretched to its 50,257 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("builtin"))
    torch.manual_seed(0)
    config = GPT2Config(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"unused{i}": i for i in range(len(tokenizer), config.vocab_size)}
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    return folder


def describe_job(args: Args, model: str) -> dict:
    """What all contestants are told, in terms that need nothing of this project."""
    samples = load_samples(args.dataset, "train", model, args.context_size)
    wanted = args.num_envs * args.iterations
    sample_ids = np.resize(np.random.default_rng(0).permutation(len(samples)), wanted)  # repeated if there are fewer
    stop_ids = samples.tokenizer.encode([" <EOU>"])[0]
    if "trl" in args.contestants and len(stop_ids) > 1:
        raise SystemExit(f"{model}: TRL stops at one token, but <EOU> is {len(stop_ids)}; leave trl out")
    settings = {key: getattr(args, key) for key in ("dataset", "context_size", "num_envs", "num_minibatches")}
    return {
        **settings,
        "iterations": args.iterations,
        "epochs": args.epochs,
        "intent_model": args.intent_model,
        "model": model,
        "model_folder": resolve(model),
        "sample_ids": sample_ids.tolist(),
        "prompts": [samples.prompt_ids[i, samples.prompt_mask[i]].tolist() for i in sample_ids],
        "stop_id": stop_ids[0],
    }


def has_trl(python: str) -> bool:
    return subprocess.run([python, "-c", "import trl.experimental.ppo"], capture_output=True).returncode == 0


def run(contestant: Contestant, job: dict, args: Args, folder: Path) -> dict | None:
    """What the contestant's `Meter.report` wrote, or None where it failed, whose last words are printed."""
    files = {name: folder / f"{name}.json" for name in ("job", "result")}
    files["job"].write_text(
        json.dumps({**job, **contestant.settings, "result": str(files["result"])}), encoding="utf-8"
    )
    python = args.trl_python if contestant.script == "trl_ppo.py" else sys.executable
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "false"}
    if python == sys.executable:
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, [os.getenv("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        done = subprocess.run(
            [python, HERE / "contestants" / contestant.script, files["job"]],
            cwd=scratch,
            env=environment,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        print(f"{contestant.label} failed ({done.returncode}):\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(files["result"].read_text(encoding="utf-8"))


def summary(result: dict) -> dict:
    """FPS, shares of the time, and the update's rate against a matmul's, over all iterations but the first."""
    timed = result["iterations"][1:]
    seconds = {phase: sum(iteration["seconds"][phase] for iteration in timed) for phase in PHASES}
    total = sum(seconds.values())
    flops = {phase: sum(iteration["flops"][phase] for iteration in timed) for phase in PHASES}
    tokens = sum(iteration["tokens"] for iteration in timed)
    return {
        "fps": tokens / total,
        "shares": [seconds[phase] / total for phase in PHASES],
        "gflop_a_token": sum(flops.values()) / tokens / 1e9,
        "update_gflops": flops["update"] / seconds["update"] / 1e9,
        "of_matmul": flops["update"] / seconds["update"] / result["matmul_flops"],
        "peak_gb": result["peak_bytes"] / 1e9,
    }


def rollout_seconds(replies: int, model: str, precision: str, args: Args, folder: Path) -> float:
    """What ppo_dialog.py takes to write so many replies, each to a prompt of its own."""
    few = replace(
        args, num_envs=replies, epochs=1, precisions=(precision,), critics=("shared",), replies_per_prompt=(1,)
    )
    contestant = contestants(replace(few, contestants=("ours",), compiled=False))[0]
    timed = run(contestant, describe_job(few, model), few, folder)["iterations"][1:]
    return statistics.median(iteration["seconds"]["rollout"] for iteration in timed)


def machine(threads: int) -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    there = {flag for flag, value in torch.cpu.get_capabilities().items() if value is True}
    bfloat16 = "with" if there & {"amx_bf16", "avx512_bf16", "bf16"} else "without"
    return f"{name}, {os.cpu_count()} cores, {threads} threads, {bfloat16} bfloat16 instructions"


def main(args: Args) -> None:
    transformers.utils.logging.disable_progress_bar()
    todo = contestants(args)
    if any(c.script == "trl_ppo.py" for c in todo) and not has_trl(args.trl_python):
        print(f"TRL is left out: {args.trl_python} can't import trl.experimental.ppo (pip install trl==1.12.0)\n")
        todo = [c for c in todo if c.script != "trl_ppo.py"]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    print(f"{machine(args.threads)}; Python {platform.python_version()}, {versions}; {datetime.date.today()}")
    print(
        f"{args.num_envs} replies an iteration, {args.num_minibatches} minibatches, {args.epochs} epochs; "
        f"{args.iterations} iterations, the first not counted. Times: FPS over the per-token loop's and over TRL's, "
        f"both in {args.precisions[0]}. GFLOP: of linear layers and the head, padding included, attention not; not "
        "counted under --compile."
    )
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            model = str(random_gpt2_small(Path(folder) / name)) if name == "gpt2-small" else name
            job = describe_job(args, model)
            lengths = [len(prompt) for prompt in job["prompts"]]
            print(f"\n{name}, prompts of {statistics.mean(lengths):.0f} tokens on average ({args.dataset})\n")
            print(
                "| | FPS | times | times TRL | GFLOP a token | rollout | rewards | update | update's GFLOP/s "
                f"| of a matmul's | peak GB |\n| --- {'| ---: ' * 10}|"
            )
            baselines = {}
            for contestant in todo:
                result = run(contestant, job, args, Path(folder))
                if result is None:
                    failures += 1
                    continue
                row = summary(result)
                baselines.setdefault(contestant.script, row["fps"])
                times = " | ".join(
                    f"{row['fps'] / baselines[script]:.1f}" if script in baselines else ""
                    for script in ("per_token.py", "trl_ppo.py")
                )
                shares = " | ".join(f"{share:.0%}" for share in row["shares"])
                work, rate, of_matmul = "", "", ""
                if not contestant.settings["compile"]:
                    work, rate = f"{row['gflop_a_token']:.2f}", f"{row['update_gflops']:.0f}"
                    of_matmul = f"{row['of_matmul']:.0%}"
                print(
                    f"| {contestant.label} | {row['fps']:.2f} | {times} | {work} | {shares} | {rate} | {of_matmul} | "
                    f"{row['peak_gb']:.1f} |",
                    flush=True,
                )
            for precision in args.precisions if args.rollouts else ():
                print(f"\n{name}, {precision}\n\n| replies at once | rollout s | ms a reply |\n| ---: | ---: | ---: |")
                for replies in args.rollouts:
                    seconds = rollout_seconds(replies, model, precision, args, Path(folder))
                    print(f"| {replies} | {seconds:.2f} | {1000 * seconds / replies:.0f} |", flush=True)
    if failures:
        raise SystemExit(f"{failures} of the contestants failed")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
