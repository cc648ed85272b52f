"""How FPS and peak memory of ppo_dialog.py grow with the replies, their length, their prompts' and the model.

    python benchmarks/scaling.py                                    # half an hour on two cores
    python benchmarks/scaling.py --sweeps models --out models.json  # a part of it

Each sweep changes one thing from GPT-2 small, 64 replies of 20 tokens, 8 to a prompt of 64 tokens; models are compared
with 16 replies. All have mixed precision, a shared critic, two minibatches and one epoch. Weights are random, so that
replies don't end early, and prompts are cut to their length from dialogues in a row. The JSON file is written after
each case; where there is one, only what it lacks is measured. `speed_tables.py` makes a table and a figure of it.

"limit" is the FPS if the arithmetic of the linear layers, as it is done, ran at a plain matrix product's rate.
"""

import json
import shlex
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import ppo_speed
import transformers
import tyro
from machine import revision, versions
from ppo_speed import Contestant, device, summary
from random_models import random_model

from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.env.samples import load_samples

COPIES, MINIBATCHES, MOST_TOKENS = 8, 2, 4096  # replies to a prompt, minibatches, tokens of replies in a forward
UTTERANCES = 100  # of each of the long dialogues


@dataclass(frozen=True)
class Case:
    sweep: str
    model: str = "gpt2-small"
    replies: int = 64
    prompt: int = 64
    reply: int = 20
    flags: tuple[str, ...] = ()

    def parts(self) -> int:
        """The parts that a minibatch goes through the model in, so that its logits fit into memory."""
        replies = self.replies // MINIBATCHES
        return min(-(-replies * self.reply // MOST_TOKENS), replies // COPIES)


SWEEPS = {
    "replies": [Case("replies", replies=replies) for replies in (16, 64, 256, 1024)],
    "prompts": [Case("prompts", prompt=prompt) for prompt in (32, 64, 128, 256, 512)],
    "lengths": [Case("lengths", reply=reply) for reply in (20, 64, 128, 256)],
    "models": [
        *(Case("models", model, 16) for model in ("6M", "27M", "gpt2-small", "gpt2-medium")),
        Case("models", "gpt2-medium", 16, flags=("--low-memory",)),
        Case("models", "opt-1.3b", 16, flags=("--low-memory",)),
        Case("models", "opt-1.3b", 16),
    ],
}


@dataclass
class Args:
    sweeps: tuple[Literal["replies", "prompts", "lengths", "models"], ...] = tuple(SWEEPS)
    """what grows"""
    iterations: int = 3
    """of each case, the first of which isn't counted"""
    out: Path = Path("docs/speed/scaling.json")
    """what was measured, and what a further call completes"""
    memory_gb: float = 20.0
    """a case that needs more data in memory than this fails, and its row says so"""
    threads: int = ppo_speed.Args.threads
    """threads of each process"""


def write_dialogues(path: Path) -> None:
    """Dialogues so long that most of their prompts can be cut to any length: the embedded ones in a row."""
    found = load_dialogues("builtin", "train")
    turns = [turn for one in found for turn in zip(one.utterances, map(int, one.acts), strict=True)]
    lines = []
    for start in range(0, len(turns) - UTTERANCES, UTTERANCES):
        utterances, acts = zip(*turns[start : start + UTTERANCES], strict=True)
        lines.append(json.dumps({"dialog": utterances, "act": acts}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def measure(case: Case, folder: Path, args: Args) -> dict:
    """The row of a case: what was measured, or that it needs more memory than it may have."""
    model, dialogues = folder / case.model, folder / "dialogues.jsonl"
    if not model.exists():
        random_model(case.model, model)
    if not dialogues.exists():
        write_dialogues(dialogues)
    samples = load_samples(str(dialogues), "train", str(model), UTTERANCES, case.prompt)
    whole = np.random.default_rng(0).permutation(samples.prompt_mask.all(1).nonzero()[0])
    flags = {"max-prompt-length": case.prompt, "max-new-tokens": case.reply}
    flags["gradient-accumulation-steps"] = case.parts()
    job = {
        "dataset": str(dialogues),
        "context_size": UTTERANCES,
        "num_envs": case.replies,
        "num_minibatches": MINIBATCHES,
        "iterations": args.iterations,
        "epochs": 1,
        "intent_model": "builtin",
        "model": str(model),
        "sample_ids": np.resize(whole, case.replies * args.iterations).tolist(),
        "flags": [*(f"--{name}={value}" for name, value in flags.items()), *case.flags],
        "memory_gb": args.memory_gb,
    }
    settings = {"amp": "bfloat16", "critic": "shared", "replies_per_prompt": COPIES, "compile": False}
    found = ppo_speed.run(
        Contestant("ours.py", f"{case}", settings), job, replace(ppo_speed.Args(), threads=args.threads), folder
    )
    if found is None:
        raise SystemExit("the same command measures this case and those after it")
    if "failed" in found:
        return asdict(case) | found
    row = summary([found])
    return asdict(case) | row | {"limit_fps": found["matmul_flops"] / (row["gflop_a_token"] * 1e9)}


def main(args: Args) -> None:
    transformers.utils.logging.disable_progress_bar()
    measured = {
        "kind": "scaling",
        "machine": device(args.threads),
        "versions": versions("torch", "transformers"),
        "revision": revision(),
        "setting": f"{args.iterations} iterations, the first not counted",
        "command": shlex.join(["python", "benchmarks/scaling.py", *sys.argv[1:]]),
        "rows": [],
    }
    if args.out.exists():
        measured = json.loads(args.out.read_text(encoding="utf-8"))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for case in [case for sweep in args.sweeps for case in SWEEPS[sweep]]:
            key = json.loads(json.dumps(asdict(case)))
            if any(key.items() <= row.items() for row in measured["rows"]):
                continue
            row = measure(case, Path(scratch), args)
            print(json.dumps(row), flush=True)
            measured["rows"].append(row)
            args.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
