"""A scorer that checks with a sequence classifier whether a reply has the required dialogue act."""

from __future__ import annotations

from dailydialog_gym.extras import need

need("torch", "transformers")

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from dailydialog_gym.embedded import asset
from dailydialog_gym.env.dialogues import ACTS
from dailydialog_gym.env.tokenizer import split_prompt
from dailydialog_gym.models.loading import load_classifier
from dailydialog_gym.rewards.episodes import Episodes
from dailydialog_gym.rewards.model import classifier_logits
from dailydialog_gym.text import Spacing, convert_spacing, pattern_of, spell_out


def _act_of_label(labels: Sequence[str], name: str) -> np.ndarray:
    """The act, 1 to 4, of each label of a classifier. Labels without names ("label_0") are the acts in order."""
    if labels == [f"label_{i}" for i in range(len(ACTS))]:
        return np.array(list(ACTS))
    if sorted(labels) != sorted(ACTS.values()):
        raise ValueError(
            f"classifier {name!r} has the labels {labels}: expected {list(ACTS.values())} in any order, or four labels "
            "without names (config.id2label). If the names in its configuration are wrong, give the right ones with "
            "labels= or --intent-labels"
        )
    numbers = {label: number for number, label in ACTS.items()}
    return np.array([numbers[label] for label in labels])


class IntentMatch:
    """Scorer: 1.0 if the classifier predicts the required act for the reply, else 0.0, ``(n,)``.

    The input of the classifier is the last utterance of the context, a separator and the reply. The separator is the
    entry ``"separator"`` of the classifier's ``config.json``, and a space if there is none, which the classifiers of
    OpenRL and RL4LMs expect.

    Args:
        model: ``"builtin"``, or a Hugging Face sequence classifier with four labels, by folder or hub id.
        device: the device of the classifier.
        labels: the acts of the four labels in order, if the names in the classifier's configuration are wrong. This is
            the case for ``"rajkumarrrk/roberta-daily-dialog-intent-classifier"``, whose labels are names of emotions.
        probability: return the predicted probability of the required act instead of 1.0 or 0.0.
        amp_dtype: the dtype for autocast, or None for full precision.
        spacing: of the texts that are judged. For the embedded classifier, which knows DailyDialog's spacing, ordinary
            text is converted; for any other, texts stay as they are.
        batch_size: the number of texts in a forward pass.

    Raises:
        ValueError: the classifier cannot be loaded, or its labels are not the four acts.

    >>> match = IntentMatch("builtin")
    >>> match.match(["What time is it ? <EOU>"], ["It is five o'clock ."], [1])
    array([1.])
    """

    def __init__(
        self,
        model: str = "builtin",
        device: torch.device | str = "cpu",
        labels: Sequence[str] | None = None,
        probability: bool = False,
        amp_dtype: torch.dtype | None = None,
        spacing: Spacing = "spaced",
        batch_size: int = 64,
    ):
        if model == "builtin":
            with asset("intent") as folder:
                self.classifier, self.tokenizer = load_classifier(str(folder))
        else:
            self.classifier, self.tokenizer = load_classifier(model)
        self.classifier.to(device).eval()
        self._special = pattern_of(self.tokenizer.all_special_tokens)
        self._spacing: tuple[Spacing, Spacing] = (spacing, "spaced" if model == "builtin" else spacing)
        id2label = self.classifier.config.id2label
        if labels is not None and len(labels) != len(id2label):
            raise ValueError(f"classifier {model!r} has {len(id2label)} outputs, but labels are {list(labels)}")
        self.separator = self.classifier.config.to_dict().get("separator", " ")
        self.acts = _act_of_label([label.lower() for label in labels or [id2label[i] for i in sorted(id2label)]], model)
        self.probability = probability
        self.amp_dtype = amp_dtype
        self.batch_size = batch_size

    def __call__(self, episodes: Episodes) -> np.ndarray:
        if not self.probability:
            return self.match(episodes.prompts, episodes.responses, episodes.intents)
        probabilities = self.probabilities(episodes.prompts, episodes.responses)
        # 0 where the reference reply has no act
        return probabilities[np.arange(len(episodes)), episodes.intents - 1] * (episodes.intents > 0)

    def match(self, prompts: Sequence[str], responses: Sequence[str], intents: ArrayLike) -> np.ndarray:
        """``(n,)``: 1.0 if the most probable act of a response to a prompt is the required one, else 0.0."""
        found = self.probabilities(prompts, responses).argmax(1) + 1
        return (found == np.asarray(intents)).astype(np.float64)

    def probabilities(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """``(n, 4)``: the probabilities of inform, question, directive and commissive for each response to a prompt."""
        pairs = zip((split_prompt(prompt)[-1] for prompt in prompts), responses, strict=True)
        return self.classify([f"{self._clean(last)}{self.separator}{self._clean(reply)}" for last, reply in pairs])

    def _clean(self, text: str) -> str:
        return spell_out(convert_spacing(text, *self._spacing), self._special)

    def classify(self, texts: Sequence[str]) -> np.ndarray:
        """``(n, 4)``: the same probabilities for texts in the classifier's input format."""
        rows = self.tokenizer(list(texts), truncation=True)["input_ids"] if texts else []
        logits = classifier_logits(self.classifier, rows, self.tokenizer.pad_token_id, self.batch_size, self.amp_dtype)
        result = np.empty(logits.shape)
        result[:, self.acts - 1] = logits.softmax(-1).cpu().numpy()
        return result
