"""The controls of the drawer, built from the fields of the option dataclasses."""

from __future__ import annotations

from dataclasses import Field, asdict, fields, is_dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

import gradio as gr
from gradio.components import Component

from duogen.options import GROUPS, ImageOptions, Options, picture_size, preset_values
from ui import STATIC

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Path = tuple[str, ...]
Control = gr.Checkbox | gr.Dropdown | gr.Radio | gr.Slider | gr.Textbox
ASPECT: Path = ("image", "aspect")
T = TypeVar("T", bound="DataclassInstance")
# Of a gr.HTML with `form`, the CSS selector of a form: its event `input` tells that the user has touched something of the form.
FORM_SCRIPT = (STATIC / "form.js").read_text(encoding="utf-8")


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
                controls |= build(kind, path, without)
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


def options_updates(options: Options, controls: dict[Path, Control]) -> dict[Component, Any]:
    """Updates that set the controls to options. The seed stays."""
    return {controls[group, name]: value for group in GROUPS for name, value in asdict(getattr(options, group)).items()}


def pair_updates(controls: dict[Path, Control], about: dict[str, Any]) -> dict[Component, Any]:
    """Updates that set the controls to the best settings of the open pair, and empty and hide those that it does not use."""
    best = {control: gr.update(value=about[path[-1]]) for path, control in controls.items() if path[-1] in about}
    any_size = paints_any_size(about)
    used: dict[Path, bool] = {("text", "think"): about.get("thinks", True), ("text", "system_prompt"): not about.get("tuned", True)}
    used |= {("image", "world"): about.get("films", False), ("image", "side"): any_size, ASPECT: any_size}
    look = {controls[path]: _show(controls[path], shown) for path, shown in used.items() if path in controls}
    return {**best, **look}


def _show(control: Control, shown: bool) -> Any:
    return gr.update(visible=True) if shown else gr.update(visible=False, value=control.value)


def paints_any_size(about: dict[str, Any]) -> bool:
    return not about.get("sees_previous", False)


def lay_out_shapes() -> gr.Radio:
    """The shapes of pictures as buttons: the control of `ImageOptions.aspect`."""
    about = next(each.metadata for each in fields(ImageOptions) if each.name == ASPECT[-1])
    names = [(name.capitalize(), name) for name in about["values"]]
    return gr.Radio(
        names, value=about["values"][0], label="Picture shape", info=about["help"], container=False, interactive=True, visible=False,
        elem_id="shapes",
    )  # fmt: skip


def say_size(about: dict[str, Any], side: float, aspect: str) -> str:
    """The size of the next picture in words, "" where the pair paints one size only or none is known."""
    if "image_size" not in about or not paints_any_size(about):
        return ""
    width, height = picture_size(tuple(about["image_size"]), int(side), ImageOptions(aspect=aspect).shape)
    return f"{width} x {height} px, or shaped as your picture" if aspect == "auto" else f"{width} x {height} px"


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
