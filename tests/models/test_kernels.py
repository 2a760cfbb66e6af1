"""Which attention kernel runs and why not a better one; a GPU that PyTorch cannot use; versions that fit each other, by the wheels."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from bench import gpu
from duogen import kernels
from duogen.hub.memory_plan import Machine, Plan
from duogen.kernels import Kernel, TorchBuild, explain_no_xformers, explain_unused_gpu, find_gpu, torch_build
from duogen.models import placement
from duogen.models.pipeline import pick_device
from duogen.models.placement import choose_kernel, set_attention
from duogen.options import LoadOptions
from tests.support.wheels import Elf
from ui.parts.i18n import translate_into

ROOT = Path(__file__).parents[2]
WHEELS = json.loads((ROOT / "tests" / "support" / "wheels.json").read_text(encoding="utf-8"))
CUDA_13, CUDA_12, CPU = TorchBuild("2.13.0", "13.0"), TorchBuild("2.10.0+cu128", "12.8"), TorchBuild("2.13.0+cpu")
INSTALL = "pip install -r requirements-gpu.txt"


def pins(file: str) -> dict[str, str]:
    """Name -> version, those of the files that it includes too."""
    found: dict[str, str] = {}
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            found |= pins(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            name, version = line.partition(";")[0].strip().split("==")
            found[name] = version
    return found


def misfits(torch_version: str, xformers_version: str) -> list[str]:
    """Why a torch and an xformers do not fit each other, by what their wheels say."""
    base, ours = WHEELS[f"torch-{torch_version}"], WHEELS[f"xformers-{xformers_version}"]
    runtime = f"libcudart.so.{base['cuda'].split('.')[0]}"
    wanted = [each for each in map(Requirement, ours["requires"]) if each.name == "torch"]
    wrong = [f"{each} is wanted" for each in wanted if torch_version not in each.specifier]
    wrong += [f"{name} is needed" for name in ours["needed"] if name.startswith("libcudart") and name != runtime]
    older = Version(torch_version) < Version(Version(ours["built"]["torch"]).base_version)
    return wrong + [f"it was built for torch {ours['built']['torch']}"] * older


def test_the_pinned_pair_fits_by_what_the_wheels_say() -> None:
    gpu_pins, pinned = pins("requirements-gpu.txt"), pins("requirements.txt")
    assert misfits(gpu_pins["torch"], gpu_pins["xformers"]) == []
    assert misfits(pinned["torch"], gpu_pins["xformers"]) == ["libcudart.so.12 is needed"], "then one file would be enough"
    assert WHEELS["xformers-0.0.35"]["outside_stable_abi"] == [], "it loads beside a later torch of the same CUDA"
    assert "xformers" not in pinned and gpu_pins == pinned | {"torch": gpu_pins["torch"], "xformers": gpu_pins["xformers"]}
    built_for = [re.match(r"(\d+)\.(\d+)", each).groups() for each in WHEELS["xformers-0.0.35"]["architectures"]]
    capabilities = [(int(major), int(minor)) for major, minor in built_for]
    assert (min(capabilities), max(capabilities)) == kernels.CAPABILITIES


def test_all_that_is_pinned_takes_the_older_torch() -> None:
    older, said = pins("requirements-gpu.txt")["torch"], []
    for name in pins("requirements.txt"):
        requires = [each for each in map(Requirement, importlib.metadata.requires(name) or []) if each.name == "torch"]
        asked = [each for each in requires if each.marker is None or each.marker.evaluate({"extra": "torch"})]
        said += [(name, str(each)) for each in asked]
        assert [str(each) for each in asked if older not in each.specifier] == [], name
    assert {"bitsandbytes", "accelerate", "transformers"} <= {name for name, _ in said}


@pytest.mark.slow
@pytest.mark.skipif("DUOGEN_TEST_REGISTRY" not in os.environ, reason="fetches a gigabyte; set DUOGEN_TEST_REGISTRY=1")
def test_the_package_index_still_says_so(tmp_path) -> None:
    """pip resolves the pair, and gives what `wheels.json` holds."""
    pinned = pins("requirements-gpu.txt")
    wanted = [f"{name}=={pinned[name]}" for name in ("torch", "xformers")]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report"]
    only = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_CONSTRAINT": ""}
    ran = subprocess.run([*command, str(tmp_path / "report.json"), *wanted], env=os.environ | only, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for each in json.loads((tmp_path / "report.json").read_text())["install"]:
        about, known = each["metadata"], WHEELS[f"{each['metadata']['name']}-{each['metadata']['version']}"]
        assert each["download_info"]["url"].endswith(known["file"]) and set(known["requires"]) <= set(about["requires_dist"])


def test_the_commands_install_what_is_pinned() -> None:
    version, cuda = pins("requirements.txt")["torch"], WHEELS["torch-2.13.0"]["cuda"].replace(".", "")
    assert f"torch=={version}+cu{cuda} " in kernels.CUDA_INSTALL and kernels.CUDA_INSTALL.endswith(f"/cu{cuda}")
    assert f"torch=={version}+xpu " in kernels.XPU_INSTALL
    assert (ROOT / kernels.GPU_INSTALL.removeprefix("pip install -r ")).is_file()


@pytest.mark.skipif(shutil.which("readelf") is None or platform.system() != "Linux", reason="needs readelf")
def test_elf_files_are_read_as_readelf_reads_them() -> None:
    file = next(Path(torch.__file__).parent.glob("_C.*.so"))
    ran = subprocess.run(["readelf", "-d", "-W", "--dyn-syms", file], capture_output=True, text=True, check=True).stdout
    elf = Elf(file.read_bytes())
    assert elf.needed() == re.findall(r"\(NEEDED\).*\[(.+)\]", ran) != []
    names = [name.partition("@")[0] for name in re.findall(r" UND (\S+)", ran)]
    assert sorted(elf.undefined()) == sorted(names) != []
    with pytest.raises(ValueError, match="no 64-bit"):
        Elf(b"MZ" * 9)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """An xformers that is installed as far as its files tell; what imports it dies."""
    built = WHEELS["xformers-0.0.35"]["built"]
    folder = tmp_path / "xformers"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('xformers was imported')")
    (folder / "cpp_lib.json").write_text(json.dumps({"version": built}))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return folder


@pytest.fixture
def no_wheel(monkeypatch) -> None:
    real = PathFinder.find_spec
    monkeypatch.setattr(PathFinder, "find_spec", lambda name, *given: None if name == "xformers" else real(name, *given))


def test_why_xformers_cannot_load(wheel) -> None:
    assert explain_no_xformers(CUDA_12) == "" == explain_no_xformers(TorchBuild("2.13.0", "12.9"))
    assert explain_no_xformers(CUDA_13) == f"xformers needs CUDA 12, this PyTorch brings CUDA 13.0: {INSTALL}"
    assert explain_no_xformers(CPU) == "xformers needs CUDA 12, this PyTorch has none"
    assert explain_no_xformers(TorchBuild("2.9.1", "12.8")) == f"xformers needs torch 2.10.0, this is torch 2.9.1: {INSTALL}"
    (wheel / "cpp_lib.json").unlink()
    assert explain_no_xformers(CUDA_12) == "xformers was installed without its CUDA library"


def test_what_nobody_can_install_is_not_advised(no_wheel, monkeypatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for system, advice in (("Linux", f": {INSTALL}"), ("Windows", ""), ("Darwin", "")):
        monkeypatch.setattr(platform, "system", lambda name=system: name)
        assert explain_no_xformers(CUDA_13) == f"xformers is not installed{advice}"


def test_an_xformers_that_cannot_load_is_hidden_from_all_libraries(wheel) -> None:
    """In a process of its own: the libraries look once."""
    probe = """
