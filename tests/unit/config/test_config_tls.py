"""What a configuration says of TLS, certificates and tunnels: each contradiction is one finding with a mend."""

from __future__ import annotations

import pytest

from appliance.config import load
from appliance.config.checks import remarks
from appliance.config.hosts import host_port
from appliance.config.secure import bound_to, fingerprint

SMALL = """
[[listener]]
id = "in"
ports = 104
[[certificate]]
id = "box"
[[destination]]
id = "pacs"
address = "192.0.2.1"
default = true
"""
PRINT = "ab" * 32
DESTINATION = "[[destination]]\nid = 'x'\naddress = 'h'\n"
FOLDER = "[[destination]]\nid = 'x'\ntype = 'folder'\npath = '/x'\n"
LISTENER = "[[listener]]\nid = 'b'\nports = 2762\n"
TUNNEL = "[[tunnel]]\nid = 't'\nlisten = '127.0.0.1:5000'\nconnect = 'ris:2762'\n"
PEER = "[[peer]]\nid = 'ct'\n"

# (what the small file gets added, line, key, part of the message, part of the mend)
BAD = [
    (LISTENER + "tls = 'bcp195'", 11, "listener.b.certificate", "missing for a TLS listener", 'certificate = "box"'),
    (LISTENER + "tls = 'bcp195'\ncertificate = 'bx'", 15, "listener.b.certificate", "no certificate", '"box"'),
    (LISTENER + "tls = 'bcp-195'", 14, "listener.b.tls", "not one of", '"bcp195"'),
    (LISTENER + "certificate = 'box'", 14, "listener.b.certificate", "TLS, which is off", "bcp195"),
    (LISTENER + "client_certificates = 'optional'", 14, "listener.b.client_certificates", "TLS, which is off", "bcp195"),
    (PEER + f"certificates = ['sha256:{PRINT}']", 13, "peer.ct.certificates", "never be known", "required"),
    (LISTENER + "tls = 'bcp195'\ncertificate = 'box'\n" + PEER + "listeners = ['in']\ncertificates = ['dns:ct']", 19,
     "peer.ct.certificates", 'listener "in" asks for none', "required"),
    (LISTENER + "tls = 'bcp195'\ncertificate = 'box'\nclient_certificates = 'off'\n" + PEER + "certificates = ['dns:ct']", 19,
     "peer.ct.certificates", "no listener asks", "required"),
    (LISTENER + "tls = 'bcp195'\ncertificate = 'box'\n" + PEER + "certificates = ['cn=ct']", 18, "peer.ct.certificates[1]",
     "says nothing", "sha256:"),
    (LISTENER + "tls = 'bcp195'\ncertificate = 'box'\n" + PEER + "certificates = ['sha256:12']", 18, "peer.ct.certificates[1]",
     "says nothing", "64 hex"),
    (DESTINATION + f"pins = ['{PRINT}']", 14, "destination.x.pins", "TLS, which is off", "bcp195"),
    (DESTINATION + "trust = 'box'", 14, "destination.x.trust", "TLS, which is off", "bcp195"),
    (DESTINATION + "server_name = 'h'", 14, "destination.x.server_name", "TLS, which is off", "bcp195"),
    (DESTINATION + "tls = 'legacy'", 14, "destination.x.tls", "not one of", "bcp195"),
    (DESTINATION + "tls = 'bcp195'", 11, "destination.x.trust", "missing", 'trust = "box"'),
    (DESTINATION + "tls = 'bcp195'\ntrust = 'bix'", 15, "destination.x.trust", "no certificate", '"box"'),
    (DESTINATION + "tls = 'bcp195'\ncertificate = 'bix'", 15, "destination.x.certificate", "no certificate", '"box"'),
    (DESTINATION + "tls = 'bcp195'\ntrust = 'system'\npins = ['12:34']", 16, "destination.x.pins[1]", "fingerprint", "64 hex"),
    (DESTINATION + "tls = 'bcp195'\ntrust = 'system'\nserver_name = 'a b'", 16, "destination.x.server_name", "no host",
     "stands"),
    (DESTINATION + "canary_minutes = 60", 14, "destination.x.canary_minutes", "titles of its own", "`called` and `calling`"),
    (DESTINATION + "proxy = 'proxy'", 14, "destination.x.proxy", "not host:port", "3128"),
    (FOLDER + "tls = 'bcp195'", 15, "destination.x.tls", "type folder", "leave"),
    (FOLDER + "proxy = 'h:1'", 15, "destination.x.proxy", "type folder", "leave"),
    ("[[certificate]]\nid = 'system'", 12, "certificate.system.id", "the system trusts", "box"),
    ("[[certificate]]\nid = 'box'", 12, "certificate.box.id", "already the id", "its own"),
    ("[[certificate]]\nid = 'c'\nnames = ['a b']", 13, "certificate.c.names[1]", "no host name", "gateway"),
    ("[[certificate]]\nid = 'c'\nest_url = 'http://ca'", 13, "certificate.c.est_url", "not the URL", "https://"),
    ("[[certificate]]\nid = 'c'\nest_label = 'x'", 13, "certificate.c.est_label", "no est_url", "est_url"),
    ("[[certificate]]\nid = 'c'\nest_trust = 'box'", 13, "certificate.c.est_trust", "no est_url", "est_url"),
    ("[[certificate]]\nid = 'c'\nest_url = 'https://ca'\nest_trust = 'bix'", 14, "certificate.c.est_trust", "no certificate",
     '"box"'),
    ("[[certificate]]\nid = 'c'\ncrl_urls = ['ldap://ca/x']", 13, "certificate.c.crl_urls[1]", "no URL", "http://"),
    ("[[certificate]]\nid = 'c'\nproxy = 'proxy'", 13, "certificate.c.proxy", "not host:port", "3128"),
    ("[[certificate]]\nid = 'c'\nkey_type = 'rsa-2048'", 13, "certificate.c.key_type", "not one of", "rsa-3072"),
    ("[[tunnel]]\nid = 't'\nconnect = 'h:1'\ncertificate = 'box'", 11, "tunnel.t.listen", "missing", "127.0.0.1"),
    (TUNNEL.replace("127.0.0.1", "h") + "trust = 'system'", 13, "tunnel.t.listen", "not an address", ":5000"),
    (TUNNEL, 11, "tunnel.t.trust", "missing", "box"),
    (TUNNEL + "certificate = 'bix'", 15, "tunnel.t.certificate", "no certificate", "box"),
    (TUNNEL + "side = 'server'", 11, "tunnel.t.certificate", "missing for the TLS side", "box"),
    (TUNNEL + "side = 'server'\ncertificate = 'box'\nproxy = 'h:1'", 17, "tunnel.t.proxy", "TLS side is here", "client"),
    (TUNNEL + "certificate = 'box'\ncheck = 'echo'", 11, "tunnel.t.called", "missing", "tcp"),
    (TUNNEL + "certificate = 'box'\ncalled = 'ABCDEFGHIJKLMNOPQ'", 16, "tunnel.t.called", "17 characters", "is it"),
    (TUNNEL.replace("5000", "104") + "certificate = 'box'", 13, "tunnel.t.listen", 'listener "in"', "another port"),
    (TUNNEL.replace("ris:2762", "127.0.0.1:5000") + "certificate = 'box'", 14, "tunnel.t.connect", "itself", "far end"),
]


