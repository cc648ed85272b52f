"""Train the embedded intent classifier: a small encoder that recognises the dialogue act of a reply.

    python -m dailydialog_gym.recipes.intent --dataset PATH_TO_DAILYDIALOG --out intent

The input is what `IntentMatch` gives to it: the last utterance of the context, ``[END]`` (the separator that its
configuration names) and the reply. The loss is the cross-entropy of the act plus that of masked tokens, as in masked
language modelling. Half of the replies that are longer than the policy's limit are cut where the policy is cut.

An encoder this small memorises the annotators' errors. The larger part of its target distribution is therefore not the
label but the prediction of two logistic regressions that were fitted on other dialogues, see `soft_labels`. A
pretrained encoder is a better teacher: this recipe fine-tunes one from a hub id or folder (``--start``), and the small
encoder learns from its predictions (``--teachers``), also for replies without labels (``--unlabelled``,
``--policy-replies``).

The recipe trains on the train split and stops early by the accuracy on the validation split; ``--test`` scores the
finished classifier on the test split. `OUT` becomes a Hugging Face folder (float16 safetensors and tokenizer), with the
training curve in ``metrics.jsonl`` and the scores in ``scores.json``. After a kill, the same command resumes from the
last state that was saved.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from tokenizers import normalizers, processors
from torch import nn
from torch.nn.functional import cross_entropy, linear, one_hot
from transformers import (
    AutoModelForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from dailydialog_gym.env.dialogues import ACTS, Dialogue, load_dialogues
from dailydialog_gym.env.tokenizer import load_tokenizer
from dailydialog_gym.errors import run_script
from dailydialog_gym.files import write_folder, write_text
from dailydialog_gym.models.loading import load_classifier
from dailydialog_gym.ranges import Count, CountOrZero, NotNegative, Share
from dailydialog_gym.recipes import teachers
from dailydialog_gym.recipes.training import (
    DialogueTrainingArgs,
    Training,
    calibration_error,
    check_flags,
    check_inputs,
    group_by_length,
    heads_of,
    train_bpe,
)
from dailydialog_gym.rewards.model import pad
from dailydialog_gym.runs.fingerprint import model_files
from dailydialog_gym.text import spacing_of

LABELS: dict[str, Any] = {
    "id2label": dict(enumerate(ACTS.values())),
    "label2id": {name: i for i, name in enumerate(ACTS.values())},
}


@dataclass
class Args(DialogueTrainingArgs):
    test: bool = False
    """at the end, also score the classifier on the test split"""
    start: str | None = None
    """a folder or hub id of a classifier that this recipe made, or of any pretrained encoder: begin with its tokenizer
    and weights; `vocab_size`, `layers` and `width` are then ignored"""
    teachers: tuple[str, ...] = ()
    """intent classifiers, as in `IntentMatch`; the mean of their predictions replaces `soft_labels`"""
    unlabelled: Path | None = None
    """a .jsonl or .jsonl.gz file of `{"dialog": [...]}` in ordinary spacing: also train on its replies, and on single
    sentences of the training replies, with the teachers' predictions as targets"""
    unlabelled_replies: CountOrZero = 50_000
    """number of replies drawn at random from that file"""
    policy_replies: CountOrZero = 0
    """number of the embedded policy's replies to also train on, with the teachers' predictions as targets"""
    vocab_size: Count = 8192
    """tokens of the byte-level BPE, special tokens included"""
    layers: Count = 3
    """transformer blocks: the first has local attention, the others have full attention"""
    width: Count = 128
    """hidden size; each attention head has 64 dimensions"""
    max_length: Count = 96
    """longest input in tokens; a longer one loses its beginning"""
    max_new_tokens: Count = 20
    """longest reply of the policy, in tokens of the embedded policy"""
    dropout: Share = 0.1
    """dropout of embeddings, blocks and classifier; it replaces the dropout of `start`"""
    masking: Share = 0.3
    """largest share of an input's tokens that is masked; the share is drawn from 0 to this number for each input"""
    soft_weight: Share = 0.6
    """weight of `soft_labels` or of the teachers in the target distribution; the label has the rest"""
    label_smoothing: Share = 0.0
    """weight of the uniform distribution in the target distribution"""
    mask_weight: NotNegative = 0.3
    """weight of the masked tokens' cross-entropy in the loss"""
    averaging: Share = 0.998
    """decay of the exponential moving average of the weights; the average is the classifier that is kept"""
    epochs: Count = 6
    learning_rate: NotNegative = 2e-3
    warmup_steps: Count = 200
    weight_decay: NotNegative = 0.05
    batch_tokens: Count = 4096


