"""Start the page: python app.py"""

from __future__ import annotations

import argparse
import getpass
import importlib.util
import os
import signal
import sqlite3
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen import silence_libraries
from duogen.content_credentials import add_signing_flags, sign_as_flags_say
from duogen.heaps import limit_heaps
from duogen.options import LoadOptions, add_flags, from_flags
from duogen.paths import check_home, data_home, lock_home
from duogen.replicas.cluster import RayCluster, add_ray_flags, connect_as_flags_say
from ui.parts.address import bracket_host, check_address, explain_refusal, is_local, read_host, show_page

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.middleware import Middleware

    from ui.api.auth import Users
    from ui.page import Page
    from ui.parts.loading import Loading

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

LAUNCH: dict[str, Any] = {
    "prevent_thread_lock": True,
    "quiet": True,
    "share": False,
    "ssr_mode": False,
    "run_history": False,
    "footer_links": [],
    "state_session_capacity": 64,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A chat that answers in words and pictures, in your browser.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--pair", help="a pair's id, repository or folder (default: the bundled one)")
    parser.add_argument("--mllm", metavar="DIR", help="a Qwen2.5-VL or Qwen3-VL that talks, for a painter that cannot")
    parser.add_argument("--brain", dest="mllm", default=argparse.SUPPRESS, help=argparse.SUPPRESS)  # the old name
    add_flags(parser, LoadOptions)
    add_ray_flags(parser)
    about = "an adapter or a LoRA file that is on, and how strongly; may be given again"
    parser.add_argument("--adapter", action="append", default=[], metavar="PATH[:WEIGHT]", help=about)
    about = "the models folder of ComfyUI or Forge, whose transformers and LoRAs are listed; kept for later starts"
    parser.add_argument("--models", metavar="DIR", help=about)
    parser.add_argument("--auth", type=Path, metavar="FILE", help="only the users in this file may use the page and the API")
    parser.add_argument("--add-user", metavar="NAME", help="ask for NAME's password, write it to the file of --auth, and end")
    add_signing_flags(parser)
    parser.add_argument("--mcp", action="store_true", help="offer the pair as a tool to programs that speak MCP")
    parser.add_argument("--root-path", metavar="PATH", help="where a reverse proxy has the page, such as /duogen")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    return parser.parse_args()


def main() -> None:
    given = parse_arguments()
    limit_heaps()
    silence_libraries()
    try:
        from_flags(given, LoadOptions)
        sign_as_flags_say(given)
        given.host = read_host(given.host)
        check_address(given.host, given.port)
        given.root_path = read_root_path(given.root_path)
        users = load_users(given)
        if given.adapter:
            from duogen.models.adapters import AdapterSpec

            given.adapter = [AdapterSpec.parse(each) for each in given.adapter]
        lock = lock_home(check_home(), f"http://{bracket_host(given.host)}:{given.port}")
        if given.models is not None:
            from duogen.hub.model_files import keep_models_folder

            keep_models_folder(given.models)
        given.cluster = connect_as_flags_say(given)
    except ValueError as error:
        print(f"app.py: {error}", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("Starting DuoGen: importing what the page needs ...", flush=True)
    try:
        serve(given, users)
    finally:
        if given.cluster:
            given.cluster.close()
        if lock:
            lock.release()


def load_users(given: argparse.Namespace) -> Users | None:
    """The users who may use the page, `None` for everybody. With --add-user, add a user and end the program.

    Raises:
        ValueError: the file of users is missing or damaged, or others could reach what is open to everybody.
    """
    from ui.api.auth import Users, add_user

    if given.add_user is not None:
        if given.auth is None:
            raise ValueError("Say which file the user goes into: --auth FILE")
        add_user(given.auth, given.add_user, getpass.getpass("Password: "))
        print(f"{given.add_user} may now use a page started with --auth {given.auth}")
        sys.exit(0)
    if not is_local(given.host) and given.auth is None:
        raise ValueError(f"Others can reach {given.host}: say who may use the page with --auth FILE (see --add-user).")
    if given.mcp and importlib.util.find_spec("mcp") is None:
        raise ValueError("The MCP server needs one more package: pip install -r requirements.txt")
    if given.mcp and given.auth is not None:
        raise ValueError("The MCP server cannot ask for passwords: start without --mcp or without --auth.")
    return Users(given.auth) if given.auth is not None else None


def read_root_path(given: str | None) -> str:
    """The path of --root-path, or of the variable that Gradio reads. Raises ValueError: it is no path."""
    from ui.parts.root_path import parse_root_path

    return parse_root_path(os.environ.get("GRADIO_ROOT_PATH", "") if given is None else given)


def serve(given: argparse.Namespace, users: Users | None) -> None:
    """Start the page and the API, then load the pair in the background. Returns when the page ends."""
    from duogen.library.conversation_zip import LARGEST_ZIP

    # Read when gradio is imported; its own choice is a folder that all its pages on this machine share, and serve.
    os.environ.setdefault("GRADIO_TEMP_DIR", str(data_home() / "uploads"))
    from ui.api.auth import TooManyTries
    from ui.api.endpoint import show_in_mcp
    from ui.api.openai import Api
    from ui.parts.gpu_sharing import GPUSharing
    from ui.parts.i18n import browser_translations
    from ui.parts.login import refuse_try
    from ui.parts.root_path import set_page_base
    from ui.parts.theme import launch_style

    loading = make_loading(given, given.cluster)
    page = build_page(loading, users)
    if given.root_path:
        set_page_base(given.root_path)
    middleware = list_middleware(given.root_path, users, page.blocks.fns)
    routes = Api(loading, users).router().routes
    try:
        page.blocks.launch(
            server_name=bracket_host(given.host),
            server_port=given.port,
            root_path=given.root_path,
            max_file_size=LARGEST_ZIP,
            i18n=browser_translations(),
            **LAUNCH,
            **launch_style(),
            auth=users.admits if users else None,
            mcp_server=given.mcp,
            app_kwargs={"routes": routes, "middleware": middleware, "exception_handlers": {TooManyTries: refuse_try}},
        )
    except OSError as error:
        print(explain_refusal(given.host, given.port, error), file=sys.stderr)
        sys.exit(2)
    if given.mcp:
        show_in_mcp(page.blocks)
    print(f"DuoGen is at http://{bracket_host(given.host)}:{given.port} (Ctrl+C ends it)", flush=True)
    loading.start()
    GPUSharing(loading).start()
    if not given.no_browser:
        show_page(given.host, given.port)
    page.blocks.block_thread()


def make_loading(given: argparse.Namespace, cluster: RayCluster | None) -> Loading:
    """What will load the pair."""
    from ui.parts.loading import Loading
    from ui.parts.queue import FairQueue

    adapters = {each.path.resolve(): each.weight for each in given.adapter}
    log, load = partial(print, flush=True), from_flags(given, LoadOptions)
    loading = Loading(given.pair, mllm=given.mllm, load=load, adapters=adapters, log=log)
    if cluster:
        loading.open_pair, loading.queue = cluster.open, FairQueue(cluster.share.replicas)
    return loading


def list_middleware(root_path: str, users: Users | None, functions: Mapping[int, Any]) -> list[Middleware]:
    """What stands between a client and the routes, the outermost first."""
    from starlette.middleware import Middleware

    from ui.parts.checked_bodies import CheckedBodies
    from ui.parts.content_policy import ContentPolicy
    from ui.parts.fault_answers import FaultAnswers
    from ui.parts.foreign_pages import ForeignPages
    from ui.parts.login import LoginPage

    guards = [Middleware(LoginPage, root_path)] if users else []
    routes = [Middleware(FaultAnswers), Middleware(CheckedBodies, functions)]
    return [Middleware(ContentPolicy), Middleware(ForeignPages, root_path, users is not None), *guards, *routes]


def build_page(loading: Loading, users: Users | None) -> Page:
    """The page and what programs call of it, not served yet."""
    from duogen.library.conversations import ConversationStore
    from ui.api.endpoint import Endpoint
    from ui.page import Page

    try:
        page = Page(loading, ConversationStore(data_home() / "conversations"), data_home() / "shown", local=users is None)
    except (OSError, sqlite3.OperationalError) as error:
        cure = "see that you may write them and that the disk has room"
        print(f"app.py: The files in {data_home()} cannot be used ({error}); {cure}.", file=sys.stderr)
        sys.exit(2)
    Endpoint(loading, page.pictures).add_to(page.blocks)
    page.blocks.api_open = False  # a call that goes past the queue would answer beside another one
    return page


if __name__ == "__main__":
    main()
