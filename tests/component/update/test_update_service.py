"""The root half: who asks, what is due, what is written down, and what becomes of a trial."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.clock import SECOND, ManualClock
from appliance.config.settings import Config, Update
from appliance.policy.update import Installed, Refused, Release, Trial
from appliance.update import firmware, install, outcome
from appliance.update import places as places_
from appliance.update.alarms import alarms
from appliance.update.fetch import Broken
from appliance.update.places import Places
from appliance.update.records import Records
from appliance.update.service import Service, leave_request, take_requests

ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def records(tmp_path: Path) -> Records:
    for name in ("state/bundle", "run/requests", "esp"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "os-release").write_text('NAME=x\nIMAGE_VERSION="0.1.0"\n')
    (tmp_path / "floor").write_text("0.1.0\n")
    (tmp_path / "esp" / "dcmgate_0.1.0.efi").touch()
    return Records(Places(state=tmp_path / "state", run=tmp_path / "run", requests=tmp_path / "run" / "requests",
                          os_release=tmp_path / "os-release", floor=tmp_path / "floor", menus=(tmp_path / "esp",)))


class Fetched:
    """Stands for the unprivileged child. `offer`: a version, or what it raises."""

    def __init__(self, offer: str | Exception) -> None:
        self.offer = offer
        self.calls: list[tuple[str, bool]] = []

    def __call__(self, source: str, box: Installed, tell: Callable[[str, int, int], None], *, again: bool,
                 only_look: bool) -> Release:
        self.calls.append((source, only_look))
        if isinstance(self.offer, Exception):
            raise self.offer
        return Release(box.device, self.offer, {})


def service(records: Records, fetched: Fetched, restarted: list[str], *, clock: ManualClock | None = None,
            **update: Any) -> Service:
    config = replace(Config(), update=Update(**update))
    return Service(records, config, clock or ManualClock(), fetched, lambda: restarted.append("now"))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of systemd-sysupdate, which needs an image."""
    found: list[str] = []

    def install_(records: Records, offered: Release, run: Path, by: str, *, again: bool = False) -> None:
        found.append(offered.version)
        records.set_trial(Trial(offered.version, records.places.running(), by=by))
    monkeypatch.setattr(install, "install", install_)
    return found


def test_who_asks_is_whose_file_it_is(records: Records) -> None:
    token = leave_request(records.places, action="install", source="stick", by="somebody else")
    (records.places.requests / "broken.json").write_text("{")
    (records.places.requests / "link.json").symlink_to("/etc/hostname")
    os.link(records.places.requests / f"{token}.json", records.places.state / "second-name")
    assert take_requests(records.places) == [], "a file with two names may be somebody else's"
    token = leave_request(records.places, action="install", source="stick", by="somebody else")
    found = take_requests(records.places)
    assert [(one.token, one.action, one.by, one.source) for one in found] == [(token, "install", ME, "stick")]
    assert list(records.places.requests.iterdir()) == []


def test_a_person_installs_at_once(records: Records, written: list[str]) -> None:
    restarted: list[str] = []
    leave_request(records.places, action="install")
    service(records, Fetched("0.2.0"), restarted, url="https://x", window=("02:00-02:01",)).run()
    assert (written, restarted) == (["0.2.0"], ["now"])
    assert records.progress()["stage"] == "restarting"


@pytest.mark.parametrize("problem", [Refused("it is not signed"), Broken("no line"), OSError("no room")])
def test_what_was_not_installed_is_written_down_with_the_reason(records: Records, written: list[str],
                                                                problem: Exception) -> None:
    leave_request(records.places, action="install")
    service(records, Fetched(problem), []).run()
    event = records.history()[-1]
    assert (event.what, event.text, event.by) == ("refused" if isinstance(problem, Refused) else "failed", str(problem), ME)
    assert (written, records.progress()["text"]) == ([], str(problem))


def test_the_box_waits_for_approval_then_installs(records: Records, written: list[str]) -> None:
    fetched, restarted = Fetched("0.2.0"), list[str]()
    service(records, fetched, restarted, url="https://x").run()
    assert (written, records.offered()) == ([], "0.2.0")
    assert [alarm.key for alarm in alarms(records, by_person=True)] == ["update-offered"]
    leave_request(records.places, action="approve")
    service(records, fetched, restarted, url="https://x").run()
    assert written == []
    assert records.history()[-1].what == "approved"
    assert alarms(records, by_person=True) == []
    service(records, fetched, restarted, url="https://x").run()
    assert (written, restarted) == (["0.2.0"], ["now"])


def test_what_is_not_on_offer_cannot_be_approved(records: Records) -> None:
    leave_request(records.places, action="approve", version="9.9.9")
    service(records, Fetched("0.2.0"), [], url="https://x").run()
    assert "9.9.9 is not on offer" in records.progress()["text"]


def test_without_approval_the_window_alone_counts(records: Records, written: list[str]) -> None:
    noon = ManualClock(wall_ns=1_800_000_000 * SECOND)
    windows = {"inside": ("00:00-12:00", "12:00-24:00"), "unknown": ("00:00-12:00",)}
    noon.is_trusted = False
    service(records, Fetched("0.2.0"), [], clock=noon, url="https://x", approval="none", window=windows["unknown"]).run()
    assert written == []
    assert "what time it is is not known" in records.progress()["text"]
    noon.is_trusted = True
    service(records, Fetched("0.2.0"), [], clock=noon, url="https://x", approval="none", window=windows["inside"]).run()
    assert written == ["0.2.0"]


