"""Train the embedded intent classifier: which act is this reply? A small encoder with a byte-level BPE of its own.

    python -m dailydialog_gym.recipes.intent --dataset PATH_TO_DAILYDIALOG --out intent

It reads what `IntentMatch` gives it: the last utterance of the context, ``[END]``, which its configuration names as the
separator, and the reply. Beside the question that counts it guesses masked words. Half of the replies too long for the
policy are cut as the policy would cut them.

An encoder this small learns the annotators' slips by heart. So most of what it is taught is not the label but what two
logistic regressions, which never saw the dialogue, think of it: see `soft_labels`. A classifier that was trained so may
have a say in what the next is taught: ``--teachers``.

Reads the train split and stops early on the validation split; ``--test`` opens the test split when all is done. `OUT`
becomes a Hugging Face folder (float16 safetensors and tokenizer), with the curve in ``intent.jsonl`` and the scores in
``scores.json``. The same command goes on after a kill.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from scipy.sparse import hstack
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn.functional import cross_entropy, linear, one_hot
from torch.nn.utils.rnn import pad_sequence
from transformers import ModernBertConfig, ModernBertForSequenceClassification, PreTrainedTokenizerFast

from dailydialog_gym.data import ACTS, Dialogue, load_dialogues
from dailydialog_gym.recipes.sft import save_atomically
from dailydialog_gym.tokenizer import load_tokenizer

PAD, END, MASK = range(3)


@dataclass
class Args:
    out: Path
    """folder for the trained classifier; also holds the state to resume from"""
    dataset: str = "daily_dialog"
    """what to train on, as in `gym.make("DailyDialog-v0", dataset=...)`"""
    test: bool = False
    """at the end, score the classifier on the test split too"""
    start: Path | None = None
    """a folder that this recipe made with the same sizes: begin with its tokenizer and weights"""
    teachers: tuple[Path, ...] = ()
    """folders that this recipe made: what they find counts as much as `soft_labels`, each"""
    vocab_size: int = 8192
    """tokens of the byte-level BPE, special ones included"""
    layers: int = 3
    """transformer blocks: the first sees a token's neighbours, the others see all"""
    width: int = 128
    """hidden size; heads are 64 wide"""
    max_length: int = 96
    """longest text in tokens; a longer one loses its beginning"""
    max_new_tokens: int = 20
    """where the policy's replies are cut, in tokens of the embedded policy"""
    dropout: float = 0.1
    """on embeddings, inside the blocks and before the last layer"""
    masking: float = 0.3
    """of each text, at most this share of tokens is masked (the share is drawn anew each time)"""
    soft_weight: float = 0.6
    """share of `soft_labels` and teachers in what the encoder is taught; the rest is the label itself"""
    label_smoothing: float = 0.0
    """share of an even distribution in what it is taught"""
    mask_weight: float = 0.3
    """of guessing the masked tokens"""
    epochs: int = 6
    """passes over the training replies; the learning rate reaches its end with the last"""
    patience: int = 2
    """stop after this many epochs without better validation accuracy"""
    learning_rate: float = 2e-3
    """peak of a linear warm-up and a linear descent to nothing"""
    warmup_steps: int = 200
    """steps of warm-up"""
    weight_decay: float = 0.05
    """AdamW's, on matrices only"""
    averaging: float = 0.998
    """decay of the running average of the weights, which is what is kept"""
    batch_tokens: int = 4096
    """columns of a minibatch, padding included"""
    amp: bool = False
    """autocast to bfloat16"""
    seed: int = 1
    """of initialisation, order, masks and cuts"""


class Example(NamedTuple):
    """A reply as token ids, uncut and cut; the utterance before it, None if there is none; its act, from 0."""

    last: list[int] | None
    reply: list[int]
    cut_reply: list[int]
    act: int
    text: str


class Row(NamedTuple):
    """An example as the model reads it."""

    ids: list[int]
    act: int
    index: int = 0


