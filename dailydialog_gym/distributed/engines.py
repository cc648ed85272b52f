"""DeepSpeed's engines: their configuration from flags and files, their steps, and access to partitioned weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from dailydialog_gym.distributed import ranks
from dailydialog_gym.files import read_text
from dailydialog_gym.models.precision import choose_amp_dtype

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
OFFLOADS = {"offload_optimizer": 1, "offload_param": 3}  # the lowest ZeRO stage that has it


@dataclass
class DeepSpeedArgs:
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage, what the ranks partition: 0 nothing, 1 optimizer moments, 2 gradients too, 3 weights too"""
    offload_optimizer: bool = False
    """keep and update the optimizer moments in CPU memory (stages 1 to 3)"""
    offload_param: bool = False
    """keep the weights in CPU memory (stage 3)"""
    deepspeed_config: str | None = None
    """DeepSpeed's JSON file for policy and critic; its sections override these flags, --use-amp and --max-grad-norm"""
    ref_deepspeed_config: str | None = None
    """DeepSpeed's JSON file for the reference model"""
    intent_deepspeed_config: str | None = None
    """DeepSpeed's JSON file for the intent model"""
    reward_deepspeed_config: str | None = None
    """DeepSpeed's JSON file for the reward models"""


def refuse_flags(args: Any) -> None:
    """Raise ValueError if a flag of ``ppo_dialog.py`` that does not work with DeepSpeed is given."""
    for flag, instead in {"compile": "", "cuda_graphs": "", "low_memory": ", and use --zero-stage 3"}.items():
        if getattr(args, flag):
            raise ValueError(f"--{flag.replace('_', '-')} does not work with DeepSpeed: leave it out{instead}")


def training_config(args: Any, ranks: int) -> dict[str, Any]:
    """DeepSpeed's configuration for policy and critic: from the flags, overridden by ``args.deepspeed_config``.

    Args:
        args: the script's arguments, with the user's ``num_envs`` and ``num_minibatches`` for all ranks together.
        ranks: the number of ranks.

    Raises:
        ValueError: the file can't be read, contradicts the flags, or needs a precision that the device doesn't have.
    """
    name = args.deepspeed_config or "DeepSpeed"
    given = _read(args.deepspeed_config)
    if "scheduler" in given:
        raise ValueError(f"{name}: the script itself lowers the learning rate (--anneal-lr): take 'scheduler' out")
    # DeepSpeed's default is a buffer of 5e8 gradients for each engine, four times GPT-2 small; OpenRL uses 5e7 too
    zero = {"stage": args.zero_stage, "reduce_bucket_size": 50_000_000}
    zero |= {offload: {"device": "cpu"} for offload in OFFLOADS if getattr(args, offload)}
    config = {
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW, where DeepSpeed would compile its own
        "gradient_clipping": args.max_grad_norm,
        **_precision(args.use_amp, given, name),
        **given,
    }
    zero = config["zero_optimization"]
    for offload, least in OFFLOADS.items():
        if offload in zero and zero.get("stage", 0) < least:
            raise ValueError(f"{name}: {offload} is for ZeRO stage {least} or more, not {zero.get('stage', 0)}")
    return config | _batch(args, ranks, given, name)


def evaluation_config(path: str | None, training: dict[str, Any], name: str) -> dict[str, Any]:
    """DeepSpeed's configuration for a model that isn't trained: the reference, the intent model or a reward model.

    By default each rank has a copy of the model in the policy's precision; the sections of the file override that.

    Args:
        path: DeepSpeed's JSON file, or None.
        training: the configuration of `training_config`.
        name: the model's name in error messages.

    Raises:
        ValueError: the file can't be read, or has a ZeRO stage that makes sense in training only.
    """
    given = _read(path)
    precision = {key: training[key] for key in ("bf16", "fp16") if key in training and not {"bf16", "fp16"} & {*given}}
    config: dict[str, Any] = {"zero_optimization": {"stage": 0}} | precision | given
    stage = config["zero_optimization"].get("stage", 0)
    if stage not in (0, 3):
        raise ValueError(f"{path}: {name} isn't trained, so its ZeRO stage is 0 or 3, not {stage}")
    # DeepSpeed wants a batch size, which has no meaning without training
    return {key: value for key, value in config.items() if key not in BATCH_KEYS} | {BATCH_KEYS[1]: 1}


def engine(module: torch.nn.Module, config: dict[str, Any], groups: Sequence[dict[str, Any]] = ()):
    """A DeepSpeed engine of a module, which is changed in place.

    The optimizer is the plain script's AdamW, unless the configuration has an ``optimizer`` section.

    Args:
        module: the model.
        config: the configuration of `training_config` or `evaluation_config`.
        groups: the optimizer's parameter groups; none for a model that isn't trained.

    Raises:
        ValueError: DeepSpeed refuses the configuration; the message quotes DeepSpeed's reason.
    """
    optimizer = None
    if groups and "optimizer" not in config:
        optimizer = torch.optim.AdamW(groups, eps=1e-5, weight_decay=0.0, fused=True)
    try:
        return deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            model_parameters=None if optimizer else list(groups) or None,
            config=config,
        )[0]
    except (AssertionError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"DeepSpeed refuses its configuration {json.dumps(config)}: {error}") from error


