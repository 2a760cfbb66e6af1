"""What pages are written in: Markdown with its dialects, HTML as browsers save it. Every picture stays in its place, or is named."""

from __future__ import annotations

import base64
import io
import random
from pathlib import Path

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from duogen.data_engine.align import align_pictures, word_overlap_scorer
from duogen.data_engine.dialogue import find_violation, make_turns
from duogen.data_engine.front_matter import split_front_matter
from duogen.data_engine.html import read_html
from duogen.data_engine.markdown import parse_blocks, read_markdown
from duogen.data_engine.options import DataOptions
from duogen.data_engine.pages import Place, read_page
from duogen.data_engine.picture_addresses import decode_data_url, parse_srcset, plain_address
from duogen.data_engine.rewrite import clean_page, split_sentences, tidy_text
from duogen.data_engine.run import Work, make_dataset, prepare_page
from duogen.data_engine.sample import Block, Dropped, Picture, Sample, Source, Words
from duogen.data_engine.site_files import find_embedded, find_picture
from duogen.data_engine.steps import Steps

BEFORE = "Take the lid off the old tin and wash it in warm water, then let it stand upside down until the inside is dry."
AFTER = "Fill the tin with earth up to a finger below its rim, and press two beans into it, one at each side of the middle."


def photo(seed: int = 1, form: str = "JPEG") -> bytes:
    small = numpy.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=numpy.uint8)
    out = io.BytesIO()
    PILImage.fromarray(small).resize((200, 200), PILImage.Resampling.BICUBIC).save(out, form)
    return out.getvalue()


def data_url(data: bytes, kind: str = "jpeg") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def find(name: str) -> Path | None:
    """The file of an address in a site that has every picture but the ones called "gone"."""
    return None if "gone" in name or ":" in name else Path("/site", name.lstrip("/"))


def blocks_of(text: str) -> list[Block]:
    return parse_blocks(text, find)


def shown(blocks: list[Block]) -> list[tuple[str, str]]:
    """The pictures that were found: their file below the site, and what is said of them."""
    pictures = [block for block in blocks if isinstance(block, Picture) and block.file]
    return [(str(each.file.relative_to("/site")), each.caption or each.alt or each.title) for each in pictures if each.file]


def list_words(blocks: list[Block]) -> list[str]:
    return [block.mark + block.text for block in blocks if isinstance(block, Words)]


def unread(blocks: list[Block]) -> list[str]:
    return [f"{block.name}: {block.unread}" for block in blocks if isinstance(block, Picture) and block.unread]


