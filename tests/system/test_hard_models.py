"""Models beyond a chain of layers: masks are selected, held, trained under and saved without changing the model."""

import copy
import io
from pathlib import Path

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import prunekit
from prunekit import Masks
from prunekit.cli import main
from prunekit.errors import ConfigError, MaskError
from prunekit.layers.lookup import find_layers, parameter_name


class Language(nn.Module):
    """Predicts tokens; the head is the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.hidden(self.embedding(tokens)).relu())


class Repeated(nn.Module):
    """A linear layer that is called twice, in a list with another."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.again = self.layers[0]

    def forward(self, inputs):
        return self.again(self.layers[1](self.layers[0](inputs).relu()).relu())


def attention(**sizes):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)

        def forward(self, inputs):
            keys = inputs[..., : self.attention.kdim]
            return self.attention(inputs, keys, inputs[..., : self.attention.vdim])[0]

    return Attention()


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


TOKENS = torch.arange(33).reshape(3, 11) % 11
MODELS = {
    "tied weights": (Language, TOKENS),
    "a shared module in a list": (Repeated, numbers(4, 6)),
    "packed attention": (attention, numbers(3, 5, 8)),
    "attention of three sizes": (lambda: attention(kdim=4, vdim=6), numbers(3, 5, 8)),
    "an encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), numbers(3, 5, 8)),
    "a lazy module after its first batch": (lambda: ran(nn.LazyLinear(4), numbers(3, 6)), numbers(3, 6)),
    "bfloat16": (lambda: nn.Linear(6, 4).bfloat16(), numbers(3, 6).bfloat16()),
    "float64": (lambda: nn.Linear(6, 4).double(), numbers(3, 6).double()),
    "frozen layers": (lambda: frozen(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))), numbers(3, 6)),
    "a compiled wrapper": (lambda: torch.compile(Repeated(), backend="aot_eager"), numbers(4, 6)),
    "a compiled module inside": (
        lambda: nn.Sequential(torch.compile(nn.Linear(6, 6), backend="aot_eager"), nn.Linear(6, 4)),
        numbers(4, 6),
    ),
}


def ran(model, inputs):
    model(inputs)
    return model


def frozen(model):
    model[0].requires_grad_(False)
    return model


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model_and_inputs(request):
    torch.manual_seed(0)
    make, inputs = request.param
    return make(), inputs


def train(model, optimizer, inputs, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs).float().square().mean().backward()
        optimizer.step()


