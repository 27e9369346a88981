"""The bill of materials: every package and wheel, the same for the same packages, and what is known against them."""

from __future__ import annotations

import json
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STANZAS = """Package: openssl
Version: 3.5.1-1

Package: libssl3t64
Source: openssl (3.5.1-1)
Version: 3.5.1-1

Package: zlib1g
Source: zlib
Version: 1:1.3+dfsg-1
"""
PACKAGES = [{"type": "deb", "name": name, "version": version, "architecture": "amd64"}
            for name, version in (("zlib1g", "1:1.3+dfsg-1"), ("libssl3t64", "3.5.1-1"), ("openssl", "3.5.1-1"))]
TRACKER = {"openssl": {"CVE-2026-1": {"description": "open", "releases": {"trixie": {"status": "open", "urgency": "high"}}},
                       "CVE-2026-2": {"releases": {"trixie": {"status": "resolved", "fixed_version": "3.5.1-1"}}},
                       "CVE-2026-3": {"releases": {"trixie": {"status": "resolved", "fixed_version": "3.5.1-1+deb13u1"}}},
                       "CVE-2026-4": {"releases": {"bookworm": {"status": "open"}}},
                       "CVE-2026-5": {"releases": {"trixie": {"status": "resolved", "fixed_version": "0"}}}}}


@pytest.fixture
def sbom(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DCMGATE_TRACKER", raising=False)
    monkeypatch.delenv("DCMGATE_SNAPSHOT", raising=False)
    lists = tmp_path / "cache/dcmgate/packages/lib/apt/lists"
    lists.mkdir(parents=True)
    (lists / "x_Packages").write_text(STANZAS)
    (tmp_path / "dcmgate_1.manifest").write_text(json.dumps({"packages": PACKAGES}))
    loader = SourceFileLoader("sbom", str(ROOT / "image-build/sbom"))
    spec = spec_from_loader("sbom", loader)
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def made(sbom, tmp_path, kind):
    sbom.main(tmp_path, "1")
    return json.loads((tmp_path / f"dcmgate_1.{kind}.json").read_text())


def test_each_package_is_named_with_its_source(sbom, tmp_path):
    bill = made(sbom, tmp_path, "cdx")
    assert bill["bomFormat"] == "CycloneDX" and bill["metadata"]["component"]["version"] == "1"
    found = {part["name"]: part for part in bill["components"]}
    assert list(found) == ["libssl3t64", "openssl", "zlib1g"]
    assert found["zlib1g"]["purl"] == "pkg:deb/debian/zlib1g@1%3A1.3%2Bdfsg-1?arch=amd64&distro=trixie"
    assert {entry["value"] for entry in found["libssl3t64"]["properties"]} == {"openssl", "3.5.1-1"}
    assert (tmp_path / "dcmgate_1.packages").read_text().splitlines()[0] == "libssl3t64 3.5.1-1 amd64"
    assert made(sbom, tmp_path, "cdx") == bill


def test_what_debian_knows_of_these_versions_and_no_more(sbom, tmp_path, monkeypatch):
    (tmp_path / "tracker").write_text(json.dumps(TRACKER))
    monkeypatch.setattr(sbom, "TRACKER", str(tmp_path / "tracker"))
    told = made(sbom, tmp_path, "vulnerabilities")
    assert told["state"] == "checked"
    assert [(one["id"], one["fixed"]) for one in told["known"]] == [("CVE-2026-1", ""), ("CVE-2026-3", "3.5.1-1+deb13u1")]
    assert len(told["known"][0]["affects"]) == 2
    judged = json.loads((tmp_path / "dcmgate_1.vex.json").read_text())["vulnerabilities"]
    assert [(one["id"], one["analysis"]["state"]) for one in judged] == [
        ("CVE-2026-1", "in_triage"), ("CVE-2026-3", "in_triage")]


def test_without_the_tracker_it_says_that_nothing_was_checked(sbom, tmp_path):
    told = made(sbom, tmp_path, "vulnerabilities")
    assert told["state"] == "not checked" and "DCMGATE_TRACKER" in told["reason"] and told["known"] == []


SAME = "libssl3t64 3.5.1-1 amd64\nopenssl 3.5.1-1 amd64\nzlib1g 1:1.3+dfsg-1 amd64\n"


@pytest.mark.parametrize("snapshot, said", [
    (SAME, ""),
    (SAME.replace("openssl 3.5.1-1", "openssl 3.5.0-1"), "do not give openssl 3.5.0-1 (now 3.5.1-1)"),
    (SAME + "zstd 1.5 amd64\n", "do not give zstd 1.5 (now not there)"),
    (SAME.replace("zlib1g 1:1.3+dfsg-1 amd64\n", ""), "do not give zlib1g (not in the snapshot)")])
def test_other_versions_than_the_snapshot_s_are_an_error_that_names_them(sbom, tmp_path, monkeypatch, snapshot, said):
    """An archive that has moved on would give another root without a word."""
    (tmp_path / "earlier.packages").write_text(snapshot)
    monkeypatch.setattr(sbom, "SNAPSHOT", str(tmp_path / "earlier.packages"))
    if not said:
        sbom.main(tmp_path, "1")
        return
    with pytest.raises(SystemExit) as error:
        sbom.main(tmp_path, "1")
    assert said in str(error.value.code) and "DCMGATE_MIRROR" in str(error.value.code)