@pytest.mark.parametrize(
    ("written", "file", "words"),
    [
        # Hugo
        ('{{< figure src="tin.jpg" alt="a tin" caption="The tin, washed" >}}', "tin.jpg", "The tin, washed"),
        ('{{% figure src="/tin.jpg" title="A tin" %}}', "tin.jpg", "A tin"),
        ('{{< figure\n  src="tin.jpg"\n  alt="a tin"\n>}}', "tin.jpg", "a tin"),
        ('{{< picture-of-mine "tin.jpg" "Two tins" >}}', "tin.jpg", "Two tins"),
        ('{{< figure src="tin.jpg" caption="say \\"tin\\"" link="big.jpg" >}}', "tin.jpg", 'say "tin"'),
        # Jekyll, Octopress, Hexo
        ("![a tin]({{ site.baseurl }}/img/tin.jpg)", "img/tin.jpg", "a tin"),
        ("![a tin]({{site.url}}/img/tin.jpg 'washed')", "img/tin.jpg", "a tin"),
        ('![a tin]({{ "/img/tin.jpg" | absolute_url }})', "img/tin.jpg", "a tin"),
        ('![a tin]({{ "tin.jpg" | prepend: "/img/" | prepend: site.baseurl }})', "img/tin.jpg", "a tin"),
        ("![a tin]({% link img/tin.jpg %})", "img/tin.jpg", "a tin"),
        ('{% include figure.html image="/img/tin.jpg" caption="A tin" %}', "img/tin.jpg", "A tin"),
        ("{% img left /img/tin.jpg 300 200 'My title' 'a tin' %}", "img/tin.jpg", "a tin"),
        ("{% asset_img tin.jpg A dry tin %}", "tin.jpg", "A dry tin"),
        # Zola, WordPress
        ('{{ figure(src="tin.jpg", caption="A tin") }}', "tin.jpg", "A tin"),
        ('[caption id="a_1" width="300"]![a tin](tin.jpg)[/caption]', "tin.jpg", "a tin"),
        # MDX and Docusaurus
        ('<Image src="tin.jpg" alt="a tin" />', "tin.jpg", "a tin"),
        ("import tin from './tin.jpg';\n\n<Zoom src={tin} alt=\"a tin\" />", "tin.jpg", "a tin"),
        ('<img src={require("./tin.jpg").default} alt="a tin" />', "tin.jpg", "a tin"),
        ('<img src={useBaseUrl("/img/tin.jpg")} alt="a tin" />', "img/tin.jpg", "a tin"),
        ("![a tin](@site/static/tin.jpg)", "static/tin.jpg", "a tin"),
        # MyST
        ("```{figure} tin.jpg\n:alt: a tin\n\nThe *washed* tin\n```", "tin.jpg", "The washed tin"),
        (":::{figure} tin.jpg\nThe tin\n:::", "tin.jpg", "The tin"),
        ("```{image} tin.jpg\n---\nalt: a tin\n---\n```", "tin.jpg", "a tin"),
        ("::::{note}\n:::{figure} tin.jpg\nThe tin\n:::\n::::", "tin.jpg", "The tin"),
        # notes
        ("![[tin.jpg]]", "tin.jpg", ""),
        ("![[tin.jpg|300x200]]", "tin.jpg", ""),
        ("![[tin.jpg|a tin|300]]", "tin.jpg", "a tin"),
        ("![a tin|300](tin.jpg)", "tin.jpg", "a tin"),
        ("![a tin](my pictures/tin (2).jpg)", "my pictures/tin (2).jpg", "a tin"),
        ("![a tin](tin.jpg =300x)", "tin.jpg", "a tin"),
        ("![a tin](tin.jpg){: width='300' .center }\n{: .note}", "tin.jpg", "a tin"),
        ("![a tin](tin.jpg){width=50%}", "tin.jpg", "a tin"),
        # HTML in Markdown
        ("<img src=tin.jpg alt='a tin' width=300>", "tin.jpg", "a tin"),
        ("<figure>\n<img src=tin.jpg>\n<figcaption>The <b>tin</b></figcaption>\n</figure>", "tin.jpg", "The tin"),
        ("<figure>\n\n![](tin.jpg)\n\n<figcaption>The tin</figcaption>\n</figure>", "tin.jpg", "The tin"),
        ("<p align=center>\n![a tin](tin.jpg)\n</p>", "tin.jpg", "a tin"),
        ('<picture>\n<source srcset="gone.webp">\n<img src="tin.jpg" alt="a tin">\n</picture>', "tin.jpg", "a tin"),
        ('<img src="{{ site.baseurl }}/tin.jpg" alt="a tin">', "tin.jpg", "a tin"),
    ],
)
def test_a_picture_in_any_dialect_of_markdown_stays_in_its_place(written: str, file: str, words: str):
    blocks = blocks_of(f"{BEFORE}\n\n{written}\n\n{AFTER}\n")
    assert shown(blocks) == [(file, words)] and list_words(blocks) == [BEFORE, AFTER]
    assert isinstance(blocks[1], Picture)


