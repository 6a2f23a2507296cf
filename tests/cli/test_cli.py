from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunekit.cli import main
from prunekit.cli.list_plugins import list_plugins
from prunekit.cli.tables import make_table, print_table
from prunekit.masks.masks import Masks, load_masks
from prunekit.masks.weight_files import load_weights, save_weights
from prunekit.plugins.manager import make_manager
from prunekit.plugins.registry import collect

TOY = ["--task", "prunekit.testing:ToyTask"]


@pytest.fixture(autouse=True)
def only_built_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_NO_PLUGINS", "1")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command line that must fail, and return its one line."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_list_prints_one_line_and_the_package_of_each_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = lines(capsys)
    registry = collect(make_manager())
    for entries in (registry.criteria, registry.schedules):
        for name, entry in entries.items():
            [row] = [line for line in printed if line.split()[:1] == [name] and entry.summary in line]
            assert "prunekit" in row


def test_show_prints_documentation_options_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "schedule", "one-shot"]) == 0
    printed = "\n".join(lines(capsys))
    for part in (
        "Prune all layers at once",
        "plugin:  one_shot",
        "package: prunekit",
        "class:   prunekit.schedules.one_shot.OneShot",
        "one_shot.py",
        "scope",
        "one of unit, layer, global",
        "none",
    ):
        assert part in printed


def test_every_option_of_every_built_in_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    registry = collect(make_manager())
    for kind, entries in (("criterion", registry.criteria), ("schedule", registry.schedules)):
        for name, entry in entries.items():
            assert main(["show", kind, name]) == 0
            printed = "\n".join(lines(capsys))
            for option in entry.options.values():
                assert option.name in printed
                assert option.help in printed


def test_plan_prints_layers_stages_and_the_weights_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TOY, "--structure", "hidden=1/4 b=0.5", "-o", "training.budget=7 epochs"]) == 0
    printed = lines(capsys)
    rows = [line.split() for line in printed]
    assert ["conv_b", "convolution", "2", "4", "4", "x", "3", "x", "3", "288"] in rows
    assert ["0", "dense", "7", "epochs", "initial", "-", "1,576", "1.0000"] in rows
    assert ["1", "hidden", "20", "steps", "previous", "hidden=1/4", "712", "0.4518"] in rows
    assert ["2", "conv_b", "20", "steps", "previous", "conv_b=1/2", "568", "0.3604"] in rows
    assert "1,576 prunable weights, biases not counted; weights left 0.36" in printed[-1]


def test_plan_prints_the_ends_of_a_long_list_of_updates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TOY, "--structure", "hidden=1/4", "--schedule", "rigl"]) == 0
    printed = " ".join(" ".join(lines(capsys)).split())
    assert "hidden=1/4 at random" in printed
    assert "at 4%: hidden=1/4 (30% dropped and grown by gradient)" in printed
    assert "... 15 more ..." in printed
    assert "at 71%: hidden=1/4 (0% dropped and grown by gradient)" in printed


def test_plan_takes_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('density = 0.5\n[task]\nname = "prunekit.testing:ToyTask"\nclasses = 8\n', encoding="utf-8")
    assert main(["plan", str(recipe), "--schedule", "one-shot"]) == 0
    assert "1,640 prunable weights, biases not counted; weights left 0.50" in lines(capsys)[-1]


def test_plan_counts_whole_pieces_and_distributes_one_density(capsys: pytest.CaptureFixture[str]) -> None:
    magnitude = [*TOY, "--criterion", "magnitude", "--schedule", "one-shot"]
    assert main(["plan", *magnitude, "--pattern", "units", "--density", "0.6"]) == 0
    printed = "\n".join(lines(capsys))
    assert "classifier=0.6 as units" in printed
    assert ", 977 weights" in printed  # 5 of 8 units of 9, 5 of 8 of 36, 10 of 16 of 72, 2 of 4 of 16
    assert main(["plan", *magnitude, "--pattern", "channels", "--density", "0.6"]) == 0
    printed = "\n".join(lines(capsys))
    assert "conv_a=0.6 conv_b=0.6 hidden=0.6 as channels" in printed
    assert ", 964 weights" in printed  # 1 of 2 groups of conv_b, with the 4 units of 9 it reads, 10 of 16 of 72, 64
    assert main(["plan", *magnitude, "--density", "0.2", "--distribution", "erdos-renyi", "--keep-dense", "first"]) == 0
    assert ", 315 weights" in "\n".join(lines(capsys))  # of 1,576
    assert main(["plan", *magnitude, "--pattern", "2:4", "--keep-dense", "conv_a", "--scope", "layer"]) == 0
    assert "conv_b=1/2 hidden=1/2 classifier=1/2 per layer as 2:4" in "\n".join(lines(capsys))


