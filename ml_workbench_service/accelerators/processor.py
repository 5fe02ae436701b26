"""Processor features: the instruction sets by which onnxruntime, torch and numpy choose their kernels.

int8 products and last bits belong to them. glibc is asked rather than /proc/cpuinfo, which under user-mode emulation
shows the machine's processor and not the emulated one.
"""

import ctypes
import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path

CPUID_BITS = {
    "fma": (0, 2, 12),
    "avx2": (1, 1, 5),
    "avx512f": (1, 1, 16),
    "avx512_vnni": (1, 2, 11),
    "amx_int8": (1, 3, 25),
    "avx_vnni": (6, 0, 4),
}
"""By Linux's name: glibc's number of the CPUID leaf (<sys/platform/x86.h>), register (eax, ebx, ecx, edx), bit."""
FLAGS = {*CPUID_BITS, "asimddp", "i8mm", "sve"}
EXACT_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""x86-64's instructions that add up products of bytes in 32 bits; without any of them a sum of two is clipped at 16."""


class _Leaf(ctypes.Structure):
    _fields_ = [("present", ctypes.c_uint32 * 4), ("usable", ctypes.c_uint32 * 4)]


@cache
def processor_features() -> tuple[str, ...]:
    """The architecture and its features that matter, sorted; the architecture alone where nothing says more."""
    machine = platform.machine()
    try:
        ask_leaf = ctypes.CDLL(None)["__x86_get_cpuid_feature_leaf"]  # glibc 2.33
    except (OSError, AttributeError):
        return tuple(sorted({machine, *(FLAGS & _flags())}))
    ask_leaf.argtypes, ask_leaf.restype = [ctypes.c_uint], ctypes.POINTER(_Leaf)
    usable = (name for name, (leaf, word, bit) in CPUID_BITS.items() if ask_leaf(leaf).contents.usable[word] >> bit & 1)
    return tuple(sorted({machine, *usable}))


def clips_products(features: Iterable[str]) -> bool:
    """Whether a product of unsigned with signed bytes saturates: on x86-64 without VNNI."""
    return "x86_64" in (found := set(features)) and not found & EXACT_PRODUCTS


def _flags() -> set[str]:
    """What Linux says; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.split(":")[0].strip() in ("flags", "Features") for flag in line.split()}
