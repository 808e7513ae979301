"""The list of checks: a new one is a small class and a line here."""

from cocomix.doctor.check import CHECKS
from cocomix.doctor.libraries import ExtrasCheck, RequirementsCheck
from cocomix.doctor.run_health import RunCheck
from cocomix.doctor.system import DiskCheck, MemoryCheck, PythonCheck, WriteCheck
from cocomix.doctor.torch_works import CudaCheck, ThreadsCheck, TorchCheck

CHECKS[:] = [
    PythonCheck,
    RequirementsCheck,
    TorchCheck,
    ThreadsCheck,
    CudaCheck,
    ExtrasCheck,
    DiskCheck,
    MemoryCheck,
    WriteCheck,
    RunCheck,
]
