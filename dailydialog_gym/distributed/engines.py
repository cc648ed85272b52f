"""DeepSpeed's engines: their configuration, by flags or files, and the whole weights where ZeRO-3 has cut them up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from dailydialog_gym.distributed import ranks

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
OFFLOADS = {"offload_optimizer": 1, "offload_param": 3}  # the least stage that has it; at others it does nothing


@dataclass
class DeepSpeedArgs:
    zero_stage: Literal[0, 1, 2, 3] = 2
    """what the ranks share out: nothing, moments, gradients too, weights too"""
    offload_optimizer: bool = False
    """keep and update the moments in the processor's memory (stage 1 to 3)"""
    offload_param: bool = False
    """keep the weights in the processor's memory (stage 3)"""
    gradient_accumulation_steps: int | None = None
    """parts of a minibatch that go through the model one after the other; by default what the file says, or 1"""
    deepspeed_config: str | None = None
    """DeepSpeed's JSON for policy and critic; its sections win over these flags, --use-amp and --max-grad-norm"""
    ref_deepspeed_config: str | None = None
    """DeepSpeed's JSON for the reference model"""
    intent_deepspeed_config: str | None = None
    """DeepSpeed's JSON for the intent model"""


def training_config(args: Any, ranks: int) -> dict[str, Any]:
    """What policy and critic train with: the flags, and over them the sections of ``args.deepspeed_config``.

    Args:
        args: the script's arguments; ``num_envs`` and ``num_minibatches`` as the user gave them.
        ranks: how many share the work.

    Raises:
        SystemExit: the file can't be read, contradicts the flags, or wants what the device hasn't got.
    """
    name = args.deepspeed_config or "DeepSpeed"
    given = _read(args.deepspeed_config)
    if "scheduler" in given:
        raise SystemExit(f"{name}: the script lowers the learning rate (--anneal-lr): take 'scheduler' out")
    # DeepSpeed's own default is a buffer of 5e8 gradients for each engine, four times GPT-2; OpenRL's file has 5e7 too
    zero = {"stage": args.zero_stage, "reduce_bucket_size": 50_000_000}
    zero |= {offload: {"device": "cpu"} for offload in OFFLOADS if getattr(args, offload)}
    config = {
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW also where DeepSpeed would compile its own
        "gradient_clipping": args.max_grad_norm,
        **_precision(args.use_amp, given, name),
        **given,
    }
    zero = config["zero_optimization"]
    for offload, least in OFFLOADS.items():
        if offload in zero and zero.get("stage", 0) < least:
            raise SystemExit(f"{name}: {offload} is for ZeRO stage {least} or more, not {zero.get('stage', 0)}")
    return config | _batch(args, ranks, given, name)


def evaluation_config(path: str | None, training: dict[str, Any], name: str) -> dict[str, Any]:
    """What the reference or the intent model runs with: one copy a rank in the policy's precision, or the file's way.

    Raises:
        SystemExit: the file can't be read, or has a stage that is for training.
    """
    given = _read(path)
    precision = {key: training[key] for key in ("bf16", "fp16") if key in training and not {"bf16", "fp16"} & {*given}}
    config = {"zero_optimization": {"stage": 0}, **precision, **given}
    stage = config["zero_optimization"].get("stage", 0)
    if stage not in (0, 3):
        raise SystemExit(f"{path}: {name} isn't trained, so its ZeRO stage is 0 or 3 (weights cut up), not {stage}")
    # Batches mean nothing without training
    return {key: value for key, value in config.items() if key not in BATCH_KEYS} | {BATCH_KEYS[1]: 1}


