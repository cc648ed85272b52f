"""Train the embedded policy: a small GPT-2 on DailyDialog, with a byte-level BPE tokenizer of its own.

    python -m dailydialog_gym.recipes.sft --dataset PATH_TO_DAILYDIALOG --out sft

Reads the train split, stops early on the validation split, never opens the test split. `OUT` becomes a Hugging Face
folder (float16 safetensors and tokenizer), with the curve in ``sft.jsonl``. The same command goes on after a kill.
``--pretraining`` reads other dialogues first; ``--start`` deepens a model that this recipe made before.
"""

from __future__ import annotations

import copy
import gzip
import json
import math
import os
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from dailydialog_gym.env.dialogues import Dialogue, load_dialogues
from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.text import space_punctuation


@dataclass
class Args:
    out: Path
    """folder for the trained model; also holds the state to resume from"""
    dataset: str = "daily_dialog"
    """what to train on, as in `gym.make("DailyDialog-v0", dataset=...)`"""
    start: Path | None = None
    """a folder that this recipe made, of the same width: begin with its tokenizer and weights, at any greater depth"""
    pretraining: Path | None = None
    """a .jsonl or .jsonl.gz file of `{"dialog": [...]}` in ordinary spacing, read before the training dialogues"""
    pretraining_epochs: int = 1
    """passes over that file"""
    vocab_size: int = 4096
    """tokens of the byte-level BPE, special ones included"""
    layers: int = 4
    """transformer blocks"""
    width: int = 256
    """hidden size; heads are 64 wide"""
    context: int = 256
    """positions of the model, and the longest training window in tokens"""
    dropout: float = 0.1
    """on embeddings and residuals (not in attention: that would lose the fused kernel)"""
    epochs: int = 7
    """passes over the training dialogues; the learning rate reaches its end with the last"""
    patience: int = 2
    """stop after this many epochs without a better validation loss, pretraining aside"""
    learning_rate: float = 1e-3
    """peak of a linear warm-up and a cosine down to nothing"""
    warmup_steps: int = 300
    """steps of warm-up"""
    weight_decay: float = 0.1
    """AdamW's, on matrices only"""
    batch_tokens: int = 2048
    """columns of a minibatch, padding included"""
    amp: bool = False
    """bfloat16 autocast: twice as fast where the processor has bfloat16 instructions, much slower where it has none"""
    seed: int = 1
    """of initialisation, order and windows"""


