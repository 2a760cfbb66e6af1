"""The command line: python -m duogen ask | chat | export | data | evaluate NAME | finetune | merge | publish | pairs | pull | plan ..."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from duogen import silence_libraries
from duogen.cli import animate, pairs, references
from duogen.cli import data as data_command
from duogen.cli import evaluate as evaluate_command
from duogen.cli import finetune as train_command
from duogen.content_credentials import add_signing_flags, encode_signed, sign_as_flags_say
from duogen.conversation import REFERENCE, SOURCE, Conversation, Image, Text
from duogen.events import AnswerBuilder, Event, Failed, ImageDone, ImageStarted, Notice, Restarted, TextDelta, Thought
from duogen.files import explain_disk, fill_folder
from duogen.hub.catalogue import bundled_id
from duogen.hub.timings import say_seconds
from duogen.library.presets import PresetStore, find_options
from duogen.library.references import open_references
from duogen.options import PRESETS, ImageOptions, LoadOptions, Options, TextOptions, add_flags, from_flags
from duogen.paths import data_home, explain_home
from duogen.picture_input import open_picture
from duogen.text_decoding import clean_message

if TYPE_CHECKING:
    from duogen.engine import Engine

# What importing torch and the models costs (seconds) is paid inside the commands, so that --help and wrong input answer at once.

DESCRIPTION = "Ask, and get an answer in words and pictures."
PAIR_CHOOSES = ("steps", "guidance", "max_tokens")  # a pair knows what it does best with
NOT_HERE = ("preview_every",)  # a terminal shows no previews
Command = Callable[[argparse.Namespace], int]
PICTURE_FLAGS = {
    "image": ("", "a picture to talk about"),
    "source": (SOURCE, "a picture to change, whose pixels are kept"),
    "reference": (REFERENCE, "a picture whose looks are kept"),
}
CHAT_HELP = (
    "/image FILE, /source FILE and /reference FILE add a picture to your next words, /on goes on with an answer that was cut, /new starts "
    "a new chat, /quit ends."
)
EXPORTED = "a file that ends in .pdf, .html, .zip (Markdown), or as a flipbook in .webp, .gif or .mp4"
CUT = {
    "max_tokens": "its longest (--max-tokens)", "max_images": "its most pictures (--max-images)",
    "max_context": "the most that the pair can read",
}  # fmt: skip


SPLITS = (  # of the sketchbook, as `duogen.evaluate.sketchbook` has them
    *("held-out", "train", "held-out-kinds", "second-request", "child", "marker", "composing", "by-example", "approved", "reference-words"),
)


class Parser(argparse.ArgumentParser):
    """Answers wrong usage with one sentence; argparse would print the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help shows what is possible)\n")


def parser() -> Parser:
    top = Parser(prog="python -m duogen", description=DESCRIPTION)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asking = commands.add_parser("ask", help="one question, one answer", description="Answers one question; the text is streamed.")
    asking.add_argument("prompt", help="what you want to know or see")
    for flag, (role, about) in PICTURE_FLAGS.items():  # in one list: pictures are numbered as they are given
        kind: dict[str, Any] = {"dest": "image", "action": "append", "default": [], "type": partial(_note_picture, role)}
        asking.add_argument(f"--{flag}", **kind, metavar="FILE", help=f"{about}; may be given again")
    asking.add_argument("--json", action="store_true", help="print reply.json instead of the text")
    chatting = commands.add_parser("chat", help="several turns", description=f"Reads your words line by line. {CHAT_HELP}")
    for each in (asking, chatting):
        each.add_argument("--out", type=Path, metavar="DIR", help="new folder for what is made (default: ./output/TIME)")
        _add_pair(each)
        _add_options(each)
        add_signing_flags(each)
    evaluating = commands.add_parser("evaluate", help="measure a pair", description="Measures how well a pair does.")
    what = evaluating.add_subparsers(dest="what", required=True, metavar="WHAT")
    sketchbook = what.add_parser("sketchbook", help="on conversations of the sketchbook world, whose every picture can be checked")
    shown = "what training never saw, what it did, another hand's drawings, several pictures into one, a change to repeat, a part to keep"
    sketchbook.add_argument("--split", choices=SPLITS, default="held-out", help=shown)
    sketchbook.add_argument("--kinds", type=_names, metavar="NAME,NAME", help="only these things, such as house,tree")
    sketchbook.add_argument("--out", type=Path, metavar="DIR", help="folder for contact sheets (default: ./output/TIME)")
    whole = evaluate_command.Measure("", 200, "conversations")
    own = evaluate_command.OWN
    for each, about in [(sketchbook, whole), *((what.add_parser(name, help=about.about), about) for name, about in own.items())]:
        each.add_argument("--n", type=int, default=about.most, help=f"{about.of} (default: {about.most})")
        each.add_argument("--seed", type=int, default=0, help="the same seed plays the same conversations")
        each.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
        if about.paints:
            evaluate_command.add_painting(each, about.paints)
        if about is own["vague"]:
            evaluate_command.add_ideas(each)
        _add_pair(each)
    evaluate_command.add_to(what, _add_pair)
    making = commands.add_parser("data", help="make training data from pages", description="Makes training data, and looks after it.")
    data_command.add_to(making)
    _add_export(commands)
    animate.add_command(commands)
    train_command.add_commands(commands)
    pairs.add_commands(commands)
    references.add_commands(commands)
    return top


