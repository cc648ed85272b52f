"""METEOR (Banerjee and Lavie 2005) of replies against their references. The scores equal NLTK's."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain, pairwise

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
_AT_THE_BEGINNING = re.compile(r"""\s|''|\"\"""")  # NLTK treats these differently there
_CLOSING = re.compile(r"""[])}>"'\xbb\u201d\u2019]*""")  # NLTK splits off a period where only these follow
_ONE_PERIOD = re.compile(rf"(.*[^.])\.{_CLOSING.pattern}", re.DOTALL)
# Titles, companies, and what consists of single letters, such as initials, "a.m." and "U.S."
_ABBREVIATION = re.compile(
    r"\W*(?:mr|mrs|ms|messrs|dr|prof|st|jr|sr|gen|col|lt|co|corp|inc|ltd|bros|ave|vs|ph\.d|(?:[^\W\d_]\.)*[^\W\d_])",
    re.IGNORECASE,
)


def sentences(text: str) -> list[str]:
    """The sentences of a text, as far as its words depend on them: only ends with a period are found.

    A part between blanks ends a sentence if it ends with one period, which closing quotes and brackets may follow,
    unless it is a known abbreviation or consists of single letters. A period alone ends none, because it is a word in
    any case, as the punctuation of DailyDialog's texts is.

    >>> sentences("I am fine. I saw Mr. Lee at 8 a.m. in town. You ? Good . Bye")
    ['I am fine.', 'I saw Mr. Lee at 8 a.m. in town.', 'You ? Good . Bye']
    """
    found, begin = list[str](), 0
    for part, following in pairwise(re.finditer(r"\S+", text)):
        if _ends_sentence(part[0]):
            found.append(text[begin : part.end()])
            begin = following.start()
    return [*found, text[begin:]]


def _ends_sentence(part: str) -> bool:
    end = _ONE_PERIOD.fullmatch(part)
    return end is not None and not _ABBREVIATION.fullmatch(end[1])


def words(text: str) -> tuple[str, ...]:
    """The words of a text: those that NLTK's tokenizer finds in each of its `sentences`.

    NLTK's `word_tokenize` does the same, but finds sentences by a trained model (punkt), which is a download of its
    own. The words differ only where the two disagree whether a period ends a sentence, as after "OK.", which punkt
    takes for an abbreviation. In DailyDialog's spacing they do not depend on sentences.

    NLTK's tokenizer applies some 30 regular expressions. Almost all of them look at a part between spaces alone, so the
    words of each distinct part are found once. In DailyDialog's texts all tokens but clitics ("'s", "n't") are already
    separated by spaces, so one regular expression is enough for most parts.

    >>> words("I don't know , it's OK .")
    ('I', 'do', "n't", 'know', ',', 'it', "'s", 'OK', '.')
    >>> words("I am fine. You?")
    ('I', 'am', 'fine', '.', 'You', '?')
    """
    found = _words_of_parts(text.split(" "))
    return tuple(word for part in (_words_by_nltk(text) if found is None else found) for word in part)


def _words_by_nltk(text: str) -> list[list[str]]:
    """The words of each sentence of a text."""
    return [_TOKENIZER.tokenize(sentence) for sentence in sentences(text)]


def _words_of_parts(parts: list[str]) -> list[tuple[str, ...]] | None:
    """The words of each part of a text, or of its end; None where NLTK must read the whole text."""
    found = [*[_part_words(part, False) for part in parts[:-1]], _part_words(parts[-1], True)]
    known = [part for part in found if part is not None]
    return known if len(known) == len(parts) else None


@lru_cache(maxsize=1 << 17)
def _part_words(part: str, last: bool) -> tuple[str, ...] | None:
    """The words of a part between spaces, the last one of a text or not; None where they depend on more than that."""
    if last and _CLOSING.fullmatch(part):
        return None
    if _SIMPLE.fullmatch(part):
        separated = _CLITIC.sub(r" \1", part)
        if not _CONTRACTION.search(separated):
            return tuple(separated.split())
    if _AT_THE_BEGINNING.search(part):
        return None
    ends = last or _ends_sentence(part)
    return tuple(_TOKENIZER.tokenize(part) if ends else _TOKENIZER.tokenize(f"{part} x")[:-1])


STAGES = ("exact", "stem", "synonym")
_Some = tuple[tuple[int, str], ...]  # words of a reply with their positions, in ascending order


