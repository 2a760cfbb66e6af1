"""The Arena tab: two contestants answer one request without their names, a person votes, and an Elo table counts the votes."""

from __future__ import annotations

import functools
import html
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
from gradio.blocks import Block
from markdown_it import MarkdownIt

from duogen.conversation import Conversation, Text
from duogen.evaluate.arena import VOTES, Contestant, Standing, arena_home, rating_table, read_votes
from duogen.events import PendingPicture
from duogen.hub.catalogue import entries, is_installed
from duogen.options import PRESETS
from duogen.text_decoding import clean_message
from ui.chat.history import SHOWN_PIXELS, address, alt_words
from ui.parts.adapters import list_adapters
from ui.parts.arena_rounds import ArenaRounds, Round, Side
from ui.parts.i18n import translate
from ui.parts.loading import Loading
from ui.parts.pictures import UPLOAD_TYPES, PictureFolder
from ui.parts.shared import EMPTY_BOX, QUICK, Refusal, Shared, Updates, catch_refusals, check_uploads, status_line, translate_html

POLL_SECONDS = 0.4
HINT = "Two contestants answer the same request without their names. Choose the better answer to see who they were."
CHOICES = {"a": "A is better", "tie": "Equally good", "bad": "Both are bad", "b": "B is better"}
VERDICTS = {"a": "A was better.", "tie": "Both were equally good.", "bad": "Both were bad.", "b": "B was better."}
# No pictures in the words of an answer: they would be fetched from wherever they point to.
WORDS = MarkdownIt("commonmark", {"html": False}).disable("image")


