"""What the training recipes share: flags, tokenizers, minibatches, and a training that resumes after a kill."""

from __future__ import annotations

import gzip
import json
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.normalizers import Normalizer
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from dailydialog_gym.env.dialogues import Dialogue
from dailydialog_gym.runs.checkpoints import Stateful, write_file, write_text
from dailydialog_gym.text import space_punctuation

T = TypeVar("T")


@dataclass
class TrainingArgs:
    out: Path
    """folder for the trained model; it also holds the state from which a killed run resumes"""
    dataset: str = "daily_dialog"
    """the dialogues to train on, as in `gym.make("DailyDialog-v0", dataset=...)`"""
    epochs: int = 7
    """passes over the training dialogues; the learning rate reaches zero at the end of the last one"""
    patience: int = 2
    """stop after this many epochs without a better validation score"""
    learning_rate: float = 1e-3
    """highest learning rate, at the end of a linear warm-up"""
    warmup_steps: int = 300
    """optimizer steps of the warm-up"""
    weight_decay: float = 0.1
    """weight decay of AdamW, applied to matrices only"""
    batch_tokens: int = 2048
    """largest number of tokens in a minibatch, padding included"""
    amp: bool = False
    """train with bfloat16 autocast: twice as fast on a processor with bfloat16 instructions, much slower without"""
    seed: int = 1
    """random seed"""


def check_flags(args: TrainingArgs) -> None:
    """Write the flags to ``OUT/flags.json``, or raise a ValueError if `OUT` holds a run with other flags."""
    file = args.out / "flags.json"
    flags = {name: value for name, value in asdict(args).items() if name not in ("out", "test")}
    flags = json.loads(json.dumps(flags, default=str))  # tuples become lists, and paths become strings
    if any(path != file for path in args.out.glob("*")):
        if not file.exists():
            raise ValueError(f"{args.out} holds files, but no flags.json of a run: choose another --out")
        for name, before in json.loads(file.read_text(encoding="utf-8")).items():
            if flags.get(name) != before:
                raise ValueError(
                    f"--{name.replace('_', '-')} is {json.dumps(flags.get(name))}, but {json.dumps(before)} in the run "
                    f"that {args.out} holds: resume it with its own flags, or choose another --out"
                )
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(flags, indent=2) + "\n")


def read_unlabelled(path: Path) -> list[list[str]]:
    """The utterances of each dialogue in a file of ``{"dialog": [...]}``, in DailyDialog's spacing."""
    dialogues = []
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                dialogues.append([space_punctuation(utterance) for utterance in json.loads(line)["dialog"]])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f'{path}, line {number}: expected {{"dialog": [...]}}, got {line[:80]!r}') from error
    return dialogues


def train_bpe(
    dialogues: Sequence[Dialogue],
    vocab_size: int,
    special: list[str | AddedToken],
    normalizer: Normalizer | None = None,
) -> Tokenizer:
    """A byte-level BPE. Every text begins with a blank, so that a word has the same token in every position."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for dialogue in dialogues for text in dialogue.utterances), trainer)
    return tokenizer


def group_by_length(rows: Sequence[Sequence[int]], batch_tokens: int) -> list[list[int]]:
    """Minibatches of rows of similar length, as indices; each has at most ``batch_tokens`` tokens, padding included."""
    result, group = [], []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if group and len(rows[i]) * (len(group) + 1) > batch_tokens:
            result.append(group)
            group = []
        group.append(i)
    return [*result, group]


def pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """``(n, L)``: the rows, padded on the right with ``value``."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


class Training:
    """An optimizer, its learning rate schedule, and the state in `OUT` from which a killed run resumes.

    A resumed run repeats the epoch in which it was killed. On a processor it ends with the weights of an uninterrupted
    run, bit for bit.

    Args:
        args: the flags.
        model: what is trained.
        steps: the number of optimizer steps of each epoch, for the schedule.
        decay: the factor of the learning rate, by the share of the steps that are done, from 0 to 1.
        parts: what else belongs to the state, by name.

    Attributes:
        epoch: how many epochs are done.
        best: the highest validation score, reached in ``best_epoch``, counted from 1.
        losses: the mean losses of the last epoch, by name.
    """

    def __init__(
        self, args: TrainingArgs, model: nn.Module, steps: list[int], decay: Callable[[float], float], **parts: Stateful
    ):
        def schedule(step: int) -> float:
            return decay(min(1.0, step / sum(steps))) * min(1.0, (step + 1) / args.warmup_steps)

        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98), fused=True)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
        self.args, self.model, self.num_epochs = args, model, len(steps)
        self.parts = {"model": model, "optimizer": self.optimizer, "scheduler": self.scheduler, **parts}
        self.rows: list[dict[str, float]] = []
        self.epoch, self.best_epoch, self.best = 0, 0, -math.inf
        self.file = args.out / "training_state.pt"
        if self.file.exists():
            state = torch.load(self.file, weights_only=True, map_location="cpu")
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            self.rows, self.best_epoch, self.best = state["rows"], state["best_epoch"], state["best"]
            self.epoch = len(self.rows)
            self._write_metrics()
            print(f"resumed after epoch {self.epoch} from {self.file}")

    def seed_epoch(self) -> random.Random:
        """Seed torch for the next epoch, and return a generator for its order of minibatches."""
        torch.manual_seed(self.args.seed * 1000 + self.epoch)
        return random.Random(f"{self.args.seed} {self.epoch}")

    def minibatches(self, data: Sequence[T]) -> Iterator[T]:
        """The minibatches of an epoch, under a progress bar that also shows the mean losses."""
        start, self._sums = time.perf_counter(), defaultdict(float)
        mininterval = 0.1 if sys.stderr.isatty() else 10  # a log file keeps every state of the bar
        with tqdm(data, f"epoch {self.epoch + 1}/{self.num_epochs}", unit="step", mininterval=mininterval) as bar:
            for i, batch in enumerate(bar, 1):
                yield batch
                self.losses = {name: total / i for name, total in self._sums.items()}
                bar.set_postfix(self.losses, refresh=False)
        self.seconds = time.perf_counter() - start

    def step(self, loss: torch.Tensor, /, **losses: torch.Tensor) -> None:
        """Update the parameters with the gradient of ``loss``, clipped to norm 1; ``losses`` are displayed."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        for name, value in losses.items():
            self._sums[name] += value.item()

    def end_epoch(self, metrics: dict[str, float], score: float, save_best: Callable[[], Any]) -> None:
        """Save the model if its validation ``score`` is the highest so far, then the state and the metrics."""
        self.epoch += 1
        self.rows.append({"epoch": self.epoch, **metrics, "seconds": self.seconds})
        print("  ".join(f"{name} {value:.4g}" for name, value in self.rows[-1].items()), flush=True)
        if score > self.best:
            self.best_epoch, self.best = self.epoch, score
            save_best()
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"rows": self.rows, "best_epoch": self.best_epoch, "best": self.best}
        write_file(self.file, lambda file: torch.save(state, file))
        self._write_metrics()

    def _write_metrics(self) -> None:
        write_text(self.args.out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))
