"""Train the embedded intent classifier: which act is this reply? A small encoder with a byte-level BPE of its own.

    python -m dailydialog_gym.recipes.intent --dataset PATH_TO_DAILYDIALOG --out intent

It reads what `IntentMatch` gives it: the last utterance of the context, ``[END]``, which its configuration names as the
separator, and the reply. Beside the question that counts it guesses masked words. Half of the replies too long for the
policy are cut as the policy would cut them.

An encoder this small learns the annotators' slips by heart. So most of what it is taught is not the label but what two
logistic regressions, which never saw the dialogue, think of it: see `soft_labels`. A pretrained encoder knows better:
this recipe fine-tunes one from a hub id or folder (``--start``), and the small one learns from it (``--teachers``),
also what it says of replies that nobody has labelled (``--unlabelled``, ``--policy-replies``).

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn.functional import cross_entropy, linear, one_hot
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from dailydialog_gym.env.dialogues import ACTS, Dialogue, load_dialogues
from dailydialog_gym.env.tokenizer import load_tokenizer
from dailydialog_gym.models.loading import load_classifier
from dailydialog_gym.recipes.sft import save_atomically
from dailydialog_gym.recipes.teachers import opinions, pairs_of, pieces, policy_pairs, soft_labels, unlabelled_pairs

LABELS = {
    "id2label": {act - 1: name for act, name in ACTS.items()},
    "label2id": {name: act - 1 for act, name in ACTS.items()},
}


@dataclass
class Args:
    out: Path
    """folder for the trained classifier; also holds the state to resume from"""
    dataset: str = "daily_dialog"
    """what to train on, as in `gym.make("DailyDialog-v0", dataset=...)`"""
    test: bool = False
    """at the end, score the classifier on the test split too"""
    start: str | None = None
    """a folder or hub id, of this recipe's making or any pretrained encoder: begin with its tokenizer and weights;
    `vocab_size`, `layers` and `width` then say nothing"""
    teachers: tuple[str, ...] = ()
    """intent classifiers, as in `IntentMatch`: what they find on average takes the place of `soft_labels`"""
    unlabelled: Path | None = None
    """a .jsonl or .jsonl.gz file of `{"dialog": [...]}` in ordinary spacing: read its replies too, and single sentences
    of the training replies, as the teachers judge them"""
    unlabelled_replies: int = 50_000
    """how many of that file's replies are read, chosen by chance"""
    policy_replies: int = 0
    """read so many of the embedded policy's replies to training contexts, as the teachers judge them"""
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
    """on embeddings, inside the blocks and before the last layer, whatever the start had"""
    masking: float = 0.3
    """of each text, at most this share of tokens is masked (the share is drawn anew each time)"""
    soft_weight: float = 0.6
    """share of `soft_labels` or teachers in what the encoder is taught; the rest is the label itself"""
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
    """autocast to bfloat16, for all but the scores at the end"""
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
            special_tokens=["[PAD]", "[END]", "[MASK]"],  # 0, 1 and 2
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        sep_token="[END]",
        mask_token="[MASK]",
        truncation_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def cut_utterances(utterances: Sequence[str], max_new_tokens: int) -> list[str]:
    """What is left of utterances when the embedded policy says them."""
    policy = load_tokenizer("builtin")
    return policy.decode([np.array(ids[:max_new_tokens]) for ids in policy.encode(list(utterances))])


def build_model(args: Args, tokenizer: PreTrainedTokenizerFast) -> ModernBertForSequenceClassification:
    """The small encoder, untrained."""
    return ModernBertForSequenceClassification(
        ModernBertConfig(
            vocab_size=len(tokenizer),
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
            pad_token_id=tokenizer.pad_token_id,
            sep_token_id=tokenizer.sep_token_id,
            bos_token_id=None,
            eos_token_id=None,
            cls_token_id=None,
            separator=tokenizer.sep_token,
            **LABELS,
        )
    )


