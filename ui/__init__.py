"""The web page. It uses the engine, its events and its options, and nothing below them."""

from pathlib import Path

STATIC = Path(__file__).parent / "static"  # scripts, styles and pictures of the page
