"""What the training recipes share: flags, tokenizers, minibatches, and a training that resumes after a kill."""

from __future__ import annotations

import gzip
import json
import math
import random
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.normalizers import Normalizer
from torch import nn
from tqdm import tqdm

from dailydialog_gym.env.columns import check_text
from dailydialog_gym.env.dialogues import TEST_SHARE, Dialogue
from dailydialog_gym.files import check_file, decode_lines, read_text, write_file, write_text
from dailydialog_gym.models.linear import use_onednn
from dailydialog_gym.ranges import Count, NotNegative, Seed
from dailydialog_gym.runs.checkpoints import Stateful
from dailydialog_gym.runs.fingerprint import digest
from dailydialog_gym.text import Spacing, convert_spacing

T = TypeVar("T")


@dataclass
class TrainingArgs:
    out: Path
    """folder for the trained model; it also holds the state from which a killed run resumes"""
    epochs: Count = 7
    """passes over the training data; the learning rate reaches zero at the end of the last one"""
    patience: Count = 2
    """stop after this many epochs without a better validation score"""
    learning_rate: NotNegative = 1e-3
    """highest learning rate, at the end of a linear warm-up"""
    warmup_steps: Count = 300
    """optimizer steps of the warm-up"""
    weight_decay: NotNegative = 0.1
    """weight decay of AdamW, applied to matrices only"""
    batch_tokens: Count = 2048
    """largest number of tokens in a minibatch, padding included"""
    amp: bool = False
    """train with bfloat16 autocast: twice as fast on a processor with bfloat16 instructions, much slower without"""
    checkpoint_minutes: NotNegative = 10.0
    """save the state, from which a killed run resumes, after so many minutes, and at the end of each epoch"""
    seed: Seed = 1
    """random seed"""


@dataclass
class DialogueTrainingArgs(TrainingArgs):
    dataset: str = "daily_dialog"
    """the dialogues to train on, as in `gym.make("DailyDialog-v0", dataset=...)`"""
    test_share: float = TEST_SHARE
    """where the dataset has no validation or no test split: the share of its dialogues that is held out for it"""


def heads_of(width: int) -> int:
    """The number of attention heads of 64 dimensions. Raises ValueError if ``width`` is no multiple of that."""
    if width % 64:
        raise ValueError(f"--width {width}: expected a multiple of 64, the dimensions of an attention head")
    return width // 64


def check_flags(args: Any) -> None:
    """Write the flags, a dataclass, to ``OUT/flags.json``.

    Raises:
        ValueError: `OUT` holds a run with other flags, or files of something else.
    """
    file = args.out / "flags.json"
    flags = {name: value for name, value in asdict(args).items() if name not in ("out", "test", "checkpoint_minutes")}
    flags = json.loads(json.dumps(flags, default=str))  # tuples become lists, and paths become strings
    if _has_begun(args.out):
        if not file.exists():
            raise ValueError(f"{args.out} holds files, but no flags.json of a run: choose another --out")
        try:
            found = dict(json.loads(read_text(file)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"cannot read {file}: expected the flags of a run as JSON ({error})") from error
        for name, before in found.items():
            if flags.get(name) != before:
                raise ValueError(
                    f"--{name.replace('_', '-')} is {json.dumps(flags.get(name))}, but {json.dumps(before)} in the run "
                    f"that {args.out} holds: resume it with its own flags, or choose another --out"
                )
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(flags, indent=2) + "\n")


def _has_begun(out: Path) -> bool:
    """Whether a folder holds more than the flags and inputs of a run, which may be of one that an error ended."""
    names = {path.name.removeprefix(".").removesuffix(".new") for path in out.glob("*")}  # .NAME.new is half written
    return not names <= {"flags.json", "inputs.json"}


def check_inputs(out: Path, **inputs: Any) -> None:
    """Write the SHA-256 of what a run reads to ``OUT/inputs.json``, or compare it if that is there already.

    Args:
        out: the folder of the run.
        inputs: by the name of the flag: rows, or the `model_files` of a model; None where the flag is not used.

    Raises:
        ValueError: `out` holds a run that began with other inputs; the message says which.
    """
    file = out / "inputs.json"
    found = {name: digest(value) for name, value in inputs.items()}
    try:
        before = dict(json.loads(read_text(file))) if file.exists() and _has_begun(out) else found
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot read {file}: expected the hashes of a run's inputs as JSON ({error})") from error
    if changed := [f"--{name}" for name, value in found.items() if before.get(name, value) != value]:
        raise ValueError(
            f"what {' and '.join(changed)} names is no longer what it was when the run in {out} began: choose another "
            "--out"
        )
    write_text(file, json.dumps(found, indent=2) + "\n")


