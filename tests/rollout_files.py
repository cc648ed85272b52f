"""A small `rollouts.jsonl` of a run, for tests."""

import json


def reply(text, advantage, log_prob=-1.0, ref=-2.0):
    tokens = text.split()
    columns = {"log_prob": log_prob, "ref_log_prob": ref, "reward/meteor": 0.25, "reward/kl": -0.05, "value": 0.1}
    columns |= {"advantage": advantage, "ratio": 1.1}
    return {"text": text, "tokens": tokens, **{name: [value] * len(tokens) for name, value in columns.items()}}


def write_rollouts(run, iterations=2):
    replies = [reply("no <b>", -1.0), reply("yes \u202e", 2.0)]
    group = {"context": ["Hi <i>"], "reference": "<u>", "replies": replies}
    lines = [{"iteration": i, **group} for i in range(1, iterations + 1) for _ in range(2)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "rollouts.jsonl").write_text(text + '{"iteration": 99, "context', encoding="utf-8")  # half written
