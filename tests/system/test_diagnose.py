"""The diagnosis names the right hop in each of these broken set-ups, made with the real programs; and none where nothing is
broken. All of them are walked at once, and mostly wait."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.config.settings import Destination, Tunnel
from appliance.dicom import uids
from appliance.probe.target import of_destination, of_tunnel
from appliance.probe.walk import walk
from tests.support import badpeers, namespace, objects, peers, pki, proxies
from tests.support.stunnels import stunnel
from tests.support.waiting import free_port
from tests.support.ways import HOP_SECONDS, Reports, destination, walked

pytestmark = [pytest.mark.system, pytest.mark.slow]

BROKEN = {
    # set-up: (hop, cause)
    "no such name": ("name", "no_such_name"),
    "name server fails": ("name", "no_resolver"),
    "name server is silent": ("name", "no_resolver"),
    "name without address": ("name", "no_address"),
    "refused port": ("tcp", "refused"),
    "no route": ("tcp", "no_route"),
    "black-holed route": ("tcp", "no_route"),
    "route prohibited": ("tcp", "forbidden"),
    "host is off": ("tcp", "host_unreachable"),
    "firewall swallows": ("tcp", "timeout"),
    "proxy is not there": ("tcp", "refused"),
    "proxy wants a password": ("proxy", "credentials"),
    "proxy takes another password": ("proxy", "credentials"),
    "proxy does not lead there": ("proxy", "forbidden"),
    "no certificate installed": ("configuration", "no_certificate"),
    "no trust anchors installed": ("configuration", "no_trust"),
    "plain server, TLS wanted": ("tls", "plain_where_tls"),
    "HTTP server, TLS wanted": ("tls", "not_tls"),
    "silent server, TLS wanted": ("tls", "no_answer"),
    "wrong host name": ("tls", "wrong_name"),
    "unknown authority": ("tls", "unknown_authority"),
    "expired": ("tls", "expired"),
    "not yet valid": ("tls", "not_yet_valid"),
    "self-signed": ("tls", "self_signed"),
    "revoked": ("tls", "revoked"),
    "not pinned": ("tls", "not_pinned"),
    "protocol too old": ("tls", "protocol_version"),
    "our certificate is missing": ("tls", "our_certificate_missing"),
    "our certificate is missing, TLS 1.2": ("tls", "our_certificate_"),
    "our certificate is foreign": ("tls", "our_certificate_unknown_authority"),
    "our certificate is expired": ("tls", "our_certificate_expired"),
    "TLS server, plain configured": ("association", "tls_where_plain"),
    "called title": ("association", "called_title"),
    "calling title": ("association", "calling_title"),
    "refuses all": ("association", "rejected"),
    "HTTP server": ("association", "not_dicom"),
    "accepts and hangs": ("association", "no_answer"),
    "hangs at C-ECHO": ("service", "no_answer"),
    "large packets vanish": ("path", "path_mtu"),
    "large packets vanish, TLS": ("path", "path_mtu"),
    "folder is not there": ("folder", "no_archive"),
    "tunnel's near end is not there": ("near", "not_running"),
    "tunnel's server wants a certificate": ("tls", "our_certificate_missing"),
}

REMARKS = {
    "Verification not taken": ("service", "no_verification"),
    "one of two addresses is dead": ("tcp", "timeout"),
    "does not take what waits": ("storage", "not_taken"),
}

GOOD = ("plain", "TLS", "proxy, password and TLS", "stunnel", "slow line", "line", "long chain", "name", "folder", "tunnel")


@contextmanager
def serving_http(folder: Path) -> Iterator[int]:
    folder.mkdir()
    port = free_port()
    with peers.running([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)], [port],
                       log=folder / "http.log", cwd=folder):
        yield port


@contextmanager
def s_server(folder: Path, pair: pki.Pair, *options: str) -> Iterator[int]:
    key, chain = pair.write(folder, "s_server")
    port = free_port()
    with peers.running([peers.program("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-key", key, "-cert", chain,
                        "-quiet", *options], [port], log=folder / "s_server.log"):
        yield port


class Site:
    """The servers of this module, and a certificate store."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.stack = stack
        self.ca, self.foreign = pki.Authority("Clinic CA"), pki.Authority("Foreign CA")
        self.trust = folder / "trust.pem"
        self.trust.write_bytes(pki.pem(self.ca.certificate))
        self.good = self.ca.leaf("pacs", addresses=["127.0.0.1"])
        self.revoked = self.ca.leaf("revoked", addresses=["127.0.0.1"])
        self.ca.revoke(self.revoked)
        pki.place(self.state, "box", self.ca.leaf("box"), trust=[self.ca], crl=self.ca.crl())
        pki.place(self.state, "foreign", self.foreign.leaf("box"), trust=[self.ca])
        pki.place(self.state, "late", self.ca.expired("box"), trust=[self.ca])
        pki.place(self.state, "untrusting", self.ca.leaf("box"))

    def storescp(self, name: str, pair: pki.Pair | None = None, *options: str, **settings: Any) -> int:
        tls: list[str] = []
        if pair is not None:
            key, chain = pair.write(self.folder / name, "server")
            tls = ["+tls", str(key), str(chain), "+cf", str(self.trust)]
        return self.stack.enter_context(peers.storescp(self.folder / name, options=[*tls, *options], **settings)).port

    def tls(self, port: int, **settings: Any) -> Destination:
        return destination(**{"port": port, "tls": "bcp195", "certificate": "box", **settings})


