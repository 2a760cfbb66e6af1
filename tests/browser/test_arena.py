"""The Arena: votes and their table, rounds through one engine at a time, and the tab in a real browser."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from playwright.sync_api import expect

from duogen.conversation import Conversation, load_conversation, save_conversation
from duogen.engine import Engine
from duogen.evaluate.arena import VOTED, Contestant, Vote, add_vote, rating_table, read_votes
from duogen.library.pictures import Gallery, PictureQuery
from duogen.options import LoadOptions, preset_options
from tests.browser.test_everyone import LOOKS, faults
from tests.browser.test_languages import english_on
from tests.support.browser import SHOTS, browser_only, overflow_width
from tests.support.tiny import tiny_pair
from tests.support.waiting import patience
from ui.parts.arena_rounds import ArenaRounds, Round
from ui.parts.loading import Loading
from ui.parts.pictures import PictureFolder
from ui.tabs.arena import contestant_name, elo_table_html, list_contestants

ONE, OTHER = Contestant("Sketch", "one"), Contestant("Sketch", "one", adapters=(("/a/boats", 0.8),), preset="quick")


def vote(a: Contestant, b: Contestant, said: str) -> Vote:
    return Vote("Draw a boat.", 3, a, b, said)


def test_the_table_is_elo_over_the_votes() -> None:
    rows = {row.contestant: row for row in rating_table([vote(ONE, OTHER, "a"), vote(OTHER, ONE, "a"), vote(OTHER, ONE, "bad")])}
    up, down = rows[OTHER], rows[ONE]
    expected = 1 / (1 + 10 ** (-32 / 400))  # of who leads 1016 to 984
    second = 16 + 32 * (0 - expected)
    third = second + 32 * (0.5 - 1 / (1 + 10 ** (-2 * second / 400)))
    assert down.rating == pytest.approx(1000 + third) and up.rating == pytest.approx(1000 - third)
    assert (up.votes, up.won, up.tied, up.lost, up.bad) == (3, 1, 1, 1, 1)
    assert [row.contestant for row in rating_table([vote(ONE, OTHER, "b")])] == [OTHER, ONE]
    assert rating_table([vote(ONE, OTHER, "tie")])[0].rating == 1000 and rating_table([]) == []
    third_one = replace(OTHER, adapters=(("/a/boats", 1.0),))
    assert len(rating_table([vote(ONE, OTHER, "a"), vote(ONE, third_one, "a")])) == 3, "another weight is another contestant"


def test_votes_stay_and_broken_lines_are_told(tmp_path: Path) -> None:
    file = tmp_path / "arena" / "votes.jsonl"
    assert read_votes(file) == ([], [])
    first, second = vote(ONE, OTHER, "a"), vote(ONE, OTHER, "tie")
    add_vote(file, first)
    wrong = [{**asdict(first), "vote": "c"}, {**asdict(first), "more": 1}, {**asdict(first), "a": 5}]
    with file.open("a") as out:
        out.write("".join(json.dumps(each) + "\n" for each in wrong) + '{"words": "Draw')  # cut off by a power cut
    add_vote(file, second)
    assert read_votes(file) == ([first, second], [2, 3, 4, 5])
    file.write_bytes(b"\xff\n" + file.read_bytes())
    assert read_votes(file) == ([first, second], [1, 3, 4, 5, 6])


def test_votes_of_older_versions_are_read(tmp_path: Path) -> None:
    cast = vote(replace(ONE, mllm="/talks"), OTHER, "a")
    old = asdict(cast)
    for side in ("a", "b"):
        old[side]["brain"] = old[side].pop("mllm")
    (tmp_path / "votes.jsonl").write_text(json.dumps(old) + "\n")
    assert read_votes(tmp_path / "votes.jsonl") == ([cast], [])


def test_a_preset_is_on_top_of_what_a_pair_does_best() -> None:
    about = {"steps": 30, "guidance": 4.0, "title": "x"}
    balanced, quick = preset_options("balanced", about, 7), preset_options("quick", about)
    assert (balanced.seed, balanced.image.steps, balanced.image.guidance) == (7, 30, 4.0)
    assert (quick.image.steps, quick.image.guidance, quick.text.max_tokens) == (4, 4.0, 256)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("pairs")
    return str(tiny_pair(folder / "one")), str(tiny_pair(folder / "other"))


def make_rounds(pair: str, home: Path) -> ArenaRounds:
    loading = Loading(pair, load=LoadOptions(device="cpu", precision="fp32"))
    loading._open()
    assert loading.engine is not None, loading.error
    folders = PictureFolder(home / "shown" / "pictures", 99), PictureFolder(home / "shown" / "previews", 9)
    return ArenaRounds(loading, Gallery(home), folders, home / "votes.jsonl")


def wait_for_end(made: Round) -> Round:
    for thread in threading.enumerate():
        if thread.name == "arena":
            thread.join(patience())
    return made


def ask(rounds: ArenaRounds, *who: Contestant) -> Round:
    return rounds.start(Conversation().say("user", "Draw a boat."), who)


def test_two_pairs_answer_and_only_one_is_in_memory(pairs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = make_rounds(pairs[0], tmp_path)
    alive, most = weakref.WeakSet(), []

    def opened(self: Engine, *given, init=Engine.__init__) -> None:
        gc.collect()
        most.append(len(alive))
        alive.add(self)
        init(self, *given)

    alive.add(rounds.loading.engine)
    monkeypatch.setattr(Engine, "__init__", opened)
    made = wait_for_end(ask(rounds, Contestant("One", pairs[0]), Contestant("Other", pairs[1])))
    assert made.phase == "ready", made.status
    assert most and set(most) == {0}, "a pair was opened while another one was there"
    assert rounds.loading.engine is not None and rounds.loading.finished.is_set() and rounds.loading.pair == pairs[0]
    assert {side.contestant.title for side in made.sides.values()} == {"One", "Other"} and not rounds.gallery.find(PictureQuery())[1]
    again = ArenaRounds(rounds.loading, rounds.gallery, rounds.folders, rounds.file).find(made.id)
    assert again is not None and (again.phase, again.seed, again.request().text()) == ("ready", made.seed, "Draw a boat.")
    for name, side in made.sides.items():
        found = again.sides[name]
        assert (found.contestant, found.options, found.line, found.turn) == (side.contestant, side.options, side.line, side.turn)
        pixels = [[image.picture.tobytes() for image in turn.images()] for turn in (found.turn, side.turn)]
        assert pixels[0] == pixels[1] and pixels[0] and found.answer.finished_parts() == side.turn.parts
    one, other = (made.sides[name].turn for name in "ab")
    assert one.text() == other.text() and one.parts, "the same weights with the same seed say the same"
    rounds.vote(made, "bad")
    with pytest.raises(ValueError, match="ask something first"):
        rounds.vote(made, "a")
    assert [(each.words, each.seed, each.vote) for each in read_votes(rounds.file)[0]] == [("Draw a boat.", made.seed, "bad")]
    kept = load_conversation(tmp_path / VOTED / read_votes(rounds.file)[0][0].answers)
    assert [turn.parts for turn in kept.turns.values() if turn.parent == kept.head] == [one.parts, other.parts]
    assert (
        not any(rounds.waiting.iterdir()) and ArenaRounds(rounds.loading, rounds.gallery, rounds.folders, rounds.file).find(made.id) is None
    )
    assert rounds.gallery.find(PictureQuery())[1] == len({image.picture.tobytes() for image in (*one.images(), *other.images())})


def test_what_cannot_be_opened_ends_the_round_and_the_pair_is_back(pairs: tuple[str, str], tmp_path: Path) -> None:
    rounds = make_rounds(pairs[0], tmp_path)
    made = wait_for_end(ask(rounds, Contestant("Gone", str(tmp_path / "gone")), Contestant("Gone", str(tmp_path / "gone2"))))
    assert (made.phase, made.bad) == ("over", True) and "A could not answer" in made.status and "is not a pair" in made.status
    assert rounds.loading.engine is not None
    bare = wait_for_end(ask(rounds, Contestant("One", pairs[0]), Contestant("One", pairs[0], adapters=((str(tmp_path), 1.0),))))
    assert bare.phase == "over" and "is no adapter" in bare.status and rounds.loading.engine.adapters == ()
    with pytest.raises(ValueError, match="ask something first"):
        rounds.vote(made, "a")
    with rounds.loading.queue.wait_turn(lambda before: None, threading.Event()):
        waits = ask(rounds, Contestant("One", pairs[0]), Contestant("One", pairs[0], preset="quick"))
        waits.stop.set()
        wait_for_end(waits)
    assert (waits.phase, waits.bad) == ("over", False) and "does not count" in waits.status


def test_a_waiting_round_that_is_damaged_is_gone(tmp_path: Path) -> None:
    rounds = ArenaRounds(None, None, (None, None), tmp_path / "votes.jsonl")
    for id, text in (("0" * 32, "{"), ("1" * 32, '{"seed": 1, "sides": {}}')):
        save_conversation(Conversation().say("user", "Draw a boat."), rounds.waiting / id)
        (rounds.waiting / id / "round.json").write_text(text)
        assert rounds.find(id) is None
    assert rounds.find("../waiting") is None and rounds.find("2" * 32) is None


def test_who_can_take_part(pairs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    for name, base in (("boats", pairs[0]), ("others", "somewhere/else"), ("sketches", "duogen-sketch")):
        (tmp_path / "finetune" / name).mkdir(parents=True)
        (tmp_path / "finetune" / name / "adapter.json").write_text(json.dumps({"base": base}))
    (tmp_path / "finetune" / "boats2").mkdir()
    (tmp_path / "finetune" / "boats2" / "adapter.json").write_text("{")
    names = [contestant_name(each) for each in list_contestants(Loading(pairs[0])).values()]
    assert names[:2] == ["one", "one + boats"] and {"DuoGen Sketch", "DuoGen Sketch + sketches", "one · Quick"} <= set(names)
    assert not any("others" in name or "boats2" in name or "Sketch + boats" in name for name in names) and len(set(names)) == len(names)
    assert "no votes" in elo_table_html([]) and "<td>984</td>" in elo_table_html(rating_table([vote(ONE, OTHER, "a")]))


def open_arena(page) -> None:
    if page.viewport_size["width"] > 640:
        page.click("#tab-arena-button")
    else:
        page.click(".overflow-menu > button")  # a narrow window keeps the last tabs there
        page.locator(".overflow-dropdown button").last.click()
    page.wait_for_selector("#arena-who .token >> nth=1")


def request(page, words: str) -> None:
    page.fill("#arena-box textarea", words)
    page.keyboard.press("Enter")


@browser_only
def test_a_blind_vote_in_the_browser(fast, tab: Callable) -> None:
    page = tab(fast.address)
    page.wait_for_selector("#status:has-text('Ready')")
    open_arena(page)
    request(page, "How do I draw a boat, slowly?")
    page.wait_for_selector("#arena-a progress")
    page.screenshot(path=SHOTS / "arena-painting.png")
    page.reload()
    open_arena(page)
    page.wait_for_selector("#arena-a progress")
    page.click("#arena-box .stop-button")
    page.wait_for_selector("#arena-status:has-text('does not count')")
    expect(page.locator("#arena-vote")).not_to_be_visible()
    request(page, "How do I draw a boat?")
    page.wait_for_selector("#arena-status:has-text('Which answer is better?')")
    page.wait_for_function("document.querySelector('#arena-sides').innerText.split('All done!').length == 3")
    expect(page.locator("#arena-asked")).to_contain_text("How do I draw a boat?")
    assert "Sketch" not in page.inner_text("#arena-sides") + page.inner_text("#arena-asked")
    pictures = "[...document.querySelectorAll('#arena-sides img')].filter(each => each.complete && each.naturalWidth > 0).length == 6"
    page.wait_for_function(pictures)
    page.screenshot(path=SHOTS / "arena-vote.png")
    page.click("#arena-is-b")
    page.wait_for_selector("#arena-b .chosen")
    heads = [page.inner_text(f"#arena-{name} h2") for name in "ab"]
    expect(page.locator("#arena-status")).to_contain_text("B was better")
    assert sorted(head[1:].strip() for head in heads) == ["DuoGen Sketch", "DuoGen Sketch · Quick"]
    expect(page.locator("#arena-vote")).not_to_be_visible()
    for part in (heads[1][1:].strip(), "1016"):
        expect(page.locator("#arena-table tr:nth-child(2)")).to_contain_text(part)
    with (fast.home / "arena" / "votes.jsonl").open("a") as out:
        out.write("{broken\n")
    page.reload()
    open_arena(page)
    page.wait_for_selector("#arena-table .bad")
    expect(page.locator("#arena-table")).to_contain_text("1016")
    expect(page.locator("#arena-table .bad")).to_contain_text("line 2 of")
    for name, head in zip("ab", heads, strict=True):
        expect(page.locator(f"#arena-{name} h2"), "the round is there after a reload").to_have_text(head, use_inner_text=True)


@browser_only
@pytest.mark.parametrize("look", LOOKS)
def test_the_tab_is_for_everyone(fast, tab: Callable, look: str) -> None:
    german = look != "light"
    page = tab(fast.address, **LOOKS[look], locale="de-DE" if german else "en-GB")
    page.wait_for_selector(f"#status:has-text('{'Bereit' if german else 'Ready'}')")
    open_arena(page)
    request(page, "Boot")
    page.wait_for_selector("#arena-vote", state="visible")
    found = faults(page)
    page.click("#arena-is-tie")
    page.wait_for_selector("#arena-table td")
    assert found + faults(page) == [] and overflow_width(page) <= 0
    page.screenshot(path=SHOTS / f"arena-{look.replace(', ', '-')}.png")
    if german:
        assert [words for words in english_on(page) if "Step" not in words] == []


def test_votes_of_earlier_versions_name_the_mllm_brain(tmp_path: Path) -> None:
    contestant = {"title": "Sketch", "pair": "one", "brain": "folder/mllm", "adapters": [], "preset": "balanced"}
    raw = {"words": "Draw a boat.", "seed": 3, "a": contestant, "b": contestant, "vote": "a", "at": 1.0}
    file = tmp_path / "votes.jsonl"
    file.write_text(json.dumps(raw) + "\n")
    votes, broken = read_votes(file)
    assert not broken and votes[0].a == Contestant("Sketch", "one", "folder/mllm")
