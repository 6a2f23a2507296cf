import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import prunekit
from prunekit.deployment.sparse import SparseLayer, run_sparse
from prunekit.errors import ConfigError, MaskError
from prunekit.layers.torch_views import core_view
from prunekit.layers.view import LayerView
from prunekit.testing.toy_task import ToyNetwork


def masks_for(model, density=0.3):
    generator = torch.Generator().manual_seed(0)
    return prunekit.Masks(
        {
            name: torch.rand(parameter.shape, generator=generator) < density
            for name, parameter in model.named_parameters()
            if parameter.dim() > 1
        }
    )


def masked(model, masks):
    model = copy.deepcopy(model).eval()
    masks.apply(model)
    return model


def check(model, sample, masks=None, **options):
    """Run a model sparse, compare it with the masked model, and return why its layers are dense, by name."""
    masks = masks or masks_for(model)
    sparse, reports = run_sparse(model, masks, sample, **{"form": "csr", **options})
    with torch.no_grad():
        torch.testing.assert_close(sparse(sample), masked(model, masks)(sample))
    made = {name for name, module in sparse.named_modules() if isinstance(module, SparseLayer)}
    assert {report.layer for report in reports if not report.reason} <= made
    assert all(bool(report.forms) != bool(report.reason) for report in reports)
    return {report.layer: report.reason for report in reports}


def test_a_network_of_all_kinds_runs_sparse_and_the_original_is_unchanged(mixed_network, labelled_batches):
    before = copy.deepcopy(mixed_network.state_dict())
    masks = masks_for(mixed_network)
    sparse, reports = run_sparse(mixed_network, masks, labelled_batches[0][0], form="csr")
    assert mixed_network.training
    assert all(torch.equal(mixed_network.state_dict()[name], tensor) for name, tensor in before.items())
    dense = masked(mixed_network, masks)
    for images, _ in labelled_batches:
        torch.testing.assert_close(sparse(images), dense(images))
    assert [(report.layer, report.parameter, report.kind) for report in reports] == [
        ("0", "0.weight", "convolution"),
        ("2", "2.weight", "convolution"),
        ("5", "5.weight", "linear"),
        ("7", "7.weight", "linear"),
    ]
    assert [report.density for report in reports] == pytest.approx(list(masks.densities().values()))
    assert not list(sparse.parameters())


def test_layers_without_a_mask_are_unchanged():
    network = ToyNetwork()
    masks = prunekit.Masks({"hidden.weight": torch.rand(network.hidden.weight.shape) < 0.2})
    sparse, reports = run_sparse(network, masks, torch.randn(4, 1, 6, 6), form="csr")
    assert [report.layer for report in reports] == ["hidden"]
    assert isinstance(sparse.classifier, nn.Linear)
    assert isinstance(sparse.hidden, SparseLayer)


def test_a_single_layer_is_a_network():
    assert check(nn.Linear(6, 4), torch.randn(5, 6)) == {"": ""}


def test_a_deep_network_gives_the_same_numbers():
    torch.manual_seed(0)
    layers = [part for _ in range(30) for part in (nn.Linear(32, 32), nn.Tanh())]
    assert set(check(nn.Sequential(*layers).double(), torch.randn(3, 5, 32).double()).values()) == {""}


def test_a_layer_that_is_called_twice_and_registered_twice_runs_sparse_in_both_places():
    layer = nn.Linear(6, 6)
    network = nn.Sequential(layer, nn.ReLU(), nn.Sequential(layer))
    sparse, reports = run_sparse(network, masks_for(network), torch.randn(2, 6), form="csr")
    assert len(reports) == 1
    assert sparse[0] is sparse[2][0]
    assert check(network, torch.randn(2, 6)) == {"0": ""}


def test_layers_that_share_a_weight_all_run_sparse():
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    network[2].weight = network[0].weight
    assert check(network, torch.randn(2, 6)) == {"0": "", "2": ""}


