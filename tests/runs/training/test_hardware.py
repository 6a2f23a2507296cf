import attrs
import pytest
import torch

from prunekit.contracts.training import Training
from prunekit.distributed.devices import pick_device
from prunekit.errors import ConfigError
from prunekit.runs.training.hardware import Hardware


@pytest.mark.parametrize(
    "name", ["", "gpu", "cuda:99", "meta", "cpu:x", "cpu:9", "hpu", "privateuseone", "mkldnn", "vulkan"]
)
def test_an_unavailable_device_is_named_with_the_available_ones(name):
    with pytest.raises(ConfigError, match=rf"device '{name}'.*cpu"):
        pick_device(name)


def test_auto_finds_a_device():
    assert pick_device("auto").type in {"cpu", "cuda"}


def test_only_the_tensors_of_a_nested_batch_are_moved():
    hardware = Hardware.of("cpu", Training(channels_last=True))
    image = torch.zeros(2, 3, 4, 4)
    moved = hardware.move({"images": [image, (torch.ones(2), "name")]})
    assert moved["images"][0].is_contiguous(memory_format=torch.channels_last)
    assert moved["images"][1][1] == "name"
    assert torch.equal(moved["images"][1][0], torch.ones(2))


def test_precision_is_lowered_only_on_request():
    with Hardware.of("cpu", Training(precision="bf16")).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with Hardware.of("cpu", Training()).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert Hardware.of("cpu", Training(precision="fp16")).scaler().is_enabled()
    assert not Hardware.of("cpu", Training()).scaler().is_enabled()


def test_its_text_names_the_device():
    assert str(Hardware.of("cpu", Training())).startswith("cpu (")


def settings_of_products():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("tf32", [False, True])
def test_a_gpu_rounds_products_only_on_request_and_never_in_statistics(tf32):
    # The settings can be changed without a GPU.
    gpu = attrs.evolve(Hardware.of("cpu", Training(tf32=tf32)), device=torch.device("cuda"))
    before = settings_of_products()
    with gpu.products():
        assert settings_of_products() == (("high", True) if tf32 else ("highest", False))
        with gpu.products(exact=True):
            assert settings_of_products() == ("highest", False)
        assert settings_of_products() == (("high", True) if tf32 else ("highest", False))
    assert settings_of_products() == before


def test_the_settings_of_a_gpu_do_not_affect_other_devices():
    before = settings_of_products()
    with Hardware.of("cpu", Training(tf32=True)).products():
        assert settings_of_products() == before


def test_only_a_gpu_uses_pinned_batches():
    assert not Hardware.of("cpu", Training()).pins_memory
    assert attrs.evolve(Hardware.of("cpu", Training()), device=torch.device("cuda", 1)).pins_memory