class Example(NamedTuple):
    """A reply as token ids, whole and cut; the utterance before it, or None; its act from 0, or -1; its text."""

    last: list[int] | None
    reply: list[int]
    cut_reply: list[int]
    act: int
    text: str


def train_tokenizer(dialogues: Sequence[Dialogue], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A lower-case byte-level BPE that ends every text with [END]."""
    lower = [normalizers.NFKC(), normalizers.Replace("\u2019", "'"), normalizers.Lowercase()]
    special = ["[PAD]", "[END]", "[MASK]"]  # 0, 1 and 2
    tokenizer = train_bpe(dialogues, vocab_size, special, normalizers.Sequence(lower))
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


def build_model(args: Args, tokenizer: PreTrainedTokenizerFast) -> ModernBertForSequenceClassification:
    """The small encoder with random weights."""
    return ModernBertForSequenceClassification(
        ModernBertConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.width,
            intermediate_size=2 * args.width,
            num_hidden_layers=args.layers,
            num_attention_heads=heads_of(args.width),
            layer_types=["sliding_attention"] + ["full_attention"] * (args.layers - 1),
            local_attention=8,
            max_position_embeddings=args.max_length,
            initializer_range=0.05,
            embedding_dropout=args.dropout,
            mlp_dropout=args.dropout,
            classifier_dropout=args.dropout,
            classifier_pooling="mean",  # no token has a fixed place in the reply, as [CLS] has in BERT
            pad_token_id=tokenizer.pad_token_id,
            sep_token_id=tokenizer.sep_token_id,
            bos_token_id=None,
            eos_token_id=None,
            cls_token_id=None,
            separator=tokenizer.sep_token,
            **LABELS,
        )
    )


def initial_model(args: Args, train: Sequence[Dialogue]) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model before training, and its tokenizer. Raises ValueError if ``--start`` is not an encoder."""
    if args.start:
        model, tokenizer = load_classifier(args.start, new_head=True, **LABELS)
        if tokenizer.sep_token is None or tokenizer.mask_token is None:
            raise ValueError(f"--start {args.start}: its tokenizer has no separator or no mask: choose an encoder")
        model.config.separator = tokenizer.sep_token
        return model, tokenizer
    if (args.out / "tokenizer.json").exists():  # of the run that is resumed
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.out)
    else:
        tokenizer = train_tokenizer(train, args.vocab_size, args.max_length)
    return build_model(args, tokenizer), tokenizer


def cut_utterances(utterances: Sequence[str], max_new_tokens: int) -> list[str]:
    """The utterances, cut where a reply of the embedded policy is cut."""
    policy = load_tokenizer("builtin")
    return policy.decode([np.array(ids[:max_new_tokens]) for ids in policy.encode(list(utterances))])


def ids_of(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    # verbose=False: no warning where a text is longer than the model's limit
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]


def encode(tokenizer: PreTrainedTokenizerFast, dialogues: Sequence[Dialogue], max_new_tokens: int) -> list[Example]:
    """Every utterance as a reply to the one before it; the first utterance of a dialogue has none before it."""
    examples: list[Example] = []
    for dialogue in dialogues:
        texts = dialogue.utterances
        whole, cut = ids_of(tokenizer, texts), ids_of(tokenizer, cut_utterances(texts, max_new_tokens))
        examples += map(Example, [None, *whole], whole, cut, [act - 1 for act in dialogue.acts], texts)
    return examples


