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
from duogen.hub.load import open_planned
from duogen.models.pipeline import DuoGenPipeline, open_pair
from duogen.painters.base import Painter
from duogen.painters.cosmos import CosmosPainter
from duogen.painters.diffusers import DiffusersPainter, DiffusersPair
from tests.sources import ROOT, nodes
from tests.tiny import tiny_pair

METHODS = [name for name, value in vars(Painter).items() if inspect.isfunction(value) and not name.startswith("_")]
ANSWERS = {"answer", "continue_answer", "generate_image", "stream_image", "set_adapters"}  # who has one of them stands in for an engine
PAINTS = {"paint", "remember", "fill_cache", "prepare_inpaint"}  # and for a painter
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
    assert {"encode", "decode", "prepare_inpaint", "composite", "remember", "fill_cache", "paint"} == set(METHODS)
    assert parameters_of(Painter.prepare_inpaint) == [("picture", False), ("mask", False), ("side", True)]


@pytest.mark.parametrize("kind", [CosmosPainter, DiffusersPainter])
@pytest.mark.parametrize("method", METHODS)
def test_a_painter_takes_what_every_painter_takes(kind: type, method: str) -> None:
    assert parameters_of(getattr(kind, method)) == parameters_of(getattr(Painter, method))
    assert inspect.isgeneratorfunction(inspect.unwrap(getattr(kind, method))) == (method == "paint")


def test_both_painters_are_painters(tmp_path: Path) -> None:
    from tests.public import build

    pairs = open_pair(tiny_pair(tmp_path), "cpu", "fp32"), open_stock(build, tmp_path)
    for pair, kind in zip(pairs, (CosmosPainter, DiffusersPainter), strict=True):
        painter = Engine(pair).painter
        assert type(painter) is kind and isinstance(painter, Painter)
        assert isinstance(inspect.getattr_static(kind, "device"), property) and str(painter.device) == "cpu"
        assert painter.about is pair.about and painter.reads_words == (kind is DiffusersPainter)
    assert not isinstance(object(), Painter)
