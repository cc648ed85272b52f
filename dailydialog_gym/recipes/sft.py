"""Supervised fine-tuning on dialogues, of any causal language model or of a small new GPT-2.

    python -m dailydialog_gym.recipes.sft --dataset daily_dialog --start models/smollm2 --amp --out models/sft
    python -m dailydialog_gym.recipes.sft --dataset daily_dialog --out models/small

With ``--start``, a model that is given by folder or hub id learns to continue dialogues in the environment's format. If
its tokenizer would split ``<EOU>``, this becomes one special token, which begins with the embedding of the end-of-text
token. Without ``--start``, the recipe trains a small new GPT-2 with a byte-level BPE of its own.
``assets/README.md`` says how the embedded policy was made from such a one.

The recipe trains on the train split, stops early by the loss on the validation split, and never reads the test split,
except to leave out of training the dialogues that are also there. `OUT` becomes a Hugging Face folder (float16
safetensors and tokenizer), with the training curve in ``metrics.jsonl``. After a kill, the same command resumes from
the last state that was saved. ``--pretraining`` adds epochs on other dialogues at the beginning.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from dailydialog_gym.agent import AgentRecord
from dailydialog_gym.env.dialogues import Dialogue, load_dialogues
from dailydialog_gym.env.tokenizer import EOU, ReplyTokenizer, load_tokenizer
from dailydialog_gym.errors import run_script
from dailydialog_gym.extras import need
from dailydialog_gym.hub import only_local_files
from dailydialog_gym.models.forward import forward_packed, network_of
from dailydialog_gym.models.last_block import head_on_predicting
from dailydialog_gym.models.loading import check_positions, load_model, resolve
from dailydialog_gym.models.packing import pack_windows
from dailydialog_gym.models.precision import MixedPrecision, choose_kernels
from dailydialog_gym.ranges import Count, CountOrZero, NotNegative, Share
from dailydialog_gym.recipes.training import (
    DialogueTrainingArgs,
    Training,
    check_flags,
    check_inputs,
    heads_of,
    read_unlabelled,
    train_bpe,
)
from dailydialog_gym.runs.fingerprint import model_files
from dailydialog_gym.text import spacing_of


@dataclass
class Args(DialogueTrainingArgs):
    start: str | None = None
    """the model to begin with, and its tokenizer: a folder, a hub id or `builtin`; by default a new GPT-2"""
    epochs: Count | None = None  # type: ignore[assignment]  # `main` sets these three before they are used
    """passes over the training dialogues: by default 7 for a new model, 2 with `--start`"""
    learning_rate: NotNegative | None = None  # type: ignore[assignment]
    """highest learning rate, at the end of the warm-up: by default 1e-3 for a new model, 3e-4 with `--start`"""
    warmup_steps: Count | None = None  # type: ignore[assignment]
    """optimizer steps of a linear warm-up: by default 300 for a new model, 50 with `--start`"""
    accumulate: Count = 1
    """minibatches whose gradients are added up for one optimizer step"""
    lora_rank: Count | None = None
    """train low-rank adapters (LoRA, arXiv:2106.09685) of this rank on all linear layers instead of the weights; the
    result is a whole model, in which they are merged"""
    context: Count = 256
    """the longest training window in tokens, and the positions of a new model"""
    pretraining: Path | None = None
    """a .jsonl or .jsonl.gz file of `{"dialog": [...]}` in ordinary spacing, to train on before the dataset; it is
    converted to the dataset's spacing"""
    pretraining_epochs: Count = 1
    """passes over that file"""
    dataset_copies: CountOrZero = 0
    """copies of the dataset's dialogues that are mixed into each pass over that file"""
    layers: Count | None = None
    """transformer blocks: by default 4 for a new model; with `--start` of a GPT-2, blocks that begin as the identity
    are added up to this number"""
    vocab_size: Count = 4096
    """tokens of the byte-level BPE of a new model, special tokens included"""
    width: Count = 256
    """hidden size of a new model; each attention head has 64 dimensions"""
    dropout: Share = 0.1
    """dropout of embeddings and residuals of a new model, or of one with added blocks (`--layers`); attention has none,
    which its fused kernel needs"""


