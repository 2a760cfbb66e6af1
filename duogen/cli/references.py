"""The commands about saved references: python -m duogen references list | add | remove"""

from __future__ import annotations

import argparse
from pathlib import Path

from duogen.conversation import REFERENCE_KINDS, Image, Reference
from duogen.library.references import open_references
from duogen.picture_input import open_picture
from duogen.provenance import find_origin


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the subcommands to the parser's."""
    about = "Looks after characters, things and styles that a message mentions as @NAME; their pictures go along with it."
    keeping = commands.add_parser("references", help="characters and styles for @NAME", description=about)
    what = keeping.add_subparsers(dest="what", required=True, metavar="WHAT")
    what.add_parser("list", help="which there are", description="Lists the references.")
    adding = what.add_parser("add", help="save one", description="Saves pictures under a name.")
    adding.add_argument("name", metavar="NAME", help="one word of letters, digits, - and _")
    adding.add_argument("files", metavar="FILE", nargs="+", type=Path, help="its pictures")
    adding.add_argument("--kind", choices=REFERENCE_KINDS, default="character", help="what it is (default: character)")
    adding.add_argument("--words", default="", help="what it looks like, such as: a red boat with a white sail")
    adding.add_argument("--more", action="store_true", help="add the pictures to the reference that has this name")
    removing = what.add_parser("remove", help="delete one", description="Deletes a reference; its files stay for a month.")
    removing.add_argument("name", metavar="NAME")


def references(given: argparse.Namespace) -> int:
    """`python -m duogen references`. Raises ValueError: a name or a picture cannot be used; one sentence."""
    store = open_references()
    if given.what == "list":
        for each in store.list_references():
            count = f"{len(each.files)} picture{'s' if len(each.files) > 1 else ''}"
            print(f"@{each.about.name:22}  {each.about.kind:9}  {count:10}  {each.about.words}".rstrip())
    elif given.what == "remove":
        store.delete(given.name)
        print(f"@{given.name.removeprefix('@')} is deleted; its files stay for a month.")
    else:
        images = [Image(open_picture(file), origin=find_origin(file)) for file in given.files]
        about = Reference(given.name, given.kind, given.words)
        saved = store.add_pictures(given.name, images) if given.more else store.add(about, images)
        print(f"Saved: a message with @{saved.about.name} brings its pictures along.")
    return 0


COMMANDS = {"references": references}
