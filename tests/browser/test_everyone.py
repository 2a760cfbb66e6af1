"""The page for everyone: names and contrast as axe-core checks them, light and dark, wide and narrow; and the keyboard alone."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

import pytest
from playwright.sync_api import expect

from tests.browser.test_chat import open_list
from tests.support.browser import SHOTS, act, browser_only, overflow_width, settle

AXE = files("axe_playwright_python").joinpath("axe.min.js")  # axe-core, as npm has it, in a package that pip can fetch
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
FOREIGN = ".download-link"  # Gradio puts a button into a link
LOOKS = {
    "light": {},
    "phone, dark": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"},
}


def faults(page, inside: str = "body") -> list[str]:
    """What axe-core finds wrong with what is shown now."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    settle(page)  # what fades in has its colours only then
    found = page.evaluate(
        "([rules, include, exclude]) => axe.run({include, exclude}, {runOnly: rules, resultTypes: ['violations']})",
        [RULES, inside, FOREIGN],
    )
    return [
        f"{each['id']} {node['target']} {node['html'][:160]} {(node.get('any') or [{}])[0].get('message', '')[:160]}"
        for each in found["violations"]
        for node in each["nodes"]
    ]


@browser_only
@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_wrong(fast, tab: Callable, look: str) -> None:
    page = tab(fast.address, **LOOKS[look])
    page.wait_for_selector("#talk .example")
    found = {"empty": faults(page)}
    page.click("#talk .example")
    page.wait_for_selector("text=All done!")
    page.wait_for_selector("#box .submit-button")
    act(page, "again", 1)
    page.wait_for_selector("#talk .versions")
    page.wait_for_selector("#box .submit-button")
    found["chat"] = faults(page)
    page.click("#pair > button")
    page.wait_for_selector("#pair button.pair")
    settle(page)
    found["pairs"] = faults(page)
    page.keyboard.press("Escape")
    page.click("#drawer")
    found["options"] = faults(page)
    page.click("#options .toggle-button")
    settle(page)
    open_list(page)
    found["list"] = faults(page)
    page.click("#chats summary >> nth=0")
    found["menu"] = faults(page, "#chats details[open]")
    page.keyboard.press("Escape")
    page.click("#side .toggle-button")
    settle(page)
    page.click("#tabs button[role=tab] >> nth=1")
    found["studio, empty"] = faults(page)
    page.click("#tabs button[role=tab] >> nth=0")
    act(page, "studio", 1)
    page.wait_for_selector("#studio-editor canvas")
    page.locator("#studio-canvas button").first.click()
    page.locator("#studio-others button").first.click()
    found["studio"] = faults(page)
    assert overflow_width(page) <= 0
    page.click("#tabs button[role=tab] >> nth=2")
    page.locator("#library-grid .thumbnail-item").first.click()
    page.wait_for_selector("#library-settings dd")
    found["library"] = faults(page)
    for number, ready in ((3, "#models-plan .status span:not(:empty)"), (4, "#data-make")):
        page.click(f"#tabs button[role=tab] >> nth={number}")
        page.wait_for_selector(ready)
        found[ready] = faults(page)
        assert overflow_width(page) <= 0
        page.screenshot(path=SHOTS / f"{'models' if number == 3 else 'data'}-{look.replace(', ', '-')}.png")
    wrong = {fault: where for where, each in found.items() for fault in each}
    assert not wrong, "\n".join(f"{where}: {fault}" for fault, where in wrong.items())


LOOKS_OF_TABS = [(390, "dark"), (1280, "light"), (1440, "light"), (1440, "dark")]


def open_tab(page, name: str) -> None:
    """Open a tab by its id; on a phone the last ones are behind a menu."""
    if page.locator(f"#{name}-button").count():
        page.click(f"#{name}-button")
        return
    page.click("#tabs > .tab-wrapper .overflow-menu > button")
    page.click(f"#tabs > .tab-wrapper .overflow-dropdown button:text-is('{name.removeprefix('tab-').capitalize()}')")


@browser_only
@pytest.mark.parametrize(("width", "theme"), LOOKS_OF_TABS)
def test_every_tab_uses_the_width_and_fits_it(fast, tab: Callable, width: int, theme: str) -> None:
    page = tab(fast.address, viewport={"width": width, "height": 900}, color_scheme=theme)
    page.click("#talk .example")
    page.wait_for_selector("text=All done!")
    for name in ("chat", "tab-studio", "tab-library", "tab-models", "tab-data", "tab-fine-tune", "tab-arena"):
        open_tab(page, name)
        page.wait_for_selector(f"#{name}", state="visible")
        settle(page)
        assert overflow_width(page) <= 0, name
        across = page.evaluate("name => document.getElementById(name).getBoundingClientRect().width", name)
        assert across >= width - 48, f"{name} leaves {width - across} pixels"
        page.screenshot(path=SHOTS / f"{name.removeprefix('tab-')}-{width}-{theme}.png")


