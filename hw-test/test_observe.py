"""What the box shows of itself: page on the scanners' side, figures on the management side, console."""

from __future__ import annotations

import re
import socket
import time
from typing import Any

from gateway import GatewayStrategy
from memory import held
from network import MANAGEMENT, SCANNERS, address, get

PAGE = f"http://{address(SCANNERS)}/"
FIGURES = f"http://{address(MANAGEMENT)}:9464/metrics"
SAMPLE = re.compile(r'([a-z_:][a-z0-9_:]*)(?:\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (-?[0-9.e+]+|NaN)')


def test_scanners_see_a_colour_and_a_sentence(serving: GatewayStrategy) -> None:
    page, headers = get(PAGE)
    assert re.search(r"<h1>(Green|Yellow|Red)</h1><p>[^<]+</p>", page)
    assert "script" not in page and "form" not in page.replace("format", "")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "taken in" in page


def test_silent_callers_keep_nobody_from_the_page(serving: GatewayStrategy) -> None:
    silent = [socket.create_connection((address(SCANNERS), 80), 30, source_address=("10.99.1.11", 0)) for _ in range(60)]
    try:
        began = time.monotonic()
        assert "<h1>" in get(PAGE)[0]
        assert time.monotonic() - began < 30
    finally:
        for sock in silent:
            sock.close()


def test_figures_are_prometheus_text(serving: GatewayStrategy, figures: dict[str, Any]) -> None:
    text, headers = get(FIGURES)
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            found[match[1], match[2] or ""] = float(match[3])
    for name in ("dcmgate_queue_owed_objects", "dcmgate_backlog_age_seconds", "dcmgate_destination_up"):
        assert (name, 'destination="pacs"') in found
    assert found["dcmgate_spool_readable", ""] == 1
    assert found["dcmgate_unit_active", 'unit="dcmgate-receiver.service"'] == 1
    assert 0 < found["dcmgate_certificate_remaining_seconds", 'certificate="box"'] < 31 * 86400
    assert found["dcmgate_memory_available_bytes", ""] > 0
    figures["metrics samples"] = len(found)


def test_the_console_says_who_it_is_and_how(serving: GatewayStrategy) -> None:
    text = serving.run("cat /run/dcmgate-public/console.txt")
    for word in (serving.run("hostname"), "10.99.1.2", "10.99.3.2", "DCMGATE", "port 104, 11112", "pacs", "test key"):
        assert word in text
    assert serving.run("readlink /proc/$(systemctl show -P MainPID dcmgate-observer.service)/fd/1 || true") in ("", "/dev/tty1")
    assert serving.run("systemctl show -P StandardOutput,TTYPath dcmgate-observer.service").split() == ["tty", "/dev/tty1"]


def test_memory_of_what_is_beside(serving: GatewayStrategy, figures: dict[str, Any]) -> None:
    units = ("page", "metrics", "observer", "tunnel@archive")
    memory = held(serving.run, units)
    figures["memory bytes of what is beside"] = memory
    assert memory.keys() == set(units)
    assert max(memory.values()) < 100 << 20