@pytest.mark.parametrize(("added", "line", "key", "message", "mend"), BAD, ids=[f"{b[2]}-{b[3]}" for b in BAD])
def test_each_mistake_names_line_key_and_mend(added: str, line: int, key: str, message: str, mend: str) -> None:
    errors = load.check(SMALL + added + "\n", "site.toml")
    assert len(errors) == 1, "one mistake is one line: " + "; ".join(map(str, errors))
    error = errors[0]
    assert (error.line, error.key) == (line, key)
    assert message in error.message
    assert mend in error.mend


GOOD = [
    LISTENER + "tls = 'legacy'\ncertificate = 'box'\n" + PEER + f"certificates = ['sha256:{PRINT}', 'dns:ct1.example.org']",
    DESTINATION + f"tls = 'bcp195'\ncertificate = 'box'\npins = ['{':'.join(['AB'] * 32)}']\nproxy = 'proxy:3128'",
    DESTINATION + "tls = 'bcp195-modified'\ntrust = 'system'\nserver_name = 'pacs.example.org'",
    TUNNEL + "certificate = 'box'\ncheck = 'echo'\ncalled = 'RIS'\nproxy = '[fd00::1]:3128'",
    TUNNEL + "side = 'server'\ncertificate = 'box'\ntrust = 'box'",
    "[[certificate]]\nid = 'c'\nnames = ['gw.example.org', '192.0.2.7', 'urn:uuid:1']\n"
    "est_url = 'https://ca:8443'\nest_label = 'tls'\nest_trust = 'system'",
    "[[certificate]]\nid = 'c'\ncrl_urls = ['http://pki/root.crl', 'https://pki:8443/x?y=1']\nproxy = 'proxy:3128'",
]


