"""PPO on dialogue: tokens a second of ppo_dialog.py, of a per-token loop in OpenRL's manner, and of TRL's trainers.

    python benchmarks/ppo_speed.py                                   # the embedded model, some minutes
    python benchmarks/ppo_speed.py --models gpt2-small --precisions fp32 --trl-python trl_venv/bin/python
    python benchmarks/ppo_speed.py --contestants ours --revisions main~20 --rounds 3 --out speed.json   # old and new

The tutorial's setting: prompts of up to 128 tokens, replies of up to 20, 5 epochs, a reference model, an intent model
and, where nothing else is said, a separate critic. FPS counts the tokens of replies, their end included, over the whole
loop: rollout, rewards (METEOR, intent and the reference's part in the KL penalty), update. Each contestant runs in a
process of its own, in turn, on the same prompts; its first iteration warms up and isn't counted. `contestants/` says
what each does and what was chosen in whose favour.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import transformers
import tyro
from machine import absolute, processor, revision, versions
from random_models import MODELS, random_model
from speed_tables import rollout_table, speed_table

from dailydialog_gym.env.samples import load_samples
from dailydialog_gym.models.loading import resolve
from dailydialog_gym.models.precision import has_bfloat16

HERE = Path(__file__).parent
PHASES = ("rollout", "rewards", "update")
AMP = {"fp32": None, "amp": "bfloat16", "fp16": "float16"}  # by precision, the type of autocast


@dataclass
class Args:
    models: tuple[str, ...] = ("builtin",)
    """"builtin"; a shape of random_models.py, such as "gpt2-small"; or a causal language model's folder"""
    contestants: tuple[Literal["ours", "per-token", "trl", "trl-grpo", "trl-rloo"], ...] = ("ours", "per-token", "trl")
    """ppo_dialog.py; the per-token loop in OpenRL's manner; TRL's PPO, and its current GRPO and RLOO"""
    precisions: tuple[Literal["fp32", "amp", "fp16"], ...] = ("fp32",)
    """float32; "amp", automatic mixed precision with bfloat16; or, of ppo_dialog.py alone, "fp16", with float16"""
    critics: tuple[Literal["separate", "shared"], ...] = ("separate", "shared")
    """of ppo_dialog.py; the others' are separate"""
    replies_per_prompt: tuple[int, ...] = (1, 4, 8)
    """of ppo_dialog.py, and those from 2 on of TRL's GRPO and RLOO; the others can't share a context"""
    compiled: bool = False
    """ppo_dialog.py with the first of these once more, with --compile"""
    cuda_graphs: bool = False
    """ppo_dialog.py with the first of these once more, with --cuda-graphs, which needs a GPU"""
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
    trl_now_python: str = sys.executable
    """the same with trl 1.16.0, for GRPO and RLOO"""
    revisions: tuple[str, ...] = ()
    """older revisions of this project to run as well, whose ppo_dialog.py takes turns with this one's"""
    rounds: int = 1
    """how often the contestants take turns: on a shared machine, other work then slows down all of them"""
    out: Path | None = None
    """a JSON file for all that was measured; `speed_tables.py` turns it into the tables of the documents"""
    threads: int = os.cpu_count() or 1
    """threads of each contestant"""


@dataclass
class Contestant:
    script: str
    label: str
    settings: dict
    root: Path = HERE.parent
    """the checkout that it runs"""


def contestants(args: Args) -> list[Contestant]:
    """What is to run for each model, the per-token loop first: the others are compared with it."""
    found = []
    for precision in args.precisions:
        amp = {"amp": AMP[precision], "critic": args.critics[0], "replies_per_prompt": 1, "compile": False}
        if "per-token" in args.contestants:
            found.append(Contestant("per_token.py", f"per-token loop in OpenRL's manner, {precision}", amp))
        if "trl" in args.contestants:
            found.append(Contestant("trl_ppo.py", f"TRL, {precision}", amp))
        for algorithm in ("grpo", "rloo"):
            for copies in args.replies_per_prompt if f"trl-{algorithm}" in args.contestants else ():
                if copies > 1:
                    settings = {**amp, "replies_per_prompt": copies, "algorithm": algorithm}
                    label = f"TRL's {algorithm.upper()}, {precision}, K={copies}"
                    found.append(Contestant("trl_groups.py", label, settings))
        if "ours" in args.contestants:
            for critic in args.critics:
                for copies in args.replies_per_prompt:
                    label = f"ppo_dialog.py, {precision}, {critic} critic"
                    settings = {**amp, "critic": critic, "replies_per_prompt": copies}
                    found.append(Contestant("ours.py", f"{label}, K={copies}" if copies > 1 else label, settings))
            first = {**amp, "replies_per_prompt": args.replies_per_prompt[0]}
            label = f"ppo_dialog.py, {precision}, {args.critics[0]} critic"
            if args.compiled:
                found.append(Contestant("ours.py", f"{label}, --compile", {**first, "compile": True}))
            if args.cuda_graphs:
                found.append(Contestant("ours.py", f"{label}, --cuda-graphs", {**first, "flags": ["--cuda-graphs"]}))
    return found