def train_tokenizer(dialogues: Sequence[Dialogue], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE in lower case that closes every text with [END]."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("\u2019", "'"), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (utterance for dialogue in dialogues for utterance in dialogue.utterances),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["[PAD]", "[END]", "[MASK]"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        sep_token="[END]",
        mask_token="[MASK]",
        truncation_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def soft_labels(dialogues: Sequence[Dialogue], folds: int = 4) -> torch.Tensor:
    """``(n, 4)``: how probable each act of each utterance is, the mean of two logistic regressions on words.

    One reads the utterance and the one before. The other is also told the dialogue's other acts, which say what the
    utterance answers, what was made of it, and how its annotator tends to label. Either judges only dialogues that it
    wasn't fitted on.
    """
    number: dict[tuple[str, ...], int] = {}  # a dialogue that stands twice is in one fold
    fold, acts, texts, others = [], [], [], []
    for dialogue in dialogues:
        own = number.setdefault(dialogue.utterances, len(number)) % folds
        lower = ["", *(utterance.lower() for utterance in dialogue.utterances)]
        around = [0, 0, *dialogue.acts, 0]
        for i, act in enumerate(dialogue.acts, 1):
            fold.append(own)
            acts.append(act - 1)
            before, last, after = around[i - 1], around[i], around[i + 2]
            words = lower[i].split()
            answer = [*words[:8], "_".join(words[:2]), "_".join(words[:3])]
            texts.append((lower[i - 1], lower[i], " ".join(f"{last}|{word}" for word in answer)))
            rest = [*dialogue.acts[: i - 1], *dialogue.acts[i:]]
            others.append({f"{last}?": 0.5, f"?{after}": 0.5, f"{last}?{after}": 0.5, f"{before}{last}?": 0.5})
            others[-1] |= {f"share of {a}": rest.count(a) / max(len(rest), 1) for a in ACTS}
    words = [
        TfidfVectorizer(
            ngram_range=(1, longest), min_df=rarest, token_pattern=r"\S+", sublinear_tf=True, dtype=np.float32
        ).fit_transform(column)
        for column, longest, rarest in zip(zip(*texts, strict=True), (2, 3, 1), (4, 3, 3), strict=True)
    ]
    told = DictVectorizer(dtype=np.float32).fit_transform(others)
    fold, acts = np.array(fold), np.array(acts)
    result = np.zeros((len(acts), len(ACTS)), np.float32)
    for features in hstack(words[:2]).tocsr(), hstack([*words, told]).tocsr():
        for i in range(folds):
            regression = LogisticRegression(C=3, tol=1e-3, max_iter=50).fit(features[fold != i], acts[fold != i])
            result[fold == i] += regression.predict_proba(features[fold == i]) / 2
    return torch.from_numpy(result)


def cut_utterances(utterances: Sequence[str], max_new_tokens: int) -> list[str]:
    """What is left of utterances when the embedded policy says them."""
    policy = load_tokenizer("builtin")
    return policy.decode([np.array(ids[:max_new_tokens]) for ids in policy.encode(list(utterances))])


def encode(tokenizer: PreTrainedTokenizerFast, dialogues: Sequence[Dialogue], max_new_tokens: int) -> list[Example]:
    """Every utterance as a reply to the one before it; the first of a dialogue stands alone."""
    examples = []
    for dialogue in dialogues:
        whole, short = (
            tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]  # however long
            for texts in (dialogue.utterances, cut_utterances(dialogue.utterances, max_new_tokens))
        )
        acts = [act - 1 for act in dialogue.acts]
        examples += map(Example, [None, *whole], whole, short, acts, dialogue.utterances)
    return examples


def replies(examples: list[Example]) -> list[Example]:
    """Those with an utterance before them, which is what the classifier will be asked about."""
    return [example for example in examples if example.last is not None]


def row(example: Example, cut: bool, max_length: int) -> Row:
    ids = [*(example.last or []), END, *(example.cut_reply if cut else example.reply)]
    return Row([*ids[1 - max_length :], END], example.act)


def batches(rows: list[Row], batch_tokens: int) -> list[list[Row]]:
    """Minibatches of rows of similar length."""
    result, group = [], []
    for item in sorted(rows, key=lambda row: len(row.ids)):
        if group and len(item.ids) * (len(group) + 1) > batch_tokens:
            result.append(group)
            group = []
        group.append(item)
    return [*result, group]


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(ids) for ids in rows], batch_first=True, padding_value=value)


