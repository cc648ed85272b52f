"""A run's folder and what people see of a run: configuration, metrics, curves, samples. Nothing of PPO."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PreTrainedModel

from dailydialog_gym.agent import DialogueAgent, save_agent
from dailydialog_gym.rewards.intent import IntentMatch
from dailydialog_gym.runs.checkpoints import Checkpoints, Stateful, write_folder, write_text
from dailydialog_gym.env.samples import Samples
from dailydialog_gym.evaluate import Evaluation, evenly_spread
from dailydialog_gym.models.memory import forget_shapes, keep_freed_memory
from dailydialog_gym.evaluate.metrics import table
from dailydialog_gym.runs.report import plot_curves, side_by_side
from dailydialog_gym.env.tokenizer import EOU, ReplyTokenizer

MAX_BAD_STEPS = 3


@dataclass
class RunArgs:
    """The flags of a run that do not concern the algorithm."""

    run_name: str | None = None
    """name of the run's folder under runs/"""
    checkpoint_every: int = 10
    """save a checkpoint every so many iterations; one is also saved at the end and on Ctrl-C"""
    sample_every: int = 10
    """print two replies every so many iterations"""
    eval_split: str = "test"
    """dataset split of the evaluation before and after training; use validation while you tune"""
    eval_samples: int = 1000
    """number of replies to evaluate, spread evenly over the split, several to a context if it is smaller; 0 is all"""
    eval_top_k: int = 20
    """draw the evaluated replies from the k likeliest tokens, as RL4LMs and OpenRL do; 0 is all tokens"""
    track: bool = False
    """log to Weights and Biases too (offline if you are not logged in)"""
    wandb_project_name: str = "dailydialog-gym"
    """name of the Weights and Biases project"""
    wandb_entity: str | None = None
    """entity (team) of the Weights and Biases project"""


