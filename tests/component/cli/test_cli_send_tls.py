"""`dcmgate send --tls`: the trial sender speaks TLS with the checks of a destination, and says what was spoken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydicom.data
import pytest

from appliance.cli import exits
from tests.support import pki
from tests.support.gateway import Gateway, to_folder
from tests.support.waiting import free_port

CT = str(pydicom.data.get_testdata_file("CT_small.dcm"))


class TlsSite:
    """A gateway with a mutual TLS listener, and what a caller may hold."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.other = pki.Authority("Clinic CA"), pki.Authority("Foreign CA")
        self.port = free_port()
        state = folder / "gateway" / "state"
        self.box = self.ca.leaf("box", addresses=["127.0.0.1"], dns=["localhost"])
        pki.place(state, "box", self.box, trust=[self.ca])
        pki.place(state, "foreign", self.other.leaf("box"), trust=[self.other])
        self.trust, self.foreign = folder / "trust.pem", folder / "foreign.pem"
        self.trust.write_bytes(pki.pem(self.ca.certificate))
        self.foreign.write_bytes(pki.pem(self.other.certificate))
        self.gateway = Gateway(folder / "gateway", [to_folder(folder / "archive")], extra=[
            ("[certificate]", {"id": "box"}), ("[certificate]", {"id": "foreign"}),
            ("[listener]", {"id": "tls", "address": "127.0.0.1", "ports": [self.port], "unknown": "admit", "tls": "bcp195",
                            "certificate": "box"})])

    def send(self, *more: str, host: str = "127.0.0.1", status: int = 0) -> str:
        return self.gateway.command("send", f"{host}:{self.port}", *more, status=status)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsSite]:
    made = TlsSite(tmp_path_factory.mktemp("send"))
    with made.gateway:
        made.gateway.start("receiver")
        yield made


def test_echo_and_objects_over_mutual_tls(tls: TlsSite) -> None:
    options = ("--tls", "bcp195", "--certificate", "box", "--trust", str(tls.trust))
    told = tls.gateway.json("send", f"127.0.0.1:{tls.port}", *options)
    assert told["status"] == 0
    assert told["tls"]["version"] == "TLSv1.3" and told["tls"]["certificate"] == f"sha256:{tls.box.fingerprint}"
    told = tls.gateway.json("send", f"127.0.0.1:{tls.port}", CT, *options[:4])      # the store's own trust anchors
    assert (told["stored"], told["failed"]) == (1, 0)
    text = tls.send(*options, "--server-name", "localhost")
    assert "TLSv1.3" in text and tls.box.fingerprint in text


REFUSED = {
    "wrong name": (("--certificate", "box", "--server-name", "pacs.example.org"), "not valid for 'pacs.example.org'"),
    "wrong authority": (("--certificate", "box", "--trust", "FOREIGN"), "not trusted"),
    "the system's authorities": (("--certificate", "box", "--trust", "system"), "not trusted"),
    "none of ours": (("--trust", "TRUST"), "our"),
    "a foreign one of ours": (("--certificate", "foreign", "--trust", "TRUST"), "our certificate"),
}


@pytest.mark.requirement("conformance: refused handshakes")
@pytest.mark.parametrize("why", REFUSED)
def test_what_does_not_hold_is_said(tls: TlsSite, why: str) -> None:
    options, words = REFUSED[why]
    files = {"TRUST": str(tls.trust), "FOREIGN": str(tls.foreign)}
    with pytest.raises(AssertionError, match=f"(?s)exit status {exits.UNREACHABLE}.*{words}"):
        tls.send(CT, "--tls", "bcp195", *(files.get(option, option) for option in options))


@pytest.mark.parametrize(("options", "status"), [
    (("--certificate", "box"), exits.USAGE), (("--trust", "TRUST"), exits.USAGE), (("--tls", "bcp195"), exits.USAGE),
    (("--tls", "bcp195", "--trust", "nowhere.pem"), exits.USAGE), (("--tls", "bcp195", "--certificate", "none"), exits.USAGE)])
def test_options_that_do_not_go_together(tls: TlsSite, options: tuple[str, ...], status: int) -> None:
    tls.send(*options, status=status)
