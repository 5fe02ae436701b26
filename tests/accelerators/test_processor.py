"""Which processor this is, as the kernels see it."""

import platform
import shutil
import subprocess
import sys

import pytest

from ml_workbench_service.accelerators import processor
from ml_workbench_service.accelerators.processor import FLAGS, clips_products, processor_features

EMULATOR = shutil.which("qemu-x86_64")


def test_the_features_name_the_architecture_and_are_sorted() -> None:
    found = processor_features()
    assert platform.machine() in found
    assert set(found) <= {platform.machine(), *FLAGS}
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    ("features", "clips"),
    [
        (("avx2", "fma", "x86_64"), True),
        (("avx2", "avx512f", "x86_64"), True),
        (("avx2", "avx_vnni", "x86_64"), False),
        (("avx2", "avx512_vnni", "avx512f", "x86_64"), False),
        (("aarch64", "asimddp"), False),
    ],
)
def test_products_of_bytes_are_clipped_on_x86_without_vnni(features: tuple[str, ...], clips: bool) -> None:
    assert clips_products(features) == clips


@pytest.mark.skipif(EMULATOR is None or platform.machine() != "x86_64", reason="needs qemu-user on x86-64")
def test_an_emulated_processor_is_the_one_that_counts() -> None:
    """Though /proc/cpuinfo goes on showing the machine's."""
    program = f"import runpy; print(*runpy.run_path({processor.__file__!r})['processor_features']())"
    told = subprocess.run(
        [str(EMULATOR), "-cpu", "Haswell", sys.executable, "-S", "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == ["avx2", "fma", "x86_64"]