class Embedded(nn.Module):
    """Tokens to scores, with one weight for both."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.scores = nn.Linear(4, 9, bias=False)
        self.scores.weight = self.embedding.weight

    def forward(self, tokens):
        return self.scores(self.embedding(tokens))


def test_an_embedding_that_shares_a_weight_keeps_it_dense():
    assert check(Embedded(), torch.tensor([[1, 2, 8]]), prunekit.Masks({"scores.weight": torch.rand(9, 4) < 0.5})) == {
        "scores": ""
    }


def test_attention_stays_dense_and_is_named():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.out = nn.Linear(8, 3)

        def forward(self, inputs):
            return self.out(self.attention(inputs, inputs, inputs)[0])

    reasons = check(Attending(), torch.randn(2, 5, 8))
    assert reasons == {
        "attention.in_proj": "is computed inside MultiheadAttention",
        "attention.out_proj": "is computed inside MultiheadAttention",
        "out": "",
    }


@pytest.mark.parametrize("heads", [2, 1])  # with one head torch takes another path
def test_transformers_give_the_same_on_whichever_path_torch_takes(heads):
    layer = nn.TransformerEncoderLayer(8, heads, 16, batch_first=True)
    network = nn.Sequential(layer, nn.Linear(8, 2))
    reasons = check(network, torch.randn(2, 5, 8))
    assert reasons["1"] == ""
    assert "not called" in reasons["0.linear1"] or reasons["0.linear1"] == ""


class Odd(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs).sin()


class Parts(nn.Module):
    """Layers that are used in ways that no sparse layer follows."""

    def __init__(self):
        super().__init__()
        self.odd = Odd(6, 6)
        self.hooked = nn.Linear(6, 6)
        self.hooked.register_forward_hook(lambda *call: 2 * call[-1])
        self.keyword = nn.Linear(6, 6)
        self.unused = nn.Linear(6, 6)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.whole = nn.Linear(6, 6)
        self.wrapped = nn.Linear(6, 6)
        self.wrapped.forward = lambda inputs: inputs
        self.good = nn.Linear(6, 6)

    def forward(self, inputs):
        inputs = self.keyword(input=self.hooked(self.odd(inputs)))
        return self.good(self.wrapped(self.whole(self.normed(inputs))))


def test_layers_that_cannot_run_sparse_are_reported_with_the_reason():
    network = Parts()
    masks = masks_for(network).tensors
    chosen = {name: mask for name, mask in masks.items() if name.endswith(".weight")}
    chosen["normed.weight"] = torch.eye(6, dtype=torch.bool)
    chosen["whole.weight"] = torch.ones(6, 6, dtype=torch.bool)
    reasons = check(network, torch.randn(3, 6), prunekit.Masks(chosen))
    beginnings = {
        "odd": "is a Odd, whose outputs are not",
        "hooked": "has forward hooks",
        "keyword": "is called with other arguments than one tensor",
        "unused": "is not called",
        "normed": "is parametrized; call torch.nn.utils",
        "whole": "keeps all its weights",
        "wrapped": "has forward hooks",
        "good": "",
    }
    assert {name: reason[: len(beginnings[name])] for name, reason in reasons.items()} == beginnings
    assert reasons["good"] == ""


def test_half_precision_stays_dense():
    reasons = check(nn.Linear(6, 4).bfloat16(), torch.randn(2, 6).bfloat16())
    assert reasons[""].startswith("has weights of torch.bfloat16 and inputs of torch.bfloat16")


class Scaled(nn.Module):
    """Multiplies each vector of a sequence with one matrix: a layer that only a plugin knows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, inputs):
        return inputs @ self.weight.t()


class ScaledView(LayerView):
    kind = "scaled"

    def __init__(self, module):
        super().__init__(module, 1, 3, (4,))

    def positions(self, inputs):
        return inputs.shape[1]

    def inputs_at(self, inputs, positions):
        return inputs.transpose(0, 1)[positions].unsqueeze(0)

    def outputs_at(self, outputs, positions):
        return outputs.transpose(0, 1)[positions].unsqueeze(0)


def view_of(module):
    return ScaledView(module) if isinstance(module, Scaled) else core_view(module)


def test_a_layer_of_a_plugin_runs_sparse_for_the_size_of_the_sample():
    network = nn.Sequential(Scaled(), nn.ReLU(), nn.Linear(3, 2))
    assert check(network, torch.randn(5, 2, 4), view_of=view_of) == {"0": "", "2": ""}
    assert check(network, torch.randn(5, 2, 4)) == {"2": ""}  # unknown without the plugin
    sparse, _ = run_sparse(network, masks_for(network), torch.randn(5, 2, 4), form="csr", view_of=view_of)
    with pytest.raises(ConfigError, match=r"takes samples of \[2, 4\], got inputs of \[5, 3, 4\]"):
        sparse(torch.randn(5, 3, 4))
    many = check(network, torch.randn(5, 300, 4), view_of=view_of)
    assert many["0"].startswith("would be unrolled into")


