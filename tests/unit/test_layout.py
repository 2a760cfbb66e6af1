"""The shape of the repository: what lies where, who may import whom, how long a function may be."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.support.sources import ROOT, nodes

TOP = {
    ".ci",
    ".github",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "app.py",
    "assets",
    "bench",
    "docs",
    "duogen",
    "pyproject.toml",
    "requirements-common.txt",
    "requirements-dev.txt",
    "requirements-gpu.txt",
    "requirements-torch.txt",
    "requirements.lock",
    "requirements.txt",
    "tests",
    "ui",
    "weights",
}
# From the ground up: a module imports from its own layer and from those below.
LAYERS = [
    {"duogen.files", "duogen.text_decoding", "duogen.picture_input", "duogen.provenance", "duogen.content_credentials", "duogen.faults"}
    | {"duogen.heaps"},
    {f"duogen.{name}" for name in ("conversation", "mentions", "picture_roles", "stored_picture", "events", "options")}
    | {f"duogen.{name}" for name in ("prompts", "paths", "precision", "kernels", "lazy_imports", "ray_cluster")},
    {"duogen.nn", "duogen.library"},
    {"duogen.models"},
    {"duogen.painters"},
    {"duogen.hub"},
    {"duogen.engine", "duogen.approved", "duogen.critic", "duogen.draft_plan", "duogen.grounding", "duogen.ideas", "duogen.upscale"}
    | {"duogen.vision_qa", "duogen.answerer", "duogen.motion", "duogen.replicas"},
    {"duogen.sketchbook", "duogen.dataset"},
    {"duogen.train", "duogen.evaluate"},
    {"duogen.data_engine", "duogen.finetune"},
    {"duogen.cli"},
    {"duogen.__main__", "ui", "bench"},
    {"app"},
]
NOT_FOR = {  # who must never import what, whichever layer it is in
    "duogen": {"gradio", "ui", "app", "bench"},
    "duogen.nn": {"transformers", "tokenizers", "PIL", "pathlib"},
    "duogen.engine": {f"duogen.{name}" for name in ("sketchbook", "train", "evaluate", "dataset", "data_engine", "finetune")},
    "ui": {"duogen.nn", "duogen.train", "duogen.sketchbook", "torch"},
}
NOT_WHILE_SERVING = {"duogen.sketchbook", "PIL.ImageDraw"}
LONGEST, MOST_POSITIONAL = 50, 7
README_BYTES = 8000
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("weights/*/README.md"), *ROOT.glob(".github/**/*.md")})


def files_of_git() -> list[str]:
    """What is in the repository; a stranger's own files beside it do not count."""
    command = ["git", "ls-files", "--cached"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    return [line for line in listed.splitlines() if (ROOT / line).exists()]


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for top in ("duogen", "ui", "bench") for file in (ROOT / top).rglob("*.py")} | {"app": ROOT / "app.py"}


