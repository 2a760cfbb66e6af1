"""A folder of training data: every file in it, found once, and the file that a name in the data means."""

from __future__ import annotations

import os
import posixpath
import re
import stat
import unicodedata
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from duogen.dataset.format import PICTURES
from duogen.dataset.unpack import UNREADABLE
from duogen.dataset.words import Row, read_rows
from duogen.files import read_record
from duogen.text_decoding import clean_text

MOST_FILES = 1_000_000
LITTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "@eadir"}
ABOUT = re.compile(r"(readme|licen[cs]e|copying|notice|changelog|citation)([._-].*)?", re.I)  # files about a set, not of it
PICTURE_FOLDERS = ("images", "image", "pictures")
# Encodings of names in zips that do not say which: of China, Japan, Taiwan, Korea, western and eastern Europe.
NAME_ENCODINGS = ("utf-8", "gb18030", "cp932", "big5", "cp949", "cp1252", "cp437", "cp850", "cp1250", "cp866", "cp1251")
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
SHOWN_LETTERS = 120


def fold(name: str) -> str:
    """A name without the differences that people do not see: upper and lower case, composed and decomposed letters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def shorten(name: str) -> str:
    """A name as a message shows it: printable and not too long."""
    name = "".join(letter if letter.isprintable() else "\ufffd" for letter in clean_text(name))
    return name if len(name) <= SHOWN_LETTERS else f"{name[: SHOWN_LETTERS // 2]} ... {name[-SHOWN_LETTERS // 4 :]}"


class Folder:
    """All files below a folder.

    Links are followed, each folder once. A folder that holds one folder alone stands for that one.

    Attributes:
        root: the folder, or the only folder in it.
        files: the regular files, sorted, without those that are hidden, of the system, or about the set.
        passed: number of the files that are hidden, of the system, or about the set.
        strange: what is no file that can be read, by its name below `root`, and why.

    Raises:
        ValueError: it holds too many files, or is no folder that can be read.
    """

    def __init__(self, root: Path) -> None:
        self.passed = 0
        self.files: list[Path] = []
        self.strange: dict[str, str] = {}
        self._rows: dict[Path, tuple[Row, ...]] = {}
        self.root = self._descend(root)
        self.strange |= {shorten(name): str(why) for name, why in read_record(root / UNREADABLE).items()}
        self._walk()
        self.files.sort()

    def name(self, file: Path) -> str:
        """The name of a file below the folder, with slashes."""
        return file.relative_to(self.root).as_posix() if file.is_relative_to(self.root) else file.as_posix()

    def show(self, file: Path) -> str:
        """The same for a message."""
        return shorten(self.name(file))

    def select(self, *endings: str) -> list[Path]:
        """The files with one of these endings."""
        return [file for file in self.files if file.suffix.lower() in endings]

    def pictures(self) -> list[Path]:
        return self.select(*PICTURES)

    def rows(self, file: Path) -> tuple[Row, ...]:
        """The rows of a JSON or CSV file, read once."""
        if file not in self._rows:
            self._rows[file] = read_rows(file)
        return self._rows[file]

    def get(self, name: str) -> Path | None:
        """The file of a name below the folder; `None` where no file or several have it. Case and decomposed letters do not matter."""
        if name in self._exact:
            return self._exact[name]
        found = self._folded.get(fold(name), [])
        return found[0] if len(found) == 1 else None

    def list_namesakes(self, file: Path) -> list[Path]:
        """The pictures beside a file that have its name but for the ending."""
        name = posixpath.splitext(self.name(file))[0]
        found = [*self._folded.get(fold(name), []), *self._stems.get(fold(name), [])]
        return [each for each in found if each.suffix.lower() in PICTURES]

    def find(self, name: str, near: Path | None = None) -> tuple[Path, str]:
        """The file that a name in the data means, looked for below `near` and below the folder.

        Returns:
            The file, and what differs from the name where it is not the same file's name in other letters; "" where nothing does.

        Raises:
            ValueError: there is no such file; the message says what was looked for and what was found.
        """
        wanted = unquote(name.removeprefix("file://")) if name.startswith("file://") else name
        wanted = wanted.strip().replace("\\", "/")
        places = self._places(near)
        whole = [self._inside(wanted, place) for place in places]
        for lookup in (self.get, self._get_garbled, self._get_hidden):
            for each in whole:
                if each and (file := lookup(each)):
                    return file, ""
        others = [self._get_same_stem(each) for each in whole if each]
        others += [self.get(tail) for tail in _tails(wanted, places)]
        found = next((file for file in others if file), None)
        if found:
            return found, f"there is no {shorten(name)}"
        raise ValueError(self._explain_missing(name, [each for each in whole if each]))

    def _places(self, near: Path | None) -> list[str]:
        bases = [self.name(near)] if near and near != self.root and near.is_relative_to(self.root) else []
        bases.append("")
        return bases + [posixpath.join(base, each) for base in bases for each in PICTURE_FOLDERS]

    def _inside(self, wanted: str, place: str) -> str:
        """The name below the folder; "" where it leads out of it."""
        if PurePosixPath(wanted).is_absolute() or PureWindowsPath(wanted).drive:
            for root in (self.root, self.root.resolve()):
                if wanted.startswith(f"{root.as_posix().rstrip('/')}/"):
                    return posixpath.normpath(wanted.removeprefix(root.as_posix()).lstrip("/"))
            return ""
        inside = posixpath.normpath(posixpath.join(place, wanted))
        return "" if inside.split("/")[0] in ("..", ".") else inside

    def _get_hidden(self, name: str) -> Path | None:
        """A file that is not listed because it, or a folder above it, is hidden."""
        try:
            file = self.root / name
            return file if file.is_file() else None
        except (OSError, ValueError):  # longer than names may be, or with a zero byte
            return None

    def _get_garbled(self, name: str) -> Path | None:
        found = self._garbled.get(fold(name), [])
        return found[0] if len(found) == 1 else None

    def _get_same_stem(self, name: str) -> Path | None:
        """The only picture that is named so but for its ending."""
        found = [file for file in self._stems.get(fold(posixpath.splitext(name)[0]), []) if file.suffix.lower() in PICTURES]
        return found[0] if len(found) == 1 else None

    def _explain_missing(self, name: str, whole: list[str]) -> str:
        for each in whole:
            if each in self.strange:
                return f"the picture {shorten(each)} {self.strange[each]}"
            if len(self._folded.get(fold(each), [])) > 1:
                return f"several files are named like {shorten(each)}"
        if not whole:
            return f"{shorten(name)} lies outside the folder of the data"
        return f"the picture {shorten(name)} is missing"

    @cached_property
    def _exact(self) -> dict[str, Path]:
        return {self.name(file): file for file in self.files}

    @cached_property
    def _folded(self) -> dict[str, list[Path]]:
        return _group((fold(name), file) for name, file in self._exact.items())

    @cached_property
    def _stems(self) -> dict[str, list[Path]]:
        return _group((fold(posixpath.splitext(name)[0]), file) for name, file in self._exact.items())

    @cached_property
    def _garbled(self) -> dict[str, list[Path]]:
        """The files whose names were unpacked in the wrong encoding, by what the names may have been."""
        return _group((fold(each), file) for name, file in self._exact.items() for each in _guess_names(name))

    # Walking

    def _descend(self, root: Path) -> Path:
        """The only folder inside, as often as there is nothing else."""
        while True:
            try:
                inside = [entry for entry in os.scandir(root) if not _is_litter(entry.name)]
                alone = len(inside) == 1 and inside[0].is_dir(follow_symlinks=False)
            except OSError as error:
                raise ValueError(f"The folder {shorten(str(root))} cannot be read: {error.strerror or error}.") from error
            if not alone:
                return root
            self.passed += sum(1 for entry in os.scandir(root) if entry.name != UNREADABLE) - 1
            root = root / inside[0].name

    def _walk(self) -> None:
        seen: dict[tuple[int, int], Path] = {}
        waiting, links = deque([self.root]), deque()
        while waiting or links:
            place = waiting.popleft() if waiting else links.popleft()
            linked = place.is_symlink()
            try:
                about = place.stat()
                first = seen.setdefault((about.st_dev, about.st_ino), place)
                if linked and self.root.resolve().is_relative_to(place.resolve()):
                    self.strange[self.show(place)] = "is a link to a folder that holds this one; it is not followed"
                elif first is not place:
                    self.strange[self.show(place)] = f"is a link to the folder {self.show(first)}, which is read already"
                else:
                    self._list(place, waiting, links)
            except OSError as error:
                self.strange[self.show(place)] = f"cannot be read: {error.strerror or error}"

    def _list(self, place: Path, waiting: deque[Path], links: deque[Path]) -> None:
        with os.scandir(place) as entries:
            for entry in entries:
                file = place / entry.name
                if _is_litter(entry.name):
                    self.passed += entry.name != UNREADABLE
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(file)
                    if file.suffix.lower() in PICTURES:
                        self.strange[self.show(file)] = "is a folder, not a picture"
                elif entry.is_symlink() and _leads_to_folder(file):
                    links.append(file)
                elif why := explain_strange(file):
                    self.strange[self.show(file)] = why
                elif ABOUT.fullmatch(entry.name) and file.suffix.lower() not in PICTURES:
                    self.passed += 1
                else:
                    self.files.append(file)
        if len(self.files) > MOST_FILES:
            raise ValueError(f"{self.root} holds more than {MOST_FILES:,} files; name the folder of the examples.")


def explain_strange(file: Path) -> str:
    """Why this is no file that can be read; "" where it is one."""
    try:
        about = file.stat()
    except FileNotFoundError:
        return "is a link to a file that is not there" if file.is_symlink() else "is gone"
    except OSError as error:
        return "is a link that leads back to itself" if file.is_symlink() else f"cannot be read: {error.strerror or error}"
    if stat.S_ISREG(about.st_mode):
        return "" if os.access(file, os.R_OK) else "may not be read by you"
    return f"is {KINDS.get(stat.S_IFMT(about.st_mode), 'no file')}"


def _leads_to_folder(link: Path) -> bool:
    try:
        return link.is_dir()
    except OSError:  # a loop
        return False


def _is_litter(name: str) -> bool:
    return name.startswith((".", "~$")) or name.casefold() in LITTER


def _group(pairs: Iterator[tuple[str, Path]]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for key, file in pairs:
        groups.setdefault(key, []).append(file)
    return groups


def _tails(wanted: str, places: list[str]) -> Iterator[str]:
    """The ends of a path that was written elsewhere, such as C:/Users/me/set/images/a.jpg, below each place."""
    pieces = [piece for piece in wanted.split("/") if piece not in ("", ".")]
    if ".." in pieces:
        return
    for start in range(1, len(pieces)):
        for place in places:
            yield posixpath.join(place, *pieces[start:])


def _guess_names(name: str) -> set[str]:
    """What a name may have been before a tool unpacked it in the wrong encoding."""
    if name.isascii():
        return set()
    raws = [os.fsencode(name)] if re.search("[\udc80-\udcff]", name) else []
    for encoding in ("cp437", "cp1252", "latin-1"):
        try:
            raws.append(unicodedata.normalize("NFC", name).encode(encoding))
        except UnicodeEncodeError:
            continue
    found = set()
    for raw in raws:
        for encoding in NAME_ENCODINGS:
            try:
                found.add(raw.decode(encoding))
            except UnicodeDecodeError:
                continue
    return found - {name}