class Learner(nn.Module):
    """The classifier, with the heads of the two other tasks, which are thrown away."""

    def __init__(self, args: Args, vocab_size: int):
        super().__init__()
        self.args = args
        self.classifier = ModernBertForSequenceClassification(
            ModernBertConfig(
                vocab_size=vocab_size,
                hidden_size=args.width,
                intermediate_size=2 * args.width,
                num_hidden_layers=args.layers,
                num_attention_heads=args.width // 64,
                layer_types=["sliding_attention"] + ["full_attention"] * (args.layers - 1),
                local_attention=8,
                max_position_embeddings=args.max_length,
                initializer_range=0.05,
                embedding_dropout=args.dropout,
                mlp_dropout=args.dropout,
                classifier_dropout=args.dropout,
                classifier_pooling="mean",  # tokens vote, and there is none whose place says where the reply is
                pad_token_id=PAD,
                sep_token_id=END,
                bos_token_id=None,
                eos_token_id=None,
                cls_token_id=None,
                id2label={act - 1: name for act, name in ACTS.items()},
                label2id={name: act - 1 for act, name in ACTS.items()},
                separator="[END]",
            )
        )
        self.word = nn.Linear(args.width, args.width)
        self.word_bias = nn.Parameter(torch.zeros(vocab_size))

    def losses(self, rows: list[Row], targets: torch.Tensor) -> torch.Tensor:
        """``(2,)``: of the act, ``targets[row.index]``, and of the masked tokens."""
        model, device = self.classifier, self.word_bias.device
        ids = pad([row.ids for row in rows], PAD).to(device)
        share = self.args.masking * torch.rand(len(rows), 1, device=device)
        masked = (torch.rand(ids.shape, device=device) < share) & (ids > END)
        read = ids != PAD
        acts = targets[[row.index for row in rows]].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.args.amp):
            hidden = model.model(ids.masked_fill(masked, MASK), attention_mask=read.long()).last_hidden_state
            pooled = (hidden * read[..., None]).sum(1) / read.sum(1, keepdim=True)  # as ModernBert's "mean" does
            logits = model.classifier(model.drop(model.head(pooled)))
            words = linear(self.word(hidden[masked]), model.get_input_embeddings().weight, self.word_bias)
        return torch.stack(
            [
                cross_entropy(logits.float(), acts, label_smoothing=self.args.label_smoothing),
                cross_entropy(words.float(), ids[masked], reduction="sum") / masked.sum().clamp(min=1),
            ]
        )


@torch.no_grad()
def logits_of(model: ModernBertForSequenceClassification, rows: list[Row], batch_tokens: int) -> torch.Tensor:
    """``(n, 4)`` in the order of ``rows``."""
    model.eval()
    result = torch.empty(len(rows), len(ACTS))
    indexed = [row._replace(index=i) for i, row in enumerate(rows)]
    for group in batches(indexed, batch_tokens):
        ids = pad([row.ids for row in group], PAD).to(model.device)
        found = model(ids, attention_mask=(ids != PAD).long()).logits
        result[[row.index for row in group]] = found.float().cpu()
    return result


def opinions(folder: Path, dialogues: Sequence[Dialogue], args: Args) -> torch.Tensor:
    """``(n, 4)``: how probable a trained classifier finds each act of each utterance, even of those that it learned
    from, as in born-again networks (Furlanello et al. 2018, arXiv:1805.04770)."""
    model = ModernBertForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    examples = encode(PreTrainedTokenizerFast.from_pretrained(folder), dialogues, args.max_new_tokens)
    rows = [row(example, False, args.max_length) for example in examples]
    return logits_of(model, rows, args.batch_tokens).softmax(-1)


