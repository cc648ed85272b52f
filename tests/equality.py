"""Exact comparison of what environments return, and of what checkpoints hold."""

import numpy as np
import torch


def assert_same(one, other, where: str = "returned") -> None:
    """Like `gymnasium.utils.env_checker.data_equivalence` with ``exact=True``, but the error says what differs."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, tuple | list):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        if one.dtype == object:
            assert_same(list(one), list(other), where)
        else:
            assert np.array_equal(one, other), where
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    else:
        assert one == other, where
