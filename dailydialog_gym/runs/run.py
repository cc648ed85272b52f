"""One run of a PPO script: its folder, logs, checkpoints, progress bar and reaction to signals."""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import shutil
import signal
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PreTrainedModel

from dailydialog_gym.agent import AgentRecord, DialogueAgent, save_agent
from dailydialog_gym.env.samples import Samples
from dailydialog_gym.env.tokenizer import ReplyTokenizer, split_prompt
from dailydialog_gym.errors import report_in_one_line
from dailydialog_gym.evaluate import Evaluation, change_intervals, evenly_spread
from dailydialog_gym.extras import need
from dailydialog_gym.files import write_folder, write_text
from dailydialog_gym.models.memory import keep_freed_memory, return_freed_memory
from dailydialog_gym.models.precision import has_bfloat16
from dailydialog_gym.ranges import Count, CountOrZero
from dailydialog_gym.reports.curves import curve_keys, plot_curves, targets_of
from dailydialog_gym.reports.tables import table
from dailydialog_gym.rewards.intent import IntentMatch
from dailydialog_gym.runs.checkpoints import Checkpoints, Stateful
from dailydialog_gym.runs.fingerprint import changes, fingerprint
from dailydialog_gym.runs.folder import lock, make_folder
from dailydialog_gym.runs.rollouts import MAX_BYTES, action_ratios, describe_rollouts, forget_after
from dailydialog_gym.runs.samples import markdown_samples, rewards_of, side_by_side

MAX_BAD_STEPS = 3
SIGPIPE = 13  # the number that it has where it exists
SPACINGS = {"spaced": "spaced like DailyDialog", "ordinary": "ordinary text"}


@dataclass
class RunArgs:
    run_name: str | None = None
    """name of the run's folder under runs/"""
    checkpoint_every: Count = 10
    """save a checkpoint every so many iterations; one is also saved at the end and on Ctrl-C"""
    keep_checkpoints: Count = 2
    """number of checkpoints that are kept, the last ones"""
    resume_anyway: bool = False
    """with --resume: go on although the dataset's rows or a model's files are no longer those of the checkpoint"""
    sample_every: Count = 10
    """print two replies every so many iterations"""
    log_rollouts: CountOrZero = 16
    """write about so many replies of each iteration, whole groups, to rollouts.jsonl with all numbers by token; or 0"""
    eval_split: str = "test"
    """dataset split of the evaluation before and after training; use validation while you tune"""
    eval_samples: CountOrZero = 1000
    """number of replies to evaluate, spread evenly over the split, several to a context if it is smaller; 0 is all"""
    eval_top_k: CountOrZero = 20
    """draw the evaluated replies from the k likeliest tokens, as RL4LMs and OpenRL do; 0 is all tokens"""
    low_memory: bool = False
    """weights in bfloat16 and moments of 8 bits, 6 bytes a parameter instead of 16; rounds at random, and is slower"""
    track: bool = False
    """log to Weights and Biases too (offline if you are not logged in)"""
    wandb_project_name: str = "dailydialog-gym"
    """name of the Weights and Biases project"""
    wandb_entity: str | None = None
    """entity (team) of the Weights and Biases project"""


