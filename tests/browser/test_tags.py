"""Tags of conversations: given in the list, shown under the titles, and a filter of the list."""

from __future__ import annotations

from playwright.sync_api import expect

from duogen.conversation import Conversation
from duogen.library.conversations import ConversationStore
from tests.browser.test_chat import open_list
from tests.browser.test_everyone import faults
from tests.support.browser import SHOTS, Server, browser_only, overflow_width, settle


def shoot(page, name: str) -> None:
    """At the widths of a phone and of a desk, in light and dark."""
    for look in ("light", "dark"):
        page.evaluate("dark => document.body.classList.toggle('dark', dark)", look == "dark")
        for width, height in ((1280, 900), (390, 844)):
            page.set_viewport_size({"width": width, "height": height})
            settle(page)
            page.screenshot(path=SHOTS / f"{name}-{width}-{look}.png")
            assert overflow_width(page) <= 0


def fill_list(store: ConversationStore) -> None:
    for title, tags in (("Apple cake", "cake autumn"), ("A boat", ""), ("Snow <i>house", "winter <b>snow")):
        store.set_tags(store.save(Conversation(title=title).say("user", title)).id, tags)


@browser_only
def test_tags_are_given_and_filter_the_list_by_keyboard(fast: Server, tab) -> None:
    fill_list(ConversationStore(fast.home / "conversations"))
    page = tab(fast.address, viewport={"width": 390, "height": 844}, has_touch=True)
    page.wait_for_selector("#status:has-text('Ready')")
    open_list(page)
    titles, opened = page.locator("#chats .open .title"), page.locator("#chats .open[title='A boat']")
    expect(titles).to_have_text(["Snow <i>house", "A boat", "Apple cake"])
    expect(page.locator("#chats li .tags")).to_have_text(["winter <b>snow", "cake autumn"])
    page.locator("#chats li:has(.open[title='A boat']) summary").click()
    page.locator("#chats li:has(.open[title='A boat']) button:has-text('Tags')").click()
    box = page.locator("#chats input[name^='tags ']")
    expect(box).to_be_focused()
    box.press_sequentially("x" * 31)
    box.press("Enter")
    page.wait_for_selector(".toast-message-text:has-text('at most 8 tags')")
    page.locator(".toast-close").first.click()
    box.fill("#Winter, water")
    settle(page)
    page.screenshot(path=SHOTS / "tags-typed.png")
    box.press("Enter")
    expect(opened.locator(".tag")).to_have_text(["Winter", "water"])
    expect(opened).to_be_focused()
    expect(page.locator("#chats div.tags button")).to_have_text(["<b>snow", "autumn", "cake", "water", "winter"])
    for tag, found in (("winter", 2), ("water", 1)):
        button = page.locator(f"#chats div.tags button[value='tag {tag}']")
        button.focus()
        button.press("Enter")
        expect(titles).to_have_count(found)
        expect(button).to_have_attribute("aria-pressed", "true")
        expect(button).to_be_focused()
    search = page.locator("#search :is(input, textarea)")
    expect(search).to_have_value("#winter #water")
    button.press("Enter")
    expect(titles).to_have_text(["Snow <i>house", "A boat"])
    shoot(page, "tags")
    assert faults(page, "#side") == []
    search.fill("#autumn")
    expect(titles).to_have_text(["Apple cake"])