def _without_verification(site: Site) -> int:
    port, folder = free_port(), site.folder / "no-echo"
    folder.mkdir()
    (folder / "store.cfg").write_text(
        f"[[TransferSyntaxes]]\n[Any]\nTransferSyntax1 = {objects.EXPLICIT}\n[[PresentationContexts]]\n[Store]\n"
        f"PresentationContext1 = {objects.CT}\\Any\n[[Profiles]]\n[Default]\nPresentationContexts = Store\n")
    site.stack.enter_context(peers.running([peers.program("storescp"), "-od", folder, "-xf", folder / "store.cfg", "Default",
                                            str(port)], [port], log=folder / "log"))
    return port


@contextmanager
def _for_one_title(title: str) -> Iterator[int]:
    """pynetdicom, as an archive with a list of its senders."""
    from pynetdicom import AE
    port, ae = free_port(), AE(ae_title="STORESCP")
    ae.add_supported_context(peers.VERIFICATION)
    ae.require_calling_aet = [title]
    server = ae.start_server(("127.0.0.1", port), block=False)
    try:
        yield port
    finally:
        assert server is not None
        server.shutdown()


def _places(site: Site) -> dict[str, Destination]:
    enter, plain, good = site.stack.enter_context, site.storescp("plain"), site.storescp("good", site.good)
    http, silent = enter(serving_http(site.folder / "http")), enter(badpeers.silent_after_connect())
    archive = enter(peers.dcmqrscp(site.folder / "archive"))
    free, secret = enter(proxies.tinyproxy(site.folder / "free", login="")), enter(proxies.tinyproxy(site.folder / "secret"))
    wrong, narrow = enter(proxies.tinyproxy(site.folder / "wrong")), enter(
        proxies.tinyproxy(site.folder / "narrow", login="", ports=[443]))
    right = enter(proxies.tinyproxy(site.folder / "right"))
    (site.state / "proxies").mkdir()
    for proxy, login in ((wrong, "clinic:wrong"), (right, proxies.LOGIN)):
        file = site.state / "proxies" / proxy.place
        file.write_text(login + "\n")
        file.chmod(0o600)
    bad = {"wrong host name": site.ca.leaf("other", dns=["pacs.example.org"]),
           "unknown authority": site.foreign.leaf("pacs", addresses=["127.0.0.1"]),
           "expired": site.ca.expired("pacs", addresses=["127.0.0.1"]),
           "not yet valid": site.ca.not_yet_valid("pacs", addresses=["127.0.0.1"]),
           "self-signed": pki.self_signed("pacs", addresses=["127.0.0.1"]), "revoked": site.revoked}
    old = enter(s_server(site.folder / "old", site.good, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"))
    verifying = enter(s_server(site.folder / "verifying", site.good, "-tls1_2", "-Verify", "1", "-verify_return_error",
                               "-CAfile", str(site.trust)))
    fronted = enter(stunnel(site.folder / "stunnel", plain, client=False, pair=site.good, trust=site.trust))
    return {
        "plain": destination(port=plain), "TLS": site.tls(good), "stunnel": site.tls(fronted),
        "proxy, password and TLS": site.tls(good, proxy=right.place), "refused port": destination(port=free_port()),
        "proxy is not there": destination(port=plain, proxy=f"127.0.0.1:{free_port()}"),
        "proxy wants a password": destination(port=plain, proxy=secret.place),
        "proxy takes another password": destination(port=plain, proxy=wrong.place),
        "proxy does not lead there": destination(port=plain, proxy=narrow.place),
        "no certificate installed": site.tls(good, certificate="nothing"),
        "no trust anchors installed": site.tls(good, certificate="untrusting"),
        "plain server, TLS wanted": site.tls(plain), "HTTP server, TLS wanted": site.tls(http),
        "silent server, TLS wanted": site.tls(silent),
        **{name: site.tls(site.storescp(f"bad-{nth}", pair)) for nth, (name, pair) in enumerate(bad.items())},
        "not pinned": site.tls(good, pins=("ab" * 32,)), "protocol too old": site.tls(old),
        "our certificate is missing": site.tls(good, certificate="", trust="box"),
        "our certificate is missing, TLS 1.2": site.tls(verifying, certificate="", trust="box"),
        "our certificate is foreign": site.tls(good, certificate="foreign"),
        "our certificate is expired": site.tls(good, certificate="late"),
        "TLS server, plain configured": destination(port=good),
        "called title": destination(port=archive.port, called="QRSPC"),
        "calling title": destination(port=enter(_for_one_title("CT1"))),
        "refuses all": destination(port=site.storescp("refusing", None, "--refuse")),
        "HTTP server": destination(port=http), "accepts and hangs": destination(port=silent),
        "hangs at C-ECHO": destination(port=enter(badpeers.hung_after_accept())),
        "Verification not taken": destination(port=_without_verification(site)),
        "folder is not there": Destination(id="pacs", type="folder", path=str(site.folder / "gone")),
        "free proxy": destination(port=plain, proxy=free.place),
    }


def _tunnels(site: Site, places: Mapping[str, Destination]) -> dict[str, Tunnel]:
    good = f"127.0.0.1:{places['TLS'].port}"
    near = site.stack.enter_context(stunnel(site.folder / "near", places["TLS"].port, client=True,
                                            pair=site.ca.leaf("box"), trust=site.trust))
    settings: dict[str, Any] = {"connect": good, "certificate": "box", "check": "echo", "called": "STORESCP"}
    return {"tunnel": Tunnel(id="t", listen=f"127.0.0.1:{near}", **settings),
            "tunnel's near end is not there": Tunnel(id="t", listen=f"127.0.0.1:{free_port()}", **settings),
            "tunnel's server wants a certificate": Tunnel(id="t", listen=f"127.0.0.1:{near}", connect=good, trust="box")}


def _folder(site: Site) -> Destination:
    from appliance.net.archive import init
    init(site.folder / "kept")
    return Destination(id="pacs", type="folder", path=str(site.folder / "kept"))


NAMESPACES = {
    "names": {"missing": "no such name", "fails": "name server fails", "silent": "name server is silent",
              "empty": "name without address", "two": "one of two addresses is dead", "good": "name"},
    "routes": {"no route": "no route", "black-holed route": "black-holed route", "prohibited": "route prohibited",
               "nobody there": "host is off", "swallowed": "firewall swallows"},
    "line": {"black hole": "large packets vanish", "whole": "line", "slow": "slow line"},
    "hole": {"whole": "long chain", "swallowed": "large packets vanish, TLS"},
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reports]:
    folder = tmp_path_factory.mktemp("diagnose")
    lacking = namespace.lacking()
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        site = Site(folder, stack)
        apart = {kind: pool.submit(namespace.inside, f"tests.support.ways:{kind}", {"folder": str(folder / kind)},
                                   folder / kind, 60.0) for kind in NAMESPACES if not lacking}
        places = _places(site)
        tunnels = _tunnels(site, places)
        places["folder"] = _folder(site)
        found = walked(places, site.state)
        found.update({name: walk(of_tunnel(tunnel), site.state, hop_seconds=HOP_SECONDS).as_json()
                      for name, tunnel in tunnels.items()})
        waiting = [(objects.CT, uids.HTJ2K), (objects.CT, objects.EXPLICIT)]
        found["does not take what waits"] = walk(of_destination(places["plain"]), site.state, pairs=waiting,
                                                 hop_seconds=HOP_SECONDS).as_json()
        for kind, names in NAMESPACES.items():
            if kind in apart:
                answer = apart[kind].result()
                found.update({name: answer[key] for key, name in names.items()})
        yield found


def _report(reports: Reports, name: str) -> dict[str, Any]:
    if name not in reports:
        pytest.skip(namespace.lacking())
    return reports[name]


def _hop(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(hop for hop in report["hops"] if hop["hop"] == name)


@pytest.mark.requirement("diagnosis: the right hop")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_way_ends_at_the_right_hop(reports: Reports, name: str) -> None:
    report, (hop, cause) = _report(reports, name), BROKEN[name]
    assert (report["failed"], report["cause"][:len(cause)]) == (hop, cause), report
    failed = _hop(report, hop)
    assert failed["text"] and failed["mend"].endswith((".", ")")), failed
    behind = report["hops"][report["hops"].index(failed) + 1:]
    assert {hop["state"] for hop in behind if hop["hop"] != "clock"} <= {"skipped"}


@pytest.mark.requirement("diagnosis: the right hop")
@pytest.mark.parametrize("name", GOOD)
def test_a_way_that_leads_through_has_no_failing_hop(reports: Reports, name: str) -> None:
    report = _report(reports, name)
    assert report["reached"], report
    assert {hop["state"] for hop in report["hops"]} == {"ok"}, report


@pytest.mark.parametrize("name", REMARKS)
def test_what_works_with_a_remark(reports: Reports, name: str) -> None:
    report, (hop, cause) = _report(reports, name), REMARKS[name]
    assert report["reached"], report
    found = _hop(report, hop)
    assert (found["state"], found["cause"]) == ("warning", cause) and found["mend"]


@pytest.mark.requirement("diagnosis: bounded")
def test_no_hop_takes_longer_than_its_time(reports: Reports) -> None:
    late = {name: hop for name, report in reports.items() for hop in report["hops"]
            if hop["milliseconds"] > 1000 * HOP_SECONDS + 2000}
    assert not late


def test_facts_of_a_good_way(reports: Reports) -> None:
    tls = _hop(reports["TLS"], "tls")["facts"]
    assert tls["protocol"] == "TLSv1.3" and tls["resumed"] is False and tls["resumed_again"] is True
    assert tls["chain"][0]["names"] == ["ip:127.0.0.1"] and len(tls["chain"][0]["sha256"]) == 64
    assert _hop(reports["TLS"], "path")["facts"]["path_mtu"] > 1000
    accepted = _hop(reports["plain"], "storage")["facts"]["accepted"]
    assert uids.EXPLICIT_LE in accepted[uids.CT_IMAGE_STORAGE]
    assert _hop(reports["plain"], "tcp")["facts"]["way"]["source"] == "127.0.0.1"
    assert _hop(reports["plain"], "association")["facts"]["implementation"].startswith("OFFIS_DCMTK")


def test_the_chain_of_a_server_that_is_refused_is_shown(reports: Reports) -> None:
    shown = _hop(reports["unknown authority"], "tls")
    assert shown["facts"]["chain"][0]["issuer"] == "CN=Foreign CA" and "Foreign CA" in shown["mend"]
    assert "TLSv1.1" in _hop(reports["protocol too old"], "tls")["text"]
    assert "pacs.example.org" in _hop(reports["wrong host name"], "tls")["mend"]


def test_the_clock_is_unknown_rather_than_invented(reports: Reports) -> None:
    assert _hop(reports["plain"], "clock")["facts"]["source"] == "unknown"
    assert _hop(reports["plain"], "clock")["facts"]["difference_seconds"] is None


def test_a_black_hole_says_what_gets_through(reports: Reports) -> None:
    hole = _hop(_report(reports, "large packets vanish"), "path")
    assert hole["facts"]["passes_mtu"] == 1240
