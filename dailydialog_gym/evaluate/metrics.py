"""The measures of a reply, as modules of the `evaluate` library that need no hub."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from tempfile import TemporaryDirectory

import datasets
import evaluate
import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu import corpus_bleu

from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.rewards.meteor import STAGES, meteor

_PAIRS = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})


class _PairMetric(evaluate.Metric):
    """A metric of predictions and references, one of each; its module name is its class's."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=self.__doc__, citation="", inputs_description="", features=_PAIRS)


# Thai and Lao, kana, and the characters of Chinese and Japanese
_WITHOUT_BLANKS = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORDS = re.compile(rf"[{_WITHOUT_BLANKS}]|[^\W_{_WITHOUT_BLANKS}]+")


class UnicodeTokenizer(DefaultTokenizer):
    """The default tokenizer of `rouge_score` for ASCII texts; for others, which that one would drop, all words.

    In Chinese, Japanese, Thai and Lao, which do not separate words by blanks, each character is a token.

    >>> UnicodeTokenizer(use_stemmer=True).tokenize("Zwei Cafés, 你好")
    ['zwei', 'cafés', '你', '好']
    """

    def tokenize(self, text: str) -> list[str]:
        return tokenize(text, self._stemmer) if text.isascii() else _WORDS.findall(text.lower())


class Rouge(_PairMetric):
    """ROUGE-1 and ROUGE-Lsum (Lin 2004): F1 with Porter stems, by `rouge_score`, mean over pairs."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        scorer = RougeScorer(["rouge1", "rougeLsum"], tokenizer=UnicodeTokenizer(use_stemmer=True))
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
    return _compute(predictions, references, Rouge, MeteorMetric, SacreBleu, Variety)


def _compute(predictions: list[str], references: list[str], *metrics: type[_PairMetric]) -> dict[str, float]:
    """The metrics of the texts in memory: the library's own folder is in the user's home, which may be read-only."""
    scores: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        for metric in metrics:
            scores |= metric(cache_dir=folder, keep_in_memory=True).compute(
                predictions=predictions, references=references
            )
    return scores


def score_with_marker(predictions: list[str], references: list[str], ended: Sequence[bool]) -> dict[str, float]:
    """The measures as RL4LMs and OpenRL publish them: of texts that end with the marker ``<EOU>``.

    Every reference ends with the marker, and so does a reply that ended before the limit of tokens. METEOR's tokenizer
    makes three words of it, which match whatever else is said. METEOR is that of exact and stem matches, and SacreBLEU
    that of the ``intl`` tokenizer, divided by 100. The measures of variety are those of `score_replies`.

    Args:
        predictions, references: the texts without the marker.
        ended: ``(n,)``, whether each reply ended.

    >>> round(score_with_marker([""], ["I see ."], [True])["meteor"], 2)
    0.52
    """
    marked = [f"{text} {EOU}" if end else text for text, end in zip(predictions, ended, strict=True)]
    targets = [f"{text} {EOU}" for text in references]
    scores = _compute(marked, targets, Rouge)
    pairs = zip(marked, targets, strict=True)
    scores["meteor"] = float(np.mean([meteor(*pair, STAGES[:2]) for pair in pairs]))
    scores["sacrebleu"] = corpus_bleu(marked, [targets], tokenize="intl", force=True).score / 100
    return scores | _compute(predictions, references, Variety)


def floor_replies(references: list[str], train: Sequence[str]) -> dict[str, list[str]]:
    """Replies that know nothing of the contexts, as floors for a table: what a policy has to beat.

    Args:
        references: what people answered to the contexts of the table.
        train: what people answered elsewhere; the most frequent of these is one of the floors.
    """
    half = len(references) // 2
    return {
        "an unrelated human reply": references[half:] + references[:half],
        "the most frequent reply": [Counter(train).most_common(1)[0][0]] * len(references),
        "an empty reply": [""] * len(references),
    }
