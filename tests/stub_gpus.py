"""Two GPUs that only have random generators, on a machine without any."""

import torch


class StubGpus:
    """Stands for the part of `torch.cuda` that concerns random generators, whose states are numbers here."""

    def __init__(self, monkeypatch, current: int):
        self.current, self.states = current, [torch.tensor(10), torch.tensor(11)]
        for name in ("is_available", "current_device", "get_rng_state", "set_rng_state"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def is_available(self):
        return True

    def current_device(self):
        return self.current

    def get_rng_state(self, device="cuda"):
        return self.states[self.current if device == "cuda" else device]

    def set_rng_state(self, state, device="cuda"):
        self.states[self.current if device == "cuda" else device] = state
