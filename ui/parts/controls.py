"""The controls of the drawer, built from the fields of the option dataclasses."""

from __future__ import annotations

from dataclasses import Field, fields, is_dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

import gradio as gr
from gradio.components import Component

from duogen.options import preset_values

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Path = tuple[str, ...]
Control = gr.Checkbox | gr.Dropdown | gr.Slider | gr.Textbox
T = TypeVar("T", bound="DataclassInstance")


def build(options: type[DataclassInstance], at: Path = (), without: tuple[str, ...] = ()) -> dict[Path, Control]:
    """Lay out a control for every field but those in `without`, nested dataclasses as groups. Keys are paths of field names."""
    hints = get_type_hints(options)
    controls: dict[Path, Control] = {}
    for each in fields(options):
        path, kind = (*at, each.name), hints[each.name]
        if each.name in without:
            continue
        if is_dataclass(kind):
            with gr.Group():
                gr.Markdown(f"## {each.metadata.get('label') or _label(each.name)}", elem_classes="group-title")
                controls |= build(kind, path)
        else:
            controls[path] = _control(each, kind)
    return controls


def read(options: type[T], controls: dict[Path, Control], values: dict[Component, Any], at: Path = ()) -> T:
    """The options as the controls are set.

    Raises:
        ValueError: a value is out of its range; the message is one sentence.
    """
    hints, given = get_type_hints(options), {}
    for each in fields(options):
        path, kind = (*at, each.name), hints[each.name]
        if is_dataclass(kind):
            given[each.name] = read(kind, controls, values, path)
        else:
            given[each.name] = _parse_value(each.name, kind, values[controls[path]])
    return options(**given)


def preset_updates(name: str, controls: dict[Path, Control], about: dict[str, Any]) -> dict[Component, Any]:
    """Updates that set the controls to a preset, on top of the best settings of the pair. The seed stays."""
    return {controls[path]: gr.update(value=value) for path, value in preset_values(name, about).items()}


def pair_updates(controls: dict[Path, Control], about: dict[str, Any]) -> dict[Component, Any]:
    """Updates that set the controls to the best settings of the open pair and hide those that it does not use."""
    best = {control: gr.update(value=about[path[-1]]) for path, control in controls.items() if path[-1] in about}
    any_size = not about.get("sees_previous", False)
    known = {("text", "think"): about.get("thinks", True), ("image", "world"): about.get("films", False)}
    known |= {("image", "side"): any_size, ("image", "aspect"): any_size}
    return best | {controls[path]: gr.update(visible=shown) for path, shown in known.items() if path in controls}


def _label(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _control(each: Field, kind: Any) -> Control:
    about = each.metadata
    label = about.get("label") or _label(each.name)
    look: dict[str, Any] = {"label": label, "info": about.get("help"), "value": each.default, "interactive": True}
    if kind is bool:
        return gr.Checkbox(**look)
    if about.get("values"):
        return gr.Dropdown(list(about["values"]), **look)
    if kind is str:
        return gr.Textbox(**look)
    if about.get("low") is not None and about.get("high") is not None:
        return gr.Slider(about["low"], about["high"], step=about["step"], **look)
    look["info"] = look["info"] or "The same number gives the same answer; empty gives a new one every time."
    return gr.Textbox(placeholder="random", max_lines=1, **look)


def _parse_value(name: str, kind: Any, value: Any) -> Any:
    """The value of a control as the type `kind`; an empty box is `None` where that is allowed."""
    kinds = get_args(kind) or (kind,)
    if NoneType in kinds and str(value or "").strip() == "":
        return None
    if int not in kinds:
        return value
    try:
        return int(value)
    except ValueError as error:
        raise ValueError(f"{_label(name)} must be a whole number, not {value}.") from error
