"""TLS: a listener with the certificate from the stick, a tunnel, the log to its collector."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import FOLDER
from gateway import GatewayStrategy
from waiting import wait_until

PKI = FOLDER / "pki"


def echo(*words: str, port: int, host: str = "10.99.1.2") -> subprocess.CompletedProcess[str]:
    command = ["echoscu", "-to", "30", "-ta", "30", "-aet", "CT1", "-aec", "DCMGATE", *words, host, str(port)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def tls(name: str) -> list[str]:
    return ["+tls", str(PKI / f"{name}.key"), str(PKI / f"{name}.pem"), "+cf", str(PKI / "ca.pem")]


def test_a_listener_has_the_certificate_from_the_stick(serving: GatewayStrategy) -> None:
    done = echo(*tls("scanner"), port=2762)
    assert done.returncode == 0, done.stderr
    assert echo(port=2762).returncode != 0
    assert echo("+tla", "+cf", str(PKI / "ca.pem"), port=2762).returncode != 0      # without a certificate of its own


def test_the_store_is_read_by_who_talks_tls_and_nobody_else(serving: GatewayStrategy) -> None:
    modes = serving.run("stat -c '%A %U:%G' /var/lib/dcmgate/certificates")
    assert modes == "drwxr-s--- dcmgate-keeper:dcmgate-keys"
    assert serving.run("cat /var/lib/dcmgate/certificates/box/current/key.pem 2>&1 || true").endswith("Permission denied")


def test_a_tunnel_is_up_and_a_c_echo_goes_through_it(serving: GatewayStrategy, tmp_path: Path) -> None:
    units = "dcmgate-tunnel@archive.service dcmgate-tunnel-reload@archive.path"
    assert serving.run(f"systemctl is-active {units}") == "active\nactive"
    command = ["storescp", *tls("pacs"), "-aet", "PACS", "-od", str(tmp_path), "2763"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: echo("-aec", "PACS", port=11120).returncode == 0, 90, "a C-ECHO through the tunnel")
        finally:
            process.terminate()
    assert echo("-aec", "PACS", port=11120).returncode != 0      # nobody there any more: so it was that one who answered


def test_the_tunnel_is_sandboxed(serving: GatewayStrategy, figures: dict[str, Any]) -> None:
    found = {}
    for unit in ("tunnel@archive", "page", "metrics", "observer"):
        text = serving.run(f"systemd-analyze security --no-pager dcmgate-{unit}.service | tail -1")
        found[unit] = float(text.split("level for")[1].split()[1])
    figures["exposure of what is beside"] = found
    assert max(found.values()) <= 2.0


@pytest.mark.usefixtures("serving")
def test_the_log_goes_to_its_collector_over_tls(serving: GatewayStrategy, collector: Any) -> None:
    wait_until(lambda: b"dcmgate" in collector.received, 180, lambda: (collector.subjects, collector.refused), every=2)
    assert b"__CURSOR=" in collector.received and b"MESSAGE=" in collector.received
    assert any("gate1" in subject for subject in collector.subjects)