import sys, importlib.util
sys.path.insert(0, sys.argv[1])
import duogen
from duogen import kernels
assert kernels.has_xformers() and importlib.util.find_spec("xformers") is None
from diffusers.models import attention_dispatch
assert not attention_dispatch._CAN_USE_XFORMERS_ATTN
"""
    ran = subprocess.run([sys.executable, "-c", probe, str(wheel.parent)], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_an_xformers_that_can_load_is_left_alone(wheel, monkeypatch) -> None:
    for name in ("xformers", "diffusers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for build, hidden in ((CUDA_12, False), (CUDA_13, True)):
        monkeypatch.setattr(kernels, "torch_build", lambda value=build: value)
        kernels.hide_xformers()
        assert ("xformers" in sys.modules) == hidden
    monkeypatch.delitem(sys.modules, "xformers")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    kernels.hide_xformers()
    assert "xformers" not in sys.modules, "diffusers has seen it and would miss it"


def test_the_build_of_torch_is_read_without_importing_it() -> None:
    real = torch.version
    assert torch_build() == TorchBuild(torch.__version__, real.cuda or "", real.hip or "", getattr(real, "xpu", None) or "")
    probe = "import sys, duogen, duogen.kernels; duogen.kernels.torch_build(); assert not {'torch', 'xformers.ops'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], cwd=ROOT).returncode == 0


def on_nvidia(monkeypatch, build: TorchBuild, capability: tuple[int, int], failure: str = "") -> str:
    """What is said of the kernel on an NVIDIA GPU."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(placement, "torch_build", lambda: build)
    monkeypatch.setattr(placement, "_xformers_failure", lambda device: failure)
    monkeypatch.setattr(placement, "sdpa_kind", lambda device: "flash")
    return choose_kernel("cuda").sentence()