def holds(model, masks):
    """Return whether the zeros of a model are those of the masks."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return all(torch.equal(parameters[name] != 0, mask) for name, mask in masks.tensors.items())


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_zeros_are_kept_in_training_and_through_a_file(model_and_inputs, criterion, tmp_path):
    model, inputs = model_and_inputs
    keys = list(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    train(model, optimizer, inputs)
    masks = prunekit.select(model, criterion, density=0.5)
    masks.save(tmp_path / "masks.safetensors")
    with prunekit.load_masks(tmp_path / "masks.safetensors").hold(model, optimizer):
        for _ in range(3):
            train(model, optimizer, inputs, 1)
            assert holds(model, masks)
    assert list(model.state_dict()) == keys


def test_every_weight_but_embeddings_and_norms_is_found_once(model_and_inputs):
    model, _ = model_and_inputs
    layers = find_layers(model)
    names = [parameter_name(name, view) for name, view in layers.items()]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = [parameters[name] for name in names]
    assert [view.weight for view in layers.values()] == found
    assert len({id(parameter) for parameter in found}) == len(found)
    assert {id(parameter) for parameter in found} == {
        id(parameter) for parameter in parameters.values() if parameter.dim() > 1
    }
    for name, view in layers.items():
        assert view.shape(name).weights == view.weight.numel()
        assert torch.equal(view.from_matrix(view.to_matrix(view.weight)), view.weight)


def test_a_held_model_is_copied_saved_and_exported_as_before(model_and_inputs):
    model, inputs = model_and_inputs
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    masks = prunekit.select(model, density=0.5)
    with masks.hold(model, optimizer):
        train(model, optimizer, inputs)
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        buffer.seek(0)
        for name, tensor in torch.load(buffer, weights_only=True).items():
            assert torch.equal(tensor, model.state_dict()[name])
        if isinstance(model, torch._dynamo.OptimizedModule):
            return  # neither exported nor copied by torch itself
        copied = copy.deepcopy(model)
        assert holds(copied, masks)
        assert not any(parameter._post_accumulate_grad_hooks for parameter in copied.parameters())
        exported = torch.export.export(model.eval(), (inputs,))
    torch.testing.assert_close(exported.module()(inputs), model(inputs))


def test_tied_weights_have_one_mask_and_one_update(tmp_path):
    torch.manual_seed(0)
    model, reference = Language(), Language()
    reference.load_state_dict(model.state_dict())
    masks = prunekit.select(model, density={"head": 0.4, "hidden": 0.5})
    assert list(masks.tensors) == ["head.weight", "hidden.weight"]
    kept = {name: mask.to(torch.float32) for name, mask in masks.tensors.items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    other = torch.optim.Adam(reference.parameters(), lr=0.05)
    with masks.hold(model, optimizer):
        train(model, optimizer, TOKENS)
    for _ in range(3):
        other.zero_grad()
        tied, hidden = reference.head.weight * kept["head.weight"], reference.hidden.weight * kept["hidden.weight"]
        inner = nn.functional.linear(nn.functional.embedding(TOKENS, tied), hidden, reference.hidden.bias).relu()
        nn.functional.linear(inner, tied).square().mean().backward()
        other.step()
    assert model.head.weight is model.embedding.weight
    torch.testing.assert_close(model.head.weight, reference.head.weight * kept["head.weight"], rtol=1e-6, atol=1e-7)
    assert Masks.from_zeros(model).tensors.keys() == {"embedding.weight", "hidden.weight"}
    both = Masks({**masks.tensors, "embedding.weight": ~masks.tensors["head.weight"]})
    with pytest.raises(MaskError, match=r"'embedding.weight' and 'head.weight' are one weight with two different"):
        both.apply(model)


@pytest.mark.parametrize(
    ("sizes", "names"),
    [
        ({}, ["in_proj", "out_proj"]),
        ({"kdim": 4, "vdim": 6}, ["q_proj", "k_proj", "v_proj", "out_proj"]),
    ],
)
def test_every_projection_of_attention_is_a_layer(sizes, names):
    model = attention(**sizes)
    layers = find_layers(model)
    assert list(layers) == [f"attention.{name}" for name in names]
    assert list(find_layers(model.attention)) == names
    masks = prunekit.select(model, density=0.25, scope="unit")
    for name, view in layers.items():
        rows = view.to_matrix(masks.tensors[parameter_name(name, view)]).sum(-1)
        assert rows.sum() == view.weight.numel() / 4
        assert rows.max() - rows.min() <= 1
    assert layers[f"attention.{names[0]}"].groups == (1 if sizes else 3)


def test_projections_that_cannot_be_observed_are_refused_and_the_rest_is_pruned():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    batches = [numbers(3, 5, 8)]
    for name in ("self_attn.in_proj", "out_proj"):
        with pytest.raises(ConfigError, match=r"inside MultiheadAttention, where its inputs cannot be observed"):
            prunekit.select(model, "correlation", density={name: 0.5}, batches=batches)
    with pytest.raises(ConfigError, match=r"'self_attn' has no weights .* inside it write 'self_attn.\*'"):
        prunekit.select(model, density={"self_attn": 0.5})
    masks = prunekit.select(model, "correlation", density={"linear*": 0.5}, batches=batches)
    assert list(masks.tensors) == ["linear1.weight", "linear2.weight"]


TRANSFORMER = """
from torch import nn
from prunekit.testing import ToyTask

class Transformer(ToyTask):
    name = "transformer"
    aliases = {}

    def build_model(self):
        layer = nn.TransformerEncoderLayer(6, 2, 16, batch_first=True)
        layer.linear1 = nn.utils.parametrizations.weight_norm(layer.linear1)
        return layer

    def activations(self, network):
        return {}
"""


@pytest.mark.parametrize(
    ("criterion", "structure", "words"),
    [
        ("magnitude", "self_attn.*=0.5 linear2=0.5", ""),
        ("correlation", "self_attn.in_proj=0.5", "layer 'self_attn.in_proj' is computed inside MultiheadAttention"),
        ("magnitude", "linear1=0.5", "layer 'linear1' is parametrized: its weight is computed"),
    ],
)
def test_a_plan_for_layers_that_cannot_be_pruned_is_refused_before_training(
    criterion, structure, words, tmp_path, capsys
):
    path = tmp_path / "task.py"
    path.write_text(TRANSFORMER)
    arguments = ["plan", "--task", f"{path}:Transformer", "--criterion", criterion, "--structure", structure]
    assert (main(arguments) == 0) == (not words)
    assert words in capsys.readouterr().err


def test_a_layer_that_no_batch_reaches_is_named():
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})
    with pytest.raises(ConfigError, match="no batch calls layer 'unused'"):
        prunekit.select(
            model,
            "correlation",
            density=0.5,
            batches=[numbers(9, 4)],
            forward=lambda model, batch: model["used"](batch),
        )


def pruned_by_torch():
    layer = nn.Linear(4, 4)
    torch.nn.utils.prune.random_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.parametrize(
    ("make", "way_back"),
    [
        (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), "parametrize.remove_parametrizations"),
        (lambda: torch.nn.utils.spectral_norm(nn.Linear(4, 4)), "remove_weight_norm or remove_spectral_norm"),
        (pruned_by_torch, "prune.remove"),
    ],
)
def test_a_parametrized_weight_is_refused_with_the_next_step_and_its_model_is_not_changed(make, way_back):
    torch.manual_seed(0)
    model = nn.Sequential(make(), nn.Linear(4, 4))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=f"layer '0' is parametrized: its weight is computed.*{way_back}"):
        prunekit.select(model, density=0.5)
    assert prunekit.select(model, density={"1": 0.5}).densities() == {"1.weight": 0.5}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_mask_of_an_orthogonal_weight_says_what_to_do_and_then_fits():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)))
    masks = Masks({"0.weight": torch.eye(4, dtype=torch.bool)})
    with pytest.raises(
        MaskError, match=r"'0.weight' is parametrized, .* torch.nn.utils.parametrize.remove_parametrizations"
    ):
        masks.apply(model)
    parametrize.remove_parametrizations(model[0], "weight")
    with masks.hold(model, torch.optim.SGD(model.parameters(), lr=0.1)):
        assert holds(model, masks)


class Scaled(nn.Module):
    """A custom parametrisation with its own parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, weight):
        return weight * self.scale