def test_plan_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    assert main(["plan", *TOY]) == 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "criterion", "corelation"], "no criterion 'corelation' (did you mean 'correlation'?)"),
        (["list", "--no-plugin", "magnitud"], "did you mean 'magnitude'"),
        (["plan"], "pip install ./plugins/prunekit-deepid2plus"),
        (["plan", *TOY, "--schedule", "oneshot"], "did you mean 'one-shot'"),
        (["plan", *TOY, "--criterion", "magnitude", "--density", "0.5", "--scope", "global"], "such as one-shot"),
        (["plan", *TOY, "--pattern", "2:4"], "with one density, add conv_a to keep_dense"),
        (["plan", *TOY, "--density", "0.04", "--keep-dense", "first"], "conv_a) hold 0.04569"),
        (["plan", *TOY, "--pattern", "units", "--density", "0.5"], "use criterion.mode='highest'"),
        (["plan", *TOY, "--criterion", "rnd"], "no criterion 'rnd'"),
        (["plan", *TOY, "-o", "criterion.strenth=1"], "no option 'strenth' (did you mean 'strength'?)"),
        (["plan", *TOY, "--structure", "hiden=0.5"], "did you mean 'hidden'"),
        (["plan", *TOY, "--structure", "relu_a=0.5"], "module 'relu_a' has no weights that can be pruned"),
        (["plan", *TOY, "--structure", "b=0.5 conv*=0.5"], "layer 'conv_b' is named twice"),
        (["plan", *TOY, "--density", "0"], "density 0 is outside (0, 1]"),
        (["plan", *TOY, "--density", "-1"], "density -1 is outside (0, 1]"),
        (["plan", *TOY, "--density", "40"], "for 40 percent write 0.4"),
        (["plan", *TOY, "--density", "much"], "density is 'much', expected a number"),
        (["plan", *TOY, "--seed", "x"], "seed is 'x', expected a whole number"),
        (["plan", *TOY, "--precision", "fp8"], "expected one of fp32, bf16, fp16"),
        (["plan", *TOY, "--data", "faces"], "task 'prunekit.testing:ToyTask' has no option 'data'"),
        (["plan", ""], "recipe is empty, expected a path"),
        (["plan", *TOY, "--data", ""], "--data is empty, expected a path"),
        (["run", *TOY, "--out", ""], "--out is empty, expected a path"),
        (["run", "--resume", ""], "--resume is '', expected a run folder whose name is valid UTF-8"),
        (["run", "--resume", "\udcff"], "--resume is '\\udcff', expected a run folder whose name is valid UTF-8"),
        (["run", "--resume", "a", "--seed", ""], "leave out: --seed"),
        (["plan", "a" * 300], "cannot be read: File name too long"),
        (["plan", "gone.toml"], "recipe 'gone.toml' cannot be read"),
        (["masks", "show", "gone.safetensors"], "gone.safetensors"),
        (["plan", "--tsk", "x"], "No such option"),
        (["pln"], "No such command"),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in error(capsys, *arguments)


def test_structure_and_density_flags_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "both structure" in error(capsys, "plan", *TOY, "--density", "0.5", "--structure", "b=1/2")


def test_a_flag_of_one_kind_replaces_the_other_kind_in_a_recipe(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('structure = "b=0.5"\n', encoding="utf-8")
    assert main(["plan", str(recipe), *TOY, "--density", "0.25"]) == 0
    assert "weights left 0.25" in lines(capsys)[-1]


@pytest.mark.parametrize("arguments", [[], ["masks"]])
def test_a_command_that_lacks_its_next_word_shows_its_help(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert main([*arguments, "--help"]) == 0
    assert capsys.readouterr().out == shown


def test_an_interrupt_ends_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(list_plugins, "callback", interrupt)
    assert main(["list"]) == 130
    assert "error: interrupted" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(list_plugins, "callback", fail)
    with pytest.raises(ZeroDivisionError):
        main(["list"])


def test_masks_show_prints_counts_densities_and_what_the_file_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[0] = True
    path = tmp_path / "masks.safetensors"
    Masks({"fc.weight": mask}, {"criterion": "magnitude", "seed": 3}).save(path)
    assert main(["masks", "show", str(path)]) == 0
    printed = lines(capsys)
    assert "criterion: magnitude" in printed
    assert "seed: 3" in printed
    [row] = [line.split() for line in printed if "fc.weight" in line]
    assert row[:7] == ["fc.weight", "4", "x", "8", "8", "32", "0.250000"]
    assert any(line.split()[:3] == ["total", "8", "32"] for line in printed)


def pair(tmp_path: Path) -> tuple[str, str]:
    """Write two mask files of one network: 24 and 16 of 32 weights, 12 in common."""
    first, second = torch.zeros(4, 8, dtype=torch.bool), torch.zeros(4, 8, dtype=torch.bool)
    first[:3] = True
    second[:, 4:] = True
    for name, mask in (("a", first), ("b", second)):
        Masks({"fc.weight": mask}, {"seed": len(name)}).save(tmp_path / name)
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_masks_show_names_patterns_and_empty_rows_and_columns(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first, second = pair(tmp_path)
    assert main(["masks", "show", first]) == 0
    [row] = [line.split() for line in lines(capsys) if "fc.weight" in line]
    assert row[-3:] == ["1", "0", "rows"]
    assert main(["masks", "show", second]) == 0
    [row] = [line.split() for line in lines(capsys) if "fc.weight" in line]
    assert row[-3:] == ["0", "4", "columns"]


def test_masks_diff_counts_common_and_different_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["masks", "diff", *pair(tmp_path)]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in lines(capsys) if line.strip()}
    assert rows["fc.weight"] == rows["total"] == ["12", "12", "4", "4", "0.428571", "16"]


@pytest.mark.parametrize(("keep", "kept"), [("and", 12), ("or", 28), ("minus", 12)])
def test_masks_merge_combines_two_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, keep: str, kept: int
) -> None:
    out = tmp_path / "out"
    assert main(["masks", "merge", *pair(tmp_path), "-o", str(out), "--keep", keep]) == 0
    assert lines(capsys) == [f"{out}: 1 mask, density {kept / 32:.6f}"]
    merged = load_masks(out)
    assert int(merged.tensors["fc.weight"].sum()) == kept
    assert merged.info["merged"] == keep


@pytest.mark.parametrize("sparse", [True, False])
def test_masks_apply_writes_a_model_that_check_accepts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, sparse: bool
) -> None:
    masks, _ = pair(tmp_path)
    model, out = str(tmp_path / "model.safetensors"), str(tmp_path / "out.safetensors")
    weights = {"fc.weight": torch.rand(4, 8) + 1, "fc.bias": torch.rand(4)}
    save_weights(model, weights)
    assert "fc.weight has 8; set them to zero" in error(capsys, "masks", "check", model, masks)
    assert main(["masks", "apply", model, masks, "-o", out, *(["--sparse"] if sparse else [])]) == 0
    assert main(["masks", "check", out, masks]) == 0
    assert "1 mask checked: all dropped weights" in lines(capsys)[-1]
    loaded = load_weights(out)
    assert torch.equal(loaded["fc.weight"], weights["fc.weight"] * load_masks(masks).tensors["fc.weight"])
    assert torch.equal(loaded["fc.bias"], weights["fc.bias"])


