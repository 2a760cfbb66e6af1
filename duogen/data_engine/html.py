"""Read HTML as words and pictures in order. trafilatura finds the article; every picture keeps its place.

trafilatura drops many pictures, so each is replaced by a mark in the text and put back where the mark comes out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from lxml import etree  # ty: ignore[missing-module-member]: compiled, and without stubs
from lxml import html as lxml_html

from duogen.data_engine.flow import number_items, read_flow
from duogen.data_engine.picture_addresses import (
    ADDRESS_NOT_UNDERSTOOD,
    PICTURE_FILE,
    background_address,
    decode_data_url,
    list_addresses,
    plain_address,
    read_variables,
)
from duogen.data_engine.sample import Block, Picture, Source, Words

Load = Callable[[str], tuple[Path | None, bytes | None]]  # maps an address to (file, data), both None where it is not found
MARK = re.compile(r"\s*duogenpicture(\d+)mark\s*")
SHOWN = re.compile(r"img|image|amp-img|amp-anim|[a-z0-9]+(?:-[a-z0-9]+)*-(?:img|image)")
FIND_SHOWN = etree.XPath(  # what may match `SHOWN`
    "descendant-or-self::*[self::img or self::image or contains(name(), '-img') or contains(name(), '-image') or self::amp-anim]"
)
FIND_OTHERS = etree.XPath("//object[@data] | //embed[@src] | //input[@type='image']")
WRAPPERS = ("a", "picture", "source", "p", "div", "span", "center", "figure", "svg", "g")
INLINE = ("p", "span", "a", "b", "i", "em", "strong", "td", "h1", "h2", "h3", "h4")
LICENCE = re.compile(r"creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)/(\d\.\d)")
DEEPEST = 100  # elements within elements; what lies deeper is taken out of its containers
KEPT_DEEP = frozenset(("img", "image", "amp-img", "picture", "source", "p", "br", "ul", "ol", "li", "table", "tr", "td", "th", "figure",
                       "figcaption", "blockquote", "pre", "code", "h1", "h2", "h3", "h4", "h5", "h6", "noscript", "svg", "a"))  # fmt: skip
BEHIND_WORDS, WITHOUT_ADDRESS = "a background behind words", "a picture without an address"


def read_html(page: str, file: str, load: Load, url: str = "") -> tuple[Source, list[Block]]:
    """Read the article of a page.

    Raises:
        ValueError: it is no HTML, holds no article, or is nested too deeply.
    """
    import trafilatura  # a sixth of what a worker imports, and Markdown needs none of it

    tree = parse_page(page)
    licence = _find_licence(tree)
    pictures = mark_pictures(tree, _extend_load(load, tree))
    number_items(tree)
    heading = next((" ".join(each.text_content().split()) for each in tree.iter("h1", "h2")), "")
    found = trafilatura.bare_extraction(
        tree, url=url or None, include_comments=False, include_tables=True, include_formatting=True, favor_recall=True, with_metadata=True
    )
    if found is None or isinstance(found, dict) or found.body is None:
        raise ValueError("no article was found in it")
    source = Source(
        file, url or found.url or "", MARK.sub(" ", found.title or heading).strip(), found.author or "", licence or found.license or "",
        found.date or "", tuple(found.tags or ()),
    )  # fmt: skip
    return source, _put_pictures_back(read_flow(found.body), pictures)


def read_fragment(text: str, load: Load) -> list[Block]:
    """Read a piece of HTML within Markdown. Words of kind "caption" belong to the picture before them."""
    tree = parse_page(f"<html><body>{text}</body></html>")
    pictures = mark_pictures(tree, load)
    number_items(tree)
    return _put_pictures_back(read_flow(tree), pictures)


def parse_page(page: str) -> Any:
    """Parse a page. Text carries its own letters, whatever encoding it names.

    Raises:
        ValueError: it is empty, or nested too deeply.
    """
    data = page.encode("utf-8", "replace")
    if not data.strip():
        raise ValueError("the file is empty")
    for huge in (False, True):
        parser = lxml_html.HTMLParser(encoding="utf-8", huge_tree=huge)
        tree = lxml_html.document_fromstring(data, parser=parser)
        if not any("_PARSE_HUGE" in each.message for each in parser.error_log.filter_from_fatals()):
            _flatten(tree)
            return tree
    raise ValueError("its elements are nested too deeply")


def _flatten(tree: Any) -> None:
    """Take the elements that lie very deep out of their containers, so that no reader recurses too far."""
    if not tree.xpath(f"boolean({'/*' * DEEPEST})"):
        return
    depths = {tree: 0}
    for element in tree.iterdescendants():
        depths[element] = depths[element.getparent()] + 1
    for element, depth in depths.items():
        if depth > DEEPEST // 2 and isinstance(element.tag, str) and element.tag not in KEPT_DEEP:
            element.drop_tag()
    if tree.xpath(f"boolean({'/*' * 2 * DEEPEST})"):
        raise ValueError("its elements are nested too deeply")


def _find_licence(tree: Any) -> str:
    """The Creative Commons licence that the page links to, "" if none."""
    for link in tree.xpath("//a[contains(@href, 'creativecommons.org')] | //link[contains(@href, 'creativecommons.org')]"):
        said = LICENCE.search(link.get("href") or "")
        if said:
            return f"CC {said[1].upper()} {said[2]}"
    return ""


def _extend_load(load: Load, tree: Any) -> Load:
    """Look up addresses below the page's `<base>` first, and never fail on one that is none."""
    base = next((each.get("href").strip() for each in tree.iter("base") if each.get("href")), "")

    def find(name: str) -> tuple[Path | None, bytes | None]:
        for each in dict.fromkeys((urljoin(base, name), name) if base else (name,)):
            file, data = load(each)
            if file is not None or data is not None:
                return file, data
        return None, None

    return find


