"""What is said cannot make a browser fetch anything: not by its Markdown, not by its HTML, and not past the policy of the page."""

from __future__ import annotations

import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from playwright.sync_api import expect

from duogen.conversation import Conversation, Image
from duogen.library.conversations import ConversationStore
from tests.support.browser import browser_only, settle
from ui.chat.history import picture_part, text_part, thoughts_part
from ui.chat.safe_html import DEEPEST, MOST_BRACKETS, MOST_LETTERS, render_words
from ui.chat.welcome import welcome_html
from ui.parts.content_policy import write_policy

# Texts for which a parser that is not CommonMark's takes words for code, or code for words; HERE is an address that must not be asked.
HOSTILE = [
    "![a](HERE)",
    "```\n![a](HERE)\n``",
    "`` ` ![a](HERE) `",
    "\\`` ![a](HERE) ``",
    "a ` b\n\nc ` ![a](HERE) `",
    "- `\n\n  ![a](HERE)\n- `",
    "> ```\n![a](HERE)\n```",
    "1. ```\n   x\n   ```\n   ![a](HERE)",
    "- ~~~ `\n  x\n- ~~~\n\n![a](HERE)\n`",
    "\t`\n\n![a](HERE)\n\n\t`",
    "```` ```\n![a](HERE)\n```",
    "```\n````\n```\n![a](HERE)\n````\n",
    "``` a`b\n![a](HERE)\n```",
    "[![a](HERE)](HERE)",
    "![a][r] ![r]\n\n[r]: HERE",
    "![a](<HERE> 'x')",
    '![a\n](HERE\n"x")',
    "&#33;[a](HERE) &lt;img src=HERE&gt;",
    "words &#10;&#10; ![a](HERE)",
    '[a](http://x.invalid "t&#10;&#10;![a](HERE)")',
    "a\r\r![a](HERE)\r",
    "<img src=HERE>",
    "<p>\n\n![a](HERE)\n\n</p>",
    "<script>`</script>![a](HERE)`",
    "<!-- ` --> ![a](HERE) `",
    "<div style='background:url(HERE)'>x</div>",
    "<style>@import url(HERE); body { background: url(HERE) }</style>",
    "<link rel=stylesheet href=HERE><link rel=dns-prefetch href=HERE>",
    "<video src=HERE autoplay></video><audio src=HERE autoplay></audio>",
    "<svg><image href=HERE /><style>@import 'HERE'</style></svg>",
    "<picture><source srcset=HERE><img></picture><input type=image src=HERE>",
    "<table background=HERE><tr><td>x</table><body background=HERE>",
    "<iframe src=HERE></iframe><object data=HERE></object><embed src=HERE>",
    '```mermaid\ngraph TD\nA@{ img: "HERE", label: "x" }\nB["<img src=HERE>"]\n```',
    '````mermaid\n%%{init: {"themeCSS": "@import url(HERE)"}}%%\ngraph TD\n````',
    "$$\\includegraphics{HERE}$$ \\(\\htmlStyle{background:url(HERE)}{x}\\)",
    "| ![a](HERE) | <img src=HERE> |\n|---|---|\n| `| ![a](HERE) |` | x |",
    "~~![a](HERE)~~ **![a](HERE)** [x](HERE)",
    "<HERE> HERE",
    '{"alt_text": "x"} ![a]( HERE ) !\\[a](HERE) \\![a](HERE)',
]
TAGS = {
    *("p", "div", "br", "a", "strong", "em", "s", "code", "ul", "ol", "li", "blockquote", "hr", "h1", "h2", "h3", "h4", "h5", "h6"),
    *("table", "thead", "tbody", "tr", "th", "td", "input"),
}
ATTRIBUTES = {"href", "target", "rel", "title", "start", "align", "class", "type", "checked", "disabled"}
FENCE = re.compile(r"(?:\A|\n)\n?(`{4,})[^`\n]*\n(?:.*?\n)?\1\n(?:\n|\Z)", re.DOTALL)


