"""Read-back over TLS with real archives: Orthanc, and DCMTK's dcmqrscp behind stunnel (Debian's has no TLS of its own)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import objects, peers, pki
from tests.support.gateway import Gateway, to_peer
from tests.support.stunnels import stunnel
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.mark.requirement("conformance: read-back")
def test_what_was_sent_over_tls_is_confirmed_over_tls(tmp_path: Path) -> None:
    """Mutual TLS 1.2 and 1.3. An archive whose certificate is another one's is sent nothing and asked nothing."""
    ca = pki.Authority("Cloud CA")
    pki.place(tmp_path / "gateway" / "state", "box", ca.leaf("box"), trust=[ca])
    server = ca.leaf("cloud", addresses=["127.0.0.1"])
    trust = tmp_path / "trust.pem"
    trust.write_bytes(pki.pem(ca.certificate))
    key, chain = server.write(tmp_path, "cloud")
    sent = peers.files_of([objects.ct(n, "readback", side=64) for n in range(1, 5)], tmp_path / "sent")
    with peers.orthanc(tmp_path / "orthanc", settings={
                "DicomTlsEnabled": True, "DicomTlsCertificate": str(chain), "DicomTlsPrivateKey": str(key),
                "DicomTlsTrustedCertificates": str(trust), "DicomAlwaysAllowFind": True}) as orthanc, \
            peers.dcmqrscp(tmp_path / "dcmqrscp") as dcmqrscp, \
            stunnel(tmp_path / "stunnel", dcmqrscp.port, client=False, pair=server, trust=trust,
                    options=("sslVersion = TLSv1.2",)) as tunnel:
        tls = {"tls": "bcp195", "certificate": "box", "proof": "readback"}
        destinations = [to_peer(orthanc, id="orthanc", **tls),
                        {**to_peer(dcmqrscp, id="dcmqrscp", **tls), "port": tunnel},
                        {**to_peer(dcmqrscp, id="wrong", server_name="other.example.org", required=False, **tls),
                         "port": tunnel}]
        with Gateway(tmp_path / "gateway", destinations, extra=[("[certificate]", {"id": "box"})]) as gateway:
            gateway.start("run")
            assert peers.storescu(gateway.port, sent, tmp_path).returncode == 0
            orthanc.wait_for([file.key for file in sent])
            dcmqrscp.wait_for([file.key for file in sent])

            def confirmed() -> dict[str, int]:
                return {found["destination"]: found["confirmed"] for found in gateway.json("status")["destinations"]}
            wait_until(lambda: confirmed() == {"orthanc": 4, "dcmqrscp": 4, "wrong": 0}, 60, "both archives proved it",
                       every=0.5)
            assert any(alarm["key"] == "destination-refuses:wrong" for alarm in gateway.json("status")["alarms"])
            wait_until(lambda: gateway.json("status")["destinations"][2]["tls_refused"].get("wrong_name", 0) >= 2, 30,
                       "each handshake that failed is counted", every=0.5)
            [row] = gateway.json("peers")["refused_there"]
            assert (row["destination"], row["check"]) == ("wrong", "wrong_name") and "other.example.org" in row["text"]
            assert "TLS failed" in gateway.command("status", "--once") and "TLS FAILED WITH" in gateway.command("peers")