# by default: without --start, and with it
DEFAULTS: dict[str, tuple[Any, Any]] = {"epochs": (7, 2), "learning_rate": (1e-3, 3e-4), "warmup_steps": (300, 50)}


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


def new_model(args: Args, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=args.context,
            n_embd=args.width,
            n_layer=4 if args.layers is None else args.layers,
            n_head=heads_of(args.width),
            embd_pdrop=args.dropout,
            resid_pdrop=args.dropout,
            attn_pdrop=0.0,
            activation_function="gelu_pytorch_tanh",  # GPT-2's gelu_new as one kernel
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def load_start(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer, after `end_by_eou`.

    Raises:
        ValueError: there is no such model or tokenizer, or one that is not supported; the message says why.
    """
    model = load_model(name)
    load_tokenizer(name)  # refuses what the environment could not use
    source = resolve(name)
    tokenizer = AutoTokenizer.from_pretrained(
        source, local_files_only=only_local_files(source), trust_remote_code=False
    )
    end_by_eou(model, tokenizer)
    return model, tokenizer


def end_by_eou(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make EOU one token of a model and its tokenizer, which ends a text, and drop the chat template."""
    if len(tokenizer(EOU, add_special_tokens=False)["input_ids"]) > 1:
        add_eou(model, tokenizer)
    tokenizer.eos_token = EOU
    tokenizer.chat_template = None  # the model learns the environment's format
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    model.config.eos_token_id, model.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.generation_config = GenerationConfig.from_model_config(model.config)


def add_eou(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add EOU to a tokenizer as one special token, whose rows in embedding and head are the end-of-text token's."""
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError(f"{tokenizer.name_or_path}: its tokenizer has no EOS token to initialise {EOU} from")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # the token includes the blanks around it, as in the embedded tokenizer
    tokenizer.add_tokens([AddedToken(EOU, lstrip=True, rstrip=True, special=True)], special_tokens=True)
    eou = tokenizer.convert_tokens_to_ids(EOU)
    if eou >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(eou + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in model.get_input_embeddings(), model.get_output_embeddings():
            for rows in layer.parameters():
                rows[eou] = rows[end]


def deepen(model: PreTrainedModel, layers: int, dropout: float) -> GPT2LMHeadModel:
    """A GPT-2 of ``layers`` blocks that computes what ``model`` computes: the further blocks begin as the identity.

    It is trained with ``dropout`` of embeddings and residuals.
    """
    if model.config.model_type != "gpt2" or layers < model.config.n_layer:
        raise ValueError(
            f"--layers {layers} adds blocks to a GPT-2 of at most as many, but --start is a {type(model).__name__} of "
            f"{model.config.num_hidden_layers}"
        )
    changes = {"n_layer": layers, "embd_pdrop": dropout, "resid_pdrop": dropout}
    deep = GPT2LMHeadModel(GPT2Config(**model.config.to_dict() | changes))
    for name in deep.load_state_dict(model.state_dict(), strict=False).missing_keys:
        if "c_proj" in name:
            torch.nn.init.zeros_(deep.get_parameter(name))
    return deep


def add_lora(model: PreTrainedModel, rank: int, eou: int) -> nn.Module:
    """The model with adapters on its linear layers, scaled by 2; besides them only EOU's embedding is trained.

    Raises:
        ModuleNotFoundError: peft is not installed.
    """
    need("peft", extra="lora")
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear",
            trainable_token_indices=[eou],
            task_type="CAUSAL_LM",
        ),
    )


def save_half(model: nn.Module, folder: Path) -> None:
    """Write a Hugging Face folder in float16. Adapters are merged into the weights, and also saved in ``adapter/``."""
    whole = copy.deepcopy(model)
    if not isinstance(whole, PreTrainedModel):
        copy.deepcopy(model).half().save_pretrained(folder / "adapter", save_embedding_layers=False)
        whole = whole.merge_and_unload()
    whole.half().save_pretrained(folder)


def encode(tokenizer: PreTrainedTokenizerBase, dialogues: Iterable[Sequence[str]]) -> list[list[list[int]]]:
    """The token ids of each utterance of each dialogue, as the environment reads them; each ends with EOU."""
    eos_id, pad_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    reader = ReplyTokenizer(tokenizer.name_or_path, tokenizer.backend_tokenizer, eos_id, pad_id, bos_ids=[])
    return reader.encode_dialogues(dialogues)


def windows(
    encoded: list[list[list[int]]], context: int, rng: random.Random | None, bos: Sequence[int] = ()
) -> list[list[int]]:
    """Cut dialogues into windows in which a model of ``context`` positions predicts every token exactly once.

    The first token of a window is not predicted: at the beginning of a dialogue it is ``bos``, or an EOU for a
    tokenizer without BOS, and otherwise the last token of the window before. With ``rng``, half of the dialogues are
    first split between two random utterances, because the policy also gets contexts that begin in the middle of a
    dialogue. The second part has no EOU before it, so without BOS its first token is not predicted.
    """
    pieces = []
    for utterances in encoded:
        first = bos or utterances[0][-1:]
        split = rng.randrange(1, len(utterances)) if rng and len(utterances) > 1 and rng.random() < 0.5 else 0
        parts = ([first, *utterances[:split]], [bos, *utterances[split:]]) if split else ([first, *utterances],)
        for part in parts:
            ids = [token for utterance in part for token in utterance]
            pieces += [ids[i : i + context + 1] for i in range(0, len(ids) - 1, context)]
    return pieces


def batches(pieces: list[list[int]], batch_tokens: int) -> list[list[list[int]]]:
    """Minibatches of consecutive windows, which predict at most ``batch_tokens`` tokens each."""
    result: list[list[list[int]]] = []
    count = batch_tokens
    for piece in pieces:
        if count + len(piece) - 1 > batch_tokens:
            result.append([])
            count = 0
        result[-1].append(piece)
        count += len(piece) - 1
    return result


def predicted(batch: list[list[int]]) -> int:
    """The number of tokens that are predicted in a minibatch of windows."""
    return sum(len(piece) - 1 for piece in batch)


def loss_of(model: nn.Module, batch: list[list[int]], precision: MixedPrecision) -> torch.Tensor:
    """The summed cross-entropy of the predicted tokens of a minibatch, in nats.

    The windows share rows without seeing each other, and the head computes only logits of columns that predict a token.
    """
    network = network_of(model)
    packed, targets = pack_windows(batch, network.device)
    with precision, head_on_predicting(network, packed):
        logits = forward_packed(model, packed).logits[0]
    return cross_entropy(logits.float(), targets, reduction="sum")


@torch.no_grad()
def validate(
    model: nn.Module, data: list[list[list[int]]], characters: int, precision: MixedPrecision
) -> dict[str, float]:
    """The perplexity per token, and the bits per character of the utterances, which do not depend on the vocabulary.

    End-of-utterance tokens count among the tokens and their bits, but not among the characters.
    """
    model.eval()
    nats = sum(loss_of(model, batch, precision).item() for batch in data)
    tokens = sum(predicted(batch) for batch in data)
    return {"validation_perplexity": math.exp(nats / tokens), "bits_per_character": nats / math.log(2) / characters}


def main(args: Args) -> None:
    if args.dataset_copies and args.pretraining is None:
        raise ValueError("--dataset-copies are mixed into the dialogues of --pretraining FILE, which is not given")
    check_flags(args)
    default = {name: values[args.start is not None] for name, values in DEFAULTS.items() if getattr(args, name) is None}
    args = replace(args, **default)
    assert args.epochs is not None  # it has been given, or is in `default`
    transformers.utils.logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    choose_kernels(device)
    train, validation = (
        load_dialogues(args.dataset, split, test_share=args.test_share) for split in ("train", "validation")
    )
    spacing = spacing_of(utterance for dialogue in train for utterance in dialogue.utterances)
    pretraining = read_unlabelled(args.pretraining, spacing) if args.pretraining else []
    torch.manual_seed(args.seed)
    if args.start is None:
        made = (args.out / "tokenizer.json").exists()
        tokenizer = AutoTokenizer.from_pretrained(args.out) if made else train_tokenizer(train, args.vocab_size)
        model = new_model(args, tokenizer)
    else:
        model, tokenizer = load_start(args.start)
        check_positions(model, context=args.context)
        if args.layers is not None:
            model = deepen(model, args.layers, args.dropout)
    if args.lora_rank is not None:
        model = add_lora(model, args.lora_rank, tokenizer.eos_token_id)
    model.to(device)
    start = model_files(args.start, "policy") if args.start else None
    check_inputs(args.out, dataset=(train, validation), pretraining=pretraining, start=start)
    AgentRecord(dataset=args.dataset, test_share=args.test_share, spacing=spacing).write(args.out)
    tokenizer.save_pretrained(args.out)  # from here on `OUT` holds a run, whose flags `check_flags` compares

    bos = load_tokenizer(str(args.out)).bos_ids
    train_ids = encode(tokenizer, (dialogue.utterances for dialogue in train))
    first = args.pretraining_epochs if args.pretraining else 0  # its epochs do not count for --patience
    mixed = encode(tokenizer, pretraining) + train_ids * args.dataset_copies
    epochs = [mixed] * first + [train_ids] * args.epochs
    held_out = encode(tokenizer, (dialogue.utterances for dialogue in validation))
    held_out = batches(windows(held_out, args.context, None, bos), args.batch_tokens)
    characters = sum(len(utterance) for dialogue in validation for utterance in dialogue.utterances)

    def minibatches(ids: list[list[list[int]]], rng: random.Random) -> list[list[list[list[int]]]]:
        """The minibatches of an epoch, in a list for each optimizer step."""
        pieces = windows(ids, args.context, rng, bos)
        rng.shuffle(pieces)
        data = batches(pieces, args.batch_tokens)
        return [data[i : i + args.accumulate] for i in range(0, len(data), args.accumulate)]

    steps = [len(minibatches(ids, random.Random(0))) for ids in epochs]
    training = Training(args, model, steps, decay=lambda share: 0.5 + 0.5 * math.cos(math.pi * share))
    precision = MixedPrecision(device, torch.bfloat16 if args.amp else None, args.context)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(
        f"{model.num_parameters():,} parameters, {count:,} of them trained, {len(tokenizer):,} tokens of vocabulary, "
        f"{sum(len(u) for d in train_ids for u in d):,} training tokens, {device}",
        flush=True,
    )
    while training.epoch < len(epochs) and training.epoch - max(training.best_epoch, first) < args.patience:
        data = minibatches(epochs[training.epoch], training.seed_epoch())
        model.train()
        for step in training.minibatches(data, [sum(map(predicted, step)) for step in data]):
            tokens, loss = sum(map(predicted, step)), torch.zeros((), device=device)
            for batch in step:
                part = loss_of(model, batch, precision) / tokens
                part.backward()
                loss += part.detach()
            training.update(loss=loss)
        found = validate(model, held_out, characters, precision)
        training.end_epoch(
            {"train_loss": training.losses["loss"], **found},
            score=-found["bits_per_character"],
            save_best=lambda: save_half(model, args.out),
        )
    print(f"best validation: {-training.best:.4f} bits per character; model in {args.out}")


if __name__ == "__main__":
    run_script(main, Args, __doc__)
