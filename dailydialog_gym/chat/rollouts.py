"""HTML of a run's ``rollouts.jsonl``: what PPO saw of its replies, token by token."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from dailydialog_gym.text import escape_invisible

MEASURES = {"Advantage": "advantage", "Reward": "reward", "KL": "kl"}
NAMES = {
    "log_prob": "log-probability",
    "ref_log_prob": "by the reference",
    "value": "value",
    "advantage": "advantage",
    "ratio": "ratio after the update",
    "kl": "KL",
}


def last_iteration(run: Path) -> int:
    """The last iteration of which the run has logged replies, 0 if it has logged none."""
    last = 0
    path = run / "rollouts.jsonl"
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:  # the last character may be half written
            for line in file:
                last = _iteration(line) or last
    return last


def read_rollouts(run: Path, iteration: int) -> list[dict[str, Any]]:
    """The lines of an iteration, one for each context.

    Raises:
        ValueError: a line of it is not JSON.
    """
    with (run / "rollouts.jsonl").open(encoding="utf-8", errors="replace") as file:
        return [json.loads(line) for line in file if _iteration(line) == iteration]


def _iteration(line: str) -> int | None:
    """The iteration of a whole line. Reading the numbers of all lines would take seconds."""
    begin = line[:40].removeprefix('{"iteration": ').partition(",")[0]
    return int(begin) if begin.isdecimal() and line.endswith("\n") else None


def rollouts_page(groups: list[dict[str, Any]], measure: str) -> str:
    """HTML of the replies to some contexts, sorted by their mean advantage, their tokens coloured by a measure.

    Args:
        groups: from `read_rollouts`.
        measure: one of the values of ``MEASURES``.
    """
    return "".join(_group(group, measure) for group in groups)


def _group(group: dict[str, Any], measure: str) -> str:
    context = "".join(f"<p>{as_html(utterance)}</p>" for utterance in group["context"])
    replies = sorted(group["replies"], key=lambda reply: -np.mean(reply["advantage"]))
    largest = max((abs(value) for reply in replies for value in _values(reply, measure)), default=0) or 1
    rows = "".join(_reply(reply, measure, largest) for reply in replies)
    people = f'<p class="hint">People said: {as_html(group["reference"])}</p>'
    return f'<section class="group"><blockquote>{context}</blockquote>{people}<ol class="replies">{rows}</ol></section>'


def _values(reply: dict[str, Any], measure: str) -> list[float]:
    if measure == "kl":
        return np.subtract(reply["log_prob"], reply["ref_log_prob"]).tolist()
    if measure == "reward":
        return np.sum([values for name, values in reply.items() if name.startswith("reward/")], axis=0).tolist()
    return reply["advantage"]


def _reply(reply: dict[str, Any], measure: str, largest: float) -> str:
    columns = {name: values for name, values in reply.items() if name not in ("text", "tokens")}
    columns["kl"] = _values(reply, "kl")
    shades, tokens = _values(reply, measure), ""
    for place, (token, shade) in enumerate(zip(reply["tokens"], shades, strict=True)):
        cells = "".join(
            f'<span class="other"><span>{escape(NAMES.get(name, name))}</span> <span>{values[place]:+.4g}</span></span>'
            for name, values in columns.items()
        )
        # High is good, except for the KL divergence from the reference
        sign = "bad" if (shade > 0) == (measure == "kl") else "good"
        tokens += (
            f'<button type="button" class="token {sign}" style="--shade:{abs(shade) / largest:.3f}">'
            f'<bdi>{as_html(token) or "&nbsp;"}</bdi><span class="others">{cells}</span></button>'
        )
    means = f"advantage {np.mean(reply['advantage']):+.2f} · reward {sum(_values(reply, 'reward')):+.3f} · KL "
    means += f"{sum(columns['kl']):+.2f}"
    return f'<li><div class="tokens">{tokens}</div><p class="hint">{means}</p></li>'


def as_html(text: str) -> str:
    """HTML of a text that is not ours."""
    return escape(escape_invisible(text))