@pytest.mark.parametrize("added", GOOD)
def test_what_is_meant_is_accepted_and_survives_being_shown(added: str) -> None:
    config = load.parse(SMALL + added + "\n", "x")
    assert load.parse(load.render(config), "shown") == config


def test_the_second_of_two_tunnels_on_one_port_is_found() -> None:
    second = TUNNEL.replace("'t'", "'u'").replace("127.0.0.1", "0.0.0.0")
    text = SMALL + TUNNEL + "certificate = 'box'\n" + second + "trust = 'system'"
    assert [(e.key, 'tunnel "t"' in e.message) for e in load.check(text, "x")] == [("tunnel.u.listen", True)]


def test_remarks_name_legacy_clear_text_and_what_is_not_used() -> None:
    text = SMALL + LISTENER + "tls = 'legacy'\ncertificate = 'box'\n[[certificate]]\nid = 'spare'\n" + \
        "[[destination]]\nid = 'cloud'\naddress = '8.8.8.8'\ndefault = true\n"
    said = " ".join(remarks(load.parse(text, "x")))
    assert 'listener "b" speaks the retired AES profile' in said
    assert 'destination "cloud" is a public address without TLS' in said
    assert 'certificate "spare" is not used' in said and '"box" is not used' not in said


@pytest.mark.parametrize(("key_type", "said"), [("ec-p256", True), ("rsa-3072", False)])
def test_a_remark_says_that_a_key_of_elliptic_curves_shuts_scanners_out(key_type: str, said: bool) -> None:
    text = SMALL.replace('id = "box"', f'id = "box"\nkey_type = "{key_type}"') + LISTENER
    text += "tls = 'bcp195'\ncertificate = 'box'\n"
    assert ("suites of RSA only" in " ".join(remarks(load.parse(text, "x")))) is said


@pytest.mark.parametrize(("text", "bound"), [
    (f"sha256:{PRINT}", ("sha256", PRINT)), ("sha256:" + ":".join(["AB"] * 32), ("sha256", PRINT)),
    ("dns:CT1.Example.org", ("dns", "ct1.example.org")), ("uri:urn:uuid:1", ("uri", "urn:uuid:1")),
    ("email:a@b", ("email", "a@b")), ("email:ab", None), ("dns:", None), ("ct1", None), ("cn:ct1", None)])
def test_a_certificate_is_named_by_fingerprint_or_name(text: str, bound: tuple[str, str] | None) -> None:
    assert bound_to(text) == bound


def test_a_fingerprint_is_taken_as_the_tools_print_it() -> None:
    assert fingerprint("SHA256 Fingerprint=" + ":".join(["AB"] * 32)) == fingerprint(PRINT.upper()) == PRINT
    assert fingerprint(PRINT[:-2]) == fingerprint("") == fingerprint("zz" * 32) == ""


@pytest.mark.parametrize(("text", "parts"), [
    ("h:1", ("h", 1)), ("[fd00::1]:2762", ("fd00::1", 2762)), ("fd00::1:2762", None), ("h:0", None), ("h", None),
    ("h:70000", None), (":1", None), ("[h]:1", None)])
def test_host_and_port(text: str, parts: tuple[str, int] | None) -> None:
    assert host_port(text) == parts
