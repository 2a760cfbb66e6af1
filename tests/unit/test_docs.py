"""The documentation: its commands can be typed, the paths that it names are there, and it speaks today's vocabulary."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import app
from duogen.cli.main import parser
from duogen.train.__main__ import _parser as train_parser
from tests.support.sources import ROOT
from tests.unit.test_layout import PAGES

COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?python3? (?=-m (?:duogen|bench)\b|app\.py)(.+)")
LAUNCHED = re.compile(r"accelerate launch (?:.* )?(-m duogen .+)")
NO_ARGUMENTS = {"-m duogen", "-m duogen.train", "-m duogen data", "-m duogen evaluate"}  # in a sentence, not to be typed
PATH = re.compile(r"`((?:\.ci|\.github|assets|bench|docs|duogen|tests|ui|weights)/[\w./*-]+)`")
WRITTEN_LATER = {"bench/results/gpu-CARD.json"}
OLD_WORDS = (
    "brain", "talker", "StockPair", "StockPainter", "FramePainter", "wear", "worn", "going_on", "paint_after", "retouch", "Retouch",
    "Skipping", "come_when_called", "rehearse",
)  # fmt: skip
OLD_WORD = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(OLD_WORDS)})(?![A-Za-z])")
ALIASES = {  # where an old name stays readable, and which
    "docs/command-line.md": {"brain"},
    "docs/fine-tuning.md": {"rehearse"},
    "docs/glossary.md": {"brain", "rehearse"},
    "duogen/cli/finetune.py": {"rehearse"},
    "duogen/cli/main.py": {"brain"},
    "duogen/cli/pairs.py": {"brain"},
    "duogen/evaluate/arena.py": {"brain"},
    "duogen/finetune/config.py": {"rehearse"},
}
WRITTEN = [page for page in PAGES if page.relative_to(ROOT).parts[0] in ("README.md", "CONTRIBUTING.md", "docs")]


def code(page: Path) -> Iterator[str]:
    """The lines of a page's code blocks, and what stands between backticks."""
    fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        else:
            yield from re.findall(r"`([^`]+)`", line)


def commands() -> list[tuple[str, str]]:
    """(page, arguments of Python) for every command that the documentation names."""
    found = []
    for page in WRITTEN:
        for line in code(page):
            for step in line.split(" && "):
                if match := COMMAND.fullmatch(step) or LAUNCHED.fullmatch(step):
                    found.append((str(page.relative_to(ROOT)), match[1].strip()))
    return [each for each in dict.fromkeys(found) if each[1] not in NO_ARGUMENTS]


def complaint(arguments: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is wrong with a command; "" when it parses."""
    first, *rest = shlex.split(arguments)
    if first == "app.py":
        monkeypatch.setattr("sys.argv", ["app.py", *rest])
        return refusal(app.parse_arguments)
    module, *rest = rest
    if module == "duogen":
        return refusal(lambda: parser().parse_args(rest))
    if module == "duogen.train":
        return refusal(lambda: train_parser().parse_args(rest))
    return "" if importlib.util.find_spec(module) else f"there is no module {module}"


def refusal(parse: Callable[[], object]) -> str:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parse()
    except SystemExit as ended:  # --help ends well
        return said.getvalue() or "it ends without a word" if ended.code else ""
    return ""


def test_every_command_in_the_documentation_parses(monkeypatch):
    found = commands()
    assert len(found) > 40, "the walk does not see the commands"
    wrong = {f"{page}: {arguments}": complaint(arguments, monkeypatch) for page, arguments in found}
    assert {command: said for command, said in wrong.items() if said} == {}


def test_a_wrong_command_would_be_noticed(monkeypatch):
    for arguments in ("-m duogen ask x --brian DIR", "-m duogen.train everything", "app.py --portal 1", "-m bench.nothing"):
        assert complaint(arguments, monkeypatch), arguments


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_in_a_page_is_there(page):
    named = set(PATH.findall(page.read_text(encoding="utf-8"))) - WRITTEN_LATER
    named = {path for path in named if not re.search(r"[A-Z]{4}", path.rpartition("/")[2].removesuffix(".md"))}  # NAME.py is to be replaced
    assert [path for path in named if not any(ROOT.glob(path.rstrip("/")))] == []


def test_no_old_word_stands_outside_the_aliases():
    code = [file for top in ("duogen", "ui") for file in (ROOT / top).rglob("*") if file.suffix in (".py", ".json", ".js", ".css")]
    found = {}
    for file in [*WRITTEN, *code]:
        if words := set(OLD_WORD.findall(file.read_text(encoding="utf-8"))):
            found[file.relative_to(ROOT).as_posix()] = words
    left = {file: words - ALIASES.get(file, set()) for file, words in found.items()}
    assert {file: words for file, words in left.items() if words} == {}
    gone = {file: words - found.get(file, set()) for file, words in ALIASES.items()}
    assert {file: words for file, words in gone.items() if words} == {}, "these aliases are not there any more"
