"""Runs a script several times in the processes of one `deepspeed` command, which would import torch anew for each.

deepspeed_driver.py JOBS: a JSON list of {"script", "flags", "out", "same_draws", "copy"?, "interrupt"?}. Rank 0 writes
to `out` what the run came to. With `same_draws`, which token follows depends on the episode alone, not on the rank that
has it. After two iterations NAME-half becomes a copy of the run's folder; `copy` is such a folder and the one to copy
it to. In the iteration `interrupt`, all processes of the command get what a terminal sends them at Ctrl-C; this must
be the last job.
"""

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
from deepspeed.utils import safe_get_full_grad
from torch import distributed

from dailydialog_gym import ranks

draw = torch.multinomial
step = deepspeed.DeepSpeedEngine.step
gradients: list[dict[str, torch.Tensor]] = []
interrupt: list[int] = []


def same_draw(probabilities, num_samples):
    script = sys._getframe(1).f_globals
    if script["__name__"] != "__main__":
        return draw(probabilities, num_samples)
    if script["rank"] == 0 and script["t"] == 0 and script["iteration"] in interrupt:
        os.killpg(0, signal.SIGINT)
    episodes = np.random.default_rng([script["iteration"], script["t"]]).random(
        script["args"].num_envs * script["world"]
    )
    mine = torch.from_numpy(episodes[script["rank"] :: script["world"]][script["rows"]])
    return (probabilities.double().cumsum(1) < mine[:, None]).sum(1, keepdim=True)


def recorded_step(engine):
    if engine.is_gradient_accumulation_boundary():
        named = engine.module.named_parameters()
        gradients.append({name: safe_get_full_grad(parameter).clone() for name, parameter in named})
    step(engine)


def outcome(script):
    """What all ranks say of the run."""
    run, engines = script["run"], script.get("engines", [])
    with script["gathered"](*engines) if engines else torch.no_grad():
        weights = script["agent"].policy.state_dict()
        policy = {name.removeprefix("module."): value.clone() for name, value in weights.items()}
    return {
        "rows": getattr(run, "history", None),
        "policy": policy,
        "gradients": list(gradients),
        "kl_coef": ranks.gather(script["coefficient"].value),
        "prompts": ranks.gather(script["infos"]["prompt"].tolist()),
        "partitioned": sum(p.numel() == 0 for engine in engines for p in engine.module.parameters()),
    }


def main(jobs):
    deepspeed.DeepSpeedEngine.step = recorded_step
    rank = ranks.start()[0]
    for job in jobs:
        torch.multinomial = same_draw if job["same_draws"] else draw
        if "copy" in job and rank == 0:
            shutil.copytree(*job["copy"])
        distributed.barrier()
        gradients.clear()
        interrupt[:] = [job["interrupt"]] if "interrupt" in job else []
        sys.argv = [job["script"], *job["flags"]]
        try:
            script = runpy.run_path(job["script"], run_name="__main__")
            result = outcome(script)
        except SystemExit as error:
            result = {"error": str(error)}
        if rank == 0:
            torch.save(result, job["out"])
        distributed.barrier()


def save_and_copy(save):
    def saved(self, iteration, progress):
        target = save(self, iteration, progress)
        copy = self.folder.parent.with_name(f"{self.folder.parent.name}-half")
        if iteration == 2 and ranks.share(not copy.exists()):
            if distributed.get_rank() == 0:
                shutil.copytree(self.folder.parent, copy)
            distributed.barrier()
        return target

    return saved


if __name__ == "__main__":
    from dailydialog_gym.ranked_runs import RankedCheckpoints

    RankedCheckpoints.save = save_and_copy(RankedCheckpoints.save)
    main(json.loads(Path(sys.argv[-1]).read_text()))
