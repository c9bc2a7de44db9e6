"""The choice of kernels by device and variable, and the errors of impossible choices."""

import pytest
import torch

from fspad_bench.engine import gpu as kernels
from fspad_bench.util.errors import BenchError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv(kernels.VARIABLE, raising=False)


def test_the_host_works_on_the_cpu_and_triton_on_a_gpu():
    assert kernels.chosen(CPU) is None
    assert kernels.chosen(torch.device("cuda")).name == "triton"


def test_without_triton_a_gpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(kernels, "installed", lambda: False)
    assert kernels.chosen(torch.device("cuda")).name == "reference"
    monkeypatch.setenv(kernels.VARIABLE, "triton")
    with pytest.raises(BenchError, match="not installed"):
        kernels.chosen(CPU)


@pytest.mark.parametrize("name", ["reference", "triton", "invariant"])
def test_each_can_be_requested(name, monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, name)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.chosen(CPU).name == name


def test_the_host_can_be_requested_on_a_gpu(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "host")
    assert kernels.chosen(torch.device("cuda")) is None


def test_triton_on_the_cpu_is_refused_outside_its_interpreter(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BenchError, match="need a GPU"):
        kernels.chosen(CPU)


def test_another_name_is_refused(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "tritn")
    with pytest.raises(BenchError, match="tritn names no kernels") as caught:
        kernels.chosen(CPU)
    assert "'triton'" in caught.value.hint
