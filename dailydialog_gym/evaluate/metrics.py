"""The measures of a reply, as modules of the `evaluate` library that need no hub."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any
from unicodedata import normalize

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics import BLEU

from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.rewards.meteor import STAGES, meteor
from dailydialog_gym.text import MARKS

_PAIRS = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})


class _PairMetric(evaluate.Metric):
    """A metric of predictions and references, one of each; its module name is its class's."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=self.__doc__, citation="", inputs_description="", features=_PAIRS)


# Thai and Lao, kana, and the characters of Chinese and Japanese
_WITHOUT_BLANKS = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_LETTER = rf"[^\W_{_WITHOUT_BLANKS}]"
_WORDS = re.compile(rf"[{_WITHOUT_BLANKS}]|{_LETTER}(?:{_LETTER}|(?![{_WITHOUT_BLANKS}])[{MARKS}])*")


class UnicodeTokenizer(DefaultTokenizer):
    """The default tokenizer of `rouge_score`, and words with other letters than ASCII's, which that one would drop.

    Those words are not stemmed. In Chinese, Japanese, Thai and Lao, which do not separate words by blanks, each
    character is a token.

    >>> UnicodeTokenizer(use_stemmer=True).tokenize("Two Cafés closing, 你好")
    ['two', 'cafés', 'close', '你', '好']
    >>> UnicodeTokenizer().tokenize("वह कल आयी।")
    ['वह', 'कल', 'आयी']
    >>> UnicodeTokenizer().tokenize("I ❤️ you")
    ['i', 'you']
    """

    def tokenize(self, text: str) -> list[str]:
        words = _WORDS.findall(normalize("NFC", text.lower()))
        return [token for word in words for token in (tokenize(word, self._stemmer) if word.isascii() else [word])]


class Rouge(_PairMetric):
    """ROUGE-1 and ROUGE-Lsum (Lin 2004) of each pair: F1 with Porter stems, by `rouge_score`."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        scorer = RougeScorer(["rouge1", "rougeLsum"], tokenizer=UnicodeTokenizer(use_stemmer=True))
        scores = [scorer.score(*pair) for pair in zip(references, predictions, strict=True)]
        return {name: [score[name].fmeasure for score in scores] for name in ("rouge1", "rougeLsum")}


class MeteorMetric(_PairMetric):
    """METEOR (Banerjee and Lavie 2005) of each pair, by NLTK: see `dailydialog_gym.rewards.meteor.meteor`."""

    def _compute(self, predictions: list[str], references: list[str], stages: Sequence[str]) -> dict[str, Any]:
        return {"meteor": [meteor(*pair, stages) for pair in zip(predictions, references, strict=True)]}


class SacreBleu(_PairMetric):
    """What `bleu` sums up for corpus BLEU, of each pair, by `sacrebleu` (Post 2018) with the named tokenisation."""

    def _compute(self, predictions: list[str], references: list[str], tokenize: str) -> dict[str, Any]:
        # effective_order and force only silence warnings, about short texts and about spaced punctuation
        scorer = BLEU(tokenize=tokenize, effective_order=True, force=True)
        scores = [scorer.sentence_score(text, [target]) for text, target in zip(predictions, references, strict=True)]
        return {"sacrebleu": [[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores]}


def bleu(statistics: np.ndarray) -> float:
    """Corpus BLEU, 0 to 100.

    Args:
        statistics: ``(10,)``, sums over the pairs: the matches and the numbers of n-grams of 1 to 4 words, and the
            lengths of predictions and references.
    """
    *ngrams, length, reference_length = statistics.round().astype(int).tolist()
    return BLEU.compute_bleu(ngrams[:4], ngrams[4:], length, reference_length, smooth_method="exp").score


def summary(by_reply: Mapping[str, ArrayLike]) -> dict[str, float]:
    """The measures of all replies from those of the single ones: means, and `bleu` of ``"sacrebleu"``."""
    values = {name: np.asarray(each) for name, each in by_reply.items()}
    return {name: bleu(v.sum(0)) if name == "sacrebleu" else float(v.mean()) for name, v in values.items()}


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


def judge_replies(
    predictions: list[str],
    references: list[str],
    stages: Sequence[str] = STAGES,
    tokenize: str = "13a",
) -> dict[str, list[Any]]:
    """The measures of single replies, for `summary`: each a list of ``n`` numbers, ``"sacrebleu"`` one of 10 each.

    Args:
        predictions, references: the texts.
        stages: which words METEOR matches.
        tokenize: SacreBLEU's tokenizer.
    """
    options: dict[type[_PairMetric], dict[str, Any]] = {
        Rouge: {},
        MeteorMetric: {"stages": stages},
        SacreBleu: {"tokenize": tokenize},
    }
    found: dict[str, list[Any]] = {}
    for metric, own in options.items():
        found |= _compute(metric, predictions, references, **own)
    return found


def variety(predictions: list[str], references: list[str]) -> dict[str, float]:
    """The measures of `Variety`, which do not read the references."""
    return _compute(Variety, predictions, references)


def _compute(
    metric: type[_PairMetric], predictions: list[str], references: list[str], **options: Any
) -> dict[str, Any]:
    """A metric of the texts in memory: the library's own folder is in the user's home, which may be read-only."""
    with TemporaryDirectory() as folder:
        module = metric(cache_dir=folder, keep_in_memory=True)
        return module.compute(predictions=predictions, references=references, **options)


def score_replies(predictions: list[str], references: list[str]) -> dict[str, float]:
    """All measures of replies against what people answered.

    >>> score_replies(["I see ."], ["I see ."])["rouge1"]
    1.0
    """
    return summary(judge_replies(predictions, references)) | variety(predictions, references)


def judge_with_marker(predictions: list[str], references: list[str], ended: Sequence[bool]) -> dict[str, list[Any]]:
    """`judge_replies` as RL4LMs and OpenRL publish the measures: of texts that end with the marker ``<EOU>``.

    Every reference ends with the marker, and so does a reply that ended before the limit of tokens. METEOR's tokenizer
    makes three words of it, which match whatever else is said. METEOR is that of exact and stem matches, and SacreBLEU
    that of the ``intl`` tokenizer. The publications divide it by 100.

    Args:
        predictions, references: the texts without the marker.
        ended: ``(n,)``, whether each reply ended.

    >>> round(judge_with_marker([""], ["I see ."], [True])["meteor"][0], 2)
    0.52
    """
    marked = [f"{text} {EOU}" if end else text for text, end in zip(predictions, ended, strict=True)]
    return judge_replies(marked, [f"{text} {EOU}" for text in references], STAGES[:2], "intl")


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
