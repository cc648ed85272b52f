"""How fast the environments are, as a Markdown table. Run: python benchmarks/env_speed.py

Random actions, the builtin dialogues and tokenizer; resets and the decoding of finished replies are included. The
vector environments reset a row in the step that ends its reply (``SAME_STEP``), so that every step counted is a token
written. The contenders take turns, so that a busy moment of the machine slows all of them.
"""

import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread: decoding a batch would use every core

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

import dailydialog_gym

REPEATS = 7
SECONDS = 0.25  # of each repeat


def step_one(env: gym.Env, actions: list[int]) -> float:
    """Steps a second of a single environment, which goes on from where the last call left it."""
    steps, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        steps += len(actions)
    return steps / elapsed


def step_many(envs: VectorEnv, actions: np.ndarray) -> float:
    """Steps a second of a vector environment, a step of each row counted."""
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
    """What `import dailydialog_gym` takes after `import gymnasium`, in a fresh interpreter."""
    code = "import gymnasium, time; t = time.perf_counter(); import dailydialog_gym; print(time.perf_counter() - t)"
    return 1000 * float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0]}, {os.cpu_count()} cores" if names else f"{platform.processor()}, {os.cpu_count()} cores"


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
        "steps a second, 1 environment (`DailyDialogEnv()`)": lambda: step_one(bare, some),
        "steps a second, 1 environment in the wrappers of `gym.make`": lambda: step_one(one, some),
        "steps a second, 16 environments (`gym.make_vec`)": lambda: step_many(envs[16], many[16]),
        "steps a second, 256 environments (`gym.make_vec`)": lambda: step_many(envs[256], many[256]),
        "steps a second, 256 environments in Gymnasium's `SyncVectorEnv`": lambda: step_many(sync, many[256]),
        "`reset` of 256 rows, ms": lambda: reset_ms(envs[256], None),
        "`reset(seed=...)` of 256 rows, ms": lambda: reset_ms(envs[256], 1),
        "`import dailydialog_gym` over `import gymnasium`, ms": import_ms,
    }
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(REPEATS):
        for name, measure in contenders.items():
            measured[name].append(measure())

    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (gym, np))
    print(f"{machine()}; Python {platform.python_version()}, {versions}; {datetime.date.today()}; one thread")
    print(f"\n| | median of {REPEATS} | lowest to highest |\n| --- | ---: | ---: |")
    for name, values in measured.items():
        low, median, high = (
            f"{x:,.0f}" if x >= 100 else f"{x:.1f}" for x in (min(values), statistics.median(values), max(values))
        )
        print(f"| {name} | {median} | {low} to {high} |")


if __name__ == "__main__":
    main()
