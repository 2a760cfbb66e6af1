"""The C library's heaps: how many a process has."""

import platform
import subprocess
import sys

import pytest

CODE = """
import ctypes, os, sys, tempfile, threading
from duogen.heaps import limit_heaps
if sys.argv[1] == "few":
    limit_heaps()
barrier, blocks = threading.Barrier(16), []
def allocate():
    barrier.wait()
    blocks.append(ctypes.CDLL(None).malloc(100))
    barrier.wait()
threads = [threading.Thread(target=allocate) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
library = ctypes.CDLL(None)
library.fdopen.restype = ctypes.c_void_p
file = tempfile.TemporaryFile()
stream = ctypes.c_void_p(library.fdopen(os.dup(file.fileno()), b"w"))
library.malloc_info(0, stream)
library.fclose(stream)
file.seek(0)
print(file.read().count(b"<heap nr="))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such heaps")
def test_a_limited_process_has_two_heaps() -> None:
    made = [subprocess.run([sys.executable, "-c", CODE, each], check=True, capture_output=True) for each in ("few", "many")]
    few, many = (int(each.stdout) for each in made)
    assert few <= 2 < many
