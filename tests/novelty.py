"""A scorer that remembers what it has seen, for tests of resumed runs."""

import numpy as np


class Novelty:
    """1 for a reply that was not written before."""

    def __init__(self):
        self.seen, self.mean = [], np.zeros(1)

    def __call__(self, episodes):
        scores = np.array([float(response not in self.seen) for response in episodes.responses])
        self.seen += episodes.responses
        self.mean = self.mean + scores.mean()
        return scores

    def state_dict(self):
        return {"seen": self.seen, "mean": self.mean, "last": self.mean[0]}

    def load_state_dict(self, state):
        self.seen, self.mean = state["seen"], np.array([state["last"]])
        assert state["mean"].tolist() == [state["last"]]