class Tags(HTMLParser):
    """The names of tags and attributes in some HTML, and its words."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags, self.names, self.words, self.addresses = set(), set(), "", set()
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        self.addresses |= {value for name, value in attrs if name == "href"}

    def handle_data(self, data: str) -> None:
        self.words += data


def check(words: str) -> None:
    rendered = render_words(words)
    bare = FENCE.sub("\n\n", rendered + "\n")
    seen = Tags(bare)
    assert seen.tags <= TAGS and seen.names <= ATTRIBUTES, rendered
    assert all(re.match("(?i)https?:|mailto:", each) for each in seen.addresses), rendered
    for block in filter(None, re.split(r"\n\s*\n", bare.strip())):
        assert re.match(r"</?(p|div|ul|ol|li|h[1-6]|table|blockquote|hr)\b", block) and "\n" not in block, rendered
    assert not set(re.sub(r"<[^>]*>|&#\d+;", "", bare)) & set("<>&![]`*_\\~|"), "nothing is left that Markdown could read"


@pytest.mark.parametrize("words", HOSTILE)
def test_no_words_become_markup_that_fetches(words: str) -> None:
    check(words.replace("HERE", "http://127.0.0.1:9/a.png"))


PIECES = st.sampled_from(
    [*HOSTILE, *"`~<>![]()\\&*_|#$", "``", "```", "````", "\n", "\n\n", "\r", "    ", "\t", "> ", "- ", "1. ", "&#10;", "\0"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=12))
def test_nor_do_any_of_them_together(pieces: list[str]) -> None:
    check("".join(pieces).replace("HERE", "https://x.invalid/a.png"))


def test_words_look_as_they_did() -> None:
    shown = render_words(
        "# Top\n\nSome **bold** *words* ~~not~~ `a < b`\nnext http://a.de/?x=1&y=2, README.md\n\n3. three\n4. four\n   - below"
    )
    assert shown.split("\n\n") == [
        "<h1>Top</h1>",
        "<p>Some <strong>bold</strong> <em>words</em> <s>not</s> <code>a &#60; b</code><br>next "
        '<a href="http://a.de/?x=1&#38;y=2" target="&#95;blank" rel="noopener noreferrer">http://a.de/?x=1&#38;y=2</a>, README.md</p>',
        '<ol start="3"><li><div>three</div></li><li><div>four</div><ul><li><div>below</div></li></ul></li></ol>',
    ]
    assert render_words("| a | b |\n|---|--:|\n| 1 | 2 |").startswith('<table><thead><tr><th>a</th><th align="right">b</th></tr></thead>')
    assert render_words("- [x] done").count('type="checkbox"') == 1
    assert render_words("```python\nprint('`<b>')\n\n```") == "````python\nprint('`<b>')\n````"
    assert render_words("~~~\n`````\n~~~") == "``````\n`````\n``````"
    assert render_words("[a](b.md) [c](javascript:d) [e](//f) [g](mailto:h@i.de)").count("<a ") == 1
    assert Tags(render_words("![a *b*](https://x.invalid/1.png)")).words == "![a b](https://x.invalid/1.png)"
    assert text_part("  \n ") == {"type": "text", "text": ""}


@pytest.mark.parametrize(
    "words", [">" * (2 * DEEPEST) + " deep", "[" * (MOST_BRACKETS + 1) + "deep", "deep " * MOST_LETTERS], ids=["quotes", "brackets", "long"]
)
def test_what_is_not_parsed_is_shown_as_it_is(words: str) -> None:
    assert Tags(render_words(words)).words.strip() == words.strip()


def test_our_own_html_ends_at_no_blank_line() -> None:
    """After a blank line the chat reads Markdown again, such as that of a picture's description in an imported conversation."""
    odd = "a\n\n![b](http://x.invalid)\r\r<i>\x0b\x85\u2028"
    about = {"title": odd, "summary": odd, "limits": odd}
    for shown in (picture_part("a.png", odd)["text"], thoughts_part(odd)["text"], welcome_html(about)):
        assert len(shown.splitlines()) == 1 and "<i>" not in shown