def under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@cache
def imports(name: str) -> set[str]:
    """Dotted names of all that a module imports, inside functions too; a module of ours as itself, not as its package."""
    found = set()
    for node in nodes(FILES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively; write the whole name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                known = whole in FILES or whole in NOT_WHILE_SERVING
                found.add(whole if known else str(node.module))
    return found


def layer(name: str) -> int:
    levels = [level for level, packages in enumerate(LAYERS) if any(under(name, package) for package in packages)]
    assert levels, f"{name} is in no layer; give it one in LAYERS"
    return levels[0]


def reached(roots: set[str]) -> dict[str, set[str]]:
    """Everything that the modules `roots` import, ours followed all the way: name -> who imports it."""
    found: dict[str, set[str]] = {}
    waiting, seen = set(roots), set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for imported in imports(name):
            found.setdefault(imported, set()).add(name)
        waiting |= {imported for imported in imports(name) if imported in FILES} - seen
    return found


def test_the_top_level_holds_what_it_should():
    assert {file.split("/")[0] for file in files_of_git()} == TOP


def test_nothing_foreign_is_kept():
    foreign = re.compile(r"(^|/)(utils\.py|__pycache__|runs/|output/)|\.(pyc|pt|ckpt|part)$")
    assert [file for file in files_of_git() if foreign.search(file)] == []


def test_imports_point_down_only():
    wrong = []
    for name in FILES.keys() - {"duogen"}:  # the package itself only looks classes up late, for model folders that name them
        for imported in imports(name):
            ours = imported.split(".")[0] in {"duogen", "ui", "bench", "app"}
            if ours and imported != "duogen" and layer(imported) > layer(name):
                wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_no_imports_in_a_circle():
    from graphlib import TopologicalSorter

    TopologicalSorter({name: imports(name) & FILES.keys() - {"duogen"} for name in FILES.keys() - {"duogen"}}).prepare()


@pytest.mark.parametrize("package", NOT_FOR)
def test_what_a_package_must_not_know(package):
    wrong = [
        f"{name} imports {imported}"
        for name in FILES
        if under(name, package)
        for imported in imports(name)
        if any(under(imported, banned) for banned in NOT_FOR[package])
    ]
    assert wrong == []


def test_serving_reaches_no_drawing_code():
    roots = {"app", "duogen", "duogen.engine"} | {name for name in FILES if under(name, "ui")}
    found = reached(roots)
    assert {"duogen.painters.cosmos", "duogen.hub.assemble", "duogen.nn.flow"} <= found.keys(), "the walk does not see what serving imports"
    assert {name: who for name, who in found.items() if any(under(name, banned) for banned in NOT_WHILE_SERVING)} == {}


@pytest.mark.slow
def test_serving_loads_no_drawing_code():
    probe = "import json, sys; import app, duogen.engine, duogen.hub.assemble, ui.parts.loading, ui.page, ui.parts.theme"
    probe += "; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "duogen.painters.cosmos" in loaded
    assert [name for name in loaded if any(under(name, banned) for banned in NOT_WHILE_SERVING)] == []


def functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    return [
        (f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node)
        for file in sorted({*FILES.values(), *(ROOT / "tests").rglob("*.py")})
        for node in nodes(file)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_functions_are_short():
    lines = {where: node.end_lineno - node.lineno + 1 for where, node in functions()}
    assert {where: count for where, count in lines.items() if count >= LONGEST} == {}


def test_functions_take_few_positional_parameters():
    counts = {}
    for where, node in functions():
        names = [each.arg for each in node.args.posonlyargs + node.args.args]
        counts[where] = len(names) - (names[:1] in (["self"], ["cls"]))
    assert {where: count for where, count in counts.items() if count > MOST_POSITIONAL} == {}


def commands(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith("python3 -m venv")]


def test_the_readme_has_two_command_lines_and_ci_runs_the_second():
    start, check = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert start.endswith(".venv/bin/python app.py") and "-r requirements.txt" in start
    assert "-r requirements-dev.txt" in check and ".venv/bin/pytest" in check
    assert commands((ROOT / ".ci" / "run").read_text(encoding="utf-8")) == [check]
    from duogen.hub.assemble import BASE_COMMAND

    package = BASE_COMMAND.split("pip install ")[1]
    assert package in start and package in check, "the README installs another language model than the one that is looked for"


def test_the_package_states_its_dependencies_once():
    """`pip install -e .` brings what `requirements.txt` brings, and its command is the command line."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    files = about["tool"]["setuptools"]["dynamic"]["dependencies"]["file"]
    assert [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line] == [f"-r {file}" for file in files]
    module, _, function = about["project"]["scripts"]["duogen"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    from setuptools import find_packages

    found = set(find_packages(ROOT, include=about["tool"]["setuptools"]["packages"]["find"]["include"]))
    folders = {".".join(file.relative_to(ROOT).parent.parts) for top in ("duogen", "ui") for file in (ROOT / top).rglob("*.py")}
    assert found == folders, "a folder of code has no __init__.py"


def test_requirements_are_pinned():
    lines = [line for file in ROOT.glob("requirements*.txt") for line in (ROOT / file).read_text().splitlines()]
    wanted = [line for line in lines if line and not line.startswith(("#", "-r"))]
    assert [line for line in wanted if not re.match(r"[a-z0-9-]+(\[[a-z]+\])?==[0-9.]+(; .+)?$", line)] == []
    assert "torch==2.13.0" in wanted


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES


def test_the_tree_in_the_docs_is_true():
    """Every path that the tree of docs/architecture.md names is there."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = text.split("<!-- tree -->")[1].split("```")[1]
    above, missing = [], []
    for line in tree.splitlines()[1:]:
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        entries = re.split(r"\s{2,}", line.strip())[0].split()
        missing += ["/".join([*above[:depth], entry]) for entry in entries if not ROOT.joinpath(*above[:depth], entry).exists()]
        above = [*above[:depth], entries[0].rstrip("/")]
    assert missing == []


def test_the_layers_in_the_docs_are_true():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = text.split("<!-- layers -->")[1].split("```")[1].split("\n")
    assert [set(line.split()) for line in lines if line][::-1] == LAYERS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page):
    """Files of this repository, and headings in them."""
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]
    assert links or page.name not in ("README.md", "CONTRIBUTING.md"), "the walk does not see the links"
    assert [link for link in links if not leads(page, link)] == []


def leads(page: Path, link: str) -> bool:
    """Whether a link leads to a file and, where it names one, a heading of it."""
    path, _, heading = link.partition("#")
    file = page.parent / path if path else page
    return file.exists() and (not heading or heading in headings(file))


def headings(file: Path) -> set[str]:
    """The headings of a page as GitHub names them in links."""
    found = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_test_file_has_a_name_of_its_own() -> None:
    """Pytest imports them by their bare names, and refuses the second of two."""
    names = Counter(file.name for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
