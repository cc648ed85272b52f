"""A scorer that is a learned reward model: a Hugging Face sequence classifier of a context and a reply."""

from __future__ import annotations

from dailydialog_gym.extras import need

need("torch", "transformers")

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dailydialog_gym.env.tokenizer import as_messages, split_prompt
from dailydialog_gym.models.loading import load_classifier
from dailydialog_gym.rewards.episodes import Episodes, Scores
from dailydialog_gym.text import Spacing, convert_spacing, pattern_of, spell_out

OTHER_REWARDS = ("meteor", "intent", "kl")  # of the scripts


class RunningMoments:
    """The mean and the standard deviation of all numbers so far, by the update of Chan, Golub and LeVeque (1983).

    Attributes:
        mean: the mean.
        std: the population's standard deviation.
    """

    def __init__(self) -> None:
        self._count, self.mean, self._squares = 0.0, 0.0, 0.0  # the last is the sum of squared deviations from the mean

    @property
    def std(self) -> float:
        return (self._squares / self._count) ** 0.5 if self._count else 0.0

    def update(self, count: float, total: float, total_of_squares: float) -> None:
        """Take a batch of numbers into account: how many they are, their sum and the sum of their squares."""
        mean, both = total / count, self._count + count
        delta = mean - self.mean
        self._squares += max(total_of_squares - count * mean**2, 0.0) + delta**2 * self._count * count / both
        self.mean += delta * count / both
        self._count = both

    def state_dict(self) -> dict[str, float]:
        return {"count": self._count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._count, self.mean, self._squares = (state_dict[key] for key in ("count", "mean", "squares"))


class DialogueFormat:
    """How a classifier reads a context and a reply.

    With a chat template: as its messages, the reply the assistant's and the utterance before it the user's, in ordinary
    text. Otherwise as one text, the utterances joined by a separator. If the classifier's ``config.json`` has an entry
    ``"separator"``, as those of the recipes have, the text has DailyDialog's spacing; if it has none, the separator is
    the tokenizer's separator or end token, and the text is ordinary text. A text that is too long loses its
    beginning. The names of special tokens inside an utterance are spelt out, so that no reply can forge a turn.

    Attributes:
        spacing: of the texts that it reads.

    Args:
        tokenizer: the classifier's, whose ``model_max_length`` is the longest input.
        config: the classifier's configuration.
        name: the classifier's name in error messages.

    Raises:
        ValueError: there is no padding token, or the configuration has another one. A causal classifier would then
            score the wrong token of a padded row (https://github.com/huggingface/trl/issues/627).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: Any, name: str):
        if tokenizer.pad_token_id is None or config.pad_token_id != tokenizer.pad_token_id:
            raise ValueError(
                f"{name!r} has the padding token {tokenizer.pad_token!r} ({tokenizer.pad_token_id}) in its tokenizer "
                f"and {config.pad_token_id} in its configuration: set tokenizer.pad_token, for example to "
                "tokenizer.eos_token, and model.config.pad_token_id to its id, and save both"
            )
        self.tokenizer, self.name = tokenizer, name
        separator = config.to_dict().get("separator")
        self.spacing: Spacing = "spaced" if separator and not tokenizer.chat_template else "ordinary"
        self._special = pattern_of(tokenizer.all_special_tokens)
        self._separator = separator or tokenizer.sep_token or tokenizer.eos_token or "\n"

    def encode(self, contexts: Sequence[Sequence[str]], replies: Sequence[str]) -> list[list[int]]:
        """The token ids of each reply in its context.

        Args:
            contexts: ``n`` lists of utterances in `spacing`, the oldest first.
            replies: ``n`` texts in the same spacing.

        Raises:
            ValueError: a reply is longer than the classifier's input.
        """
        rows = self._tokenize([self._write(*pair) for pair in zip(contexts, replies, strict=True)], truncation=True)
        longest = max(map(len, rows), default=0)
        cut = [reply for row, reply in zip(rows, replies, strict=True) if len(row) == longest]
        if longest == self.tokenizer.model_max_length:  # these rows may have been cut
            for reply, ids in zip(cut, self._tokenize([self._write([""], reply) for reply in cut]), strict=True):
                if len(ids) > longest:
                    raise ValueError(
                        f"{self.name!r} reads {longest} tokens, but the reply {reply!r} has {len(ids)} with the tokens "
                        "around it: use a model that reads more, or a smaller --max-new-tokens"
                    )
        return rows

    def _write(self, context: Sequence[str], reply: str) -> str:
        *context, reply = (spell_out(text, self._special) for text in (*context, reply))
        if not self.tokenizer.chat_template:
            return self._separator.join([*context, reply])
        messages = [*as_messages(context), {"role": "assistant", "content": reply}]
        return self.tokenizer.apply_chat_template(messages, tokenize=False)

    def _tokenize(self, texts: list[str], **options: Any) -> list[list[int]]:
        # A template writes the special tokens itself. verbose=False: no warning where a text is too long
        special = not self.tokenizer.chat_template
        return self.tokenizer(texts, add_special_tokens=special, verbose=False, **options)["input_ids"]


class RewardModel:
    """Scorer: an output of a sequence classifier for each reply in its context, ``(n,)``.

    The classifier has its own tokenizer, see `DialogueFormat`. The rewards contain the scores minus the running mean,
    divided by the running standard deviation, of all episodes so far, these included: learned rewards have arbitrary
    scales and offsets. ``reward/<name>`` is the raw score. `state_dict` holds the running moments.

    Args:
        model: a Hugging Face sequence classifier by folder or hub id. `dailydialog_gym.recipes.reward` trains some.
        label: the name of the output, for a classifier of several.
        device: the device of the classifier.
        standardize: the rewards contain the standardized scores. False: the raw scores.
        amp_dtype: the dtype for autocast, or None for full precision.
        spacing: of the texts that are scored. They are converted to the spacing that the classifier reads.
        batch_size: the number of texts in a forward pass.

    Attributes:
        all_reduce_sum: the sum of a tensor over all processes of a job. Assign one, and they share the moments.

    Raises:
        ValueError: the classifier cannot be loaded, has no head, or several outputs of which ``label`` names none; or
            its padding token is unusable. A call raises it where a reply does not fit into the classifier's input.
    """

    def __init__(
        self,
        model: str,
        label: str | None = None,
        device: torch.device | str = "cpu",
        standardize: bool = True,
        amp_dtype: torch.dtype | None = None,
        spacing: Spacing = "spaced",
        batch_size: int = 64,
    ):
        self.classifier, tokenizer = load_classifier(model, "reward model")
        self.output = _output_of(self.classifier, label, model)
        self.format = DialogueFormat(tokenizer, self.classifier.config, model)
        self.classifier.to(device).eval()
        self.device, self.standardize, self.amp_dtype = torch.device(device), standardize, amp_dtype
        self.spacing, self.batch_size, self.moments = spacing, batch_size, RunningMoments()
        self.all_reduce_sum: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor

    def __call__(self, episodes: Episodes) -> Scores:
        raw = self.scores([split_prompt(prompt) for prompt in episodes.prompts], episodes.responses)
        if not self.standardize:
            return Scores(raw, raw)
        sums = torch.tensor([len(raw), raw.sum(), (raw**2).sum()], dtype=torch.double, device=self.device)
        self.moments.update(*self.all_reduce_sum(sums).tolist())
        return Scores(raw, (raw - self.moments.mean) / (self.moments.std + 1e-8))

    def scores(self, contexts: Sequence[Sequence[str]], replies: Sequence[str]) -> np.ndarray:
        """``(n,)``: the raw score of each reply in its context, a list of utterances, the oldest first."""
        contexts = [[self._convert(text) for text in context] for context in contexts]
        rows = self.format.encode(contexts, [self._convert(reply) for reply in replies])
        pad_id = self.format.tokenizer.pad_token_id
        logits = classifier_logits(self.classifier, rows, pad_id, self.batch_size, self.amp_dtype)
        return logits[:, self.output].double().cpu().numpy()

    def _convert(self, text: str) -> str:
        return convert_spacing(text, self.spacing, self.format.spacing)

    def state_dict(self) -> dict[str, float]:
        return self.moments.state_dict()

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.moments.load_state_dict(state_dict)


@torch.no_grad()
def classifier_logits(
    classifier: PreTrainedModel,
    rows: Sequence[list[int]],
    pad_id: int | None,
    batch_size: int,
    amp_dtype: torch.dtype | None,
) -> torch.Tensor:
    """``(n, labels)`` float32 on the classifier's device: its outputs for rows of token ids.

    Rows of similar length share a forward pass, so they need little padding. The number of forward passes depends on n
    alone, because with ZeRO stage 3 all ranks have to take part in each.

    Args:
        classifier: a sequence classifier.
        rows: ``n`` lists of token ids.
        pad_id: the padding token, or None if the tokenizer has none.
        batch_size: the number of rows in a forward pass.
        amp_dtype: the dtype for autocast, or None for full precision.
    """
    device = classifier.device
    order = np.argsort([len(row) for row in rows], kind="stable")
    logits = torch.empty(len(rows), classifier.config.num_labels, device=device)
    for batch in (order[start : start + batch_size] for start in range(0, len(order), batch_size)):
        with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
            found = classifier(**pad([rows[i] for i in batch], pad_id, device)).logits
        logits[torch.from_numpy(batch).to(device)] = found.float()
    return logits


def pad(rows: Sequence[list[int]], pad_id: int | None, device: torch.device) -> dict[str, torch.Tensor]:
    """A classifier's inputs, ``(n, L)`` each, padded on the right: left padding would shift a causal model's positions.

    The attention mask comes from the lengths, because the padding token may also occur inside a text. Without a padding
    token, the padding is 0.
    """
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad_id or 0)
    mask = torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}


def _output_of(classifier: PreTrainedModel, label: str | None, name: str) -> int:
    """The index of the output that is the score."""
    labels = [classifier.config.id2label[i] for i in range(classifier.config.num_labels)]
    if label is None and len(labels) > 1:
        raise ValueError(
            f"reward model {name!r} has {len(labels)} outputs: choose one, {name}:LABEL, of the labels "
            f"{', '.join(labels)}"
        )
    if label is not None and labels.count(label) != 1:
        raise ValueError(f"reward model {name!r} has no label {label!r}: its labels are {', '.join(labels)}")
    return labels.index(label) if label else 0


def parse_reward_model(text: str) -> tuple[str, str | None, float]:
    """The model, the label and the weight of ``FOLDER_OR_ID[:label][=WEIGHT]``; without a weight it is 1.

    Raises:
        ValueError: the text does not have this form.

    >>> parse_reward_model("models/judge:good=0.5")
    ('models/judge', 'good', 0.5)
    """
    if Path(text).is_dir():  # whose name may have these characters
        return text, None, 1.0
    target, equals, number = text.rpartition("=")
    try:
        weight = float(number) if equals else 1.0
    except ValueError:
        raise ValueError(
            f"--reward-model {text!r} does not have the form FOLDER_OR_ID[:label][=WEIGHT], such as reward=0.5"
        ) from None
    if not math.isfinite(weight):
        raise ValueError(f"--reward-model {text!r} does not have a finite weight")
    model, label = target if equals else text, None
    if ":" in model and not Path(model).is_dir():
        model, _, label = model.rpartition(":")
    return model, label, weight


def load_reward_models(flags: Sequence[str], *options: Any) -> list[tuple[RewardModel, float, str]]:
    """Load the reward models of command-line flags.

    Args:
        flags: texts for `parse_reward_model`.
        options: further arguments of `RewardModel`: ``device``, ``standardize``, ``amp_dtype``, ``spacing``.

    Returns:
        For each text the scorer, its weight and its name: the last part of the folder or id, and ``-label``.

    Raises:
        ValueError: `parse_reward_model` or `RewardModel` raises it, or two models have the same name.
    """
    models: list[tuple[RewardModel, float, str]] = []
    for text in flags:
        model, label, weight = parse_reward_model(text)
        name = "-".join(filter(None, (os.path.basename(os.path.realpath(model)), label)))
        if name in (*OTHER_REWARDS, *(other for _, _, other in models)):
            raise ValueError(f"--reward-model {text!r}: another reward is named {name!r}, so rename the folder")
        models.append((RewardModel(model, label, *options), weight, name))
    return models
