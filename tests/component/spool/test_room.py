"""Room: quota states, and file systems that are really full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.errors import SpoolFull, SpoolRefused
from appliance.model import SpaceState
from appliance.spool import ballast
from appliance.spool.layout import BALLAST, Spool
from appliance.spool.reader import verify
from appliance.spool.space import measure
from tests.support.spools import accept, files, fresh, intake_of

MIB = 1 << 20


def test_quota_states(tmp_path: Path) -> None:
    """A spool with a size goes through the same states on a half-empty disk, and recovers by itself."""
    spool = fresh(tmp_path / "spool", 20 * MIB)
    seen = []
    with intake_of(spool, ready=4) as intake:
        assert intake.space() is SpaceState.GREEN
        with pytest.raises(SpoolFull):
            for n in range(100):
                accept(intake, os.urandom(MIB), b"1.%d" % n)
                if intake.space() not in seen:
                    seen.append(intake.space())
        assert intake.space() in (SpaceState.RED, SpaceState.BLACK)
        assert seen[:3] == [SpaceState.GREEN, SpaceState.AMBER, SpaceState.RED]
        assert not intake.out_of_intake
        held = sum(files(spool).values())
        assert 18 * MIB < held <= 20 * MIB
        spool.size = 60 * MIB
        accept(intake, os.urandom(MIB))
        assert intake.space() is SpaceState.GREEN


def test_a_large_object_is_stopped_at_the_quota(tmp_path: Path) -> None:
    spool = fresh(tmp_path / "spool", 10 * MIB)
    with intake_of(spool, ready=4) as intake:
        writer = intake.take()
        with pytest.raises(SpoolFull):
            for _ in range(100):
                writer.write(bytes(MIB))
        assert files(spool)[writer.number] == 0
        accept(intake, os.urandom(MIB))


def test_a_black_spool_gives_no_writer(tmp_path: Path) -> None:
    spool = fresh(tmp_path / "spool", MIB)
    with intake_of(spool, ready=4) as intake:
        accept(intake, bytes(6000))
        spool.size = 10_000
        assert intake.space() is SpaceState.BLACK
        with pytest.raises(SpoolFull):
            intake.take()
        spool.size = MIB
        intake.take().abandon("there is room again")


@pytest.fixture(params=["tmpfs", "ext4", "xfs"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    mount = tmp_path / "mount"
    mount.mkdir()
    kind = request.param
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(mount)]
    else:
        image = tmp_path / "image"
        with open(image, "wb") as stream:
            stream.truncate((64 if kind == "ext4" else 320) * MIB)
        make = {"ext4": ["mkfs.ext4", "-q", "-m", "0", str(image)], "xfs": ["mkfs.xfs", "-q", str(image)]}[kind]
        with suppress(FileNotFoundError):
            subprocess.run(make, check=True, capture_output=True, timeout=60)
        command = ["mount", "-o", "loop", str(image), str(mount)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if made.returncode:
        pytest.skip(f"no {kind} can be mounted here: {made.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True, timeout=60)


@pytest.mark.requirement("I1")
def test_a_full_disk_is_a_failure_status_and_loses_nothing(small: Path) -> None:
    """Filled to the last block by somebody else: A700, intake stays open, everything acknowledged stays, room comes back."""
    spool = fresh(small)
    with intake_of(spool, ready=4) as intake:
        held = [accept(intake, os.urandom(MIB), b"1.%d" % n) for n in range(3)]
        fill(small / "filler")
        with pytest.raises(SpoolFull):
            held.extend(accept(intake, os.urandom(20_000), b"2.%d" % n) for n in range(20_000))
        assert not intake.out_of_intake
        os.unlink(small / "filler")
        held.append(accept(intake, os.urandom(MIB), b"3"))
        assert not intake.out_of_intake
    with intake_of(spool, ready=4) as intake:
        for custody in held:
            assert verify(spool, custody.number) == custody
        assert accept(intake, b"x").number > held[-1].number


@pytest.mark.requirement("I1")
def test_a_disk_that_fills_under_a_large_object(small: Path) -> None:
    spool = fresh(small)
    with intake_of(spool, ready=4) as intake:
        intake._gauge.left = 1 << 60  # type: ignore[union-attr]
        writer = intake.take()
        with pytest.raises(SpoolFull):
            for _ in range(1000):
                writer.write(os.urandom(MIB))
                intake._gauge.left = 1 << 60  # type: ignore[union-attr]
        assert not intake.out_of_intake
        accept(intake, os.urandom(MIB))
        assert files(spool)[writer.number] == 0


def fill(path: Path) -> None:
    """Take all the room there is, to the last block."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    size = MIB
    try:
        while size >= 512:
            try:
                os.write(fd, bytes(size))
                os.fsync(fd)
            except OSError:
                size //= 2
    finally:
        os.close(fd)


def test_ballast_is_room_for_the_ledger(small: Path) -> None:
    spool = fresh(small)
    with intake_of(spool, ready=4) as intake:
        accept(intake, b"x")
        fill(small / "filler")
        for n in range(200):
            intake._ledger.seen("somebody", f"show {n}" * 50)
        assert spool.ballast_path.stat().st_size == 0
        os.unlink(small / "filler")
        assert spool.fill_ballast()
        assert spool.ballast_path.stat().st_size == BALLAST


@pytest.mark.requirement("design: Space, ballast")
def test_what_the_ballast_gave_up_is_no_room_for_images(small: Path) -> None:
    spool = fresh(small)
    left = measure(spool, 0, 0).free - 3 * MIB
    with open(small / "filler", "wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, left)
    full = measure(spool, 0, 0)
    assert full.state is SpaceState.RED
    assert ballast.give_up(spool.path)
    now = os.statvfs(small)
    assert now.f_bavail * now.f_frsize > BALLAST
    assert measure(spool, 0, 0).state is SpaceState.RED and abs(measure(spool, 0, 0).free - full.free) < MIB // 4
    os.unlink(small / "filler")
    assert spool.fill_ballast()
    assert measure(spool, 0, 0).state is SpaceState.GREEN


def test_a_spool_on_a_mount_that_went_away_is_refused(small: Path) -> None:
    spool = fresh(small)
    subprocess.run(["umount", str(small)], check=True, timeout=60)
    try:
        with pytest.raises(SpoolRefused, match="is empty"):
            Spool.open(small, spool.uuid)
    finally:
        subprocess.run(["mount", "-t", "tmpfs", "none", str(small)], check=True, timeout=60)
