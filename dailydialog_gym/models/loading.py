"""Load a Hugging Face model, by folder or hub id, or the embedded one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import NewGELUActivation
from transformers.utils.peft_utils import find_adapter_config_file

from dailydialog_gym.embedded import ASSETS, asset
from dailydialog_gym.files import check_folder
from dailydialog_gym.hub import only_local_files, why
from dailydialog_gym.models.linear import use_onednn
from dailydialog_gym.models.masks import check_supported
from dailydialog_gym.models.untrusted import check_files

# What transformers and safetensors raise for damaged files, weights in other shapes, and senseless configurations
LOADING_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, LookupError, TypeError, AttributeError)
LOADING_ERRORS += (RuntimeError, ArithmeticError, ImportError, SafetensorError, StrictDataclassError)


def resolve(name: str) -> str:
    """What transformers can load: the folder of the embedded model for ``"builtin"``, else the name itself."""
    return str(ASSETS / "policy") if name == "builtin" else name


def load_model(
    name: str,
    model_class: type[PreTrainedModel] = AutoModelForCausalLM,
    trust_remote_code: bool = False,
    with_head: bool = True,
) -> PreTrainedModel:
    """A causal language model in float32: ``"builtin"``, a folder (safetensors only: no pickle is read), or a hub id.

    Args:
        name: where its configuration and weights are.
        model_class: loads them; without it the class is the one that the configuration names.
        trust_remote_code: run Python code that comes with the model. It can do anything you can.
        with_head: with False, return the model without its language-model head; its outputs are hidden states.

    Raises:
        ValueError: there is no such model, a folder lacks its configuration or weights, the model is not supported,
            see `dailydialog_gym.models.masks.check_supported`, or transformers cannot separate it from its head.
    """
    if name == "builtin":
        with asset("policy") as folder:
            return load_model(str(folder), model_class, trust_remote_code, with_head)
    local_files_only = only_local_files(name)
    check_folder(name)
    _check_kind(name, local_files_only)
    try:
        check_files(name, model_class if model_class is AutoModelForCausalLM else None, trust_remote_code)
        model, report = _from_pretrained(model_class, name, local_files_only, trust_remote_code=trust_remote_code)
        # transformers initialises missing weights at random; only a class of the user's own may want that
        if report["missing_keys"] and model_class is AutoModelForCausalLM:
            raise ValueError(f"the weights lack {len(report['missing_keys'])} tensors of a {type(model).__name__}")
        _check_weights(model)
    except LOADING_ERRORS as error:
        raise ValueError(
            f"cannot load model {name!r}: expected 'builtin', a folder with config.json and model.safetensors, or a "
            f"hub id ({why(error)})"
        ) from error
    check_supported(model)
    # GPT-2's activation is eight operations, each with a pass over memory; this is the same function in one
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
    if with_head:
        return model.eval()
    if model.base_model is model:
        raise ValueError(
            f"transformers cannot separate {type(model).__name__} from its head, so it cannot be a critic of its own: "
            "use --critic shared"
        )
    return model.base_model.eval()


def _from_pretrained(
    model_class: Any, name: str, local_files_only: bool, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model in float32, from a folder by safetensors alone, and transformers' report of missing weights."""
    model, report = model_class.from_pretrained(
        name,
        output_loading_info=True,
        dtype=torch.float32,
        use_safetensors=True if Path(name).is_dir() else None,
        local_files_only=local_files_only,
        adapter_kwargs={"local_files_only": local_files_only},  # where peft is installed, it looks for adapters too
        **options,
    )
    use_onednn(model)
    return model, report


def _check_kind(name: str, local_files_only: bool) -> None:
    """Refuse what is not a causal language model of its own: an adapter, or an encoder-decoder model."""
    try:
        adapter = find_adapter_config_file(name, local_files_only=local_files_only)
        config = {} if adapter else PreTrainedConfig.get_config_dict(name, local_files_only=local_files_only)[0]
        encoder_decoder = config.get("is_encoder_decoder")
    except LOADING_ERRORS:  # loading the model will report it
        return
    if adapter:
        raise ValueError(
            f"{name!r} is an adapter (adapter_config.json), not a whole model: merge it into its base model "
            "(merge_and_unload of peft) and save the result"
        )
    if encoder_decoder:
        raise ValueError(
            f"{name!r} is an encoder-decoder model ({config.get('model_type')}): expected a causal language model, "
            "which has a decoder only"
        )


