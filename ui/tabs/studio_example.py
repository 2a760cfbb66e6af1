"""A change by example in the Studio: two pictures, before and after; the open picture is changed as the first was into the second."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr

from duogen.conversation import REFERENCE, SOURCE, Conversation, Image
from duogen.picture_input import open_picture
from ui.parts.pictures import PictureBox
from ui.parts.shared import QUICK, Refusal, Shared, Updates, catch_refusals, status_line

BEFORE, AFTER = "Before", "After"
ASK = "Do to @3 what was done from @1 to @2."
ABOUT = (
    "Bring a picture before a change and one after it. With no words above, the same is done to the open picture. *Say the change* puts it "
    "into words first, which you can mend; then the picture is changed by the words alone."
)
SAID = "This is what was changed, as the language model sees it; mend the words if they are wrong, then press Change."
NOTHING_SEEN = "The language model saw no change; say in your own words what should change."


class ExampleForm:
    """The two pictures of an example, and the button that puts their difference into words."""

    def __init__(self, shared: Shared, import_file: Callable[[str], str]) -> None:
        """`import_file` adds an uploaded file to the library and returns its id."""
        self.shared, self.import_file = shared, import_file
        with gr.Accordion("By example", open=False, elem_id="studio-example"):
            gr.Markdown(ABOUT)
            with gr.Row(elem_classes="example-pictures"):
                self.pictures = [self._lay_out_picture(name) for name in (BEFORE, AFTER)]
            with gr.Row(elem_classes="buttons"):
                self.say = gr.Button("Say the change", size="sm", min_width=120, elem_id="studio-say-change")

    def _lay_out_picture(self, name: str) -> PictureBox:
        return PictureBox(
            type="filepath", sources=["upload", "clipboard"], label=name, height=130, min_width=120, elem_id=f"studio-{name.lower()}"
        )

    def wire(self, words: gr.Textbox, status: gr.HTML) -> None:
        """`words` gets the change that the MLLM sees."""
        self.words, self.status = words, status
        self.say.click(self.say_change, [*self.pictures], [words, status], **QUICK)

    def read(self, files: list[str | None]) -> list[Image]:
        """The two pictures of the form; none where it is empty.

        Raises:
            Refusal: one of them is missing.
        """
        if not any(files):
            return []
        if not all(files):
            raise Refusal("An example needs both pictures, before and after.")
        return [Image(open_picture(self.shared.gallery.entry(self.import_file(file)).file)) for file in files if file]

    def say_change(self, before: str | None, after: str | None) -> Iterator[Updates]:
        """Put what was changed from one picture to the other into the words."""
        yield from catch_refusals(self._say_change(before, after), self.status)

    def _say_change(self, before: str | None, after: str | None) -> Iterator[Updates]:
        if not before or not after:
            raise Refusal("An example needs both pictures, before and after.")
        loading = self.shared.loading
        if loading.engine is None:
            raise Refusal(loading.error or loading.words)
        yield {self.status: status_line("Comparing the two pictures ...", "busy")}
        pictures = [open_picture(Path(file)) for file in (before, after)]
        try:
            with loading.queue.wait_turn(lambda before: None, threading.Event()):
                said = loading.engine.describe_change(*pictures)
        except ValueError as error:  # said in the place of the sentence that it is being looked at
            yield {self.status: status_line(str(error), "bad")}
            return
        yield {self.words: said, self.status: status_line(SAID)} if said else {self.status: status_line(NOTHING_SEEN)}


def ask_by_example(example: list[Image], picture: Image) -> Conversation:
    """The request to do to a picture what was done from the first to the second of an example."""
    references = [Image(each.picture, role=REFERENCE) for each in example]
    return Conversation().say("user", *references, Image(picture.picture, mask=picture.mask, role=SOURCE), ASK)
