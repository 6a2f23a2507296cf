"""What a bench finds: forms and their sizes as they are, times of each, and advice from given figures."""

import attrs
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing._internal.two_tensor import TwoTensor

from prunekit.contracts.export_format import PrunedNetwork
from prunekit.deployment import timing
from prunekit.deployment.bench import running
from prunekit.deployment.bench.accounting import Account, LayerCount
from prunekit.deployment.bench.advice import advise, noise_warning
from prunekit.deployment.bench.crossover import LEAST, crossover, layer_crossover
from prunekit.deployment.bench.forms import Form, cpu_forms
from prunekit.deployment.bench.records import DeviceResult, FormResult, LayerResult
from prunekit.deployment.bench.running import bench
from prunekit.deployment.export.writing import export
from prunekit.deployment.timing import Latency
from prunekit.errors import ConfigError, MaskError
from prunekit.layers.lookup import find_layers
from prunekit.layers.samples import Samples
from prunekit.layers.torch_views import core_view
from prunekit.masks.masks import Masks


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch):
    """Time as little as there can be; no test looks at a time."""
    monkeypatch.setattr(running, "_SECONDS", 0.0)


def pruned(network, *masks, shape=(64,)):
    """Return a network whose first layers have masks."""
    network = network.eval().requires_grad_(requires_grad=False)
    views = find_layers(network)
    given = Masks({f"{name}.weight": mask for name, mask in zip(views, masks, strict=False)})
    given.apply(network)
    generator = torch.Generator().manual_seed(0)
    return PrunedNetwork(network, given, views, Samples((torch.randn(4, *shape, generator=generator),)), "a network")


def two_layers(density=0.1):
    torch.manual_seed(0)
    return pruned(nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 3)), torch.rand(48, 64) < density)


def dead_units():
    torch.manual_seed(0)
    mask = (torch.arange(48) % 2 == 0).unsqueeze(1).expand(48, 64)
    return pruned(nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 3)), mask)


def test_every_form_is_measured_at_every_batch_size():
    said = []
    found = bench(dead_units(), [2, 1, 2], said.append)
    comparison = found.comparisons[0]
    assert [form.name for form in comparison.forms] == ["dense", "csr", "auto", "shrunk"]
    assert not comparison.unavailable
    for form in comparison.forms:
        assert list(form.latencies) == list(form.ratios) == [1, 2]
        assert all(0 < latency.lower <= latency.median <= latency.upper for latency in form.latencies.values())
    assert comparison.forms[0].ratios == {1: 1, 2: 1}
    assert "thread" in comparison.machine
    assert found.title == "a network: Sequential, 1,680 of 3,216 prunable weights left (density 0.5224)"
    assert (found.account.weights, found.account.kept, found.account.kept_multiply_adds) == (3216, 1680, 1680)
    assert [layer.name for layer in found.layers] == ["0"]
    assert "timing" in said[0]


@pytest.mark.thorough
def test_batch_sizes_that_would_take_too_long_are_skipped_and_reported(clock):
    class Slow(nn.Linear):
        def forward(self, inputs):
            clock.sleep(0.4 * len(inputs))
            return super().forward(inputs)

    clock(timing)
    found = bench(pruned(nn.Sequential(Slow(64, 8)), torch.rand(8, 64) < 0.2), [1, 2, 16, 200])
    assert list(found.comparisons[0].forms[0].latencies) == [1, 2]
    told = "skipped batch 16 200: a pass takes about 6 s or more; measure one size alone: --batch-sizes 16"
    assert found.advice[0] == told


def test_a_call_delayed_by_other_load_skips_no_batch_size(clock):
    held_up = iter([1.0])

    class Held(nn.Linear):
        def forward(self, inputs):
            clock.sleep(next(held_up, 0.0))
            return super().forward(inputs)

    clock(timing)
    network = pruned(nn.Sequential(Held(64, 8)), torch.rand(8, 64) < 0.2)
    assert running._affordable(network, [1, 32]) == ([1, 32], ())
    assert next(held_up, None) is None


def test_the_smallest_batch_size_is_measured_however_long_it_takes(monkeypatch):
    monkeypatch.setattr(running, "_LONGEST", 0.0)
    found = bench(two_layers(), [2, 3])
    assert list(found.comparisons[0].forms[0].latencies) == [2]