def _add_export(commands: argparse._SubParsersAction) -> None:
    exporting = commands.add_parser("export", help="a saved conversation as a guide", description="Writes a conversation as a guide.")
    exporting.add_argument("folder", type=Path, help="a conversation's folder, of those below conversations/ in DUOGEN_HOME")
    exporting.add_argument("--to", type=Path, required=True, metavar="FILE", help=EXPORTED)
    exporting.add_argument("--drafts", action="store_true", help="with the drafts of each picture, as steps before it")
    exporting.add_argument("--seconds", type=float, metavar="S", help="how long a flipbook shows a picture (default: as its words need)")
    exporting.add_argument("--no-words", dest="words", action="store_false", help="a flipbook of the pictures alone")
    exporting.add_argument("--crossfade", type=int, default=0, metavar="N", help="blend N frames between its pictures (default: 0)")
    add_signing_flags(exporting)


def _note_picture(role: str, file: str) -> tuple[str, str]:
    return role, file


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]


def _add_pair(command: argparse.ArgumentParser) -> None:
    command.add_argument("--pair", metavar="PAIR", help="a pair's id, repository or folder (default: the bundled one)")
    about = "a Qwen2.5-VL or Qwen3-VL that chats, for a painter that cannot"
    command.add_argument("--mllm", "--brain", dest="mllm", metavar="DIR", help=about)
    add_flags(command, LoadOptions)
    about = "an adapter that fine-tuning made, or a LoRA file, and how strongly it works, 0 to 1.5; may be given again"
    command.add_argument("--adapter", action="append", default=[], metavar="PATH[:WEIGHT]", help=about)


def _add_options(command: argparse.ArgumentParser) -> None:
    """One flag for each field of the option dataclasses; what is not given is absent from the result."""
    shipped = ", ".join(PRESETS)
    about = f"a preset of options: {shipped}, or one that you saved in the page for this pair; flags go before it"
    command.add_argument("--options", metavar="NAME", help=about)
    command.add_argument("--seed", type=int, metavar="N", help="the same number gives the same answer (default: a new one every time)")
    for kind in (TextOptions, ImageOptions):
        hints = get_type_hints(kind)
        for each in fields(kind):
            if each.name in NOT_HERE:
                continue
            about = each.metadata
            if hints[each.name] is bool:
                command.add_argument(f"--{each.name.replace('_', '-')}", action="store_true", default=argparse.SUPPRESS, help=about["help"])
                continue
            default = "the pair's own" if each.name in PAIR_CHOOSES else each.default
            possible = f"One of {', '.join(about['values'])}" if about.get("values") else f"From {about['low']} to {about['high']}"
            if hints[each.name] is str and not about.get("values"):
                command.add_argument(f"--{each.name.replace('_', '-')}", default=argparse.SUPPRESS, metavar="WORDS", help=about["help"])
                continue
            command.add_argument(
                f"--{each.name.replace('_', '-')}",
                type=hints[each.name],
                default=argparse.SUPPRESS,
                metavar="N" if hints[each.name] is int else "NAME" if about.get("values") else "X",
                help=f"{about['help']} {possible}; default: {default}.",
            )