class Arena:
    """The tab for all browsers. The storage of each browser holds the id of its round, for a reload."""

    def __init__(self, tab: gr.Tab, shared: Shared, pictures: PictureFolder) -> None:
        self.shared, self.pictures = shared, pictures
        self.rounds = ArenaRounds(shared.loading, shared.gallery, (pictures, shared.previews), arena_home() / VOTES)
        with tab, gr.Column(elem_id="arena"):
            self._lay_out()
        self._wire(tab)

    def _lay_out(self) -> None:
        self.round = gr.BrowserState("", storage_key="duogen-arena", secret="which round was looked at is no secret")
        self.seen_change, self.timer = gr.State(-1), gr.Timer(POLL_SECONDS, active=False)
        self.who = gr.Dropdown(
            [], multiselect=True, label="Who takes part", elem_id="arena-who", interactive=True,
            info="For each request two of them are drawn, and each answers with the settings that are best for its pair.",
        )  # fmt: skip
        self.box = gr.MultimodalTextbox(
            show_label=False, container=False, placeholder="Ask both, or bring a picture", file_types=UPLOAD_TYPES, file_count="multiple",
            label="Request", max_plain_text_length=100_000, max_lines=6, elem_id="arena-box",
        )  # fmt: skip
        self.status = gr.HTML(status_line(HINT), elem_id="arena-status")
        self.asked = gr.HTML("", visible=False, elem_id="arena-asked")
        with gr.Row(elem_id="arena-sides", equal_height=False):
            self.sides = {name: gr.HTML("", visible=False, elem_id=f"arena-{name}", min_width=280) for name in "ab"}
        with gr.Row(visible=False, elem_id="arena-vote", elem_classes="buttons") as self.choice:
            self.votes = {vote: gr.Button(words, size="sm", min_width=110, elem_id=f"arena-is-{vote}") for vote, words in CHOICES.items()}
        self.table = gr.HTML("", elem_id="arena-table")

    def _wire(self, tab: gr.Tab) -> None:
        inputs: set[Block] = {self.round, self.seen_change, self.who, self.box}
        shown = [self.round, self.seen_change, self.timer, self.box, self.status, self.asked, *self.sides.values(), self.choice]
        tab.select(self.refresh, inputs, [*shown, self.who, self.table], **QUICK)
        self.box.submit(self.start_round, inputs, shown, **QUICK)
        self.box.stop(self.stop_round, [self.round], None, queue=False, **QUICK)
        self.timer.tick(self.follow, inputs, shown, **QUICK)
        for vote, button in self.votes.items():
            button.click(functools.partial(self.vote, vote), inputs, [*shown, self.table], **QUICK)

    def refresh(self, values: dict) -> Updates:
        """Show the contestants, the last round of this browser and the table."""
        known = list_contestants(self.shared.loading)
        kept = [key for key in values[self.who] or [] if key in known]
        chosen = gr.Dropdown([(contestant_name(each), key) for key, each in known.items()], value=kept or list(known)[:2])
        found = self.rounds.find(values[self.round] or "")
        return {self.who: chosen, self.table: self._table_html()} | (self._render(found) if found else {self.round: ""})

    def start_round(self, values: dict) -> Iterator[Updates]:
        def updates() -> Iterator[Updates]:
            given, known = values[self.box] or EMPTY_BOX, list_contestants(self.shared.loading)
            words, files = clean_message(given.get("text") or ""), given.get("files") or []
            chosen = [known[key] for key in values[self.who] or [] if key in known]
            now = self.rounds.find(values[self.round] or "")
            if now and now.phase == "running":
                raise Refusal("The answer is still being made; wait for it, or press Stop first.")
            if self.shared.loading.error:
                raise Refusal(self.shared.loading.error)
            if len(chosen) < 2:
                raise Refusal("Choose at least two contestants.")
            if not words:
                raise Refusal("Type a request for both.")
            check_uploads(files)
            asked = Conversation().say("user", *(self.shared.add_upload(Path(file)) for file in files), words)
            started = self._render(self.rounds.start(asked, chosen))
            yield started | {self.box: gr.MultimodalTextbox(value=EMPTY_BOX, submit_btn=False, stop_btn=True)}

        yield from catch_refusals(updates(), self.status)

    def stop_round(self, id: str) -> None:
        if found := self.rounds.find(id):
            found.stop.set()

    def follow(self, values: dict) -> Updates:
        found = self.rounds.find(values[self.round] or "")
        if found is None:
            return {self.timer: gr.Timer(active=False)}
        if found.changed == values[self.seen_change]:
            return {self.seen_change: gr.skip()}
        return self._render(found) if found.phase != "running" else self._render_answers(found)

    def vote(self, vote: str, values: dict) -> Iterator[Updates]:
        def updates() -> Iterator[Updates]:
            found = self.rounds.find(values[self.round] or "")
            if found is None:
                raise Refusal("This round is gone; ask again.")
            self.rounds.vote(found, vote)
            yield self._render(found) | {self.table: self._table_html()}

        yield from catch_refusals(updates(), self.status)

    # What is shown

    def _render(self, found: Round) -> Updates:
        """Updates for the whole round."""
        running = found.phase == "running"
        pictures = [f'<img src="{address(self.pictures.keep_image(image, SHOWN_PIXELS))}" alt="">' for image in found.request().images()]
        return self._render_answers(found) | {
            self.round: found.id,
            self.timer: gr.Timer(active=running),
            self.box: gr.MultimodalTextbox(submit_btn=not running, stop_btn=running),
            self.asked: gr.HTML("".join(pictures) + html.escape(found.request().text()), visible=True),
            self.choice: gr.Row(visible=found.phase == "ready"),
        }

    def _render_answers(self, found: Round) -> Updates:
        """Updates for what changes while the answers come."""
        with found.lock:
            seen_change, running = found.changed, found.phase == "running"
            answers = {name: self._side_html(found, name) for name in found.sides}
        words = f"{translate(VERDICTS[found.vote])} {translate(found.status)}" if found.vote else found.status
        return {
            self.seen_change: seen_change,
            self.status: status_line(words, "busy" if running else "bad" if found.bad else ""),
            **{self.sides[name]: gr.HTML(shown, visible=True) for name, shown in answers.items()},
        }

    def _side_html(self, found: Round, name: str) -> str:
        """An answer, with its contestant after the vote."""
        side, voted = found.sides[name], found.phase == "voted"
        who = f"<span>{html.escape(contestant_name(side.contestant))}</span>" if voted else ""
        line = " · ".join(map(translate, side.line.split(" · ")))
        below = f"<small>{html.escape(line)}</small>" if voted else ""
        chosen = " chosen" if found.vote == name else ""
        return f'<article class="answer{chosen}"><h2>{name.upper()}{who}</h2>{self._parts_html(side)}{below}</article>'

    def _parts_html(self, side: Side) -> str:
        shown, words = "", ""
        for part in side.answer.all_parts():
            if isinstance(part, Text):
                words = part.text
                shown += WORDS.render(words)
            elif isinstance(part, PendingPicture):
                shown += self._pending_html(part)
            else:
                file = self.pictures.keep_image(part, SHOWN_PIXELS)
                full = self.pictures.keep_image(part)
                image = f'<img src="{address(file)}" alt="{html.escape(alt_words(part, words))}">'
                shown += f'<a href="{address(full)}" target="_blank" rel="noopener">{image}</a>'
        return shown or "<p>…</p>"

    def _pending_html(self, pending: PendingPicture) -> str:
        name = translate_html("Steps painted")
        bar = f'<progress value="{pending.step}" max="{pending.steps}" aria-label="{name}"></progress>'
        if not pending.preview:
            return bar
        alt = translate_html(f"Picture {pending.index + 1} is being painted")
        return f'<img src="{address(self.shared.previews.keep(pending.preview))}" alt="{alt}">{bar}'

    def _table_html(self) -> str:
        found, broken = read_votes(self.rounds.file)
        lost = ""
        if broken:
            lines = ", ".join(map(str, broken[:20])) + (" ..." if len(broken) > 20 else "")
            lost = status_line(f"Not counted, for they cannot be read: line {lines} of {self.rounds.file}", "bad")
        return lost + elo_table_html(rating_table(found))


