import warnings

import gymnasium as gym
import pytest

import dailydialog_gym  # noqa: F401, registers the environment

sb3 = pytest.importorskip("stable_baselines3")


def test_check_env_of_stable_baselines3_has_no_complaint():
    from stable_baselines3.common.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("DailyDialog-v0"), warn=True)


def test_ppo_of_stable_baselines3_trains():
    env = gym.make("DailyDialog-v0", max_prompt_length=8, max_new_tokens=6)
    model = sb3.PPO(
        "MultiInputPolicy", env, n_steps=64, batch_size=32, n_epochs=1, policy_kwargs={"net_arch": [8]}, seed=0
    )
    model.learn(192)
    assert model.num_timesteps == 192
    # stable-baselines3 wraps the environment in its Monitor, which records the length of every episode.
    lengths = [episode["l"] for episode in model.ep_info_buffer]
    assert len(lengths) >= 192 // 6 - 1
    assert max(lengths) == 6