@pytest.mark.parametrize(
    ("written", "words", "named"),
    [
        ('{{< gallery dir="/img/tins" >}}', [], '{{< gallery dir="/img/tins" >}}: a template that is not understood'),
        ("Press {{< key enter >}} twice.", ["Press  twice."], "{{< key enter >}}: a template that is not understood"),
        ("{% include video.html id=page.video %}", [], "{% include video.html id=page.video %}: a template that is not understood"),
        ("Written by {{ page.author }} here.", ["Written by  here."], "{{ page.author }}: a template that is not understood"),
        ("![a tin]({{ page.image }})", [], "{{ page.image }}: an address that is not understood"),
        ('[gallery ids="1,2"]', [], '[gallery ids="1,2"]: a template that is not understood'),
        ("<Player id={4} />", [], "<Player id={4} />: a template that is not understood"),
        ("```{bibliography} all.bib\n```", [], "{bibliography} all.bib: a directive that is not understood"),
        ("![[Another note]]", [], "![[Another note]]: an embedded file that is no picture"),
    ],
)
def test_what_is_not_understood_is_named_and_never_said(written: str, words: list[str], named: str):
    blocks = blocks_of(f"{written}\n\n![a tin](tin.jpg)\n")
    assert list_words(blocks) == words and unread(blocks) == [named]
    assert shown(blocks) == [("tin.jpg", "a tin")]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{{< note >}}\nWash it.\n{{< /note >}}", ["Wash it."]),
        ("<Tabs>\n<Tab value='a'>\n\nWash it.\n\n</Tab>\n</Tabs>", ["Wash it."]),
        ("{% if tin %}Wash{% endif %} it.{% comment %}never ![x](y.jpg){% endcomment %}", ["Wash it."]),
        ('{% highlight python %}\nx = "{{ y }}"\n{% endhighlight %}', ['x = "{{ y }}"']),
        ("Write `{{< figure >}}` or `![[tin.jpg]]`.", ["Write `{{< figure >}}` or `![[tin.jpg]]`."]),
        ("```\n{{< figure >}}\n```", ["{{< figure >}}"]),
        ('{{</* figure src="tin.jpg" */>}}Wash it.', ["Wash it."]),
        ("A [gallery], a [video](x) and [caption] stay.", ["A [gallery], a video and [caption] stay."]),
        ("A set {x=1} and {:.2f} stay.", ["A set {x=1} and {:.2f} stay."]),
        ("## Tins {#tins .big}\n\nWash {.x}\n", ["## Tins", "Wash"]),
        ("See [the tins]({{ site.baseurl }}/tins) and [[Garden/Bean|the bean]] or [[Pots#Clay]].", ["See the tins and the bean or Pots."]),
        ("import Tin from './Tin';\n\nexport const a = 1;\n\nWash it. {/* later */}", ["Wash it."]),
        ("::: {.callout-note}\nWash it.\n:::", ["Wash it."]),
        ("> [!TIP]\n> Wash it.", ["> Wash it."]),
        ("(the-tin)=\n# Tins\n\nSee {ref}`the tin <the-tin>`.", ["# Tins", "See the tin."]),
        ("<details><summary>Why</summary>\nSince it is <b>old</b>.\n</details>", ["Why", "Since it is **old**."]),
        ("one<br>two<br/>three", ["one\ntwo\nthree"]),
        ("1. Wash.<br>2. Dry.<br>3. Fill.", ["1. Wash.\n2. Dry.\n3. Fill."]),
        ("Do so:<br>- wash<br>- dry", ["Do so:", "- wash", "- dry"]),
        ("1. a\n   - b\n   - c\n\n   d\n2. e", ["1. a", "   - b", "   - c", "   d", "2. e"]),
        ("7. a\n8. b", ["7. a", "8. b"]),
        ("0. a\n1. b", ["0. a", "1. b"]),
        ("1. a ![](tin.jpg) b\n2. c", ["1. a", "b", "2. c"]),
        ("| a | b |\n|---|---|\n| ![](tin.jpg) | c |", ["- a | b", "- c"]),
    ],
)
def test_the_words_of_dialects_are_read_without_their_signs(written: str, words: list[str]):
    assert list_words(blocks_of(written)) == words


