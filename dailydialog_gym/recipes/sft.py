"""Train the embedded policy: a small GPT-2 on DailyDialog, with a byte-level BPE tokenizer of its own.

    python -m dailydialog_gym.recipes.sft --dataset PATH_TO_DAILYDIALOG --out sft

The recipe trains on the train split, stops early by the loss on the validation split, and never reads the test split.
`OUT` becomes a Hugging Face folder (float16 safetensors and tokenizer), with the training curve in ``metrics.jsonl``.
After a kill, the same command resumes from the last finished epoch. ``--pretraining`` adds epochs on other dialogues at
the beginning; ``--start`` begins with the weights of a model that this recipe made before, to which it can add layers.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from dailydialog_gym.env.dialogues import Dialogue, load_dialogues
from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.errors import run_script
from dailydialog_gym.recipes.training import (
    Training,
    TrainingArgs,
    check_flags,
    group_by_length,
    pad,
    read_unlabelled,
    train_bpe,
)


@dataclass
class Args(TrainingArgs):
    start: Path | None = None
    """a folder that this recipe made: begin with its tokenizer and weights; `layers` may be larger than there"""
    pretraining: Path | None = None
    """a .jsonl or .jsonl.gz file of `{"dialog": [...]}` in ordinary spacing, to train on before the dataset"""
    pretraining_epochs: int = 1
    """passes over that file"""
    vocab_size: int = 4096
    """tokens of the byte-level BPE, special tokens included"""
    layers: int = 4
    """transformer blocks"""
    width: int = 256
    """hidden size; each attention head has 64 dimensions"""
    context: int = 256
    """positions of the model, and the longest training window in tokens"""
    dropout: float = 0.1
    """dropout of embeddings and residuals; attention has none, which its fused kernel needs"""


def train_tokenizer(dialogues: Sequence[Dialogue], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which EOU is one token."""
    eou = AddedToken(EOU, lstrip=True, rstrip=True, special=True)  # the token includes the blanks around it
    return PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(dialogues, vocab_size, [eou, "<PAD>"]),
        eos_token=EOU,
        pad_token="<PAD>",
        padding_side="left",
        truncation_side="left",
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, dialogues: Iterable[Sequence[str]]) -> list[list[list[int]]]:
    """The token ids of each utterance of each dialogue; each utterance ends with EOU."""
    return [tokenizer([f"{utterance} {EOU}" for utterance in utterances])["input_ids"] for utterances in dialogues]


def windows(encoded: list[list[list[int]]], context: int, rng: random.Random | None) -> list[list[int]]:
    """Cut dialogues into windows in which a model of ``context`` positions predicts every token exactly once.

    The first token of a window is not predicted: it is an EOU at the beginning of a dialogue, and otherwise the last
    token of the window before. With ``rng``, half of the dialogues are first split between two random utterances,
    because the policy also gets contexts that begin in the middle of a dialogue. The second part has no EOU before it,
    so its first token is not predicted.
    """
    pieces = []
    for utterances in encoded:
        eou = utterances[0][-1:]
        split = rng.randrange(1, len(utterances)) if rng and len(utterances) > 1 and rng.random() < 0.5 else 0
        for part in ([eou, *utterances[:split]], utterances[split:]) if split else ([eou, *utterances],):
            ids = [token for utterance in part for token in utterance]
            pieces += [ids[i : i + context + 1] for i in range(0, len(ids) - 1, context)]
    return pieces


def batches(pieces: list[list[int]], batch_tokens: int) -> list[torch.Tensor]:
    """Minibatches ``(n, L)`` of windows of similar length, padded on the right with -1."""
    return [pad([pieces[i] for i in group], -1) for group in group_by_length(pieces, batch_tokens)]


def loss_of(model: GPT2LMHeadModel, batch: torch.Tensor, reduction: str, amp: bool) -> torch.Tensor:
    """The cross-entropy of every token of ``batch``, ``(n, L)``, but the first of each row."""
    # No attention mask: the padding is on the right, where a causal model's real tokens do not attend to it.
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=amp):
        logits = model(batch[:, :-1].clamp(min=0)).logits
    return cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten(), ignore_index=-1, reduction=reduction)