def begin(args: Args, train: Sequence[Dialogue]) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model before training, and its tokenizer."""
    if not args.start:
        if (args.out / "tokenizer.json").exists():  # a run that goes on
            tokenizer = PreTrainedTokenizerFast.from_pretrained(args.out)
        else:
            tokenizer = train_tokenizer(train, args.vocab_size, args.max_length)
        return build_model(args, tokenizer), tokenizer
    model, tokenizer = load_classifier(args.start, **LABELS)
    if tokenizer.sep_token is None or tokenizer.mask_token is None:
        raise ValueError(f"--start {args.start}: its tokenizer has no separator or no mask: expected an encoder's")
    model.config.separator = tokenizer.sep_token
    return model, tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, dialogues: Sequence[Dialogue], max_new_tokens: int) -> list[Example]:
    """Every utterance as a reply to the one before it; the first of a dialogue stands alone."""
    examples = []
    for dialogue in dialogues:
        whole, short = (
            ids_of(tokenizer, texts)
            for texts in (dialogue.utterances, cut_utterances(dialogue.utterances, max_new_tokens))
        )
        acts = [act - 1 for act in dialogue.acts]
        examples += map(Example, [None, *whole], whole, short, acts, dialogue.utterances)
    return examples


def ids_of(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]  # however long


def encode_pairs(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]]) -> list[Example]:
    """Utterances and replies whose act nobody knows, and which no policy will cut."""
    lasts, answers = zip(*pairs, strict=True)
    ids = zip(ids_of(tokenizer, lasts), ids_of(tokenizer, answers), answers, strict=True)
    return [Example(last, reply, reply, -1, text) for last, reply, text in ids]


def replies(examples: list[Example]) -> list[Example]:
    """Those with an utterance before them, which is what the classifier will be asked about."""
    return [example for example in examples if example.last is not None]


def row(example: Example, cut: bool, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Row:
    """As the tokenizer reads the joined text: what is too long loses its beginning."""
    first = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
    ids = [*(example.last or []), tokenizer.sep_token_id, *(example.cut_reply if cut else example.reply)]
    return Row([*first, *ids[len(first) + 1 - max_length :], tokenizer.sep_token_id], example.act)


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


def lesson(args: Args, train: Sequence[Dialogue]) -> tuple[list[tuple[str, str]], torch.Tensor]:
    """The training replies, then those without a label, each with the utterance before it; and ``(n, 4)``, how probable
    their acts are to the teachers. A run that goes on reads them from ``lesson.jsonl``."""
    file = args.out / "lesson.jsonl"
    if not file.exists():
        pairs = pairs_of(train)
        if args.unlabelled:
            pairs += pieces(train, args.seed) + unlabelled_pairs(args.unlabelled, args.unlabelled_replies, args.seed)
        if args.policy_replies:
            pairs += policy_pairs(args.dataset, args.policy_replies, args.seed)
        soft = [opinions(teacher, pairs, args.amp) for teacher in args.teachers] or [soft_labels(train)]
        acts = torch.stack(soft).mean(0).tolist()
        lines = (json.dumps([*pair, found]) for pair, found in zip(pairs, acts, strict=True))
        file.with_suffix(".tmp").write_text("\n".join(lines))
        file.with_suffix(".tmp").replace(file)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [(last, reply) for last, reply, _ in rows], torch.tensor([acts for _, _, acts in rows])


class Learner(nn.Module):
    """A classifier with a head for the other task, guessing masked words, which is thrown away."""

    def __init__(self, args: Args, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast):
        super().__init__()
        self.args = args
        self.classifier = model
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = args.dropout
        if not torch.cuda.is_available():  # the fused attention's backward pass takes a third of a CPU's time
            model.set_attn_implementation("eager")
        self.mask = tokenizer.mask_token_id
        self.special = tokenizer.all_special_ids
        embeddings = model.get_input_embeddings()
        self.word = nn.Linear(model.config.hidden_size, embeddings.embedding_dim)
        self.word_bias = nn.Parameter(torch.zeros(embeddings.num_embeddings))

    def losses(self, rows: list[Row], targets: torch.Tensor) -> torch.Tensor:
        """``(2,)``: of the act, ``targets[row.index]``, and of the masked tokens."""
        model, device = self.classifier, self.word_bias.device
        pad_id = model.config.pad_token_id
        ids = pad([row.ids for row in rows], pad_id).to(device)
        share = self.args.masking * torch.rand(len(rows), 1, device=device)
        masked = torch.rand(ids.shape, device=device) < share
        masked &= ~torch.isin(ids, torch.tensor(self.special, device=device))
        acts = targets[[row.index for row in rows]].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.args.amp):
            found = model(
                ids.masked_fill(masked, self.mask), attention_mask=(ids != pad_id).long(), output_hidden_states=True
            )
            hidden = self.word(found.hidden_states[-1][masked])
            words = linear(hidden, model.get_input_embeddings().weight, self.word_bias)
        return torch.stack(
            [
                cross_entropy(found.logits.float(), acts, label_smoothing=self.args.label_smoothing),
                cross_entropy(words.float(), ids[masked], reduction="sum") / masked.sum().clamp(min=1),
            ]
        )


@torch.no_grad()
def logits_of(model: PreTrainedModel, rows: list[Row], args: Args) -> torch.Tensor:
    """``(n, 4)`` in the order of ``rows``."""
    model.eval()
    result = torch.empty(len(rows), len(ACTS))
    indexed = [row._replace(index=i) for i, row in enumerate(rows)]
    for group in batches(indexed, args.batch_tokens):
        ids = pad([row.ids for row in group], model.config.pad_token_id).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=args.amp):
            found = model(ids, attention_mask=(ids != model.config.pad_token_id).long()).logits
        result[[row.index for row in group]] = found.float().cpu()
    return result


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


def calibrate(model: PreTrainedModel, logits: torch.Tensor, acts: torch.Tensor) -> float:
    """Divide the last layer by the temperature that fits ``logits`` best."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    temperatures = torch.linspace(0.5, 2, 151)
    best = min(temperatures.tolist(), key=lambda t: cross_entropy(logits / t, acts).item())
    with torch.no_grad():
        last.weight /= best
        last.bias /= best
    return best