def describe_job(args: Args, model: str) -> dict:
    """What all contestants are told, in terms that need nothing of this project."""
    samples = load_samples(args.dataset, "train", model, args.context_size)
    wanted = args.num_envs * args.iterations
    sample_ids = np.resize(np.random.default_rng(0).permutation(len(samples)), wanted)  # repeated if there are fewer
    stop_ids = samples.tokenizer.encode([" <EOU>"])[0]
    if any(name.startswith("trl") for name in args.contestants) and len(stop_ids) > 1:
        raise SystemExit(f"{model}: TRL stops at one token, but <EOU> is {len(stop_ids)}; leave trl out")
    settings = {key: getattr(args, key) for key in ("context_size", "num_envs", "num_minibatches", "iterations")}
    return {
        **settings,
        "epochs": args.epochs,
        "dataset": absolute(args.dataset),
        "intent_model": absolute(args.intent_model),
        "model": absolute(model),
        "model_folder": absolute(resolve(model)),
        "sample_ids": sample_ids.tolist(),
        "prompts": [samples.prompt_ids[i, samples.prompt_mask[i]].tolist() for i in sample_ids],
        "stop_id": stop_ids[0],
        "flags": [],
        "memory_gb": None,
    }


def pythons(args: Args) -> dict[str, str]:
    """The Python of each script."""
    found = {"ours.py": sys.executable, "per_token.py": sys.executable}
    return found | {"trl_ppo.py": args.trl_python, "trl_groups.py": args.trl_now_python}


def without_trl(todo: list[Contestant], args: Args) -> list[Contestant]:
    """What is to run without the contestants whose TRL is not installed."""
    for script, what, version in (("trl_ppo.py", "experimental.ppo", "1.12.0"), ("trl_groups.py", "trainer", "1.16.0")):
        python = pythons(args)[script]
        if any(each.script == script for each in todo):
            done = subprocess.run([python, "-c", f"import trl.{what}"], capture_output=True)
            if done.returncode:
                print(f"{script} is left out: {python} can't import trl.{what} (pip install trl=={version})\n")
                todo = [each for each in todo if each.script != script]
    return todo


