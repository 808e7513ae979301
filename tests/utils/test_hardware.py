"""Peaks and memory."""

from pathlib import Path

import pytest
import torch

from cocomix.utils import env as hardware
from cocomix.utils.env import memory_used, peak_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 7.0),
        ("NVIDIA L4", 7.0),
        ("Tesla T4", 7.0),
    ],
)
def test_known_gpus_have_their_data_sheets_peak(monkeypatch: pytest.MonkeyPatch, name: str, peak: float) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(hardware, "measured_flops", lambda device, precision: 7.0)
    assert peak_flops("cuda:0", "bf16") == peak
    assert peak_flops("cuda:0", "fp32") == 7.0


def test_an_unknown_device_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 1.5, 2.0, 2.25, 2.5, 8.0])  # products of 0.5, 0.25 and, when time is up, 5.5 seconds
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(hardware, "SECONDS", 3)
    hardware.measured_flops.cache_clear()
    state = torch.get_rng_state().tolist()
    assert peak_flops("cpu", "fp32") == peak_flops("cpu", "fp32") == 2 * 1024**3 / 0.25
    assert next(ticks, None) is None and torch.get_rng_state().tolist() == state
    hardware.measured_flops.cache_clear()


def test_memory_is_the_kernels_peak_resident_set() -> None:
    held = torch.ones(16 * 2**20)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    assert memory_used() == pytest.approx(peak, rel=0.02) and memory_used() > held.nbytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
def test_gpu_memory_is_what_tensors_take() -> None:
    torch.cuda.reset_peak_memory_stats()
    before = memory_used("cuda")
    held = torch.ones(2**20, device="cuda")
    assert memory_used("cuda") - before >= held.nbytes
