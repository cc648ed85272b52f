"""Runs a script several times in one launch of the `deepspeed` command, so that torch is imported only once.

deepspeed_driver.py JOBS reads a JSON list of jobs {"script", "flags", "out", "same_draws", "copy"?, "fp16"?, "fault"?}:
    out         rank 0 writes the outcome of the run to this file
    same_draws  the tokens depend on the episode alone, not on the rank that has the episode
    copy        a folder and its copy, which is made before the run; after two iterations of a run, NAME-half is a copy
                of the run's folder
    fp16        DeepSpeed is told that the processor supports float16
    fault       for the last job only: "interrupt" sends SIGINT to all processes in the second iteration, as a terminal
                does at Ctrl-C; in the third iteration "kill rollout" kills rank 1 while it writes replies, and
                "kill save" kills rank 0 while it writes the checkpoint
"""

import gc
import json
import os
import runpy
import shutil
import signal
import sys
from pathlib import Path

import deepspeed
import numpy as np
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.comm.torch import TorchBackend
from deepspeed.utils import safe_get_full_grad
from matplotlib.figure import Figure
from torch import distributed

import dailydialog_gym.models.decoder
import dailydialog_gym.runs.run
from dailydialog_gym.distributed import ranks
from dailydialog_gym.distributed.runs import RankedCheckpoints

draw = dailydialog_gym.models.decoder.draw
step, save_engine = deepspeed.DeepSpeedEngine.step, deepspeed.DeepSpeedEngine.save_checkpoint
save, gather = RankedCheckpoints.save, TorchBackend.all_gather_into_tensor
gradients: list[dict[str, torch.Tensor]] = []
gathers: list[int] = []  # the number of all-gathers so far, at each token
gathered = 0
job: dict = {}


def counted_gather(*args, **kwargs):
    global gathered
    gathered += 1
    return gather(*args, **kwargs)


def drawn(logits, uniform, top_k):
    """`draw`, called by `Decoder.write` in the script's rollout."""
    frame = sys._getframe(1)
    decoder, batch = frame.f_locals["self"], frame.f_locals["uniform"]  # (B, T)
    while "iteration" not in frame.f_globals:
        frame = frame.f_back
    iteration, t, fault = frame.f_globals["iteration"], decoder.written, job.get("fault")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    gathers.append(gathered)
    if fault == "interrupt" and (iteration, t, rank) == (2, 0, 0):
        os.killpg(0, signal.SIGINT)
    if fault == "kill rollout" and (iteration, t, rank) == (3, 3, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if job["same_draws"]:
        episodes = np.random.default_rng([iteration, t]).random(len(batch) * world)
        uniform = torch.from_numpy(episodes[rank::world])[decoder.rows]
    return draw(logits, uniform, top_k)


def recorded_step(engine):
    if engine.is_gradient_accumulation_boundary():
        named = engine.module.named_parameters()
        gradients.append({name: safe_get_full_grad(parameter).clone() for name, parameter in named})
    step(engine)


def killed_save(engine, folder, *args, **kwargs):
    save_engine(engine, folder, *args, **kwargs)
    if job.get("fault") == "kill save" and ".000003.new" in str(folder) and distributed.get_rank() == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def save_and_copy(self, iteration, progress):
    target = save(self, iteration, progress)
    copy = self.folder.parent.with_name(f"{self.folder.parent.name}-half")
    if iteration == 2 and ranks.broadcast(not copy.exists()):
        if distributed.get_rank() == 0:
            shutil.copytree(self.folder.parent, copy)
        distributed.barrier()
    return target


def outcome(script):
    """The outcome of the run on all ranks."""
    run, engines = script["run"], script.get("engines", [])
    with script["gathered"](*engines) if engines else torch.no_grad():
        weights = script["agent"].policy.state_dict()
        policy = {name.removeprefix("module."): value.clone() for name, value in weights.items()}
    return {
        "rows": getattr(run, "history", None),
        "policy": policy,
        "gradients": list(gradients),
        "gathers": list(gathers),
        "kl_coef": ranks.all_gather(script["kl_coef"].value),
        "prompts": ranks.all_gather(script["batch"].infos["prompt"].tolist()),
        "partitioned": sum(p.numel() == 0 for engine in engines for p in engine.module.parameters()),
    }


def main(jobs):
    deepspeed.DeepSpeedEngine.step, deepspeed.DeepSpeedEngine.save_checkpoint = recorded_step, killed_save
    RankedCheckpoints.save, TorchBackend.all_gather_into_tensor = save_and_copy, counted_gather
    dailydialog_gym.models.decoder.draw = drawn
    dailydialog_gym.runs.run.plot_curves = lambda *_, **__: Figure()  # curves take a third of such a short run's time
    gc.freeze()  # DeepSpeed calls the garbage collector for each engine
    rank = ranks.start()[0]
    has_fp16 = get_accelerator().is_fp16_supported
    for each in jobs:
        job.clear()
        job.update(each)
        get_accelerator().is_fp16_supported = (lambda: True) if "fp16" in job else has_fp16
        if "copy" in job and rank == 0:
            shutil.copytree(*job["copy"])
        distributed.barrier()
        gradients.clear(), gathers.clear()
        sys.argv = [job["script"], *job["flags"]]
        try:
            script = runpy.run_path(job["script"], run_name="__main__")
            result = outcome(script)
        except (SystemExit, ValueError) as error:
            result = {"error": str(error)}
        if rank == 0:
            torch.save(result, job["out"])
        distributed.barrier()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[-1]).read_text(encoding="utf-8")))
