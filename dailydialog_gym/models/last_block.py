"""The last block's feed-forward part and the head, for no more columns than are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from dailydialog_gym.models.packing import Packed


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks (layers) of a transformers model; an empty list for other models."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


@contextmanager
def only_tail_is_read(model: nn.Module, tail: int) -> Iterator[None]:
    """Within this context, only the last ``tail`` columns of a transformers model's output are valid.

    Their values and gradients are unchanged, because after the last attention no column depends on another. For the
    other columns, which are most of a packed row, the last block skips its ``mlp``, more than half of its work. All
    columns are computed if the block has no ``mlp`` (OPT), is compiled, or is run several times (HRM, whose blocks are
    fewer than its layers).
    """
    blocks = blocks_of(model)
    once = blocks and len(blocks) == model.config.num_hidden_layers
    mlp = getattr(blocks[-1], "mlp", None) if once and not hasattr(blocks[-1], "compiled") else None
    if mlp is None:
        yield
        return
    columns = 0

    def leave_out(_module, inputs):
        nonlocal columns
        columns = inputs[0].shape[1]
        return tuple(states[:, -tail:].contiguous() for states in inputs)

    def put_back(_module, _inputs, output):
        states, *others = output if isinstance(output, tuple) else (output,)  # of experts, with who was chosen
        states = functional.pad(states, (0, 0, columns - tail, 0))
        return (states, *others) if others else states

    hooks = mlp.register_forward_pre_hook(leave_out), mlp.register_forward_hook(put_back)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def head_on_predicting(model: PreTrainedModel, packed: Packed) -> Iterator[None]:
    """Within this context, a model's logits for packed rows are ``(1, N, vocabulary)``, those of the reply tokens.

    The head computes only these, which avoids the memory of ``(B, R, vocabulary)``.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _module, inputs: packed.predicting(inputs[0])[None])
    try:
        yield
    finally:
        hook.remove()
