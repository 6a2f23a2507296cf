import copy
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

import prunekit
from prunekit.deployment.sparse import SparseLayer, load_csr, run_sparse, save_csr
from prunekit.errors import CheckpointError, MaskError
from prunekit.masks.masks import Masks
from prunekit.masks.weight_files import load_weights


def network(seed=0):
    torch.manual_seed(seed)
    layers = (nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 40), nn.Linear(40, 3))
    return nn.Sequential(*layers).eval()


def pruned():
    dense = network()
    generator = torch.Generator().manual_seed(1)
    masks = Masks(
        {f"{name}.weight": torch.rand(dense[name].weight.shape, generator=generator) < 0.1 for name in (0, 4)}
    )
    return dense, masks


def write(path, form="csr"):
    dense, masks = pruned()
    sparse, reports = run_sparse(dense, masks, SAMPLE, form=form)
    save_csr(path, dense, masks, reports)
    return sparse


SAMPLE = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(2))


def test_a_file_loads_into_a_fresh_dense_model_and_runs_as_before(tmp_path):
    sparse = write(tmp_path / "m")
    fresh = network(seed=9)
    before = copy.deepcopy(fresh.state_dict())
    loaded = load_csr(tmp_path / "m", fresh, SAMPLE[:1])
    assert torch.equal(loaded(SAMPLE), sparse(SAMPLE))
    assert [isinstance(part, SparseLayer) for part in loaded] == [True, False, False, False, True, False]
    assert loaded[4].forms == sparse[4].forms
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in before.items())


def test_the_forms_that_were_measured_are_those_of_the_file_and_nothing_is_measured_again(tmp_path):
    dense, masks = pruned()
    _, reports = run_sparse(dense, masks, SAMPLE, form="csr")
    changed = [
        prunekit.deployment.sparse.LayerReport(r.layer, r.parameter, r.kind, r.density, {5: "dense", 2: form})
        for r, form in zip(reports, ("taps", "columns"), strict=True)
    ]
    save_csr(tmp_path / "m", dense, masks, tuple(changed))
    loaded = load_csr(tmp_path / "m", network(), SAMPLE)
    assert loaded[0].forms == {2: "taps", 5: "dense"}
    assert loaded[4].forms == {2: "columns", 5: "dense"}
    masks.apply(dense)
    for size in (1, 20):
        torch.testing.assert_close(
            loaded(SAMPLE[:1].expand(size, -1, -1, -1)), dense(SAMPLE[:1].expand(size, -1, -1, -1))
        )


def test_the_same_model_gives_the_same_bytes_in_the_documented_layout(tmp_path):
    for name in "ab":
        write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    dense, masks = pruned()
    masks.apply(dense)
    with safe_open(tmp_path / "a", framework="np") as file:
        header = json.loads(file.metadata()["prunekit"])
        assert (header["kind"], header["format"]) == ("csr", 1)
        assert header["matrices"] == {"0.weight": 18, "4.weight": 128}
        assert header["forms"] == {"0": {"1": "taps"}, "4": {"1": "vectors", "4": "columns"}}
        crow, col, values = (file.get_tensor(f"4.weight_{part}") for part in ("crow", "col", "values"))
        assert (crow.dtype, col.dtype, values.dtype) == ("int32", "uint8", "float32")
        for row in range(40):
            wanted = dense[4].weight[row]
            assert col[crow[row] : crow[row + 1]].tolist() == wanted.nonzero().flatten().tolist()
            assert values[crow[row] : crow[row + 1]].tolist() == wanted[wanted != 0].tolist()


@pytest.mark.parametrize(("inputs", "dtype"), [(256, "U8"), (257, "U16"), (65536, "U16"), (65537, "I32")])
def test_columns_have_the_smallest_sufficient_dtype(inputs, dtype, tmp_path):
    layer = nn.Linear(inputs, 2)
    mask = torch.zeros(2, inputs, dtype=torch.bool)
    mask[0, 0] = mask[1, -1] = True
    masks = Masks({"weight": mask})
    save_csr(tmp_path / "m", layer, masks, run_sparse(layer, masks, torch.ones(1, inputs), form="csr")[1])
    with safe_open(tmp_path / "m", framework="np") as file:
        assert file.get_slice("weight_col").get_dtype() == dtype
    loaded = load_csr(tmp_path / "m", nn.Linear(inputs, 2), torch.ones(1, inputs))
    masks.apply(layer)
    torch.testing.assert_close(loaded(torch.ones(1, inputs)), layer(torch.ones(1, inputs)))


def test_a_weight_that_would_grow_is_stored_dense(tmp_path):
    dense, _ = pruned()
    masks = Masks({"4.weight": torch.rand(40, 128) < 0.9})
    save_csr(tmp_path / "m", dense, masks, ())
    stored = safetensors.torch.load_file(tmp_path / "m")
    assert torch.equal(stored["4.weight"] != 0, masks.tensors["4.weight"])
    loaded = load_csr(tmp_path / "m", network(3), SAMPLE)
    masks.apply(dense)
    assert torch.equal(loaded(SAMPLE), dense(SAMPLE))


