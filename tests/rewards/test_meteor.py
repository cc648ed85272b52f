import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from nltk.tokenize import word_tokenize
from nltk.translate.meteor_score import single_meteor_score
from nltk_synonyms import Synonyms
from paths import DAILYDIALOG, needs_dailydialog
from random_episodes import make_episodes

from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.rewards import Meteor
from dailydialog_gym.rewards.meteor import meteor, sentences, words


def nltk_words(text):
    """What `word_tokenize` finds if punkt finds our sentences: punkt's model is not part of NLTK."""
    return [word for sentence in sentences(text) for word in word_tokenize(sentence, preserve_line=True)]


def nltk_meteor(response, reference):
    words, reference_words = nltk_words(response), nltk_words(reference)
    return single_meteor_score(reference_words, words, stemmer=PorterStemmer(), wordnet=Synonyms())


def reply_pairs(dataset, split, count):
    """Random pairs of utterances, and pairs of an utterance and a shuffled part of it, which match in many words."""
    rng = np.random.default_rng(0)
    utterances = [text for dialogue in load_dialogues(dataset, split, raw_split=True) for text in dialogue.utterances]
    for i, j in rng.integers(len(utterances), size=(count // 2, 2)):
        reference = utterances[i]
        words = reference.split()
        yield utterances[j], reference
        yield " ".join(rng.permutation(words)[: rng.integers(1, len(words) + 1)]), str(reference)


def test_meteor_is_nltks_on_builtin_replies():
    pairs = list(reply_pairs("builtin", "train", 600))
    scores = [meteor(*pair) for pair in pairs]
    assert scores == [nltk_meteor(*pair) for pair in pairs]
    assert np.mean(np.array(scores) > 0.2) > 0.3


@needs_dailydialog
def test_meteor_is_nltks_on_real_replies():
    for pair in reply_pairs(str(DAILYDIALOG), "test", 500):
        assert meteor(*pair) == nltk_meteor(*pair)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40), st.text(max_size=40))
def test_meteor_of_any_texts_is_nltks_and_a_number_from_0_to_1(response, reference):
    score = meteor(response, reference)
    assert 0.0 <= score <= 1.0
    assert list(words(response)) == nltk_words(response)
    if response.split() and reference.split():
        assert score == nltk_meteor(response, reference)


# These words match each other exactly, by stem, as synonyms, or in several of these ways.
ALIKE = st.lists(
    st.sampled_from(
        [
            "go",
            "goes",
            "going",
            "went",
            "run",
            "runs",
            "big",
            "bigger",
            "sick",
            "ill",
            "ills",
            "film",
            "movie",
            "movies",
            "a",
            "A",
            ".",
        ]
    )
)


@settings(deadline=None, max_examples=300)
@given(ALIKE, ALIKE)
def test_meteor_of_words_that_match_in_many_ways_is_nltks(response, reference):
    response, reference = " ".join(response), " ".join(reference)
    assert meteor(response, reference) == (nltk_meteor(response, reference) if response and reference else 0)


def test_spaced_texts_have_the_words_that_nltk_finds_without_sentences():
    texts = [text for dialogue in load_dialogues("builtin", "validation") for text in dialogue.utterances]
    for text in [*texts, "Don't \"quote\" me... I'd pay $5.50, gonna ''go'' (now)? [x] a--b", "é 好的。 👍🏽 ok"]:
        assert list(words(text)) == word_tokenize(text, preserve_line=True)


# The words of NLTK's `word_tokenize` with punkt's English model, separated by spaces
ORDINARY = {
    "I am fine. You?": "I am fine . You ?",
    "I'm fine.\nYou? Good.": "I 'm fine . You ? Good .",
    "I don't. You can't.  It's over.": "I do n't . You ca n't . It 's over .",
    'He said, "Go home." Then he left.': "He said , `` Go home . '' Then he left .",
    "It was fun (more or less.) Thanks.": "It was fun ( more or less . ) Thanks .",
    "It's done.\u201d She smiled.": "It 's done . \u201d She smiled .",
    "Mr. Lee and Mrs. Hill met Dr. Ann B. Smith.": "Mr. Lee and Mrs. Hill met Dr. Ann B. Smith .",
    "It opens at 8 a.m. in the U.S. (vs. noon).": "It opens at 8 a.m. in the U.S. ( vs. noon ) .",
    "We met in 1999. You paid $5.50. Really?": "We met in 1999 . You paid $ 5.50 . Really ?",
    "Well... I see. Wait.. no. Yes": "Well ... I see . Wait .. no . Yes",
    "No. I mean yes. He said he'd come.": "No . I mean yes . He said he 'd come .",
    "See you. 'Bye.' He went.": "See you . ' Bye . ' He went .",
}


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_texts_have_the_words_of_word_tokenize(text):
    assert " ".join(words(text)) == ORDINARY[text]