def run(contestant: Contestant, job: dict, args: Args, folder: Path) -> dict | None:
    """What the contestant's `Meter.report` wrote, or None where it failed, whose last words are printed."""
    files = {name: folder / f"{name}.json" for name in ("job", "result")}
    files["job"].write_text(
        json.dumps({**job, **contestant.settings, "result": str(files["result"])}), encoding="utf-8"
    )
    python = pythons(args)[contestant.script]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "false"}
    if python == sys.executable:
        environment["PYTHONPATH"] = os.pathsep.join([str(contestant.root), *filter(None, [os.getenv("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        done = subprocess.run(
            [python, contestant.root / "benchmarks/contestants" / contestant.script, files["job"]],
            cwd=scratch,
            env=environment,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        print(f"{contestant.label} failed ({done.returncode}):\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(files["result"].read_text(encoding="utf-8"))


def summary(results: list[dict]) -> dict:
    """FPS, shares of the time, and rates against that of a matmul, over all iterations but each process's first.

    Args:
        results: of a contestant, what each of its processes wrote.
    """
    timed = [iteration for result in results for iteration in result["iterations"][1:]]
    seconds = {phase: sum(iteration["seconds"][phase] for iteration in timed) for phase in PHASES}
    total = sum(seconds.values())
    flops = {phase: sum(iteration["flops"][phase] for iteration in timed) for phase in PHASES}
    tokens = sum(iteration["tokens"] for iteration in timed)
    matmul = statistics.mean(result["matmul_flops"] for result in results)
    each = [iteration["tokens"] / sum(iteration["seconds"].values()) for iteration in timed]
    return {
        "fps": tokens / total,
        "spread": statistics.stdev(each) if len(each) > 1 else 0.0,
        "shares": [seconds[phase] / total for phase in PHASES],
        "gflop_a_token": sum(flops.values()) / tokens / 1e9,
        "update_gflops": flops["update"] / seconds["update"] / 1e9,
        "of_matmul": flops["update"] / seconds["update"] / matmul,
        "rollout_of_matmul": flops["rollout"] / seconds["rollout"] / matmul,
        "peak_gb": max(result["peak_bytes"] for result in results) / 1e9,
    }


@contextmanager
def checkouts(revisions: tuple[str, ...], folder: Path) -> Iterator[list[Path]]:
    """Working trees of older revisions, for as long as this context lasts."""
    trees = [folder / f"revision-{i}" for i in range(len(revisions))]
    try:
        for tree, revision in zip(trees, revisions, strict=True):
            command = ["git", "-C", HERE, "worktree", "add", "--quiet", "--detach", tree, revision]
            subprocess.run(command, check=True)
        yield trees
    finally:
        for tree in filter(Path.exists, trees):
            subprocess.run(["git", "-C", HERE, "worktree", "remove", "--force", tree], check=True)


def rollout_seconds(replies: int, model: str, precision: str, args: Args, folder: Path) -> float:
    """What ppo_dialog.py takes to write so many replies, each to a prompt of its own."""
    few = replace(
        args, num_envs=replies, epochs=1, precisions=(precision,), critics=("shared",), replies_per_prompt=(1,)
    )
    contestant = contestants(replace(few, contestants=("ours",)))[0]
    timed = run(contestant, describe_job(few, model), few, folder)["iterations"][1:]
    return statistics.median(iteration["seconds"]["rollout"] for iteration in timed)


def device(threads: int) -> str:
    """The name of the GPU, or of the processor with the number of its cores and of the threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {threads} threads, {'with' if has_bfloat16() else 'without'} bfloat16 instructions"


def main(args: Args) -> None:
    transformers.utils.logging.disable_progress_bar()
    todo = without_trl(contestants(args), args)
    told = {
        "kind": "speed",
        "machine": device(args.threads),
        "versions": versions("torch", "transformers"),
        "revision": revision(),
        "setting": f"{args.num_envs} replies an iteration, minibatches: {args.num_minibatches}, epochs: {args.epochs}; "
        f"processes a line: {args.rounds}, each of {args.iterations} iterations, the first of which is not counted",
        "command": shlex.join(["python", "benchmarks/ppo_speed.py", *sys.argv[1:]]),
    }
    print("\n".join([*told.values()][1:]))
    rows, rollouts = [], []
    with tempfile.TemporaryDirectory() as scratch, checkouts(args.revisions, Path(scratch)) as trees:
        folder = Path(scratch)
        for tree, old in zip(trees, args.revisions, strict=True):
            todo += [
                replace(each, label=f"{each.label}, {old}", root=tree)
                for each in contestants(replace(args, contestants=("ours",)))
            ]
        for name in args.models:
            model = str(random_model(name, folder / name)) if name in MODELS else name
            job = describe_job(args, model)
            length = statistics.mean(len(prompt) for prompt in job["prompts"])
            results: list[list[dict]] = [[] for _ in todo]
            for _ in range(args.rounds):
                for contestant, found in zip(todo, results, strict=True):
                    found += filter(None, [run(contestant, job, args, folder)])
            for contestant, found in zip(todo, results, strict=True):
                if found:
                    row = {"model": name, "prompt_tokens": length, "label": contestant.label}
                    rows.append(row | {"script": contestant.script} | contestant.settings | summary(found))
            print("\n" + speed_table([row for row in rows if row["model"] == name]), flush=True)
            for precision in args.precisions if args.rollouts else ():
                for replies in args.rollouts:
                    seconds = rollout_seconds(replies, model, precision, args, folder)
                    rollouts.append({"model": name, "precision": precision, "replies": replies, "seconds": seconds})
    if rollouts:
        print("\n" + rollout_table(rollouts))
    if args.out:
        args.out.write_text(json.dumps(told | {"rows": rows, "rollouts": rollouts}, indent=1) + "\n", encoding="utf-8")
    if failures := len(args.models) * len(todo) - len(rows):
        raise SystemExit(f"{failures} of the contestants failed")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
