from pathlib import Path

from prunekit.plugins.manager import make_manager
from prunekit.plugins.registry import collect
from prunekit.runs.absolute_paths import with_absolute_paths
from prunekit.runs.recipes import build_config


def test_files_and_options_that_are_paths_become_absolute_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import attrs\nfrom pathlib import Path\nfrom prunekit.testing.toy_task import ToyTask\n"
        "@attrs.frozen\nclass Mine(ToyTask):\n    there: Path | None = None\n    text: str = 'x'\n"
        "    other: Path | None = None\n"
        "    many: tuple[Path, ...] | None = None\n    named: dict[str, Path] = attrs.field(factory=dict)\n"
    )
    recipe = {
        "task": {
            "name": "mine.py:Mine",
            "there": "a/b",
            "text": "a/b",
            "other": "none",
            "many": ["a", "/b"],
            "named": {"c": "d"},
        },
        "masks": "m",
        "weights": "/w",
        "out": "../runs",
    }
    config = with_absolute_paths(build_config(recipe), collect(make_manager(third_party=False)))
    here = str(tmp_path)
    assert config.task.name == f"{here}/mine.py:Mine"
    assert config.task.options == {
        "there": f"{here}/a/b",
        "text": "a/b",
        "other": "none",
        "many": [f"{here}/a", "/b"],
        "named": {"c": f"{here}/d"},
    }
    assert (config.masks, config.weights, config.out) == (f"{here}/m", "/w", f"{here}/../runs")
    assert config.criterion.name == "correlation"
    assert Path(config.out).is_absolute()