def options_of(given: argparse.Namespace, about: dict[str, Any] | None = None) -> Options:
    """The options that the flags stand for; `about` is what the open pair says of itself.

    Raises:
        ValueError: a value is out of its range.
    """
    flags = vars(given)

    def chosen(kind: type[TextOptions] | type[ImageOptions]) -> dict[str, Any]:
        return {each.name: flags[each.name] for each in fields(kind) if each.name in flags}

    def own(kind: type[TextOptions] | type[ImageOptions]) -> dict[str, Any]:
        return {each.name: about[each.name] for each in fields(kind) if about and each.name in about and each.name in PAIR_CHOOSES}

    if given.options is None:
        base = Options(None, TextOptions(**own(TextOptions)), ImageOptions(**own(ImageOptions)))
    else:
        base = find_options(given.options, str(given.pair or bundled_id()), about or {}, PresetStore(data_home() / "presets"))
    image = replace(base.image, **chosen(ImageOptions) | {"preview_every": 0})
    return Options(given.seed, replace(base.text, **chosen(TextOptions)), image)


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit status: 0, 2 after wrong input or a failure, 130 when the user stopped it."""
    _speak_any_alphabet()
    logging.getLogger("duogen").addHandler(logging.NullHandler())  # a traceback helps nobody who types a command
    try:
        given = parser().parse_args(argv)
        own: dict[str, Command] = {"ask": ask, "chat": chat, "evaluate": evaluate, "export": export, "data": data_command.run}
        own["animate"] = partial(animate.animate, stop_on_ctrl_c=stop_on_ctrl_c)
        return (own | train_command.COMMANDS | pairs.COMMANDS | references.COMMANDS)[given.command](given)
    except ValueError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ImportError as error:
        return _complain(f"{error.name or error} cannot be imported; install what is needed with: pip install -r requirements.txt")
    except Exception as error:
        known = explain_disk(error) or explain_home(error)
        return _complain(known or f"Something went wrong ({type(error).__name__}: {' '.join(str(error).split())}).")


def _complain(sentence: str) -> int:
    print(f"duogen: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


def _speak_any_alphabet() -> None:
    """A console that lacks a character shows a question mark instead of failing."""
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr)  # either may be anything that can be written to
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _hint(words: str) -> None:
    """A word about what goes on, for a person who watches; a script's stderr holds errors only."""
    if sys.stderr.isatty():
        print(words, file=sys.stderr, flush=True)


def ask(given: argparse.Namespace) -> int:
    """`python -m duogen ask`. Everything that can be wrong is looked at before the pair is opened."""
    prompt = clean_message(given.prompt)
    if not prompt:
        raise ValueError('There is no question; write one, such as: python -m duogen ask "How do I draw a house?"')
    options_of(given)
    sign_as_flags_say(given)
    pictures = [Image(open_picture(Path(file)), role=role) for role, file in given.image]
    out = free_folder(given.out)
    conversation = open_references().attach(Conversation().say("user", *pictures, prompt))
    engine = open_engine(given)
    answer = print_answer(engine, conversation, options_of(given, engine.about), quiet=given.json)
    if answer.parts:
        write_answer(answer, out)
        _hint(f"Written to {out}")
    if given.json:
        print(json.dumps(answer.as_json(), ensure_ascii=False, indent=1))
    return _status(answer)


def chat(given: argparse.Namespace) -> int:
    """`python -m duogen chat`: each answer goes into a numbered folder of `--out`."""
    options_of(given)
    sign_as_flags_say(given)
    out = free_folder(given.out)
    engine = open_engine(given)
    options = options_of(given, engine.about)
    print(f"{engine.about['title']}. {CHAT_HELP}")
    conversation, pictures, count = Conversation(), [], 0
    while (line := _read_line()) is not None:
        word, _, rest = line.partition(" ")
        try:
            match word:
                case "":
                    continue
                case "/quit":
                    break
                case "/new":
                    conversation, pictures = Conversation(), []
                    print("A new chat.")
                case "/image" | "/source" | "/reference" if not rest.strip():
                    raise ValueError(f"Say which picture: {word} FILE")
                case "/image" | "/source" | "/reference":
                    role, _ = PICTURE_FLAGS[word[1:]]
                    pictures.append(Image(open_picture(Path(rest.strip()).expanduser()), role=role))
                    print(f"{Path(rest.strip()).name} goes with your next words.")
                case _ if word.startswith("/") and line != "/on":
                    raise ValueError(f"There is no command {word}. {CHAT_HELP}")
                case _:
                    asked = conversation if line == "/on" else open_references().attach(conversation.say("user", *pictures, line))
                    answer = print_answer(engine, asked, options, goes_on=line == "/on")
                    if answer.parts:  # else nothing was said, and the next words take the place of these
                        conversation, pictures = answer.conversation, []
                        count += 1
                        write_answer(answer, out / f"{count:02d}")
                        print(f"[in {out / f'{count:02d}'}]")
                    _status(answer, "/on goes on with it")
        except ValueError as error:
            _complain(str(error))
    return 0


