"""The spool's folder: made once, refused unless it is the right one, migrated step by step."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.clock import ManualClock
from appliance.config import settings
from appliance.errors import SpoolFault, SpoolFull, SpoolRefused
from appliance.spool import layout
from appliance.spool.layout import BALLAST, FORMAT, IDENTITY, Spool, expected_uuid, migrate, open_configured, remember_uuid
from tests.support.disk import FaultyOs


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.init(tmp_path / "spool", clock=ManualClock())


def test_init_makes_everything_ahead(spool: Spool) -> None:
    assert len(list(spool.objects.iterdir())) == 256
    assert spool.quarantine.is_dir()
    assert spool.ballast_path.stat().st_blocks * 512 >= BALLAST
    again = Spool.open(spool.path, spool.uuid)
    assert (again.uuid, again.version, again.size) == (spool.uuid, FORMAT, 0)


def test_init_keeps_the_quota(tmp_path: Path) -> None:
    Spool.init(tmp_path, size=5 << 30, clock=ManualClock())
    assert Spool.open(tmp_path).size == 5 << 30
    assert Spool.open(tmp_path, size=7).size == 7


def test_init_takes_a_fresh_file_system(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    Spool.init(tmp_path, clock=ManualClock())


@pytest.mark.parametrize("name", ["SPOOL-ID", "objects", "ledger.sqlite", "holiday.jpg"])
def test_init_refuses_a_folder_that_holds_anything(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(SpoolRefused, match="not empty"):
        Spool.init(tmp_path, clock=ManualClock())
    assert (tmp_path / name).read_text() == "x"


def test_identity_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = FaultyOs()
    faulty.fail("posix_fallocate", errno.EIO)
    monkeypatch.setattr(layout, "os", faulty)
    with pytest.raises(SpoolFault):
        Spool.init(tmp_path / "spool", clock=ManualClock())
    monkeypatch.undo()
    with pytest.raises(SpoolRefused, match="holds no spool"):
        Spool.open(tmp_path / "spool")


@pytest.mark.requirement("never started fresh")
def test_a_wrong_mount_is_refused(spool: Spool, tmp_path: Path) -> None:
    with pytest.raises(SpoolRefused, match="does not exist"):
        Spool.open(tmp_path / "nothing")
    (tmp_path / "mount point").mkdir()
    with pytest.raises(SpoolRefused, match="is empty"):
        Spool.open(tmp_path / "mount point")
    (tmp_path / "mount point" / "lost+found").mkdir()
    with pytest.raises(SpoolRefused, match="is empty"):
        Spool.open(tmp_path / "mount point")
    (tmp_path / "mount point" / "photos").mkdir()
    with pytest.raises(SpoolRefused, match="holds no spool"):
        Spool.open(tmp_path / "mount point")
    assert sorted(os.listdir(tmp_path / "mount point")) == ["lost+found", "photos"]
    with pytest.raises(SpoolRefused, match="is not a folder"):
        Spool.open(spool.path / IDENTITY)
    other = Spool.init(tmp_path / "other", clock=ManualClock())
    with pytest.raises(SpoolRefused, match="another spool") as refused:
        Spool.open(other.path, spool.uuid)
    assert "adopt" in refused.value.mend


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"uuid": 1, "format": 1}', '{"uuid": "x", "format": 1}',
                                  '{"uuid": "8d0d9c6e-6f0b-4b67-a3ae-6f1a3a0d9c11", "format": 0}',
                                  '{"uuid": "8d0d9c6e-6f0b-4b67-a3ae-6f1a3a0d9c11", "format": true}',
                                  '{"uuid": "8d0d9c6e-6f0b-4b67-a3ae-6f1a3a0d9c11", "format": 1, "size": -1}'])
def test_an_unreadable_identity_is_refused(spool: Spool, text: str) -> None:
    (spool.path / IDENTITY).write_text(text)
    with pytest.raises(SpoolRefused, match="cannot be read"):
        Spool.open(spool.path)


def test_a_later_format_is_refused_and_left_alone(spool: Spool) -> None:
    identity = json.loads((spool.path / IDENTITY).read_text())
    (spool.path / IDENTITY).write_text(json.dumps({**identity, "format": FORMAT + 1}))
    with pytest.raises(SpoolRefused, match="this release knows up to"):
        Spool.open(spool.path)
    with pytest.raises(SpoolRefused, match="this release knows up to"):
        migrate(spool.path)


def test_a_lost_folder_is_refused(spool: Spool) -> None:
    spool.quarantine.rmdir()
    with pytest.raises(SpoolRefused, match="lacks quarantine"):
        Spool.open(spool.path)


def test_migration_to_a_made_up_next_format(spool: Spool) -> None:
    """A step that fails half-way is run again; then the old release refuses the spool and the new one has it."""
    runs: list[str] = []

    def step(path: Path) -> None:
        runs.append("begun")
        (path / "journal").mkdir(exist_ok=True)
        if len(runs) == 1:
            raise OSError(errno.EIO, "pulled the plug")

    with pytest.raises(SpoolRefused, match="no way from format"):
        migrate(spool.path, to=FORMAT + 1, steps={})
    with pytest.raises(SpoolFault):
        migrate(spool.path, to=FORMAT + 1, steps={FORMAT: step})
    assert Spool.open(spool.path, spool.uuid).version == FORMAT
    assert migrate(spool.path, to=FORMAT + 1, steps={FORMAT: step}) == FORMAT
    assert runs == ["begun", "begun"]
    assert json.loads((spool.path / IDENTITY).read_text())["uuid"] == spool.uuid
    with pytest.raises(SpoolRefused, match="this release knows up to"):
        Spool.open(spool.path, spool.uuid)


def test_open_refuses_an_older_format(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "FORMAT", FORMAT + 1)
    with pytest.raises(SpoolRefused, match="older format") as refused:
        Spool.open(spool.path)
    assert "migrate" in refused.value.mend


def test_no_migration_under_a_live_receiver(spool: Spool) -> None:
    with spool.lock_owner(3) as lock:
        assert lock.held
        with pytest.raises(SpoolRefused, match="in use"):
            migrate(spool.path, to=FORMAT + 1, steps={FORMAT: lambda path: None})


def test_paths_come_from_numbers_alone(spool: Spool) -> None:
    assert spool.object_path(0x1234567).relative_to(spool.path).as_posix() == "objects/34/0000000001234567.dcm"
    assert spool.shard(0xFFFFF) == spool.objects / "ff"
    names = ("000000000000002a.dcm", "2a.dcm", "000000000000002A.dcm", "000000000000002a.dcm.new", "x00000000000002a.dcm")
    assert [layout.file_number(name) for name in names] == [0x2A, None, None, None, None]


def test_open_object_follows_no_link(spool: Spool) -> None:
    spool.object_path(7).symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic"):
        spool.open_object(7)


def test_expected_uuid_is_kept_outside(spool: Spool, tmp_path: Path) -> None:
    given = settings.Spool(path=str(spool.path), state=str(tmp_path / "state"))
    assert expected_uuid(given) is None
    with pytest.raises(SpoolRefused, match="no uuid is known"):
        open_configured(given)
    remember_uuid(Path(given.state), spool.uuid)
    assert open_configured(given).uuid == spool.uuid
    other = Spool.init(tmp_path / "other", clock=ManualClock())
    with pytest.raises(SpoolRefused, match="another spool"):
        open_configured(settings.Spool(path=str(other.path), state=given.state))
    with pytest.raises(SpoolRefused, match="another spool"):
        open_configured(settings.Spool(path=str(spool.path), state=given.state, uuid=other.uuid))


def test_ballast_comes_and_goes(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(spool.ballast_path, 0)
    faulty = FaultyOs()
    faulty.fail("posix_fallocate", errno.ENOSPC)
    monkeypatch.setattr(layout, "os", faulty)
    assert not spool.fill_ballast()
    faulty.heal()
    assert spool.fill_ballast()
    assert spool.ballast_path.stat().st_size == BALLAST


def test_errors_are_told_apart() -> None:
    assert isinstance(layout.spool_error(OSError(errno.ENOSPC, "x"), "y"), SpoolFull)
    assert isinstance(layout.spool_error(OSError(errno.EDQUOT, "x"), "y"), SpoolFull)
    assert isinstance(layout.spool_error(OSError(errno.EIO, "x"), "y"), SpoolFault)


HOLDER = """
import sys, os
from pathlib import Path
from appliance.spool.owners import OwnerLock
lock = OwnerLock(Path(sys.argv[1]), 5)
print(lock.held, flush=True)
sys.stdin.read(1)
os.kill(os.getpid(), 9)
"""


def test_live_owners_are_told_from_dead_ones(spool: Spool) -> None:
    """Between processes, however they die, and between two intakes of one process."""
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(spool.owners_path)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == "True\n"
    assert spool.is_alive(5) and not spool.is_alive(4)
    with spool.lock_owner(5) as lock:
        assert not lock.held
    child.stdin.write("x")
    child.stdin.flush()
    child.wait(10)
    assert not spool.is_alive(5)
    with spool.lock_owner(5) as lock, spool.lock_owner(5) as second:
        assert lock.held and not second.held
        assert spool.is_alive(5)
    assert not spool.is_alive(5)
    child.stdin.close()
    child.stdout.close()


def test_a_disk_that_is_torn_out_is_a_spool_that_is_not_there(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spool.is_there()

    def torn_out(*_: object, **__: object) -> os.stat_result:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "stat", torn_out)
    assert not spool.is_there()