LONG_PRESS = """at => at.dispatchEvent(new PointerEvent('pointerdown', {pointerType: 'touch', bubbles: true}))"""


@browser_only
def test_a_phone_shows_what_can_be_done_where_it_is_asked_for(fast, tab: Callable) -> None:
    page = tab(fast.address, viewport={"width": 390, "height": 664}, has_touch=True, is_mobile=True)
    page.tap("#talk .example")
    page.wait_for_selector("text=All done!")
    page.wait_for_selector("#box .submit-button")
    bar = page.locator("#talk .step .bar").nth(1)
    expect(bar).to_have_css("opacity", "0")
    page.locator("#talk .step .card").nth(1).evaluate(LONG_PRESS)
    expect(bar).to_have_css("opacity", "1")
    expect(page.locator("#talk .step .bar").nth(0)).to_have_css("opacity", "0")
    page.tap("#talk .step .said >> nth=0")
    expect(bar).to_have_css("opacity", "0")
    expect(page.locator("#talk .bot .chat-actions .bar")).to_have_css("opacity", "1")
    page.tap("#new")
    page.wait_for_selector("#talk .example")
    settle(page)
    tops = [page.locator(each).bounding_box()["y"] for each in ("#brand", "#tabs [role=tablist] >> nth=0", "#talk .placeholder h2")]
    assert 0 <= tops[0] < tops[1] < tops[2], "New chat scrolls the heading out of sight"


FOCUS = """() => {
    const at = document.activeElement, box = at.getBoundingClientRect(), look = getComputedStyle(at);
    const seen = box.right > 0 && box.left < innerWidth && box.width > 0;
    const shown = look.outlineStyle !== 'none' || look.boxShadow !== 'none' || at.matches('input, textarea, canvas');
    return {name: at.outerHTML.slice(0, 150), seen, shown};
}"""


def tab_to(page, selector: str, key: str = "Tab", most: int = 90) -> None:
    """Press Tab until something has the focus. On the way nothing may have it that is out of sight, or does not show it."""
    for _ in range(most):
        page.keyboard.press(key)
        at = page.evaluate(FOCUS)
        if not at["name"].startswith("<body"):
            assert at["seen"] and at["shown"], at["name"]
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab does not lead to {selector}")


@browser_only
def test_a_link_skips_to_the_box_and_a_tab_shows_its_focus(fast, tab: Callable) -> None:
    page = tab(fast.address)
    page.wait_for_selector("#talk .example")
    page.locator("#tab-library-button").focus()
    page.keyboard.press("Enter")
    inside = "() => parseFloat(getComputedStyle(document.activeElement).outlineOffset) < 0"
    assert page.evaluate(inside), "a ring outside of a tab is clipped"
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#box textarea"), "the skip link leads to the box from every tab").to_be_focused()


@browser_only
def test_the_keyboard_alone_is_enough(fast, tab: Callable) -> None:
    page = tab(fast.address)
    page.wait_for_selector("#talk .example")
    expect(page.locator("#box textarea"), "one can type at once").to_be_focused()
    page.keyboard.type("How do I draw a ferry?")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=All done!")
    page.wait_for_selector("#box .submit-button")
    tab_to(page, "#talk .bot button.i-copy")  # the newest first, then what is older
    for number in (3, 2, 1):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('.step').querySelector('b').innerText") == str(number)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.matches('#talk .step button.i-again') && document.activeElement.value.endsWith(' 3')")
    page.keyboard.press("Enter")
    page.wait_for_selector("#talk .versions button >> nth=1")
    page.wait_for_selector("#box .submit-button")
    tab_to(page, "#open-side", "Shift+Tab")
    page.keyboard.press("Enter")
    settle(page)
    tab_to(page, "#chats summary")
    page.keyboard.press("Enter")
    tab_to(page, "#chats button[value^=rename]")
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.matches('#chats input')")
    page.keyboard.type("By keyboard")
    page.keyboard.press("Enter")
    page.wait_for_selector("#chats .open:has-text('By keyboard')")
    tab_to(page, "#side .toggle-button")
    page.keyboard.press("Enter")
    settle(page)
    tab_to(page, "#tab-library-button")
    page.keyboard.press("Enter")
    tab_to(page, "#library-grid .thumbnail-item")
    page.keyboard.press("Enter")
    page.wait_for_selector("#library-settings dd")
    tab_to(page, "#library-edit")
    page.keyboard.press("Enter")
    page.wait_for_selector("#studio-words textarea")
    tab_to(page, "#studio-words textarea")
    page.keyboard.type("a long hull")
    tab_to(page, "#studio-change")
    page.keyboard.press("Enter")
    page.wait_for_selector("#studio-status:has-text('Here it is')")