def _read_line() -> str | None:
    """The next line of the user, `None` at the end of the input or when Ctrl-C is pressed."""
    try:
        return clean_message(input("> " if sys.stdin.isatty() else ""))
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def evaluate(given: argparse.Namespace) -> int:
    """`python -m duogen evaluate sketchbook`, what else measures a pair of that world, and the benchmarks."""
    if given.what not in (evaluate_command.SKETCHBOOK, *evaluate_command.OWN):
        return evaluate_command.run(given, open_engine)
    if given.n < 1:
        raise ValueError(f"--n must be at least 1, not {given.n}.")
    if given.json and not given.json.resolve().parent.is_dir():
        raise ValueError(f"There is no folder {given.json.parent} to write {given.json.name} to; make it first.")
    painting = evaluate_command.painting_of(given)
    out = free_folder(given.out) if given.what == evaluate_command.SKETCHBOOK else None
    engine = open_engine(given)
    from duogen.evaluate import sketchbook
    from duogen.files import write_beside

    say = partial(print, flush=True)
    if given.what in evaluate_command.OWN:
        figures = evaluate_command.measure(given, engine, say)
    else:
        figures = sketchbook.evaluate(engine, given.split, given.n, given.seed, out, kinds=given.kinds, log=say, painting=painting)
    if given.json:
        write_beside(given.json, json.dumps(figures, ensure_ascii=False, indent=1).encode())
    return 0


def export(given: argparse.Namespace) -> int:
    """`python -m duogen export`."""
    from duogen.conversation import load_conversation
    from duogen.library.export import export as write_guide
    from duogen.library.flipbook import FlipbookOptions
    from duogen.library.guide import show_drafts

    sign_as_flags_say(given)
    flipbook = FlipbookOptions(given.seconds, given.words, given.crossfade)
    conversation = load_conversation(given.folder, lazily=True)
    shown = show_drafts(conversation) if given.drafts else conversation
    write_guide(shown, given.to, flipbook=None if flipbook == FlipbookOptions() else flipbook)
    print(given.to)
    return 0


def open_engine(given: argparse.Namespace) -> Engine:
    """Open the pair that the flags name.

    Raises:
        ValueError: one sentence that says what is wrong with it.
    """
    silence_libraries()
    if given.adapter:
        from duogen.models.adapters import AdapterSpec

        given.adapter = [AdapterSpec.parse(each) for each in given.adapter]
    _hint("Loading ...")
    from duogen.engine import Engine

    load = from_flags(given, LoadOptions)
    return Engine.open(given.pair, progress=_hint, mllm=given.mllm, load=load, adapters=given.adapter)


class Answer(AnswerBuilder):
    """An answer as it was made, or as much of it as was finished."""

    def as_json(self) -> dict[str, Any]:
        """What `reply.json` holds."""
        parts: list[dict[str, Any]] = []
        files = iter(self.files())
        for part in self.parts:
            if isinstance(part, Text):
                parts.append({"type": "text", "text": part.text})
            else:
                parts.append({"type": "image", "file": next(files), "seed": part.seed, "seconds": part.seconds})
        return {"parts": parts, "stats": asdict(self.stats) if self.stats else {}}

    def as_markdown(self) -> str:
        """The words, and the pictures as links."""
        files = iter(self.files())
        blocks = []
        for part in self.parts:
            if isinstance(part, Text):
                blocks.append(part.text.strip())
            else:
                alt = " ".join(part.alt.replace("[", "(").replace("]", ")").split()) or "A picture"
                blocks.append(f"![{alt}]({next(files)})")
        return "\n\n".join(block for block in blocks if block) + "\n"

    def files(self) -> list[str]:
        """File names of the pictures, in order."""
        return [picture_file(index) for index in range(len(self.images()))]


