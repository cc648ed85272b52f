"""Model folders that would run code, read pickles, or never finish loading, are refused in a moment."""

import json
import os
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch
from own_code import add_code
from safetensors.torch import load_file, save_file

from dailydialog_gym.agent import save_agent
from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.env.tokenizer import load_tokenizer
from dailydialog_gym.models.loading import load_classifier, load_model
from dailydialog_gym.rewards import IntentMatch, RewardModel

LOADED = []


class Bomb:
    def __reduce__(self):
        return LOADED.append, (1,)


def configure(**entries):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | entries), encoding="utf-8")

    return change


def write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def index(name: str):
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "kept.safetensors")
        torch.save({"a": torch.zeros(1)}, folder / "model.bin")
        (folder / "bomb.bin").write_bytes(pickle.dumps(Bomb()))
        weights = {"weight_map": {"a": "kept.safetensors", "b": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(weights), encoding="utf-8")

    return change


def damage(tensor: str, value: float):
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights[tensor].view(-1)[-1] = value
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return change


def put(name: str, make):
    """Something else in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


BAD = {
    "a pickle": (index("bomb.bin"), "index.json names 'bomb.bin'"),
    "weights in a pickle": (index("model.bin"), "index.json names 'model.bin'"),
    "weights elsewhere": (index("../x.safetensors"), "index.json names '../x.safetensors'"),
    "absolute weights": (index("/x.safetensors"), "index.json names '/x.safetensors'"),
    "a kernel": (configure(attn_implementation="kernels-community/flash-attn"), "which is code from the hub"),
    "an inner kernel": (configure(_attn_implementation="some/kernel:name"), "names 'some/kernel:name'"),
    "a kernel of a part": (configure(text_config={"attn_implementation": "some/kernel"}), "names 'some/kernel'"),
    "kernels of parts": (configure(attn_implementation={"": "some/kernel"}), "names 'some/kernel'"),
    "experts of the hub": (configure(experts_implementation="some/experts"), "names 'some/experts'"),
    "a million layers": (configure(n_layer=10**6), "n_layer 1,000,000, but the weights have far fewer tensors"),
    "layers in a part": (configure(text_config={"num_hidden_layers": 10**9}), "num_hidden_layers 1,000,000,000"),
    "a thousand layers": (configure(n_layer=1000), "n_layer 1,000"),
    "ten million labels": (configure(num_labels=10**7), "num_labels 10,000,000"),
    "a wide model": (configure(n_embd=10**9), ""),
    "2 GB of weights": (configure(n_layer=1, n_inner=16 * 10**6), "of a model of 528,"),
    "a large vocabulary": (configure(vocab_size=10**12), ""),
    "many positions": (configure(n_positions=10**12), ""),
    "a number for a type": (configure(dtype=2**40), ""),
    "a large number for a type": (configure(dtype=1e308), ""),
    "a word for a number": (configure(n_layer="many"), "n_layer"),
    "minus one layers": (configure(n_layer=-1), "has n_layer -1, which is a number of parts"),
    "no heads": (configure(n_head=0), "by zero"),
    "a deep configuration": (write("config.json", "[" * 100_000), ""),
    "a package that is not there": (
        configure(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "requires bitsandbytes",
    ),
    "a pointer of Git LFS": (
        write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n"),
        "model.safetensors is a pointer of Git LFS, not the data itself: run git lfs pull",
    ),
    "NaN": (damage("transformer.h.0.attn.c_attn.weight", float("nan")), "h.0.attn.c_attn.weight are not finite"),
    "infinity": (damage("transformer.ln_f.bias", float("-inf")), "ln_f.bias are not finite"),
    "a folder for a configuration": (put("config.json", Path.mkdir), ""),
    "a folder for weights": (put("model.safetensors", Path.mkdir), ""),
    "a list": (lambda folder: (folder / "config.json").write_text("[]", encoding="utf-8"), "expected a JSON object"),
}


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_folder_is_refused_soon(folder, kind):
    change, message = BAD[kind]
    change(folder)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"^cannot load model") as error:
        load_model(str(folder))
    assert message in str(error.value)
    assert time.perf_counter() - start < 5  # a million layers would take hours
    assert not LOADED


def test_a_bad_classifier_too(tmp_path):
    BAD["an infinite head"] = (damage("classifier.weight", float("inf")), "")
    for kind in ("a pickle", "a kernel", "ten million labels", "an infinite head"):
        folder = Path(shutil.copytree(ASSETS / "intent", tmp_path / kind))
        BAD[kind][0](folder)
        with pytest.raises(ValueError, match=r"^cannot load intent classifier"):
            load_classifier(str(folder))
    assert not LOADED


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_what_is_no_file_is_not_read(folder, name, make):
    """Reading the pipe would wait for ever, and the device has no end."""
    put(name, make)(folder)
    for load in (load_model, load_tokenizer, load_classifier):
        with pytest.raises(ValueError, match=f"{name} is a pipe, a socket or a device: expected a file"):
            load(str(folder))


@pytest.mark.parametrize("text", ["{}", "[" * 100_000, "no JSON", '{"added_tokens": 5}'])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_one_sentence(tmp_path, name, text):
    for kind, load in {"policy": load_tokenizer, "intent": load_classifier}.items():
        folder = Path(shutil.copytree(ASSETS / kind, tmp_path / kind))
        write(name, text)(folder)
        try:
            load(str(folder))
        except ValueError as error:
            assert str(error).startswith(("cannot load ", "tokenizer ")) and str(folder) in str(error)
        else:
            assert name == "tokenizer_config.json"  # whose entries have defaults


def test_a_good_model_in_several_files_loads(tmp_path):
    model = load_model("builtin")
    model.save_pretrained(tmp_path / "shards", max_shard_size="2MB")
    assert len([*(tmp_path / "shards").glob("*.safetensors")]) > 2
    start = time.perf_counter()
    again = load_model(str(tmp_path / "shards"))
    assert time.perf_counter() - start < 10
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_plain_names_of_attention_are_allowed(folder):
    configure(attn_implementation="eager")(folder)
    assert load_model(str(folder)).config._attn_implementation == "eager"


CODE = {
    "an architecture of transformers": {},
    "an architecture of its own": {"model_type": "own"},
    "quantised weights": {"model_type": "own", "quantization_config": {"quant_method": "bitsandbytes"}},
}
LOADS = {
    "model": ("policy", load_model),
    "tokenizer": ("policy", load_tokenizer),
    "intent classifier": ("intent", IntentMatch),
    "reward model": ("intent", lambda folder: RewardModel(folder, "question")),
}


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("what", LOADS)
def test_python_code_in_a_folder_never_runs(tmp_path, monkeypatch, what, code):
    """transformers asks on the terminal whether it should run where nobody has said that it must not."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    assets, load = LOADS[what]
    folder = Path(shutil.copytree(ASSETS / assets, tmp_path / "model"))
    mark = add_code(folder, tmp_path, monkeypatch, **CODE[code])
    if code == "an architecture of transformers":
        load(str(folder))
    else:
        cure = f"^cannot load {what} '{folder}'.*needs Python code that comes with it.*chat_app.py --trust-remote-code"
        with pytest.raises(ValueError, match=cure):
            load(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("code", CODE)
def test_python_code_of_a_tokenizer_never_runs_when_an_agent_is_saved(folder, tmp_path, monkeypatch, code):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    model, mark = load_model(str(folder)), add_code(folder, tmp_path, monkeypatch, **CODE[code])
    if "model_type" in CODE[code]:
        with pytest.raises(ValueError, match=r"^cannot save tokenizer .*needs Python code that comes with it"):
            save_agent(model, str(folder), tmp_path / "agent")
    else:
        save_agent(model, str(folder), tmp_path / "agent")
    assert not mark.exists()


def test_python_code_in_a_folder_runs_where_it_is_trusted(folder, tmp_path, monkeypatch):
    """So the test above would notice it."""
    mark = add_code(folder, tmp_path, monkeypatch, model_type="own")
    load_tokenizer(str(folder), trust_remote_code=True)
    assert mark.exists()
    mark.unlink()
    assert type(load_model(str(folder), trust_remote_code=True)).__name__ == "Model"
