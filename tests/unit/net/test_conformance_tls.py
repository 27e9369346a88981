"""The conformance page says of TLS what the table of profiles says, and what goes over the wire."""

from __future__ import annotations

import re
import ssl
from itertools import pairwise
from pathlib import Path

import pytest

from appliance.config import settings
from appliance.net import tls
from appliance.net.tls import CURRENT_SUITES, CURRENT_VERSIONS, PROFILES, cannot

PAGE = (Path(__file__).parents[3] / "appliance" / "man" / "conformance.md").read_text()
VERSIONS = {"1.0": ssl.TLSVersion.TLSv1, "1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
GROUPS = {29: "X25519", 23: "P-256", 30: "X448", 25: "P-521", 24: "P-384", 256: "2048", 257: "3072", 258: "4096", 259: "6144",
          260: "8192", 4588: "X25519MLKEM768"}
"""RFC 8446 4.2.7 and the registry of IANA."""


def rows(first: str) -> list[list[str]]:
    """The rows of the table of the page whose head begins so."""
    lines = PAGE[PAGE.index(f"| {first} |"):].split("\n\n")[0].split("\n")[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def suites_of(profile: str) -> list[str]:
    """OpenSSL's names of the suites that the page gives a profile, in the page's order."""
    return [(name if alias == "the same" else alias).strip("`") for name, alias, where in rows("suite")
            if "all" in where or f"`{profile}`" in where]


def standard_name(name: str) -> str:
    """RFC 5246's name of a suite of AES: `ECDHE-RSA-AES128-SHA` is TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA."""
    *exchange, aes, last = name.replace("-GCM-", "_GCM-").split("-")
    bits, _, mode = aes.removeprefix("AES").partition("_")
    return f"TLS_{'_'.join(exchange) or 'RSA'}_WITH_AES_{bits}_{mode or 'CBC'}_{last}"


class Hello:
    """What a client context offers first: its ClientHello, read by the letter (RFC 8446 4.1.2)."""

    def __init__(self, profile: str) -> None:
        out = ssl.MemoryBIO()
        context = tls._context(ssl.PROTOCOL_TLS_CLIENT, PROFILES[profile])
        connection = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="example.org")
        with pytest.raises(ssl.SSLWantReadError):
            connection.do_handshake()
        self._rest = out.read()[5 + 4 + 2 + 32:]
        self._vector(1)
        codes = self._vector(2)
        ids = {cipher["id"] & 0xFFFF: str(cipher["name"]) for cipher in context.get_ciphers()}  # type: ignore[operator]
        self.suites = [ids[code] for code in _words(codes) if code != 0x00FF]
        self._vector(1)
        self._rest = self._vector(2)
        self.extensions: dict[int, bytes] = {}
        while self._rest:
            kind = int.from_bytes(self._take(2))
            self.extensions[kind] = self._vector(2)

    def _take(self, count: int) -> bytes:
        found, self._rest = self._rest[:count], self._rest[count:]
        return found

    def _vector(self, length: int) -> bytes:
        return self._take(int.from_bytes(self._take(length)))

    @property
    def groups(self) -> list[int]:
        return _words(self.extensions[10][2:])

    @property
    def versions(self) -> list[int]:
        return _words(self.extensions[43][1:])

    @property
    def signatures(self) -> list[int]:
        return _words(self.extensions[13][2:])


def _words(data: bytes) -> list[int]:
    return [int.from_bytes(data[at:at + 2]) for at in range(0, len(data), 2)]


def test_the_profiles_are_those_of_the_configuration_and_of_the_page() -> None:
    assert set(PROFILES) == {*settings.PROFILES, settings.LEGACY}
    shown = {name.strip("`"): (clause, as_scp, as_scu, versions) for name, clause, as_scp, as_scu, versions in rows("`tls`")}
    assert set(shown) == set(PROFILES)
    for name, profile in PROFILES.items():
        clause, as_scp, as_scu, versions = shown[name]
        assert f"({profile.clause})" in clause
        assert (as_scp, as_scu) == ("yes", "yes" if name in settings.PROFILES else "never")
        lowest, highest = re.findall(r"1\.\d", versions)
        assert VERSIONS[lowest] == profile.lowest and highest == "1.3"


@pytest.mark.parametrize("profile", PROFILES)
def test_the_suites_of_the_page_are_those_of_the_table_and_of_the_wire(profile: str) -> None:
    newest = [suite for suite in suites_of(profile) if suite.startswith("TLS_")]
    assert len(newest) == 3 and suites_of(profile) == [*newest, *PROFILES[profile].suites]
    assert Hello(profile).suites == suites_of(profile)


def test_each_suite_has_its_standard_name() -> None:
    for name, alias, _ in rows("suite"):
        if alias != "the same":
            assert name.strip("`") == standard_name(alias.strip("`"))


@pytest.mark.parametrize("profile", PROFILES)
def test_versions_groups_and_signatures_are_those_of_the_wire(profile: str) -> None:
    hello = Hello(profile)
    lowest = {ssl.TLSVersion.TLSv1: 0x0301, ssl.TLSVersion.TLSv1_2: 0x0303}[PROFILES[profile].lowest]
    assert hello.versions == list(range(0x0304, lowest - 1, -1))
    text = next(row[1] for row in rows("| `bcp195`, `bcp195-modified`") if row[0].startswith("key exchange groups"))
    names = [GROUPS.get(group, f"group {group}") for group in hello.groups]
    assert all(name in text for name in names), "a group that the page does not name"
    curves = [name for name in names if name[0] in "XP" and name != "X25519MLKEM768"]
    assert curves == ["X25519", "P-256", "X448", "P-521", "P-384"]
    assert all(text.index(one) < text.index(other) for one, other in pairwise(curves))
    sha1 = {0x0201, 0x0202, 0x0203} & set(hello.signatures)
    assert bool(sha1) == (profile == "legacy"), "SHA-1 is for the retired profile"


def test_key_sizes_are_those_of_the_security_level() -> None:
    """OpenSSL's own table, SSL_CTX_set_security_level(3): level 2 is 112 bits, RSA 2048, curves 224, no SHA-1."""
    for name, *cells in rows("| `bcp195`, `bcp195-modified`"):
        if name == "security level in OpenSSL":
            assert cells == [str(PROFILES["bcp195"].level), str(PROFILES["legacy"].level)] == ["2", "0"]
            assert PROFILES["bcp195-modified"].level == 2
        elif name.startswith("smallest"):
            assert cells == ["2048 bits" if "RSA" in name else "224 bits", "whatever comes"]


def test_what_needs_legacy_is_what_no_current_profile_has() -> None:
    for name in settings.PROFILES:
        assert set(suites_of(name)) == CURRENT_SUITES
        assert PROFILES[name].lowest == ssl.TLSVersion.TLSv1_2
    assert CURRENT_VERSIONS == ("TLSv1.2", "TLSv1.3")


def test_time_outs_are_those_of_the_settings() -> None:
    from appliance.receive.limits import Limits
    destination = settings.Destination(id="x")
    assert f"together have {Limits().first_pdu:.0f} s" in PAGE
    assert f"`connect_seconds` ({destination.connect_seconds:.0f} s)" in PAGE.replace("\n", " ")
    assert f"`progress_seconds` ({destination.progress_seconds:.0f} s)" in PAGE


def test_what_openssl_cannot_do_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [cannot(profile) for profile in PROFILES.values()] == [[], [], []], "Debian's OpenSSL can do all of them"
    monkeypatch.setattr(ssl, "HAS_TLSv1", False)
    assert cannot(PROFILES["legacy"]) == ["TLSv1"] and cannot(PROFILES["bcp195"]) == []
    old = tls.Profile("old", "none", ssl.TLSVersion.TLSv1_2, (*PROFILES["bcp195"].suites, "DES-CBC3-SHA", "RC4-SHA"), 0)
    assert cannot(old) == ["DES-CBC3-SHA", "RC4-SHA"]


def test_a_profile_that_is_quite_impossible_says_so_by_name() -> None:
    nothing = tls.Profile("basic", "PS3.15 B.1, retired", ssl.TLSVersion.TLSv1_2, ("DES-CBC3-SHA",), 0)
    with pytest.raises(tls.TlsError, match=r"OpenSSL .* can do none of the profile basic"):
        tls._context(ssl.PROTOCOL_TLS_SERVER, nothing)
    assert cannot(nothing) == ["DES-CBC3-SHA"]
