"""Third-party plugins, one of each kind, installed into a fresh environment through their entry points, then used."""

import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("third-party-*"))
MOST_LINES = 30

Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a function that runs Python in an environment where the examples are installed."""
    pytest.importorskip("hatchling", reason="without a network the examples are built by what is here")
    folder = tmp_path_factory.mktemp("stranger")
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    # Everything else, editable installs too, comes from the environment of this test: no download is needed.
    around = f"{ROOT}\nimport site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (packages / "around.pth").write_text(around, encoding="utf-8")
    sources = [shutil.copytree(example, folder / example.name) for example in EXAMPLES]

    def run_python(*arguments: str) -> str:
        clean = {key: value for key, value in os.environ.items() if key not in {"PRUNEKIT_NO_PLUGINS", "PYTHONPATH"}}
        clean["OMP_NUM_THREADS"] = "1"  # small tensors are faster on one thread
        # The arguments are those of the tests below.
        done = subprocess.run(  # noqa: S603
            [python, *arguments], cwd=folder, env=clean, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    install = ("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    run_python(*install, *map(str, sources))
    return run_python


@pytest.fixture(scope="module")
def finished(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with the third-party criterion, to which the third-party listener listened."""
    out = tmp_path_factory.mktemp("runs") / "run"
    task = ("--task", "prunekit.testing:ToyTask", "--structure", "hidden=1/4")
    choice = ("--criterion", "activation-weighted", "-o", "criterion.power=1", "--schedule", "one-shot")
    run("-m", "prunekit", "run", *task, *choice, "--device", "cpu", "--out", str(out))
    return out


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_one_short_module(example: Path) -> None:
    [module] = [path for path in example.glob("*.py") if not path.name.startswith("test_")]
    assert len(module.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_each_kind_has_an_example() -> None:
    kinds = {example.name.removeprefix("third-party-") for example in EXAMPLES}
    assert kinds >= {"criterion", "export-format", "command", "listener", "normalization"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "brings", "package"),
    [
        ("activation_weighted", "criterion: activation-weighted", "activation-weighted 0.3.0"),
        ("npz_format", "format: npz", "prunekit-npz 0.3.0"),
        ("densities", "command: densities", "prunekit-densities 0.3.0"),
        ("curve", "listener: run_started, stage_finished", "prunekit-curve 0.3.0"),
        ("activation_norm", "layer views", "prunekit-activation-norm 0.3.0"),
    ],
)
def test_a_plugin_is_listed_with_its_package_and_what_it_brings(
    run: Run, plugin: str, brings: str, package: str
) -> None:
    listed = run("-m", "prunekit", "list")
    [row] = [line for line in listed.splitlines() if line.split()[:1] == [plugin] and brings in line]
    assert row.endswith(package)
    assert "Disable a plugin with --no-plugin NAME" in listed


@pytest.mark.slow
def test_a_criterion_is_shown_with_its_options_and_source(run: Run) -> None:
    printed = run("-m", "prunekit", "show", "criterion", "activation-weighted")
    for part in ("after Wanda", "plugin:  activation_weighted", "activation_weighted.py", "power", "2.0", "a number"):
        assert part in printed


@pytest.mark.slow
def test_a_plugin_can_be_switched_off(run: Run) -> None:
    listed = run("-m", "prunekit", "list", "--no-plugin", "activation_weighted", "--no-plugin", "curve")
    assert "activation-weighted" not in listed
    assert "prunekit-curve" not in listed


@pytest.mark.slow
def test_the_criterion_runs(run: Run, finished: Path) -> None:
    assert "power = 1" in (finished / "config.toml").read_text(encoding="utf-8")
    [row] = [
        line
        for line in run("-m", "prunekit", "masks", "show", str(finished / "masks.safetensors")).splitlines()
        if line.split()[:1] == ["hidden.weight"]
    ]
    assert row.split()[4:7] == ["288", "1,152", "0.250000"]


@pytest.mark.slow
def test_the_listener_writes_a_line_for_each_stage(finished: Path) -> None:
    lines = [line.split(",") for line in (finished / "curve.csv").read_text(encoding="utf-8").splitlines()]
    assert [float(weights_left) for _, weights_left, _ in lines] == pytest.approx([1, 1 - 864 / 1576])
    assert all(0 <= float(figure) <= 1 for *_, figure in lines)


@pytest.mark.slow
def test_the_format_is_written_and_proved(run: Run, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "network.npz"
    printed = run("-m", "prunekit", "export", str(finished), "--to", "npz", "--out", str(out))
    assert f'load it with: numpy.load("{out}")' in printed
    with np.load(out) as arrays:
        assert (arrays["hidden.weight"] == 0).sum() == 864


@pytest.mark.slow
def test_the_command_prints_the_sparsest_mask_first(run: Run, finished: Path) -> None:
    printed = run("-m", "prunekit", "densities", str(finished / "masks.safetensors"))
    assert printed.splitlines()[0].split() == ["0.2500", "hidden.weight"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "example",
    ["third-party-criterion", "third-party-export-format", "third-party-listener", "third-party-normalization"],
)
def test_the_tests_of_an_example_pass(run: Run, example: str) -> None:
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", example)
