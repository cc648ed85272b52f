"""Flags that are numbers: none may be infinite, and none may be negative or zero where that makes no sense."""

import math
import re
import runpy
from dataclasses import dataclass, fields
from importlib import import_module
from typing import get_args, get_type_hints

import pytest
from paths import ROOT

from dailydialog_gym.ranges import Count, CountOrZero, NotNegative, Port, Positive, Seed, Share, check_numbers


@dataclass
class Args:
    gamma: Share = 1.0
    kl_target: Positive | None = None
    kl_coef: NotNegative = 0.0
    meteor_weight: float = 0.5
    num_envs: Count = 1
    top_k: CountOrZero = 0
    port: Port = 7860
    seed: Seed = 1
    parts: int = 1
    compile: bool = False
    name: str = "inf"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"gamma": 1.01}, "--gamma 1.01: expected a number from 0 to 1"),
        ({"gamma": -0.1}, "--gamma -0.1: expected a number from 0 to 1"),
        ({"gamma": math.nan}, "--gamma nan: expected a finite number"),
        ({"kl_target": 0.0}, "--kl-target 0.0: expected a number above 0"),
        ({"kl_target": math.inf}, "--kl-target inf: expected a finite number"),
        ({"kl_coef": -1e-9}, "--kl-coef -1e-09: expected a number of at least 0"),
        ({"meteor_weight": -math.inf}, "--meteor-weight -inf: expected a finite number"),
        ({"num_envs": 0}, "--num-envs 0: expected a number of at least 1"),
        ({"top_k": -1}, "--top-k -1: expected a number of at least 0"),
        ({"port": 65536}, "--port 65536: expected a number from 1 to 65535"),
        ({"seed": 2**63}, f"--seed {2**63}: expected a number from 0 to 2**63 - 1"),
        ({"num_envs": 10**20}, f"--num-envs {10**20}: expected a number of at most 2**63 - 1"),
        ({"parts": -(10**20)}, f"--parts -{10**20}: expected a number of at most 2**63 - 1"),
    ],
)
def test_a_senseless_number_is_named(flags, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_numbers(Args(**flags))


def test_other_numbers_are_allowed():
    check_numbers(Args())
    check_numbers(Args(0.0, 1e-9, 0.0, -3.0, 2**63 - 1, 0, 1, 0, -1, True))


ANY_SIGN = {"meteor_weight", "intent_weight", "ent_coef"}  # a reward may also be a punishment
CHECKED_LATER = {"temperature", "test_share"}  # with a range of their own, which Python's users have too
COMMANDS = ["ppo_dialog.py", "chat_app.py", "evaluate.__main__"]
COMMANDS += [f"recipes.{name}" for name in ("sft", "distill", "intent", "reward", "pairs")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_of_a_command_has_a_range(command):
    """Below 0 nothing makes sense, except where the lists above say so."""
    if command.endswith(".py"):
        cls = runpy.run_path(str(ROOT / command))["Args"]
    else:
        cls = import_module(f"dailydialog_gym.{command}").Args
    hints, checked = get_type_hints(cls), 0
    for field in fields(cls):
        if not {int, float} & {hints[field.name], *get_args(hints[field.name])}:
            continue
        for value in [math.inf, math.nan] + ([] if field.name in ANY_SIGN | CHECKED_LATER else [-1]):
            args = cls.__new__(cls)
            vars(args).update({each.name: None for each in fields(cls)} | {field.name: value})
            with pytest.raises(ValueError, match=f"^--{field.name.replace('_', '-')} {value}: expected"):
                check_numbers(args)
            checked += 1
    assert checked
