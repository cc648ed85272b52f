"""TorchRL and RLlib train in the environment: ``pip install -c constraints.txt -e ".[dev,libraries]"`` and
``pytest -m libraries``."""

import gymnasium as gym
import numpy as np
import pytest
from equality import assert_same

import dailydialog_gym  # noqa: F401, registers the environments
from dailydialog_gym.wrappers import MeteorReward

SMALL = {"max_prompt_length": 8, "max_new_tokens": 6}


@pytest.mark.parametrize(("name", "shared_memory"), [("DailyDialog-v0", True), ("DailyDialogText-v0", False)])
def test_asynchronous_vectorization_equals_the_synchronous_one(name, shared_memory):
    kwargs = {"context": "fork", "shared_memory": shared_memory}
    processes = gym.make_vec(name, num_envs=2, vectorization_mode="async", vector_kwargs=kwargs, **SMALL)
    try:
        both = processes, gym.make_vec(name, num_envs=2, vectorization_mode="sync", **SMALL)
        for envs in both:
            envs.action_space.seed(0)
        assert_same(*(envs.reset(seed=1) for envs in both))
        for _ in range(8):
            assert_same(*(envs.step(envs.action_space.sample()) for envs in both))
    finally:
        processes.close()


@pytest.mark.libraries
def test_torchrl_rolls_out():
    torchrl = pytest.importorskip("torchrl.envs", reason="needs the extra libraries")
    env = torchrl.GymEnv("DailyDialog-v0", **SMALL)
    torchrl.check_env_specs(env)
    env = torchrl.SerialEnv(2, lambda: torchrl.GymWrapper(MeteorReward(gym.make("DailyDialog-v0", **SMALL))))
    rollout = env.rollout(12, break_when_any_done=False)
    assert rollout["input_ids"].shape == (2, 12, 14)
    assert rollout["next", "done"].any(1).all()
    text = torchrl.GymEnv("DailyDialogText-v0").rollout(2)
    assert text["next", "terminated"].all()  # a reply that TorchRL makes up ends the episode
    assert text["next", "observation"][0].startswith(text["observation"][0])


@pytest.mark.libraries
def test_rllib_trains():
    pytest.importorskip("ray.rllib", reason="needs the extra libraries")
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.tune.registry import register_env

    def make(config):
        env = gym.wrappers.FlattenObservation(MeteorReward(gym.make("DailyDialog-v0", **config)))
        return gym.wrappers.DtypeObservation(env, np.float32)  # RLlib's networks do not convert integers

    register_env("dialogue", make)
    ray.init(include_dashboard=False, num_cpus=1, log_to_driver=False)
    try:
        batch = {"train_batch_size_per_learner": 64, "minibatch_size": 32, "num_epochs": 1}
        config = PPOConfig().environment("dialogue", env_config=SMALL).env_runners(num_env_runners=0).training(**batch)
        algorithm = config.build_algo()
        results = algorithm.train()
        algorithm.stop()
    finally:
        ray.shutdown()
    assert results["env_runners"]["episode_len_max"] == 6
    assert results["env_runners"]["num_episodes"] >= 10
