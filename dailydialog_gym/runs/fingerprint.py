"""What a run's result depends on, so that a run is not resumed with something else by mistake."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from dailydialog_gym import __version__
from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.files import checksum
from dailydialog_gym.rewards.model import parse_reward_model
from dailydialog_gym.runs.flags import CHANGEABLE

# The files of a model folder that are read: configuration, weights, tokenizer, and code of its own
_READ = ["config.json", "*.safetensors", "*.index.json", "pytorch_model*.bin", "*.py", "tokenizer*", "vocab*"]
_READ += ["merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json", "chat_template*"]
# Flags without an influence on the result, and those whose files are compared instead of their names
_OTHER_FLAGS = {*CHANGEABLE, "run_name", "track", "wandb_project_name", "wandb_entity"}
_OTHER_FLAGS |= {"dataset", "model", "intent_model", "reward_model"}
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "nltk", "gymnasium")


def fingerprint(args: Any) -> dict[str, Any]:
    """SHA-256 of the dataset's rows and of the models' files, the flags, package versions, and the number of threads.

    Args:
        args: the script's arguments, a dataclass with ``dataset``, ``test_share``, ``eval_split``, ``model``,
            ``intent_model`` and ``reward_model``.
    """
    rewards = {parse_reward_model(text)[0] for text in args.reward_model}
    return {
        "dataset": {f"{split} split": _rows(args, split) for split in ("train", args.eval_split)},
        "model": model_files(args.model, "policy"),
        "intent model": model_files(args.intent_model, "intent"),
        "reward model": {f"{name}/{file}": sha for name in rewards for file, sha in model_files(name).items()},
        "flag": {key: json.dumps(value) for key, value in asdict(args).items() if key not in _OTHER_FLAGS},
        "versions": {"dailydialog-gym": __version__, **{package: version(package) for package in _PACKAGES}},
        "threads": torch.get_num_threads(),
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What differs between two fingerprints, in words.

    Returns: what makes another result, and what may change its last digits: versions and the number of threads.
    """
    severe, slight = [], []
    for name in ("dataset", "model", "intent model", "reward model", "flag"):
        if name not in before:
            slight.append(f"perhaps the {name}s, which an older version did not record")
            continue
        differing = [key for key in sorted(before[name] | now[name]) if before[name].get(key) != now[name].get(key)]
        if name == "flag":
            new = [key for key in differing if key not in before[name]]
            slight += [f"perhaps the flag {key}, which an older version did not have" for key in new]
            differing = [key for key in differing if key not in new]
        severe += [f"the flag {key}" if name == "flag" else f"the {name}'s {key}" for key in differing]
    for package, new in now["versions"].items():
        if (old := before["versions"].get(package)) != new:
            slight.append(f"{package} {new} instead of {old}")
    if before["threads"] != now["threads"]:
        slight.append(f"{now['threads']} threads instead of {before['threads']}")
    return severe, slight


def _rows(args: Any, split: str) -> str:
    dialogues = load_dialogues(args.dataset, split, False, args.test_share)  # as `load_samples` does, so from its cache
    return digest(dialogues)


def digest(value: Any) -> str:
    """The SHA-256 of a value of plain Python types, by its `repr`."""
    return hashlib.sha256(repr(value).encode()).hexdigest()


def model_files(model: str, embedded: str = "") -> dict[str, str]:
    """The SHA-256 of each file of a model that is read, by name.

    Args:
        model: a folder, a hub id that has been loaded before, or ``"builtin"``.
        embedded: the folder of the embedded model that ``"builtin"`` names.
    """
    folder = ASSETS / embedded if embedded and model == "builtin" else Path(model)
    if not folder.is_dir():  # a hub id, which has been loaded before, so its files are in the cache
        folder = Path(cached_file(model, "config.json", local_files_only=True)).parent
    paths = sorted({path for pattern in _READ for path in folder.glob(pattern) if path.is_file()})
    return {path.name: checksum(path) for path in paths}