def test_tied_weights_are_stored_once(tmp_path):
    def tied():
        parts = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
        parts[2].weight, parts[2].bias = parts[0].weight, parts[0].bias
        return parts

    dense, sample = tied(), torch.randn(2, 20)
    masks = Masks({"2.weight": torch.rand(20, 20) < 0.2})
    sparse, reports = run_sparse(dense, masks, sample, form="csr")
    save_csr(tmp_path / "m", dense, masks, reports)
    assert safetensors.torch.load_file(tmp_path / "m").keys() == {
        *(f"0.weight_{part}" for part in ("crow", "col", "values")),
        "0.bias",
    }
    loaded = load_csr(tmp_path / "m", tied(), sample)
    assert torch.equal(loaded(sample), sparse(sample))


def test_a_file_for_another_network_is_refused_with_the_difference(tmp_path):
    write(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"another network, they differ in 5.bias, 5.weight"):
        load_csr(tmp_path / "m", network()[:5], SAMPLE)
    other = network()
    other[5] = nn.Linear(40, 4)
    with pytest.raises(CheckpointError, match=r"5.bias is F32 \[3\], expected \[4\]"):
        load_csr(tmp_path / "m", other, SAMPLE)
    other[5], other[4] = network()[5], nn.Linear(64, 40)
    with pytest.raises(CheckpointError, match=r"4.weight has 128 columns, \[40, 64\] in the model"):
        load_csr(tmp_path / "m", other, SAMPLE)
    with pytest.raises(CheckpointError, match=r"0.bias is torch.float32, but torch.float64 in the model"):
        load_csr(tmp_path / "m", network().double(), SAMPLE.double())
    hooked = network()
    hooked[4].register_forward_hook(lambda *_: None)
    with pytest.raises(CheckpointError, match="'4' runs sparse in the file, but in this model it has forward hooks"):
        load_csr(tmp_path / "m", hooked, SAMPLE)


def test_other_files_are_refused(tmp_path):
    dense, masks = pruned()
    masks.save(tmp_path / "masks")
    safetensors.torch.save_file(dense.state_dict(), tmp_path / "plain")
    for name, message in (("masks", "is a mask file, not"), ("plain", "is a file of plain weights, not")):
        with pytest.raises(CheckpointError, match=f"{name} {message} a csr export"):
            load_csr(tmp_path / name, dense, SAMPLE)
    write(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"m is a csr export, not .*; load it with prunekit\.load_csr"):
        load_weights(tmp_path / "m")
    with pytest.raises(MaskError):
        prunekit.load_masks(tmp_path / "m")


def test_a_model_that_cannot_be_written_is_refused_without_a_file(tmp_path):
    dense, masks = pruned()
    with pytest.raises(MaskError, match=r"no parameter 'g.weight'"):
        save_csr(tmp_path / "m", dense, Masks({"g.weight": torch.ones(2, 2, dtype=torch.bool)}), ())
    dense.register_buffer("4_", torch.ones(1))
    dense[4].register_buffer("weight_col", torch.ones(1))
    with pytest.raises(CheckpointError, match="is named like a part"):
        save_csr(tmp_path / "m", dense, masks, ())
    assert not list(tmp_path.iterdir())


def damage(tensor, place, value):
    changed = tensor.clone()
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("4.weight_crow", lambda crow: damage(crow, 0, 1), "does not say where rows begin"),
        ("4.weight_crow", lambda crow: damage(crow, 5, -1), "does not say where rows begin"),
        ("4.weight_crow", lambda crow: damage(crow, 5, 2**30), "does not say where rows begin"),
        ("4.weight_crow", lambda crow: damage(crow, -1, int(crow[-1]) + 1), r"4.weight_col is U8 \[\d+\], expected U8"),
        ("4.weight_crow", lambda crow: crow[:-1].clone(), r"4.weight_crow is I32 \[40\], expected I32\[41\]"),
        ("4.weight_crow", lambda crow: crow.long(), r"4.weight_crow is I64 \[41\], expected I32"),
        ("4.weight_col", lambda col: damage(col, 0, 200), "beyond the last column"),
        ("4.weight_col", lambda col: damage(col, 1, int(col[0])), "is not ascending"),
        ("4.weight_col", lambda col: col.int(), "4.weight_col is I32"),
        ("4.weight_col", lambda col: col[1:].clone(), "4.weight_col is U8"),
        ("4.weight_values", lambda values: values[1:].clone(), "4.weight_values is F32"),
        (
            "4.weight_values",
            lambda values: values.double(),
            "4.weight is torch.float64, but torch.float32 in the model",
        ),
        ("4.weight_values", lambda _: None, "header and tensors differ in 4.weight_values"),
        ("4.bias", lambda bias: bias[1:].clone(), r"4.bias is F32 \[39\], expected \[40\]"),
        ("4.bias", lambda _: None, "another network, they differ in 4.bias"),
        ("4.weight", lambda _: torch.ones(40, 128), "header and tensors differ in 4.weight"),
    ],
)
def test_a_damaged_file_is_refused_by_file_and_key(key, change, message, tmp_path: Path):
    path = tmp_path / "m"
    write(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    changed = change(tensors.get(key))
    tensors = {**tensors, key: changed} if changed is not None else {k: v for k, v in tensors.items() if k != key}
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match=message) as error:
        load_csr(path, network(), SAMPLE)
    assert str(path) in str(error.value)
