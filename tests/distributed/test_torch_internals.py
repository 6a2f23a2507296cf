"""Each private name of torch still does what prunekit needs; if it does not, one sentence says what to change."""

import ast
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import prunekit
from prunekit.distributed import torch_internals

PACKAGE = Path(prunekit.__file__).parent
# Private, but not torch's: prunekit.runs.sweep.worker_pool gives the reason for each.
NOT_OF_TORCH = {"os._exit", "pool._safe_to_dynamically_spawn_children"}


@contextmanager
def requires(function, sentence):
    """Replace whatever goes wrong inside by the sentence that a maintainer needs."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a changed name may raise anything
        pytest.fail(
            f"torch {torch.__version__} {sentence}: prunekit.distributed.torch_internals.{function} needs another way "
            f"({type(error).__name__}: {error})",
            pytrace=False,
        )


def test_writes_to_a_tensor_are_counted():
    with requires("write_count", "no longer counts writes in Tensor._version"):
        tensor = torch.zeros(3)
        before = torch_internals.write_count(tensor)
        tensor.detach().add_(1)
        tensor[0] = 2
        assert torch_internals.write_count(tensor) == before + 2


def test_a_compiled_module_holds_the_original_and_names_it_in_its_state():
    with requires("uncompiled", "no longer keeps the module inside a compiled one as _orig_mod"):
        module = nn.Linear(2, 2)
        assert torch_internals.uncompiled(module) is module
        compiled = torch.compile(module, backend="eager")
        assert torch_internals.uncompiled(compiled) is module
        assert list(compiled.state_dict()) == [f"{torch_internals.COMPILED}.weight", f"{torch_internals.COMPILED}.bias"]


@pytest.mark.thorough
def test_dynamo_is_loaded_only_when_something_is_compiled():
    with requires("may_compile", "no longer loads torch._dynamo when something is compiled, and only then"):
        code = (
            "import torch; from prunekit.distributed.torch_internals import may_compile; assert not may_compile();"
            "torch.compile(torch.nn.ReLU(), backend='eager'); assert may_compile()"
        )
        # The code stands above.
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
        assert result.returncode == 0, result.stderr


def test_a_module_lists_its_parameters_including_none():
    with requires("parameter_slots", "no longer keeps the parameters of a module in Module._parameters"):
        layer = nn.Linear(2, 2, bias=False)
        assert torch_internals.parameter_slots(layer) == {"weight": layer.weight, "bias": None}


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_forward_hooks_of_a_module_are_found(register):
    with requires("has_forward_hooks", "no longer keeps forward hooks in Module._forward_hooks and _forward_pre_hooks"):
        layer = nn.Linear(2, 2)
        assert not torch_internals.has_forward_hooks(layer)
        handle = getattr(layer, register)(lambda *_: None)
        assert torch_internals.has_forward_hooks(layer)
        handle.remove()
        assert not torch_internals.has_forward_hooks(layer)


def test_the_padding_of_a_convolution_is_resolved_last_dimension_first():
    with requires("reversed_padding", "no longer resolves padding in _reversed_padding_repeated_twice"):
        assert torch_internals.reversed_padding(nn.Conv2d(1, 1, (3, 5), padding=(1, 2))) == [2, 2, 1, 1]
        assert torch_internals.reversed_padding(nn.Conv1d(1, 1, 4, padding="same")) == [1, 2]


def test_an_optimizer_that_was_never_initialized_runs_no_step_hooks():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self):
            """Leave the optimizer uninitialised, as the wrapper of Accelerate does."""

    with requires("runs_step_hooks", "no longer keeps step hooks in Optimizer._optimizer_step_post_hooks"):
        assert torch_internals.runs_step_hooks(torch.optim.SGD([nn.Parameter(torch.ones(1))]))
        assert not torch_internals.runs_step_hooks(Wrapper())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_that_share_memory_have_one_storage_identity(device):
    with requires("storage_identity", "no longer identifies memory by UntypedStorage._cdata"):
        tensor, other = torch.zeros(4, device=device), torch.zeros(4, device=device)
        assert torch_internals.storage_identity(tensor) == torch_internals.storage_identity(tensor[1:])
        assert torch_internals.storage_identity(tensor) != torch_internals.storage_identity(other)


def test_trees_are_flattened_and_mapped():
    tree = {"a": [1, (2, 3)], "b": None}
    with requires("tree_leaves", "no longer flattens trees with torch.utils._pytree.tree_leaves"):
        assert torch_internals.tree_leaves(tree) == [1, 2, 3, None]
    with requires("tree_map", "no longer maps trees with torch.utils._pytree.tree_map"):
        assert torch_internals.tree_map(str, tree) == {"a": ["1", ("2", "3")], "b": "None"}


def test_all_batch_normalizations_have_one_base_class():
    with requires("BatchNorm", "no longer derives its batch normalisations from one class, _BatchNorm"):
        for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
            assert issubclass(kind, torch_internals.BatchNorm)
        assert nn.BatchNorm2d.forward is torch_internals.BatchNorm.forward


def use_the_process_group():
    """Return how the store counts, and how many exchanges a collective adds."""
    first = torch_internals.default_store().add("torch internals", 1) == 1
    before = torch_internals.exchange_counts()
    torch.distributed.all_reduce(torch.ones(1))
    after = torch_internals.exchange_counts()
    return first, {device: after[device] - before[device] for device in before}


def test_ranks_share_a_store_and_count_their_exchanges(two_ranks):
    with requires(
        "default_store or exchange_counts",
        "no longer gives the store of the default process group, or the number of exchanges of its backends",
    ):
        results = two_ranks.run(use_the_process_group)
        assert sorted(first for first, _ in results) == [False, True]
        assert all(added["cpu"] == 1 for _, added in results)


def test_onednn_multiplies_matrices():
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch is without oneDNN")
    with requires("onednn_product", "no longer multiplies with torch.ops.mkldnn._linear_pointwise"):
        assert torch_internals.has_onednn_product()
        left, right = torch.randn(5, 7), torch.randn(7, 3)
        torch.testing.assert_close(torch_internals.onednn_product(left, right), left @ right)


def test_a_name_that_torch_removed_is_reported_in_one_sentence(monkeypatch):
    monkeypatch.setattr(torch_internals, "write_count", lambda tensor: tensor.no_such_count)
    sentence = r"^torch \S+ no longer counts writes .*torch_internals\.write_count needs another way"
    with pytest.raises(pytest.fail.Exception, match=sentence):
        test_writes_to_a_tensor_are_counted()


def private_names(path):
    """Yield (line, source) of each attribute, import and looked-up name in a file that begins with one underscore."""

    def is_private(name):
        return name.startswith("_") and not name.startswith("__")

    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name) for name in names if any(map(is_private, name.split("."))))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "hasattr", "attrgetter"}:
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            looked_up = [name for name in names if isinstance(name, str) and is_private(name)]
            yield from ((node.lineno, name) for name in looked_up if name != "_fields")  # public: of named tuples


def test_no_other_module_uses_private_names_of_torch():
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != Path(torch_internals.__file__)
        for line, name in private_names(path)
        if name not in NOT_OF_TORCH
    ]
    assert not found, f"use or add a function in prunekit.distributed.torch_internals instead of {found}"
