"""`legacy` is shown as what it is: in the log at the start, in `status`, as a notice; and who needs it is named."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.dicom import pdu, uids
from tests.support import pki
from tests.support.gateway import Gateway, to_folder
from tests.support.waiting import free_port, wait_until


class Old:
    """A gateway with a listener for old scanners and one for the others."""

    def __init__(self, folder: Path) -> None:
        self.ca = pki.Authority("Clinic CA")
        self.port, self.current = free_port(), free_port()
        pki.place(folder / "gateway" / "state", "rsa", self.ca.leaf("box", addresses=["127.0.0.1"], key="rsa-2048"),
                  trust=[self.ca])
        common = {"address": "127.0.0.1", "unknown": "admit", "certificate": "rsa", "client_certificates": "off"}
        self.gateway = Gateway(folder / "gateway", [to_folder(folder / "archive")], extra=[
            ("[certificate]", {"id": "rsa", "key_type": "rsa-3072"}),
            ("[listener]", {"id": "old", "ports": [self.port], "tls": "legacy", **common}),
            ("[listener]", {"id": "current", "ports": [self.current], "tls": "bcp195", **common})])

    def associate(self, title: str, version: ssl.TLSVersion, suites: str = "DEFAULT") -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        context.set_ciphers(f"{suites}:@SECLEVEL=0")
        request = pdu.AssociateRequest(pdu.title_bytes("DCMGATE"), pdu.title_bytes(title),
                                       (pdu.ProposedContext(1, uids.VERIFICATION, (uids.IMPLICIT_LE,)),), 16384)
        with socket.create_connection(("127.0.0.1", self.port)) as sock, context.wrap_socket(sock) as tls:
            tls.sendall(pdu.encode(request))
            assert tls.recv(1) == b"\2", "accepted"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Old]:
    made = Old(tmp_path_factory.mktemp("old"))
    with made.gateway:
        made.gateway.start("run")
        yield made


@pytest.mark.requirement("conformance: legacy is shown")
def test_who_needs_the_retired_profile_is_named(old: Old) -> None:
    gateway = old.gateway
    log = gateway.log("run").read_text()
    assert "a listener speaks the retired AES profile" in log and "listener=old" in log and "listener=current" not in log
    shown = {told["listener"]: told for told in gateway.json("status")["listeners"]}
    assert shown["old"]["tls"] == "legacy" and "legacy" not in shown["current"]
    assert shown["old"]["cannot"] == [], "what OpenSSL 3 can do at security level 0: all but SSL 3 and 3DES"
    old.associate("OLD-CT", ssl.TLSVersion.TLSv1)
    old.associate("OLD-MR", ssl.TLSVersion.TLSv1_2, "AES128-SHA")
    old.associate("NEW-CT", ssl.TLSVersion.TLSv1_3)

    def callers() -> dict[str, tuple[str, str, bool, int]]:
        return {c["title"]: (c["version"], c["suite"], c["needed"], c["associations"]) for c in gateway.json("peers")["legacy"]}
    wait_until(lambda: len(callers()) == 3, 20, "all three are remembered", every=0.3)
    assert callers() == {"OLD-CT": ("TLSv1", "ECDHE-RSA-AES256-SHA", True, 1), "OLD-MR": ("TLSv1.2", "AES128-SHA", True, 1),
                         "NEW-CT": ("TLSv1.3", "TLS_AES_256_GCM_SHA384", False, 1)}
    legacy = next(told for told in gateway.json("status")["listeners"] if told["listener"] == "old")["legacy"]
    assert (legacy["associations"], legacy["needed"]) == (3, 2)
    text = gateway.command("status", "--once")
    assert "TLS by legacy (retired: old protocols and suites)" in text
    assert "2 associations of 2 scanners needed it, 1 did not" in text
    assert "OLD-CT" in gateway.command("peers") and "AES128-SHA" in gateway.command("peers")

    def notice() -> str:
        return next((alarm["text"] for alarm in gateway.json("status")["alarms"] if alarm["key"] == "legacy-tls:old"), "")
    wait_until(lambda: '"OLD-CT" at 127.0.0.1, "OLD-MR" at 127.0.0.1 cannot do without it' in notice(), 30,
               "a notice names those that need it", every=0.3)
