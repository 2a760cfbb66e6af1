"""What PyTorch can use of this machine: whether xformers can load beside it, and a GPU that it cannot use.

Nothing here imports torch or xformers: both say what they were built for in small files beside their code.
"""

from __future__ import annotations

import functools
import json
import platform
import re
import runpy
import shutil
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

GPU_INSTALL = "pip install -r requirements-gpu.txt"
# A version with the build's name, so that pip does not take the build that is there for the same. The package index has CUDA 13.0 too.
CUDA_INSTALL = "pip install torch==2.13.0+cu130 --index-url https://download.pytorch.org/whl/cu130"
XPU_INSTALL = "pip install torch==2.13.0+xpu --index-url https://download.pytorch.org/whl/xpu"
ROCM_PAGE = "https://pytorch.org/get-started/locally"
CAPABILITIES = ((7, 5), (9, 0))  # lowest and highest compute capability that xformers' wheels have kernels for
ADAPTERS = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"  # where Windows lists its display adapters
# On a laptop's processor sits a small GPU of the same vendor; only these names are worth another PyTorch.
WORTHWHILE = {"NVIDIA": r"NVIDIA", "AMD": r"Radeon.*\b(RX|PRO|AI|VII)\b", "Intel": r"\bArc\b"}


@dataclass(frozen=True)
class Kernel:
    """An attention kernel by its name in diffusers' dispatcher.

    Attributes:
        kind: which of PyTorch's own kernels computes: "flash", "memory-efficient", "cuDNN", "plain"; "" where nobody asked.
        why: why no better one runs, as a clause; "" where there is none.
    """

    name: str
    kind: str = ""
    why: str = ""

    def sentence(self) -> str:
        if self.name == "auto":  # for a GPU that is not here
            return "Attention kernel: xformers where it is installed and knows the GPU, else PyTorch's own."
        if self.name != "native":
            return f"Attention kernel: {self.name}."
        kind = f" ({self.kind})" if self.kind else ""
        return f"Attention kernel: PyTorch's own{kind}{'; ' if self.why else ''}{self.why}."


@dataclass(frozen=True)
class TorchBuild:
    """What a PyTorch was built for: its version, and the version of CUDA, ROCm or oneAPI, "" for none."""

    version: str
    cuda: str = ""
    hip: str = ""
    xpu: str = ""


@functools.cache
def torch_build() -> TorchBuild | None:
    """The PyTorch that is installed, read from its `version.py`; `None` without one."""
    file = _beside("torch", "version.py")
    if file is None:
        return None
    said = runpy.run_path(str(file))
    return TorchBuild(said["__version__"], *(said.get(name) or "" for name in ("cuda", "hip", "xpu")))


def explain_no_xformers(torch: TorchBuild | None) -> str:
    """Why the library of xformers cannot load beside this PyTorch, as a clause; "" where it can.

    The library uses PyTorch's stable ABI alone: it loads beside any later version, if that brings the same CUDA (same major version).
    """
    if not has_xformers():
        return f"xformers is not installed: {GPU_INSTALL}" if _install_clause(torch) else "xformers is not installed"
    file = _beside("xformers", "cpp_lib.json")
    if file is None:
        return "xformers was installed without its CUDA library"
    built = json.loads(file.read_text(encoding="utf-8"))["version"]
    cuda = built["cuda"] // 100 if built["cuda"] else 0
    if torch is None or not torch.cuda:
        return f"xformers needs CUDA {cuda}, this PyTorch has none"
    if int(torch.cuda.split(".")[0]) != cuda:
        return f"xformers needs CUDA {cuda}, this PyTorch brings CUDA {torch.cuda}" + _install_clause(torch)
    if _release(torch.version) < _release(built["torch"]):
        needed, here = (version.partition("+")[0] for version in (built["torch"], torch.version))
        return f"xformers needs torch {needed}, this is torch {here}" + _install_clause(torch)
    return ""


def has_xformers() -> bool:
    """Whether xformers is installed, hidden or not."""
    return PathFinder.find_spec("xformers") is not None


