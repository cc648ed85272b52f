"""How fast the environments are, as a Markdown table: python benchmarks/env_speed.py

Actions are random, on the builtin dialogues and tokenizer. Resets and the decoding of finished replies are included.
The vector environments reset a row in the step in which its reply ends (``SAME_STEP``), so that every step writes a
token. The contenders take turns, so that other work of the machine slows down all of them.
"""

import os
import statistics
import subprocess
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # decode with one thread, and not with one per core

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from machine import processor, versions

import dailydialog_gym

REPEATS = 7
SECONDS = 0.25  # duration of each repeat


def step_one(env: gym.Env, actions: list[int]) -> float:
    """Steps per second of a single environment, which continues where the last call stopped."""
    steps, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        steps += len(actions)
    return steps / elapsed


def step_many(envs: VectorEnv, actions: np.ndarray) -> float:
    """Steps per second of a vector environment, summed over its rows."""
    steps, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS:
        for row in actions:
            envs.step(row)
        steps += actions.size
    return steps / elapsed


def reset_ms(envs: VectorEnv, seed: int | None) -> float:
    start = time.perf_counter()
    envs.reset(seed=seed)
    return 1000 * (time.perf_counter() - start)


def import_ms() -> float:
    """The time of `import dailydialog_gym` after `import gymnasium`, in a new interpreter."""
    code = "import gymnasium, time; t = time.perf_counter(); import dailydialog_gym; print(time.perf_counter() - t)"
    return 1000 * float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


def main() -> None:
    rng = np.random.default_rng(0)
    same_step = AutoresetMode.SAME_STEP
    bare, one = dailydialog_gym.DailyDialogEnv(), gym.make("DailyDialog-v0")
    envs = {n: gym.make_vec("DailyDialog-v0", n, autoreset_mode=same_step) for n in (16, 256)}
    sync = gym.make_vec("DailyDialog-v0", 256, vectorization_mode="sync", vector_kwargs={"autoreset_mode": same_step})
    vocab_size = one.action_space.n
    some = rng.integers(vocab_size, size=2000).tolist()
    many = {n: rng.integers(vocab_size, size=(40, n)) for n in envs}
    for env in (bare, one, sync, *envs.values()):
        env.reset(seed=0)

    contenders = {
        "steps per second, 1 environment (`DailyDialogEnv()`)": lambda: step_one(bare, some),
        "steps per second, 1 environment in the wrappers of `gym.make`": lambda: step_one(one, some),
        "steps per second, 16 environments (`gym.make_vec`)": lambda: step_many(envs[16], many[16]),
        "steps per second, 256 environments (`gym.make_vec`)": lambda: step_many(envs[256], many[256]),
        "steps per second, 256 environments in Gymnasium's `SyncVectorEnv`": lambda: step_many(sync, many[256]),
        "`reset` of 256 rows, ms": lambda: reset_ms(envs[256], None),
        "`reset(seed=...)` of 256 rows, ms": lambda: reset_ms(envs[256], 1),
        "`import dailydialog_gym` over `import gymnasium`, ms": import_ms,
    }
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(REPEATS):
        for name, measure in contenders.items():
            measured[name].append(measure())

    print(f"{processor()}, one thread; {versions('gymnasium', 'numpy')}")
    print(f"\n| | median of {REPEATS} | lowest to highest |\n| --- | ---: | ---: |")
    for name, values in measured.items():
        low, median, high = (
            f"{x:,.0f}" if x >= 100 else f"{x:.1f}" for x in (min(values), statistics.median(values), max(values))
        )
        print(f"| {name} | {median} | {low} to {high} |")


if __name__ == "__main__":
    main()
