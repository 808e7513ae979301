"""The choice of the device: named, not there, shared; Apple GPUs by a stub, because there is none here."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from cocomix.utils import distributed
from cocomix.utils.distributed import DEVICE, device, distributed_session
from cocomix.utils.env import as_float64, fast_precision, machine, memory_used
from cocomix.utils.errors import CocomixError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets which GPUs torch finds, and what `COCOMIX_DEVICE` names."""

    def there(chosen: str | None, *, cuda: bool = False, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.delenv(DEVICE, raising=False)
        if chosen is not None:
            monkeypatch.setenv(DEVICE, chosen)

    return there


@pytest.mark.parametrize(
    ("chosen", "cuda", "mps", "expected"),
    [
        (None, False, False, "cpu"),
        (None, True, False, "cuda:0"),
        (None, False, True, "cpu"),  # only when it is named
        ("", True, False, "cuda:0"),
        ("auto", True, True, "cuda:0"),
        ("cpu", True, True, "cpu"),
        ("cuda", True, False, "cuda:0"),
        ("mps", True, True, "mps"),
    ],
)
def test_the_device_is_the_one_that_is_named(
    gpus: Any, chosen: str | None, cuda: bool, mps: bool, expected: str
) -> None:
    gpus(chosen, cuda=cuda, mps=mps)
    assert device() == torch.device(expected)


@pytest.mark.parametrize(
    ("chosen", "match"),
    [
        ("cuda", "finds no such GPU; set it to cpu or auto"),
        ("mps", "finds no Apple GPU; set it to cpu or auto"),
        ("tpu", "COCOMIX_DEVICE is 'tpu'; set it to one of auto, cpu, cuda, mps"),
    ],
)
def test_a_device_that_is_not_there_is_refused_in_one_sentence(gpus: Any, chosen: str, match: str) -> None:
    gpus(chosen)
    with pytest.raises(CocomixError, match=match):
        device()


def test_an_apple_gpu_is_not_shared(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus("mps", mps=True)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(CocomixError, match="cannot be shared by 2 processes"), distributed_session():
        pass


def test_what_differs_on_an_apple_gpu(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus("mps", mps=True)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 7)
    assert fast_precision() == "fp32" and memory_used("mps") == 7
    assert str(machine()["device"]).startswith("mps")
    moved: list[str] = []

    class OnMps:
        device = SimpleNamespace(type="mps")

        def cpu(self) -> torch.Tensor:
            moved.append("cpu")
            return torch.ones(2)

        def double(self) -> torch.Tensor:
            raise TypeError("an Apple GPU has no float64")

    assert as_float64(cast(torch.Tensor, OnMps())).dtype == torch.float64 and moved == ["cpu"]
    assert as_float64(torch.ones(2)).dtype == torch.float64


def test_what_an_apple_gpu_lacks_falls_back_before_torch_is_imported() -> None:
    program = (
        "import sys; sys.platform = 'darwin'; import cocomix, os\n"
        "assert 'torch' not in sys.modules and os.environ['PYTORCH_ENABLE_MPS_FALLBACK'] == '1'\n"
        "assert os.environ['USE_HUB_KERNELS'] == 'NO'"
    )
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTORCH_ENABLE_MPS_FALLBACK"}}
    environment.pop("USE_HUB_KERNELS", None)
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_a_limit_on_instructions_counts_as_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "flags : fpu avx512_bf16 amx_bf16")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    assert fast_precision() == "bf16"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    assert fast_precision() == "fp32"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert fast_precision() == "bf16"
