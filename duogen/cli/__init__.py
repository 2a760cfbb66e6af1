"""The command line: `python -m duogen COMMAND`."""