def mark_pictures(tree: Any, load: Load) -> list[Picture]:
    """Replace each picture by a mark, and take the captions out of the text."""
    variables = read_variables("\n".join(each.text or "" for each in tree.iter("style"))) if tree.xpath("boolean(//style)") else {}
    twins = _resolve_noscript(tree)
    _find_backgrounds(tree, variables)
    _close_images(tree)
    shown = [each for each in list_images(tree) if not any(SHOWN.fullmatch(above.tag) for above in each.iterancestors())]
    pictures = [_read_picture(each, load, variables, twins.get(each, [])) for each in shown]
    _take_captions(tree, shown, pictures)
    for number, image in enumerate(shown):
        _replace_picture(image, f"duogenpicture{number}mark")
    return pictures


def list_images(element: Any) -> list[Any]:
    """The element and those in it that show a picture, in order."""
    return [each for each in FIND_SHOWN(element) if SHOWN.fullmatch(each.tag)]


def _read_picture(image: Any, load: Load, variables: Mapping[str, str], twin: list[str]) -> Picture:
    """The picture at the first address that leads to one."""
    alt, title, caption = (" ".join((image.get(key) or "").split()) for key in ("alt", "title", "data-caption"))
    caption = " ".join(re.sub(r"<[^>]*>", " ", caption).split()) if "<" in caption else caption
    plain = Picture("", alt=alt or " ".join((image.get("aria-label") or "").split()), title=title, caption=caption)
    addresses = list_addresses(image, variables, twin)
    unread = image.get("data-duogen-unread") or ("" if addresses else WITHOUT_ADDRESS)
    for address in addresses:
        picture = load_picture(replace(plain, name=address), load)
        if not unread and (picture.file is not None or picture.data is not None):
            return picture
    return load_picture(replace(plain, name=addresses[0] if addresses else "", unread=unread), lambda name: (None, None))


def load_picture(picture: Picture, load: Load, imports: Mapping[str, str] | None = None) -> Picture:
    """Look up the address that stands in the name of a picture. The name of one within its address becomes short."""
    if picture.name.startswith("data:"):
        data = decode_data_url(picture.name)
        kind = re.match(r"data:[\w/+.-]*", picture.name)
        name = f"{kind[0] if kind else 'data:'};{hashlib.sha256(picture.name.encode('utf-8', 'replace')).hexdigest()[:16]}"
        return replace(picture, name=name, data=data or None)
    address = plain_address(picture.name, imports)
    if picture.name and not address:
        return replace(picture, unread=ADDRESS_NOT_UNDERSTOOD)
    file, data = load(address)
    return replace(picture, file=file, data=data)


def _resolve_noscript(tree: Any) -> dict[Any, list[str]]:
    """Remove every noscript. Its picture belongs to the lazy one beside it; one that stands alone takes its place.

    Returns:
        The addresses that such twins add, by element.
    """
    twins: dict[Any, list[str]] = {}
    for noscript in list(tree.iter("noscript")):
        inner = list_images(noscript)
        if not inner and "<img" in (noscript.text or ""):
            inner = list(parse_page(f"<html><body>{noscript.text}</body></html>").iter("img"))
        inner = [each for each in inner if not _is_hidden(each)]
        twin = _find_twin(noscript)
        if twin is not None or noscript.getparent() is None:
            twins.setdefault(twin, []).extend(address for each in inner for address in list_addresses(each, {}))
        else:
            for each in inner:
                each.tail = None
                noscript.addprevious(each)
        if noscript.getparent() is not None:
            noscript.drop_tree()
    return twins


def _close_images(tree: Any) -> None:
    """Make an image of what shows one otherwise, and take what follows out of elements that were never closed, so that it is kept."""
    for picture in tree.iter("picture"):
        if not list_images(picture):
            picture.append(etree.Element("img"))
    for other in FIND_OTHERS(tree):
        address = other.get("data") or other.get("src") or ""
        if PICTURE_FILE.match(address) and other.getparent() is not None:
            other.addprevious(etree.Element("img", src=address, alt=other.get("alt") or " ".join(other.text_content().split())))
            other.drop_tree()
    for image in list_images(tree):
        if image.tag != "img" and image.text_content().strip():
            image.addprevious(etree.Element("img", dict(image.attrib)))
            image.drop_tag()


