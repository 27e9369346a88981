"""Alarms to people: every one that rises or ends is a line of the log, a mail and a POST to each webhook.

Delivery runs on a thread of its own with time-outs and a bounded queue, so that
a dead mail server costs nothing but its own mails; what could not be told is
tried again and then logged. `dcmgate status` shows the alarms in any case.
"""

from __future__ import annotations

import json
import queue
import smtplib
import socket
import threading
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from functools import partial

from appliance.config.settings import Alarms
from appliance.model import Alarm, Severity
from appliance.telemetry.log import Log

TIMEOUT_SECONDS = 10.0
TRIES = 3
QUEUE_LENGTH = 256

_log = Log("alarm")


@dataclass(frozen=True, slots=True)
class Transition:
    """An alarm that rose (`active`) or ended."""

    alarm: Alarm
    active: bool

    @property
    def subject(self) -> str:
        """One line, whatever the text is."""
        text = " ".join(self.alarm.text.split())
        return f"[dcmgate {socket.gethostname()}] {'ALARM' if self.active else 'ended'}: {text}"

    def body(self) -> dict[str, object]:
        """What a webhook gets, as JSON."""
        return {
            "host": socket.gethostname(), "key": self.alarm.key, "severity": str(self.alarm.severity),
            "active": self.active, "text": self.alarm.text, "mend": self.alarm.mend,
        }


class Notifier:
    """Tells people. `notify` never blocks and never raises."""

    def __init__(self, retry_seconds: float = 30.0) -> None:
        self._queue: queue.Queue[tuple[Alarms, Transition] | None] = queue.Queue(QUEUE_LENGTH)
        self._retry_seconds = retry_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
        self._thread.start()

    def notify(self, settings: Alarms, raised: Sequence[Alarm], ended: Sequence[Alarm]) -> None:
        """Log each transition at once, and queue it for mail and webhooks."""
        for alarm, active in [*((a, True) for a in raised), *((a, False) for a in ended)]:
            transition = Transition(alarm, active)
            say = _log.error if active and alarm.severity is Severity.CRITICAL else _log.warning if active else _log.info
            say(("alarm: " if active else "alarm ended: ") + alarm.text, key=alarm.key, mend=alarm.mend)
            if not (settings.mail_to or settings.webhooks):
                continue
            try:
                self._queue.put_nowait((settings, transition))
            except queue.Full:
                _log.error("too many alarms are waiting for mail or webhook; this one is only logged", key=alarm.key)

    def stop(self, seconds: float = 2.0) -> None:
        """Give what is queued that long, then leave."""
        self._stopping.set()
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            _log.warning("alarms not yet told by mail or webhook at stop", count=self._queue.qsize())
        self._thread.join(seconds)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            settings, transition = item
            for address in settings.webhooks:
                self._try(f"webhook {address}", partial(post, address, transition))
            if settings.mail_to:
                self._try(f"mail by {settings.mail_server}", partial(mail, settings, transition))

    def _try(self, what: str, deliver: Callable[[], None]) -> None:
        for attempt in range(TRIES):
            try:
                deliver()
                return
            except Exception as error:  # noqa: BLE001  top of the thread: whatever a server answers, the next alarm is told
                _log.warning("an alarm could not be told", to=what, attempt=attempt + 1,
                             error=f"{type(error).__name__}: {error}")
            if self._stopping.wait(self._retry_seconds):
                return


def post(url: str, transition: Transition) -> None:
    """POST the transition as JSON. Raises OSError (URLError), HTTPException or ValueError."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"not an http(s) URL: {url}")
    request = urllib.request.Request(
        url, json.dumps(transition.body()).encode(), {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        answer.read(65536)


def mail(settings: Alarms, transition: Transition) -> None:
    """Send the transition to every `mail_to`. Raises OSError or SMTPException."""
    message = EmailMessage()
    message["From"] = settings.mail_from
    message["To"] = ", ".join(settings.mail_to)
    message["Subject"] = transition.subject
    message.set_content(f"{transition.alarm.text}\n\n{transition.alarm.mend}\n\nkey: {transition.alarm.key}\n")
    host, _, port = settings.mail_server.rpartition(":")
    with smtplib.SMTP(host or "127.0.0.1", int(port), timeout=TIMEOUT_SECONDS) as server:
        server.send_message(message)
