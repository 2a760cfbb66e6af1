"""The tab Arena: two answer one request without their names, a person says which is better, and an Elo table counts the votes."""

from __future__ import annotations

import functools
import html
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
from markdown_it import MarkdownIt

from duogen.conversation import Conversation, Text
from duogen.evaluate.arena import Contestant, Row, table, votes
from duogen.hub.catalogue import entries, installed
from duogen.options import PRESETS
from duogen.paths import data_home
from ui.chat.history import SHOWN_PIXELS, Pending, address, alt_words
from ui.parts.adapters import adapters
from ui.parts.arena_rounds import Round, Rounds, Side
from ui.parts.i18n import say
from ui.parts.loading import Loading
from ui.parts.pictures import PictureFolder
from ui.parts.shared import EMPTY_BOX, QUICK, Refused, Shared, Updates, check_uploads, kind_words, sentence, status_line

POLL_SECONDS = 0.4
HINT = "Two answer the same request, and nobody says who. Choose the better answer, then you see who they were."
VOTES = {"a": "A is better", "tie": "Equally good", "bad": "Both are bad", "b": "B is better"}
VERDICTS = {"a": "A was better.", "tie": "Both were equally good.", "bad": "Both were bad.", "b": "B was better."}
# No pictures in the words of an answer: they would be fetched from wherever they point to.
WORDS = MarkdownIt("commonmark", {"html": False}).disable("image")