class _Reference:
    """What aligning replies to one reference needs of it.

    Most words of a reply match no word of the reference in any stage, so the alignment depends on the others alone.
    Most prefixes of a reply have the same others as the prefix before, so alignments are kept.
    """

    def __init__(self, text: str, stages: Sequence[str]):
        self.stages, reference = stages, [word.lower() for word in words(text)]
        self.length = len(reference)
        self._exact, self._stems = defaultdict(list), defaultdict(list)  # the positions of each word, ascending
        for j, word in enumerate(reference):
            self._exact[word].append(j)
            self._stems[_stem(word) if "stem" in stages else word].append(j)
        self.may_match = lru_cache(maxsize=MOST_KEPT)(self._find)
        self._kept: dict[_Some, tuple[int, int]] = {}

    def matches(self, some: _Some) -> tuple[int, int]:
        """The number of matches of a reply, and of chunks of them, from those words of it that may match."""
        if some not in self._kept:
            if len(self._kept) == MOST_KEPT:
                self._kept.clear()
            found = self._align(some)
            # A chunk is a sequence of matches that are adjacent in both texts.
            chunks = bool(found) + sum((i + 1, j + 1) != following for (i, j), following in pairwise(found))
            self._kept[some] = len(found), chunks
        return self._kept[some]

    def _find(self, word: str) -> bool:
        stem = _stem(word) if "stem" in self.stages else word
        if word in self._exact or stem in self._stems:
            return True
        return "synonym" in self.stages and not synonyms(stem).isdisjoint(self._stems)

    def _align(self, left: _Some) -> list[tuple[int, int]]:
        """The alignment of NLTK's `align_words`: pairs (position in the response, position in the reference).

        NLTK's three stages are one loop here. It only looks up synonyms that occur in the reference.
        """
        matches: dict[int, int] = {}  # from positions of the reference to those of the response
        for stage in self.stages:
            if stage == "stem":
                left = tuple([(i, _stem(word)) for i, word in left])
            positions, rest = self._exact if stage == "exact" else self._stems, []
            # Like NLTK, go through the response backwards and align each word with the last free one of the reference.
            for i, word in reversed(left):
                names = (synonyms(word) & positions.keys()) | {word} if stage == "synonym" else (word,)
                free = [j for name in names if name in positions for j in positions[name] if j not in matches]
                if free:
                    matches[max(free)] = i
                else:
                    rest.append((i, word))
            left = tuple(reversed(rest))
        return sorted((i, j) for j, i in matches.items())


_reference = lru_cache(maxsize=512)(_Reference)  # each is compared with several replies and all their prefixes


class _Reply:
    """A reply to one reference, whose prefixes are scored one after the other.

    Of a text that continues the one before, only what follows the last space of that one is read.
    """

    def __init__(self, reference: str, stages: Sequence[str] = STAGES):
        self._reference = _reference(reference, tuple(stages))
        self._text, self._begin = "", 0  # the text before, and where its last part between spaces begins
        self._before: tuple[int, _Some] = 0, ()  # of that text without its last part, as `_add` returns it

    def score(self, text: str) -> float:
        """METEOR of a text."""
        if not text.startswith(self._text):
            self._begin, self._before = 0, (0, ())
        self._text, parts = text, text[self._begin :].split(" ")
        found = _words_of_parts(parts)
        if found is None:
            length, some = self._add((0, ()), chain.from_iterable(_words_by_nltk(text)))
        else:
            for part, its_words in zip(parts[:-1], found, strict=False):
                self._before, self._begin = self._add(self._before, its_words), self._begin + len(part) + 1
            length, some = self._add(self._before, found[-1])
        matches, chunks = self._reference.matches(some)
        if not matches:
            return 0.0
        precision, recall = matches / length, matches / self._reference.length
        mean = (precision * recall) / (ALPHA * precision + (1 - ALPHA) * recall)
        return (1 - GAMMA * (chunks / matches) ** BETA) * mean

    def _add(self, before: tuple[int, _Some], words: Iterable[str]) -> tuple[int, _Some]:
        """The number of words with some more, and those of them that may match."""
        length, some = before
        for word in words:
            word = word.lower()
            if self._reference.may_match(word):
                some = (*some, (length, word))
            length += 1
        return length, some


def meteor(response: str, reference: str, stages: Sequence[str] = STAGES) -> float:
    """METEOR of one response against one reference, in [0, 1].

    The score equals that of NLTK's `single_meteor_score` with alpha 0.9, beta 3 and gamma 0.5, and with exact, stem and
    synonym matches. The words are those of NLTK's tokenizer in each sentence, as in the METEOR of the `evaluate`
    library, except that a small rule finds the sentences, see `words`. The synonyms are those of WordNet 3.0, from an
    embedded table. Like NLTK, it compares the synonyms of a word's stem, so it misses synonyms of words whose stem is
    not a word ("large" becomes "larg"). An empty response scores 0.

    Args:
        response, reference: the texts.
        stages: which words match, the first of `STAGES`.

    >>> meteor("I like green tea .", "I like green tea .")
    0.996
    >>> meteor("", "Yes .")
    0.0
    """
    return _Reply(reference, stages).score(response)


class Meteor:
    """Scorer: the `meteor` score of each reply against its reference, ``(n,)``.

    A text that continues the one before it takes little time, as the prefixes of a reply do in `TokenCredit`.

    A call raises a ValueError if a reply has no reference, which is so after a partner's answer in a text environment.
    """

    def __call__(self, episodes: Episodes) -> np.ndarray:
        scores, before, reply = list[float](), "", _Reply("")
        for response, reference in zip(episodes.responses, episodes.references, strict=True):
            if reference is None:
                raise ValueError(
                    "METEOR compares a reply with a reference, and after a partner's answer there is none: use a "
                    "reward without a reference, or partner=None, where the dialogue's own utterances answer"
                )
            if reference != before:
                before, reply = reference, _Reply(reference)
            scores.append(reply.score(response))
        return np.array(scores)