class Run:
    """The folder ``runs/<name>`` of one training run, its logs, checkpoints and progress bar.

    At the end the folder holds ``config.json``, ``metrics.jsonl`` (a line for each iteration), ``rollouts.jsonl`` (a
    line for each context of which the replies are logged, see `dailydialog_gym.runs.rollouts`), TensorBoard events,
    ``checkpoints/``, ``agent/``, ``evaluation.json``, ``intervals.json``, ``samples.json``, ``samples.md`` and
    ``curves.png``.

    Args:
        args: the script's arguments, a dataclass that inherits `RunArgs`.
        total_episodes: the number of replies to train on.
        resume: the folder of an unfinished run that goes on, or None for a new run.
        is_main: whether this process writes the files and prints. In a job of several processes, exactly one does;
            the others call the same methods at the same time.

    Attributes:
        folder: the run's folder.
        iteration: the number of iterations that are done.
        before: the evaluation before training; None until a resumed run has loaded it or `start` has set it.
        history: the metrics of each iteration.

    Raises:
        ValueError: ``resume_anyway`` is set for a new run, the name isn't one of a folder, or another process trains
            this run.
        FileExistsError: a run of this name exists.
        ModuleNotFoundError: wandb is not installed, but is to be logged to.
    """

    _launcher = "python"
    _second_signal = signal.SIG_DFL  # what a second Ctrl-C does: end the process at once
    _stop_notice = "stopping after this iteration and a checkpoint; once more to quit at once"

    def __init__(self, args: Any, total_episodes: int, resume: Path | None = None, is_main: bool = True):
        if args.resume_anyway and not resume:
            raise ValueError("--resume-anyway is for a run that goes on: add --resume runs/NAME")
        if args.track:
            need("wandb")
        self.args, self._total_episodes, self.is_main = args, total_episodes, is_main
        self.folder = self._broadcast((resume or self._make_folder()) if is_main else None)
        self._lock = lock(self.folder) if is_main else None
        self.iteration = 0
        self.before: Evaluation | None = None
        self.history: list[dict[str, float]] = []
        self._wandb: Any = None
        self._wandb_id: str | None = None
        self._skipped_steps, self._bad_steps = 0, Counter[str]()
        self._training, self._signal = False, 0

    def _make_folder(self) -> Path:
        name = f"ppo_dialog__{self.args.seed}__{int(time.time())}" if self.args.run_name is None else self.args.run_name
        return make_folder(Path("runs"), name, json.dumps(asdict(replace(self.args, run_name=name)), indent=2) + "\n")

    def _broadcast(self, value: Any) -> Any:
        """The main process's value. A class for several processes overrides it."""
        return value

    def _average(self, metrics: dict[str, float]) -> dict[str, float]:
        """The means of the metrics over all processes. A class for several processes overrides it."""
        return metrics

    def _size(self, model: torch.nn.Module) -> int:
        """The number of parameters. A class for several processes, each with a part of the weights, overrides it."""
        return sum(parameter.numel() for parameter in model.parameters())

    def print_setup(
        self,
        policy: torch.nn.Module,
        samples: Samples,
        eval_samples: Samples,
        device: torch.device,
        amp_dtype: torch.dtype | None,
        **more: str,
    ) -> None:
        """Print what was loaded and the run's folder; with the embedded default, also how to get the full data.

        Args:
            policy: the model to train.
            samples, eval_samples: the samples for training and for the evaluation.
            device: where the training runs.
            amp_dtype: the type of mixed precision, or None without it.
            more: further lines by their labels; a label above is replaced.
        """
        size = self._size(policy)
        if not self.is_main:
            return
        args = self.args
        has_acts = args.intent_weight is not None
        intent = [f"{args.intent_weight} intent ({args.intent_model})"] if has_acts else []
        rewards = " + ".join([f"{args.meteor_weight} METEOR", *intent, *args.reward, *args.reward_model])
        lines = {
            "policy": f"{args.model}, {size:,} parameters, critic {args.critic}",
            "dialogues": f"{args.dataset}: {len(samples):,} replies to train on, {len(eval_samples):,} in "
            + f"{args.eval_split}, {SPACINGS[args.spacing]}",
            "rewards": f"{rewards} - KL ({args.kl_rule}, from {args.kl_coef})"
            + ("" if has_acts else "; no intent reward, because the dialogues have no acts"),
            "device": f"{device}, {_describe_amp(device, amp_dtype) if amp_dtype else 'float32'}",
            **more,
            "run": str(self.folder),
        }
        for name, line in lines.items():
            print(f"{name:<10}{line}")
        if "builtin" in (args.model, args.dataset):
            print(
                "builtin is the small default that comes with the package. A GPT-2 and the full dataset, both from the "
                "Hugging Face hub: --model rajkumarrrk/gpt2-fine-tuned-on-daily-dialog --dataset daily_dialog"
            )

    def restore(self, policy: torch.nn.Module, **parts: Stateful) -> None:
        """Name what a checkpoint holds; a resumed run loads its last checkpoint into these parts.

        Args:
            policy: the model that each checkpoint also holds as an agent folder.
            parts: everything else that the run depends on.
        """
        self._load(Checkpoints, policy, parts)

    def _load(self, kind: type[Checkpoints], policy: torch.nn.Module, parts: dict[str, Stateful], **more: Any) -> None:
        write_agent = partial(save_agent, policy, self.args.model, record=AgentRecord.of(self.args))
        made_from = fingerprint(self.args) if self.is_main else {}  # the main process compares and writes it
        folder, keep = self.folder / "checkpoints", self.args.keep_checkpoints
        checkpoints = self._checkpoints = kind(folder, write_agent, parts, made_from, keep, **more)
        self.iteration, progress = checkpoints.load(partial(self._compare, made_from))
        if progress:
            try:
                self.before = Evaluation.restore(progress["before"])
                self.history, self._bad_steps = progress["history"], Counter(progress["bad_steps"])
                self._wandb_id = progress["wandb_id"]
            except KeyError as error:
                raise ValueError(f"{checkpoints.last} is of another version: it lacks {error}") from error
            if self.is_main:
                print(f"resumed   {checkpoints.last}, after {self._episodes:,} replies")

    def _compare(self, now: dict[str, Any], before: dict[str, Any]) -> None:
        """Refuse to go on with other data or models than the checkpoint's; warn of other versions and threads."""
        severe, slight = changes(before, now)
        if severe and not self.args.resume_anyway:
            raise ValueError(
                f"{', '.join(severe)} changed since {self._checkpoints.last}, so the run would not go on as it began: "
                "restore what changed, or add --resume-anyway"
            )
        if severe or slight:
            print(f"warning: since {self._checkpoints.last} changed: {', '.join(severe + slight)}", file=sys.stderr)

    @property
    def _episodes(self) -> int:
        """The number of replies trained on so far."""
        return int(self.history[-1]["episodes"]) if self.history else 0

    def start(self, before: Evaluation | None) -> None:
        """Open the logs and the progress bar. From now on a signal to stop takes effect after an iteration."""
        self._set_allocator()
        if sys.excepthook is not sys.__excepthook__:  # without --traceback, see `parse_args`
            report_in_one_line(OSError)  # from here on a ValueError is not a mistake in the flags
        self.before = before
        self._training = self._episodes < self._total_episodes  # not if what is resumed was complete
        if not self.is_main:  # the terminal sends its signals to every process, but only the main one decides to stop
            self._handlers = {s: signal.signal(s, signal.SIG_IGN) for s in terminal_signals(sys.platform)}
            return
        # What a killed run logged after its last checkpoint is logged again
        write_text(self.folder / "metrics.jsonl", "".join(_line(row) for row in self.history))
        forget_after(self.folder / "rollouts.jsonl", self.iteration)
        self._writer = SummaryWriter(self.folder, purge_step=self._episodes + 1)
        self._writer.add_text("config", "\n".join(f"- {key}: {value}" for key, value in asdict(self.args).items()))
        if self.args.track:
            self._wandb = _start_wandb(self.args, self.folder, self._wandb_id)
            self._wandb_id = self._wandb.id
        # but for SIGHUP under nohup, which makes a process ignore it
        handled = [
            s for s in stop_signals(sys.platform) if not (_is_hangup(s) and signal.getsignal(s) == signal.SIG_IGN)
        ]
        self._handlers = {s: signal.signal(s, self._on_signal) for s in handled}
        self._bar = tqdm(
            total=self._total_episodes,
            initial=self._episodes,
            unit="reply",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10,  # in a log file every update of the bar is a line
        )
        if not self._training:
            self._bar.close()

    def _set_allocator(self) -> None:
        if self.args.low_memory:
            return_freed_memory()
        else:
            keep_freed_memory()

    def check_step(self, part: str, *numbers: torch.Tensor, loss_scale: float) -> bool:
        """Whether the optimizer may take a step: the loss and the gradient norms are all finite.

        Args:
            part: the name of what the optimizer trains, such as "the policy".
            numbers: the loss and the gradient norms, one number each.
            loss_scale: the scale of a `GradScaler`, or 1 without one. A gradient that overflows at a scale above 1 is
                no fault of the run: the scaler halves its scale. Such a step is skipped, but not counted as bad.

        Raises:
            SystemExit: this is the part's third bad step in a row; the message names the part and the last checkpoint.
        """
        if torch.stack([number.detach().float() for number in numbers]).isfinite().all():
            self._bad_steps[part] = 0
            return True
        self._skipped_steps += 1
        self._bad_steps[part] += loss_scale <= 1
        if self._bad_steps[part] < MAX_BAD_STEPS:
            return False
        if not self.is_main:
            raise SystemExit(1)  # the main process prints the message
        self._bar.close()
        last = self._checkpoints.last
        raise SystemExit(
            f"stopped: {part}'s loss or gradient was not finite {MAX_BAD_STEPS} times in a row. Start again with a "
            "lower learning rate or another --seed. "
            + (f"The last good checkpoint is {last}, its agent {last}/agent" if last else "No checkpoint was saved")
        )

    def log(self, metrics: dict[str, float], episodes: int) -> None:
        """Log the metrics of an iteration and advance the progress bar.

        Args:
            metrics: by name; must contain ``charts/episodic_return``, ``charts/FPS`` and ``metric/kl_per_token``.
            episodes: the number of replies trained on so far, by all processes together.
        """
        metrics = self._average({key: float(value) for key, value in metrics.items()})
        metrics["losses/skipped_steps"], self._skipped_steps = self._skipped_steps, 0
        row = {"episodes": episodes, **metrics}
        self.history.append(row)
        if not self.is_main:
            return
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(_line(row))
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, episodes)
        if self._wandb:
            self._wandb.log(row, step=episodes)  # wandb ignores steps that it already has from before a resume
        with self._printing():
            self._bar.set_postfix_str(
                f"reward {metrics['charts/episodic_return']:.3f}, KL/token {metrics['metric/kl_per_token']:.3f}, "
                f"{metrics['charts/FPS']:.0f} tokens/s"
            )
            self._bar.update(episodes - self._bar.n)

    def log_rollouts(self, iteration: int, agent: Any, batch: Any, tokenizer: ReplyTokenizer, autocast: Any) -> None:
        """Write the first groups of a batch to ``rollouts.jsonl``, after the update, up to `MAX_BYTES`.

        Args:
            iteration, batch, tokenizer: as for `dailydialog_gym.runs.rollouts.describe_rollouts`.
            agent, autocast: as for `dailydialog_gym.runs.rollouts.action_ratios`.
        """
        copies = self.args.replies_per_prompt
        groups = min(-(-self.args.log_rollouts // copies), len(batch.input_ids) // copies)
        path = self.folder / "rollouts.jsonl"
        if not groups or self._broadcast(self.is_main and path.exists() and path.stat().st_size > MAX_BYTES):
            return
        rows = np.arange(groups * copies)
        ratios = action_ratios(agent, batch, rows, copies, autocast)
        if self.is_main:
            lines = describe_rollouts(iteration, batch, rows, copies, ratios, tokenizer)
            with open(path, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def evaluate(self, policy: PreTrainedModel, samples: Samples, intent: IntentMatch | None) -> Evaluation | None:
        """Evaluate the policy on the samples by the flags of `RunArgs`; None if this isn't the main process."""
        if not self.is_main:
            return None
        args = self.args
        shape = (args.context_size, args.max_prompt_length, args.max_new_tokens)
        agent = DialogueAgent(policy, samples.tokenizer, *shape, args.spacing)
        ids = evenly_spread(samples, args.eval_samples)
        tqdm.write(
            f"evaluate  {len(ids):,} replies of {args.eval_split}, {'after' if self.history else 'before'} training"
        )
        return Evaluation(agent, samples, ids, intent, sample=True, top_k=args.eval_top_k, seed=args.seed)

    def print_samples(self, iteration: int, prompts: Sequence[str], responses: Sequence[str], rewards: Any) -> None:
        """Print two replies and their rewards above the progress bar, every ``sample_every`` iterations.

        Args:
            iteration: the number of the iteration.
            prompts, responses: the texts of the batch.
            rewards: ``(num_envs,)`` the returns of the replies, an array or a tensor.
        """
        if self.is_main and iteration % self.args.sample_every == 0:
            with self._printing():
                for prompt, response, reward in zip(prompts[:2], responses[:2], rewards[:2].tolist(), strict=True):
                    tqdm.write(f"  {split_prompt(prompt)[-1]}\n  > {response}   [{reward:+.3f}]")

    def checkpoint(self, iteration: int) -> None:
        """Save a checkpoint if one is due: every ``checkpoint_every`` iterations, at the end, and after a signal.

        Raises:
            SystemExit: a signal asked the run to stop, or the checkpoint can't be written.
        """
        self.iteration = iteration
        ended = self._episodes == self._total_episodes
        signum = self._broadcast(self._signal)
        if not (ended or signum or iteration % self.args.checkpoint_every == 0):
            return
        progress: dict[str, Any] = {}
        if self.is_main:
            self._writer.flush()  # after a kill, TensorBoard's file too has everything up to the checkpoint
            progress = {"before": vars(self.before), "history": self.history}
            progress |= {"bad_steps": dict(self._bad_steps), "wandb_id": self._wandb_id}
        self._checkpoints.save(iteration, progress)
        self._training = not (ended or signum)
        if self.is_main and not self._training:
            with self._printing():
                self._bar.close()
        if signum:
            self._stop(signum)

    def _on_signal(self, signum: int, _frame: Any) -> None:
        for each in self._handlers:  # when a terminal is closed, SIGHUP comes twice: from the shell and from the system
            signal.signal(each, signal.SIG_IGN if _is_hangup(each) else self._second_signal)
        self._signal = self._signal or signum
        if _is_hangup(signum):
            _silence()
        if not self._training:
            self._stop(signum)
        with self._printing():
            os.write(2, f"\n{self._stop_notice}\n".encode())  # print is not allowed to interrupt itself

    @contextmanager
    def _printing(self) -> Iterator[None]:
        """Print inside of it. Where nobody reads that any more, the run stops after this iteration and a checkpoint."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):  # of a terminal that was closed, of a pipe
                raise
            _silence()
            self._signal = self._signal or SIGPIPE

    def _stop(self, signum: int) -> None:
        if self.is_main:
            lines = [f"\nstopped after {self._episodes:,} of {self._total_episodes:,} replies; continue with"]
            launcher = [self._launcher] if sys.argv[0].endswith(".py") else []  # an installed command needs none
            lines += [f"    {shlex.join([*launcher, sys.argv[0], '--resume', str(self.folder)])}"]
            if self._checkpoints.last:
                lines += [f"the agent so far is {self._checkpoints.last}/agent"]
            with self._printing():
                print("\n".join(lines), file=sys.stderr)
        self._close()
        raise SystemExit(128 + signum)  # the exit code that a shell gives to a process ended by a signal

    def finish(self, after: Evaluation | None, samples: Samples, envs: Any) -> None:
        """Write the agent, the evaluation, the samples and the curves; print the score table and the files' paths.

        Args:
            after: the evaluation after training, from `evaluate`.
            samples: the evaluated samples.
            envs: the environments, whose rewards the evaluated replies get too.
        """
        if self.is_main:
            last = self._checkpoints.last
            assert last  # the main process has saved a checkpoint at the end
            write_folder(self.folder / "agent", lambda new: shutil.copytree(last / "agent", new, dirs_exist_ok=True))
        before, after = self._broadcast((self.before, after))
        evaluations, ids = {"before": before, "after": after}, evenly_spread(samples, self.args.eval_samples)
        rewards = rewards_of(envs, samples, ids, (before, after))
        if not self.is_main:
            self._close()
            return
        for evaluation, values in zip(evaluations.values(), rewards, strict=True):
            evaluation.by_reply["reward"], evaluation.scores["reward"] = values.tolist(), float(values.mean())
        rows, changes = {name: each.scores for name, each in evaluations.items()}, change_intervals(before, after)
        write_text(self.folder / "evaluation.json", json.dumps(rows, indent=2) + "\n")
        write_text(self.folder / "intervals.json", json.dumps(changes, indent=2) + "\n")
        beside = side_by_side(before, after)
        write_text(self.folder / "samples.json", json.dumps(beside, indent=2) + "\n")
        write_text(self.folder / "samples.md", markdown_samples(beside))
        curves = plot_curves({"": [self.history]}, curve_keys(self.history[0]), targets_of(vars(self.args)))
        curves.savefig(self.folder / "curves.png", dpi=120)
        if self._wandb:
            self._wandb.log({f"eval/{key}": value for key, value in after.scores.items()})
        self._close()
        print(f"\n{table(rows, changes)}\n\n{before.manner}\n")
        print(f"agent     {self.folder}/agent\nsamples   {self.folder}/samples.md\ncurves    {self.folder}/curves.png")
        print(f"logs      tensorboard --logdir {self.folder.parent}")

    def _close(self) -> None:
        if self.is_main:
            self._writer.close()
        if self._lock:
            self._lock.release()
        if self._wandb:
            self._wandb.finish()
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)


def stop_signals(platform: str) -> tuple[signal.Signals, ...]:
    """The signals that ask a run to stop. Windows has no SIGHUP, and ends a process at once instead of SIGTERM."""
    return terminal_signals(platform) if platform == "win32" else (*terminal_signals(platform), signal.SIGTERM)


def terminal_signals(platform: str) -> tuple[signal.Signals, ...]:
    """The signals that a terminal sends: for Ctrl-C, and when it is closed."""
    return (signal.SIGINT,) if platform == "win32" else (signal.SIGINT, signal.SIGHUP)


def _is_hangup(signum: int) -> bool:
    """Whether a signal says that the terminal was closed. Windows does not have the constant."""
    return signal.Signals(signum).name == "SIGHUP"


def _silence() -> None:
    """Throw away what is printed from now on, except to a file: its reader may have gone with the terminal."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _describe_amp(device: torch.device, dtype: torch.dtype) -> str:
    """A description of the mixed precision, with a warning if the processor only emulates bfloat16."""
    if device.type == "cpu" and not has_bfloat16():
        return f"{dtype} mixed precision (slower than float32 here: this processor has no bfloat16 instructions)"
    return f"{dtype} mixed precision"


def _line(row: dict[str, float]) -> str:
    """A line of metrics.jsonl. JSON has no NaN and no infinity, so such a number becomes null."""
    return json.dumps({key: value if math.isfinite(value) else None for key, value in row.items()}) + "\n"


def _start_wandb(args: Any, folder: Path, run_id: str | None) -> Any:
    import wandb

    # Without a login wandb would ask for one and wait. A run that is logged offline can be uploaded later.
    is_offline = not wandb.api.api_key and "WANDB_MODE" not in os.environ
    if is_offline:
        print("wandb: not logged in, so this run is logged offline; upload it later with `wandb sync`")
    return wandb.init(
        project=args.wandb_project_name,
        entity=args.wandb_entity,
        name=folder.name,
        config=asdict(args),
        mode="offline" if is_offline else None,
        dir=folder.parent.absolute(),
        id=run_id,
        resume="allow",
    )