def scaled():
    layer = nn.Linear(6, 5)
    parametrize.register_parametrization(layer, "weight", Scaled())
    return layer


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: parametrizations.weight_norm(nn.Linear(6, 5)), "original1"),
        (lambda: parametrizations.spectral_norm(nn.Linear(6, 5)), "original"),
        (scaled, "original"),
    ],
)
@pytest.mark.parametrize("criterion", ["magnitude", "correlation"])
def test_a_weight_that_keeps_the_zeros_of_a_parameter_is_pruned_held_saved_and_released(make, key, criterion, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(make(), nn.ReLU(), nn.Linear(5, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = prunekit.select(model, criterion, density={"0": 0.5}, scope="unit", batches=[torch.randn(32, 6)] * 3)
    assert masks.densities() == {"0.weight": 0.5}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    masks.save(tmp_path / "masks.safetensors")
    masks, mask = prunekit.load_masks(tmp_path / "masks.safetensors"), masks.tensors["0.weight"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    with masks.hold(model, optimizer):
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
            assert torch.equal(model[0].weight != 0, mask)
            assert not model.get_parameter(f"0.parametrizations.weight.{key}")[~mask].any()
    assert model.state_dict().keys() == before.keys()
    assert copy.deepcopy(model).state_dict().keys() == before.keys()
    assert torch.equal(Masks.from_zeros(model).tensors["0.weight"], mask)
    parametrize.remove_parametrizations(model[0], "weight")
    assert torch.equal(model[0].weight != 0, mask)
    masks.apply(model)


def test_a_held_weight_norm_moves_as_one_whose_direction_is_multiplied_by_the_mask():
    torch.manual_seed(0)
    mask = torch.rand(5, 6) < 0.5
    mask[:, 0] = True
    ours = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)))
    scale = ours[0].parametrizations.weight.original0.detach().clone().requires_grad_()
    direction = (ours[0].parametrizations.weight.original1.detach() * mask).requires_grad_()
    bias = ours[0].bias.detach().clone().requires_grad_()
    optimizers = [torch.optim.SGD(p, lr=0.1, momentum=0.9) for p in (ours.parameters(), [scale, direction, bias])]
    with Masks({"0.weight": mask}).hold(ours, optimizers[0]):
        for _ in range(5):
            inputs = torch.randn(8, 6)
            masked = direction * mask
            weight = torch._weight_norm(masked, scale, 0)
            for optimizer, outputs in zip(
                optimizers, (ours(inputs), nn.functional.linear(inputs, weight, bias)), strict=True
            ):
                optimizer.zero_grad()
                outputs.square().sum().backward()
                optimizer.step()
    assert torch.equal(ours[0].parametrizations.weight.original1, direction * mask)
    assert torch.equal(ours[0].parametrizations.weight.original0, scale)


def test_a_unit_of_a_weight_norm_without_kept_weights_is_refused():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)))
    mask = torch.ones(5, 6, dtype=torch.bool)
    mask[2] = False
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MaskError, match=r"'0\.weight' would be computed as 0 / 0, because its mask keeps no"):
        Masks({"0.weight": mask}).apply(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("criterion", ["snip", "taylor", "fisher", "obs", "grasp", "synflow"])
def test_a_criterion_that_needs_gradients_of_a_parametrized_weight_is_refused(criterion):
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)))
    with pytest.raises(ConfigError, match="its weight is computed from other parameters"):
        prunekit.select(
            model, criterion, density=0.5, batches=[torch.randn(4, 6)], loss=lambda model, batch: model(batch).sum()
        )