def test_a_note_finds_its_pictures_anywhere_in_its_vault(tmp_path: Path):
    files = ("attachments/tin 1.jpg", "garden/pots/tin 2.jpg", "old/tin 2.jpg", "garden/my pots/Tin 3.JPG", "garden/K\u00fcrbis.jpg")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(photo())
    note = tmp_path / "garden" / "note.md"
    found = {name: find_embedded(name, note, tmp_path) for name in ("tin 1.jpg", "tin 2.jpg", "tin 3.jpg", "my pots/tin 3.jpg", "gone.jpg")}
    below = {name: str(file.relative_to(tmp_path)) if file else None for name, file in found.items()}
    assert below == {
        "tin 1.jpg": files[0], "tin 2.jpg": files[1], "tin 3.jpg": files[3], "my pots/tin 3.jpg": files[3], "gone.jpg": None,
    }  # fmt: skip
    assert find_picture("tin 1.jpg", note, tmp_path) is None, "only a wikilink is looked for elsewhere"
    assert find_picture("pots\\tin%202.jpg", note, tmp_path) == tmp_path / files[1]
    assert find_picture(".\\pots\\tin 2.jpg", note, tmp_path) == tmp_path / files[1]
    assert find_picture("Ku\u0308rbis.jpg", note, tmp_path) == tmp_path / files[4], "the same letters in another form"
    assert find_picture("x" * 5000, note, tmp_path) is None and find_picture("http://[x", note, tmp_path) is None
    assert find_picture("a\0b.jpg", note, tmp_path) is None


@pytest.mark.parametrize(
    ("front", "title"),
    [
        ("---\ntitle: Tin garden\ndate: 2024-13-45\n---\n", "Tin garden"),
        ("---\ntitle: 2024-13-45\n---\n", "2024-13-45"),
        ("---\ndate: 0000-00-00\ntitle: !!python/object:os.system x\n---\n", "x"),
        ("---\n? [a, b]\n: c\ntitle: Tin garden\n1: 2\n---\n", "Tin garden"),
        ("---\na: &a [x, x]\nb: &b [*a, *a]\ntitle: Tin garden\ntags: *b\n---\n", "Tin garden"),
        ("---\ntitle: Tin: a garden\n---\n", "Tin: a garden"),
        ("---\ntitle: Tin garden\nbad: [\n---\n", "Tin garden"),
        ("+++\ntitle = 'Tin garden'\n+++\n", "Tin garden"),
        ('{"title": "Tin garden"}\n', "Tin garden"),
        ("---\ntitle: " + "[" * 5000 + "\n---\n", ""),
        ("---\n" + "- " * 5000 + "x\n---\n", ""),
    ],
)
def test_front_matter_never_costs_the_page(front: str, title: str):
    found, body = split_front_matter(front + "\n" + BEFORE)
    assert found.get("title", [""])[0] == title
    assert body.strip() == BEFORE or body.startswith("---\n- ")


def test_a_page_without_front_matter_begins_with_its_rule():
    text = f"---\n{BEFORE}\n\n---\n{AFTER}"
    assert split_front_matter(text) == ({}, text)


def test_a_page_is_named_by_its_title_its_heading_or_its_file(tmp_path: Path):
    (tmp_path / "tin.jpg").write_bytes(photo())
    pages = {
        "a.md": ("---\ntitle: Tins\n---\n", "Tins"), "b.md": ("# Old tins\n\n", "Old tins"), "2024-01-02-bean-tins.md": ("", "bean tins"),
        "x.md": ("", ""), "c.md": (f"{BEFORE}\n\n## Tools\n\n", "Tools"),
    }  # fmt: skip
    for name, (above, _) in pages.items():
        (tmp_path / name).write_text(f"{above}{BEFORE}\n\n![a tin](tin.jpg)\n", encoding="utf-8")
    assert {name: read_markdown(tmp_path / name, tmp_path)[0].title for name in pages} == {
        name: title for name, (_, title) in pages.items()
    }
    nameless = read_page(Place("markdown", "x.md"), tmp_path)
    assert isinstance(nameless, Sample)
    _, turns = Steps(DataOptions()).make_dialogue(nameless)
    assert turns == Dropped("no title, heading or file name to ask about")


def page_of(body: str, head: str = "") -> list[Block]:
    """The blocks of a saved page beside which every picture lies but the ones called "gone", without its first and last words."""
    page = f"<html><head><title>Tins</title>{head}</head><body><article><p>{BEFORE}</p>{body}<p>{AFTER}</p></article></body></html>"
    _, blocks = read_html(
        page, "tins.html", lambda name: (None if "gone" in name or ":" in name else Path("/site", name.lstrip("/")), None)
    )
    assert list_words(blocks)[0] == BEFORE and list_words(blocks)[-1] == AFTER
    return blocks[1:-1]