def test_masks_convert_writes_every_form(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    masks, _ = pair(tmp_path)
    model = str(tmp_path / "model.pt")
    torch.save({"fc.weight": torch.rand(4, 8) + 1, "fc.bias": torch.rand(4)}, model)
    for form, options in (("packed", []), ("bool", []), ("torch-prune", ["--weights", model])):
        out = str(tmp_path / form)
        assert main(["masks", "convert", masks, "-o", out, "--form", form, *options]) == 0
        assert load_masks(out) == load_masks(masks)
    assert load_file(tmp_path / "bool")["fc.weight_mask"].dtype == torch.bool
    assert load_file(tmp_path / "torch-prune").keys() == {"fc.weight_orig", "fc.weight_mask", "fc.bias"}
    zeros = str(tmp_path / "zeros")
    assert main(["masks", "apply", model, masks, "-o", zeros]) == 0
    assert main(["masks", "convert", zeros, "-o", str(tmp_path / "read"), "--from-zeros"]) == 0
    assert load_masks(tmp_path / "read") == load_masks(masks)


def test_a_failing_mask_command_does_not_change_its_target(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    Masks({"other.weight": torch.ones(2, 2, dtype=torch.bool)}).save(second)
    target, model = tmp_path / "target", tmp_path / "model"
    target.write_text("precious")
    save_weights(model, {"fc.weight": torch.rand(4, 4)})
    for arguments, message in (
        (["merge", first, second], "'fc.weight' is only in one of them"),
        (["apply", str(model), first], "'fc.weight' has a mask of [4, 8] for a weight of [4, 4]"),
        (["apply", str(model), first, "--sparse"], "'fc.weight' has a mask of [4, 8]"),
        (["convert", str(model)], "no mask inside"),
        (["convert", first, "--form", "torch-prune"], "--weights MODEL is required with --form torch-prune"),
        (["convert", first, "--weights", str(model)], "not allowed with other forms"),
    ):
        assert message in error(capsys, "masks", *arguments, "-o", str(target))
        assert target.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "model", "target"]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_narrow_terminal_truncates_no_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    table = make_table("Weights", "layer", "weights", numbers=("weights",))
    table.add_row("a layer with a long name", "17,828,544")
    print_table(table)
    printed = capsys.readouterr().out
    assert "17,828,544" in printed
    assert ("a layer with a long name" in printed) is not terminal


PAPER = [
    ("f=1/256", "0.96"),
    ("f=1/256 5b=1/128", "0.76"),
    ("f=1/256 5b=1/128 4b=1/2", "0.74"),
    ("f=1/256 5b=1/128 5a=1/2", "0.43"),
    ("f=1/256 5b=1/128 5a=1/32", "0.12"),
]


@pytest.mark.parametrize(("structure", "ratio"), PAPER)
def test_plan_reproduces_the_papers_compression_ratios(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, structure: str, ratio: str
) -> None:
    pytest.importorskip("prunekit_deepid2plus.plugin")
    monkeypatch.delenv("PRUNEKIT_NO_PLUGINS")
    assert main(["plan", "-o", "task.preset=paper", "--structure", structure]) == 0
    assert (
        f"17,828,544 prunable weights, biases not counted; weights left {ratio} (the paper's compression ratio)"
        in lines(capsys)[-1]
    )