def _check_weights(model: PreTrainedModel) -> None:
    for name, weight in model.named_parameters():
        # A sum needs no memory, and is finite only if all weights are; that of large weights may not be finite either
        if not weight.sum().isfinite() and not weight.isfinite().all():
            raise ValueError(f"its weights {name} are not finite: they contain NaN or infinity")


def head_of(model: PreTrainedModel) -> nn.Module:
    """The language-model head of a model; ValueError if it has none."""
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(
            f"{type(model).__name__} has no language-model head: expected a class such as "
            "transformers:AutoModelForCausalLM, see --policy-class"
        )
    return head


def check_vocabulary(model: PreTrainedModel, vocab_size: int) -> None:
    """Raise ValueError if a tokenizer has more tokens, ``vocab_size``, than a model has rows in its embeddings."""
    rows = min(module.weight.shape[0] for module in (model.get_input_embeddings(), head_of(model)))
    if rows < vocab_size:
        raise ValueError(
            f"the tokenizer has {vocab_size} tokens, but {type(model).__name__} has embeddings for {rows}: call "
            f"model.resize_token_embeddings({vocab_size}) and save the model, then train it"
        )


def check_positions(model: PreTrainedModel, **lengths: int) -> None:
    """Raise ValueError if a model's configuration has fewer positions than it would need.

    Args:
        model: the model.
        lengths: what needs them together, in tokens, by the names of the flags that the message names.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and positions < sum(lengths.values()):
        wanted = " + ".join(f"{name} {length}" for name, length in lengths.items())
        total = f" = {sum(lengths.values())}" if len(lengths) > 1 else ""
        flags = " or ".join(f"--{name.replace('_', '-')}" for name in lengths)
        raise ValueError(f"{type(model).__name__} reads {positions} tokens, but {wanted}{total}: lower {flags}")


def load_classifier(
    model: str, kind: str = "intent classifier", new_head: bool = False, **config: object
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier by folder or hub id, in float32, with its tokenizer; ``config`` replaces what its
    configuration says. Too long texts lose their beginning, not the reply at their end. Loads no pickle from a folder.

    Args:
        model: where it is.
        kind: what an error message calls it.
        new_head: give a model without a classification head, or with one of other outputs, a new one of random weights.
        config: entries of its configuration.

    Raises:
        ValueError: there is no such model, or without ``new_head`` its weights lack the head.
    """
    check_folder(model)
    local_files_only = only_local_files(model)
    try:
        check_files(model, AutoModelForSequenceClassification)
        classifier, report = _from_pretrained(
            AutoModelForSequenceClassification,
            model,
            local_files_only,
            trust_remote_code=False,  # without it transformers would ask on the terminal
            ignore_mismatched_sizes=new_head,
            **config,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            model, truncation_side="left", local_files_only=local_files_only, trust_remote_code=False
        )
        if report["missing_keys"] and not new_head:  # transformers would initialise them at random
            raise ValueError(f"the weights lack {', '.join(sorted(report['missing_keys']))}")
        _check_weights(classifier)
    except Exception as error:  # damaged files raise many types, those of `tokenizers` the plain one
        raise ValueError(
            f"cannot load {kind} {model!r}: expected 'builtin', a folder or a hub id of a sequence classifier "
            f"({why(error)})"
        ) from error
    positions = getattr(classifier.config, "max_position_embeddings", None)
    if positions is not None:
        # RoBERTa's positions begin after that of padding
        embeddings = [module for name, module in classifier.named_modules() if name.endswith("position_embeddings")]
        first = max((module.padding_idx + 1 for module in embeddings if module.padding_idx is not None), default=0)
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions - first)
    return classifier, tokenizer
