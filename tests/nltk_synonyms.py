"""The embedded synonyms with the interface of NLTK's WordNet reader."""

from types import SimpleNamespace

from dailydialog_gym.rewards.synonyms import synonyms


class Synonyms:
    """Replaces NLTK's WordNet reader in METEOR. A word has one synset here, because METEOR takes the union of them."""

    def synsets(self, word):
        lemmas = [SimpleNamespace(name=lambda name=name: name) for name in synonyms(word)]
        return [SimpleNamespace(lemmas=lambda: lemmas)]
