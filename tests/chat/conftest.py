import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.rewards.intent import IntentMatch


@pytest.fixture(scope="session")
def intent(tmp_path_factory) -> IntentMatch:
    """A random classifier with 512 positions, which is enough for the longest message."""
    folder = tmp_path_factory.mktemp("intent")
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "policy")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(tokenizer), num_labels=4, **shape)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return IntentMatch(str(folder))