def test_bytes_on_disk_are_those_of_exported_files(tmp_path):
    network = dead_units()
    found = bench(network, [1])
    sizes = {form.name: form.file for form in found.comparisons[0].forms}
    for name in ("dense", "csr", "shrunk"):
        exported = export(network, name, tmp_path / name)
        if name == "csr":  # which forms of a layer stand in its header is measured
            assert abs(sizes["csr"] - exported.size) < 100
        else:
            assert sizes[name] == exported.size == (tmp_path / name).stat().st_size
    assert found.checkpoint == export(network, "sparse", tmp_path / "sparse").size
    network.masks.save(tmp_path / "masks")
    assert found.masks == (tmp_path / "masks").stat().st_size


def test_bytes_in_memory_are_those_of_the_tensors():
    forms = {form.name: form for form in cpu_forms(dead_units(), [1]).available}
    assert forms["dense"].memory == 4 * (64 * 48 + 48 + 48 * 3 + 3)
    assert forms["shrunk"].memory == 4 * (64 * 24 + 24 + 24 * 3 + 3)
    # Values and columns of kept weights, beginnings of rows, and biases.
    assert forms["csr"].memory == 8 * 24 * 64 + 4 * 49 + 4 * (48 + 48 * 3 + 3)


def test_shared_and_wrapped_tensors_count_once_and_whole():
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    assert Form("dense", tied, 0).memory == 64
    tied.register_buffer("pair", TwoTensor(torch.zeros(3), torch.zeros(3)))
    assert Form("2:4", tied, 0).memory == 64 + 24


def test_an_unavailable_form_is_reported_with_its_reason():
    forms = cpu_forms(two_layers(), [1])
    assert [form.name for form in forms.available] == ["dense", "csr", "auto"]
    assert forms.unavailable == {"shrunk": "the masks do not remove a whole unit from any layer"}
    half = two_layers()
    half.network.bfloat16()
    half = attrs.evolve(half, samples=half.samples.to(torch.device("cpu"), torch.bfloat16))
    forms = cpu_forms(half, [1])
    assert [form.name for form in forms.available] == ["dense"]
    assert "no layer can run sparse: 0 has weights of torch.bfloat16" in forms.unavailable["csr"]


def test_masks_outside_of_layers_are_reported_as_the_reason():
    network = nn.GRU(64, 8).eval().requires_grad_(requires_grad=False)
    masks = Masks({"weight_ih_l0": torch.rand(24, 64) < 0.5})
    given = PrunedNetwork(network, masks, {}, Samples((torch.randn(4, 1, 64),)), "a network")
    assert cpu_forms(given, [1]).unavailable["csr"] == "no layer can run sparse: no mask is on a layer"


def test_layers_that_share_a_weight_are_distinguished():
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 8))
    network[1].weight = network[0].weight
    found = bench(pruned(network, torch.rand(64, 64) < 0.1), [1])
    assert found.account.weights == 64 * 64 + 8 * 64
    assert [(layer.name, layer.shape) for layer in found.layers] == [("0", (64, 64)), ("1", (64, 64))]


def test_parametrized_weights_are_refused_with_the_next_step():
    said = []
    with pytest.raises(MaskError, match="remove_parametrizations"):
        bench(
            pruned(nn.Sequential(parametrizations.weight_norm(nn.Linear(64, 8))), torch.rand(8, 64) < 0.5),
            say=said.append,
        )
    assert not said