PLACEHOLDER = "data:image/gif;base64,R0lGODlhAQABAAAAACw="


@pytest.mark.parametrize(
    "written",
    [
        *(
            f'<img src="{PLACEHOLDER}" {name}="tin.jpg">'
            for name in ("data-src", "data-lazy", "data-original", "data-full-url", "nitro-lazy-src")
        ),
        *(
            f'<img src="spinner/loading.gif" {name}="tin.jpg 800w, gone.jpg 400w">'
            for name in ("data-srcset", "data-lazy-srcset", "srcset")
        ),
        '<img src="gone.jpg" srcset="gone.jpg, tin.jpg 2x, gone3.jpg 100w 50h">',
        '<img src="tin.jpg" srcset="https://c.org/tin-1200.jpg 1200w, https://c.org/tin-300.jpg 300w">',
        '<picture><source srcset="tin.jpg 800w"><img></picture>',
        f'<picture><source data-srcset="tin.jpg"><img src="{PLACEHOLDER}"></picture>',
        '<div class="lazy"></div><noscript><img src="tin.jpg"></noscript>',
        f'<img src="{PLACEHOLDER}"><!-- lazy --><noscript><img src="tin.jpg"></noscript>',
        '<span><img data-src="tin.jpg"></span><noscript><img src="tin.jpg"></noscript>',
        '<noscript>&lt;img src="tin.jpg"&gt;</noscript>',
        '<img src="tin.jpg"><noscript><img src="https://count.org/tr?id=1" width=1 height=1></noscript>',
        '<amp-img src="tin.jpg" width=300><noscript><img src="gone.jpg"></noscript></amp-img>',
        '<svg viewBox="0 0 9 9"><image xlink:href="tin.jpg" width="9"/></svg>',
        "<div role=img style='background-image:url(\"tin.jpg\");width:300px'></div>",
        '<image src="tin.jpg">',
        '<object data="tin.jpg" type="image/jpeg">a tin</object>',
        '<picture><source srcset="gone.webp"><source srcset="tin.jpg 2x"></picture>',
        "<figure><a href=big.jpg><img src=tin.jpg></a></figure>",
    ],
)
def test_a_picture_of_a_saved_page_is_found_however_it_is_written(written: str):
    blocks = page_of(written)
    assert [each for each, _ in shown(blocks)] == ["tin.jpg"] and len(blocks) == 1


def test_a_page_keeps_the_pictures_within_it(tmp_path: Path):
    jpeg, webp = photo(1), photo(2, "WEBP")
    style = f'<style>:root{{--sf-img-1:url("{data_url(photo(3), "jpeg")}")}}</style>'
    blocks = page_of(
        f'<img src="{data_url(jpeg)}" alt="a tin"><p>and</p><img src="{data_url(webp, "webp")}"><p>then</p>'
        '<img src="data:image/svg+xml,&lt;svg>&lt;/svg>" style="background-image:var(--sf-img-1)!important">',
        style,
    )
    pictures = [each for each in blocks if isinstance(each, Picture)]
    assert [each.data for each in pictures] == [jpeg, webp, photo(3)] and len({each.name for each in pictures}) == 3
    assert all(len(each.name) < 60 for each in pictures) and pictures[1].words() == ""
    (tmp_path / "tins.html").write_text(
        f"<title>Tins</title><article><p>{BEFORE}</p><img src={data_url(jpeg)}><p>{AFTER}</p>", encoding="utf-8"
    )
    out = tmp_path / "set"
    state = make_dataset(tmp_path / "tins.html", out, DataOptions(language="", min_words=10), log=lambda words: None)
    assert state.count_pages("kept") == 1 and next((out / "images").iterdir()).read_bytes() == jpeg