def test_the_kernel_on_a_gpu_and_why_no_better_one(wheel, monkeypatch) -> None:
    own = "Attention kernel: PyTorch's own (flash)"
    assert on_nvidia(monkeypatch, CUDA_12, (8, 9)) == "Attention kernel: xformers."
    assert on_nvidia(monkeypatch, CUDA_13, (8, 9)) == f"{own}; xformers needs CUDA 12, this PyTorch brings CUDA 13.0: {INSTALL}."
    for new in ((10, 0), (12, 0), (7, 0)):
        said = on_nvidia(monkeypatch, CUDA_13, new)
        assert said == f"{own}; xformers has no kernels for this GPU (compute capability {new[0]}.{new[1]})."
    failed = on_nvidia(monkeypatch, CUDA_12, (7, 5), "xformers fails on this GPU (no bf16)")
    assert failed == f"{own}; xformers fails on this GPU (no bf16)."


def test_where_the_wheels_cannot_serve_pytorchs_own_is_named_alone(no_wheel, monkeypatch) -> None:
    for system, machine in (("Windows", "AMD64"), ("Linux", "aarch64")):
        monkeypatch.setattr(platform, "system", lambda name=system: name)
        monkeypatch.setattr(platform, "machine", lambda name=machine: name)
        assert on_nvidia(monkeypatch, CUDA_13, (8, 9)) == "Attention kernel: PyTorch's own (flash)."
    monkeypatch.setattr(torch.version, "hip", "7.1")
    assert choose_kernel("cuda").sentence() == choose_kernel("mps").sentence() == "Attention kernel: PyTorch's own (flash)."
    assert choose_kernel("cpu") == Kernel("native", "flash") and Kernel("native").sentence() == "Attention kernel: PyTorch's own."


def test_pytorchs_dispatcher_says_which_of_its_kernels_runs() -> None:
    assert placement.sdpa_kind("cpu") == "" and placement.sdpa_kind("meta") in ("", *placement.SDPA_KINDS.values())
    members = torch.nn.attention.SDPBackend.__members__
    assert set(placement.SDPA_KINDS) <= set(members)
    q = torch.zeros(1, 4, 128, 64)
    assert torch._fused_sdp_choice(q, q, q) in {int(each) for each in members.values()}