class Arena:
    """The tab for all browsers; the round of each is named in its own storage, and found again after a reload."""

    def __init__(self, tab: gr.Tab, shared: Shared, pictures: PictureFolder) -> None:
        self.shared, self.pictures = shared, pictures
        self.rounds = Rounds(shared.loading, shared.gallery, (pictures, shared.previews), data_home() / "arena" / "votes.jsonl")
        with tab, gr.Column(elem_id="arena"):
            self._lay_out()
        self._wire(tab)

    def _lay_out(self) -> None:
        self.round = gr.BrowserState("", storage_key="duogen-arena", secret="which round was looked at is no secret")
        self.told, self.timer = gr.State(-1), gr.Timer(POLL_SECONDS, active=False)
        self.who = gr.Dropdown(
            [], multiselect=True, label="Who takes part", elem_id="arena-who", interactive=True,
            info="For each request two of them are drawn, and each answers with the settings that are best for its pair.",
        )  # fmt: skip
        self.box = gr.MultimodalTextbox(
            show_label=False, container=False, placeholder="Ask both, or bring a picture", file_types=["image"], file_count="multiple",
            label="Request", max_plain_text_length=100_000, max_lines=6, elem_id="arena-box",
        )  # fmt: skip
        self.status = gr.HTML(status_line(HINT), elem_id="arena-status")
        self.asked = gr.HTML("", visible=False, elem_id="arena-asked")
        with gr.Row(elem_id="arena-sides", equal_height=False):
            self.sides = {name: gr.HTML("", visible=False, elem_id=f"arena-{name}", min_width=280) for name in "ab"}
        with gr.Row(visible=False, elem_id="arena-vote", elem_classes="buttons") as self.choice:
            self.votes = {vote: gr.Button(words, size="sm", min_width=110, elem_id=f"arena-is-{vote}") for vote, words in VOTES.items()}
        self.table = gr.HTML("", elem_id="arena-table")

    def _wire(self, tab: gr.Tab) -> None:
        inputs = {self.round, self.told, self.who, self.box}
        shown = [self.round, self.told, self.timer, self.box, self.status, self.asked, *self.sides.values(), self.choice]
        tab.select(self.arrive, inputs, [*shown, self.who, self.table], **QUICK)
        self.box.submit(self.begin, inputs, shown, **QUICK)
        self.box.stop(self.end, [self.round], None, queue=False, **QUICK)
        self.timer.tick(self.follow, inputs, shown, **QUICK)
        for vote, button in self.votes.items():
            button.click(functools.partial(self.cast, vote), inputs, [*shown, self.table], **QUICK)

    def spoken(self) -> Updates:
        """What the browser cannot put into its language by itself."""
        return {self.status: status_line(HINT)}

    def arrive(self, values: dict) -> Updates:
        """Who can take part now, the round that this browser looked at, and the table."""
        known = contestants(self.shared.loading)
        kept = [key for key in values[self.who] or [] if key in known]
        chosen = gr.Dropdown([(named(each), key) for key, each in known.items()], value=kept or list(known)[:2])
        found = self.rounds.of(values[self.round] or "")
        return {self.who: chosen, self.table: self._table()} | (self._shown(found) if found else {self.round: ""})

    def begin(self, values: dict) -> Iterator[Updates]:
        def done() -> Iterator[Updates]:
            given, known = values[self.box] or EMPTY_BOX, contestants(self.shared.loading)
            words, files = (given.get("text") or "").strip(), given.get("files") or []
            chosen = [known[key] for key in values[self.who] or [] if key in known]
            now = self.rounds.of(values[self.round] or "")
            if now and now.phase == "running":
                raise Refused("The answer is still being made; wait for it, or press Stop first.")
            if self.shared.loading.error:
                raise Refused(self.shared.loading.error)
            if len(chosen) < 2:
                raise Refused("Choose two or more who take part.")
            if not words:
                raise Refused("Type what both of them shall answer.")
            check_uploads(files)
            asked = Conversation().say("user", *(self.shared.brought(Path(file)) for file in files), words)
            started = self._shown(self.rounds.start(asked, chosen))
            yield started | {self.box: gr.MultimodalTextbox(value=EMPTY_BOX, submit_btn=False, stop_btn=True)}

        yield from kind_words(done(), self.status)

    def end(self, id: str) -> None:
        if found := self.rounds.of(id):
            found.stop.set()

    def follow(self, values: dict) -> Updates:
        found = self.rounds.of(values[self.round] or "")
        if found is None:
            return {self.timer: gr.Timer(active=False)}
        if found.changed == values[self.told]:
            return {self.told: gr.skip()}
        return self._shown(found) if found.phase != "running" else self._moving(found)

    def cast(self, vote: str, values: dict) -> Iterator[Updates]:
        def done() -> Iterator[Updates]:
            found = self.rounds.of(values[self.round] or "")
            if found is None:
                raise Refused("This round is gone; ask again.")
            self.rounds.vote(found, vote)
            yield self._shown(found) | {self.table: self._table()}

        yield from kind_words(done(), self.status)

    # What is shown

    def _shown(self, found: Round) -> Updates:
        """All of a round."""
        running = found.phase == "running"
        pictures = [f'<img src="{address(self.pictures.keep(image.picture, SHOWN_PIXELS))}" alt="">' for image in found.request().images()]
        return self._moving(found) | {
            self.round: found.id,
            self.timer: gr.Timer(active=running),
            self.box: gr.MultimodalTextbox(submit_btn=not running, stop_btn=running),
            self.asked: gr.HTML("".join(pictures) + html.escape(found.request().text()), visible=True),
            self.choice: gr.Row(visible=found.phase == "ready"),
        }

    def _moving(self, found: Round) -> Updates:
        """What changes while the answers come."""
        with found.lock:
            told, running = found.changed, found.phase == "running"
            answers = {name: self._side(found, name) for name in found.sides}
        words = f"{say(VERDICTS[found.vote])} {say(found.status)}" if found.vote else found.status
        return {
            self.told: told,
            self.status: status_line(words, "busy" if running else "bad" if found.bad else ""),
            **{self.sides[name]: gr.HTML(shown, visible=True) for name, shown in answers.items()},
        }

    def _side(self, found: Round, name: str) -> str:
        """An answer; who gave it stands there after the vote only."""
        side, voted = found.sides[name], found.phase == "voted"
        who = f"<span>{html.escape(named(side.contestant))}</span>" if voted else ""
        line = " · ".join(map(say, side.line.split(" · ")))
        below = f"<small>{html.escape(line)}</small>" if voted else ""
        chosen = " chosen" if found.vote == name else ""
        return f'<article class="answer{chosen}"><h2>{name.upper()}{who}</h2>{self._parts(side)}{below}</article>'

    def _parts(self, side: Side) -> str:
        shown, words = "", ""
        for part in side.answer.parts:
            if isinstance(part, Text):
                words = part.text
                shown += WORDS.render(words)
            elif isinstance(part, Pending):
                shown += self._pending(part)
            else:
                file = self.pictures.keep(part.picture, SHOWN_PIXELS)
                full = self.pictures.keep(part.picture)
                image = f'<img src="{address(file)}" alt="{html.escape(alt_words(part, words))}">'
                shown += f'<a href="{address(full)}" target="_blank" rel="noopener">{image}</a>'
        return shown or "<p>…</p>"

    def _pending(self, pending: Pending) -> str:
        name = sentence("Steps painted")
        bar = f'<progress value="{pending.step}" max="{pending.steps}" aria-label="{name}"></progress>'
        if not pending.preview:
            return bar
        alt = sentence(f"Picture {pending.index + 1} is being painted")
        return f'<img src="{address(self.shared.previews.keep(pending.preview))}" alt="{alt}">{bar}'

    def _table(self) -> str:
        found, broken = votes(self.rounds.file)
        lost = ""
        if broken:
            lines = ", ".join(map(str, broken[:20])) + (" ..." if len(broken) > 20 else "")
            lost = status_line(f"Not counted, for they cannot be read: line {lines} of {self.rounds.file}", "bad")
        return lost + elo_table(table(found))