def engine(module: torch.nn.Module, config: dict[str, Any], groups: Sequence[dict[str, Any]] = ()):
    """A DeepSpeed engine of a module, which is changed in place; it trains where there are groups of parameters.

    The optimizer is the plain script's AdamW, unless the configuration has an ``optimizer`` of DeepSpeed's own.

    Raises:
        SystemExit: DeepSpeed refuses the configuration; the message is its own.
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
        raise SystemExit(f"DeepSpeed refuses its configuration {json.dumps(config)}: {error}") from error


class SoundSteps:
    """Steps that all ranks take, or none. DeepSpeed looks at each gradient alone, at stage 0 in float32 at none."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine):
        self._engine, self._sound = engine, True
        self._norms: list[torch.Tensor] = []  # of the gradients since the last step
        for parameter in engine.module.parameters():
            parameter.register_hook(self._watch)
        # The one thing that every stage calls and that leaves its buffers as a step does
        engine.basic_optimizer.step = partial(self._optimize, engine.basic_optimizer.step)

    def take(self, loss: torch.Tensor, check: Callable[..., bool]) -> None:
        """Add to the gradients, and where the minibatch is whole, let the engine step.

        Args:
            loss: of this rank.
            check: `Run.check_step` for this engine.
        """
        self._engine.backward(loss)
        if self._engine.is_gradient_accumulation_boundary():
            numbers = ranks.mean(torch.stack([loss.detach().float(), sum(self._norms)]))
            scale = self._engine.optimizer.loss_scale if self._engine.fp16_enabled() else 1
            self._sound = check(*numbers, loss_scale=scale)
            self._norms.clear()
        self._engine.step()

    def _watch(self, gradient: torch.Tensor) -> None:
        self._norms.append(torch.linalg.vector_norm(gradient, dtype=torch.float32))

    def _optimize(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if self._sound:
            step(*args, **kwargs)


@contextmanager
def _whole(module: torch.nn.Module) -> Iterator[None]:
    hooks = [hooks for each in module.modules() for hooks in (each._forward_pre_hooks, each._forward_hooks)]
    with deepspeed.zero.GatheredParameters(module.parameters()):
        # DeepSpeed's hooks would cut the weights up again after each layer, and ask all ranks before each forward
        theirs = [
            {key: hook for key, hook in each.items() if hook.__module__.startswith("deepspeed")} for each in hooks
        ]
        for each, taken in zip(hooks, theirs, strict=True):
            for key in taken:
                del each[key]
        yield
        for each, taken in zip(hooks, theirs, strict=True):
            kept = dict(each)
            each.clear()
            each.update(taken | kept)


def gathered(*engines: deepspeed.DeepSpeedEngine) -> ExitStack:
    """Whole weights on all ranks until the result is closed; each may call the modules then without the others."""
    stack = ExitStack()
    for each in engines:
        if each.zero_optimization_stage() == 3:
            stack.enter_context(_whole(each.module))
    return stack


def _read(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        config = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"cannot read DeepSpeed's configuration {path}: {error}") from error
    if not isinstance(config, dict):
        raise SystemExit(f"{path}: expected a JSON object, as in https://www.deepspeed.ai/docs/config-json")
    return config


def _precision(use_amp: bool, given: dict[str, Any], name: str) -> dict[str, Any]:
    accelerator = get_accelerator()
    if given.get("fp16", {}).get("enabled") and not accelerator.is_fp16_supported():
        raise SystemExit(f'{name}: fp16 doesn\'t work on {accelerator.device_name()}: set "bf16": {{"enabled": true}}')
    if not use_amp or any(given.get(key, {}).get("enabled") for key in ("bf16", "fp16")):
        return {}
    return {"bf16" if accelerator.is_bf16_supported() else "fp16": {"enabled": True}}


def _batch(args: Any, ranks: int, given: dict[str, Any], name: str) -> dict[str, int]:
    """DeepSpeed's three batch sizes, which count episodes of all ranks, of a rank's forward, and forwards a step."""
    batch, micro, steps = (given.get(key) for key in BATCH_KEYS)
    minibatch = args.num_envs / args.num_minibatches
    if steps is None:
        whole = batch is not None and micro is not None
        steps = args.gradient_accumulation_steps or (max(batch // (micro * ranks), 1) if whole else 1)
    if batch is None and micro is None:  # minibatches need not be of one size
        micro = max(round(minibatch / (steps * ranks)), 1)
        return dict(zip(BATCH_KEYS, (micro * steps * ranks, micro, steps), strict=True))
    micro = batch / (steps * ranks) if micro is None else micro
    batch = micro * steps * ranks if batch is None else batch
    if not batch == micro * steps * ranks == minibatch:
        raise SystemExit(
            f"{name}: a step's batch is train_batch_size {batch} = train_micro_batch_size_per_gpu {micro:g} * "
            f"gradient_accumulation_steps {steps} * ranks {ranks} = {micro * steps * ranks:g}, and must be the "
            f"script's minibatch, num_envs {args.num_envs} / num_minibatches {args.num_minibatches} = {minibatch:g}"
        )
    return dict(zip(BATCH_KEYS, (int(batch), int(micro), steps), strict=True))