def train_tokenizer(dialogues: tuple[Dialogue, ...], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every utterance begins with a blank, so that a word has one token in any position."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    eou = AddedToken(EOU, lstrip=True, rstrip=True, special=True)  # swallows the blanks that stand around it
    tokenizer.train_from_iterator(
        (utterance for dialogue in dialogues for utterance in dialogue.utterances),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[eou, "<PAD>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOU,
        pad_token="<PAD>",
        padding_side="left",
        truncation_side="left",
        clean_up_tokenization_spaces=False,
    )


def read_pretraining(path: Path) -> list[list[str]]:
    """The utterances of each dialogue in a file of ``{"dialog": [...]}``, in DailyDialog's spacing."""
    dialogues = []
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                dialogues.append([space_punctuation(utterance) for utterance in json.loads(line)["dialog"]])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f'{path}, line {number}: expected {{"dialog": [...]}}, got {line[:80]!r}') from error
    return dialogues


def encode(tokenizer: PreTrainedTokenizerFast, dialogues: Iterable[Sequence[str]]) -> list[list[list[int]]]:
    """Token ids by dialogue and utterance, each utterance closed by EOU."""
    return [tokenizer([f"{utterance} {EOU}" for utterance in utterances])["input_ids"] for utterances in dialogues]


def windows(encoded: list[list[list[int]]], context: int, rng: random.Random | None) -> list[list[int]]:
    """Cut dialogues into windows from which a model of ``context`` positions predicts every token exactly once.

    A dialogue begins with an EOU that isn't predicted, and a window with the last token of the one before. With
    ``rng``, half of the dialogues are first split between two random utterances, since the policy will see contexts
    that begin in the middle of a dialogue; there, nothing stands before the first token.
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
    """Right-padded minibatches of windows of similar length, -1 where there is no token."""
    pieces = sorted(pieces, key=len)
    result, group = [], []
    for piece in pieces:
        if group and len(piece) * (len(group) + 1) > batch_tokens:
            result.append(group)
            group = []
        group.append(piece)
    result.append(group)
    return [
        torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in group], batch_first=True, padding_value=-1)
        for group in result
    ]


def loss_of(model: GPT2LMHeadModel, batch: torch.Tensor, reduction: str, amp: bool) -> torch.Tensor:
    # No attention mask: padding stands on the right, where a causal model's real tokens never look.
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=amp):
        logits = model(batch[:, :-1].clamp(min=0)).logits
    return cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten(), ignore_index=-1, reduction=reduction)


@torch.no_grad()
def validate(model: GPT2LMHeadModel, data: list[torch.Tensor], characters: int, amp: bool) -> dict[str, float]:
    """Perplexity a token, and bits a character of the utterances, by which vocabularies compare.

    Every token counts among the bits; end-of-utterance tokens don't count among the characters.
    """
    model.eval()
    nats = sum(loss_of(model, batch.to(model.device), "sum", amp).item() for batch in data)
    tokens = sum((batch[:, 1:] >= 0).sum().item() for batch in data)
    return {"validation_perplexity": math.exp(nats / tokens), "bits_per_character": nats / math.log(2) / characters}


def begin_with(model: GPT2LMHeadModel, folder: Path) -> None:
    """Copy the weights of a model of no more layers; further layers add nothing until they have learned something."""
    missing, unexpected = model.load_state_dict(
        GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).state_dict(), strict=False
    )
    if unexpected:
        raise ValueError(f"{folder} has more layers than the {model.config.n_layer} asked for")
    for name in missing:
        if "c_proj" in name:
            torch.nn.init.zeros_(model.get_parameter(name))


def main(args: Args) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, validation = (load_dialogues(args.dataset, split) for split in ("train", "validation"))
    if (args.out / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.out)
    elif args.start:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start)
    else:
        tokenizer = train_tokenizer(train, args.vocab_size)
    tokenizer.save_pretrained(args.out)
    train_ids = encode(tokenizer, (dialogue.utterances for dialogue in train))
    epochs = [train_ids] * args.epochs
    if args.pretraining:
        epochs = [encode(tokenizer, read_pretraining(args.pretraining))] * args.pretraining_epochs + epochs
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
        begin_with(model, args.start)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    total_steps = sum(len(batches(windows(ids, args.context, None), args.batch_tokens)) for ids in epochs)

    def schedule(step: int) -> float:
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / total_steps))
        return cosine * min(1.0, (step + 1) / args.warmup_steps)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    epoch, best, bad_epochs = 0, math.inf, 0
    state_file = args.out / "training_state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        epoch, best, bad_epochs = state["epoch"], state["best"], state["bad_epochs"]
        print(f"resumed after epoch {epoch} from {state_file}")
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer):,} tokens of vocabulary, "
        f"{sum(len(u) for d in train_ids for u in d):,} training tokens, {device}"
    )

    while epoch < len(epochs) and bad_epochs < args.patience:
        rng = random.Random(f"{args.seed} {epoch}")  # the epoch's own, so that a resumed run sees the same order
        torch.manual_seed(args.seed * 1000 + epoch)
        data = batches(windows(epochs[epoch], args.context, rng), args.batch_tokens)
        rng.shuffle(data)
        model.train()
        start, tokens, losses = time.time(), 0, []
        for i, batch in enumerate(data, 1):
            loss = loss_of(model, batch.to(device), "mean", args.amp)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
            tokens += (batch >= 0).sum().item()
            losses.append(loss.item())
            if i % 50 == 0 or i == len(data):
                rate = tokens / (time.time() - start)
                left = (len(data) - i) * (time.time() - start) / i / 60
                loss = sum(losses[-50:]) / len(losses[-50:])
                print(
                    f"\repoch {epoch + 1}/{len(epochs)}  {i}/{len(data)}  loss {loss:.3f}"
                    f"  {rate:,.0f} tokens/s  {left:.1f} min left in this epoch ",
                    end="",
                    flush=True,
                )
        epoch += 1
        row = {
            "epoch": epoch,
            "train_loss": sum(losses) / len(losses),
            **validate(model, held_out, characters, args.amp),
            "tokens_per_second": tokens / (time.time() - start),
        }
        print("\n" + "  ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
        with open(args.out / "sft.jsonl", "a") as log:
            log.write(json.dumps(row) + "\n")
        pretraining = epoch <= len(epochs) - args.epochs
        bad_epochs = 0 if pretraining or row["bits_per_character"] < best else bad_epochs + 1
        if row["bits_per_character"] < best:
            best = row["bits_per_character"]
            copy.deepcopy(model).half().save_pretrained(args.out)
        save_atomically(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "epoch": epoch,
                "best": best,
                "bad_epochs": bad_epochs,
            },
            state_file,
        )
    recipe = {**asdict(args), "out": None}
    (args.out / "recipe.json").write_text(json.dumps(recipe, indent=2, default=str) + "\n")
    print(f"best validation: {best:.4f} bits per character; model in {args.out}")


def save_atomically(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
