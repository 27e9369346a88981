"""Updates: refused where they should be; cut off by the power; blessed where the new version is good; taken back where not."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FOLDER, ROOT, in_tools
from cuts import cut_under_load
from dicom import arrived, pacs, send, study
from gateway import GatewayStrategy, Status
from machine import DEVICE
from partitions import Disk
from releases import URL, Maker, next_version
from volatile import VolatileDisk
from waiting import wait_until

pytestmark = [pytest.mark.timeout(2400), pytest.mark.apart(minutes=28)]


@pytest.fixture(scope="module")
def second(maker: Maker, version: str) -> Path:
    """The next version: good."""
    return maker.variant("second", next_version(version))


@pytest.fixture(scope="module")
def third(maker: Maker, version: str) -> Path:
    """The one after it: its receiver does not start, and it waits less long than others for a disk that does not come."""
    words = "systemd.mask=dcmgate-receiver.service systemd.default_device_timeout_sec=60"
    return maker.variant("third", next_version(version, 2), words)


def asked(box: GatewayStrategy, name: str) -> tuple[str, int]:
    """What `install` says of a release on our server, and its exit status."""
    out, _, code = box.ssh.run(f"dcmgate update install --from {URL}/{name}", timeout=300)
    return "\n".join(out), code


# --- refusals ------------------------------------------------------------------------------------------------------------

def test_a_release_without_a_signature_is_refused(volatile: VolatileDisk, serving: GatewayStrategy, maker: Maker,
                                                  second: Path) -> None:
    (maker.spoilt("unsigned", second) / "SHA256SUMS.gpg").unlink()
    assert asked(serving, "unsigned") == ("refused: it has no SHA256SUMS.gpg", 4)


def test_a_release_that_somebody_else_signed_is_refused(serving: GatewayStrategy, maker: Maker, second: Path) -> None:
    folder = maker.spoilt("foreign", second)
    made = """
        export GNUPGHOME=/tmp/foreign; mkdir -m 0700 "$GNUPGHOME"
        gpg --quiet --batch --passphrase "" --quick-gen-key Somebody ed25519 sign never
        gpg --quiet --batch --armor --export-secret-keys >"$1/foreign.key"; gpgconf --kill all"""
    subprocess.run([ROOT / "image-build" / "enter", "--work", folder, "bash", "-ec", made, "make", folder], check=True)
    (key := folder / "foreign.key").rename(keys_of_others := FOLDER / "foreign.key")
    assert not key.exists()
    maker.sign(folder, keys_of_others)
    assert asked(serving, "foreign") == ("refused: it is not signed by a key that this box trusts", 4)


def test_an_older_version_is_refused(serving: GatewayStrategy, maker: Maker, second: Path, version: str) -> None:
    maker.renamed("older", second, f"_{next_version(version)}", "_0.0.1")
    assert asked(serving, "older") == (f"refused: 0.0.1 is older than {version}, the oldest version that this box takes", 4)


def test_a_release_for_another_device_is_refused(serving: GatewayStrategy, maker: Maker, second: Path) -> None:
    other = "arm64" if DEVICE == "x86-64" else "x86-64"
    maker.renamed("device", second, f"dcmgate-{DEVICE}_", f"dcmgate-{other}_")
    assert asked(serving, "device") == (f"refused: it is for {other}, and this box is {DEVICE}", 4)


def test_a_release_that_is_cut_off_is_refused(serving: GatewayStrategy, maker: Maker, second: Path) -> None:
    folder = maker.spoilt("truncated", second)
    path = next(folder.glob("*.root-verity.raw.gz"))
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-4096])
    text, code = asked(serving, "truncated")
    assert (text.endswith("is not what its list says: it is cut off or changed"), code) == (True, 4), text


def test_nothing_of_that_has_changed_the_box(serving: GatewayStrategy, version: str) -> None:
    found = serving.updates()
    assert [(entry["version"], entry["state"]) for entry in found["menu"]] == [(version, "good")]
    assert found["trial"] is None
    assert [event["by"] for event in found["history"]] == ["engineer"] * 5


# --- the way of an update ------------------------------------------------------------------------------------------------

def booted_by_itself(box: GatewayStrategy, times: int = 1) -> None:
    """Wait until it has restarted so often, and serves."""
    for _ in range(times):
        box.console.expect(r"reboot: Restarting system|Reached target .*reboot\.target", timeout=900)
        box.console.expect(r"Reached target .*multi-user\.target", timeout=900)
    box.restarted()


def test_there_is_room_for_an_update_beside_the_fullest_journal(serving: GatewayStrategy, second: Path) -> None:
    """On the smallest disk: twice, since the next one may come before this one is done with."""
    size = int(serving.run("findmnt -bnvo SIZE /var"))
    journal = int(serving.run("sed -n 's/^SystemMaxUse=\\([0-9]*\\)M$/\\1/p' /usr/lib/systemd/journald.conf.d/10-dcmgate.conf"))
    assert size - (journal << 20) > 2 * sum(path.stat().st_size for path in second.iterdir())


def test_no_power_cut_in_an_update_under_load_loses_an_image(volatile: VolatileDisk, serving: GatewayStrategy, maker: Maker,
                                                             second: Path, version: str, tmp_path: Path,
                                                             figures: dict[str, Any]) -> None:
    """Each cut comes while a scanner sends and an update is under way, and takes what was not flushed. The old version runs as
    before, and the update begins again where it was."""
    def after(stage: str, seconds: float) -> Callable[[], None]:
        def moment() -> None:
            serving.run(f"dcmgate update install --no-wait --from {URL}/second")
            wait_until(lambda: serving.updates()["progress"].get("stage") == stage, 300,
                       lambda: f"{stage}: {serving.updates()}", every=0.5)
            time.sleep(seconds)
        return moment

    def runs_as_before() -> None:
        assert serving.updates()["running"] == version

    cut_under_load([after("fetching", 5), after("installing", 3), after("installing", 8)], serving, volatile, tmp_path, figures,
                   runs_as_before)


def test_a_good_version_is_blessed(serving: GatewayStrategy, maker: Maker, second: Path, version: str, tmp_path: Path,
                                   figures: dict[str, Any]) -> None:
    """The spool goes along: what was acknowledged by the old version, the new one delivers."""
    sent = study(tmp_path / "sent", 3)
    with pacs(tmp_path / "first"):
        wait_until(lambda: "reached" in serving.run("dcmgate status", 120), 300, "the PACS is reached", every=2)
        began = time.monotonic()
        serving.run(f"dcmgate update install --no-wait --from {URL}/second")
        serving.console.expect(r"reboot: Restarting system|Reached target .*reboot\.target", timeout=900)
        figures["seconds of an update until the restart"] = round(time.monotonic() - began, 1)
        serving.console.expect(rf"{next_version(version)} is good", timeout=900)
        figures["seconds of an update until it is good"] = round(time.monotonic() - began, 1)
        serving.restarted()
    wait_until(lambda: [event["what"] for event in serving.updates()["history"][-1:]] == ["blessed"], 120,
               serving.updates, every=2)
    found = serving.updates()
    assert found["running"] == next_version(version)
    assert found["history"][-1]["by"] == "engineer"
    assert [(e["version"], e["state"]) for e in found["menu"]] == [(version, "good"), (next_version(version), "good")]
    assert send(sent).returncode == 0


def test_a_version_that_does_not_prove_itself_goes_back(serving: GatewayStrategy, maker: Maker, third: Path, version: str,
                                                        tmp_path: Path, figures: dict[str, Any]) -> None:
    second, third_version = next_version(version), next_version(version, 2)
    began = time.monotonic()
    serving.run(f"dcmgate update install --no-wait --from {URL}/third")
    booted_by_itself(serving, 3)
    figures["seconds until a bad version is gone"] = round(time.monotonic() - began, 1)
    found = serving.updates()
    assert found["running"] == second
    assert [(e["version"], e["state"]) for e in found["menu"]] == [(second, "good"), (third_version, "failed")]
    last = found["history"][-1]
    assert (last["what"], last["version"]) == ("back", third_version)
    assert "dcmgate-receiver.service is" in last["text"]
    said = f"refused: {third_version} was on trial here and came back: --again gives it another trial"
    assert asked(serving, "third") == (said, 4)
    with pacs(tmp_path / "pacs") as folder:
        assert len(arrived(folder, 3, 400)) == 3, "what the version before acknowledged is delivered"
    assert json.loads(serving.run("dcmgate balance --json", 120))["unaccounted"] == 0


# --- what is not as it was signed ----------------------------------------------------------------------------------------

REFUSED_BY_FIRMWARE = r"(?i)(access denied|security violation)"


def into_the_menu(disk: Disk, uki: bytes, name: str) -> None:
    """With one try. systemd-boot goes by the version that a UKI has within, and by its name where that is the same."""
    path = FOLDER / "first.efi"
    path.write_bytes(uki)
    disk.put(path, f"dcmgate_{name}+1-0.efi")


def test_what_is_not_as_it_was_signed_is_not_booted(serving: GatewayStrategy, version: str, tmp_path: Path) -> None:
    """First in the boot menu: a root with a changed byte, then a UKI without signature. None is used."""
    second, third_version = next_version(version), next_version(version, 2)
    between = second.rpartition(".")[0] + ".9"
    serving.transition("off")
    disk = Disk(FOLDER / "disk.raw", in_tools)
    newest = FOLDER / "newest.efi"
    disk.get(f"dcmgate_{third_version}+0-2.efi", newest)
    in_tools("sbattach", "--remove", newest)
    into_the_menu(disk, newest.read_bytes(), between)
    disk.rename(f"dcmgate_{third_version}+0-2.efi", f"dcmgate_{third_version}+1-1.efi")
    disk.flip(disk.named(f"dcmgate_{third_version}")[0], 1024)
    serving.target.activate(serving.console)
    serving.power.on()
    serving.status = Status.unknown
    # The firmware goes on to what has proven itself, which is not blessed in the other's name.
    serving.console.expect(r"the root cannot be entered", timeout=600)
    serving.console.expect(REFUSED_BY_FIRMWARE, timeout=600)
    serving.console.expect(rf"{re.escape(between)} could not be started, {re.escape(second)} runs", timeout=900)
    serving.restarted()
    found = serving.updates()
    assert found["running"] == second
    assert {entry["version"]: entry["state"] for entry in found["menu"]} == {
        second: "good", third_version: "failed", between: "failed"}


@pytest.mark.full(minutes=4)
def test_a_uki_with_a_changed_byte_is_not_booted(serving: GatewayStrategy) -> None:
    """Signed, but not for this."""
    runs = serving.updates()["running"]
    serving.transition("off")
    disk = Disk(FOLDER / "disk.raw", in_tools)
    disk.get(f"dcmgate_{runs}.efi", FOLDER / "first.efi")
    data = bytearray((FOLDER / "first.efi").read_bytes())
    data[len(data) // 2] ^= 1
    into_the_menu(disk, bytes(data), "9.1.0")
    serving.target.activate(serving.console)
    serving.power.on()
    serving.status = Status.unknown
    serving.console.expect(REFUSED_BY_FIRMWARE, timeout=300)
    serving.console.expect(rf"9\.1\.0 could not be started, {runs} runs", timeout=900)
    serving.restarted()
    assert serving.updates()["running"] == runs
    assert {entry["version"]: entry["state"] for entry in serving.updates()["menu"]}["9.1.0"] == "failed"