class Run:
    """The folder ``runs/<name>`` of one training run, its logs, checkpoints and progress bar.

    It comes to hold ``config.json``, ``metrics.jsonl`` (a line an iteration), TensorBoard events, ``checkpoints/``,
    ``agent/``, ``evaluation.json``, ``samples.md`` and ``curves.png``.

    Args:
        args: the script's arguments, a dataclass with ``model``, ``run_name``, ``seed``, ``checkpoint_every``,
            ``sample_every``, ``track``, ``wandb_project_name`` and ``wandb_entity``.
        total_episodes: how many replies the run is to train on.
        resume: the folder of the run to go on with, or None for a new one.

    Attributes:
        folder: where everything is.
        iteration: how many are done.
        before: the evaluation before training, where a resumed run has one.
        history: the metrics of each iteration.
    """

    _launcher = "python"

    def __init__(self, args: Any, total_episodes: int, resume: Path | None = None):
        forget_shapes()  # before the first forward
        for every in ("checkpoint_every", "sample_every"):
            if getattr(args, every) < 1:
                raise SystemExit(f"--{every.replace('_', '-')} must be at least 1, got {getattr(args, every)}")
        name = args.run_name or f"ppo_dialog__{args.seed}__{int(time.time())}"
        self.folder = resume or Path("runs") / name
        if resume is None:
            if self.folder.exists():
                raise FileExistsError(
                    f"{self.folder} exists: choose another --run-name, go on with it by --resume {self.folder}, or "
                    "remove it"
                )
            config = json.dumps(asdict(replace(args, run_name=name)), indent=2) + "\n"
            write_folder(self.folder, lambda folder: (folder / "config.json").write_text(config))
        self.args, self._total_episodes = args, total_episodes
        self.iteration, self.before = 0, None
        self.history: list[dict[str, float]] = []
        self._wandb, self._wandb_id = None, None
        self._skipped, self._bad_steps = 0, Counter()
        self._training, self._signal = False, 0

    def describe(
        self,
        policy: torch.nn.Module,
        samples: Samples,
        eval_samples: Samples,
        device: torch.device,
        amp_dtype: torch.dtype,
        **more: str,
    ) -> None:
        """Print what was loaded and where the run is saved; if the default is embedded, how to get the full data."""
        args = self.args
        rewards = [f"{args.meteor_weight} METEOR", f"{args.intent_weight} intent ({args.intent_model})", *args.reward]
        lines = {
            "policy": f"{args.model}, {sum(p.numel() for p in policy.parameters()):,} parameters, critic {args.critic}",
            "dialogues": f"{args.dataset}: {len(samples):,} replies to train on, {len(eval_samples):,} in "
            + args.eval_split,
            "rewards": f"{' + '.join(rewards)} - KL ({args.kl_rule}, from {args.kl_coef})",
            "device": f"{device}, {describe_amp(device, amp_dtype) if args.use_amp else 'float32'}",
            **more,
            "run": str(self.folder),
        }
        for name, line in lines.items():
            print(f"{name:<10}{line}")
        if "builtin" in (args.model, args.dataset):
            print(
                "builtin is the small embedded default. The full dataset and GPT-2, from the hub: "
                "--config configs/openrl.yaml"
            )

    def keep(self, policy: torch.nn.Module, **parts: Stateful) -> None:
        """Say what a checkpoint is made of, the policy as an agent folder beside; a resumed run loads its last one."""
        self._restore(
            Checkpoints(self.folder / "checkpoints", lambda folder: save_agent(policy, self.args.model, folder), parts)
        )

    def _restore(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self.iteration, progress = self._checkpoints.load()
        if progress:
            self.before = Evaluation.restore(progress["before"])
            self.history, self._bad_steps = progress["history"], Counter(progress["bad_steps"])
            self._wandb_id = progress["wandb_id"]
            print(f"resumed   {self._checkpoints.last}, after {self.history[-1]['episodes']:,} replies")

    def start(self, before: Evaluation) -> None:
        """Open the logs, show the progress bar, and from now on finish the iteration when asked to stop."""
        keep_freed_memory()
        self.before = before
        done = self.history[-1]["episodes"] if self.history else 0
        # What was logged after the checkpoint is logged again
        write_text(self.folder / "metrics.jsonl", "".join(_line(row) for row in self.history))
        self._writer = SummaryWriter(self.folder, purge_step=done + 1)
        self._writer.add_text("config", "\n".join(f"- {key}: {value}" for key, value in asdict(self.args).items()))
        if self.args.track:
            self._wandb = _start_wandb(self.args, self.folder, self._wandb_id)
            self._wandb_id = self._wandb.id
        self._handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        self._training = True
        self._bar = tqdm(
            total=self._total_episodes,
            initial=done,
            unit="reply",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10,  # a log file keeps every state of the line
        )

    def check_step(self, part: str, *numbers: torch.Tensor, loss_scale: float) -> bool:
        """Whether to take an optimizer's step: not where the loss or a gradient's norm isn't finite.

        Args:
            part: whose step it is, "the policy" say.
            numbers: the loss and the norms, one number each.
            loss_scale: of a `GradScaler`, 1 without. While it is larger than 1, a gradient that overflows is the
                scale's fault, which the scaler then halves; such a step is left out, but doesn't end the run.

        Raises:
            SystemExit: this is the part's third bad step in a row; the message names it and the last checkpoint.
        """
        if torch.stack([number.detach().float() for number in numbers]).isfinite().all():
            self._bad_steps[part] = 0
            return True
        self._skipped += 1
        self._bad_steps[part] += loss_scale <= 1
        if self._bad_steps[part] == MAX_BAD_STEPS:
            self._bar.close()
            last = self._checkpoints.last
            raise SystemExit(
                f"stopped: {part}'s loss or gradient was not finite {MAX_BAD_STEPS} times in a row. Begin again with a "
                "lower learning rate or another --seed. "
                + (f"The last good checkpoint is {last}, its agent {last}/agent" if last else "No checkpoint was saved")
            )
        return False

    def log(self, metrics: dict[str, float], episodes: int) -> None:
        """Log an iteration's metrics by the number of replies trained on so far, and move the progress bar."""
        metrics = {**{key: float(value) for key, value in metrics.items()}, "losses/skipped_steps": self._skipped}
        self._skipped = 0
        row = {"episodes": episodes, **metrics}
        self.history.append(row)
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(_line(row))
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, episodes)
        if self._wandb:
            self._wandb.log(row, step=episodes)  # wandb leaves out the steps that it has from before a resume
        self._bar.set_postfix_str(
            f"reward {metrics['charts/episodic_return']:.3f}, KL/token {metrics['metric/kl_per_token']:.3f}, "
            f"{metrics['charts/FPS']:.0f} tokens/s"
        )
        self._bar.update(episodes - self._bar.n)

    def evaluate(
        self, policy: PreTrainedModel, tokenizer: ReplyTokenizer, samples: Samples, intent: IntentMatch
    ) -> Evaluation:
        """Evaluate the policy on ``eval_samples`` of the samples, with the flags of `RunArgs`."""
        args = self.args
        agent = DialogueAgent(policy, tokenizer, args.context_size, args.max_prompt_length, args.max_new_tokens)
        ids = evenly_spread(samples, args.eval_samples)
        return Evaluation(agent, samples, ids, intent, sample=True, top_k=args.eval_top_k, seed=args.seed)

    def show(self, iteration: int, prompts: list[str], responses: list[str], rewards: torch.Tensor) -> None:
        """Print two replies and their rewards above the progress bar, every ``sample_every`` iterations."""
        if iteration % self.args.sample_every == 0:
            for prompt, response, reward in zip(prompts[:2], responses[:2], rewards.tolist()[:2], strict=True):
                tqdm.write(f"  {prompt.split(EOU)[-2].strip()}\n  > {response}   [{reward:+.3f}]")

    def checkpoint(self, iteration: int) -> None:
        """Save a checkpoint where it is due: every so many iterations, at the end, and when asked to stop.

        Raises:
            SystemExit: the run was asked to stop, or the checkpoint can't be written.
        """
        self.iteration = iteration
        ended = self.history[-1]["episodes"] == self._total_episodes
        stop = self._asked_to_stop()
        if not (ended or stop or iteration % self.args.checkpoint_every == 0):
            return
        self._writer.flush()  # after a kill, nothing from before the checkpoint is missing there either
        progress = {"before": vars(self.before), "history": self.history}
        progress |= {"bad_steps": dict(self._bad_steps), "wandb_id": self._wandb_id}
        self._checkpoints.save(iteration, progress)
        if ended or stop:
            self._training = False
            self._bar.close()
        if stop:
            self._stop()

    def _asked_to_stop(self) -> int:
        return self._signal

    def _on_signal(self, signum: int, _frame: Any) -> None:
        self._signal = signum
        if not self._training:
            self._stop()
        for other in self._handlers:
            signal.signal(other, signal.SIG_DFL)
        # Not print, which must not be entered again while it is interrupted
        os.write(2, b"\nstopping after this iteration and a checkpoint; once more to quit at once\n")

    def _stop(self) -> None:
        done = self.history[-1]["episodes"] if self.history else 0
        print(f"\nstopped after {done:,} of {self._total_episodes:,} replies; go on with", file=sys.stderr)
        print(f"    {self._launcher} {sys.argv[0]} --resume {self.folder}", file=sys.stderr)
        if self._checkpoints.last:
            print(f"the agent so far is {self._checkpoints.last}/agent", file=sys.stderr)
        self._close()
        raise SystemExit(128 + self._signal)  # as a shell says of a process that a signal ended

    def finish(self, after: Evaluation) -> None:
        """Write the agent, the evaluation, the samples and the curves; print the table and where everything is."""
        last = self._checkpoints.last
        write_folder(self.folder / "agent", lambda folder: shutil.copytree(last / "agent", folder, dirs_exist_ok=True))
        rows = {"before": self.before.scores, "after": after.scores}
        write_text(self.folder / "evaluation.json", json.dumps(rows, indent=2) + "\n")
        write_text(self.folder / "samples.md", side_by_side(self.before, after))
        plot_curves(self.history, self.folder / "curves.png")
        if self._wandb:
            self._wandb.log({f"eval/{key}": value for key, value in after.scores.items()})
        self._close()
        print(f"\n{table(rows)}\n\n{self.before.manner}\n")
        print(f"agent     {self.folder}/agent\nsamples   {self.folder}/samples.md\ncurves    {self.folder}/curves.png")
        print(f"logs      tensorboard --logdir {self.folder.parent}")

    def _close(self) -> None:
        self._writer.close()
        if self._wandb:
            self._wandb.finish()
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)