def encode_pairs(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]]) -> list[Example]:
    """Pairs of an utterance and a reply without a label; the replies are never cut."""
    lasts, answers = zip(*pairs, strict=True)
    ids = zip(ids_of(tokenizer, lasts), ids_of(tokenizer, answers), answers, strict=True)
    return [Example(last, reply, reply, -1, text) for last, reply, text in ids]


def replies(examples: list[Example]) -> list[Example]:
    """The examples with an utterance before them, which are those that the reward asks about."""
    return [example for example in examples if example.last is not None]


def input_ids(example: Example, cut: bool, tokenizer: PreTrainedTokenizerFast, max_length: int) -> list[int]:
    """What the tokenizer makes of the joined text; a text that is too long loses its beginning."""
    first = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
    ids = [*(example.last or []), tokenizer.sep_token_id, *(example.cut_reply if cut else example.reply)]
    return [*first, *ids[len(first) + 1 - max_length :], tokenizer.sep_token_id]


def soft_targets(args: Args, train: Sequence[Dialogue]) -> tuple[list[tuple[str, str]], torch.Tensor]:
    """``n`` pairs of an utterance and the reply to it, the training replies first, then those without a label; and
    ``(n, 4)``, the probabilities of their acts by `soft_labels` or the teachers. A resumed run reads both from
    ``soft_targets.jsonl``."""
    file = args.out / "soft_targets.jsonl"
    if not file.exists():
        pairs, spacing = teachers.pairs_of(train), spacing_of(text for d in train for text in d.utterances)
        if args.unlabelled:
            pairs += teachers.sentence_pairs(train, args.seed)
            pairs += teachers.unlabelled_pairs(args.unlabelled, args.unlabelled_replies, args.seed, spacing)
        if args.policy_replies:
            pairs += teachers.policy_pairs(args.dataset, args.test_share, args.policy_replies, args.seed)
        soft = [teachers.predictions(teacher, pairs, args.amp, spacing) for teacher in args.teachers]
        soft = soft or [teachers.soft_labels(train)]
        probabilities = torch.stack(soft).mean(0).tolist()
        write_text(file, "\n".join(json.dumps([*pair, p]) for pair, p in zip(pairs, probabilities, strict=True)))
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(last, reply) for last, reply, _ in rows], torch.tensor([probabilities for _, _, probabilities in rows])


class Learner(nn.Module):
    """The classifier, and a head that predicts masked tokens, which is only needed in training."""

    def __init__(self, args: Args, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast):
        super().__init__()
        self.args = args
        self.classifier = model
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = args.dropout
        if not torch.cuda.is_available():  # on a CPU, the backward pass of fused attention is slow
            model.set_attn_implementation("eager")
        self.mask = tokenizer.mask_token_id
        self.special = tokenizer.all_special_ids
        embeddings = model.get_input_embeddings()
        self.word = nn.Linear(model.config.hidden_size, embeddings.embedding_dim)
        self.word_bias = nn.Parameter(torch.zeros(embeddings.num_embeddings))

    def losses(self, rows: list[list[int]], targets: torch.Tensor, batch: list[int]) -> tuple[torch.Tensor, ...]:
        """The cross-entropy of the acts and that of the masked tokens, in the rows with indices ``batch``."""
        model, device = self.classifier, self.word_bias.device
        inputs = pad([rows[i] for i in batch], model.config.pad_token_id, device)
        ids = inputs["input_ids"]  # (n, L)
        share = self.args.masking * torch.rand(len(batch), 1, device=device)
        masked = torch.rand(ids.shape, device=device) < share
        masked &= ~torch.isin(ids, torch.tensor(self.special, device=device))
        acts = targets[batch].to(device)  # (n, 4)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.args.amp):
            inputs["input_ids"] = ids.masked_fill(masked, self.mask)
            found = model(**inputs, output_hidden_states=True)
            hidden = self.word(found.hidden_states[-1][masked])
            words = linear(hidden, model.get_input_embeddings().weight, self.word_bias)
        act_loss = cross_entropy(found.logits.float(), acts, label_smoothing=self.args.label_smoothing)
        mask_loss = cross_entropy(words.float(), ids[masked], reduction="sum") / masked.sum().clamp(min=1)
        return act_loss, mask_loss


