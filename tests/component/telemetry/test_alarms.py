"""Alarms reach a real mail server and a real web server, and a dead one costs nothing."""

from __future__ import annotations

import http.server
import json
import queue
import socket
import socketserver
import threading

import pytest

from appliance.config.settings import Alarms
from appliance.model import Alarm, Severity
from appliance.telemetry.alarms import Notifier

ALARM = Alarm("destination-down:pacs", Severity.CRITICAL, "destination pacs does not answer", "check the cable of the uplink")


class _Smtp(socketserver.StreamRequestHandler):
    """The least of RFC 5321 that takes one mail."""

    def handle(self) -> None:
        self.wfile.write(b"220 test\r\n")
        while line := self.rfile.readline():
            verb = line[:4].upper()
            if verb == b"DATA":
                self.wfile.write(b"354 go\r\n")
                lines = []
                while (line := self.rfile.readline()) != b".\r\n":
                    lines.append(line)
                self.server.mails.put(b"".join(lines).decode())  # type: ignore[attr-defined]
            if verb == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            self.wfile.write(b"250 ok\r\n")


class _Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.put(json.loads(body))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def servers():
    smtp = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Smtp)
    hook = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hook)
    smtp.mails, hook.posts = queue.Queue(), queue.Queue()
    for server in (smtp, hook):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield smtp, hook
    for server in (smtp, hook):
        server.shutdown()
        server.server_close()


def test_an_alarm_is_mailed_and_posted_when_it_rises_and_when_it_ends(servers):
    smtp, hook = servers
    settings = Alarms(mail_to=("a@clinic.example",), mail_server=f"127.0.0.1:{smtp.server_address[1]}",
                      webhooks=(f"http://127.0.0.1:{hook.server_address[1]}/x",))
    notifier = Notifier(retry_seconds=0.05)
    notifier.notify(settings, [ALARM], [])
    notifier.notify(settings, [], [ALARM])
    assert "check the cable" in smtp.mails.get(timeout=10)
    assert "ended" in smtp.mails.get(timeout=10)
    first, second = hook.posts.get(timeout=10), hook.posts.get(timeout=10)
    assert (first["active"], second["active"], first["key"], first["severity"]) == (True, False, ALARM.key, "critical")
    notifier.stop()


def test_a_webhook_that_is_down_does_not_keep_the_mail_back(servers):
    smtp, _ = servers
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        settings = Alarms(mail_to=("a@clinic.example",), mail_server=f"127.0.0.1:{smtp.server_address[1]}",
                          webhooks=(dead, "ftp://nonsense"))
        notifier = Notifier(retry_seconds=0.01)
        notifier.notify(settings, [ALARM], [])
        assert "destination pacs" in smtp.mails.get(timeout=10)
        notifier.stop()
