"""Find the files of pictures in the tree of a site or in a vault of notes."""

from __future__ import annotations

import os
import unicodedata
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from duogen.data_engine.picture_addresses import PICTURE_FILE

STATIC = ("static", "assets", "public", "source", "")  # folders that sites serve from their root


def find_picture(name: str, file: Path, root: Path) -> Path | None:
    """Find the file of an address in a page: beside the page or from the site's root, never outside `root`.

    A name without a folder is looked for in the whole of a vault of notes, where attachments lie in a folder of their own.
    """
    try:
        split = urlsplit(name)
        if split.scheme or split.netloc or not split.path:
            return None
        for path in dict.fromkeys(each for plain in (split.path, name) for each in _list_spellings(unquote(plain))):
            found = _find_file(path, file, root)
            if found is not None:
                return found
        return _find_in_vault(unquote(name), file, root) if _is_vault(root) else None
    except (OSError, ValueError):  # an address that no file can have: too long, or with letters that names do not hold
        return None


def _list_spellings(path: str) -> tuple[str, ...]:
    """A path as it is written, with the slashes of Windows turned, and in both forms of its letters."""
    turned = path.replace("\\", "/")
    if path.isascii():
        return (path, turned)
    return (path, turned, unicodedata.normalize("NFC", turned), unicodedata.normalize("NFD", turned))


def _find_file(path: str, file: Path, root: Path) -> Path | None:
    tries = [os.path.join(file.parent, path), os.path.join(file.with_suffix(""), path)]
    if path.startswith("/"):  # from the root of its site, which is `root` or a folder between
        above = [str(folder) for folder in file.parents if folder == root or root in folder.parents]
        tries = [os.path.join(folder, base, path.lstrip("/")) for folder in reversed(above) for base in STATIC]
    for each in tries:
        if os.path.isfile(each):  # most are not there, and the rest costs more
            found = Path(each).resolve()
            if found.is_relative_to(_resolve(root)):
                return found
    return None


@lru_cache(maxsize=4)
def _resolve(root: Path) -> Path:
    return root.resolve()


@lru_cache(maxsize=4)
def _is_vault(root: Path) -> bool:
    return any((folder / ".obsidian").is_dir() for folder in (root, *root.parents))


def _find_in_vault(path: str, file: Path, root: Path) -> Path | None:
    """Find a picture by its name anywhere below `root`. Of several, the one that shares the most folders with the page is taken."""
    folder, _, name = _fold_name(path.replace("\\", "/")).rpartition("/")
    found = [each for each in _list_vault(root).get(name, ()) if not folder or _fold_name(str(each.parent)).endswith(folder.strip("./"))]
    here = file.parent.parts

    def distance(each: Path) -> tuple[int, int, str]:
        shared = len(os.path.commonprefix([here, each.parent.parts]))
        return len(here) - shared, len(each.parts), str(each)

    return min(found, key=distance, default=None)


@lru_cache(maxsize=2)
def _list_vault(root: Path) -> dict[str, list[Path]]:
    """The pictures below a folder by name."""
    found: dict[str, list[Path]] = {}
    for folder, below, names in os.walk(root):
        below[:] = sorted(each for each in below if not each.startswith("."))
        for name in names:
            if PICTURE_FILE.match(name):
                found.setdefault(_fold_name(name), []).append(Path(folder, name))
    return found


def _fold_name(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def find_embedded(name: str, file: Path, root: Path) -> Path | None:
    """Find the file of a wikilink, which names a picture anywhere in the vault."""
    return find_picture(name, file, root) or find_picture("/" + name, file, root) or _find_in_vault(name, file, root)
