"""Loading a model asks the hub for nothing where the hub is off."""

import socket

import pytest
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
    monkeypatch.setattr(hub, "hub_is_off", lambda: True)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: asked.append(args))
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
    with pytest.raises(ValueError, match="nowhere"):
        load("no/where-nowhere")
    assert not asked
