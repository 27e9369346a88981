"""The log: one line an event, fields as key=value, peer bytes escaped, no patient data.

To the journal with real fields where systemd-python is there and the service
runs under systemd; otherwise to standard error. Nothing here raises or waits: a
log that cannot be written, or that nobody reads, must not cost an image. Lines
that could only be written by waiting are counted, and left out.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import sys
from contextlib import suppress

from appliance.model import escape
from appliance.telemetry import messages

ROOT = "dcmgate"
JOURNAL = "/run/systemd/journal/socket"


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


class _Patient(logging.Handler):
    """Says where a line went that it did not write, because that would have meant to wait for whoever reads the log."""

    def __init__(self) -> None:
        super().__init__()
        self._lost = 0

    def ready(self) -> bool:
        """Whether a line can be written at once."""
        raise NotImplementedError

    def write(self, record: logging.LogRecord) -> None:
        """Write it."""
        raise NotImplementedError

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not self.ready():
                self._lost += 1
                return
            if self._lost:
                lost, self._lost = self._lost, 0
                self.write(logging.LogRecord(f"{ROOT}.log", logging.WARNING, "", 0, f"{lost} lines were lost: nobody read them",
                                             (), None))
            self.write(record)
        except Exception:  # noqa: BLE001  as logging.Handler wants it: no line is worth an image
            self.handleError(record)


class _Stderr(_Patient):
    """Standard error as it is now, in pieces that a pipe takes whole (pipe(7), PIPE_BUF)."""

    def __init__(self) -> None:
        super().__init__()
        self._stream = sys.stderr

    def _descriptor(self) -> int:
        try:
            return self._stream.fileno()
        except (OSError, ValueError, AttributeError):    # replaced by something in memory
            return -1

    def ready(self) -> bool:
        descriptor = self._descriptor()
        return descriptor < 0 or _writable(descriptor)

    def write(self, record: logging.LogRecord) -> None:
        line, descriptor = self.format(record) + "\n", self._descriptor()
        if descriptor < 0:
            self._stream.write(line)
            return
        raw = line.encode("utf-8", "backslashreplace")
        for at in range(0, len(raw), select.PIPE_BUF):
            if at and not _writable(descriptor):
                self._lost += 1
                return
            os.write(descriptor, raw[at:at + select.PIPE_BUF])


def _writable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def _journal_handler() -> logging.Handler | None:
    """The journal, if this process's output is connected to it and systemd-python is installed."""
    if "JOURNAL_STREAM" not in os.environ:
        return None
    try:
        from systemd import journal
    except ImportError:
        return None
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    with suppress(OSError):
        probe.connect(JOURNAL)

    class _Journal(_Patient):
        def ready(self) -> bool:
            return _writable(probe.fileno())

        def write(self, record: logging.LogRecord) -> None:
            fields = {f"DCMGATE_{key.upper()}": _text(value) for key, value in getattr(record, "fields", {}).items()}
            if message := messages.find(record.getMessage()):
                fields["MESSAGE_ID"] = message.id
            level = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4}.get(record.levelno, 3)
            journal.send(self.format(record), PRIORITY=level, SYSLOG_IDENTIFIER=ROOT, **fields)

    return _Journal()


def set_up(level: str = "info") -> None:
    """Send the log of this process to the journal or to standard error. Call once, from the command line."""
    handler = _journal_handler() or _Stderr()
    handler.setFormatter(_LineFormatter())
    root = logging.getLogger(ROOT)
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
    logging.raiseExceptions = False