def test_a_figure_keeps_all_its_pictures_and_its_caption_once():
    two = page_of("<figure><img src=a.jpg><img src=b.jpg alt=B><figcaption>Both <i>tins</i></figcaption></figure>")
    assert shown(two) == [("a.jpg", "Both tins"), ("b.jpg", "B")] and list_words(two) == []
    lost = page_of("<figure><img src=gone.jpg><img src=b.jpg><figcaption>Both tins</figcaption></figure>")
    assert shown(lost) == [("b.jpg", "Both tins")]
    inner = "<figure><img src=a.jpg><figcaption>A</figcaption></figure><figure><img src=b.jpg></figure>"
    nested = page_of(f"<figure>{inner}<figcaption>All</figcaption></figure>")
    assert shown(nested) == [("a.jpg", "A"), ("b.jpg", "All")]
    without = page_of("<figure><table><tr><td>1</td><td>2</td></tr></table><figcaption>Sizes of tins</figcaption></figure>")
    assert list_words(without) == ["- 1 | 2", "Sizes of tins"]


def test_a_background_behind_words_is_named():
    blocks = page_of("<div style='background:#fff url(tin.jpg)'><p>Words that stand before it.</p></div>")
    assert list_words(blocks) == ["Words that stand before it."] and unread(blocks) == ["tin.jpg: a background behind words"]


def test_addresses_begin_at_the_base_of_a_page():
    assert shown(page_of("<img src=tin.jpg>", "<base href='pictures/'>")) == [("pictures/tin.jpg", "")]
    assert shown(page_of("<img src=tin.jpg>", "<base href='https://c.org/'>")) == [("tin.jpg", "")], "the file beside the page"
    assert unread(page_of("<img alt=nothing>")) == [": a picture without an address"]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (
            "<ol><li>a<ul><li>b<ol><li>c</li></ol></li><li>d</li></ul>e</li><li>f</li></ol>",
            ["1. a", "   - b", "      1. c", "   - d", "   e", "2. f"],
        ),
        ("<ol><li>a</li><ul><li>b</li></ul><li>c</li></ol>", ["1. a", "   - b", "2. c"]),
        ("<ol start=3><li>a</li><li><p>b</p><p>c</p></li></ol>", ["3. a", "4. b", "   c"]),
        ("<ol reversed><li>a</li><li>b</li><li>c</li></ol>", ["3. a", "2. b", "1. c"]),
        ("<ol><li value=4>a</li><li>b</li><li value=9>c</li></ol>", ["4. a", "5. b", "9. c"]),
        ("<ol start=2><li>a</li><li><img src=tin.jpg></li><li>b</li></ol>", ["2. a", "4. b"]),
        ("<p>1. a<br>2. b<br/>3. c</p>", ["1. a", "2. b", "3. c"]),
        ("<div>&bull; a<br>&bull; b</div>", ["- a", "- b"]),
        ("<p>two eggs<br>one cup</p>", ["two eggs\none cup"]),
        ("<dl><dt>Tin</dt><dd>a pot</dd></dl>", ["- Tin", "  a pot"]),
        (
            "<table><tr><td>a</td><td><img src=tin.jpg> b</td></tr><tr><td>c<ul><li>d</li></ul></td><td>e</td></tr></table>",
            ["- a | b", "- c d | e"],
        ),
        ("<table><tr><td><p>a</p><p>b</p></td></tr></table>", ["a", "b"]),
        ("<p>see<b> tins </b>now</p>", ["see **tins** now"]),
        ("loose words<p>and a paragraph</p>more loose words", ["loose words", "and a paragraph", "more loose words"]),
    ],
)
def test_lists_and_lines_of_html_stay_apart_and_keep_their_numbers(written: str, words: list[str]):
    assert list_words(page_of(written)) == words


def test_deep_pages_are_read_and_endless_ones_say_so(tmp_path: Path):
    assert shown(page_of("<div>" * 300 + "<p>deep</p><img src=tin.jpg>" + "</div>" * 300)) == [("tin.jpg", "")]
    assert shown(page_of("<font>" * 150 + "never closed <img src=tin.jpg>")) == [("tin.jpg", "")]
    (tmp_path / "deep.html").write_text("<article>" + "<div>" * 5000 + BEFORE, encoding="utf-8")
    dropped = read_page(Place("html", "deep.html"), tmp_path)
    assert isinstance(dropped, Dropped) and "nested too deeply" in dropped.reason


