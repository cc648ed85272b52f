import datasets
import huggingface_hub
import pytest


@pytest.fixture
def no_network(monkeypatch):
    """Points the hub's clients to an address that refuses every connection."""
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", nowhere)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