def read_unlabelled(path: Path, spacing: Spacing) -> list[list[str]]:
    """The utterances of each dialogue in a file of ``{"dialog": [...]}`` in ordinary spacing, converted to ``spacing``.

    Dialogues without utterances are left out, and their number is printed to stderr.
    """

    def parse(row: Any) -> list[str]:
        return [convert_spacing(check_text(str(path), text), "ordinary", spacing) for text in row["dialog"]]

    rows = read_rows(path, parse, '{"dialog": [...]}')
    found = [utterances for utterances in rows if utterances]
    if empty := len(rows) - len(found):
        print(f"{path}: {empty} of {len(rows)} dialogues left out because they have no utterances", file=sys.stderr)
    return found


def read_rows(path: Path, parse: Callable[[Any], T], expected: str) -> list[T]:
    """What ``parse`` makes of each line of a .jsonl or .jsonl.gz file.

    Raises:
        ValueError: it is no such file; a line is not JSON, or ``parse`` raises an error for it; the message has its
            number, and what was expected.
    """
    check_file(path)
    rows = []
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(decode_lines(path, file), 1):
                if not line.strip():
                    continue
                try:
                    rows.append(parse(json.loads(line)))
                except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number}: expected {expected}, got {line[:80]!r}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error})") from error
    return rows