class CheckedSteps:
    """Optimizer steps that are skipped on all ranks if the loss or a gradient of any rank isn't finite.

    DeepSpeed alone checks each gradient partition by itself, and at stage 0 in float32 it checks none.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine):
        self._engine, self._finite = engine, True
        self._norms: list[torch.Tensor] = []  # of the gradients since the last step
        for parameter in engine.module.parameters():
            parameter.register_hook(self._record_norm)
        # Every ZeRO stage calls the basic optimizer's step, and then empties its buffers whatever that has done
        engine.basic_optimizer.step = partial(self._step_if_finite, engine.basic_optimizer.step)

    def backward_and_step(self, loss: torch.Tensor, check: Callable[..., bool]) -> None:
        """Accumulate the gradients of a loss; at the end of a minibatch, take the optimizer's step if it is finite.

        Args:
            loss: this rank's loss.
            check: decides from the mean loss and gradient norm of the ranks whether to take the step, see
                `Run.check_step`.
        """
        self._engine.backward(loss)
        if self._engine.is_gradient_accumulation_boundary():
            numbers = ranks.all_reduce_mean(torch.stack([loss.detach().float(), sum(self._norms)]))
            scale = self._engine.optimizer.loss_scale if self._engine.fp16_enabled() else 1
            self._finite = check(*numbers, loss_scale=scale)
            self._norms.clear()
        self._engine.step()

    def _record_norm(self, gradient: torch.Tensor) -> None:
        self._norms.append(torch.linalg.vector_norm(gradient, dtype=torch.float32))

    def _step_if_finite(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if self._finite:
            step(*args, **kwargs)


@contextmanager
def gathered(*modules: torch.nn.Module) -> Iterator[None]:
    """Within this context each rank has the complete weights of the modules, and may call them independently.

    All ranks enter it together. Only ZeRO stage 3 partitions weights; at the other stages nothing changes.
    """
    parts = [part for module in modules for part in module.modules()]
    hooks = [hooks for part in parts for hooks in (part._forward_pre_hooks, part._forward_hooks)]
    with deepspeed.zero.GatheredParameters([weight for module in modules for weight in module.parameters()]):
        # DeepSpeed's hooks would partition the weights again after each layer, and all-gather them before each forward
        removed = [
            {key: hook for key, hook in each.items() if hook.__module__.startswith("deepspeed")} for each in hooks
        ]
        for each, taken in zip(hooks, removed, strict=True):
            for key in taken:
                del each[key]
        yield
        for each, taken in zip(hooks, removed, strict=True):
            kept = dict(each)
            each.clear()
            each.update(taken | kept)


def _read(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        config = json.loads(read_text(Path(path)))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read DeepSpeed's configuration {path}: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, as in https://www.deepspeed.ai/docs/config-json")
    return config


def _precision(use_amp: bool, given: dict[str, Any], name: str) -> dict[str, Any]:
    accelerator = get_accelerator()
    if given.get("fp16", {}).get("enabled") and not accelerator.is_fp16_supported():
        raise ValueError(f'{name}: fp16 doesn\'t work on {accelerator.device_name()}: set "bf16": {{"enabled": true}}')
    if not use_amp or any(given.get(key, {}).get("enabled") for key in ("bf16", "fp16")):
        return {}
    # DeepSpeed's own question, is_bf16_supported, also says yes for GPUs that only emulate bfloat16
    bf16 = choose_amp_dtype(torch.device(accelerator.device_name())) == torch.bfloat16
    return {"bf16" if bf16 else "fp16": {"enabled": True}}


def _batch(args: Any, ranks: int, given: dict[str, Any], name: str) -> dict[str, int]:
    """DeepSpeed's three batch sizes: episodes in a step of all ranks, in a forward of one rank, and forwards a step."""
    batch, micro, steps = (given.get(key) for key in BATCH_KEYS)
    minibatch = args.num_envs / args.num_minibatches
    if steps is None:
        steps = args.gradient_accumulation_steps
        if steps == 1 and batch is not None and micro is not None:  # the flag was not given
            steps = max(batch // (micro * ranks), 1)
    if micro is None:
        if batch is None:  # the script's minibatches may differ in size, so these are approximate
            micro = max(round(minibatch / (steps * ranks)), 1)
            return dict(zip(BATCH_KEYS, (micro * steps * ranks, micro, steps), strict=True))
        micro = batch / (steps * ranks)
    elif batch is None:
        batch = micro * steps * ranks
    if not batch == micro * steps * ranks == minibatch:
        raise ValueError(
            f"{name}: a step's batch is train_batch_size {batch} = train_micro_batch_size_per_gpu {micro:g} * "
            f"gradient_accumulation_steps {steps} * ranks {ranks} = {micro * steps * ranks:g}, and must be the "
            f"script's minibatch, num_envs {args.num_envs} / num_minibatches {args.num_minibatches} = {minibatch:g}"
        )
    return dict(zip(BATCH_KEYS, (int(batch), int(micro), steps), strict=True))
