"""Tests of bits and tolerances (`pytest -m processor`) on the other kind of processor than this machine's.

One kind has AVX-512 or VNNI, the other has AVX2 alone, and their kernels differ. From the first kind qemu's user mode
makes the second, some twenty times slower; nothing makes the first from the second, so there the tests run as they are,
and that half waits for a machine of the first kind. `make test` is what runs them on this machine's own processor.

    python -m tools.test_portable [pytest's arguments]        its exit status
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_workbench_service.accelerators.processor import EXACT_PRODUCTS, processor_features

ROOT = Path(__file__).resolve().parent.parent
WIDE = {"avx512f", *EXACT_PRODUCTS}
EMULATOR = "qemu-x86_64"
AS_AVX2 = ("-cpu", "max")  # qemu's user mode has AVX2 and FMA, and no AVX-512
NUM_WORKERS = 2
TIMEOUT_S = 3600
IMPORT = "from ml_workbench_service.accelerators.processor import processor_features; print(*processor_features())"


def main(arguments: Sequence[str]) -> int:
    """Runs what can run here, and says which half that was."""
    command = [sys.executable, "-m", "pytest", "-m", "processor", f"--timeout={TIMEOUT_S}", "--dist=loadfile"]
    own = processor_features()
    if not WIDE & set(own):
        print(
            f"this machine has {' '.join(own)}: its half runs; the half with AVX-512 or VNNI waits for such a machine"
        )
        return subprocess.run([*command, f"--numprocesses={NUM_WORKERS}", *arguments], cwd=ROOT).returncode
    emulator = shutil.which(EMULATOR)
    if emulator is None:
        print(f"{EMULATOR} is missing: install qemu-user (Debian, Ubuntu: apt install qemu-user), then run this again")
        return 1
    emulated = [emulator, *AS_AVX2, sys.executable]
    told = subprocess.run(
        [*emulated, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    if WIDE & set(told):
        print(f"this {EMULATOR} emulates {' '.join(told)}, which is this machine's kind; the other half did not run")
        return 1
    print(f"the tests run emulated, with {' '.join(told)}; this machine's own, {' '.join(own)}, is `make test`")
    workers = f"{NUM_WORKERS}*popen//python={' '.join(emulated)}"  # the process that hands them out stays as it is
    return subprocess.run([*command, "--tx", workers, *arguments], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
