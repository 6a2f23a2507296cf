"""A stranger's plugin, installed into a fresh environment through its entry point, then listed, shown and run."""

import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "third-party-criterion"

Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a function that runs Python in an environment where the example is installed."""
    pytest.importorskip("hatchling", reason="without a network the example is built by what is here")
    folder = tmp_path_factory.mktemp("stranger")
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    # Everything else, editable installs too, comes from the environment of this test: no download is needed.
    around = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n{ROOT}\n"
    (packages / "around.pth").write_text(around, encoding="utf-8")
    source = shutil.copytree(EXAMPLE, folder / "source")

    def run_python(*arguments: str) -> str:
        clean = {key: value for key, value in os.environ.items() if key not in {"PRUNEKIT_NO_PLUGINS", "PYTHONPATH"}}
        clean["OMP_NUM_THREADS"] = "1"  # small tensors are faster on one thread
        # The arguments are those of the tests below.
        done = subprocess.run(  # noqa: S603
            [python, *arguments], cwd=folder, env=clean, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run_python("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", str(source))
    return run_python


@pytest.mark.slow
def test_it_is_listed_with_its_package(run: Run) -> None:
    [row] = [line for line in run("-m", "prunekit", "list").splitlines() if "activation-weighted" in line]
    assert row.split()[0] == "activation-weighted"
    assert row.endswith("activation-weighted 0.3.0")


@pytest.mark.slow
def test_it_is_shown_with_its_options_and_source(run: Run) -> None:
    printed = run("-m", "prunekit", "show", "criterion", "activation-weighted")
    for part in ("after Wanda", "plugin:  activation_weighted", "activation_weighted.py", "power", "2.0", "a number"):
        assert part in printed


@pytest.mark.slow
def test_it_can_be_left_out(run: Run) -> None:
    assert "activation-weighted" not in run("-m", "prunekit", "list", "--no-plugin", "activation_weighted")


@pytest.mark.slow
def test_it_runs(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    task = ("--task", "prunekit.testing:ToyTask", "--structure", "hidden=1/4")
    choice = ("--criterion", "activation-weighted", "-o", "criterion.power=1", "--schedule", "one-shot")
    run("-m", "prunekit", "run", *task, *choice, "--device", "cpu", "--out", str(out))
    assert "power = 1" in (out / "config.toml").read_text(encoding="utf-8")
    [row] = [
        line
        for line in run("-m", "prunekit", "masks", "show", str(out / "masks.safetensors")).splitlines()
        if line.split()[:1] == ["hidden.weight"]
    ]
    assert row.split()[4:7] == ["288", "1,152", "0.250000"]


@pytest.mark.slow
def test_its_own_tests_pass(run: Run) -> None:
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", "source")
