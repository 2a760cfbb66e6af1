"""Where files lie: what comes with the repository, and what DuoGen keeps for a user."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "assets"


def data_home() -> Path:
    """The folder for a user's files: `DUOGEN_HOME`, by default the platform's folder for user data."""
    import platformdirs  # of use only where the variable is not set, and to be imported at every start

    home = os.environ.get("DUOGEN_HOME")
    return Path(home).expanduser() if home else Path(platformdirs.user_data_dir("duogen", appauthor=False))
