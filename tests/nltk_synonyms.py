"""The embedded synonyms in the shape in which NLTK's METEOR asks for them."""

from types import SimpleNamespace

from dailydialog_gym.rewards.synonyms import synonyms


class Synonyms:
    """Stands in for NLTK's WordNet reader; all of a word's synsets are one, since METEOR unites them."""

    def synsets(self, word):
        lemmas = [SimpleNamespace(name=lambda name=name: name) for name in synonyms(word)]
        return [SimpleNamespace(lemmas=lambda: lemmas)]
