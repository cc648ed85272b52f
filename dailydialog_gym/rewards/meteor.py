"""METEOR (Banerjee and Lavie 2005) of replies against their references. The scores equal NLTK's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from nltk.stem.porter import PorterStemmer
from nltk.tokenize import NLTKWordTokenizer

from dailydialog_gym.rewards.episodes import Episodes
from dailydialog_gym.rewards.synonyms import synonyms

# The cache is bounded because an exploring policy keeps producing new words.
_stem = lru_cache(maxsize=1 << 16)(PorterStemmer().stem)
_TOKENIZER = NLTKWordTokenizer()
ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5
MOST_KEPT = 4096  # words and alignments of a reference
_SIMPLE = re.compile(r"\w+(?:[-.]\w+)*(?:'(?:[dmst]|ll|re|ve))?|[,.;:?!\u2019]|\.\.\.")
_CLITIC = re.compile("('(?:[dms]|ll|re|ve)|n't)(?![^ ])")
_CONTRACTION = re.compile(r"\b(?:cannot|gimme|gonna|gotta|lemme|wanna)\b", re.IGNORECASE)


def words(text: str) -> tuple[str, ...]:
    """The words of a text, equal to those of NLTK's `word_tokenize`.

    NLTK's tokenizer applies some 30 regular expressions. In DailyDialog's texts all tokens but clitics ("'s", "n't")
    are already separated by spaces, so one regular expression for each distinct part between spaces is enough for them.
    NLTK tokenises all other texts.

    >>> words("I don't know , it's OK .")
    ('I', 'do', "n't", 'know', ',', 'it', "'s", 'OK', '.')
    """
    parts = [_simple_words(part) for part in text.split(" ")]
    if None in parts:
        return tuple(_TOKENIZER.tokenize(text))
    return tuple(word for part in parts if part for word in part)


@lru_cache(maxsize=1 << 16)
def _simple_words(part: str) -> tuple[str, ...] | None:
    """The words of a part between spaces; None where it takes all of NLTK's rules to know."""
    if not _SIMPLE.fullmatch(part):
        return None
    separated = _CLITIC.sub(r" \1", part)
    return None if _CONTRACTION.search(separated) else tuple(separated.split())


STAGES = ("exact", "stem", "synonym")


class _Reference:
    """What aligning replies to one reference needs of it.

    Most words of a reply match no word of the reference in any stage, so the alignment depends on the others alone.
    Most prefixes of a reply have the same others as the prefix before, so alignments are kept.
    """

    def __init__(self, text: str, stages: Sequence[str]):
        self.words, self.stages = [word.lower() for word in words(text)], stages
        self._exact = {*self.words}
        self._stems = {_stem(word) for word in self.words} if "stem" in stages else self._exact
        self._may_match = lru_cache(maxsize=MOST_KEPT)(self._find)
        self._kept: dict[tuple[tuple[int, str], ...], tuple[int, int]] = {}

    def matches(self, response: Sequence[str]) -> tuple[int, int]:
        """The number of matches of a reply's words, in lower case, and of chunks of them."""
        some = tuple([(i, word) for i, word in enumerate(response) if self._may_match(word)])
        if some not in self._kept:
            if len(self._kept) == MOST_KEPT:
                self._kept.clear()
            found = _align(dict(some), self.words, self.stages)
            # A chunk is a sequence of matches that are adjacent in both texts.
            chunks = bool(found) + sum((i + 1, j + 1) != following for (i, j), following in pairwise(found))
            self._kept[some] = len(found), chunks
        return self._kept[some]

    def _find(self, word: str) -> bool:
        stem = _stem(word) if "stem" in self.stages else word
        if word in self._exact or stem in self._stems:
            return True
        return "synonym" in self.stages and not synonyms(stem).isdisjoint(self._stems)


_reference = lru_cache(maxsize=512)(_Reference)  # each is compared with several replies and all their prefixes


def _align(left: dict[int, str], reference: Sequence[str], stages: Sequence[str]) -> list[tuple[int, int]]:
    """The alignment of NLTK's `align_words`: pairs (position in the response, position in the reference).

    NLTK's three stages are one loop here. It only looks up synonyms that occur in the reference, so it takes a third of
    NLTK's time.

    Args:
        left: by position, in ascending order, the words of the response that may match.
        reference: all words of the reference.
        stages: which words match, the first of `STAGES`.
    """
    right = dict(enumerate(reference))
    matches = []
    for stage in stages:
        if stage == "stem":
            left, right = ({i: _stem(word) for i, word in words.items()} for words in (left, right))
        free: dict[str, list[int]] = {}  # the positions of each word of the reference that is not aligned yet
        for j, word in right.items():
            free.setdefault(word, []).append(j)
        # Like NLTK, go through the response backwards and align each word with the last free one of the reference.
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


def meteor(response: str, reference: str, stages: Sequence[str] = STAGES) -> float:
    """METEOR of one response against one reference, in [0, 1].

    The score equals that of NLTK's `single_meteor_score` with alpha 0.9, beta 3 and gamma 0.5, and with exact, stem and
    synonym matches. The texts are tokenised as in the METEOR of the `evaluate` library (Treebank rules). The synonyms
    are those of WordNet 3.0, from an embedded table. Like NLTK, it compares the synonyms of a word's stem, so it misses
    synonyms of words whose stem is not a word ("large" becomes "larg"). An empty response scores 0.

    Args:
        response, reference: the texts.
        stages: which words match, the first of `STAGES`.

    >>> meteor("I like green tea .", "I like green tea .")
    0.996
    >>> meteor("", "Yes .")
    0.0
    """
    response_words, known = [word.lower() for word in words(response)], _reference(reference, tuple(stages))
    matches, chunks = known.matches(response_words)
    if not matches:
        return 0.0
    precision, recall = matches / len(response_words), matches / len(known.words)
    mean = (precision * recall) / (ALPHA * precision + (1 - ALPHA) * recall)
    return (1 - GAMMA * (chunks / matches) ** BETA) * mean


class Meteor:
    """Scorer: the `meteor` score of each reply against its reference, ``(n,)``.

    A call raises a ValueError if a reply has no reference, which is so after a partner's answer in a text environment.
    """

    def __call__(self, episodes: Episodes) -> np.ndarray:
        return np.array([_checked(*pair) for pair in zip(episodes.responses, episodes.references, strict=True)])


def _checked(response: str, reference: str | None) -> float:
    if reference is None:
        raise ValueError(
            "METEOR compares a reply with a reference, and after a partner's answer there is none: use a reward "
            "without a reference, or partner=None, where the dialogue's own utterances answer"
        )
    return meteor(response, reference)