def report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: dict[str, list[Example]],
    seen: set[str],
    args: Args,
) -> dict[str, dict]:
    """Scores of each set of replies: of all, of those whose text ``seen`` doesn't hold, and of all when cut."""
    result = {}
    for name, replies in examples.items():
        acts = torch.tensor([example.act for example in replies])
        new = torch.tensor([example.text not in seen for example in replies])
        for cut in (False, True):
            rows = [row(example, cut, tokenizer, args.max_length) for example in replies]
            logits = logits_of(model, rows, args)
            result[f"{name}, cut" if cut else name] = scores(logits, acts)
            if not cut:
                result[f"{name}, not in train"] = scores(logits[new], acts[new])
    return result


def finish(args: Args, tokenizer: PreTrainedTokenizerFast, seen: set[str], held_out: list[Example]) -> None:
    """Calibrate the best model, write it in float16, and print how the written one does."""
    args = replace(args, amp=False)
    model = AutoModelForSequenceClassification.from_pretrained(args.out / "best", dtype=torch.float32)
    both = [row(example, cut, tokenizer, args.max_length) for cut in (False, True) for example in held_out]
    temperature = calibrate(model, logits_of(model, both, args), torch.tensor([row.act for row in both]))
    model.half().save_pretrained(args.out)
    model = AutoModelForSequenceClassification.from_pretrained(args.out, dtype=torch.float32)
    sets = {"validation": held_out}
    for dataset, split in ((args.dataset, "test"), ("builtin", "test")) if args.test else ():
        name = "test" if dataset == args.dataset else f"{dataset} {split}"
        sets[name] = replies(encode(tokenizer, load_dialogues(dataset, split), args.max_new_tokens))
    found = report(model, tokenizer, sets, seen, args)
    (args.out / "scores.json").write_text(json.dumps({"temperature": temperature, **found}, indent=1) + "\n")
    print(f"temperature {temperature:.2f} was divided out; in float16:")
    for name, values in found.items():
        print(
            f"{name:24}  {values['n']:6,} replies  accuracy {values['accuracy']:.4f}  macro F1 "
            f"{values['macro_f1']:.4f}  calibration error {values['calibration_error']:.4f}"
        )
    print(f"model in {args.out}, details in {args.out / 'scores.json'}")


def main(args: Args) -> None:
    if (args.unlabelled or args.policy_replies) and not args.teachers:
        raise ValueError(
            "--unlabelled and --policy-replies need --teachers: nobody else says which acts those replies are"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, validation = (load_dialogues(args.dataset, split) for split in ("train", "validation"))
    torch.manual_seed(args.seed)
    model, tokenizer = begin(args, train)
    tokenizer.save_pretrained(args.out)
    examples = encode(tokenizer, train, args.max_new_tokens)
    held_out = replies(encode(tokenizer, validation, args.max_new_tokens))
    seen = {example.text for example in examples}

    targets = one_hot(torch.tensor([example.act for example in examples]), len(ACTS)).float()
    if args.soft_weight or args.teachers:
        pairs, soft = lesson(args, train)
        targets += args.soft_weight * (soft[: len(targets)] - targets)
        if unlabelled := pairs[len(targets) :]:
            targets = torch.cat([targets, soft[len(targets) :]])
            examples += encode_pairs(tokenizer, unlabelled)
    learner = Learner(args, model, tokenizer).to(device)
    average = copy.deepcopy(learner.classifier)
    matrices = [p for p in learner.parameters() if p.dim() > 1]
    vectors = [p for p in learner.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    whole = [row(example, False, tokenizer, args.max_length) for example in examples]
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
        rows = [row(e, rng.random() < 0.5, tokenizer, args.max_length) for e in examples]
        rows = [row._replace(index=i) for i, row in enumerate(rows)]
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
        found = report(average, tokenizer, {"validation": held_out}, seen, args)
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
    finish(args, tokenizer, seen, held_out)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
