"""A picture set in motion: python -m duogen animate PICTURE [--to PICTURE] --model MODEL"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from duogen.content_credentials import add_signing_flags, sign_as_flags_say
from duogen.options import LoadOptions, add_flags, from_flags

Stopping = Callable[[], AbstractContextManager[threading.Event]]


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add the subcommand to the parser's."""
    about = "Sets a picture in motion, alone or on the way to a second one, with a video model; Ctrl-C stops it within a step."
    command = commands.add_parser("animate", help="set a picture in motion", description=about)
    command.add_argument("picture", type=Path, metavar="PICTURE", help="the picture to begin with")
    command.add_argument("--to", type=Path, metavar="PICTURE", help="the picture to end with, where the model takes one")
    command.add_argument("--model", metavar="MODEL", help="a video model's id, repository or folder (default: the first one that is here)")
    command.add_argument("--prompt", default="", metavar="WORDS", help="what happens (default: the words inside the picture)")
    command.add_argument("--seconds", type=float, metavar="S", help="how long it plays (default: what the model was trained for)")
    command.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: the model's own)")
    command.add_argument("--seed", type=int, metavar="N", help="the same number gives the same video (default: a new one every time)")
    command.add_argument("--out", type=Path, metavar="FILE.mp4", help="the file to write (default: PICTURE with .mp4 at its end)")
    add_flags(command, LoadOptions)
    add_signing_flags(command)


def animate(given: argparse.Namespace, stop_on_ctrl_c: Stopping) -> int:
    """`python -m duogen animate`. Everything that can be wrong is looked at before the model is opened; a stop writes nothing."""
    from duogen import silence_libraries

    sign_as_flags_say(given)
    out = _find_out(given)
    silence_libraries()
    from duogen.files import write_beside
    from duogen.library.picture_file import read_upload
    from duogen.motion import MotionDone, MotionNotice, MotionRequest, MotionStep, open_animator
    from duogen.picture_input import open_picture
    from duogen.provenance import find_origin

    picture, known, _ = read_upload(given.picture)
    words = given.prompt.strip() or (known.caption or known.words if known else "")
    last = open_picture(given.to) if given.to else None
    request = MotionRequest(picture, words, last, given.seconds, given.steps, given.seed, find_origin(given.picture))
    animator = open_animator(given.model, request, from_flags(given, LoadOptions), _hint)
    with stop_on_ctrl_c() as stop:
        for event in animator.animate(request, stop):
            match event:
                case MotionStep(step, steps):
                    _hint(f"Step {step} of {steps} ...")
                case MotionNotice(message):
                    print(message, file=sys.stderr, flush=True)
                case MotionDone(data):
                    write_beside(out, data)
                    print(out)
                    return 0
    _hint("Stopped.")
    return 130


def _find_out(given: argparse.Namespace) -> Path:
    """Where the video goes. Raises ValueError: it cannot be written there."""
    out = given.out or given.picture.with_suffix(".mp4")
    if out.suffix.lower() != ".mp4":
        raise ValueError(f"{out} does not end in .mp4, and animations are MP4 files; name another file with --out.")
    if not out.resolve().parent.is_dir():
        raise ValueError(f"There is no folder {out.parent} to write {out.name} to; make it first.")
    if given.out is None and out.exists():
        raise ValueError(f"{out} is there already; name another file with --out.")
    return out


def _hint(words: str) -> None:
    """A word about what goes on, for a person who watches."""
    if sys.stderr.isatty():
        print(words, file=sys.stderr, flush=True)
