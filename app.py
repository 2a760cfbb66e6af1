"""Start the page: python app.py"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import webbrowser
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

LOCAL = ("127.0.0.1", "localhost", "::1")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A chat that answers in words and pictures, in your browser.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--pair", help="folder of a pair (default: the bundled one)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps ...")
    parser.add_argument("--precision", default="auto", help="auto, nf4, int8, bf16 or fp32")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder goes however the page is ended
    with tempfile.TemporaryDirectory(prefix="duogen-page-") as folder:
        serve(given, Path(folder))


def serve(given: argparse.Namespace, folder: Path) -> None:
    """Put the page up, then open the pair behind it; returns when the page is ended. `folder` is for the pictures it shows."""
    from ui.loading import Loading
    from ui.page import Page
    from ui.theme import theme

    loading = Loading(given.pair, given.device, given.precision)
    page = Page(loading, folder)
    try:
        page.blocks.launch(
            server_name=given.host,
            server_port=given.port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            max_file_size="25mb",
            state_session_capacity=64,
            theme=theme(),
            css_paths=Path(__file__).parent / "ui" / "style.css",
        )
    except OSError:
        print(f"Port {given.port} of {given.host} cannot be used; choose another with --port.", file=sys.stderr)
        sys.exit(2)
    loading.start()
    address = f"http://{given.host}:{given.port}"
    print(f"DuoGen is at {address} (Ctrl+C ends it)", flush=True)
    if given.host not in LOCAL:
        print("Everybody who can reach this address can use it.", flush=True)
    if not given.no_browser:
        webbrowser.open(address)
    page.blocks.block_thread()


if __name__ == "__main__":
    main()