def _is_hidden(image: Any) -> bool:
    """Whether a picture only counts visits."""
    small = any((image.get(side) or "").rstrip("px") in ("0", "1", "2") for side in ("width", "height"))
    return small or "display:none" in (image.get("style") or "").replace(" ", "")


def _find_twin(noscript: Any) -> Any:
    """The picture beside a noscript, with no words between, `None` if there is none."""
    above = next((each for each in noscript.iterancestors() if SHOWN.fullmatch(each.tag)), None)
    if above is not None:
        return above
    for beside in (_find_beside(noscript, True), _find_beside(noscript, False)):
        inner = [] if beside is None or beside.text_content().strip() else list_images(beside)
        if len(inner) == 1 and next(beside.iter("noscript"), None) is None:
            return inner[0]
    return None


def _find_beside(element: Any, before: bool) -> Any:
    """The element before or after another, with nothing but blanks and comments between, `None` if there is none."""
    beside = element
    while True:
        gap = beside.tail if not before else beside.getprevious().tail if beside.getprevious() is not None else ""
        beside = beside.getprevious() if before else beside.getnext()
        if beside is None or (gap or "").strip():
            return None
        if isinstance(beside.tag, str):
            return beside


def _find_backgrounds(tree: Any, variables: Mapping[str, str]) -> None:
    """Make a picture of every background: in place of an element without words, else as one that is named and not used."""
    for element in tree.xpath("//*[contains(@style, 'background') or contains(@style, 'BACKGROUND')]"):
        if SHOWN.fullmatch(element.tag) or element.tag in ("body", "html") or element.getparent() is None:
            continue
        address = background_address(element.get("style"), variables)
        if not address:
            continue
        image = etree.Element("img", src=address, alt=element.get("aria-label") or "", title=element.get("title") or "")
        if element.text_content().strip() or list_images(element):
            image.set("data-duogen-unread", BEHIND_WORDS)
            element.addprevious(image)
        else:
            image.tail = element.tail
            element.getparent().replace(element, image)


def _take_captions(tree: Any, images: list[Any], pictures: list[Picture]) -> None:
    """Give the caption of each figure to its first picture that is there and has none. Figures become plain containers."""
    places = {image: at for at, image in enumerate(images)}
    for figure in reversed(list(tree.iter("figure"))):  # the inner ones first
        captions = [each for each in figure.iter("figcaption") if next(each.iterancestors("figure")) is figure]
        caption = " ".join(" ".join(each.text_content().split()) for each in captions)
        inside = [places[image] for image in list_images(figure) if image in places]
        free = [at for at in inside if not pictures[at].caption]
        best = next((at for at in free if pictures[at].file is not None or pictures[at].data is not None), free[0] if free else None)
        if best is not None and caption:
            pictures[best] = replace(pictures[best], caption=caption)
            for each in captions:
                _drop_words(each)
        if inside:
            figure.tag = "div"
        else:
            for each in captions:
                each.tag = "p"


def _drop_words(element: Any) -> None:
    """Remove an element but the pictures in it, which have marks to come."""
    for each in list_images(element):
        each.tail = None
        element.addprevious(each)
    element.drop_tree()


def _replace_picture(image: Any, mark: str) -> None:
    """Put the mark into a paragraph of its own for a picture that stands alone, else into the running text."""
    whole = image
    while (above := whole.getparent()) is not None and above.tag in WRAPPERS and not _has_siblings(above, whole):
        whole = above
    above = whole.getparent()
    if above is None:
        return
    alone = whole is not image or above.tag not in INLINE
    element = etree.Element("p" if alone else "span")
    element.text = mark if alone else f" {mark} "
    element.tail = whole.tail
    above.replace(whole, element)


def _has_siblings(above: Any, whole: Any) -> bool:
    """Whether an element holds words or elements beside its child `whole`."""
    if (above.text or "").strip() or any((child.tail or "").strip() for child in above):
        return True
    return any(child is not whole and child.tag not in ("source", "br") for child in above)


def _put_pictures_back(blocks: list[Words], pictures: list[Picture]) -> list[Block]:
    """Cut the blocks at the marks of pictures and put the pictures in."""
    return [part for block in blocks for part in _split_at_pictures(block, pictures)]


def _split_at_pictures(block: Words, pictures: list[Picture]) -> list[Block]:
    parts: list[Block] = []
    for number, piece in enumerate(MARK.split(block.text)):
        if number % 2:
            if int(piece) < len(pictures):
                parts.append(pictures[int(piece)])
        elif piece.strip():
            parts.append(continue_block(replace(block, text=piece.strip()), parts))
    return parts


def continue_block(block: Words, before: list[Block]) -> Words:
    """A piece of a block. What goes on behind a picture has neither the number nor the indentation of its item."""
    goes_on = block.kind == "item" and any(isinstance(each, Words) for each in before)
    return Words(block.text) if goes_on else block
