"""Checks of a model's files before anything is built from them: they may come from people nobody knows."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig

from dailydialog_gym.files import read_text
from dailydialog_gym.hub import refuse_pointer

MAX_MODULES = 300  # layers, experts or labels of a model whose weights have fewer tensors


def check_files(name: str, auto_class: Any = None, trust_remote_code: bool = False) -> None:
    """Refuse a model folder that would load a pickle or code of the hub, or takes hours or all memory to build.

    Args:
        name: a folder; a hub id is not checked here, because transformers itself fetches its files.
        auto_class: the class of transformers that finds the model's own by its configuration, or None for a class of
            the user's.
        trust_remote_code: as in `load_model`.

    Raises:
        ValueError: the index of the weights names other files than .safetensors files beside it; config.json names
            code of the hub as its attention or its experts; its model would be far larger than the weights; or the
            weights are a pointer of Git LFS.
        OSError, KeyError, SafetensorError: files are missing or damaged.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    files = [folder / "model.safetensors"]
    if not files[0].exists() and (index := folder / "model.safetensors.index.json").exists():
        named = sorted(set(json.loads(read_text(index))["weight_map"].values()))
        if others := [each for each in named if not re.fullmatch(r"[^/\\]+\.safetensors", each)]:
            raise ValueError(f"{index} names {others[0]!r}: expected only .safetensors files beside it")
        files = [folder / each for each in named]
    sizes = []
    for file in files:
        refuse_pointer(file)
        with safe_open(file, "pt") as opened:
            sizes += [math.prod(opened.get_slice(key).get_shape()) for key in opened.keys()]  # noqa: SIM118
    path = folder / "config.json"
    config = json.loads(read_text(path))
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object")
    _check_config(path, config, max(len(sizes), MAX_MODULES))
    if auto_class and "quantization_config" not in config:  # whose weights hold several numbers in one
        with torch.device("meta"):  # shapes only, without memory
            options = {"trust_remote_code": trust_remote_code}
            model = auto_class.from_config(AutoConfig.from_pretrained(folder, **options), **options)
        if (needed := sum(p.numel() for p in model.parameters())) > 2 * sum(sizes) + 1_000_000:
            raise ValueError(f"{path} is of a model of {needed:,} parameters, but the weights have {sum(sizes):,}")


def _check_config(path: Path, config: dict[str, Any], most: int) -> None:
    for key, value in config.items():
        for each in value.values() if isinstance(value, dict) else [value]:
            if key.endswith(("attn_implementation", "experts_implementation")) and not re.fullmatch(r"\w+", str(each)):
                raise ValueError(f"{path} names {each!r} as {key}, which is code from the hub: take the entry out")
        if isinstance(value, dict):
            _check_config(path, value, most)
        elif isinstance(value, int) and re.search("layer|expert|num_labels", key) and value > most:
            raise ValueError(f"{path} has {key} {value:,}, but the weights have far fewer tensors")
        elif isinstance(value, int) and re.match("n(um)?_", key) and value < 0:
            raise ValueError(f"{path} has {key} {value:,}, which is a number of parts")
