"""Names of devices, and the precision that goes with them."""

import pytest
import torch

from fspad_bench.errors import BenchError
from fspad_bench.models.load import default_dtype, device_named


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(count)`: pretend that torch sees so many CUDA devices."""

    def gpus(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return gpus


@pytest.mark.parametrize(("count", "device"), [(0, "cpu"), (1, "cuda"), (2, "cuda")])
def test_auto_is_a_gpu_if_there_is_one(gpus, count, device):
    gpus(count)
    assert device_named("auto") == device


@pytest.mark.parametrize(
    "name", ["cuda:0,cuda:1", "0,1", "balanced", "balanced_low_0", "sequential"]
)
def test_several_devices_are_refused(gpus, name):
    gpus(2)
    with pytest.raises(BenchError, match=f"--device {name} names several devices") as caught:
        device_named(name)
    assert "cuda:1" in caught.value.hint


def test_a_gpu_beyond_the_last_is_refused(gpus):
    gpus(2)
    assert device_named("cuda:1") == "cuda:1"
    with pytest.raises(BenchError, match="no CUDA device 2: there are 2"):
        device_named("cuda:2")


def test_precision_follows_the_device():
    assert default_dtype("cpu") == "float32"
    assert default_dtype("cuda") == default_dtype("cuda:1") == "bfloat16"
