"""The page in other languages: the files hold what the code says, no more and no less, and a browser shows it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache

import pytest
from playwright.sync_api import expect

from duogen.data_engine.state import STEPS
from duogen.options import LoadOptions, Options
from tests.browser.test_chat import open_answered, open_list
from tests.support.browser import SHOTS, act, browser_only, overflow_width, settle
from tests.support.sources import ROOT, nodes
from ui.chat.welcome import FILMS, GUIDES, PAINTERS, SOURCES, WAITING
from ui.parts.i18n import TABLES, translate_into
from ui.parts.login import WORDS

SAYING = {"Refusal", "translate", "status_line", "translate_html", "_mark", "button"}  # calls whose words a person reads
SHOWING = {"label", "placeholder", "info", "words", "title"}
NOT_WORDS = re.compile(r"\W*(\d+|DuoGen|_)?\W*")


def template(node: ast.AST) -> list[str]:
    """The sentences that an expression can be, with `_` for what is only known later."""
    match node:
        case ast.Constant(str(words)):
            return [words]
        case ast.JoinedStr(parts):
            return ["".join(part.value if isinstance(part, ast.Constant) else "_" for part in parts)]
        case ast.IfExp(_, one, other):
            return template(one) + template(other)
        case ast.BoolOp(_, parts):
            return [words for part in parts for words in template(part)]
    return []


def find_said() -> Iterator[tuple[str, str]]:
    """Where and what: every literal sentence that the code of the page shows."""
    for file in sorted((ROOT / "ui").rglob("*.py")):
        for call in nodes(file):
            if not isinstance(call, ast.Call) or file.name in ("openai.py", "endpoint.py", "auth.py", "requests.py"):
                continue
            name = getattr(call.func, "id", None) or getattr(call.func, "attr", "")
            shown = call.args[:1] if name in SAYING - {"button", "_mark"} else call.args[1:2] if name in ("button", "_mark") else []
            shown += [keyword.value for keyword in call.keywords if keyword.arg in SHOWING]
            shown += call.args[:1] if name in ("Button", "UploadButton", "Tab", "Accordion", "Markdown") else []
            for words in [words for node in shown for words in template(node)]:
                yield f"{file.name}:{call.lineno}", words


def matches(template: str, key: str) -> bool:
    """Whether the code's sentence, with `_` for what differs, can be this one of the files."""
    return bool(pattern(template).fullmatch(re.sub(r"\{\w+\}", "_", key)) or pattern(key).fullmatch(template))


@cache
def pattern(words: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"(\\{\w+\\}|_)+", ".+", re.escape(words)), re.DOTALL)


@pytest.mark.parametrize("language", TABLES)
def test_all_that_the_page_says_is_in_every_file(language: str) -> None:
    found = dict(find_said())
    assert len(found) > 100, "the walk does not see what the page says"
    missing = {where: words for where, words in found.items() if not NOT_WORDS.fullmatch(words) and words not in TABLES[language]}
    assert {where: words for where, words in missing.items() if not any(matches(words, key) for key in TABLES[language])} == {}


def find_written() -> Iterator[str]:
    """Every sentence in the code below and of the page, and every name that becomes a label."""
    for file in [file for place in ("ui", "duogen") for file in (ROOT / place).rglob("*.py")]:
        for node in nodes(file):
            yield from template(node)
            if isinstance(node, ast.AnnAssign):
                yield ast.unparse(node.target).replace("_", " ").capitalize()
    for file in (ROOT / "ui").rglob("*.js"):
        yield from re.findall(r"'([^'\n]*)'", file.read_text(encoding="utf-8"))
    yield from catalogue_texts()
    for file in (ROOT / "assets" / "recipes").glob("*.json"):
        yield from (words for words in json.loads(file.read_text(encoding="utf-8")).get("about", {}).values() if isinstance(words, str))
    yield from pair_texts()


def catalogue_texts() -> set[str]:
    """What the cards of the catalogue say; names of pairs and licences are the same everywhere."""
    known = json.loads((ROOT / "assets" / "catalogue.json").read_text(encoding="utf-8"))
    every = [*known["pairs"], *known["motion"]]
    return {words for pair in every for words in (pair["summary"], pair["paints"], pair["licence"]["conditions"]) if words}


def pair_texts() -> set[str]:
    """What the pairs of this repository say of themselves, and what a recipe would give its pair to say. Requests stay as they are."""
    files = [*ROOT.glob("weights/*/duogen.json"), *ROOT.glob("assets/recipes/*.json")]
    read = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {about[name] for each in read for about in (each, each.get("about", {})) for name in ("summary", "limits") if about.get(name)}


def script_texts() -> set[str]:
    """What the scripts of the page say: the words of `say`, and those that are said by a table."""
    script = "".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "ui").rglob("*.js")))
    titles = "".join(re.findall(r"const TITLES = {(.*?)}", script))
    return {*re.findall(r"\bsay\('([^']+)'\)", script), *re.findall(r": '([^']+)'", titles), *re.findall(r", '([A-Z][^']+)'\]", script)}


@pytest.mark.parametrize("language", TABLES)
def test_pairs_scripts_first_page_and_login_are_in_every_file(language: str) -> None:
    assert len(pair_texts()) >= 2 and len(script_texts()) >= 9, "the walk does not see what they say"
    shown = pair_texts() | script_texts() | {*WORDS.values(), WAITING["summary"], FILMS, SOURCES, *GUIDES, *PAINTERS}
    assert shown - set(TABLES[language]) == set()


