"""The benchmarks, a file each: adding a file here adds a benchmark to `python -m duogen evaluate`.

The first line of a file's docstring is its sentence in --help; its `BENCHMARK`, named as the file, is what is run. The prompts of GenEval
and DPG-Bench ship with this repository. The others are read from the folder that their authors publish.
"""

from __future__ import annotations

import ast
import pkgutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duogen.evaluate.tasks import Benchmark


def benchmark_names() -> list[str]:
    """The names of all benchmarks. Imports none of them."""
    return sorted(each.name for each in pkgutil.iter_modules(__path__))


def describe_benchmark(name: str) -> str:
    """The first line of the docstring of a benchmark's file, which is read and not imported; "" if it has none."""
    spec = find_spec(f"{__name__}.{name}")
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        ValueError: there is no such benchmark, or its file defines none.
    """
    if name not in benchmark_names():
        raise ValueError(f"There is no benchmark {name}; choose one of {', '.join(benchmark_names())}.")
    found: Benchmark | None = getattr(import_module(f"{__name__}.{name}"), "BENCHMARK", None)
    if found is None or found.name != name:
        raise ValueError(f"The file of the benchmark {name} must define BENCHMARK, with {name!r} as its name.")
    return found
