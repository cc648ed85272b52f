"""Runs the real ppo_dialog.py for `ppo_speed.py`, with prompts of the benchmark's choice and its phases timed."""

import json
import resource
import runpy
import sys
from pathlib import Path

import numpy as np
import torch
from meter import Meter, read_job

import dailydialog_gym.runs
from dailydialog_gym.env.envs import DailyDialogVectorEnv
from dailydialog_gym.models import precision
from dailydialog_gym.wrappers.vector import KLPenalty, ScoreReward


def watch(meter: Meter, job: dict) -> None:
    """Have the environment's reset begin an iteration, the scorers be the rewards, and the log end it."""
    reset, log = DailyDialogVectorEnv.reset, dailydialog_gym.runs.Run.log
    num_envs, copies = job["num_envs"], job["replies_per_prompt"]

    def watched_reset(self, *, seed=None, options=None):
        meter.begin("rollout")
        start = len(meter.iterations) * num_envs
        sample_ids = np.repeat(job["sample_ids"][start : start + num_envs // copies], copies)
        return reset(self, seed=seed, options={"sample_id": sample_ids})

    def watched(add_score):
        def watched_add_score(*args):
            meter.begin("rewards")
            result = add_score(*args)
            meter.begin("update")  # or another scorer, at once
            return result

        return watched_add_score

    def watched_log(self, metrics, episodes):
        meter.end(round(float(metrics["charts/episodic_length"]) * num_envs))
        log(self, metrics, episodes)

    DailyDialogVectorEnv.reset = watched_reset
    for wrapper in (ScoreReward, KLPenalty):
        wrapper._add_score = watched(wrapper._add_score)
    dailydialog_gym.runs.Run.log = watched_log


if __name__ == "__main__":
    job = read_job()
    if job["memory_gb"]:
        resource.setrlimit(resource.RLIMIT_DATA, (int(job["memory_gb"] * 1e9),) * 2)
    meter = Meter()
    if job["compile"]:
        meter.hook.remove()  # with the hook, the compiled layers would not be faster
    watch(meter, job)
    if job["amp"]:  # the script would choose by the device
        precision.choose_amp_dtype = lambda device: getattr(torch, job["amp"])
    flags = {
        "model": job["model"],
        "dataset": job["dataset"],
        "context-size": job["context_size"],
        "intent-model": job["intent_model"],
        "num-envs": job["num_envs"],
        "total-episodes": job["num_envs"] * job["iterations"],
        "num-minibatches": job["num_minibatches"],
        "update-epochs": job["epochs"],
        "critic": job["critic"],
        "replies-per-prompt": job["replies_per_prompt"],
        "top-k": 0,  # the others draw from the whole vocabulary too
        "eval-samples": 1,
        "run-name": "speed",
    }
    sys.argv = ["ppo_dialog.py", *(str(part) for name, value in flags.items() for part in (f"--{name}", value))]
    sys.argv += [flag for name, flag in (("amp", "--use-amp"), ("compile", "--compile")) if job[name]]
    sys.argv += job["flags"]
    try:
        runpy.run_path(str(Path(__file__).parents[2] / "ppo_dialog.py"), run_name="__main__")
        meter.report(job)
    except (MemoryError, RuntimeError) as error:  # torch raises a RuntimeError
        lacks_memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
        if not (job["memory_gb"] and lacks_memory):
            raise
        failed = {"failed": f"more than {job['memory_gb']:g} GB"}
        Path(job["result"]).write_text(json.dumps(failed), encoding="utf-8")
