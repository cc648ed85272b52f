"""The benchmark of PPO: that it counts what it says, and that its contestants run."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_arithmetic_is_that_of_linear_layers_forward_and_where_a_gradient_comes_back(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS / "contestants")
    from meter import Meter

    meter = Meter()
    try:
        used, unused, x = nn.Linear(3, 5), nn.Linear(3, 7), torch.ones(2, 4, 3)
        meter.begin("rollout")
        with torch.no_grad():
            used(x)
        meter.begin("update")
        loss = nn.LayerNorm(5)(used(x)).square().sum()
        unused(x)
        loss.backward()
        meter.end(tokens=8, repeat={"update": 10})
    finally:
        meter.hook.remove()
    forward = 2 * 15 * 8
    assert meter.iterations[0]["flops"] == {
        "rollout": forward,
        "rewards": 0,
        "update": 10 * (3 * forward + 2 * 21 * 8),
    }


def test_the_script_beside_the_per_token_loop(tiny_model, tmp_path, capsys):
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=4).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    script = runpy.run_path(str(BENCHMARKS / "ppo_speed.py"))
    settings = {"models": (tiny_model,), "contestants": ("ours", "per-token"), "critics": ("separate",), "threads": 1}
    small = {"replies_per_prompt": (1, 2), "num_envs": 4, "num_minibatches": 2, "iterations": 2}
    script["main"](script["Args"](**settings, **small, intent_model=str(tmp_path)))
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if ", fp32" in line]
    per_token, single, packed = (float(row[3]) for row in rows)
    # 148 columns: three forwards to write a token, five forwards and backwards of policy and critic to learn from it,
    # and the critic of the last step once more. The head is most of this model; the critic's gets no gradient.
    layers, head = 2 * 12 * 16**2, 16 * 4096
    columns = 148 * 2 * (3 * (layers + head) + 5 * (3 * layers + 3 * head + 3 * layers + head) + (layers + head) / 8)
    assert per_token == pytest.approx(columns / 1e9, rel=0.01)
    assert packed < single < per_token / 15
    assert all(float(row[1]) > 0 for row in rows)
