from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from prunekit_deepid2plus import embedded
from prunekit_deepid2plus.embedded import Group
from prunekit_deepid2plus.features import face_features
from prunekit_deepid2plus.plugin import prunekit_layer_views, prunekit_tasks
from prunekit_deepid2plus.presets import PRESETS
from prunekit_deepid2plus.task import DeepID2Plus, comparable_test_faces
from torch import nn

from prunekit.contracts.seeds import Seeds
from prunekit.layers.lookup import find_layers
from prunekit.layers.torch_views import core_view
from prunekit.layers.view import LayerView
from prunekit.pruning.structure_text import resolve_structure
from prunekit.testing import check_task

SMALL = {"input_size": "28x24", "width": 1 / 16, "feature": 16, "batch_people": 5}


@pytest.fixture
def few_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedded data that is drawn in a second."""
    monkeypatch.setattr(embedded, "TRAIN", Group(0, 12, 3))
    monkeypatch.setattr(embedded, "CALIBRATION", Group(1000, 10, 1))
    monkeypatch.setattr(embedded, "TEST", Group(2000, 12, 3))


def view_of(module: nn.Module) -> LayerView | None:
    return core_view(module) or prunekit_layer_views(module)


@pytest.mark.usefixtures("few_faces")
@pytest.mark.parametrize("auxiliary", ["", "3 4"])
def test_the_task_keeps_its_contract(auxiliary: str) -> None:
    check_task(DeepID2Plus, view_of, **SMALL, auxiliary=auxiliary)


@pytest.mark.usefixtures("few_faces")
def test_the_task_keeps_its_contract_with_several_patches() -> None:
    check_task(DeepID2Plus, view_of, **SMALL, auxiliary="4", patches="whole eyes@120:grey")


def test_a_short_name_means_its_layer_in_every_network() -> None:
    task = DeepID2Plus(**SMALL, patches="whole eyes:grey")
    with torch.device("meta"):
        layers = list(find_layers(task.deployed(task.build_model()), view_of))
    assert len(layers) == 22
    entries = resolve_structure("f=1/64 5b=1/32 conv4b=1/2", layers, task.aliases)
    assert [(entry.name, list(entry.targets)) for entry in entries] == [
        ("f", ["patches.whole.f", "patches.eyes-grey.f"]),
        ("5b", ["patches.whole.local5b", "patches.eyes-grey.local5b"]),
        ("conv4b", ["patches.whole.conv4b", "patches.eyes-grey.conv4b"]),
    ]


def test_several_patches_see_finer_faces_and_clip_the_gradient_of_all_networks_together() -> None:
    one, two = DeepID2Plus(), DeepID2Plus(patches="whole nose")
    assert (one.face_size, two.face_size) == ((56, 48), (112, 96))
    assert DeepID2Plus(preset="paper", patches="whole nose").face_size == (112, 96)
    assert (one.training().clip_norm, two.training().clip_norm) == (5, pytest.approx(5 * 2**0.5))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_plans_without_drawing_a_face(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(embedded, "draw_faces")
    task = DeepID2Plus(preset=preset)
    assert "drawn faces" in task.setup(Seeds(0))
    with torch.device("meta"):
        network = task.deployed(task.build_model())
    layers = find_layers(network, view_of)
    assert len(layers) == 11
    resolve_structure(task.structure, list(layers), task.aliases)
    assert set(task.activations(network)) == set(layers)


def test_options_override_the_preset_and_the_rest_comes_from_it() -> None:
    task = DeepID2Plus(feature=64, auxiliary="2")
    assert (task.feature, task.auxiliary) == (64, "2")
    assert (task.width, task.margin) == (PRESETS["tiny"].width, PRESETS["tiny"].margin)
    assert DeepID2Plus(preset="paper").settings.input_size == (112, 96)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auxiliary": "3 9"}, "auxiliary names stage '9'"),
        ({"test_folds": "seven"}, "test_folds is 'seven'"),
        ({"verify_on": "pairs.bin"}, "verify_on needs data"),
        ({"verify_on": "pairs.bin", "data": "faces", "test_folds": "7 8"}, "excludes test_folds"),
        ({"preset": "huge"}, "preset is 'huge'"),
        ({"patches": "whole ears"}, "patches names 'ears'"),
        ({"comparison": "euclidean"}, "comparison is 'euclidean'"),
        ({"pca": 64}, "pca is 64, but cosine has no PCA"),
        ({"input_size": "64x64"}, "input_size is '64x64'"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepID2Plus(**options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("few_faces")
def test_evaluation_takes_the_mean_of_the_features_of_mirror_images() -> None:
    task = DeepID2Plus(**SMALL)
    model = task.build_model().eval()
    images = task.faces.test.images
    with torch.inference_mode():
        features = face_features(task.deployed(model), images, task.mirror, torch.device("cpu"))
        mirrored = face_features(task.deployed(model), images.flip(3), task.mirror, torch.device("cpu"))
        result = task.evaluate(model, torch.device("cpu"))
    torch.testing.assert_close(features, mirrored)
    rates = {f"{name}_at_far_{rate}" for name in ("tar", "tar_by_person") for rate in ("0.1", "0.01", "0.001")}
    assert set(result.metrics) == {"accuracy", "auc", "auc_by_person"} | rates
    assert all(0 <= value <= 1 for value in result.metrics.values())
    assert result.standard_errors["accuracy"] >= 0


@pytest.mark.usefixtures("few_faces")
def test_a_face_and_its_mirror_are_concatenated_on_request() -> None:
    task = DeepID2Plus(**SMALL, mirror="concatenate")
    model = task.build_model().eval()
    images = task.faces.test.images
    with torch.inference_mode():
        features = face_features(task.deployed(model), images, task.mirror, torch.device("cpu"))
        mirrored = face_features(task.deployed(model), images.flip(3), task.mirror, torch.device("cpu"))
    assert features.shape == (36, 32)
    torch.testing.assert_close(features.roll(16, 1), mirrored)


@pytest.mark.usefixtures("few_faces")
@pytest.mark.parametrize("pca", [0, 5])
def test_joint_bayesian_is_fitted_on_training_people_alone(pca: int) -> None:
    task = DeepID2Plus(**SMALL, comparison="joint-bayesian", pca=pca)
    model = task.build_model().eval()
    test = task.faces.test
    with torch.inference_mode():
        before = comparable_test_faces(task, model, torch.device("cpu"))
        assert task.evaluate(model, torch.device("cpu")).metrics["auc"] > 0.5
        # Half of the test images is replaced by noise, and so are their people; the scores of the others stay.
        test.images[18:] = torch.randint(256, (18, 3, 28, 24), dtype=torch.uint8)
        test.people[18:] = 0
        after = comparable_test_faces(task, model, torch.device("cpu"))
    rest = slice(0, 18)
    torch.testing.assert_close(after.matrix(rest, rest), before.matrix(rest, rest))
    assert not torch.allclose(after.own, before.own)


@pytest.mark.usefixtures("few_faces")
def test_the_embedded_sets_share_nobody_and_change_with_the_data_seed_alone() -> None:
    faces = DeepID2Plus(**SMALL).faces
    again = DeepID2Plus(**SMALL).faces
    other = DeepID2Plus(**SMALL, data_seed=1).faces
    assert torch.equal(faces.train.images, again.train.images)
    assert not torch.equal(faces.train.images, other.train.images)
    sets = [faces.train, faces.calibration, faces.test]
    drawn = [{image.numpy().tobytes() for image in part.images} for part in sets]
    assert len(set.union(*drawn)) == sum(map(len, sets))


@pytest.mark.usefixtures("few_faces")
def test_a_few_epochs_lower_the_loss() -> None:
    torch.manual_seed(0)
    task = DeepID2Plus(**SMALL, dropout=0, learning_rate=0.02)
    model = task.build_model()
    optimizer = task.optimizer(model)
    losses = []
    for epoch in range(5):
        batches = task.batches("train", epoch, Seeds(0))
        for index in range(len(batches)):
            loss = task.loss(model, batches[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-12:]) < 0.9 * sum(losses[:12])


def test_orl_can_be_learned_from(orl: Path) -> None:
    check_task(DeepID2Plus, view_of, **SMALL, data=str(orl))


def test_pairs_of_another_file_verify_without_figures_of_people(
    tmp_path: Path, write_bin: Callable[..., object]
) -> None:
    for person in range(6):
        for number in range(3):
            path = tmp_path / "data" / f"p{person}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 28), (40 * person, 20 * number, 0)).save(path)
    write_bin(tmp_path / "pairs.bin", pairs=12)
    options = {**SMALL, "data": tmp_path / "data", "verify_on": tmp_path / "pairs.bin"}
    check_task(DeepID2Plus, view_of, **options)
    task = DeepID2Plus(**options)
    assert "train 6 people, 18 images" in task.setup(Seeds(0))
    with torch.inference_mode():
        metrics = task.evaluate(task.build_model().eval(), torch.device("cpu")).metrics
    assert set(metrics) == {"accuracy", "auc", "tar_at_far_0.1", "tar_at_far_0.01", "tar_at_far_0.001"}


def test_the_plugin_brings_the_task() -> None:
    assert list(prunekit_tasks()) == [DeepID2Plus]
