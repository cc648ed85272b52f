"""METEOR against the reference reply (Banerjee and Lavie 2005), as NLTK computes it."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

import numpy as np
from nltk.stem.porter import PorterStemmer
from nltk.tokenize import NLTKWordTokenizer

from dailydialog_gym.rewards.episodes import Episodes
from dailydialog_gym.rewards.synonyms import synonyms

# Bounded: an exploring policy never stops inventing words
_stem = lru_cache(maxsize=1 << 16)(PorterStemmer().stem)
_TOKENIZER = NLTKWordTokenizer()
ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5
_WORD = r"(?:\w+(?:[-.]\w+)*(?:'(?:[dmst]|ll|re|ve))?|[,.;:?!\u2019]|\.\.\.)"
_SPACED = re.compile(f"{_WORD}(?: {_WORD})*")
_CLITIC = re.compile("('(?:[dms]|ll|re|ve)|n't)(?![^ ])")
_CONTRACTION = re.compile(r"\b(?:cannot|gimme|gonna|gotta|lemme|wanna)\b", re.IGNORECASE)


@lru_cache(maxsize=1 << 16)  # references come back
def words(text: str) -> tuple[str, ...]:
    """The words of a text as NLTK's `word_tokenize` cuts them.

    NLTK's tokenizer takes two thirds of METEOR's time, for some 30 substitutions. In a text in DailyDialog's spacing
    only clitics are left to cut, so that such texts need one; the others go to NLTK.

    >>> words("I don't know , it's OK .")
    ('I', 'do', "n't", 'know', ',', 'it', "'s", 'OK', '.')
    """
    if _SPACED.fullmatch(text) and not _CONTRACTION.search(text):
        return tuple(_CLITIC.sub(r" \1", text).split())
    return tuple(_TOKENIZER.tokenize(text))


def _align(response: list[str], reference: list[str]) -> list[tuple[int, int]]:
    """Which word of the response stands for which of the reference, by position: NLTK's `align_words`.

    Its three stages are one loop here, which looks at no synonym that the reference lacks: a third of NLTK's time.
    """
    left, right = dict(enumerate(response)), dict(enumerate(reference))
    matches = []
    for stage in ("exact", "stem", "synonym"):
        if stage == "stem":
            left, right = ({i: _stem(word) for i, word in words.items()} for words in (left, right))
        free: dict[str, list[int]] = {}
        for j, word in right.items():
            free.setdefault(word, []).append(j)
        # From the end, each word takes the last of the reference's that is still free
        for i, word in reversed(left.copy().items()):
            if stage == "synonym":
                last = [free[name][-1] for name in (synonyms(word) & free.keys()) | {word} if free.get(name)]
            else:
                last = free.get(word, [])[-1:]
            if last:
                j = max(last)
                free[right[j]].pop()
                matches.append((i, j))
                del left[i], right[j]
    return sorted(matches)


def meteor(response: str, reference: str) -> float:
    """METEOR of one pair, in [0, 1]: NLTK's, with alpha 0.9, beta 3, gamma 0.5, exact, stem and synonym matches.

    Words are cut as in the `evaluate` library's METEOR (Treebank rules), synonyms are WordNet 3.0's, from an embedded
    table. Like NLTK, it looks for synonyms among stems, so it misses those that Porter's stemmer changes ("large"
    becomes "larg"). An empty response scores 0.

    >>> meteor("I like green tea .", "I like green tea .")
    0.996
    >>> meteor("", "Yes .")
    0.0
    """
    response_words, reference_words = ([word.lower() for word in words(text)] for text in (response, reference))
    matches = _align(response_words, reference_words)
    if not matches:
        return 0.0
    precision, recall = len(matches) / len(response_words), len(matches) / len(reference_words)
    mean = (precision * recall) / (ALPHA * precision + (1 - ALPHA) * recall)
    # A chunk is a run of words that stand side by side in both
    chunks = 1 + sum((i + 1, j + 1) != following for (i, j), following in pairwise(matches))
    return (1 - GAMMA * (chunks / len(matches)) ** BETA) * mean


class Meteor:
    """Scorer: `meteor` of each reply against its reference."""

    def __call__(self, episodes: Episodes) -> np.ndarray:
        return np.array([meteor(*pair) for pair in zip(episodes.responses, episodes.references, strict=True)])