@pytest.mark.parametrize("language", TABLES)
def test_the_catalogue_the_options_and_the_steps_of_the_data_engine_are_in_every_file(language: str) -> None:
    options = [each for kind in (LoadOptions, Options) for each in fields(kind) if not is_dataclass(each.default_factory)]
    helps = {each.metadata["help"] for each in options if each.metadata} | {each.name.replace("_", " ").capitalize() for each in options}
    assert (catalogue_texts() | helps | set(STEPS)) - set(TABLES[language]) == set()


def test_the_files_hold_nothing_that_nobody_says() -> None:
    everything = {words for words in find_written() if len(re.sub(r"[\W_]", "", words)) > 0}
    exact = everything | {words.capitalize() for words in everything}
    keys = {key: key.removeprefix("## ") for key in TABLES["de"] if key not in exact and key.removeprefix("## ") not in exact}
    assert [key for key, words in keys.items() if not any(matches(each, words) for each in everything)] == []


def test_the_files_have_the_same_sentences_and_names_in_them() -> None:
    assert {language: set(table) ^ set(TABLES["de"]) for language, table in TABLES.items()} == {language: set() for language in TABLES}
    for language, table in TABLES.items():
        for key, words in table.items():
            assert words.strip() and set(re.findall(r"\{\w+\}", key)) == set(re.findall(r"\{\w+\}", words)), (language, key)


def test_a_sentence_with_something_in_it() -> None:
    assert translate_into("de", "Painting picture 3, step 2 of 5 ...") == "Malt Bild 3, Schritt 2 von 5 ..."
    assert (
        translate_into("zh", "1,200 pictures") == "1,200 张图片"
        and translate_into("de", "What nobody wrote down.") == "What nobody wrote down."
    )
    assert translate_into("en", "Stopped.") == "Stopped." and translate_into("de", "") == ""


ENGLISH = re.compile(
    r"\b(the|and|what|with|your|picture|pictures|conversation|undo|delete|save|search|chat|options|steps|seed|words|choose|open)\b", re.I
)


def english_on(page) -> list[str]:
    """Words in English that a person sees or a screen reader says, in lines; what was said in the conversation left out."""
    seen = page.evaluate("""() => {
        const out = [], skip = '#talk .message-wrap .prose p, #talk .example, #talk h2, #chats .open, #library-grid, #studio-strip, '
            + '#library-settings dd, [lang=en], em, style';
        const walk = document.createTreeWalker(document.querySelector('.gradio-container'), NodeFilter.SHOW_TEXT);
        while (walk.nextNode()) {
            const at = walk.currentNode.parentElement;
            if (!at.closest(skip) && at.checkVisibility?.()) out.push(walk.currentNode.data.trim());
        }
        for (const at of document.querySelectorAll('button, input, textarea, summary'))
            if (at.checkVisibility() && !at.closest(skip)) out.push(at.title, at.placeholder, at.getAttribute('aria-label'));
        return out.filter(Boolean);
    }""")
    return sorted({words for words in seen if ENGLISH.search(words)})


NAME_FITS = """() => {
    const head = document.querySelector('#brand h1'), box = head.getBoundingClientRect(), words = document.createRange();
    words.selectNodeContents(head.lastChild);
    const at = words.getBoundingClientRect();
    return at.top >= box.bottom || at.right <= document.querySelector('#new').getBoundingClientRect().left;
}"""


@browser_only
@pytest.mark.parametrize(("locale", "ask"), [("de-DE", "Frag etwas"), ("zh-CN", "提问")])
def test_a_browser_is_spoken_to_in_its_language(fast, tab, locale: str, ask: str) -> None:
    page = open_answered(tab, fast, "How do I draw a boat?", locale=locale, ready="Bereit" if locale == "de-DE" else "就绪")
    language = locale[:2]
    expect(page.locator("#box textarea")).to_have_attribute("placeholder", re.compile(ask))
    expect(page.locator("html")).to_have_attribute("lang", language)
    assert english_on(page) == []
    page.screenshot(path=SHOTS / f"chat-{language}.png")
    if language == "zh":
        return  # the files have the same sentences, so one of them shows where the others are
    page.set_viewport_size({"width": 390, "height": 844})
    settle(page)
    page.wait_for_function(NAME_FITS)  # no button lies on the name
    page.screenshot(path=SHOTS / "chat-phone-de.png")
    page.set_viewport_size({"width": 1100, "height": 820})
    page.click("#drawer")
    settle(page)
    assert english_on(page) == []
    page.screenshot(path=SHOTS / f"options-{language}.png")
    page.click("#options .toggle-button")
    open_list(page)
    page.click("#chats summary >> nth=0")
    settle(page)
    assert english_on(page) == []
    page.click("#side .toggle-button")
    settle(page)
    act(page, "studio", 1)
    page.wait_for_selector("#studio-editor canvas")
    page.locator("#studio-canvas button").first.click()
    page.locator("#studio-others button").first.click()
    settle(page)
    assert english_on(page) == []
    page.screenshot(path=SHOTS / f"studio-{language}.png")
    page.locator("#tabs button[role=tab]").nth(2).click()
    page.locator("#library-grid .thumbnail-item").first.click()
    page.wait_for_selector("#library-settings dd")
    settle(page)
    assert english_on(page) == [] and overflow_width(page) <= 0
    page.screenshot(path=SHOTS / f"library-{language}.png")
    for number, name, ready in ((3, "models", "#models-plan .status"), (4, "data", "#data-make")):
        page.locator("#tabs button[role=tab]").nth(number).click()
        page.wait_for_selector(ready)
        settle(page)
        assert english_on(page) == [] and overflow_width(page) <= 0
        page.screenshot(path=SHOTS / f"{name}-{language}.png")