def train_bpe(
    dialogues: Sequence[Dialogue],
    vocab_size: int,
    special: Sequence[str | AddedToken],
    normalizer: Normalizer | None = None,
) -> Tokenizer:
    """A byte-level BPE. Every text begins with a blank, so that a word has the same token in every position."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for dialogue in dialogues for text in dialogue.utterances), trainer)
    return tokenizer


def group_by_length(rows: Sequence[Sequence[int]], batch_tokens: int) -> list[list[int]]:
    """Minibatches of rows of similar length, as indices; each has at most ``batch_tokens`` tokens, padding included."""
    result, group = list[list[int]](), list[int]()
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if group and len(rows[i]) * (len(group) + 1) > batch_tokens:
            result.append(group)
            group = []
        group.append(i)
    return [*result, group]


def calibration_error(confidence: torch.Tensor, hit: torch.Tensor, bins: int, lowest: float = 0.0) -> float:
    """The expected calibration error (Guo et al. 2017, arXiv:1706.04599).

    Args:
        confidence: ``(n,)``, the probability of each prediction, at least ``lowest``.
        hit: ``(n,)`` float64, 1 for right predictions and 0 for wrong ones.
        bins: the number of bins of equal width from ``lowest`` to 1.
    """
    index = ((confidence - lowest) / (1 - lowest) * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.double).index_add_(0, index, hit - confidence.double())
    return gaps.abs().sum().item() / len(hit)


class Training:
    """An optimizer, its learning rate schedule, and the state in `OUT` from which a killed run resumes.

    A resumed run goes on after the last optimizer step whose state was saved. On a CPU it ends with the weights
    of an uninterrupted run, bit for bit.

    Args:
        args: the flags.
        model: what is trained.
        steps: the number of optimizer steps of each epoch, for the schedule.
        decay: the factor of the learning rate, by the share of the steps that are done, from 0 to 1.
        parts: what else belongs to the state, by name.

    Attributes:
        epoch: how many epochs are done.
        best: the highest validation score, reached in ``best_epoch``, counted from 1.
    """

    def __init__(
        self, args: TrainingArgs, model: nn.Module, steps: list[int], decay: Callable[[float], float], **parts: Stateful
    ):
        def schedule(step: int) -> float:
            return decay(min(1.0, step / sum(steps))) * min(1.0, (step + 1) / args.warmup_steps)

        use_onednn(model)  # a new model's layers, or adapters
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.dim() > 1]
        vectors = [p for p in trained if p.dim() <= 1]  # and scalars
        groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98), fused=True)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
        self.args, self.model, self.num_epochs = args, model, len(steps)
        self.parts = {"model": model, "optimizer": self.optimizer, "scheduler": self.scheduler, **parts}
        self.rows: list[dict[str, float]] = []
        self.epoch, self.best_epoch, self.best = 0, 0, -math.inf
        self._begin_epoch()
        self.file = args.out / "training_state.pt"
        self._saved_at = time.perf_counter()
        if self.file.exists():
            try:
                state = torch.load(self.file, weights_only=True, map_location="cpu")
                for name, part in self.parts.items():
                    part.load_state_dict(state[name])
            except Exception as error:  # of a damaged file, torch, zipfile and pickle raise many
                raise ValueError(f"cannot resume from {self.file}: remove it to begin anew ({error})") from error
            self.rows, self.best_epoch, self.best = state["rows"], state["best_epoch"], state["best"]
            self.epoch = len(self.rows)
            self._done, self._seconds, self._random = state["done"], state["seconds"], state["random"]
            self._sums.update(state["sums"])
            self._write_metrics()
            self._check_improved()
            print(f"resumed after epoch {self.epoch} and {self._done} steps from {self.file}", flush=True)

    def _begin_epoch(self) -> None:
        self._done, self._seconds, self._sums = 0, 0.0, defaultdict[str, float](float)

    def seed_epoch(self) -> random.Random:
        """Seed torch for the next epoch, and return a generator for its order of minibatches."""
        torch.manual_seed(self.args.seed * 1000 + self.epoch)
        return random.Random(f"{self.args.seed} {self.epoch}")

    def minibatches(self, data: Sequence[T], tokens: Sequence[int]) -> Iterator[T]:
        """The minibatches of an epoch, without those that were done before a kill, one for each optimizer step.

        A progress bar shows the mean losses, the tokens per second and the time left of the epoch.

        Args:
            data: all minibatches of the epoch, in an order that depends on `seed_epoch` alone.
            tokens: the number of tokens in each of them.
        """
        if self._done:
            torch.set_rng_state(self._random)
        start = time.perf_counter() - self._seconds
        with tqdm(
            desc=f"epoch {self.epoch + 1}/{self.num_epochs}",
            total=sum(tokens),
            initial=sum(tokens[: self._done]),
            unit=" tokens",
            unit_scale=True,
            mininterval=0.1 if sys.stderr.isatty() else 10,  # a log file keeps every state of the bar
        ) as bar:
            for batch, size in zip(data[self._done :], tokens[self._done :], strict=True):
                yield batch
                self._done += 1
                self._seconds = time.perf_counter() - start
                bar.set_postfix(self.losses, refresh=False)
                bar.update(size)
                if time.perf_counter() - self._saved_at >= 60 * self.args.checkpoint_minutes:
                    self._save()

    @property
    def losses(self) -> dict[str, float]:
        """The mean losses of the epoch, by name."""
        return {name: total / self._done for name, total in self._sums.items()}

    def step(self, loss: torch.Tensor, /, **losses: torch.Tensor) -> None:
        """Update the parameters with the gradient of ``loss``; ``losses`` are displayed."""
        loss.backward()
        self.update(**losses)

    def update(self, **losses: torch.Tensor) -> None:
        """Update the parameters with the gradient that they have, clipped to norm 1; ``losses`` are displayed."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        for name, value in losses.items():
            self._sums[name] += value.item()

    def end_epoch(self, metrics: dict[str, float], score: float, save_best: Callable[[], Any]) -> None:
        """Save the model if its validation ``score`` is the highest so far, then the state and the metrics."""
        self.epoch += 1
        self.rows.append({"epoch": self.epoch, **metrics, "seconds": self._seconds})
        print("  ".join(f"{name} {value:.4g}" for name, value in self.rows[-1].items()), flush=True)
        if score > self.best:
            self.best_epoch, self.best = self.epoch, score
            save_best()
        self._begin_epoch()
        self._save()
        self._write_metrics()
        self._check_improved()

    def _check_improved(self) -> None:
        if self.epoch and self.best_epoch == 0:
            raise ValueError(
                f"no validation score of {self.epoch} epoch(s) was a number, so no model was saved: begin anew with a "
                f"lower --learning-rate than {self.args.learning_rate:g}, in another --out"
            )

    def _save(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"rows": self.rows, "best_epoch": self.best_epoch, "best": self.best}
        state |= {"done": self._done, "seconds": self._seconds, "sums": dict(self._sums)}
        state |= {"random": torch.get_rng_state()}
        write_file(self.file, lambda file: torch.save(state, file))
        self._saved_at = time.perf_counter()

    def _write_metrics(self) -> None:
        write_text(self.args.out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))
