"""Does a reply do what was asked of it: inform, ask, direct or commit? A sequence classifier's opinion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dailydialog_gym.data import ACTS
from dailydialog_gym.rewards.episodes import Episodes
from dailydialog_gym.tokenizer import EOU, hub_is_off


def _act_of_label(id2label: dict[int, str], name: str) -> np.ndarray:
    """The act, 1 to 4, of each label of a classifier: by name, or by order where the labels have no names."""
    labels = [id2label[i].lower() for i in sorted(id2label)]
    if labels == [f"label_{i}" for i in range(len(ACTS))]:
        return np.array(list(ACTS))
    if sorted(labels) != sorted(ACTS.values()):
        raise ValueError(
            f"classifier {name!r} has the labels {labels}: expected {list(ACTS.values())}, in any order, or four "
            "without names, in that order (config.id2label)"
        )
    numbers = {label: number for number, label in ACTS.items()}
    return np.array([numbers[label] for label in labels])


class IntentMatch:
    """Scorer: 1.0 where the classifier finds the target act in the reply, else 0.0.

    The classifier reads the last utterance of the context, a blank and the reply, as OpenRL's does.

    Args:
        model: a Hugging Face sequence classifier of four acts, by folder or hub id, such as
            ``"rajkumarrrk/roberta-daily-dialog-intent-classifier"``.
        device: where it runs.
        batch_size: how many pairs it reads at once.
    """

    def __init__(self, model: str, device: torch.device | str = "cpu", batch_size: int = 64):
        try:
            here = Path(model).is_dir()
            source = {"local_files_only": here or hub_is_off()}
            self.classifier = AutoModelForSequenceClassification.from_pretrained(
                model, use_safetensors=True if here else None, **source
            )
            # Where the text is too long for the model, the reply is what must stay.
            self.tokenizer = AutoTokenizer.from_pretrained(model, truncation_side="left", **source)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"cannot load intent classifier {model!r}: expected a folder or hub id ({error})"
            ) from error
        self.classifier.to(device).eval()
        self.acts = _act_of_label(self.classifier.config.id2label, model)
        self.batch_size = batch_size

    def __call__(self, episodes: Episodes) -> np.ndarray:
        return self.match(episodes.prompts, episodes.responses, episodes.intents)

    def match(self, prompts: Sequence[str], responses: Sequence[str], intents: Sequence[int]) -> np.ndarray:
        """``(n,)``: whether each response to a prompt has the act asked for."""
        last_utterances = [prompt.split(EOU)[-2].strip() for prompt in prompts]
        texts = [f"{last} {response}" for last, response in zip(last_utterances, responses, strict=True)]
        return (self.classify(texts) == np.asarray(intents)).astype(np.float64)

    @torch.no_grad()
    def classify(self, texts: list[str]) -> np.ndarray:
        """``(n,)`` the act, 1 to 4, that the classifier finds in each text."""
        found = []
        for start in range(0, len(texts), self.batch_size):
            batch = self.tokenizer(
                texts[start : start + self.batch_size], padding=True, truncation=True, return_tensors="pt"
            ).to(self.classifier.device)
            found.append(self.classifier(**batch).logits.argmax(-1).cpu().numpy())
        return self.acts[np.concatenate(found)]
