"""What several test modules need: a run from a configuration."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is first imported; no test downloads anything

import pytest
import torch

from prunekit.config import build_config
from prunekit.engine import run
from prunekit.plugins import Source, make_manager
from prunekit.preparation import prepare
from prunekit.registry import collect
from prunekit.run_folder import RunFolder

TOY = "prunekit.testing:ToyTask"


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors are faster on one thread, and tests do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def toy_run(tmp_path):
    """Return a function that runs the toy task: recipe, plugins -> (finished, prepared, folder)."""

    def go(recipe=None, plugins=(), *, out="run", resume=False):
        config = build_config({"task": {"name": TOY}, "criterion": {"name": "magnitude"}, **(recipe or {})})
        manager = make_manager(third_party=False)
        for number, plugin in enumerate(plugins):
            manager.add(plugin, Source(f"toy-{number}", "tests"))
        prepared = prepare(config, manager, collect(manager), resumed=resume)
        folder = RunFolder(tmp_path / out)
        return run(config, prepared, manager.hook, folder, resume=resume), prepared, folder

    return go