@torch.no_grad()
def validate(model: GPT2LMHeadModel, data: list[torch.Tensor], characters: int, amp: bool) -> dict[str, float]:
    """The perplexity per token, and the bits per character of the utterances, which do not depend on the vocabulary.

    End-of-utterance tokens count among the tokens and their bits, but not among the characters.
    """
    model.eval()
    nats = sum(loss_of(model, batch.to(model.device), "sum", amp).item() for batch in data)
    tokens = sum((batch[:, 1:] >= 0).sum().item() for batch in data)
    return {"validation_perplexity": math.exp(nats / tokens), "bits_per_character": nats / math.log(2) / characters}


def copy_weights(folder: Path, model: GPT2LMHeadModel) -> None:
    """Copy the weights in ``folder`` into a model of as many layers or more; further layers begin as the identity."""
    start = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    there, asked = start.config, model.config
    if (there.n_embd, there.n_positions) != (asked.n_embd, asked.n_positions) or there.n_layer > asked.n_layer:
        shape = f"--width {there.n_embd}, --context {there.n_positions} and at least --layers {there.n_layer}"
        raise ValueError(f"--start {folder} needs {shape}")
    for name in model.load_state_dict(start.state_dict(), strict=False).missing_keys:
        if "c_proj" in name:
            torch.nn.init.zeros_(model.get_parameter(name))


def main(args: Args) -> None:
    check_flags(args)
    transformers.utils.logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, validation = (load_dialogues(args.dataset, split) for split in ("train", "validation"))
    folder = args.out if (args.out / "tokenizer.json").exists() else args.start
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder) if folder else train_tokenizer(train, args.vocab_size)
    train_ids = encode(tokenizer, (dialogue.utterances for dialogue in train))
    epochs = [train_ids] * args.epochs
    if args.pretraining:
        epochs = [encode(tokenizer, read_unlabelled(args.pretraining))] * args.pretraining_epochs + epochs
    held_out = encode(tokenizer, (dialogue.utterances for dialogue in validation))
    held_out = batches(windows(held_out, args.context, None), args.batch_tokens)
    characters = sum(len(utterance) for dialogue in validation for utterance in dialogue.utterances)

    torch.manual_seed(args.seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=args.context,
            n_embd=args.width,
            n_layer=args.layers,
            n_head=args.width // 64,
            embd_pdrop=args.dropout,
            resid_pdrop=args.dropout,
            attn_pdrop=0.0,
            activation_function="gelu_pytorch_tanh",  # GPT-2's gelu_new as one kernel
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).to(device)
    if args.start:
        copy_weights(args.start, model)
    steps = [len(batches(windows(ids, args.context, None), args.batch_tokens)) for ids in epochs]
    tokenizer.save_pretrained(args.out)  # from here on `OUT` holds a run, whose flags `check_flags` compares
    training = Training(args, model, steps, decay=lambda share: 0.5 + 0.5 * math.cos(math.pi * share))
    print(
        f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens of vocabulary, "
        f"{sum(len(u) for d in train_ids for u in d):,} training tokens, {device}"
    )
    first = len(epochs) - args.epochs  # epochs of pretraining do not count for --patience
    while training.epoch < len(epochs) and training.epoch - max(training.best_epoch, first) < args.patience:
        rng = training.seed_epoch()
        data = batches(windows(epochs[training.epoch], args.context, rng), args.batch_tokens)
        rng.shuffle(data)
        model.train()
        for batch in training.minibatches(data):
            loss = loss_of(model, batch.to(device), "mean", args.amp)
            training.step(loss, loss=loss)
        found = validate(model, held_out, characters, args.amp)
        training.end_epoch(
            {"train_loss": training.losses["loss"], **found},
            score=-found["bits_per_character"],
            save_best=lambda: copy.deepcopy(model).half().save_pretrained(args.out),
        )
    print(f"best validation: {-training.best:.4f} bits per character; model in {args.out}")


if __name__ == "__main__":
    run_script(main, Args, __doc__)
