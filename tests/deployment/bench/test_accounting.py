"""Multiply-adds agree with those that torch counts, and those under masks with a count of each kept weight's uses."""

import contextlib

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from prunekit_deepid2plus.local import LocallyConnected2d
from prunekit_deepid2plus.network import Network, NetworkSettings
from prunekit_images.networks import build_network
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from prunekit.deployment.bench.accounting import account
from prunekit.errors import MaskError
from prunekit.layers.view import LayerView
from prunekit.plugins.manager import make_manager, view_of

VIEW_OF = view_of(make_manager())


def images(*shape):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    return transformers.BertModel(transformers.BertConfig(vocab_size=30, max_position_embeddings=12, **sizes))


def gpt_2():
    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=0, eos_token_id=0, **sizes))


TOKENS = torch.arange(7).unsqueeze(0)
NETWORKS = {
    "lenet-300-100": (lambda: build_network("lenet-300-100", (1, 28, 28), 10, None, None), images(1, 28, 28), 0),
    "lenet-5": (lambda: build_network("lenet-5", (1, 28, 28), 10, None, None), images(1, 28, 28), 0),
    "resnet": (lambda: build_network("resnet", (3, 16, 16), 10, 8, 1), images(3, 16, 16), 0),
    # Two products of 49 x 49 patches, 32 values together, in each of two blocks.
    "vit": (lambda: build_network("vit", (1, 28, 28), 10, 32, 2), images(1, 28, 28), 2 * 2 * 49 * 49 * 32),
    "deepid2plus": (lambda: Network(NetworkSettings(width=1 / 8, input_size=(28, 24))), images(3, 28, 24), 0),
    "deepid2plus, no batch norm": (
        lambda: Network(NetworkSettings(width=1 / 16, input_size=(56, 48), batch_norm=False, colours=1)),
        images(1, 56, 48),
        0,
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, padding_mode="reflect"),
            nn.Conv2d(6, 5, (1, 3), padding="same"),
            nn.Flatten(2),
            nn.Conv1d(5, 10, 4, groups=5),
        ),
        images(4, 9, 8),
        0,
    ),
    "volumes": (lambda: nn.Conv3d(2, 3, 2), images(2, 4, 5, 3), 0),
    "an encoder of torch": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        images(5, 8),
        2 * 2 * 5 * 5 * 8,
    ),
    "BERT": (bert, TOKENS, 2 * 2 * 7 * 7 * 16),
    "GPT-2": (gpt_2, TOKENS, 2 * 2 * 7 * 7 * 8),
    "a layer nobody knows": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.Flatten(), nn.Linear(75, 2)),
        images(2, 3, 3),
        9 * 54,
    ),
}


