"""Faults that nobody foresaw: logged with a number that a user can quote to whoever runs the server."""

from __future__ import annotations

import logging
import re
import secrets

LOG = logging.getLogger(__name__)
NUMBER = re.compile(r"[Ff]ault \d{6}\b")  # in the log, and in what a user reads


def report_fault(error: BaseException) -> str:
    """Log what was caught, and where it was raised. Returns its number in the log."""
    number = f"{secrets.randbelow(1_000_000):06}"
    LOG.error("Fault %s", number, exc_info=error)
    return number


def name_fault(error: BaseException) -> str:
    """As `report_fault`; returns the kind of error and its number, for those who may not read what it says."""
    return f"{type(error).__name__}; fault {report_fault(error)}"


def describe_fault(error: BaseException) -> str:
    """As `report_fault`; returns what stands in brackets behind a sentence: the kind of error, what it says, its number."""
    said = f"{type(error).__name__}: {error}".removesuffix(": ")
    return f"{said}; fault {report_fault(error)}"