def contestants(loading: Loading) -> dict[str, Contestant]:
    """All who can take part, by key: the pair that is open, alone and with each adapter of its own, and the other pairs here."""
    from duogen.models.adapters import read_about

    mine = loading.pair_id()
    pairs = {id: Contestant(entries()[id].title, id) for id in entries() if installed(entries()[id])}
    own = pairs.pop(mine, None) or Contestant(Path(mine).name, mine, loading.brain or "")
    found = [own]
    for folder in adapters(loading):
        try:
            base = read_about(folder)["base"]
        except ValueError:  # damaged
            continue
        for pair in (own, *pairs.values()):
            if pair.pair == base or folder in loading.worn and pair is own:
                found.append(Contestant(pair.title, pair.pair, pair.brain, ((str(folder), loading.worn.get(folder, 1.0)),)))
    found += pairs.values()
    found += [Contestant(pair.title, pair.pair, pair.brain, (), preset) for pair in (own, *pairs.values()) for preset in PRESETS]
    return {each.key(): each for each in found}


def named(who: Contestant) -> str:
    """The pair, what it wears, and its settings where they are not the usual ones."""
    worn = [Path(folder).name + (f" ({weight:g})" if weight != 1 else "") for folder, weight in who.adapters]
    settings = f" · {say(who.preset.capitalize())}" if who.preset != "balanced" else ""
    return " + ".join([who.title, *worn]) + settings


def elo_table(rows: list[Row]) -> str:
    """The table, the best first."""
    if not rows:
        return f"<p>{sentence('There are no votes yet.')}</p>"
    heads = "".join(f'<th scope="col">{sentence(name)}</th>' for name in ("Who", "Rating", "Votes", "Won", "Even", "Lost"))
    body = ""
    for row in rows:
        bad = f" <small>({sentence(f'{row.bad} bad')})</small>" if row.bad else ""
        cells = [f"{row.rating:.0f}", row.votes, row.won, f"{row.tied}{bad}", row.lost]
        body += f'<tr><th scope="row">{html.escape(named(row.contestant))}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    hint = sentence("Ratings begin at 1000; after a few votes they say little yet.")
    return f"<table><tr>{heads}</tr>{body}</table><small>{hint}</small>"
