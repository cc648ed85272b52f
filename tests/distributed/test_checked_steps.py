"""A step whose loss or gradient isn't finite is skipped, at all stages and precisions of DeepSpeed."""

import itertools

import pytest
import torch
from torch import nn

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'")

from dailydialog_gym.distributed.engines import CheckedSteps, engine, gathered

pytestmark = pytest.mark.usefixtures("lone_job")


def weights(engines):
    with gathered(*engines):
        return [parameter.detach().clone() for each in engines for parameter in each.module.parameters()]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("stage", "offload"), [(0, False), *itertools.product((1, 2, 3), (False, True))])
def test_what_is_not_finite_moves_nothing(stage, offload, precision):
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    config = {"zero_optimization": zero, "zero_force_ds_cpu_optimizer": False, "gradient_clipping": 1.0}
    config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2}
    if precision != "float32":
        config[precision] = {"enabled": True}
    torch.manual_seed(0)
    engines = []
    for _ in range(2):
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        engines.append(engine(module, config, [{"params": list(module.parameters()), "lr": 0.1}]))
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    steps = [CheckedSteps(each) for each in engines]
    seen = []

    def check(*numbers, loss_scale):
        seen.append(bool(torch.stack(numbers).isfinite().all()))
        assert loss_scale == 1
        return seen[-1]

    def minibatch(*spoilt):
        """Two parts; the first engine's gradient isn't finite in those named, though its loss is."""
        for part in range(2):
            outputs = [each(torch.ones(1, 4, dtype=dtype)).float().square().sum() for each in engines]
            if part in spoilt:
                outputs[0].register_hook(lambda gradient: gradient * float("nan"))
            for step, output in zip(steps, outputs, strict=True):
                step.backward_and_step(output, check)

    start = weights(engines[:1])
    for spoilt in ((0,), (1,), (0, 1)):
        other = weights(engines[1:])
        minibatch(*spoilt)
        assert all(map(torch.equal, weights(engines[:1]), start))
        assert not any(map(torch.equal, weights(engines[1:]), other))
    minibatch()
    moved = weights(engines[:1])
    assert all(new.isfinite().all() and (new != old).any() for new, old in zip(moved, start, strict=True))
    assert seen == [False, True] * 3 + [True, True]
