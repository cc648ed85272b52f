import json

from hypothesis import example, given
from hypothesis import strategies as st

from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.text import join_punctuation, space_punctuation

UTTERANCES = [
    utterance
    for line in (ASSETS / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
    for utterance in json.loads(line)["dialog"]
]
# Signs and letters that the rules of both functions look at, so that random texts reach them.
PHRASES = st.text(alphabet="astmdApw019 .,:?!'\u2019-\"$%()é<>", max_size=40) | st.text(max_size=40)


def test_builtin_utterances_survive_joining_and_spacing_again():
    lost = [u for u in UTTERANCES if space_punctuation(join_punctuation(u)) != u]
    assert lost == []


def test_joined_builtin_utterances_survive_spacing_and_joining_again():
    ordinary = [join_punctuation(u) for u in UTTERANCES]
    assert [join_punctuation(space_punctuation(u)) for u in ordinary] == ordinary
    assert not any(" ." in u or " ," in u or " ?" in u for u in ordinary)


@given(PHRASES)
@example("well...no.Yes")
def test_spacing_twice_is_spacing_once(text):
    once = space_punctuation(text)
    assert space_punctuation(once) == once


@given(PHRASES)
def test_spacing_changes_nothing_but_blanks(text):
    assert "".join(space_punctuation(text).split()) == "".join(text.split())


@given(PHRASES)
def test_joining_changes_nothing_but_blanks_curly_apostrophes_and_capitals_after_them(text):
    letters = "".join(text.split()).replace("\u2019", "'")
    assert "".join(join_punctuation(text).split()).replace("\u2019", "'").lower() == letters.lower()


def test_joining_builtin_utterances_twice_is_joining_once():
    ordinary = [join_punctuation(u) for u in UTTERANCES]
    assert [join_punctuation(u) for u in ordinary] == ordinary


def test_spacing_keeps_words_with_apostrophes_and_numbers_with_points_whole():
    assert space_punctuation("It's Ann-Marie's, 3.50 at 6:30...ok?") == "It's Ann-Marie's , 3.50 at 6:30 ... ok ?"
    assert space_punctuation("See page.3 \n ") == "See page . 3"


def test_joining_reads_dailydialogs_split_contractions():
    assert join_punctuation("She doesn \u2019 t know , I ' ll ask .") == "She doesn't know, I'll ask."
    assert join_punctuation("I \u2019 Ve been there , It'S fine") == "I've been there, It's fine"
    assert join_punctuation('He said " not now " twice .') == 'He said "not now" twice.'
