"""`python -m duogen COMMAND`: see `duogen.cli.main`."""

import sys

from duogen.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
