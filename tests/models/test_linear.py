"""Linear layers by oneDNN give what PyTorch's give, and only where they are meant."""

import copy

import numpy as np
import pytest
import torch
from shapes import SHAPES, tiny_model
from torch import nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from dailydialog_gym.models import linear
from dailydialog_gym.models.decoder import Decoder
from dailydialog_gym.models.forward import forward_cached
from dailydialog_gym.models.linear import OneDNNConv1D, OneDNNLinear, packed_weights, use_onednn
from dailydialog_gym.models.precision import MixedPrecision

IN, OUT = 30, 50
LAYERS = {
    "linear": lambda: nn.Linear(IN, OUT),
    "without bias": lambda: nn.Linear(IN, OUT, bias=False),
    "conv1d": lambda: Conv1D(OUT, IN),
}
STATES = {
    "rows": lambda: torch.randn(7, IN),
    "batch": lambda: torch.randn(2, 7, IN),
    "none": lambda: torch.randn(2, 0, IN),
    "expanded": lambda: torch.randn(1, IN).expand(7, IN),
    "slice": lambda: torch.randn(9, 2 * IN)[::2, ::2],
}


class Rows(nn.Linear):
    """A subclass with another forward."""

    def forward(self, states):
        return 2 * super().forward(states)


@pytest.fixture
def slow_mkl(monkeypatch):
    """oneDNN's products are right wherever there is oneDNN, whether they are faster or not."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(linear, "mkl_is_slow", lambda: True)


def results(layer, states, weights_of_sum):
    """The output and all gradients; those of a sum alone are expanded from one number."""
    states = states.detach().requires_grad_()
    output = layer(states)
    layer.zero_grad()
    (output * weights_of_sum if weights_of_sum is not None else output).sum().backward()
    return [output.detach(), states.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_gradients_are_pytorchs(kind, states, slow_mkl):
    layer, states = LAYERS[kind](), STATES[states]()
    ours = copy.deepcopy(layer)
    use_onednn(ours)
    assert type(ours) in (OneDNNLinear, OneDNNConv1D)
    for weights in (None, torch.randn(*states.shape[:-1], OUT)):
        for found, expected in zip(results(ours, states, weights), results(layer, states, weights), strict=True):
            torch.testing.assert_close(found, expected)
            assert found.stride() == expected.stride()


@pytest.mark.parametrize("kind", SHAPES)
def test_a_model_computes_and_learns_the_same(kind, slow_mkl):
    torch.manual_seed(0)
    plain = tiny_model(kind)
    ours, names = copy.deepcopy(plain), [name for name, _ in plain.named_parameters()]
    use_onednn(ours)
    assert any(type(module) in (OneDNNLinear, OneDNNConv1D) for module in ours.modules())
    assert [name for name, _ in ours.named_parameters()] == names
    ids = torch.randint(50, (3, 9))
    for model in (plain, ours, copy.deepcopy(ours)):
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad, msg=name)


def test_frozen_weights_get_no_gradient(slow_mkl):
    layer = nn.Linear(IN, OUT)
    use_onednn(layer)
    layer.weight.requires_grad_(False)
    states = torch.randn(3, IN, requires_grad=True)
    layer(states).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None and states.grad is not None


def unusual_layers():
    """A subclass, a layer with a forward of its own, and one whose weight is computed before each forward."""
    own = nn.Linear(IN, OUT)
    own.forward = lambda states: 3 * nn.functional.linear(states, own.weight)
    return Rows(IN, OUT), own, prune.random_unstructured(nn.Linear(IN, OUT), "weight", amount=0.5)


@torch.no_grad()
def test_what_is_not_a_plain_layer_stays(slow_mkl):
    states = torch.randn(2, IN)
    for layer in unusual_layers():
        kind, forward, expected = type(layer), vars(layer).get("forward"), layer(states)
        use_onednn(layer)
        with packed_weights(layer, rows=2):
            assert torch.equal(layer(states), expected)
        assert type(layer) is kind and vars(layer).get("forward") is forward


def test_other_types_and_shapes_are_pytorchs(slow_mkl):
    model = nn.Sequential(nn.Identity(), nn.Linear(OUT, OUT))
    use_onednn(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert model[1](torch.randn(2, OUT)).dtype == torch.bfloat16
    assert model[1](torch.randn(OUT)).shape == (OUT,)
    assert model[1].double()(torch.randn(2, OUT).double()).dtype == torch.float64


def test_other_processors_keep_pytorchs_layers(monkeypatch):
    monkeypatch.setattr(linear, "mkl_is_slow", lambda: False)
    layer = nn.Linear(IN, OUT)
    use_onednn(layer)
    assert type(layer) is nn.Linear


@pytest.mark.parametrize(
    ("cpuinfo", "avx512", "slow"),
    [
        ("vendor_id\t: AuthenticAMD\n", True, True),
        ("vendor_id\t: AuthenticAMD\n", False, False),
        ("vendor_id\t: GenuineIntel\n", True, False),
        (None, True, False),
    ],
)
def test_mkl_is_slow_on_amd_with_avx512(cpuinfo, avx512, slow, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo, encoding="utf-8")
    monkeypatch.setattr(linear, "Path", lambda _: file)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": avx512})
    assert linear.mkl_is_slow.__wrapped__() == (slow and torch.backends.mkldnn.is_available())


@pytest.fixture
def bfloat16_instructions():
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        pytest.skip("oneDNN does not multiply bfloat16 on this processor")


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_packed_weights_are_those_of_autocast(kind, swapped, bfloat16_instructions, monkeypatch):
    monkeypatch.setattr(linear, "mkl_is_slow", lambda: swapped)
    model, ids = tiny_model(kind), torch.randint(50, (3, 9))
    use_onednn(model)
    for _ in range(2):
        exact = model(ids).logits
        with torch.autocast("cpu", torch.bfloat16):
            plain = model(ids).logits
            with packed_weights(model, rows=3):
                assert any("forward" in vars(module) for module in model.modules())
                ours = model(ids).logits
        assert not any("forward" in vars(module) for module in model.modules())
        error, plain_error = ((logits.float() - exact).square().mean().sqrt() for logits in (ours, plain))
        assert ours.dtype == plain.dtype and 0 < error < 1.5 * plain_error < 0.1 * exact.std()
        for parameter in model.parameters():  # the next context packs the new weights
            parameter += 0.2 * torch.randn_like(parameter)


@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_in_float32_onednns_layers_are_packed(kind, slow_mkl):
    model, ids = tiny_model(kind), torch.randint(50, (3, 9))
    expected = model(ids).logits
    use_onednn(model)
    with packed_weights(model, rows=3):
        assert any("forward" in vars(module) for module in model.modules())
        torch.testing.assert_close(model(ids).logits, expected)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("why", ["no autocast", "float16", "weights of bfloat16"])
@torch.no_grad()
def test_nothing_is_packed_where_it_would_change_or_cost_something(why):
    model = tiny_model("gpt2")
    if why == "weights of bfloat16":
        model.to(torch.bfloat16)
    dtype = torch.float16 if why == "float16" else torch.bfloat16
    with torch.autocast("cpu", dtype, enabled=why != "no autocast"), packed_weights(model, rows=3):
        assert not any("forward" in vars(module) for module in model.modules())


@torch.no_grad()
def test_a_layer_around_which_autocast_changes_computes_as_it_would(bfloat16_instructions):
    layer, states = nn.Linear(IN, OUT), torch.randn(2, IN)
    expected = layer(states)
    with torch.autocast("cpu", torch.bfloat16), packed_weights(layer, rows=2):
        assert layer(states).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            torch.testing.assert_close(layer(states), expected)


def test_functional_gradients_work(slow_mkl):
    layer, states = nn.Linear(IN, OUT), torch.randn(3, IN)

    def loss(states):
        return layer(states).square().sum()

    expected = torch.func.grad(loss)(states)
    use_onednn(layer)
    torch.testing.assert_close(torch.func.grad(loss)(states), expected)


def test_an_error_within_leaves_the_model_as_it_was(bfloat16_instructions):
    model = tiny_model("gpt2")
    with pytest.raises(KeyError), torch.autocast("cpu", torch.bfloat16), packed_weights(model, rows=3):
        raise KeyError
    assert not any("forward" in vars(module) for module in model.modules())


@torch.no_grad()
def test_a_rollout_packs_weights_and_leaves_none(bfloat16_instructions):
    model, cpu = tiny_model("gpt2"), torch.device("cpu")
    packed, fails = [], False

    def next_token(ids, **inputs):
        packed.append(any("forward" in vars(module) for module in model.modules()))
        if fails and len(packed) > 2:
            raise KeyError
        logits = forward_cached(model, ids, **inputs).logits[:, -1]
        return logits, logits[:, 0]

    transitions, precision = np.zeros((2, 50), np.int64), MixedPrecision(cpu, torch.bfloat16, 20)
    decoder = Decoder(next_token, transitions, 4, precision, cpu, network=model)
    prompts = np.ones((2, 5), np.int64), np.ones((2, 5), np.int64), 2, torch.rand(4, 4, dtype=torch.double)
    decoder.write(*prompts)
    assert packed == [True] * 4 and not any("forward" in vars(module) for module in model.modules())
    packed, fails = [], True
    with pytest.raises(KeyError):
        decoder.write(*prompts)
    assert not any("forward" in vars(module) for module in model.modules())
