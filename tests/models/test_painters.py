"""What drives a picture keeps its promises: both painters are `Painter`s, and what stands in for an engine, a painter or a pair in the
tests takes what the real one takes."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from duogen.engine import Engine
from duogen.models.pipeline import DuoGenPipeline, open_pair
from duogen.options import LoadOptions
from duogen.painters.base import Painter
from duogen.painters.cosmos import CosmosPainter
from duogen.painters.diffusers import DiffusersPainter, DiffusersPair, open_diffusers_pair
from tests.support import public
from tests.support.sources import ROOT, nodes
from tests.support.tiny import tiny_pair

METHODS = [name for name, value in vars(Painter).items() if inspect.isfunction(value) and not name.startswith("_")]
ENGINE = {name: "conversation" for name in ("answer", "continue_answer", "generate_image", "stream_image")}  # with their first parameters
PAINTER = {"paint": "frames", "remember": "frames", "fill_cache": "frames", "prepare_inpaint": "picture"}
Parameters = list[tuple[str, bool]]  # names, and whether they may be left out


def parameters_of(function: Callable) -> Parameters:
    return [(each.name, each.default is not each.empty) for each in inspect.signature(function).parameters.values() if each.name != "self"]


def parameters_in(node: ast.FunctionDef) -> Parameters:
    """As `parameters_of`, of a function in a source file."""
    names = [each.arg for each in node.args.posonlyargs + node.args.args]
    left_out = len(names) - len(node.args.defaults)
    listed = [(name, index >= left_out) for index, name in enumerate(names) if name != "self"]
    return listed + [(each.arg, default is not None) for each, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]


def test_there_is_something_to_keep() -> None:
    named = {"encode", "decode", "prepare_inpaint", "composite", "remember", "fill_cache", "paint", "takes_pictures"}
    named |= {"source_shape", "find_sources"}
    assert named == set(METHODS)
    assert parameters_of(Painter.prepare_inpaint) == [("picture", False), ("mask", False), ("size", True)]


@pytest.mark.parametrize("kind", [CosmosPainter, DiffusersPainter])
@pytest.mark.parametrize("method", METHODS)
def test_a_painter_takes_what_every_painter_takes(kind: type, method: str) -> None:
    assert parameters_of(getattr(kind, method)) == parameters_of(getattr(Painter, method))
    assert inspect.isgeneratorfunction(inspect.unwrap(getattr(kind, method))) == (method == "paint")


def test_both_painters_are_painters(tmp_path: Path) -> None:
    on_cpu = LoadOptions(device="cpu", precision="fp32")
    stock = open_diffusers_pair(public.pix2pix(tmp_path / "painter"), public.qwen2_mllm(tmp_path / "mllm"), on_cpu)
    for pair, kind in ((open_pair(tiny_pair(tmp_path / "own"), load=on_cpu), CosmosPainter), (stock, DiffusersPainter)):
        painter = Engine(pair).painter
        assert type(painter) is kind and isinstance(painter, Painter)
        assert str(painter.device) == "cpu" and painter.about is pair.about and painter.reads_words == (kind is DiffusersPainter)
    assert not isinstance(object(), Painter)


def test_a_pipeline_reads_with_its_own_processor_when_another_mllm_talks(tmp_path: Path) -> None:
    folder, mllm = public.qwen_edit(tmp_path / "painter"), public.qwen3_mllm(tmp_path / "mllm")
    public.eyes(16).save_pretrained(mllm)
    pair = open_diffusers_pair(folder, mllm, LoadOptions(device="cpu", precision="fp32"))
    assert type(pair.pipe.text_encoder) is not type(pair.text_encoder)
    assert pair.pipe.processor.image_processor.patch_size == 8 and pair.image_processor.patch_size == 16


def nodes_of_tests() -> Iterator[tuple[Path, ast.AST]]:
    for file in sorted((ROOT / "tests").rglob("*.py")):
        yield from ((file, node) for node in nodes(file))


def functions_in(node: ast.AST) -> list[ast.FunctionDef]:
    return [each for each in getattr(node, "body", ()) if isinstance(each, ast.FunctionDef)]


def claims(node: ast.FunctionDef, methods: dict[str, str]) -> bool:
    """Whether a function is one of `methods`, by its name and its first parameter."""
    return [name for name, _ in parameters_in(node)[:1]] == [methods.get(node.name)]


def stand_ins(methods: dict[str, str]) -> dict[str, list[ast.FunctionDef]]:
    """Classes of the tests, in functions too, that have one of these methods; each with what others may call."""
    return {
        f"{file.name}: {node.name}": [each for each in functions_in(node) if not each.name.startswith("_")]
        for file, node in nodes_of_tests()
        if isinstance(node, ast.ClassDef) and any(claims(each, methods) for each in functions_in(node))
    }


def takes(double: ast.FunctionDef, real: Callable) -> bool:
    """Whether a double has the parameters of the real one; it may insist on one that the real one does without."""
    mine, its = parameters_in(double), parameters_of(real)
    return [name for name, _ in mine] == [name for name, _ in its] and not any(
        optional and not may_be for (_, optional), (_, may_be) in zip(mine, its, strict=True)
    )


def wrong_methods(real: type, doubles: dict[str, list[ast.FunctionDef]]) -> list[str]:
    """What stand-ins claim and the real one has not, or takes otherwise."""
    listed = [(where, each) for where, methods in doubles.items() for each in methods]
    return [f"{where}.{each.name}" for where, each in listed if not hasattr(real, each.name) or not takes(each, getattr(real, each.name))]


def test_what_stands_in_for_an_engine_takes_what_an_engine_takes() -> None:
    doubles = stand_ins(ENGINE)
    named = {where.split(": ")[0] for where in doubles}
    assert {"stand_in.py", "test_cli.py", "test_page.py", "test_studio.py", "test_server.py", "test_benchmarks.py"} <= named
    assert wrong_methods(Engine, doubles) == []


def test_what_stands_in_for_a_painter_takes_what_a_painter_takes() -> None:
    assert wrong_methods(Painter, stand_ins(PAINTER)) == []


def test_functions_put_in_an_engines_place_take_what_it_takes() -> None:
    """Those that `monkeypatch` puts there: functions in functions, with the name of a method and a conversation to begin with."""
    found = {
        f"{file.name}: {inner.name}": takes(inner, getattr(Engine, inner.name))
        for file, outer in nodes_of_tests()
        if isinstance(outer, ast.FunctionDef)
        for inner in functions_in(outer)
        if claims(inner, ENGINE)
    }
    assert "test_api.py: answer" in found
    assert [where for where, alike in found.items() if not alike] == []


def attributes_of_pairs() -> set[str]:
    given = set(inspect.signature(DuoGenPipeline.__init__).parameters) | {each.name for each in fields(DiffusersPair)}
    return given | {"about", "attention", "caching", "block_forward", "swapper", "token_dtype"}


def test_what_stands_in_for_a_pair_has_what_a_pair_has() -> None:
    """Bare namespaces with a swapper are pairs."""
    found = [
        {each.arg for each in node.keywords}
        for _, node in nodes_of_tests()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "SimpleNamespace"
    ]
    pairs = [names for names in found if "swapper" in names]
    assert len(pairs) >= 3 and all(names <= attributes_of_pairs() for names in pairs)