def test_auto_never_falls_back_in_silence(monkeypatch) -> None:
    monkeypatch.setattr(placement, "explain_no_xformers_here", lambda device: "")

    class Painter:
        chosen = ""

        def set_attention_backend(self, name: str) -> None:
            if name == "xformers":
                raise RuntimeError("no such operator.\nmore")
            self.chosen = name

    painter = Painter()
    kernel = set_attention(painter, "cpu", "auto")
    assert painter.chosen == kernel.name == "native", "diffusers takes the kernel chosen last"
    assert kernel.sentence() == "Attention kernel: PyTorch's own; xformers does not work with this painter (no such operator)."
    with pytest.raises(ValueError, match="'xformers' cannot be used here \\(no such operator\\); choose --attention native"):
        set_attention(painter, "cpu", "xformers")
    monkeypatch.setattr(placement, "explain_no_xformers_here", lambda device: "xformers is not installed")
    with pytest.raises(ValueError, match="'xformers' cannot be used here \\(xformers is not installed\\)"):
        set_attention(painter, "cpu", "xformers")


def test_a_kernel_that_is_wished_for() -> None:
    assert choose_kernel("cpu", "flash") == Kernel("flash") and choose_kernel("cpu", "native").name == "native"
    with pytest.raises(ValueError, match="choose auto or one of"):
        choose_kernel("cpu", "sideways")


def touch(root: Path, name: str) -> Path:
    (root / name).parent.mkdir(parents=True)
    (root / name).touch()
    return root


