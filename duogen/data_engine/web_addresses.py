"""Compare addresses of the web: one key for all spellings of an address."""

from __future__ import annotations

from urllib.parse import quote, unquote, urljoin, urlsplit


def address_key(url: str) -> str:
    """What spellings of an address share: without scheme, fragment and default port, the query in order, escapes in one form."""
    try:
        split = urlsplit(url.strip())
        if not split.netloc:
            return _plain(url.strip().partition("#")[0])
        host = split.netloc.lower().rpartition("@")[2].removesuffix(":80").removesuffix(":443")
    except ValueError:  # a host in brackets that is none
        return url.strip()
    query = "&".join(sorted(_plain(each) for each in split.query.split("&") if each))
    return f"{host}{_plain(split.path) or '/'}{'?' + query if query else ''}"


def _plain(text: str) -> str:
    return quote(unquote(text, errors="surrogateescape"), safe="/:=;,@()!*'+$~", errors="surrogateescape")


def join_address(base: str, name: str) -> str:
    """The address of a link on a page; the link as it is where the two make none."""
    try:
        return urljoin(base, name.strip())
    except ValueError:
        return name