def picture_file(index: int) -> str:
    return f"{index + 1:02d}.png"


def print_answer(engine: Engine, conversation: Conversation, options: Options, quiet: bool = False, goes_on: bool = False) -> Answer:
    """Let the engine answer; the words go to stdout as they come, unless `quiet`. Ctrl-C stops it and keeps what is finished.

    `goes_on`: the conversation ends with an answer, which the engine goes on with.

    Raises:
        ValueError: there is no answer to go on with.
    """
    answer = Answer(conversation=conversation)
    show = (lambda words: None) if quiet else _show
    with stop_on_ctrl_c() as stop:
        for event in (engine.continue_answer if goes_on else engine.answer)(conversation, options, stop):
            _take(answer, event, show)
    if answer.parts:
        show("\n")
    return answer


def _take(answer: Answer, event: Event, show: Callable[[str], None]) -> None:
    answer.take(event)
    match event:
        case TextDelta(text):
            show(text)
        case Thought(text):
            print(text, end="", file=sys.stderr, flush=True)
        case ImageStarted(index, _, _, seconds):
            _hint(f"\nPainting picture {index + 1}{f', which takes about {say_seconds(seconds)}' if seconds else ''} ...")
        case Notice(message) | Restarted(message):
            print(f"\n{message}", file=sys.stderr, flush=True)
        case ImageDone(index):
            show(f"\n[picture {index + 1}: {picture_file(index)}]\n")
        case Failed(_, conversation):  # without the words that it broke off in
            turns = conversation.path()[-1:]
            answer.parts = list(turns[0].parts) if turns and turns[0].role == "assistant" else []


def _show(words: str) -> None:
    print(words, end="", flush=True)


def _status(answer: Answer, offer: str = "ask with more, or in chat, where /on goes on with it") -> int:
    """The exit status of an answer; says what the user must know about its end, and what they can do."""
    if answer.error:
        return _complain(answer.error)
    if answer.stats and answer.stats.stopped in CUT:
        print(f"The answer was cut at {CUT[answer.stats.stopped]}; {offer}.", file=sys.stderr, flush=True)
    if answer.stats and answer.stats.stopped == "user":
        _hint("Stopped.")
        return 130
    return 0


@contextlib.contextmanager
def stop_on_ctrl_c() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one ends the program as ever."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there can a signal be handled
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def first(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def free_folder(wanted: Path | None) -> Path:
    """The folder to write to, which is not there yet or empty; by default a new one under `output`.

    Raises:
        ValueError: something lies there already, or nothing can be written there.
    """
    if wanted is None:
        first = Path("output") / time.strftime("%Y-%m-%d-%H%M%S")
        return next(folder for n in range(1, 1000) if not (folder := first if n == 1 else first.with_name(f"{first.name}-{n}")).exists())
    if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
        raise ValueError(f"{wanted} is there already; choose a new folder with --out.")
    there = next(folder for folder in wanted.resolve().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{wanted} cannot be written to; choose another folder with --out.")
    return wanted


def write_answer(answer: Answer, folder: Path) -> None:
    """Write reply.md, reply.json and the pictures beside `folder`, then rename: it is whole or not there.

    Raises:
        ValueError: it cannot be written.
    """
    folder = folder.resolve()
    try:
        with fill_folder(folder) as part:
            for name, image in zip(answer.files(), answer.images(), strict=True):
                (part / name).write_bytes(encode_signed(image.picture, "PNG", image.origin, image.is_painted))
            (part / "reply.json").write_text(json.dumps(answer.as_json(), ensure_ascii=False, indent=1), encoding="utf-8")
            (part / "reply.md").write_text(answer.as_markdown(), encoding="utf-8")
            if folder.exists():  # empty, else it had been refused
                folder.rmdir()
    except OSError as error:
        raise ValueError(f"The answer cannot be written to {folder} ({error.strerror or error}).") from error


if __name__ == "__main__":
    sys.exit(main())