def test_a_picture_stays_within_its_item():
    parts = (Words("Wash", "item", "1. "), Picture("tin.jpg"), Words("gently", "item", "   "), Words("Dry", "item", "2. "))
    assert align_pictures(Sample("x", Source("x"), parts), word_overlap_scorer(""), 0.34).parts == parts


def test_numbers_within_a_paragraph_break_no_rule():
    assert split_sentences("1. Wash it. 2. Dry it well.") == ["1. Wash it.", "2. Dry it well."]
    assert tidy_text("hearty ,meaty and good") == "hearty, meaty and good"
    sample = Sample("x", Source("x", title="Tins"), (Words("Do: 1. Wash it. 2. Dry it. 3. Fill it."), Picture("tin.jpg"), Words("Done.")))
    clean = clean_page(sample)
    assert isinstance(clean, Sample)
    turns = make_turns(clean, random.Random(1))
    assert not isinstance(turns, Dropped) and find_violation(clean, turns) == ""


def test_the_report_names_every_picture_that_was_not_used(tmp_path: Path):
    (tmp_path / "site").mkdir()
    text = f'---\ntitle: Tins\n---\n{BEFORE}\n\n![a](gone.jpg)\n\n{{{{< gallery dir="tins" >}}}}\n\n{AFTER}\n'
    (tmp_path / "site" / "tins.md").write_text(text, encoding="utf-8")
    (tmp_path / "out" / "images").mkdir(parents=True)
    work = Work(tmp_path / "site", tmp_path / "out", DataOptions(language="", min_words=10))
    prepared = prepare_page(Place("markdown", "tins.md"), work)
    assert prepared.step == "useless pictures"
    assert "gone.jpg" in prepared.reason and '{{< gallery dir="tins" >}}' in prepared.reason and "not understood" in prepared.reason


def test_small_readers_of_addresses():
    assert parse_srcset("a.jpg, b.jpg 2x, c.jpg 300w, d.jpg 900w 2h") == ["d.jpg", "c.jpg", "b.jpg", "a.jpg"]
    assert parse_srcset("data:image/gif;base64,R0lG 1w, b.jpg 800w") == ["b.jpg", "data:image/gif;base64,R0lG"]
    assert decode_data_url("data:image/png;base64,aGVs bG8") == b"hello" and decode_data_url("data:,a%20b") == b"a b"
    assert decode_data_url("data:image/png;base64,*") is None and decode_data_url("data:x") is None
    assert plain_address("{{ page.picture }}") == "" and plain_address("%7B%7B site.baseurl %7D%7D/a.jpg") == "/a.jpg"


PIECES = (
    *("{{< figure src=", "{{", ">}}", "{% include a.jpg %}", "%}", "![[", "]]", "![a](", ")", "<img src=", "<figure>", "<figcaption>"),
    *("</figure>", "```{figure} a.jpg\n", "```", ":::", "{: .x}", "<Image src={", "/>", "| a | b |\n|--|--|\n", "1. ", "\n    - ", "> "),
    *(
        "---\n",
        "title: [",
        "\n\n",
        "<noscript>",
        "<ol reversed start=3><li>",
        "<br>",
        "<div style='background:url(",
        "<svg><image href=a.jpg>",
    ),
    *("</p>", "data:image/png;base64,AA", "a.jpg", "a 1x, b 2w", "words", "\u2028", "\x00", "[^1]", "[^1]: ", "!!! note\n    ", "srcset="),
    *("<!--", "<table><tr><td>", "</ol>"),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_no_markup_ends_a_run_or_leaks_a_mark(tmp_path: Path, pieces: list[str]):
    for name, page in (("a.md", "".join(pieces)), ("a.html", f"<html><body><p>{BEFORE}</p>{''.join(pieces)}</body></html>")):
        (tmp_path / name).write_text(page, encoding="utf-8")
        found = read_page(Place("html" if name == "a.html" else "markdown", name), tmp_path)
        assert isinstance(found, (Sample, Dropped))
        if isinstance(found, Sample):
            assert "duogenpicture" not in found.text() and "duogenitem" not in found.text()