def scores(logits: torch.Tensor, acts: torch.Tensor) -> dict:
    """Accuracy, F1 of each act and their mean, expected calibration error (15 bins), confusion[true][found]."""
    probability, found = logits.softmax(-1).max(-1)
    hit = (found == acts).double()
    confusion = torch.bincount(acts * len(ACTS) + found, minlength=len(ACTS) ** 2).view(len(ACTS), len(ACTS))
    f1 = 2 * confusion.diag() / (confusion.sum(0) + confusion.sum(1)).clamp(min=1)
    bins = (probability * 15).long().clamp(max=14)
    gaps = torch.zeros(15, dtype=torch.double).index_add_(0, bins, hit - probability.double())
    return {
        "n": len(acts),
        "accuracy": hit.mean().item(),
        "macro_f1": f1.mean().item(),
        "nll": cross_entropy(logits, acts).item(),
        "calibration_error": gaps.abs().sum().item() / len(acts),
        "f1": dict(zip(ACTS.values(), f1.tolist(), strict=True)),
        "confusion": confusion.tolist(),
    }


def calibrate(model: ModernBertForSequenceClassification, logits: torch.Tensor, acts: torch.Tensor) -> float:
    """Divide the last layer by the temperature that fits ``logits`` best."""
    temperatures = torch.linspace(0.5, 2, 151)
    best = min(temperatures.tolist(), key=lambda t: cross_entropy(logits / t, acts).item())
    with torch.no_grad():
        model.classifier.weight /= best
        model.classifier.bias /= best
    return best


def report(
    model: ModernBertForSequenceClassification, examples: dict[str, list[Example]], seen: set[str], args: Args
) -> dict[str, dict]:
    """Scores of each set of replies: of all, of those whose text ``seen`` doesn't hold, and of all when cut."""
    result = {}
    for name, replies in examples.items():
        acts = torch.tensor([example.act for example in replies])
        new = torch.tensor([example.text not in seen for example in replies])
        for cut in (False, True):
            logits = logits_of(model, [row(e, cut, args.max_length) for e in replies], args.batch_tokens)
            result[f"{name}, cut" if cut else name] = scores(logits, acts)
            if not cut:
                result[f"{name}, not in train"] = scores(logits[new], acts[new])
    return result


def finish(args: Args, tokenizer: PreTrainedTokenizerFast, train: list[Example], held_out: list[Example]) -> None:
    """Calibrate the best model, write it in float16, and print how the written one does."""
    model = ModernBertForSequenceClassification.from_pretrained(args.out / "best")
    both = [row(example, cut, args.max_length) for cut in (False, True) for example in held_out]
    temperature = calibrate(model, logits_of(model, both, args.batch_tokens), torch.tensor([row.act for row in both]))
    model.half().save_pretrained(args.out)
    model = ModernBertForSequenceClassification.from_pretrained(args.out, dtype=torch.float32)
    sets = {"validation": held_out}
    for dataset, split in ((args.dataset, "test"), ("builtin", "test")) if args.test else ():
        name = "test" if dataset == args.dataset else f"{dataset} {split}"
        sets[name] = replies(encode(tokenizer, load_dialogues(dataset, split), args.max_new_tokens))
    found = report(model, sets, {example.text for example in train}, args)
    (args.out / "scores.json").write_text(json.dumps({"temperature": temperature, **found}, indent=1) + "\n")
    print(f"temperature {temperature:.2f} was divided out; in float16:")
    for name, values in found.items():
        print(
            f"{name:24}  {values['n']:6,} replies  accuracy {values['accuracy']:.4f}  macro F1 "
            f"{values['macro_f1']:.4f}  calibration error {values['calibration_error']:.4f}"
        )
    print(f"model in {args.out}, details in {args.out / 'scores.json'}")


