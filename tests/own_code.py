"""A model folder that comes with Python code, as the hub's do."""

import json
import sys
from pathlib import Path

CODE = """
from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

Path({mark!r}).touch()


class Config(GPT2Config):
    model_type = "own"


class Model(GPT2LMHeadModel):
    config_class = Config


class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
CLASSES = {
    "config.json": {
        "AutoConfig": "own.Config",
        "AutoModelForCausalLM": "own.Model",
        "AutoModelForSequenceClassification": "own.Model",
    },
    "tokenizer_config.json": {"AutoTokenizer": [None, "own.Tokenizer"]},
}


def add_code(folder: Path, tmp_path: Path, monkeypatch, **config) -> Path:
    """Let a model and its tokenizer be of classes in a Python file of their folder, with more entries of config.json.

    Returns the file that this code writes when it runs.
    """
    mark = tmp_path / "ran"
    (folder / "own.py").write_text(CODE.format(mark=str(mark)), encoding="utf-8")
    more = {"config.json": config, "tokenizer_config.json": {"tokenizer_class": "OwnTokenizer"}}
    for name, classes in CLASSES.items():
        entries = json.loads((folder / name).read_text(encoding="utf-8")) | more[name] | {"auto_map": classes}
        (folder / name).write_text(json.dumps(entries), encoding="utf-8")
    # transformers copies the code to a folder of its own, and imports it from there
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return mark
