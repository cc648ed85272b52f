"""Score tables and curves, which the run, the evaluation, the chat page and the benchmarks share."""

import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT

from dailydialog_gym.evaluate import score_replies
from dailydialog_gym.reports.curves import curve_keys, plot_curves, running_mean, targets_of
from dailydialog_gym.reports.intervals import bootstrap_means
from dailydialog_gym.reports.tables import LABELS, score_cells

ROW = {"episodes": 8, "charts/episodic_return": 0.5, "charts/FPS": 9.0, "reward/meteor": 0.1, "metric/kl_coef": 0.2}


def test_every_score_has_a_heading():
    assert {*score_replies(["Yes ."], ["No ."]), "intent", "reward"} == LABELS.keys()


def test_the_change_of_two_models_is_relative_and_empty_from_zero():
    rows = {"a": {"meteor": 0.5, "intent": 0.0, "length": 8.0}, "b": {"meteor": 0.25, "intent": 0.5, "length": 10.0}}
    assert score_cells(rows) == [
        ["", "METEOR", "Intent", "Length"],
        ["a", "0.5000", "0.0000", "8.00"],
        ["b", "0.2500", "0.5000", "10.00"],
        ["change", "-50.0%", "", "+25.0%"],
    ]
    assert score_cells(rows, {"meteor": [-0.3, -0.2], "intent": [0.4, 0.6]})[4:] == [
        ["95% from", "-60.0%", "", ""],
        ["95% to", "-40.0%", "", ""],
    ]
    assert score_cells(rows | {"c": rows["a"]})[-1][0] == "c"  # of three models there is no change
    negative = {"a": {"reward": -0.5}, "b": {"reward": 0.5}}
    assert score_cells(negative)[1:] == [["a", "-0.5000"], ["b", "0.5000"], ["change", ""]]


@pytest.mark.parametrize("seeds", [1, 3])
def test_curves_have_a_panel_for_each_key_and_the_mean_over_the_runs(seeds):
    runs = [
        [ROW | {"episodes": 8 * i, "reward/meteor": seed + 0.1 * i if i != 3 else None} for i in range(1, 41)]
        for seed in range(seeds)
    ]
    keys = curve_keys(ROW)
    assert keys == ["charts/episodic_return", "reward/meteor", "metric/kl_coef"]
    panels = plot_curves({"": runs}, keys).axes
    assert [panel.get_title() for panel in panels] == ["Return", "METEOR", "KL coefficient"]
    *raw, mean = panels[1].lines
    assert len(raw) == seeds and len(panels[1].collections) == (seeds > 1)
    values = np.array([[row["reward/meteor"] for row in run] for run in runs], float)
    np.testing.assert_array_equal(mean.get_ydata(), running_mean(values).mean(0))
    assert np.isnan(mean.get_ydata()).sum() == 4  # a number that isn't finite leaves a gap as wide as the window
    np.testing.assert_array_equal(mean.get_xdata(), [row["episodes"] for row in runs[0]])


def test_runs_of_different_lengths_are_compared_and_a_target_is_marked():
    runs = [[ROW | {"episodes": 8 * i} for i in range(1, length)] for length in (5, 9)]
    del runs[1][0]["reward/meteor"]
    targets = targets_of({"kl_rule": "openrl", "kl_target": 0.1})
    assert targets == {"metric/kl_per_token": 0.1} and targets_of({"kl_rule": "fixed", "kl_target": 1.0}) == {}
    assert targets_of({"kl_rule": "openrl", "kl_target": None}) == targets_of({}) == {}  # no target is known
    assert targets_of({"kl_rule": "ziegler", "kl_target": 3.0}) == {"reward/kl": 3.0}
    groups = {"a": [runs[0]], "b": [runs[1]]}
    (panel,) = plot_curves(groups, ["reward/meteor"], {"reward/meteor": 0.3}).axes
    assert [line.get_color() for line in panel.lines] == ["C0", "C0", "C1", "C1", "tab:red"]
    assert [len(line.get_xdata()) for line in panel.lines[:4]] == [4, 4, 8, 8]


def test_seeds_are_drawn_over_another_metric():
    runs = [[ROW | {"reward/meteor": i + seed, "reward/kl": 2 * i} for i in range(30)] for seed in range(2)]
    (panel,) = plot_curves({"a": runs, "b": runs}, ["reward/meteor"], over="reward/kl").axes
    assert panel.get_xlabel() == "KL a reply" and panel.get_legend_handles_labels()[1] == ["a", "b"]
    first, second, mean = panel.lines[:3]
    means = running_mean(np.arange(30.0))
    for line, expected in ((first, means), (second, means + 1), (mean, means + 0.5)):
        np.testing.assert_array_equal(line.get_xdata(), 2 * means)
        np.testing.assert_array_equal(line.get_ydata(), expected)


def test_the_bootstrap_interval_covers_the_true_change_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        before, after = rng.normal(size=(2, 60))
        columns, groups = [before, after + 0.5], range(60)
        if trial % 2:  # two equal replies to each context say no more than one
            columns, groups = np.repeat(columns, 2, axis=1), np.repeat(groups, 2)
        old, new = bootstrap_means(columns, groups, resamples=400, seed=trial)
        low, high = np.quantile(new - old, [0.025, 0.975])
        covered += low < 0.5 < high
    assert 180 <= covered <= 198


def test_the_training_tab_needs_none_of_the_training_libraries():
    """The extra ``chat`` does not install them."""
    code = (
        "import sys, dailydialog_gym.chat.trained; print({'datasets', 'evaluate', 'tensorboard'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
