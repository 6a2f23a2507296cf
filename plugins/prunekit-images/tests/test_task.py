import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prunekit_images.plugin import prunekit_tasks
from prunekit_images.presets import PRESETS
from prunekit_images.task import ImageClassification, measured

from prunekit.cli import main
from prunekit.contracts.seeds import Seeds
from prunekit.testing import check_task


@pytest.mark.parametrize("network", [name for name in PRESETS if name != "lenet-5"])
@pytest.mark.parametrize("evaluate_on", ["test", "validation"])
def test_the_task_keeps_its_contract_on_the_digits(network: str, evaluate_on: str) -> None:
    check_task(ImageClassification, network=network, evaluate_on=evaluate_on, shift=1)


@pytest.mark.parametrize("network", PRESETS)
def test_the_task_keeps_its_contract_on_images_of_a_user(network: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (60, 16, 20, 3), np.uint8), np.arange(60) % 5
    np.savez(tmp_path / "a.npz", x_train=images[:50], y_train=labels[:50], x_test=images[50:], y_test=labels[50:])
    check_task(ImageClassification, network=network, data=str(tmp_path / "a.npz"), optimizer="sgd")


def test_setup_says_what_the_data_are_and_what_the_figures_are_of() -> None:
    assert ImageClassification().setup(Seeds(0)) == (
        "digits of scikit-learn: 8x8 grey, 10 classes; train 1,212, calibration 135, test 450; "
        "network lenet-300-100; figures of test images"
    )
    text = ImageClassification(evaluate_on="validation").setup(Seeds(0))
    assert "train 1,078, calibration 135, validation 134, test 450" in text
    assert text.endswith("figures of validation images")


def test_the_held_out_images_are_the_same_for_every_seed_of_a_run() -> None:
    tasks = [ImageClassification(), ImageClassification(), ImageClassification(data_seed=1)]
    for seed, task in enumerate(tasks):
        task.setup(Seeds(seed))
    one, same, other = (task.images.calibration.pixels for task in tasks)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_options_override_the_networks_settings_and_the_rest_comes_from_it() -> None:
    task = ImageClassification(network="resnet", width=8)
    assert (task.width, task.blocks, task.batch_size) == (8, PRESETS["resnet"].blocks, 32)
    assert ImageClassification(data=Path("mnist.npz")).batch_size == 128
    steps = ImageClassification(optimizer="sgd", learning_rate=0.3, weight_decay=0.02).optimizer(torch.nn.Linear(2, 2))
    assert isinstance(steps, torch.optim.SGD)
    assert (steps.defaults["lr"], steps.defaults["weight_decay"]) == (0.3, 0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "vgg"}, "network is 'vgg', expected one of lenet-300-100"),
        ({"width": 16}, "width is 16, but lenet-300-100 has no such setting"),
        ({"network": "lenet-5", "blocks": 2}, "blocks is 2, but lenet-5 has no such setting"),
        ({"optimizer": "adagrad"}, "^optimizer is 'adagrad', expected one of sgd, adamw"),
        ({"validation": 0, "evaluate_on": "validation"}, "validation is 0, but evaluate_on asks"),
        ({"calibration": 0}, "calibration is 0, expected at least 1"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassification(**options)


def test_figures_are_counted_and_have_the_standard_errors_of_their_means() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(50, 4, generator=generator), torch.arange(50) % 4
    result = measured(scores, labels)
    right = [float(row.argmax() == label) for row, label in zip(scores, labels, strict=True)]
    losses = [float(row.exp().sum().log() - row[label]) for row, label in zip(scores.double(), labels, strict=True)]
    assert result.primary == "accuracy"
    for name, values in (("accuracy", right), ("loss", losses)):
        assert result.metrics[name] == pytest.approx(np.mean(values))
        assert result.standard_errors[name] == pytest.approx(np.std(values) / 50**0.5)


def accuracies(out: Path) -> list[float]:
    """Return the figure of each stage of a run."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["evaluation"]["metrics"]["accuracy"] for line in lines if line["event"] == "stage_finished"]


def test_the_digits_are_learned_pruned_and_learned_again_by_name_alone(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["run", "--task", "images", "--criterion", "magnitude", "--device", "cpu", "--out", str(out)]) == 0
    figures = accuracies(out)
    assert len(figures) == 2
    # Seen: 0.933 dense and 0.927 at a tenth of the weights, with a standard error of 0.012.
    assert min(figures) > 0.88
    assert (out / "masks.safetensors").exists()


@pytest.mark.parametrize("problem", ["missing.npz", "bad.npz"])
def test_wrong_data_end_in_one_line_before_anything_is_trained(
    problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.npz").write_bytes(b"bad")
    arguments = ["--data", str(tmp_path / problem), "--out", str(tmp_path / "run")]
    assert main(["run", "--task", "images", "--criterion", "magnitude", *arguments]) != 0
    error = capsys.readouterr().err
    assert problem in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "config.toml").exists()


@pytest.mark.slow
def test_mnist_is_learned_in_an_epoch_and_stands_the_loss_of_nine_tenths_of_the_weights(
    mnist: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    budgets = ["-o", "training.budget=1 epochs", "-o", "training.retraining=1 epochs"]
    arguments = ["--criterion", "magnitude", "--data", str(mnist), "--device", "cpu", "--out", str(out)]
    assert main(["run", "--task", "images", *arguments, *budgets]) == 0
    assert min(accuracies(out)) > 0.96


def test_the_plugin_brings_the_task() -> None:
    assert list(prunekit_tasks()) == [ImageClassification]
