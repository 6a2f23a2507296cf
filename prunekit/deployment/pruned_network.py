"""Open a pruned network from the folder of a finished run, or from code with optional mask and weight files.

``prunekit export`` and ``prunekit bench`` use it. It only reads files; it must not know how networks are pruned,
exported or measured.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from prunekit.contracts.export_format import PrunedNetwork
from prunekit.contracts.seeds import Seeds
from prunekit.distributed.torch_internals import uncompiled
from prunekit.errors import CheckpointError, ConfigError, MaskError
from prunekit.files.headers import refuse_other_kinds
from prunekit.layers.lookup import find_layers
from prunekit.layers.samples import MOST, Samples
from prunekit.masks.masks import Masks, load_masks
from prunekit.masks.matching import match
from prunekit.masks.weight_files import check_weights, load_weights
from prunekit.plugins.manager import make_manager, view_of
from prunekit.plugins.registry import collect, import_named
from prunekit.runs.folder import RunFolder
from prunekit.runs.preparing.network import build_model
from prunekit.runs.preparing.task_samples import task_samples
from prunekit.runs.recipes import build_config, read_recipe


def open_pruned(
    name: str,
    *,
    masks: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    inputs: Sequence[str] = (),
    no_plugins: Sequence[str] = (),
) -> PrunedNetwork:
    """Open a pruned network.

        pruned = open_pruned("runs/mnist")
        pruned = open_pruned("models.py:make", masks="masks.safetensors", inputs=["3x55x47"])

    Args:
        name: a run folder; or ``file.py:function`` or ``module:Class``, which returns the network when called without
            arguments. The next three arguments are for this form only.
        masks: mask file; without one, weights that are exactly zero count as dropped.
        weights: state dict of the network, also as a sparse checkpoint.
        inputs: shape of one sample for each argument of the network; see ``random_samples``.
        no_plugins: names of plugins to disable.

    Raises:
        CheckpointError: a folder without a finished run, or weights that cannot be read or do not fit.
        ConfigError: no such folder or model, missing or wrong inputs, or a function that returns no network.
        MaskError: masks that cannot be read or do not fit.
        DataError: the data of the task of a run is missing.
    """
    refuse_other_kinds(Path(name), ("run",), ConfigError)
    if name and Path(name).is_dir():
        if masks is not None or weights is not None or inputs:
            raise ConfigError(
                f"{name} is a run folder, which has masks, weights and inputs of its own; "
                "remove --masks, --weights and --input"
            )
        return _open_run(RunFolder(Path(name)), no_plugins)
    if ":" not in name:
        raise ConfigError(f"there is no run folder {name!r}; name one, or a model as file.py:function or module:Class")
    if not inputs:
        raise ConfigError(f"model {name!r} needs the shape of a sample; give --input, for example --input 3x55x47")
    return _open_model(name, masks, weights, inputs, no_plugins)


def _open_run(folder: RunFolder, no_plugins: Sequence[str]) -> PrunedNetwork:
    if not folder.config.is_file():
        raise CheckpointError(
            f"{folder.path} contains no run ({folder.config.name} is missing); name the folder of a run"
        )
    if not folder.model.is_file():
        raise CheckpointError(
            f"the run in {folder.path} has no {folder.model.name} yet; finish it with: "
            f"prunekit run --resume {folder.path}"
        )
    config = build_config(read_recipe(folder.config), {"no_plugins": list(no_plugins) or None})
    manager = make_manager(config.no_plugins)
    task = collect(manager).make_task(config.task.name, config.task.options)
    seeds = Seeds(config.seed)
    task.setup(seeds)
    model = build_model(task, seeds, "initial weights").eval().requires_grad_(requires_grad=False)
    network = task.deployed(model)
    _load(network, folder.model, "the task or its data has changed since the run")
    loaded = load_masks(folder.masks) if folder.masks.is_file() else Masks({})
    fitted = _fit(loaded, network, folder.masks)
    samples = task_samples(task, model, seeds)
    views_by = view_of(manager)
    return PrunedNetwork(network, fitted, find_layers(network, views_by), samples, str(folder.path), views_by)


def _open_model(
    name: str,
    masks: str | os.PathLike[str] | None,
    weights: str | os.PathLike[str] | None,
    inputs: Sequence[str],
    no_plugins: Sequence[str],
) -> PrunedNetwork:
    network = _made(name).eval()
    dtypes = [tensor.dtype for tensor in network.parameters() if tensor.dtype.is_floating_point]
    samples = random_samples(inputs, dtypes[0] if dtypes else torch.get_default_dtype())
    with _seeded():  # lazy modules draw their weights now
        _check_call(network, samples, name, "give one --input for each argument")
    _check_call(network, samples.take(1), name, "a deployed network must accept a single sample")
    network.requires_grad_(requires_grad=False)
    if weights is not None:
        _load(network, weights, "give a state dict of this network")
    if masks is not None:
        fitted = _fit(load_masks(masks), network, masks)
    else:
        zeros = Masks.from_zeros(network).tensors.items()
        fitted = Masks({key: mask for key, mask in zeros if not bool(mask.all())})
    views_by = view_of(make_manager(no_plugins))
    return PrunedNetwork(network, fitted, find_layers(network, views_by), samples, name, views_by)


def _check_call(network: nn.Module, samples: Samples, name: str, advice: str) -> None:
    try:
        samples.through(network.cpu())
    except Exception as error:
        shapes = " and ".join(str(list(leaf.shape)) for leaf in samples.arguments)
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"model {name!r} cannot be called with inputs of {shapes}: {problem}; {advice}") from error


def _made(name: str) -> nn.Module:
    make = import_named("model", name)
    try:
        with _seeded():
            network = make()
    except Exception as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"model {name!r} cannot be called without arguments: {problem}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"model {name!r} returned a {type(network).__name__}, expected a torch.nn.Module")
    # Unwrap torch.compile, which hides the modules of the network.
    network = uncompiled(network)
    if isinstance(network, torch.jit.ScriptModule):
        raise ConfigError(
            f"model {name!r} is a TorchScript module, which cannot be changed; name the module it was scripted from"
        )
    if prune.is_pruned(network):
        raise ConfigError(
            f"model {name!r} is pruned with torch.nn.utils.prune, which keeps masks beside dense weights; "
            "call torch.nn.utils.prune.remove for each parameter, so that dropped weights are 0"
        )
    return network


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed the initial weights as in a run, without changing the state of the generator of the caller."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(Seeds(0).derive("initial weights"))
        yield


def _load(network: nn.Module, path: str | os.PathLike[str], advice: str) -> None:
    weights: dict[str, Any] = load_weights(path)
    check_weights(weights, network, Path(path), advice)
    network.load_state_dict(weights)


def _fit(masks: Masks, network: nn.Module, path: str | os.PathLike[str]) -> Masks:
    """Apply masks to a network, and return them under the parameter names of the network."""
    try:
        matched = match(masks.tensors, network)
    except MaskError as error:
        raise MaskError(f"{os.fspath(path)}: {error}") from error
    fitted = Masks({name: mask for name, (_, mask) in matched.items()}, masks.info)
    fitted.apply(network)
    return fitted


_FORM = "expected sizes such as 3x55x47, or 128:0..999 for integers from 0 to 999"


def random_samples(shapes: Sequence[str], dtype: torch.dtype) -> Samples:
    """Return a batch of ``MOST`` random samples; the same shapes always give the same samples.

    Args:
        shapes: shape of one sample, without the batch dimension, for each argument of the network: "3x55x47" for
            normally distributed values, "128:0..999" for int64 token ids from 0 to 999.
        dtype: dtype of the normally distributed values.

    Raises:
        ConfigError: a shape that cannot be parsed.
    """
    return Samples(tuple(_random(text, number, dtype) for number, text in enumerate(shapes)))


def _random(text: str, number: int, dtype: torch.dtype) -> Tensor:
    found = re.fullmatch(r"([1-9]\d*(?:x[1-9]\d*)*)(?::(\d+)\.\.(\d+))?", text, re.ASCII)
    if found is None:
        raise ConfigError(f"--input is {text!r}, {_FORM}; omit the batch dimension")
    shape = (MOST, *map(int, found[1].split("x")))
    generator = Seeds(0).generator("sample inputs", number)
    low, high = (int(found[2]), int(found[3])) if found[2] else (0, 0)
    if low > high:
        raise ConfigError(f"--input is {text!r}, an empty range, {_FORM}")
    try:
        if found[2] is None:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return torch.randint(low, high + 1, shape, generator=generator)
    except (RuntimeError, TypeError, ValueError) as error:  # out of memory, or integers beyond 64 bits
        reason = str(error).partition("\n")[0][:200]
        raise ConfigError(f"--input is {text!r}, but {MOST} such samples cannot be created: {reason}") from error
