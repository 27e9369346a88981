"""The log: one line an event, fields as key=value, peer bytes escaped, no patient data.

To the journal with real fields where systemd-python is there and the service
runs under systemd; otherwise to standard error. Nothing here raises: a log that
cannot be written must not cost an image.
"""

from __future__ import annotations

import logging
import os
import sys

from appliance.model import escape

ROOT = "dcmgate"


class _LineFormatter(logging.Formatter):
    """`level logger: message key=value …`; the time is left to whoever stores the line."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{record.levelname.lower()} {record.name.removeprefix(ROOT + '.')}: {record.getMessage()}"
        fields: dict[str, object] = getattr(record, "fields", {})
        if fields:
            line += " " + " ".join(f"{key}={_text(value)}" for key, value in fields.items())
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _text(value: object) -> str:
    """Peer bytes as printable ASCII; text of ours as it is, but nothing that a terminal or a reader of lines would act on."""
    if isinstance(value, bytes):
        text = escape(value)
    elif isinstance(value, str):
        text = "".join(c if c.isprintable() else escape(c) for c in value)
    else:
        text = str(value)
    return '"' + text.replace('"', "'") + '"' if " " in text or not text else text


class Log:
    """A named log. Fields are given by keyword; their bytes and texts are escaped."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"{ROOT}.{name}")

    def debug(self, message: str, **fields: object) -> None:
        if self._logger.isEnabledFor(logging.DEBUG):
            self._logger.debug("%s", message, extra={"fields": fields})

    def info(self, message: str, **fields: object) -> None:
        self._logger.info("%s", message, extra={"fields": fields})

    def warning(self, message: str, **fields: object) -> None:
        self._logger.warning("%s", message, extra={"fields": fields})

    def error(self, message: str, **fields: object) -> None:
        self._logger.error("%s", message, extra={"fields": fields})

    def crash(self, message: str, **fields: object) -> None:
        """An exception that nobody expected, with its trace: only from the top of a stage."""
        self._logger.error("%s", message, extra={"fields": fields}, exc_info=True)


def _journal_handler() -> logging.Handler | None:
    """The journal, if this process's output is connected to it and systemd-python is installed."""
    if "JOURNAL_STREAM" not in os.environ:
        return None
    try:
        from systemd import journal
    except ImportError:
        return None

    class _Journal(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            fields = {f"DCMGATE_{key.upper()}": _text(value) for key, value in getattr(record, "fields", {}).items()}
            level = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4}.get(record.levelno, 3)
            journal.send(self.format(record), PRIORITY=level, SYSLOG_IDENTIFIER=ROOT, **fields)

    return _Journal()


def set_up(level: str = "info") -> None:
    """Send the log of this process to the journal or to standard error. Call once, from the command line."""
    handler: logging.Handler = _journal_handler() or logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter())
    root = logging.getLogger(ROOT)
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
    logging.raiseExceptions = False
