"""Freed memory: a process that decodes gives it back, one that computes while others decode has it at once again."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from vatt.runtime import memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        np.ones(1 << 20, np.uint8)  # smaller than a huge page
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

memory.{function}()
pages()
print(pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is set here is glibc's")
@pytest.mark.parametrize(("function", "fresh"), [("return_freed_memory", True), ("keep_freed_memory", False)])
def test_whether_pages_are_fresh(function, fresh):
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(function=function)], capture_output=True, check=True)
    faults = int(done.stdout)  # 100 blocks of at least 16 pages
    assert faults > 800 if fresh else faults < 100