@torch.no_grad()
def logits_of(model: PreTrainedModel, rows: Sequence[list[int]], args: Args) -> torch.Tensor:
    """``(n, 4)``, in the order of ``rows``."""
    model.eval()
    result = torch.empty(len(rows), len(ACTS))
    for group in group_by_length(rows, args.batch_tokens):
        inputs = pad([rows[i] for i in group], model.config.pad_token_id, model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=args.amp):
            found = model(**inputs).logits
        result[group] = found.float().cpu()
    return result


def scores(logits: torch.Tensor, acts: torch.Tensor) -> dict:
    """Accuracy, F1 of each act and their mean, cross-entropy, calibration error of the likeliest act (15 bins), and the
    confusion matrix, ``confusion[label][prediction]``."""
    probability, found = logits.softmax(-1).max(-1)
    hit = (found == acts).double()
    confusion = torch.bincount(acts * len(ACTS) + found, minlength=len(ACTS) ** 2).view(len(ACTS), len(ACTS))
    f1 = 2 * confusion.diag() / (confusion.sum(0) + confusion.sum(1)).clamp(min=1)
    return {
        "n": len(acts),
        "accuracy": hit.mean().item(),
        "macro_f1": f1.mean().item(),
        "nll": cross_entropy(logits, acts).item(),
        "calibration_error": calibration_error(probability, hit, 15),
        "f1": dict(zip(ACTS.values(), f1.tolist(), strict=True)),
        "confusion": confusion.tolist(),
    }


def calibrate(model: PreTrainedModel, logits: torch.Tensor, acts: torch.Tensor) -> float:
    """Divide the last layer by the temperature at which ``logits`` have the lowest cross-entropy, and return it."""
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
    """The scores of each set of replies: of all, of those whose text isn't in ``seen``, if any, and of all, cut."""
    result = {}
    for name, replies in examples.items():
        acts = torch.tensor([example.act for example in replies])
        new = torch.tensor([example.text not in seen for example in replies])
        rows = [[input_ids(example, cut, tokenizer, args.max_length) for example in replies] for cut in (False, True)]
        whole, cut = (logits_of(model, each, args) for each in rows)
        result[name] = scores(whole, acts)
        if new.any():
            result[f"{name}, not in train"] = scores(whole[new], acts[new])
        result[f"{name}, cut"] = scores(cut, acts)
    return result


def finish(args: Args, tokenizer: PreTrainedTokenizerFast, seen: set[str], held_out: list[Example]) -> None:
    """Calibrate the best model, save it in float16, and print the scores of the saved one."""
    args = replace(args, amp=False)
    model = AutoModelForSequenceClassification.from_pretrained(args.out / "best", dtype=torch.float32)
    both = [input_ids(example, cut, tokenizer, args.max_length) for cut in (False, True) for example in held_out]
    acts = torch.tensor([example.act for example in held_out]).repeat(2)
    temperature = calibrate(model, logits_of(model, both, args), acts)
    model.half().save_pretrained(args.out)
    model = AutoModelForSequenceClassification.from_pretrained(args.out, dtype=torch.float32)
    sets = {"validation": held_out}
    for dataset, split in ((args.dataset, "test"), ("builtin", "test")) if args.test else ():
        name = "test" if dataset == args.dataset else f"{dataset} {split}"
        sets[name] = load_replies(args, tokenizer, dataset, split)
    found = report(model, tokenizer, sets, seen, args)
    write_text(args.out / "scores.json", json.dumps({"temperature": temperature, **found}, indent=1) + "\n")
    print(f"the last layer was divided by the temperature {temperature:.2f}; scores of the float16 model:")
    for name, values in found.items():
        print(
            f"{name:24}  {values['n']:6,} replies  accuracy {values['accuracy']:.4f}  macro F1 "
            f"{values['macro_f1']:.4f}  calibration error {values['calibration_error']:.4f}"
        )
    print(f"model in {args.out}, details in {args.out / 'scores.json'}")


