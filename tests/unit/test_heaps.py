"""The memory that libraries keep: the C library's heaps, and the kernels that torch makes for each shape."""

import os
import platform
import subprocess
import sys

import pytest
import torch

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


KERNELS = """
import duogen, torch
from duogen.heaps import trim_heaps
torch.set_num_threads(1)
weight = torch.randn(3072, 576).bfloat16()
def run(lengths):
    with torch.inference_mode():
        for n in lengths: torch.nn.functional.linear(torch.zeros(1, n, 576, dtype=torch.bfloat16), weight)
    trim_heaps()
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))  # KiB
print(-run(range(2, 20)) + run(range(20, 301)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such heaps")
def test_a_limited_process_has_two_heaps() -> None:
    made = [subprocess.run([sys.executable, "-c", CODE, each], check=True, capture_output=True) for each in ("few", "many")]
    few, many = (int(each.stdout) for each in made)
    assert few <= 2 < many


@pytest.mark.skipif(
    sys.platform != "linux" or not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN makes no kernels for bf16 here"
)
def test_kernels_for_new_lengths_do_not_fill_the_memory() -> None:
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    bare = {name: value for name, value in os.environ.items() if name not in names}
    environments = (bare, bare | dict.fromkeys(names, "1024"))
    runs = [subprocess.run([sys.executable, "-c", KERNELS], check=True, capture_output=True, env=each) for each in environments]
    few, all_kept = (int(run.stdout) for run in runs)  # KiB
    assert 3 * few < all_kept > 30_000, (few, all_kept)