def test_a_layer_of_a_plugin_that_sees_several_sizes_stays_dense():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.scaled = Scaled()

        def forward(self, inputs):
            return self.scaled(inputs)[:, :1] + self.scaled(inputs[:, :1])

    assert check(Both(), torch.randn(5, 2, 4), view_of=view_of) == {"scaled": "is called with inputs of several sizes"}


def test_a_network_that_uses_the_weight_of_a_layer_outside_of_it_is_refused():
    class Peeking(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, inputs):
            return self.layer(inputs) + self.layer.weight.sum()

    with pytest.raises(ConfigError, match=r"Peeking uses more of a layer than its outputs.*'weight'"):
        run_sparse(Peeking(), masks_for(Peeking()), torch.randn(2, 6), form="csr")


def test_auto_keeps_dense_what_is_faster_dense_and_sparse_what_is_faster_sparse():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.Flatten(), nn.Linear(32 * 256, 512))
    masks = prunekit.Masks({"0.weight": torch.rand(32, 32, 3, 3) < 0.9, "2.weight": torch.rand(512, 32 * 256) < 0.01})
    sample = torch.randn(3, 32, 16, 16)
    sparse, reports = run_sparse(network, masks, sample, batch_sizes=(8, 1))
    convolution, linear = reports
    assert isinstance(sparse[0], nn.Conv2d)
    assert convolution.reason == "dense is faster, or as fast, at every batch size"
    assert isinstance(sparse[2], SparseLayer)
    assert list(linear.forms) == [1, 8]
    assert "dense" not in linear.forms.values()
    assert [timing.batch_size for timing in linear.timings] == [1, 8]
    assert all(timing.ratio < 0.5 for timing in linear.timings)
    assert sparse[2].dense is None  # the dense weight is gone
    torch.testing.assert_close(sparse(sample), masked(network, masks)(sample), atol=1e-4, rtol=1e-4)


def test_tokens_count_as_samples_of_a_linear_layer():
    network = nn.Sequential(nn.Linear(512, 512))
    _, (report,) = run_sparse(network, masks_for(network, 0.01), torch.randn(2, 7, 512), batch_sizes=(1, 3))
    assert [(timing.batch_size, timing.size) for timing in report.timings] == [(1, 7), (3, 21)]


def test_layers_pruned_by_torch_stay_dense():
    network, sample = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4)), torch.randn(2, 6)
    prune.l1_unstructured(network[0], "weight", amount=0.5)
    mask = torch.rand(4, 6) < 0.5
    masks = prunekit.Masks({"0.weight_orig": mask, "1.weight": mask[:, :4]})
    sparse, (first, second) = run_sparse(network, masks, sample, form="csr")
    assert "is parametrized" in first.reason
    assert not second.reason
    masks.apply(network)
    torch.testing.assert_close(sparse(sample), network(sample).detach())


def test_impossible_arguments_are_refused_by_name():
    model, sample = nn.Linear(6, 4), torch.randn(2, 6)
    with pytest.raises(ConfigError, match=r"batch_sizes is \[\], expected"):
        run_sparse(model, masks_for(model), sample, batch_sizes=())
    with pytest.raises(ConfigError, match=r"batch_sizes is \[1, 0\], expected"):
        run_sparse(model, masks_for(model), sample, batch_sizes=(1, 0))
    with pytest.raises(MaskError, match="no parameter 'wait'"):
        run_sparse(model, prunekit.Masks({"wait": torch.ones(4, 6, dtype=torch.bool)}), sample)
    with pytest.raises(ConfigError, match="needs a batch of tensors"):
        run_sparse(model, masks_for(model), torch.zeros(0, 6))


def test_arguments_are_given_in_order_or_by_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, first, second):
            return self.layer(first - second)

    network, (first, second) = Two(), torch.randn(2, 3, 6)
    masks = masks_for(network)
    for sample in ((first, second), {"second": second, "first": first}):
        sparse, (report,) = run_sparse(network, masks, sample, form="csr")
        assert not report.reason
        torch.testing.assert_close(sparse(first, second), masked(network, masks)(first, second))
