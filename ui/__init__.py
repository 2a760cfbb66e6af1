"""The page. It starts what it needs and shows what happens; it knows the engine, its events and options, and nothing below."""

from pathlib import Path

STATIC = Path(__file__).parent / "static"  # scripts, styles and pictures of the page