def describe_amp(device: torch.device, dtype: torch.dtype) -> str:
    """Mixed precision in words, with a warning where the processor only emulates bfloat16."""
    there = {name for name, value in torch.cpu.get_capabilities().items() if value is True}
    if device.type == "cpu" and not there & {"amx_bf16", "avx512_bf16", "bf16"}:
        return f"{dtype} mixed precision (slower than float32 here: this processor has no bfloat16 instructions)"
    return f"{dtype} mixed precision"


def _line(row: dict[str, float]) -> str:
    """A line of metrics.jsonl; JSON has no NaN, so a number that isn't finite is null."""
    return json.dumps({key: value if math.isfinite(value) else None for key, value in row.items()}) + "\n"


def _start_wandb(args: Any, folder: Path, run_id: str | None):
    import wandb

    # Without a login wandb would ask for one and wait; what is logged offline can be uploaded later.
    mode = None if wandb.api.api_key or "WANDB_MODE" in os.environ else "offline"
    if mode:
        print("wandb: not logged in, so this run is logged offline; `wandb sync` uploads it")
    return wandb.init(
        project=args.wandb_project_name,
        entity=args.wandb_entity,
        name=folder.name,
        config=asdict(args),
        mode=mode,
        dir=folder.parent.absolute(),
        id=run_id,
        resume="allow",
    )