ENDS = ["fine.", "Fine.'", 'yes.")', "(yes.)", "1999.", "5%.", "ok?.", "OK.", "etc.", "t.)x.", "don't."]
NO_ENDS = ["Mr.", "(Mr.", "MRS.", "St.)", '"Dr.', "vs.", "Inc.", "Ph.D.", "A.", "é.", "p.m."]
NO_ENDS += [".", "..", "x..", "...", '."', "x.y", "x.,", "x?", "x", "'", ")"]


@pytest.mark.parametrize("part", ENDS + NO_ENDS)
def test_a_period_ends_a_sentence_unless_it_is_alone_or_of_an_abbreviation(part):
    for blank in " ", "  ", "\n", "\u00a0":
        text = f"I{blank}saw {part}{blank}Then I left"
        assert sentences(text) == ([f"I{blank}saw {part}", "Then I left"] if part in ENDS else [text])


@pytest.mark.parametrize("text", ["", " ", " fine. ", "\n", "fine.", "fine.\n"])
def test_a_text_with_one_sentence_or_none_stays_whole(text):
    assert sentences(text) == [text]


PIECES = ["I'm", "don't", "N'T", "it's", "Cannot", "wanna", "more'n", "a-b", "5.50", "a.", ".", "..", "...", ",", ":"]
PIECES += [";", "?", "!", "'", "''", "`", "--", "'tis", "D'YE", "x'll", "'s", "n't", "(", "_", "1"]
PIECES += [
    '"',
    "\u2019",
    "\u00e9",
    "\u017f",
    "can\u017f",
    "fine.",
    ")",
    "\u201c",
    "$",
    "o'clock",
    "x's'",
    "\x1c",
    "\ufffd",
    "Mr.",
    "a.m.",
    "it.''",
]


@settings(deadline=None, max_examples=500)
@given(st.lists(st.sampled_from(PIECES), max_size=8), st.sampled_from([" ", " ", "  ", ""]))
@example(["Cannot", "n't"], "")
@example(["fine.", '"', ")"], " ")
@example(["fine.", '"', "a"], " ")
@example(["fine.", "''", "a"], " ")
@example(["fine.", "'", "Mr.", "it.''", '"'], " ")
@example(["x's'", "x's'"], " ")
def test_words_are_nltks_with_and_without_the_fast_path(pieces, blank):
    text = blank.join(pieces)
    assert list(words(text)) == nltk_words(text)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([*PIECES, "go", "goes", "film", "movie"]), max_size=8), st.sampled_from([" ", ""]))
@example(["fine.", '"', "x's'", "movie"], " ")
def test_meteor_of_texts_that_continue_each_other_is_nltks(pieces, blank):
    text, reference = blank.join(pieces), "I went to a movie . It's fine. 5.50 o'clock"
    prefixes = [text[:end] for end in (*range(1, len(text) + 1, 2), len(text) // 2) if text[:end].split()]
    references = [reference] * len(prefixes)
    scores = Meteor()(make_episodes([1] * len(prefixes), responses=prefixes, references=references))
    assert scores.tolist() == [nltk_meteor(prefix, reference) for prefix in prefixes]


def test_meteor_by_hand():
    # 3 matches in 1 chunk, "walked" by its stem: P = 1, R = 3/4, F = PR / (0.9 P + 0.1 R), penalty 0.5 (1/3)^3
    f_mean = 0.75 / (0.9 + 0.075)
    assert meteor("I walked home", "I walk home today") == pytest.approx(f_mean * (1 - 0.5 / 27))


def test_meteor_of_one_word():
    assert meteor("Yes", "Yes") == 0.5  # the one match is a chunk: penalty 0.5
    assert meteor("yes", "Yes") == 0.5
    assert meteor("No", "Yes") == 0.0
    assert 0 < meteor("Yes , of course .", "Yes") < 0.5


@pytest.mark.parametrize("response", ["", " ", "\n\t"])
def test_meteor_of_an_empty_reply_is_0(response):
    assert meteor(response, "Fine , thanks .") == meteor("Fine , thanks .", response) == meteor(response, "") == 0.0


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("👍👍 🙂", "🙂 fine"),
        ("你好 吗 ?", "你好 !"),
        ("مرحبا يا صديقي", "hello صديقي"),
        ("Grüß dich , Zoë !", "Zoë ?"),
    ],
)
def test_meteor_matches_words_of_every_script(text, other):
    assert meteor(text, text) > 0.9
    assert 0 < meteor(text, other) < meteor(text, text)


def test_meteor_scorer_gives_a_score_for_each_episode():
    pairs = [("Yes , I do .", "I do ."), ("", "No ."), ("👍", "👍")]
    responses, references = map(list, zip(*pairs, strict=True))
    scores = Meteor()(make_episodes([3, 1, 2], responses=responses, references=references))
    assert scores.shape == (3,)
    assert scores.tolist() == [meteor(*pair) for pair in pairs]