@pytest.mark.parametrize("criterion", ["grasp", "synflow"])
def test_a_criterion_of_the_whole_network_reaches_the_projections_of_attention(criterion):
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

        def forward(self, tokens):
            return self.last(self.attention(tokens, tokens, tokens)[0].mean(1))

    torch.manual_seed(0)
    masks = prunekit.select(
        Attending(),
        criterion,
        density=0.5,
        batches=[torch.randn(3, 4, 8)],
        loss=lambda model, batch: model(batch).square().sum(),
    )
    assert masks.density() == pytest.approx(0.5)
    assert set(masks.tensors) == {"attention.in_proj_weight", "attention.out_proj.weight", "last.weight"}


def test_lazy_modules_are_named_until_they_have_a_shape():
    model = nn.Sequential(nn.LazyConv2d(2, 3), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ConfigError, match="layer '0' has no shape yet; run one batch through the model first"):
        prunekit.select(model, density=0.5)
    with pytest.raises(MaskError, match=r"'0.weight' has no shape yet; run one batch"):
        Masks.from_zeros(model)
    with pytest.raises(MaskError, match=r"'2.weight' has no shape yet, run one batch"):
        Masks({"2.weight": torch.ones(3, 8, dtype=torch.bool)}).apply(model)
    model(numbers(1, 1, 4, 4))
    assert prunekit.select(model, density=0.5).densities() == {"0.weight": 0.5, "2.weight": 0.5}


def test_frozen_layers_stay_frozen_and_their_values_unchanged():
    torch.manual_seed(0)
    model = frozen(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4)))
    masks = prunekit.select(model, density=0.5)
    before = model[0].weight * masks.tensors["0.weight"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with masks.hold(model, optimizer):
        train(model, optimizer, numbers(3, 6))
    assert not model[0].weight.requires_grad
    assert torch.equal(model[0].weight, before)
    assert holds(model, masks)


def test_the_parameters_of_a_layer_added_to_the_optimiser_later_are_held():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    optimizer = torch.optim.AdamW(model[0].parameters(), lr=0.1)
    masks = prunekit.select(model, density=0.5)
    with masks.hold(model, optimizer):
        train(model, optimizer, numbers(3, 6))
        optimizer.add_param_group({"params": model[1].parameters(), "lr": 0.01})
        train(model, optimizer, numbers(3, 6))
    assert holds(model, masks)


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("compiled", [False, True])
def test_masks_go_in_and_out_of_distributed_and_compiled_wrappers(one_process, compiled):
    torch.manual_seed(0)
    inner = Repeated()
    masks = prunekit.select(inner, density=0.5)
    model = nn.parallel.DistributedDataParallel(inner)
    model = torch.compile(model, backend="aot_eager") if compiled else model
    wrapped = prunekit.select(model, density=0.5)
    prefix = "_orig_mod.module." if compiled else "module."
    assert {name.removeprefix(prefix): mask for name, mask in wrapped.tensors.items()}.keys() == masks.tensors.keys()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    with masks.hold(model, optimizer):
        train(model, optimizer, numbers(4, 6))
        assert holds(inner, masks)
    wrapped.apply(inner)
    assert holds(inner, masks)


HUGE = """
from torch import nn
from prunekit.testing import ToyTask

class Huge(ToyTask):
    name = "huge"
    aliases = {}

    def build_model(self):
        return nn.Sequential(*(nn.Linear(8192, 8192, bias=False) for _ in range(16)))

    def activations(self, network):
        return {}
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets the highest peak so far")
def test_a_model_of_a_billion_weights_is_planned_without_memory(tmp_path, capsys):
    Path("/proc/self/clear_refs").write_text("5")  # earlier tests may have used more
    before = peak()
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(8192, 8192, bias=False) for _ in range(16)))
    layers = find_layers(model)
    assert sum(view.shape(name).weights for name, view in layers.items()) == 2**30
    masks = Masks({parameter_name(name, view): view.weight != 0 for name, view in layers.items()})
    masks.apply(model)
    with pytest.raises(ConfigError, match="layer '0' is on the device 'meta' and has no values"):
        prunekit.select(model, density=0.5)
    with pytest.raises(MaskError, match=r"'0.weight' is on the device 'meta' and has no values"):
        Masks.from_zeros(model)
    path = tmp_path / "huge.py"
    path.write_text(HUGE)
    assert main(["plan", "--task", f"{path}:Huge", "--criterion", "magnitude", "--structure", "*=1/4"]) == 0
    assert "1,073,741,824 prunable weights, biases not counted; weights left 0.25" in capsys.readouterr().out
    assert peak() - before < 100 * 2**20


def peak():
    """Return the peak memory of this process in bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
