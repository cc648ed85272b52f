import math

import numpy as np
import pytest

from dailydialog_gym.rewards.coefficients import AdaptiveCoefficient, FixedCoefficient, ZieglerCoefficient


@pytest.mark.parametrize(
    ("kl_per_token", "expected"),
    [
        (0.05, 0.2),
        (0.055, 0.2 * 1.01),  # 10% above the target: 10% of rate 0.1
        (0.5, 0.2 * 1.02),  # clipped to 20%
        (0.045, 0.2 * 0.99),
        (0.0, 0.2 * 0.98),
        (-3.0, 0.2 * 0.98),
    ],
)
def test_coefficient_follows_openrls_rule(kl_per_token, expected):
    coefficient = AdaptiveCoefficient(coef=0.2, target=0.05, rate=0.1, clip=0.2)
    coefficient.update(np.array([4 * kl_per_token]), np.array([4]), episodes_per_update=1)
    assert coefficient.value == pytest.approx(expected, rel=1e-12)


def test_coefficient_moves_once_for_every_num_envs_episodes():
    coefficient = AdaptiveCoefficient(coef=0.2, target=0.05, rate=0.1, clip=0.2)
    coefficient.update(np.array([0.3]), np.array([2]), episodes_per_update=3)
    assert coefficient.value == 0.2
    # 0.44 nats in 8 tokens are 10% above the target. The mean over episodes of KL per token would be clipped instead.
    coefficient.update(np.array([0.1, 0.04]), np.array([3, 3]), episodes_per_update=3)
    assert coefficient.value == pytest.approx(0.2 * 1.01, rel=1e-12)
    coefficient.update(np.array([0.0, 0.0]), np.array([1, 1]), episodes_per_update=3)
    assert coefficient.value == pytest.approx(0.2 * 1.01, rel=1e-12)
    coefficient.update(np.array([0.0]), np.array([1]), episodes_per_update=3)
    assert coefficient.value == pytest.approx(0.2 * 1.01 * 0.98, rel=1e-12)


def test_fixed_coefficient_stays():
    coefficient = FixedCoefficient(0.3)
    coefficient.update(np.array([9.0]), np.array([1]), episodes_per_update=1)
    assert coefficient.value == 0.3


def test_zieglers_coefficient_is_that_of_lm_human_preferences():
    # https://github.com/openai/lm-human-preferences/blob/master/lm_human_preferences/train_policy.py
    class AdaptiveKLController:
        def __init__(self, init_kl_coef, target, horizon):
            self.value, self.target, self.horizon = init_kl_coef, target, horizon

        def update(self, current, n_steps):
            proportional_error = np.clip(current / self.target - 1, -0.2, 0.2)
            self.value *= 1 + proportional_error * n_steps / self.horizon

    theirs, ours = AdaptiveKLController(0.15, 6.0, 10_000), ZieglerCoefficient(0.15)
    rng = np.random.default_rng(0)
    for _ in range(200):
        kl = rng.normal(6.0, 8.0, 64)  # nats a reply
        theirs.update(kl.mean(), 64)
        ours.update(kl, rng.integers(1, 20, 64), episodes_per_update=64)
    assert ours.value == pytest.approx(theirs.value, rel=1e-12)
    assert abs(ours.value - 0.15) > 1e-3


@pytest.mark.parametrize("rule", [AdaptiveCoefficient, ZieglerCoefficient, FixedCoefficient])
@pytest.mark.parametrize("coef", [-0.1, math.nan, math.inf])
def test_impossible_coefficient_is_an_error(rule, coef):
    with pytest.raises(ValueError, match="coef of a KL coefficient must be a finite number at least 0"):
        rule(coef)


@pytest.mark.parametrize("rule", [AdaptiveCoefficient, ZieglerCoefficient])
@pytest.mark.parametrize("target", [0.0, -1.0, math.nan])
def test_impossible_target_is_an_error(rule, target):
    with pytest.raises(ValueError, match="target of a KL coefficient must be a finite number above 0"):
        rule(0.2, target)