def test_arguments_by_name_reach_every_form():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 8)

        def forward(self, inputs, *, scale):
            return self.linear(inputs) * scale

    network = pruned(Named(), torch.rand(8, 64) < 0.2)
    samples = Samples(network.samples.arguments, {"scale": torch.ones(4, 1)})
    found = bench(attrs.evolve(network, samples=samples), [1, 3])
    assert [form.name for form in found.comparisons[0].forms] == ["dense", "csr", "auto"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_2_of_4_is_measured_beside_dense_and_shrunk():
    mask = (torch.arange(64) % 4 < 2).expand(64, 64)
    found = bench(pruned(nn.Sequential(nn.Linear(64, 64)), mask), [1, 32])
    assert [form.name for form in found.comparisons[1].forms] == ["dense", "2:4"]
    assert "GPU" in found.comparisons[1].machine


def test_a_network_that_drops_nothing_is_refused():
    for network in (
        pruned(nn.Linear(64, 3)),
        pruned(nn.Sequential(nn.Linear(64, 3)), torch.ones(3, 64, dtype=torch.bool)),
    ):
        with pytest.raises(MaskError, match="no masks that drop a weight"):
            bench(network)


@pytest.mark.parametrize("sizes", [[], [1, 0], [-1]])
def test_batch_sizes_are_at_least_one(sizes):
    with pytest.raises(ConfigError, match="batch sizes are"):
        bench(two_layers(), sizes)


@pytest.mark.parametrize("true", [0.9, 0.3, 0.02, 1.1 * LEAST])
def test_a_crossover_is_found_within_a_fifth(true):
    asked = []

    def ratio(density):
        asked.append(density)
        return density / true

    assert true / 1.2 <= crossover(ratio) <= true
    assert len(asked) == 6


def test_without_gain_at_any_density_there_is_no_crossover():
    assert crossover(lambda _: 1.0) is None
    assert crossover(lambda _: 0.5) > 0.8


def test_measuring_a_layer_does_not_change_it():
    layer = nn.Linear(64, 32).requires_grad_(requires_grad=False).eval()
    before = layer.weight.clone()
    found = layer_crossover(layer, torch.randn(2, 64), core_view)
    assert found is None or LEAST <= found <= 1
    assert torch.equal(layer.weight, before)
    assert layer_crossover(layer.bfloat16(), torch.randn(2, 64).bfloat16(), core_view) is None


def given(ratios, layers=(), *, other=0, absent=()):
    """Return what advice is made from: forms with ratios by batch size, dense times of 1, 2, ... seconds."""
    account = Account((LayerCount("fc", "linear", 100, 10, 100, 10),), other)
    sizes = next(iter(ratios.values()))
    dense = {size: Latency(float(number), number, number, 9, ()) for number, size in enumerate(sizes, 1)}
    forms = [FormResult("dense", 1, 1, dense, dict.fromkeys(sizes, 1.0))]
    forms += [FormResult(name, 1, 1, dense, found) for name, found in ratios.items() if name != "dense"]
    return account, DeviceResult("here", tuple(forms), dict.fromkeys(absent, "so")), layers


def never(*_):
    raise AssertionError("nothing is to be measured")


def test_without_a_loss_at_any_batch_size_there_is_no_advice():
    assert advise(*given({"csr": {1: 2.0, 8: 0.9}, "auto": {1: 0.5, 8: 1.0}}), never) == ()


def test_advice_names_the_density_that_would_be_faster():
    fc = LayerResult("fc", "linear", (20, 50), 0.5, {1: 0.9, 8: 1.8}, {1: 1.2, 8: 1.4})
    lines = advise(
        *given({"auto": {1: 1.01, 8: 0.99}}, (fc,), absent=["shrunk"]), lambda _, size: {1: 0.13, 8: None}[size]
    )
    assert lines == (
        "no form is faster at batch 1 and 8: the fastest takes 1.01 and 0.99 of the dense time",
        (
            "fc (linear, 20 x 50) has density 0.5; on this machine it is faster sparse below density 0.13 at "
            "batch 1 and at no density down to 1/256 at batch 8"
        ),
        (
            "removing whole channels is faster without sparse kernels: prune with --pattern channels, then "
            "prunekit export --to shrunk"
        ),
    )


def test_a_layer_that_is_faster_although_the_network_is_not_gets_no_advice():
    fc = LayerResult("fc", "linear", (20, 50), 0.01, {1: 0.1, 8: 0.2}, {1: 0.2, 8: 0.3})
    assert advise(*given({"auto": {1: 0.98, 8: 0.5}}, (fc,)), never) == (
        "no form is faster at batch 1: the fastest takes 0.98 of the dense time",
        "layers that can run sparse take 10% of the dense time at batch 1; the rest does not change",
    )


def test_advice_measures_one_layer_per_shape_and_the_slowest_only():
    layers = [LayerResult(f"fc{n}", "linear", (n, 9), 0.5, {1: n / 10}, {1: 2.0}) for n in range(1, 6)]
    layers.insert(1, attrs.evolve(layers[-1], name="like fc5", dense={1: 0.45}))
    asked = []
    advise(*given({"auto": {1: 1.0}}, layers), lambda layer, _: asked.append(layer))
    assert asked == ["fc5", "fc4", "fc3"]


def test_advice_names_missing_forms_and_attention():
    lines = advise(*given({"dense": {1: 1.0}}, other=300, absent=["csr", "shrunk"]), never)
    assert lines[:2] == (
        "no form is faster at batch 1: no sparse form is available",
        "75% of the multiply-adds are outside of prunable layers, for example in attention",
    )
    assert "--pattern channels" in lines[2]


def test_times_that_vary_widely_get_a_warning():
    steady, wide = Latency(1.0, 0.9, 1.2, 9, ()), Latency(1.0, 0.9, 1.4, 9, ())
    forms = [FormResult(name, 1, 1, {1: steady, 8: latency}, {}) for name, latency in (("a", steady), ("b", wide))]
    assert noise_warning(DeviceResult("here", tuple(forms[:1]))) == ()
    assert noise_warning(DeviceResult("here", tuple(forms))) == (
        "times vary widely at batch 8; measure again on an idle machine",
    )
