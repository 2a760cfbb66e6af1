"""A guide followed one step at a time, in the page and in an exported web page without a server."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image as PILImage
from playwright.sync_api import expect

from duogen.conversation import Conversation
from duogen.library.export import as_html
from duogen.library.guide import Block, place_in_steps
from tests.browser.test_chat import open_answered
from tests.browser.test_everyone import faults
from tests.support.browser import SHOTS, act, browser_only, overflow_width, settle
from tests.support.waiting import until
from ui.parts.i18n import TABLES

NOON = datetime(2030, 1, 1, 12)
LOOKS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
RECIPE = "You need:\n\n- 200 g flour\n- 2 eggs\n- 300 ml milk\n\nStep 1. Whisk flour, eggs and milk.\n"
STEPS = ["Step 2. Let the batter rest for 10 minutes.\n", "Step 3. Bake each pancake for 2 min 30 s, then **turn** it.\n", "Enjoy!"]
SOUNDS = """() => {
    window.sounds = 0; window.locks = 0;
    const start = OscillatorNode.prototype.start;
    OscillatorNode.prototype.start = function (...at) { window.sounds++; return start.apply(this, at); };
    WakeLock.prototype.request = async () => { window.locks++; return { release: async () => { window.locks--; } }; };
}"""
TIMES = [
    ("Bake for 10 minutes.", [("10 minutes", 600)]),
    ("2 min 30 s, then 1 hour and 5 minutes", [("2 min 30 s", 150), ("1 hour and 5 minutes", 3900)]),
    ("half an hour, 1½ hours, 1 1/2 h, 1.5 hours, an hour and a half", [
        ("half an hour", 1800), ("1½ hours", 5400), ("1 1/2 h", 5400), ("1.5 hours", 5400), ("an hour and a half", 5400),
    ]),
    ("10-15 minutes or 20 to 25 min; a 30-minute rest", [("10-15 minutes", 600), ("20 to 25 min", 1200), ("30-minute", 1800)]),
    ("Ten minutes, then a minute or 45 seconds; 1 hour, 5 minutes", [
        ("Ten minutes", 600), ("a minute", 60), ("45 seconds", 45), ("1 hour, 5 minutes", 3900),
    ]),
    ("a second layer, 10 months, 5 sheets, 2 halves, step 3, 0 min, 48 h, 60 km/h, 3 s-hooks, 2 minutiae", []),
    ("10 Minuten backen, 1 Std. 20 Min. ruhen, 1,5 Stunden", [("10 Minuten", 600), ("1 Std. 20 Min", 4800), ("1,5 Stunden", 5400)]),
    ("eine halbe Stunde, eine Viertelstunde, anderthalb Stunden; fünf bis zehn Minuten", [
        ("eine halbe Stunde", 1800), ("eine Viertelstunde", 900), ("anderthalb Stunden", 5400), ("fünf bis zehn Minuten", 300),
    ]),
    ("eine Sekunde lang, 20 Sekunden, zwei Stunden und zehn Minuten", [("20 Sekunden", 20), ("zwei Stunden und zehn Minuten", 7800)]),
    ("煮10分钟，再煮2分30秒", [("10分钟", 600), ("2分30秒", 150)]),
    ("等十五分钟，烤一个小时，放半小时，一个半小时，二十五秒", [
        ("十五分钟", 900), ("一个小时", 3600), ("半小时", 1800), ("一个半小时", 5400), ("二十五秒", 25),
    ]),
    ("煮10到15分鐘，分成3份，十分好吃，三分之一", [("10到15分鐘", 600)]),
]  # fmt: skip


def recipe() -> Conversation:
    parts: list = [RECIPE]
    for index, words in enumerate(STEPS):
        parts += [PILImage.new("RGB", (96, 64 + 16 * index), ("red", "green", "blue")[index]), words]
    return Conversation().say("user", "How do I make pancakes?").say("assistant", *parts)


@pytest.fixture
def open_export(browser, tmp_path: Path):
    """Opens a conversation as an exported web page from a file."""
    contexts, errors = [], []

    def open_file(conversation: Conversation, hash: str = "", **look):
        (tmp_path / "guide.html").write_text(as_html(conversation), encoding="utf-8")
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 820}, **look}))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.add_init_script(f"({SOUNDS})()")
        page.goto((tmp_path / "guide.html").as_uri() + hash)
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not errors


def progress(page) -> str:
    return page.inner_text(".follow[open] .follow-progress")


def test_words_belong_to_the_step_before_them() -> None:
    picture = object()
    blocks = [Block("You need:"), Block("Cut.", 1), Block("Fry.", 2, picture=picture), Block("", picture=picture), Block("Enjoy!")]
    assert place_in_steps(blocks) == [0, 1, 2, 2, 2]
    assert place_in_steps([Block("One", 1), Block("Two", 2)]) == [0, 0] and place_in_steps([]) == []


def test_the_only_script_of_an_export_is_the_one_that_its_policy_names() -> None:
    page = as_html(recipe())
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="(.*?)">', page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy and policy.startswith("default-src 'none'; img-src data:;")
    assert 'data-steps="3"' in page
    single = as_html(Conversation().say("user", "x").say("assistant", "A cat.", PILImage.new("RGB", (8, 8))))
    assert "<section" in single and "data-steps=" not in single.partition("<script")[0]


@browser_only
def test_times_in_the_words_are_found(open_export) -> None:
    page = open_export(recipe())
    found = page.evaluate(
        "texts => texts.map(text => findTimes(text).map(({ at, end, seconds }) => [text.slice(at, end), seconds]))",
        [text for text, _ in TIMES],
    )
    assert {text: [tuple(each) for each in times] for (text, _), times in zip(TIMES, found, strict=True)} == dict(TIMES)
    words = page.evaluate("FOLLOW_WORDS")
    assert set(words) == set(TABLES) and len({tuple(sorted(table)) for table in words.values()}) == 1


@browser_only
def test_an_exported_guide_is_followed_without_a_server(open_export) -> None:
    page = open_export(recipe())
    page.click(".follow-start")
    assert progress(page) == "Before you start" and page.locator(".follow li input").count() == 3
    page.check(".follow li input >> nth=1")
    page.screenshot(path=SHOTS / "follow-needed.png")
    page.locator(".follow-next").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("PageDown")
    assert progress(page) == "Step 2 of 3" and page.url.endswith("#follow/1/2")
    assert "Step 2 of 3. Let the batter rest" in page.inner_text(".follow [role=status]")
    page.reload()
    assert progress(page) == "Step 2 of 3" and page.evaluate("window.locks") == 1
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    until(lambda: page.evaluate("window.locks") == 2)  # the page's policy forbids `wait_for_function`
    page.keyboard.press("Escape")
    expect(page.locator("dialog.follow")).to_be_hidden()
    expect(page).not_to_have_url(re.compile("#"))
    page.click(".follow-start")
    page.go_back()
    expect(page.locator("dialog.follow")).to_be_hidden()


@browser_only
def test_a_timer_counts_down_rings_and_outlives_a_reload(open_export) -> None:
    page = open_export(recipe(), "#follow/1/3")
    page.clock.install(time=NOON)
    page.reload()
    page.clock.pause_at(NOON + timedelta(hours=1))
    timer = page.locator(".follow-timer")
    assert timer.inner_text() == "2:30" and timer.get_attribute("aria-label") == "2:30 Start a timer: 2 min 30 s"
    timer.click()
    page.clock.run_for(31_000)
    assert timer.inner_text() == "1:59"
    page.keyboard.press("ArrowLeft")
    assert progress(page) == "Step 2 of 3" and page.inner_text(".follow-tray b") == "1:59"
    page.reload()
    page.clock.pause_at(NOON + timedelta(hours=1, minutes=1, seconds=31))
    assert page.inner_text(".follow-tray b") == "0:59" and page.evaluate("window.sounds") == 0
    page.clock.run_for(60_000)
    assert page.inner_text(".follow [role=alert] p") == "Time is up: 2 min 30 s (Step 3)" and page.evaluate("window.sounds") >= 3
    page.click(".follow [role=alert] button")
    expect(page.locator(".follow [role=alert] p")).to_have_count(0)


@browser_only
def test_a_guide_reads_aloud_and_is_swiped_in_its_direction(open_export) -> None:
    words = ["الخطوة 1. ارسم مربعاً.\n", "الخطوة 2. ارسم دائرة.\n"]
    parts = [part for each in words for part in (each, PILImage.new("RGB", (8, 8)))]
    page = open_export(Conversation().say("user", "كيف أرسم بيتاً؟").say("assistant", *parts), has_touch=True)
    page.evaluate("""() => {
        window.spoken = [];
        speechSynthesis.speak = said => window.spoken.push([said.lang, said.text]);
        window.swipe = (from, to) => {
            const target = document.querySelector('.follow-place');
            const touch = clientX => new Touch({ identifier: 1, target, clientX, clientY: 300 });
            target.dispatchEvent(new TouchEvent('touchstart', { touches: [touch(from)] }));
            target.dispatchEvent(new TouchEvent('touchend', { changedTouches: [touch(to)] }));
        };
    }""")
    page.click(".follow-start")
    page.click(".follow-read")
    page.evaluate("swipe(100, 300)")  # to the next step, where one reads from the right
    assert progress(page) == "Step 2 of 2" and page.evaluate("window.spoken") == [["ar", "ارسم مربعاً."], ["ar", "ارسم دائرة."]]
    page.keyboard.press("ArrowRight")
    assert progress(page) == "Step 1 of 2"


@browser_only
def test_an_answer_is_followed_in_the_page(fast, tab) -> None:
    page = open_answered(tab, fast)
    act(page, "follow")
    assert progress(page) == "Step 1 of 3"
    page.click(".follow-next")
    page.wait_for_url(re.compile(r"\?c=\w+#follow/\w+/\w+/2$"))
    page.reload()
    page.wait_for_selector(".follow[open] .follow-said:has-text('Put a mast on it')")
    assert progress(page) == "Step 2 of 3" and page.evaluate("document.querySelector('.follow img').naturalWidth") > 0
    page.keyboard.press("ArrowRight")
    assert "All done!" in page.inner_text(".follow-said")
    assert faults(page, ".follow") == []
    page.keyboard.press("Escape")
    page.wait_for_function("location.hash === '' && location.search.startsWith('?c=')")
    expect(page.locator("#talk button[value^='follow ']")).to_have_count(1)


@browser_only
@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_following_fits_every_screen(open_export, width: int, theme: str) -> None:
    page = open_export(recipe(), "#follow/1/3", viewport={"width": width, "height": 844 if width < 600 else 800}, color_scheme=theme)
    page.click(".follow-timer")
    assert faults(page, ".follow") == [] and overflow_width(page) <= 0
    settle(page)
    page.screenshot(path=SHOTS / f"follow-{width}-{theme}.png")
    expect(page.locator(".follow-next")).to_be_in_viewport(ratio=1)