def test_a_gpu_is_seen_by_what_the_system_knows(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert find_gpu(tmp_path) == ""
    assert find_gpu(touch(tmp_path / "n", "proc/driver/nvidia/version")) == "NVIDIA"
    assert find_gpu(touch(tmp_path / "a", "dev/kfd")) == "AMD"
    assert find_gpu(touch(tmp_path / "i", "sys/bus/pci/drivers/xe/0000:03:00.0")) == "Intel"
    assert find_gpu(touch(tmp_path / "j", "sys/bus/pci/drivers/xe/new_id")) == "", "the driver is there, its GPU is not"
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert find_gpu(tmp_path) == "NVIDIA"


class Registry:
    """Windows' list of display adapters."""

    HKEY_LOCAL_MACHINE = "machine"

    def __init__(self, *names: str) -> None:
        self.names = names

    def OpenKey(self, above, name):  # noqa: N802
        if name == "Configuration":
            raise PermissionError(name)
        return Key(name)

    def QueryInfoKey(self, key):  # noqa: N802
        return len(self.names) + 1, 0, 0

    def EnumKey(self, key, index):  # noqa: N802
        return [*self.names, "Configuration"][index]

    def QueryValueEx(self, key, name):  # noqa: N802
        return key.name, 1


class Key:
    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Key:
        return self

    def __exit__(self, *_) -> None:
        pass


@pytest.mark.parametrize(
    ("names", "vendor"),
    [
        (["Intel(R) UHD Graphics 770", "NVIDIA GeForce RTX 4090"], "NVIDIA"),
        (["AMD Radeon RX 7900 XTX"], "AMD"),
        (["Intel(R) Arc(TM) A770 Graphics"], "Intel"),
        (["AMD Radeon(TM) Graphics"], ""),
        (["Intel(R) Iris(R) Xe Graphics"], ""),
        ([], ""),
    ],
)
def test_a_gpu_is_seen_on_windows(names, vendor, monkeypatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setitem(sys.modules, "winreg", Registry(*names))
    assert find_gpu() == vendor


def unused(monkeypatch, vendor: str, build: TorchBuild, system: str = "Linux") -> str:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(kernels, "find_gpu", lambda: vendor)
    assert explain_unused_gpu(build, True) == ""
    return explain_unused_gpu(build, False)


def test_what_to_install_for_a_gpu_that_pytorch_cannot_use(monkeypatch) -> None:
    nvidia = "PyTorch cannot use the NVIDIA GPU here"
    assert unused(monkeypatch, "", CPU) == ""
    assert unused(monkeypatch, "NVIDIA", CPU) == f"{nvidia}, since this PyTorch was built without CUDA: {INSTALL}."
    assert unused(monkeypatch, "NVIDIA", CPU, "Windows").endswith("torch==2.13.0+cu130 --index-url https://download.pytorch.org/whl/cu130.")
    driver = f"{nvidia}: its driver is too old for CUDA 13.0, or not loaded; install a newer driver"
    assert unused(monkeypatch, "NVIDIA", CUDA_13) == f"{driver}, or take CUDA 12: {INSTALL}."
    assert unused(monkeypatch, "NVIDIA", CUDA_13, "Windows") == f"{driver}."
    assert "built without ROCm: choose ROCm at https://pytorch.org/" in unused(monkeypatch, "AMD", CUDA_13)
    assert "driver is too old for ROCm 7.1" in unused(monkeypatch, "AMD", TorchBuild("2.13.0", hip="7.1"))
    assert unused(monkeypatch, "Intel", CPU).endswith("/whl/xpu (and start with --device xpu).")


def test_plan_start_and_page_say_it(monkeypatch) -> None:
    from duogen.hub.load import name_kernel
    from ui.tabs.models import Models

    words = "PyTorch cannot use the NVIDIA GPU here."
    monkeypatch.setattr("duogen.models.placement.explain_unused_gpu", lambda build, usable: "" if usable else words)
    for each in (torch.cuda, torch.xpu, torch.backends.mps):
        monkeypatch.setattr(each, "is_available", lambda: False)
    plan = Plan(LoadOptions(), (64, 64), 0, 1, True)
    said = name_kernel(plan)
    assert said.line().endswith("PyTorch cannot use the NVIDIA GPU here.") and said.line().count("NVIDIA") == 1
    assert "NVIDIA" not in name_kernel(Plan(LoadOptions(device="cpu"), (64, 64), 0, 1, True)).line(), "who asks for the CPU gets it"
    with pytest.raises(ValueError, match="no CUDA device here; use --device cpu. PyTorch cannot use the NVIDIA GPU here."):
        pick_device("cuda")

    class Open:
        words, error = "Ready: A pair.", ""

        class engine:  # noqa: N801
            about, plan = {"title": "A pair"}, said

    tab = Models.__new__(Models)
    tab.loading = Open()
    assert "Open now: A pair. Attention kernel: PyTorch's own. PyTorch cannot use the NVIDIA GPU here." in tab._open_now()


def test_the_sentences_in_other_languages(wheel, monkeypatch) -> None:
    builds = (CUDA_12, CUDA_13, CPU, TorchBuild("2.9.1", "12.8"))
    said = [on_nvidia(monkeypatch, build, card) for build in builds for card in ((8, 9), (12, 0))]
    vendors = (("NVIDIA", CPU), ("NVIDIA", CUDA_13), ("AMD", CPU), ("Intel", CPU))
    said += [unused(monkeypatch, vendor, build, system) for vendor, build in vendors for system in ("Linux", "Windows")]
    said += [f"There is no CUDA device here; use --device cpu. {said[-1]}"]
    english = re.compile(r"\b(this|needs|has no|kernels|kernel|cannot|since|built|driver|choose|start with|there is)\b", re.I)
    for language in ("de", "zh"):
        assert [words for words in said if english.search(translate_into(language, words).replace("choose-", ""))] == []


def test_the_benchmark_names_the_kernels_that_load(monkeypatch) -> None:
    report = gpu.kernel_report("cpu")
    assert report["kernel native"] == "PyTorch's own" and report["kernel xformers"] == "none (xformers computes on NVIDIA GPUs only)"
    monkeypatch.setattr(gpu, "explain_no_xformers_here", lambda device: "")
    monkeypatch.setattr(gpu, "installed_version", {"xformers": "0.0.35", "flash-attn": ""}.__getitem__)
    report = gpu.kernel_report("cpu")
    assert report["kernel xformers"] == "0.0.35" and report["kernel flash"] == "none (flash-attn is not installed)"


def test_a_plan_for_a_card_that_is_not_here_promises_nothing() -> None:
    from duogen.hub.catalogue import entries
    from duogen.hub.memory_plan import plan

    pair = entries()["flux2-klein-4b"]
    there = plan(pair.parts, pair.about, Machine.with_gpu(16, 64 * 2**30))
    assert there.attention == Kernel("auto") and "xformers where it is installed and knows the GPU" in there.line()
