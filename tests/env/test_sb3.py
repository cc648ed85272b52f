import warnings

import gymnasium as gym
import pytest
import stable_baselines3 as sb3

import dailydialog_gym  # noqa: F401, registers the environment
from dailydialog_gym.wrappers import MeteorReward


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


@pytest.mark.filterwarnings("ignore:.*render_mode:UserWarning")
def test_make_vec_env_of_stable_baselines3_works():
    """It asks for pictures first, which the environment does not have."""
    from stable_baselines3.common.env_util import make_vec_env

    settings = {"max_prompt_length": 8, "max_new_tokens": 6}
    envs = make_vec_env("DailyDialog-v0", 2, seed=0, env_kwargs=settings, wrapper_class=MeteorReward)
    assert envs.reset()["input_ids"].shape == (2, 14)
    for _ in range(6):
        _, rewards, dones, infos = envs.step([5, 6])
    assert dones.all()
    assert rewards == pytest.approx([info["reward/meteor"] for info in infos])
