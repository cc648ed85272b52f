"""The replies before and after training, side by side."""

from types import SimpleNamespace

import numpy as np
import pytest

from dailydialog_gym.runs.samples import intervals, markdown_samples, side_by_side


def evaluation(name, meteor):
    numbers = [i // 3 for i in range(30)]  # each of 10 contexts is answered three times
    return SimpleNamespace(
        prompts=[f"A{n} . <EOU> B . <EOU>" for n in numbers],
        replies=[f"{name} {i}" for i in range(30)],
        references=[f"people {n}" for n in numbers],
        by_reply={"meteor": np.full(30, meteor), "intent": np.linspace(0, 1, 30)},
    )


def test_samples_are_different_contexts_spread_over_all():
    samples = side_by_side(evaluation("old", 0.25), evaluation("new", 0.5), 4)
    assert [sample["context"][0] for sample in samples] == ["A0 .", "A3 .", "A6 .", "A9 ."]
    replies = {"before": "old 9", "after": "new 9", "people": "people 3"}
    assert samples[1] == {"context": ["A3 .", "B ."], **replies, "change": 0.25}
    assert len(side_by_side(evaluation("old", 0.25), evaluation("new", 0.5))) == 10
    assert "- before: old 9\n- after: new 9\n- people: people 3\n" in markdown_samples(samples)


def test_intervals_are_of_the_change():
    found = intervals(evaluation("old", 0.25), evaluation("new", 0.5))
    assert found == {"meteor": pytest.approx([0.25, 0.25]), "intent": pytest.approx([0, 0])}
