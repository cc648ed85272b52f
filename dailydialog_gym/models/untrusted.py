"""Checks of a model's files before anything is built from them: they may come from people nobody knows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

MAX_MODULES = 300  # layers, experts or labels of a model whose weights have fewer tensors


def check_files(name: str) -> None:
    """Refuse a model folder that would load a pickle or code of the hub, or takes hours to build.

    Args:
        name: a folder; a hub id is not checked here, because transformers itself fetches its files.

    Raises:
        ValueError: the index of the weights names other files than .safetensors files beside it; config.json names
            code of the hub as its attention or its experts; or it has more layers than the weights have tensors.
        OSError, KeyError, SafetensorError: files are missing or damaged.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    files = [folder / "model.safetensors"]
    if not files[0].exists() and (index := folder / "model.safetensors.index.json").exists():
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if others := [each for each in named if not re.fullmatch(r"[^/\\]+\.safetensors", each)]:
            raise ValueError(f"{index} names {others[0]!r}: expected only .safetensors files beside it")
        files = [folder / each for each in named]
    tensors = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            tensors += len(opened.keys())
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object")
    _check_config(path, config, max(tensors, MAX_MODULES))


def _check_config(path: Path, config: dict[str, Any], most: int) -> None:
    for key, value in config.items():
        for each in value.values() if isinstance(value, dict) else [value]:
            if key.endswith(("attn_implementation", "experts_implementation")) and not re.fullmatch(r"\w+", str(each)):
                raise ValueError(f"{path} names {each!r} as {key}, which is code from the hub: take the entry out")
        if isinstance(value, dict):
            _check_config(path, value, most)
        elif isinstance(value, int) and re.search("layer|expert|num_labels", key) and value > most:
            raise ValueError(f"{path} has {key} {value:,}, but the weights have far fewer tensors")
