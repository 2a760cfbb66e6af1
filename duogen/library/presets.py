"""A user's own presets: the options of an answer under a name, for one pair; each a file, so that a damaged one costs no other."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from duogen.files import make_folder, read_text, write_beside
from duogen.options import GROUPS, PRESETS, Checked, ImageOptions, Options, TextOptions, preset_options, read_options

LONGEST_NAME = 60  # characters
LARGEST = 1 << 20  # bytes of a file


@dataclass(frozen=True)
class OwnPreset:
    """`options` are without a seed: a preset leaves the seed as it is."""

    pair: str
    name: str
    options: Options


class PresetStore:
    """The presets in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list_presets(self, pair: str) -> tuple[list[OwnPreset], list[str]]:
        """The presets of a pair by name, and a sentence for each file that is damaged."""
        found, damaged = [], []
        for file in sorted(self.folder.glob("*.json")):
            try:
                preset = read_preset(file)
            except ValueError as error:
                damaged.append(str(error))
                continue
            found += [preset] if preset.pair == name_pair(pair) else []
        return sorted(found, key=lambda each: each.name.casefold()), damaged

    def find(self, pair: str, name: str) -> OwnPreset:
        """Raises ValueError: the pair has no such preset."""
        presets, _ = self.list_presets(pair)
        for each in presets:
            if each.name.casefold() == name.strip().casefold():
                return each
        known = ", ".join([*PRESETS, *(each.name for each in presets)])
        raise ValueError(f"This pair has no preset called {name.strip()}; it has {known}.")

    def save(self, pair: str, name: str, options: Options) -> OwnPreset:
        """Save options under a name, also in place of those that it stood for. Raises ValueError: the name cannot be used."""
        preset = OwnPreset(name_pair(pair), check_name(name), options)
        groups = {group: asdict(getattr(options, group)) for group in GROUPS}
        said = json.dumps({"pair": preset.pair, "name": preset.name, "options": groups}, ensure_ascii=False, indent=1)
        try:
            make_folder(self.folder)
            write_beside(self._file(pair, preset.name), said.encode())
        except OSError as error:
            raise ValueError(f"The preset cannot be saved: {error.strerror or error}.") from error
        return preset

    def rename(self, pair: str, name: str, new: str) -> OwnPreset:
        """Raises ValueError: the pair has no such preset, or the new name cannot be used."""
        old, taken = self.find(pair, name), {each.name.casefold() for each in self.list_presets(pair)[0]}
        if check_name(new).casefold() in taken - {old.name.casefold()}:
            raise ValueError(f"There is a preset called {check_name(new)} already; choose another name.")
        renamed = self.save(pair, new, old.options)
        if self._file(pair, old.name) != self._file(pair, renamed.name):
            self.delete(pair, old.name)
        return renamed

    def delete(self, pair: str, name: str) -> None:
        self._file(pair, name).unlink(missing_ok=True)

    def _file(self, pair: str, name: str) -> Path:
        """The file of a preset; names that differ in their case alone share it."""
        key = hashlib.sha256(json.dumps([name_pair(pair), name.strip().casefold()]).encode()).hexdigest()[:12]
        words = re.sub(r"[^\w-]+", "-", name.strip().casefold()).strip("-") or "preset"
        return self.folder / f"{words}-{key}.json"


def name_pair(pair: str) -> str:
    """A pair's id or repository, or where its folder is, however that was named."""
    return str(Path(pair).resolve()) if Path(pair).is_dir() else pair


def read_preset(file: Path) -> OwnPreset:
    """Raises ValueError: the file is damaged; one sentence that names it."""
    try:
        raw = json.loads(read_text(file, LARGEST))
        pair, name = raw["pair"], check_name(raw["name"])
        text, image = (raw["options"].get(group, {}) for group in GROUPS)
        options = Options(None, _read_known(TextOptions, text), _read_known(ImageOptions, image))
        return OwnPreset(str(pair), name, options)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        where = f"{file.parent.name}/{file.name}"
        raise ValueError(f"The preset in {where} cannot be read and is left out; mend the file or delete it.") from error


def _read_known(kind: type[Checked], raw: dict[str, Any]) -> Checked:
    """Options from those values whose fields this version has. Raises ValueError: one is not possible."""
    return read_options(kind, {each.name: raw[each.name] for each in fields(kind) if each.name in raw})


def check_name(name: str) -> str:
    """The name as it is saved. Raises ValueError: it cannot be a preset's."""
    words = " ".join(name.split())
    if not words:
        raise ValueError("Give the preset a name.")
    if len(words) > LONGEST_NAME:
        raise ValueError(f"A preset's name has {LONGEST_NAME} characters at most.")
    if words.casefold() in PRESETS:
        raise ValueError(f"{words} is a preset that comes with DuoGen; choose another name.")
    return words


def find_options(name: str, pair: str, about: dict[str, Any], store: PresetStore) -> Options:
    """The options of a preset: one that comes with DuoGen, or one of the user's own for this pair. Raises ValueError: there is none."""
    shipped = name.strip().casefold()
    return preset_options(shipped, about) if shipped in PRESETS else store.find(pair, name).options
