"""The effect of `keep_freed_memory` on a whole process."""

import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_process_keeps_the_memory_that_tensors_free():
    """40 MB allocated and freed 20 times: 10,000 page faults each if the memory goes back to the kernel."""
    program = (
        "import resource, torch; from thousandwords.nn.malloc import keep_freed_memory; keep_freed_memory()\n"
        "for repeat in range(25):\n"
        "    torch.ones(10_000_000)\n"
        "    if repeat == 4: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 50_000  # of 200,000; the kernel may reclaim some pages
