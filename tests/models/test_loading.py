"""Loading a model asks the hub for nothing where the hub is off."""

import pytest
from huggingface_hub import file_download
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from dailydialog_gym import hub
from dailydialog_gym.models.loading import load_classifier, load_model


@pytest.mark.parametrize(
    "load",
    [
        load_classifier,
        lambda name: load_model(name, AutoModelForCausalLM),
        lambda name: load_model(name, GPT2LMHeadModel),
    ],
    ids=["classifier", "model", "model of a class"],
)
def test_a_name_that_is_nowhere_is_not_looked_for_on_a_hub_that_is_off(load, monkeypatch):
    """With peft installed, transformers looks for an adapter too, and would retry that for 20 seconds."""
    asked = []

    def ask(url, *args, **kwargs):
        asked.append(url)
        raise OSError("the hub was asked")

    monkeypatch.setattr(hub, "hub_is_off", lambda: True)
    monkeypatch.setattr(file_download, "get_hf_file_metadata", ask)
    with pytest.raises(ValueError, match="nowhere"):
        load("no/where-nowhere")
    assert not asked
