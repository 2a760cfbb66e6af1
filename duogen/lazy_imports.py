"""Lazy imports in transformers and diffusers: what they import and a pair may never call is read at its first use.

A third of the time that importing them takes goes into packages that most pairs never call: peft, bitsandbytes (which imports all of
PyTorch's compiler), xformers and scipy. From Python 3.15 on an interpreter can do this by itself (PEP 810); here a finder does it for
the modules in `LAZY`.

`import M` gives a stand-in that becomes M at the first attribute that is asked of it. `from M import name` in the two libraries gives a
stand-in of `name` that becomes it when it is called, subclassed or asked for an attribute. Everywhere else it imports M at once, so that
no code of this project holds a stand-in of a name.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from opcode import opmap
from types import ModuleType
from typing import Any

LAZY = frozenset((
    "bitsandbytes", "peft", "peft.helpers", "peft.tuners", "peft.tuners.tuners_utils", "scipy", "scipy.optimize", "scipy.stats",
    "xformers", "xformers.ops",
))  # fmt: skip
IMPORTERS = ("diffusers.", "transformers.")

_real: set[str] = set()  # modules of `LAZY` that something has used


class LazyModule(ModuleType):
    """Stands for a module until something is asked of it, and passes everything on from then on."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(name)  # the import system and `inspect` ask every module for these
        if _is_waiting(self.__name__) and _imports_by_name():
            return LazyName(self.__name__, name)
        return getattr(real_module(self.__name__), name)


class LazyName:
    """Stands for what a lazy module holds under a name."""

    def __init__(self, module: str, name: str) -> None:
        self._of = module, name

    def _get(self) -> Any:
        module, name = self._of
        return getattr(real_module(module), name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._get()(*given, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._get(), name)

    def __instancecheck__(self, instance: Any) -> bool:
        return not _is_waiting(self._of[0]) and isinstance(instance, self._get())  # nothing is of a class that nobody has read

    def __subclasscheck__(self, kind: Any) -> bool:
        return not _is_waiting(self._of[0]) and issubclass(kind, self._get())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._get(),)


class LazyFinder(MetaPathFinder):
    """Gives a stand-in for each module of `LAZY`, and reads a package that stands lazy before any other module in it."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in LAZY and name not in _real:
            spec = PathFinder.find_spec(name, path, target)
            if spec is not None:
                spec.loader = _StandIn()
            return spec
        parent = name.rpartition(".")[0]
        if not _is_waiting(parent):
            return None
        real_module(parent)
        there = sys.modules.get(name)  # a package mostly imports the modules in it
        return None if there is None else ModuleSpec(name, _Found(there), is_package=hasattr(there, "__path__"))


class _StandIn(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return LazyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Found(Loader):
    """Of a module that was imported while it was looked for."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


def _imports_by_name() -> bool:
    """Whether who asks a lazy module for an attribute is a line `from M import name` in `IMPORTERS`."""
    where = sys._getframe(2)
    while where.f_code.co_filename.startswith("<frozen importlib") and where.f_back is not None:
        where = where.f_back
    does = where.f_code.co_code[where.f_lasti]
    return does in (opmap["IMPORT_NAME"], opmap["IMPORT_FROM"]) and str(where.f_globals.get("__name__")).startswith(IMPORTERS)


def _is_waiting(name: str) -> bool:
    """Whether a module stands lazy."""
    return isinstance(sys.modules.get(name), LazyModule)


def real_module(name: str) -> ModuleType:
    """Import a module of `LAZY` as ever, and with it all of its package; other threads wait for it as for any import."""
    root = next(each for each in sorted(LAZY) if name == each or name.startswith(f"{each}."))
    for each in [each for each in LAZY if each == root or each.startswith(f"{root}.")]:
        _real.add(each)
        if _is_waiting(each):
            sys.modules.pop(each, None)
    return importlib.import_module(name)


def is_read(name: str) -> bool:
    """Whether a module has been imported, and no stand-in is in its place."""
    return sys.modules.get(name) is not None and not _is_waiting(name)


def import_lazily() -> None:
    """Make the imports of `LAZY` lazy from now on; what has been imported stays."""
    if not any(isinstance(each, LazyFinder) for each in sys.meta_path):
        sys.meta_path.insert(0, LazyFinder())