def main(args: Args) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, validation = (load_dialogues(args.dataset, split) for split in ("train", "validation"))
    if (args.out / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.out)
    elif args.start:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start)
    else:
        tokenizer = train_tokenizer(train, args.vocab_size, args.max_length)
    tokenizer.save_pretrained(args.out)
    examples = encode(tokenizer, train, args.max_new_tokens)
    held_out = replies(encode(tokenizer, validation, args.max_new_tokens))

    targets = one_hot(torch.tensor([example.act for example in examples]), len(ACTS)).float()
    if args.soft_weight:
        soft = [soft_labels(train), *(opinions(folder, train, args) for folder in args.teachers)]
        targets += args.soft_weight * (torch.stack(soft).mean(0) - targets)
    torch.manual_seed(args.seed)
    learner = Learner(args, len(tokenizer)).to(device)
    if args.start:
        start = ModernBertForSequenceClassification.from_pretrained(args.start, dtype=torch.float32)
        learner.classifier.load_state_dict(start.state_dict())
    average = copy.deepcopy(learner.classifier)
    matrices = [p for p in learner.parameters() if p.dim() > 1]
    vectors = [p for p in learner.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    whole = [row(example, False, args.max_length) for example in examples]
    total_steps = args.epochs * len(batches(whole, args.batch_tokens))

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / args.warmup_steps) * max(0.0, 1 - step / total_steps)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    parts = {"learner": learner, "average": average, "optimizer": optimizer, "scheduler": scheduler}
    epoch, best, bad_epochs = 0, 0.0, 0
    state_file = args.out / "training_state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=device)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        epoch, best, bad_epochs = state["epoch"], state["best"], state["bad_epochs"]
        print(f"resumed after epoch {epoch} from {state_file}")
    print(
        f"{sum(p.numel() for p in learner.classifier.parameters()):,} parameters, {len(tokenizer):,} tokens of "
        f"vocabulary, {len(examples):,} training replies, {sum(len(r.ids) for r in whole):,} tokens, {device}"
    )

    while epoch < args.epochs and bad_epochs < args.patience:
        rng = random.Random(f"{args.seed} {epoch}")  # the epoch's own, so that a resumed run sees the same
        torch.manual_seed(args.seed * 1000 + epoch)
        rows = [row(e, rng.random() < 0.5, args.max_length)._replace(index=i) for i, e in enumerate(examples)]
        data = batches(rows, args.batch_tokens)
        rng.shuffle(data)
        learner.train()
        start, tokens, sums = time.time(), 0, torch.zeros(2)
        for i, group in enumerate(data, 1):
            losses = learner.losses(group, targets)
            (losses @ losses.new_tensor([1.0, args.mask_weight])).backward()
            torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step = scheduler.last_epoch
            scheduler.step()
            with torch.no_grad():  # a young average forgets faster
                rate = 1 - min(args.averaging, (step + 1) / (step + 10))
                torch._foreach_lerp_(list(average.parameters()), list(learner.classifier.parameters()), rate)
            tokens += sum(len(row.ids) for row in group)
            sums += losses.detach().cpu()
            if i % 50 == 0 or i == len(data):
                speed, left = tokens / (time.time() - start), (len(data) - i) * (time.time() - start) / i / 60
                shown = "  ".join(f"{name} {value:.3f}" for name, value in zip(("act", "mask"), sums / i, strict=True))
                print(
                    f"\repoch {epoch + 1}/{args.epochs}  {i}/{len(data)}  {shown}  {speed:,.0f} tokens/s  "
                    f"{left:.1f} min left in this epoch ",
                    end="",
                    flush=True,
                )
        epoch += 1
        found = report(average, {"validation": held_out}, {example.text for example in examples}, args)
        entry = {
            "epoch": epoch,
            "train_loss": (sums[0] / len(data)).item(),
            **{f"{name} {key}": found[name][key] for name in found for key in ("accuracy", "macro_f1", "nll")},
            "tokens_per_second": tokens / (time.time() - start),
        }
        print("\n" + "  ".join(f"{key} {value:.4g}" for key, value in entry.items()), flush=True)
        with open(args.out / "intent.jsonl", "a") as log:
            log.write(json.dumps(entry) + "\n")
        bad_epochs = 0 if found["validation"]["accuracy"] > best else bad_epochs + 1
        if bad_epochs == 0:
            best = found["validation"]["accuracy"]
            average.save_pretrained(args.out / "best")
        counts = {"epoch": epoch, "best": best, "bad_epochs": bad_epochs}
        save_atomically({name: part.state_dict() for name, part in parts.items()} | counts, state_file)
    finish(args, tokenizer, examples, held_out)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
