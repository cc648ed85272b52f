"""The measures of a reply, as modules of the `evaluate` library that need no hub."""

from __future__ import annotations

from itertools import pairwise

import datasets
import evaluate
import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu

from dailydialog_gym.rewards.meteor import meteor

_PAIRS = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})


class _PairMetric(evaluate.Metric):
    """A metric of predictions and references, one of each; its module name is its class's."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=self.__doc__, citation="", inputs_description="", features=_PAIRS)


class Rouge(_PairMetric):
    """ROUGE-1 and ROUGE-Lsum (Lin 2004): F1 with Porter stems, by `rouge_score`, mean over pairs."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        scorer = RougeScorer(["rouge1", "rougeLsum"], use_stemmer=True)
        scores = [scorer.score(*pair) for pair in zip(references, predictions, strict=True)]
        return {name: float(np.mean([s[name].fmeasure for s in scores])) for name in ("rouge1", "rougeLsum")}


class MeteorMetric(_PairMetric):
    """METEOR (Banerjee and Lavie 2005), by NLTK, mean over pairs: see `dailydialog_gym.rewards.meteor.meteor`."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"meteor": float(np.mean([meteor(*pair) for pair in zip(predictions, references, strict=True)]))}


class SacreBleu(_PairMetric):
    """Corpus BLEU of `sacrebleu` (Post 2018) with its default tokenisation, 0 to 100; ``force`` only silences its
    warning about spaced punctuation."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"sacrebleu": corpus_bleu(predictions, [references], force=True).score}


class Variety(_PairMetric):
    """What stock phrases lower: distinct-1 and distinct-2 (Li et al. 2016), distinct replies by replies
    (unique), and the mean length in blank-separated words."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        words = [prediction.split() for prediction in predictions]
        unigrams = [word for reply in words for word in reply]
        bigrams = [pair for reply in words for pair in pairwise(reply)]
        return {
            "distinct1": len(set(unigrams)) / max(1, len(unigrams)),
            "distinct2": len(set(bigrams)) / max(1, len(bigrams)),
            "unique": len(set(predictions)) / len(predictions),
            "length": len(unigrams) / len(predictions),
        }


def score_replies(predictions: list[str], references: list[str]) -> dict[str, float]:
    """All measures of replies against what people answered.

    >>> score_replies(["I see ."], ["I see ."])["rouge1"]
    1.0
    """
    scores: dict[str, float] = {}
    for metric in (Rouge(), MeteorMetric(), SacreBleu(), Variety()):
        scores |= metric.compute(predictions=predictions, references=references)
    return scores
