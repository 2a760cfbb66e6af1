"""Ideas on the page: side by side while they are painted and after a reload, and one of them goes on."""

from __future__ import annotations

from playwright.sync_api import expect

from duogen.library.conversations import ConversationStore
from tests.support.browser import SHOTS, Server, act, browser_only, overflow_width, send, wait_until_answered

IDEAS = "#talk .bot .ideas > .idea"
CHOOSE = f"{IDEAS} .act[value^='choose ']"


def places(page) -> list[tuple[int, int]]:
    """Where the ideas stand, (left, top): all measured at one moment, since the page scrolls after a resize."""
    measure = "ideas => ideas.map(idea => idea.getBoundingClientRect()).map(box => [Math.round(box.x), Math.round(box.y)])"
    return [(left, top) for left, top in page.locator(IDEAS).evaluate_all(measure)]


@browser_only
def test_ideas_go_on_after_a_stop(fast: Server, tab) -> None:
    page = tab(fast.address)
    page.wait_for_selector("#talk .example")
    send(page, "Give me four ideas for a boat slowly")
    expect(page.locator(f"{IDEAS} .pending")).to_have_count(1)
    expect(page.locator(IDEAS)).to_have_count(3)
    page.screenshot(path=SHOTS / "ideas-painting.png")
    page.click("#box .stop-button")
    page.get_by_role("button", name="Go on", exact=True).click()
    expect(page.locator(CHOOSE)).to_have_count(4)
    assert len({left for left, _ in places(page)}) >= 2


@browser_only
def test_ideas_stand_side_by_side_and_one_goes_on(fast: Server, tab) -> None:
    page = tab(fast.address)
    page.wait_for_selector("#talk .example")
    send(page, "Give me four ideas for a boat")
    wait_until_answered(page)
    expect(page.locator(CHOOSE)).to_have_count(4)
    page.reload()
    expect(page.locator(CHOOSE)).to_have_count(4)
    expect(page.locator(f"{IDEAS} .said")).to_have_text(["A boat at noon.", "A boat at dusk.", "A boat in fog.", "A boat at night."])
    page.set_viewport_size({"width": 1440, "height": 900})
    assert len({top for _, top in places(page)}) <= 2 and len({left for left, _ in places(page)}) >= 2
    page.screenshot(path=SHOTS / "ideas-1440.png")
    page.set_viewport_size({"width": 390, "height": 844})
    lefts, tops = zip(*places(page), strict=True)
    assert lefts[0] == lefts[2] < lefts[1] == lefts[3] and tops[0] == tops[1] < tops[2] == tops[3] and not overflow_width(page)
    page.screenshot(path=SHOTS / "ideas-390.png")
    page.locator(CHOOSE).nth(2).click()
    expect(page.locator(IDEAS)).to_have_count(0)
    expect(page.locator("#talk .bot")).to_contain_text("A boat in fog.")
    expect(page.locator("#talk .bot img.picture")).to_have_count(1)
    page.screenshot(path=SHOTS / "ideas-chosen.png")
    send(page, "Make it red")
    expect(page.locator("#talk .bot").last).to_contain_text("All done!")
    wait_until_answered(page)
    store = ConversationStore(fast.home / "conversations")
    [entry] = store.list_entries()
    path = store.open(entry.id).path()
    assert [len(turn.images()) for turn in path] == [0, 1, 0, 3] and not path[1].ideas
    act(page, "branch", who="bot")  # back to all of them
    expect(page.locator(CHOOSE)).to_have_count(4)