@pytest.fixture
def trap() -> Iterator[tuple[str, list[bytes]]]:
    """An address on this machine, and what was asked of it."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def listen() -> None:
            while True:
                try:
                    came, _ = listening.accept()
                except OSError:
                    return
                with came:
                    came.settimeout(1)
                    asked.append(came.recv(1000))

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/a.png", asked
        listening.shutdown(socket.SHUT_RDWR)


def hostile_conversation(home, address: str) -> str:
    """Saved as an import saves it; returns its id."""
    store, said = ConversationStore(home / "conversations"), Conversation(title=f"![a]({address})")
    picture = Image(PILImage.new("RGB", (8, 8), "red"), alt=f"x\n\n![a]({address})\n\n<img src={address}>")
    for words in HOSTILE:
        said = said.say("user", picture, words.replace("HERE", address)).say("assistant", words.replace("HERE", address), picture)
    kept = store.save(said)
    store.save_note(kept.id, kept.head, {"line": f"a\n\n![a]({address})", "thoughts": f"a\r\r![a]({address})", "seed": 1, "options": {}})
    return kept.id


@browser_only
@pytest.mark.parametrize("bypass_csp", [True, False])
def test_a_browser_that_shows_a_hostile_conversation_asks_nobody(fast, tab, trap, bypass_csp: bool) -> None:
    """Without the policy by the words alone; with it there is nothing that it would have to forbid."""
    address, asked = trap
    id = hostile_conversation(fast.home, address)
    page = tab(fast.address, bypass_csp=bypass_csp)
    requests, said = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"{fast.address}?c={id}")
    expect(page.locator("#talk .bot .chat-actions .i-retry")).to_have_count(len(HOSTILE))
    for name in ("Studio", "Library", "Models", "Data", "Fine-tune", "Arena", "Chat"):
        page.click(f"#tabs button[role=tab]:has-text('{name}')")
    settle(page)
    assert page.evaluate("fetch('config').then(answer => answer.ok)"), "what was asked for before that is under way or done"
    assert len(requests) > 20 and [url for url in requests if not url.startswith((fast.address, "data:", "blob:"))] == []
    assert [words for words in said if "Content Security Policy" in words or "Content-Security-Policy" in words] == []
    assert not asked
    expect(page.locator("#talk .bot a[href='" + address + "']").first).to_be_visible()


@browser_only
def test_lists_code_and_tables_look_right(fast, tab) -> None:
    words = "1. One:\n   ```python\n   x = 1\n\n   y = 2\n   ```\n   and *so* on\n2. Two\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n- [x] done"
    kept = ConversationStore(fast.home / "conversations").save(Conversation(title="t").say("user", "hi").say("assistant", words))
    page = tab(f"{fast.address}?c={kept.id}")
    code = page.locator("#talk .bot ol > li:first-child .code_wrap")
    expect(code.locator("code.language-python")).to_have_text("x = 1\n\ny = 2\n")
    expect(code.locator(".token.number")).to_have_count(2)
    expect(code.locator(".copy_code_button")).to_have_count(1)
    expect(page.locator("#talk .bot ol > li")).to_have_count(2)
    expect(page.locator("#talk .bot ol > li").first).to_contain_text("and so on")
    expect(page.locator("#talk .bot td")).to_have_text(["1", "2"])
    expect(page.locator("#talk .bot td").last).to_have_attribute("align", "right")
    expect(page.locator("#talk .bot input[type=checkbox]")).to_be_checked()


@browser_only
def test_the_policy_forbids_what_the_page_would_never_do(fast, tab, trap) -> None:
    address, asked = trap
    page = tab(fast.address)
    page.evaluate(
        """address => {
            window.forbidden = []
            document.addEventListener('securitypolicyviolation', event => window.forbidden.push(event.effectiveDirective))
            const put = (tag, values) => document.body.append(Object.assign(document.createElement(tag), values))
            put('img', { src: address })
            put('video', { src: address, autoplay: true })
            put('script', { src: address })
            put('script', { textContent: 'window.ran = true' })
            put('link', { rel: 'stylesheet', href: address })
            put('iframe', { src: address })
            put('div', { innerHTML: '<b style="background: url(' + address + ')">x</b><img src=x onerror="window.ran = true">' })
            fetch(address).catch(() => 0)
        }""",
        address,
    )
    wanted = {"img-src", "media-src", "script-src-elem", "style-src-elem", "frame-src", "connect-src", "script-src-attr"}
    page.wait_for_function("wanted => wanted.every(each => window.forbidden.includes(each))", arg=sorted(wanted))
    assert not asked and page.evaluate("window.ran") is None


def headers_of(address: str) -> dict[str, str]:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return dict(answer.headers)
    except urllib.error.HTTPError as error:
        return dict(error.headers)


def test_every_response_carries_the_policy(fast) -> None:
    for path in ("", "config", "v1/models", "v1/nothing", "gradio_api/file=/nowhere.png", "theme.css", "static/img/logo.svg", "nothing"):
        headers = headers_of(fast.address + path)
        assert "default-src 'self'" in headers["content-security-policy"], path
        assert headers["x-dns-prefetch-control"] == "off" and headers["referrer-policy"] == "same-origin"
    policy = headers_of(fast.address)["content-security-policy"]
    assert policy.count("'sha256-") >= 2 and "http" not in policy and "'unsafe-inline'" not in policy.split("style-src")[0]


def test_the_scripts_of_a_page_are_named_by_their_hashes() -> None:
    page = b'<script>one</script><script src="a.js"></script>\n<SCRIPT type="module">\ntwo</SCRIPT><b>three</b>'
    assert write_policy(page).count("'sha256-") == 2
    one = re.search(r"'sha256-([^']+)'", write_policy(b"<script>alert(1)</script>"))
    assert one and one[1] == "bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI="
