from pathlib import Path

import attrs
import pytest
import torch
from PIL import Image
from prunekit_deepid2plus import embedded
from prunekit_deepid2plus.embedded import Group
from prunekit_deepid2plus.network import Network, NetworkSettings
from prunekit_deepid2plus.patches import REGIONS, Patch, PatchedNetwork, parse_patches, patch_activation_names
from prunekit_deepid2plus.signals import SupervisedNetwork
from torch import Tensor

from prunekit.cli import main
from prunekit.masks.masks import load_masks

TINY = NetworkSettings(width=1 / 16, feature=8, input_size=(28, 24))
TWO = (Patch("whole"), Patch("eyes", 120, grey=True))


def test_patches_are_read_with_scale_and_grey() -> None:
    assert parse_patches("whole  eyes@120:grey nose@80") == (Patch("whole"), TWO[1], Patch("nose", 80))
    assert [patch.name for patch in TWO] == ["whole", "eyes-120-grey"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "patches names none"),
        ("whole ear", "patches names 'ear', expected REGION"),
        ("eyes:gray", "patches names 'eyes:gray'"),
        ("eyes:grey@120", "patches names 'eyes:grey@120'"),
        ("nose@10", "patches names 'nose@10', expected a scale of 20 to 200"),
        ("nose nose@100", "patches names 'nose@100' twice"),
    ],
)
def test_a_patch_that_is_not_understood_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_patches(text)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("scale", [20, 100, 200])
def test_every_region_lies_within_the_face_at_every_scale(region: str, scale: int) -> None:
    faces = torch.rand(2, 3, 56, 48)
    assert Patch(region, scale).cut(faces, (28, 24)).shape == (2, 3, 28, 24)
    down, across = Patch(region, scale).box(56, 48)
    assert 0 <= down.start < down.stop <= 56
    assert 0 <= across.start < across.stop <= 48


def test_a_patch_is_cut_out_and_resized_as_pillow_does_it() -> None:
    face = torch.randint(256, (3, 112, 96), dtype=torch.uint8)
    image = Image.fromarray(face.permute(1, 2, 0).numpy())
    down, across = Patch("nose").box(112, 96)
    part = image.crop((across.start, down.start, across.stop, down.stop)).resize((24, 28), Image.Resampling.BILINEAR)
    expected = torch.frombuffer(bytearray(part.tobytes()), dtype=torch.uint8).view(28, 24, 3).permute(2, 0, 1)
    found = Patch("nose").cut(face[None].float(), (28, 24))[0]
    assert (found - expected).abs().max() < 1.5  # Pillow rounds to whole numbers after rows and after columns


def test_a_grey_patch_has_the_brightness_of_its_colours() -> None:
    faces = torch.rand(2, 3, 28, 24)
    grey = Patch("whole", grey=True).cut(faces, (28, 24))
    torch.testing.assert_close(grey[:, 0], 0.299 * faces[:, 0] + 0.587 * faces[:, 1] + 0.114 * faces[:, 2])


def test_features_are_those_of_each_network_alone_joined() -> None:
    network = PatchedNetwork(TINY, TWO).eval()
    faces = torch.randn(3, 3, 56, 48)
    alone = [network.get_submodule(f"patches.{patch.name}")(patch.cut(faces, TINY.input_size)) for patch in TWO]
    assert torch.equal(network(faces), torch.cat(alone, 1))
    assert network.get_parameter("patches.eyes-120-grey.conv1a.weight").shape[1] == 1


def test_an_activation_is_named_for_every_layer_of_every_network() -> None:
    network = PatchedNetwork(TINY, TWO)
    names = patch_activation_names(TWO)
    assert len(names) == 22
    assert names["patches.eyes-120-grey.f"] == "patches.eyes-120-grey.reluf"
    for name in (*names, *names.values()):
        network.get_submodule(name)


def gradients(model: SupervisedNetwork, faces: Tensor) -> dict[str, Tensor]:
    people = torch.arange(len(faces)) // 2
    losses = [torch.nn.functional.cross_entropy(scores, people) for _, scores in model(faces)]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_each_network_gets_the_gradient_that_it_would_get_alone() -> None:
    faces = torch.randn(6, 3, 56, 48)
    together = SupervisedNetwork(PatchedNetwork(TINY, TWO), 3, ["4"])
    patch = TWO[1]
    alone = SupervisedNetwork(Network(attrs.evolve(TINY, colours=1)), 3, ["4"])
    state = together.state_dict()
    for name, tensor in alone.state_dict().items():
        kind, _, rest = name.partition(".")
        inside = f"network.patches.{patch.name}.{rest}" if kind == "network" else f"{kind}.{patch.name}/{rest}"
        tensor.copy_(state[inside])
    both, single = gradients(together, faces), gradients(alone, patch.cut(faces, TINY.input_size))
    assert len(both) == 2 * len(single)
    for name, gradient in single.items():
        kind, _, rest = name.partition(".")
        inside = f"network.patches.{patch.name}.{rest}" if kind == "network" else f"{kind}.{patch.name}/{rest}"
        torch.testing.assert_close(both[inside], gradient)


def test_one_recipe_trains_prunes_and_resumes_all_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "TRAIN", Group(0, 12, 3))
    monkeypatch.setattr(embedded, "CALIBRATION", Group(1000, 10, 1))
    monkeypatch.setattr(embedded, "TEST", Group(2000, 12, 3))
    task = {
        "input_size": "28x24",
        "width": "0.0625",
        "feature": "16",
        "batch_people": "5",
        "patches": "whole nose:grey",
    }
    recipe = ["--criterion", "correlation", "--structure", "f=1/4 5b=1/8", "--precision", "fp32"]
    recipe += [part for name, value in task.items() for part in ("-o", f"task.{name}={value}")]
    recipe += ["-o", "training.budget=3 steps", "-o", "training.retraining=2 steps"]
    assert main(["plan", *recipe]) == 0
    assert "patches.whole.f=1/4 patches.nose-grey.f=1/4" in " ".join(capfd.readouterr().out.split())
    assert main(["run", *recipe, "--out", str(tmp_path / "run")]) == 0
    masks = load_masks(tmp_path / "run" / "masks.safetensors")
    layers = [f"patches.{patch}.{layer}.weight" for patch in ("whole", "nose-grey") for layer in ("f", "local5b")]
    assert set(masks.tensors) == set(layers)
    assert [round(1 / float(masks.tensors[name].double().mean())) for name in layers] == [4, 8, 4, 8]
    assert main(["run", "--resume", str(tmp_path / "run")]) == 0
