"""Does a reply do what was asked of it: inform, ask, direct or commit? A sequence classifier's opinion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dailydialog_gym.embedded import asset
from dailydialog_gym.env.dialogues import ACTS
from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.models.loading import load_classifier
from dailydialog_gym.rewards.episodes import Episodes


def _act_of_label(labels: Sequence[str], name: str) -> np.ndarray:
    """The act, 1 to 4, of each label of a classifier: by name, or by order where the labels have no names."""
    if labels == [f"label_{i}" for i in range(len(ACTS))]:
        return np.array(list(ACTS))
    if sorted(labels) != sorted(ACTS.values()):
        raise ValueError(
            f"classifier {name!r} has the labels {labels}: expected {list(ACTS.values())}, in any order, or four "
            "without names, in that order (config.id2label); if its configuration names them wrongly, say what they "
            "are, with labels= or --intent-labels"
        )
    numbers = {label: number for number, label in ACTS.items()}
    return np.array([numbers[label] for label in labels])


class IntentMatch:
    """Scorer: 1.0 where the classifier finds the target act in the reply, else 0.0.

    The classifier reads the last utterance of the context, a separator and the reply. The separator is what its
    ``config.json`` names under ``"separator"``, or else a blank, as OpenRL's and RL4LMs' classifiers expect.

    Args:
        model: ``"builtin"``, or a Hugging Face sequence classifier of four acts, by folder or hub id.
        device: where it runs.
        labels: what its four outputs stand for, where its configuration doesn't say it rightly, as in
            ``"rajkumarrrk/roberta-daily-dialog-intent-classifier"``, whose labels are named after emotions.
        probability: score the probability of the target act instead.
        amp_dtype: autocast to this type, or None for full precision.
        batch_size: how many pairs it reads at once.

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
        batch_size: int = 64,
    ):
        if model == "builtin":
            with asset("intent") as folder:
                self.classifier, self.tokenizer = load_classifier(str(folder))
        else:
            self.classifier, self.tokenizer = load_classifier(model)
        self.classifier.to(device).eval()
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
        return self.probabilities(episodes.prompts, episodes.responses)[np.arange(len(episodes)), episodes.intents - 1]

    def match(self, prompts: Sequence[str], responses: Sequence[str], intents: Sequence[int]) -> np.ndarray:
        """``(n,)``: 1.0 where the likeliest act of a response to a prompt is the one asked for, else 0.0."""
        found = self.probabilities(prompts, responses).argmax(1) + 1
        return (found == np.asarray(intents)).astype(np.float64)

    def probabilities(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """``(n, 4)``: how probable inform, question, directive and commissive are for each response to a prompt."""
        last_utterances = [prompt.split(EOU)[-2].strip() for prompt in prompts]
        pairs = zip(last_utterances, responses, strict=True)
        return self.classify([f"{last}{self.separator}{reply}" for last, reply in pairs])

    @torch.no_grad()
    def classify(self, texts: Sequence[str]) -> np.ndarray:
        """``(n, 4)``: the same for texts as the classifier reads them."""
        result = np.empty((len(texts), len(self.acts)))
        device = self.classifier.device
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of similar length need little padding
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            # On the right, whatever the tokenizer does: left padding would shift the positions of a causal model
            encoded = self.tokenizer([texts[i] for i in rows], padding=True, padding_side="right", truncation=True)
            # return_tensors="pt" would take several times as long
            batch = {name: torch.tensor(column, device=device) for name, column in encoded.items()}
            with torch.autocast(device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
                logits = self.classifier(**batch).logits
            result[np.ix_(rows, self.acts - 1)] = logits.float().softmax(-1).cpu().numpy()
        return result
