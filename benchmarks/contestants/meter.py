"""Time, arithmetic and memory of a training loop's phases. Imports nothing of this project: TRL may live elsewhere."""

import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

PHASES = ("rollout", "rewards", "update")


class Meter:
    """Splits an iteration into `PHASES`: whoever measures says when one begins.

    Arithmetic is that of the linear layers and the language-model head, padding included, as they are called: 2
    operations a weight and column forward, 4 more where a gradient comes back. Attention isn't counted.

    Attributes:
        iterations: of each, what `report` writes.
        hook: counts the arithmetic of every module of this process until it is removed.
    """

    def __init__(self):
        self.iterations: list[dict] = []
        self._phase = None
        self._flops = 0
        self.hook = nn.modules.module.register_module_forward_hook(self._count)

    def begin(self, phase: str | None) -> None:
        """What follows is of this phase, until the next call; of none with None."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._phase is None:
            self._seconds, self._flops_of = defaultdict(float), defaultdict(int)
        else:
            self._seconds[self._phase] += now - self._since
            self._flops_of[self._phase] += self._flops
        self._phase, self._since, self._flops = phase, now, 0

    def end(self, tokens: int, repeat: dict[str, float] | None = None) -> None:
        """End an iteration that generated some tokens; ``repeat`` scales phases of which only a part was run."""
        self.begin(None)
        repeat = repeat or {}
        self.iterations.append(
            {
                "tokens": tokens,
                "seconds": {phase: self._seconds[phase] * repeat.get(phase, 1) for phase in PHASES},
                "flops": {phase: self._flops_of[phase] * repeat.get(phase, 1) for phase in PHASES},
            }
        )

    def report(self, job: dict) -> None:
        """Write what was measured, the peak memory and the machine's matmul rate now, to ``job["result"]``."""
        dtype = getattr(torch, job["amp"] or "float32")
        result = {"iterations": self.iterations, "peak_bytes": _peak_bytes(), "matmul_flops": matmul_rate(dtype)}
        Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")

    def _count(self, module, inputs, output):
        if not isinstance(module, (nn.Linear, Conv1D)):
            return
        flops = 2 * module.weight.numel() * (output.numel() // output.shape[-1])
        self._flops += flops
        if output.requires_grad:
            output.register_hook(lambda gradient: self._count_backward(2 * flops))

    def _count_backward(self, flops):
        self._flops += flops


def read_job() -> dict:
    """The job that `ppo_speed.py` wrote for a contestant."""
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def matmul_rate(dtype: torch.dtype, repeats: int = 5) -> float:
    """Operations a second of the best of some plain products of two square matrices."""
    # A GPU reaches its rate only with larger matrices than a CPU needs
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 2048)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    products = [lambda: a @ b]
    # oneDNN may be faster than MKL in float32
    if device == "cpu" and dtype != torch.float16 and torch.backends.mkldnn.is_available():
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    best = float("inf")
    for product in products * (repeats + 1):
        start = time.perf_counter()
        product()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _peak_bytes() -> int:
    """The largest size that this process, or its memory on the GPU, ever had (Linux)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(status["VmHWM"].removesuffix(" kB")) * 1024
