"""``prunekit bench`` as a command: its tables, its JSON and its refusals."""

import json
import re

import pytest
import torch

from prunekit.cli import main
from prunekit.deployment.bench import running

RUN = ["run", "--task", "prunekit.testing:ToyTask", "--criterion", "magnitude", "--structure", "hidden=1/4"]
SHORT = ["-o", "training.budget=4 steps", "-o", "training.retraining=2 steps"]
MODEL = """
import torch
from torch import nn

def sparse():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    network[0].weight.data[:, ::2] = 0
    return network

def recurrent():
    network = nn.Sequential(nn.GRU(12, 4))
    network[0].weight_ih_l0.data[:, ::2] = 0
    return network

def dense():
    return nn.Linear(12, 8)
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "_SECONDS", 0.0)
    (tmp_path / "models.py").write_text(MODEL)
    return tmp_path


def test_the_bench_of_a_run_prints_layers_forms_and_files(capsys):
    assert main([*RUN, *SHORT, "--out", "a"]) == 0
    capsys.readouterr()
    assert main(["bench", "a", "--batch-sizes", "1,2", "--threads", "1"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("a: ToyNetwork, 712 of 1,576 prunable weights left (density 0.4518)\n")
    for words in ("theoretical", "CPU (", "1 thread,", "in memory", "quartiles", "samples/s", "of dense", "the masks"):
        assert words in output.out
    assert re.search(r"hidden +linear +1,152 +288 +0\.2500 +1,152 +288\n", output.out)
    assert re.search(r"total +1,576 +712 +0\.4518", output.out)
    assert re.search(r"dense +csr +auto\n", output.out)
    assert [line.split()[1] for line in output.out.splitlines() if line.startswith(" batch ")] == ["1:", "2:"]
    assert re.search(r"of dense +1\.00 ", output.out)
    assert "timing" in output.err
    assert torch.get_num_threads() == 1


def test_the_bench_of_a_model_is_printed_as_json(capsys):
    assert main(["bench", "models.py:sparse", "--input", "12", "--batch-sizes", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [layer["kept"] for layer in found["account"]["layers"]] == [48, 16]
    forms = found["comparisons"][0]["forms"]
    assert [form["name"] for form in forms] == ["dense", "csr", "auto"]
    assert forms[0]["ratios"] == {"3": 1.0}
    assert set(forms[0]["latencies"]["3"]) == {"median", "lower", "upper", "calls"}
    assert forms[0]["memory"] == 4 * (96 + 8 + 16 + 2)


def test_a_masked_parameter_outside_layers_has_no_multiply_adds(capsys):
    assert main(["bench", "models.py:recurrent", "--input", "3x12", "--batch-sizes", "1"]) == 0
    lines = capsys.readouterr().out
    assert re.search(r"0\.weight_ih_l0 +parameter +144 +72 +0\.5000 +- +-\n", lines)
    assert "csr: no layer can run sparse: no mask is on a layer\n" in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["models.py:sparse", "--input", "12", "--batch-sizes", "1 x"],
            "--batch-sizes has 'x', expected whole numbers from 1 to 999999",
        ),
        (["models.py:sparse", "--input", "12", "--batch-sizes", "0"], "--batch-sizes has '0'"),
        (["models.py:sparse", "--input", "12", "--batch-sizes", " "], "batch sizes are [], expected"),
        (["models.py:sparse", "--input", "12", "--threads", "two"], "--threads has 'two'"),
        (["models.py:sparse"], "needs the shape of a sample; give --input"),
        (["models.py:dense", "--input", "12"], "has no masks that drop a weight"),
        (["models.py:sparse", "--input", "9999999999999"], "but 32 such samples cannot be created: "),
        (["models.py:sparse", "--input", f"3:0..{2**70}"], "but 32 such samples cannot be created: "),
        ([""], "there is no run folder ''"),
        (["nowhere"], "there is no run folder 'nowhere'"),
        (["."], "contains no run"),
    ],
)
def test_a_network_that_cannot_be_measured_is_refused_in_one_line(capsys, arguments, message):
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_run_without_masks_and_an_unfinished_run_are_refused(in_an_empty_folder, capsys):
    assert main([*RUN, *SHORT, "--dense", "--out", "a"]) == 0
    assert main(["bench", "a"]) == 2
    assert "a has no masks that drop a weight, so no form differs from the dense network" in capsys.readouterr().err
    (in_an_empty_folder / "a" / "model.safetensors").unlink()
    assert main(["bench", "a"]) == 2
    assert "finish it with: prunekit run --resume a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (61_440, "61.4 kB"), (25.3e6, "25.3 MB"), (1.25e9, "1.25 GB")],
)
def test_bytes_have_three_digits(amount, text):
    from prunekit.cli.bench_table import _bytes

    assert _bytes(amount) == text


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0"), (9_999, "9,999"), (16_500, "16.5 k"), (737_280, "737 k"), (1.23e6, "1.23 M")]
)
def test_large_counts_are_rounded(amount, text):
    from prunekit.cli.bench_table import _count

    assert _count(amount) == text


@pytest.mark.parametrize(
    ("rate", "text"), [(0.5, "0.500"), (17.06, "17.1"), (999, "999"), (8825, "8.82 k"), (2.69e6, "2.69 M")]
)
def test_rates_have_three_digits(rate, text):
    from prunekit.cli.bench_table import _rate

    assert _rate(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0"), (1.234e-6, "0.00123"), (9.9996e-3, "10.0"), (0.0999, "99.9"), (1.23456, "1,230")]
)
def test_times_are_milliseconds_with_three_digits(seconds, text):
    from prunekit.cli.bench_table import _ms

    assert _ms(seconds) == text
