"""The configuration of a tunnel: what stands in it, and what is refused before stunnel ever sees it."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from appliance.config.settings import Tunnel
from appliance.errors import CertificateError, TunnelError
from appliance.net.tls import PROFILES, SYSTEM_BUNDLE
from appliance.tunnel import pins, program
from appliance.tunnel.place import Place
from appliance.tunnel.setup import Maker, masked
from tests.support import pki
from tests.support.proxies import password

ENTRY = Tunnel(id="ris", listen="127.0.0.1:2000", connect="ris.example.org:2762", certificate="box")


class Store:
    def __init__(self, folder: Path) -> None:
        self.state, self.run = folder / "state", folder / "run"
        self.run.mkdir()
        self.ca = pki.Authority()
        pki.place(self.state, "box", self.ca.leaf("box"), trust=[self.ca])
        self.maker = Maker(self.state, self.run)

    def lines(self, **settings: object) -> list[str]:
        return self.text(**settings).split("\n")

    def text(self, **settings: object) -> str:
        return self.maker.setup(replace(ENTRY, **settings)).text  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_towards_a_server(store: Store) -> None:
    lines = store.lines()
    for line in ("client = yes", "accept = 127.0.0.1:2000", "connect = ris.example.org:2762", "verifyChain = yes",
                 "sni = ris.example.org", "checkHost = ris.example.org", "sslVersionMin = TLSv1.2", "renegotiation = no",
                 "securityLevel = 2", f"ciphers = {':'.join(PROFILES['bcp195'].suites)}", "foreground = yes", "pid ="):
        assert line in lines
    assert not any(line.startswith(("CRLfile", "protocol", "verifyPeer", "setuid")) for line in lines)
    assert "checkIP = 2001:db8::7" in store.lines(connect="[2001:db8::7]:2762")
    assert "sni =" in store.lines(connect="192.0.2.1:2762")
    assert "connect = 2001:db8::7:2762" in store.lines(connect="[2001:db8::7]:2762")
    named = store.lines(connect="192.0.2.1:2762", server_name="ris.example.org.")
    assert "checkHost = ris.example.org" in named and "sni = ris.example.org" in named
    assert f"CAfile = {SYSTEM_BUNDLE}" in store.lines(trust="system")
    assert not any(line.startswith("cert = ") for line in store.lines(certificate="", trust="box"))


def test_towards_clients(store: Store) -> None:
    lines = store.lines(side="server", listen="0.0.0.0:2762", connect="127.0.0.1:104")
    for line in ("client = no", "verifyChain = yes", "sessionResume = no", "options = NO_TICKET", "accept = 0.0.0.0:2762"):
        assert line in lines
    assert not any(line.startswith(("check", "sni")) for line in lines)


def test_revocation_lists_count_while_all_are_in_force(store: Store) -> None:
    def counts(*lists: bytes) -> bool:
        pki.place(store.state, "box", crl=b"".join(lists))
        return "CRLfile = " in store.text()

    other = pki.Authority("Other")
    assert counts(store.ca.crl())
    assert not counts(store.ca.crl(), other.crl(start=timedelta(days=-9), end=timedelta(days=-1)))
    assert not counts(store.ca.crl(start=timedelta(days=1), end=timedelta(days=2)))


def test_the_text_differs_whenever_what_it_is_made_of_does(store: Store) -> None:
    seen = [store.text()]
    pki.place(store.state, "box", store.ca.leaf("box"))
    seen.append(store.text())
    pki.place(store.state, "box", trust=[store.ca, pki.Authority("Other")])
    seen.append(store.text())
    pki.place(store.state, "box", crl=store.ca.crl())
    seen += [store.text(), store.text(proxy="proxy.example.org:3128")]
    password(store.state, "proxy.example.org:3128")
    seen.append(store.text(proxy="proxy.example.org:3128"))
    assert len(set(seen)) == len(seen) and store.text() == seen[3]


def test_through_a_proxy(store: Store) -> None:
    password(store.state, "[2001:db8::1]:3128", "clinic:; s;p#=$%")
    text = store.text(proxy="[2001:db8::1]:3128")
    for line in ("connect = 2001:db8::1:3128", "protocol = connect", "protocolHost = ris.example.org:2762",
                 "protocolUsername = clinic", "checkHost = ris.example.org"):
        assert line in text.split("\n")
    assert "protocolPassword = ; s;p#=$%" in text and "s;p" not in masked(text) and "(not shown)" in masked(text)
    for bad, words in (("nobody", "form user:password"), ("clinic:p ", "a space at one"), ("clinic: p", "a space at one"),
                       ("cli\x1fnic:p", "control")):
        password(store.state, "[2001:db8::1]:3128", bad)
        with pytest.raises(TunnelError, match=words):
            store.text(proxy="[2001:db8::1]:3128")


MISSING: dict[str, tuple[dict[str, object], str]] = {
    "certificate": ({"certificate": "none", "trust": "box"}, "no certificate and key for"),
    "anchors": ({"trust": "none"}, "there are no trust anchors of none"),
    "pinned certificate": ({"pins": ("ab" * 32,)}, "no certificate with one of the pins"),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_named_with_a_mend(store: Store, what: str) -> None:
    settings, words = MISSING[what]
    with pytest.raises(TunnelError, match=words) as caught:
        store.text(**settings)
    assert "dcmgate" in caught.value.mend


def test_anchors_without_a_root_are_refused_before_stunnel_refuses_everybody(store: Store) -> None:
    pki.place(store.state, "half", trust=[store.ca.intermediate()])
    with pytest.raises(TunnelError, match="no self-signed root"):
        store.text(trust="half")
    (store.state / "certificates" / "half" / "trust.pem").write_text("nothing")
    with pytest.raises((TunnelError, CertificateError)):
        store.text(trust="half")


# --- pins ---------------------------------------------------------------------------------------------------------------


def test_a_pinned_certificate_comes_by_its_fingerprint_only(store: Store, tmp_path: Path) -> None:
    far, other = store.ca.leaf("far"), store.ca.leaf("other")
    wanted = [far.fingerprint]
    both = tmp_path / "both.pem"
    both.write_bytes(other.chain_pem() + far.chain_pem())
    der = pins.from_file(both, wanted)
    assert pins.keep(store.state, der, wanted) and not pins.keep(store.state, der, wanted)
    assert not pins.keep(store.state, pins.ders(other.chain_pem())[0], wanted)
    kept = store.state / "pins" / f"{far.fingerprint}.pem"
    assert kept.stat().st_mode & 0o777 == 0o600
    setup = store.maker.setup(replace(ENTRY, pins=(far.fingerprint.upper(), other.fingerprint)))
    assert "verifyPeer = yes" in setup.text and f"CAfile = {store.run}/tunnels/ris/trust.pem" in setup.text
    assert pins.ders(setup.anchors) == [*pins.ders(pki.pem(store.ca.certificate)), der]
    kept.write_bytes(other.chain_pem())                     # a file that was changed is no pin
    assert pins.of(store.state, wanted) == []
    (tmp_path / "other.pem").write_bytes(other.chain_pem())
    with pytest.raises(TunnelError, match=other.fingerprint):
        pins.from_file(tmp_path / "other.pem", wanted)


# --- stunnel and the folder ---------------------------------------------------------------------------------------------


@pytest.mark.system
def test_stunnel_takes_every_kind_of_setup_and_leaves_no_file(store: Store) -> None:
    far = store.ca.leaf("far")
    pins.keep(store.state, pins.ders(far.chain_pem())[0], [far.fingerprint])
    pki.place(store.state, "box", crl=store.ca.crl())
    kinds: list[dict[str, object]] = [
        {}, {"side": "server"}, {"pins": (far.fingerprint,)}, {"proxy": "proxy.example.org:3128"},
        {"trust": "box", "certificate": ""}, {"listen": "[::1]:2000", "connect": "[2001:db8::7]:2762"}]
    for settings in kinds:
        program.check(store.maker.setup(replace(ENTRY, **settings)))  # type: ignore[arg-type]
    assert list(store.run.iterdir()) == []


@pytest.mark.system
def test_what_stunnel_does_not_take_is_said_in_its_words(store: Store) -> None:
    pki.place(store.state, "box", pki.Pair(store.ca.leaf("x").key, store.ca.leaf("box").certificate))
    with pytest.raises(TunnelError, match="key values mismatch"):
        program.check(store.maker.setup(ENTRY))
    setup = store.maker.setup(ENTRY)
    with pytest.raises(TunnelError, match="unknown"):
        program.check(replace(setup, text=setup.text.replace("renegotiation = no", "renegotiation = unknown")))


def test_one_claim_at_a_time_and_a_record_that_ends_with_it(store: Store) -> None:
    place, setup = Place(store.run, "ris"), store.maker.setup(ENTRY)
    assert place.running() is None and place.last() is None
    claim = place.claim()
    assert place.running() is None                          # claimed, and nobody has signed yet
    place.write(setup)
    place.sign(claim, 4711, setup)
    found = place.running()
    assert found is not None and (found.pid, found.digest, found.listen, found.ours) == (
        4711, setup.digest, "127.0.0.1:2000", True)
    with pytest.raises(TunnelError, match="runs already, as process 4711"):
        place.claim()
    os.close(claim)
    assert place.running() is None
    last = place.last()
    assert last is not None and (last.listen, last.text) == (setup.listen, setup.text)
    os.close(place.claim())