def test_the_server_is_asked_as_often_as_the_site_says(records: Records) -> None:
    clock, fetched = ManualClock(), Fetched("0.2.0")
    for hours, asked in ((0, 1), (1, 1), (23, 2)):
        clock.advance(hours * 3600)
        service(records, fetched, [], clock=clock, url="https://x", check_hours=24.0).run()
        assert len(fetched.calls) == asked
    fetched = Fetched("0.2.0")
    service(records, fetched, []).run()
    assert fetched.calls == [], "no server is named"


def menu(records: Records, *names: str) -> None:
    folder = records.places.menus[0]
    for path in folder.iterdir():
        path.unlink()
    for name in names:
        (folder / name).touch()


def test_a_trial_that_came_back_says_why_until_something_else_is_installed(records: Records) -> None:
    records.set_trial(Trial("0.2.0", "0.1.0"))
    menu(records, "dcmgate_0.1.0.efi", "dcmgate_0.2.0+2-0.efi")
    assert outcome.settle(records) == "waiting"
    records.complain(["dcmgate-receiver.service is inactive"])
    menu(records, "dcmgate_0.1.0.efi", "dcmgate_0.2.0+0-2.efi")
    assert outcome.settle(records) == "back"
    assert records.history()[-1].text == "0.2.0 came back to 0.1.0: dcmgate-receiver.service is inactive"
    assert records.installed().failed == {"0.2.0"}
    assert "did not prove itself: 0.2.0 came back" in alarms(records, by_person=True)[0].text
    assert outcome.settle(records) is None
    records.note("installed", "0.3.0")
    assert alarms(records, by_person=True) == []


def test_a_blessed_version_sets_the_floor_for_good(records: Records) -> None:
    records.set_trial(Trial("0.2.0", "0.1.0", by="anna"))
    records.places.os_release.write_text('IMAGE_VERSION="0.2.0"\n')
    records.places.floor.write_text("0.2.0\n")
    menu(records, "dcmgate_0.1.0.efi", "dcmgate_0.2.0+1-1.efi")
    assert outcome.settle(records) == "trying"
    assert records.installed().on_trial
    menu(records, "dcmgate_0.1.0.efi", "dcmgate_0.2.0.efi")
    assert outcome.settle(records) == "blessed"
    assert not records.installed().on_trial
    assert records.history()[-1].by == "anna"
    records.places.os_release.write_text('IMAGE_VERSION="0.1.0"\n')
    records.places.floor.write_text("0.1.0\n")
    assert records.installed().floor == "0.2.0", "the old slot knows it, too"


def test_an_installation_that_was_cut_off_is_no_trial(records: Records) -> None:
    records.set_trial(Trial("0.2.0", "0.1.0", False))
    assert outcome.settle(records) == "cut off"
    assert records.installed().failed == frozenset()


def test_records_that_cannot_be_read_are_none(records: Records) -> None:
    for name in ("trial.json", "approved.json", "offered.json", "floor.json", "history.jsonl"):
        (records.places.state / name).write_text('{"x": ')
    assert (records.trial(), records.approved(), records.offered(), records.history()) == (None, "", "", [])
    assert records.installed().floor == "0.1.0"
    records.note("refused", "0.2.0")
    assert json.loads((records.places.state / "history.jsonl").read_text())["what"] == "refused"


def test_associations_are_counted_as_the_kernel_sees_them() -> None:
    import socket
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert install.associations({port}) == 0
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            assert install.associations({port}) >= 1
            assert install.drain({port}, 0.0, lambda count: None) >= 1
        assert install.drain({port}, 10.0, lambda count: None) == 0


def test_the_boot_menu_says_whose_try_it_counted(records: Records, tmp_path: Path) -> None:
    places = replace(records.places, efivars=tmp_path)
    assert places.counted() == ""
    path = "\\EFI\\Linux\\dcmgate_0.2.0+1-1.efi\0".encode("utf-16-le")
    (tmp_path / "LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f").write_bytes(b"\6\0\0\0" + path)
    assert places.counted() == "0.2.0"


def test_good_versions_stand_in_the_firmware_s_list(records: Records, tmp_path: Path) -> None:
    device = os.stat(records.places.menus[0]).st_dev
    about = tmp_path / "sys" / "dev" / "block" / f"{os.major(device)}:{os.minor(device)}"
    about.mkdir(parents=True)
    for name, value in (("partition", 1), ("start", 2048), ("size", 1048576)):
        (about / name).write_text(f"{value}\n")
    variables = tmp_path / "efivars"
    variables.mkdir()
    (variables / f"LoaderDevicePartUUID-{places_.LOADER}").write_bytes(
        b"\6\0\0\0" + "C12A7328-F81F-11D2-BA4B-00A0C93EC93B\0".encode("utf-16-le"))
    places = replace(records.places, efivars=variables, sysfs=tmp_path / "sys")
    firmware.offer(places)
    assert not list(variables.glob("BootDC*")), "a firmware without a list is left alone"
    (variables / f"BootOrder-{firmware.GLOBAL}").write_bytes(b"\7\0\0\0\3\0\1\0")
    (variables / f"BootCurrent-{firmware.GLOBAL}").write_bytes(b"\6\0\0\0\3\0")
    menu(records, "dcmgate_0.1.0.efi", "dcmgate_0.2.0.efi", "dcmgate_0.3.0+2-0.efi")
    firmware.offer(places)
    assert (variables / f"BootOrder-{firmware.GLOBAL}").read_bytes() == b"\7\0\0\0\3\0\x00\xdc\x01\xdc\1\0"
    options = [(variables / f"Boot{number}-{firmware.GLOBAL}").read_bytes() for number in ("DC00", "DC01")]
    for option, version in zip(options, ("0.2.0", "0.1.0"), strict=True):
        assert f"\\EFI\\Linux\\dcmgate_{version}.efi".encode("utf-16-le") in option
