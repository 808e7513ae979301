"""The list of checks: a new one is a small class and a line here."""

from cocomix.doctor import RunCheck
from cocomix.doctor_check import CHECKS
from cocomix.doctor_libraries import ExtrasCheck, RequirementsCheck
from cocomix.doctor_system import DiskCheck, MemoryCheck, PythonCheck, WriteCheck
from cocomix.doctor_torch_works import CudaCheck, ThreadsCheck, TorchCheck

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