def hide_xformers() -> None:
    """Make xformers look absent to the libraries that import it, where it cannot load: it would only print warnings.

    A diffusers that was imported earlier has looked already, and would miss it.
    """
    if not {"xformers", "diffusers"} & set(sys.modules) and has_xformers() and explain_no_xformers(torch_build()):
        sys.modules["xformers"] = None  # ty: ignore[invalid-assignment]  # Python's own mark of what must not be imported


def explain_unfit_gpu(capability: tuple[int, int]) -> str:
    """Why xformers' wheels cannot compute on an NVIDIA GPU of this compute capability, as a clause; "" where they can."""
    low, high = CAPABILITIES
    if low <= capability <= high:
        return ""
    return f"xformers has no kernels for this GPU (compute capability {capability[0]}.{capability[1]})"


def serves_wheels() -> bool:
    """Whether the package index has wheels of xformers for this machine that fit a PyTorch from there."""
    return platform.system() == "Linux" and platform.machine() == "x86_64"


def explain_unused_gpu(torch: TorchBuild | None, usable: bool) -> str:
    """What to install where a GPU is seen and PyTorch cannot use it, as a sentence; "" where all is well.

    Args:
        usable: whether PyTorch finds a GPU.
    """
    vendor, build = "" if usable else find_gpu(), torch or TorchBuild("")
    if not vendor:
        return ""
    here, kind = f"PyTorch cannot use the {vendor} GPU here", {"NVIDIA": "CUDA", "AMD": "ROCm", "Intel": "XPU"}[vendor]
    if built_for := {"NVIDIA": build.cuda, "AMD": build.hip, "Intel": build.xpu}[vendor]:
        older = f", or take CUDA 12: {GPU_INSTALL}" if vendor == "NVIDIA" and serves_wheels() and not built_for.startswith("12") else ""
        return f"{here}: its driver is too old for {kind} {built_for}, or not loaded; install a newer driver{older}."
    command = {
        "NVIDIA": GPU_INSTALL if serves_wheels() else CUDA_INSTALL,
        "AMD": f"choose ROCm at {ROCM_PAGE}",
        "Intel": f"{XPU_INSTALL} (and start with --device xpu)",
    }[vendor]
    return f"{here}, since this PyTorch was built without {kind}: {command}."


def find_gpu(root: Path = Path("/")) -> str:
    """The vendor of a GPU that the system knows: "NVIDIA", "AMD", "Intel", or "" for none."""
    if platform.system() == "Windows":
        names = _windows_adapters()
        return next((vendor for vendor, name in WORTHWHILE.items() if any(re.search(name, each) for each in names)), "")
    if (root / "proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        return "NVIDIA"
    if (root / "dev/kfd").exists():
        return "AMD"
    driver = root / "sys/bus/pci/drivers/xe"  # Intel's driver for Arc; the older one serves every laptop
    return "Intel" if driver.is_dir() and any(":" in each.name for each in driver.iterdir()) else ""


def _windows_adapters() -> list[str]:
    """Names of the display adapters, from the registry."""
    import winreg

    registry: Any = winreg  # its stubs are empty on other systems
    names = []
    try:
        with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, ADAPTERS) as listed:
            for index in range(registry.QueryInfoKey(listed)[0]):
                try:
                    with registry.OpenKey(listed, registry.EnumKey(listed, index)) as adapter:
                        names.append(str(registry.QueryValueEx(adapter, "DriverDesc")[0]))
                except OSError:  # a key that only the system may read
                    continue
    except OSError:
        pass
    return names


def _install_clause(torch: TorchBuild | None) -> str:
    return f": {GPU_INSTALL}" if serves_wheels() and torch is not None and torch.cuda else ""


def _release(version: str) -> tuple[int, ...]:
    """(major, minor) of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _beside(package: str, name: str) -> Path | None:
    """A file in an installed package that is not imported for it."""
    found = PathFinder.find_spec(package)  # unlike `importlib.util.find_spec` it finds what is hidden
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    return None