def load_labelled(dataset: str, split: str, test_share: float) -> tuple[Dialogue, ...]:
    """The dialogues of a split. Raises ValueError if an utterance has no act, because acts are what is learned."""
    dialogues = load_dialogues(dataset, split, test_share=test_share)
    for dialogue in dialogues:
        if 0 in dialogue.acts:
            utterance = dialogue.utterances[dialogue.acts.index(0)]
            raise ValueError(f"dataset {dataset!r}, split {split!r}: the utterance {utterance[:60]!r} has no act")
    return dialogues


def load_replies(args: Args, tokenizer: PreTrainedTokenizerFast, dataset: str, split: str) -> list[Example]:
    """The replies of a split, by which the classifier is scored. Raises ValueError if there is none."""
    found = replies(encode(tokenizer, load_labelled(dataset, split, args.test_share), args.max_new_tokens))
    if not found:
        raise ValueError(f"dataset {dataset!r}, split {split!r} contains no reply: each dialogue has one utterance")
    return found


def main(args: Args) -> None:
    if (args.unlabelled or args.policy_replies) and not args.teachers:
        raise ValueError("--unlabelled and --policy-replies need --teachers, whose predictions are their targets")
    check_flags(args)
    transformers.utils.logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = load_labelled(args.dataset, "train", args.test_share)
    torch.manual_seed(args.seed)
    model, tokenizer = initial_model(args, train)
    examples = encode(tokenizer, train, args.max_new_tokens)
    held_out = load_replies(args, tokenizer, args.dataset, "validation")
    # What the teachers say is read once, into soft_targets.jsonl
    check_inputs(args.out, dataset=(train, held_out), start=model_files(args.start) if args.start else None)
    seen = {example.text for example in examples}

    targets = one_hot(torch.tensor([example.act for example in examples]), len(ACTS)).float()  # (n, 4)
    if args.soft_weight or args.teachers:
        pairs, soft = soft_targets(args, train)
        targets += args.soft_weight * (soft[: len(targets)] - targets)
        if unlabelled := pairs[len(targets) :]:
            targets = torch.cat([targets, soft[len(targets) :]])
            examples += encode_pairs(tokenizer, unlabelled)
    tokenizer.save_pretrained(args.out)  # from here on `OUT` holds a run, whose flags `check_flags` compares
    whole = [input_ids(example, False, tokenizer, args.max_length) for example in examples]
    learner = Learner(args, model, tokenizer).to(device)
    average = copy.deepcopy(model)
    steps = [len(group_by_length(whole, args.batch_tokens))] * args.epochs
    training = Training(args, learner, steps, decay=lambda share: 1 - share, average=average)
    print(
        f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens of vocabulary, {len(examples):,} training "
        f"replies, {sum(map(len, whole)):,} tokens, {device}"
    )
    while training.epoch < args.epochs and training.epoch - training.best_epoch < args.patience:
        rng = training.seed_epoch()
        rows = [input_ids(example, rng.random() < 0.5, tokenizer, args.max_length) for example in examples]
        data = group_by_length(rows, args.batch_tokens)
        rng.shuffle(data)
        learner.train()
        for batch in training.minibatches(data, [sum(len(rows[i]) for i in batch) for batch in data]):
            act_loss, mask_loss = learner.losses(rows, targets, batch)
            training.step(act_loss + args.mask_weight * mask_loss, act=act_loss, mask=mask_loss)
            done = training.scheduler.last_epoch  # optimizer steps
            with torch.no_grad():  # a moving average; its decay is smaller in the first steps
                weight = 1 - min(args.averaging, done / (done + 9))
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)
        found = report(average, tokenizer, {"validation": held_out}, seen, args)
        training.end_epoch(
            {
                "train_loss": training.losses["act"],
                **{f"{name} {key}": found[name][key] for name in found for key in ("accuracy", "macro_f1", "nll")},
            },
            score=found["validation"]["accuracy"],
            save_best=lambda: write_folder(args.out / "best", average.save_pretrained),
        )
    finish(args, tokenizer, seen, held_out)


if __name__ == "__main__":
    run_script(main, Args, __doc__)