def torch_count(network, run):
    """Return what torch counts, with attention in its plain form: of others it knows none on a CPU."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_dense_network_costs_what_torch_counts(name):
    make, inputs, other = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    found = account(network, lambda: network(inputs), view_of=VIEW_OF)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        expected = torch_count(network, lambda: network(inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert 2 * found.multiply_adds == expected > 0
    assert found.other == other
    assert found.kept_multiply_adds == found.multiply_adds
    assert found.kept == found.weights


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 4, "vdim": 6}, {"add_zero_attn": True, "add_bias_kv": True}])
def test_attention_has_projections_and_products(need_weights, sizes):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True, **sizes).eval()
    query, key, value = images(3, 8), images(5, attention.kdim), images(5, attention.vdim)
    tokens = 5 + 2 * bool(sizes.get("add_zero_attn"))

    def run():
        attention(query, value=value, key=key, need_weights=need_weights)

    found = account(attention, run)
    assert 2 * found.multiply_adds == torch_count(attention, run)
    assert found.other == 2 * 3 * tokens * 8
    projections = [3 * 8 * 8, 5 * 8 * attention.kdim, 5 * 8 * attention.vdim]
    expected = [*projections, 3 * 8 * 8] if "kdim" in sizes else [sum(projections), 3 * 8 * 8]
    assert [layer.multiply_adds for layer in found.layers] == expected


def test_packed_projections_use_kept_weights_for_their_own_tokens():
    attention = nn.MultiheadAttention(4, 1, batch_first=True).eval()
    mask = torch.zeros(12, 4, dtype=torch.bool)
    mask[0, :1] = mask[4, :2] = mask[8, :3] = True  # of query, key and value
    found = account(attention, lambda: attention(images(3, 4), images(5, 4), images(5, 4)), {"in_proj_weight": mask})
    assert found.layers[0].kept_multiply_adds == 3 * 1 + 5 * 2 + 5 * 3


def slow_uses(layer, inputs):
    """Return how often each weight is used: one weight at 1, the inputs at 1, sum of outputs."""
    uses = torch.zeros_like(layer.weight)
    flat, found = layer.weight.data.view(-1), uses.view(-1)
    for index in range(flat.numel()):
        flat.zero_()
        flat[index] = 1
        found[index] = layer(torch.ones_like(inputs)).sum()
    return uses


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: nn.Linear(3, 4, bias=False), torch.empty(2, 5, 3)),
        (lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False), torch.empty(2, 4, 7, 8)),
        (lambda: nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular", groups=4, bias=False), torch.empty(3, 4, 5)),
        (lambda: LocallyConnected2d(2, 3, (5, 4), 3, bias=False), torch.empty(2, 2, 5, 4)),
    ],
    ids=["linear", "grouped", "depthwise", "local"],
)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_kept_multiply_adds_are_the_uses_of_kept_weights(make, inputs, seed):
    layer = make()
    mask = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    found = account(layer, lambda: layer(inputs), {"weight": mask}, VIEW_OF).layers[0]
    uses = slow_uses(layer, inputs)
    assert found.kept_multiply_adds == uses[mask].sum()
    assert found.multiply_adds == uses.sum()
    assert found.kept == mask.sum()


class Twice(nn.Module):
    """A layer that runs twice, and another with the weight of a third."""

    def __init__(self):
        super().__init__()
        self.again, self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(4, 6)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        inputs = self.again(self.again(inputs))
        return self.first(inputs) + self.second(inputs)


@pytest.mark.parametrize("name", ["first.weight", "second.weight"])
def test_shared_weights_count_once_and_compute_at_each_use(name):
    network = Twice()
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[0, :3] = True
    found = account(network, lambda: network(torch.ones(1, 4)), {name: mask})
    again, first = found.layers
    assert (again.weights, again.multiply_adds, again.kept_multiply_adds) == (16, 32, 32)
    assert (first.name, first.weights, first.kept) == ("first", 24, 3)
    assert (first.multiply_adds, first.kept_multiply_adds) == (48, 6)
    assert (found.weights, found.kept, found.multiply_adds, found.kept_multiply_adds) == (40, 19, 80, 38)


class Vector(nn.Linear):
    """A layer that takes one vector, in an operation that torch does not count."""

    def forward(self, inputs):
        return torch.mv(self.weight, inputs)


def test_a_layer_is_counted_where_torch_does_not_count():
    network = nn.Sequential(Vector(3, 4), nn.Linear(4, 2))
    assert torch_count(network, lambda: network(torch.ones(3))) == 2 * 8
    found = account(network, lambda: network(torch.ones(3)))
    assert (found.multiply_adds, found.other) == (12 + 8, 0)


def test_a_parametrized_weight_has_the_mask_of_its_name():
    layer = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)))
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[:, 0] = False
    found = account(layer, lambda: layer(torch.ones(2, 3)), {"0.weight": mask})
    assert (found.kept, found.weights, found.kept_multiply_adds) == (8, 12, 16)


def test_a_masked_parameter_outside_of_layers_counts_as_weights():
    network = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 2))
    masks = {"0.weight": torch.eye(6, 4, dtype=torch.bool)}
    found = account(network, lambda: network(torch.tensor([1, 2])), masks)
    assert [(layer.name, layer.kind, layer.kept) for layer in found.layers] == [
        ("1", "linear", 8),
        ("0.weight", "parameter", 4),
    ]
    assert (found.weights, found.multiply_adds) == (32, 16)


def test_masks_of_biases_and_normalisation_count_nothing():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    kept = torch.tensor([True, False, True, True])
    masks = {"0.weight": kept.unsqueeze(1).expand(4, 3), "0.bias": kept, "1.weight": kept, "1.bias": kept}
    found = account(network, lambda: network(torch.ones(1, 3)), masks)
    assert [(layer.name, layer.weights, layer.kept) for layer in found.layers] == [("0", 12, 9)]


def test_products_unknown_to_a_view_count_as_other():
    class Hidden(LayerView):
        kind, observable = "hidden", False
        positions = inputs_at = outputs_at = None

    layer = nn.Linear(3, 4)
    found = account(layer, lambda: layer(torch.ones(2, 3)), view_of=lambda module: Hidden(module, 1, 4, (3,)))
    assert (found.layers[0].weights, found.layers[0].multiply_adds, found.other) == (12, 0, 24)


def test_masks_of_another_network_are_refused():
    layer = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(MaskError, match=r"no parameter 'fc\.weight'"):
        account(layer, lambda: None, {"fc.weight": torch.ones(4, 3, dtype=torch.bool)})


def test_counting_leaves_no_trace():
    layer = nn.Sequential(nn.Linear(3, 4))
    with contextlib.suppress(ZeroDivisionError):
        account(layer, lambda: 1 / 0)
    assert not layer[0]._forward_hooks
    assert not layer[0]._forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled()