def list_contestants(loading: Loading) -> dict[str, Contestant]:
    """All contestants by key: the open pair, alone and with each of its adapters, and the other pairs here."""
    from duogen.models.adapters import read_about

    pairs = {id: Contestant(entries()[id].title, id) for id in entries() if is_installed(entries()[id])}
    own = open_contestant(loading)
    pairs.pop(own.pair, None)
    found = [own]
    for folder in list_adapters(loading):
        try:
            base = read_about(folder)["base"]
        except ValueError:  # damaged
            continue
        for pair in (own, *pairs.values()):
            if pair.pair == base or folder in loading.adapters and pair is own:
                found.append(Contestant(pair.title, pair.pair, pair.mllm, ((str(folder), loading.adapters.get(folder, 1.0)),)))
    found += pairs.values()
    found += [Contestant(pair.title, pair.pair, pair.mllm, (), preset) for pair in (own, *pairs.values()) for preset in PRESETS]
    return {each.key(): each for each in found}


def open_contestant(loading: Loading) -> Contestant:
    """The open pair, without adapters."""
    mine = loading.pair_id()
    known = entries().get(mine)
    return Contestant(known.title, mine) if known and is_installed(known) else Contestant(Path(mine).name, mine, loading.mllm or "")


def contestant_name(who: Contestant) -> str:
    """The pair, its adapters, and its settings where they are not the usual ones."""
    adapters = [Path(folder).name + (f" ({weight:g})" if weight != 1 else "") for folder, weight in who.adapters]
    settings = f" · {translate(who.preset.capitalize())}" if who.preset != "balanced" else ""
    return " + ".join([who.title, *adapters]) + settings


def elo_table_html(rows: list[Standing]) -> str:
    """The table, the best first."""
    if not rows:
        return f"<p>{translate_html('There are no votes yet.')}</p>"
    heads = "".join(f'<th scope="col">{translate_html(name)}</th>' for name in ("Who", "Rating", "Votes", "Won", "Even", "Lost"))
    body = ""
    for row in rows:
        bad = f" <small>({translate_html(f'{row.bad} bad')})</small>" if row.bad else ""
        cells = [f"{row.rating:.0f}", row.votes, row.won, f"{row.tied}{bad}", row.lost]
        body += (
            f'<tr><th scope="row">{html.escape(contestant_name(row.contestant))}</th>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    hint = translate_html("Ratings begin at 1000; after a few votes they say little yet.")
    return f"<table><tr>{heads}</tr>{body}</table><small>{hint}</small>"
