"""Start-up: each row of the table in the design, "Numbers are used once", and what a crash in the middle of it leaves."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from appliance.clock import ManualClock
from appliance.dicom.part10 import HEAD, build_head
from appliance.errors import SpoolFault
from appliance.model import Custody
from appliance.spool import quarantine, recover
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.spool.reader import verify
from appliance.spool.recover import Recovery
from tests.support.disk import FaultyOs
from tests.support.spools import CT_CLASS, EXPLICIT, SOURCE, accept, files, fresh, intake_of

DATA = os.urandom(300_000)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return fresh(tmp_path / "spool")


@pytest.fixture
def ledger(spool: Spool) -> Iterator[Ledger]:
    with Ledger.open(spool.ledger_path, ManualClock()) as ledger:
        yield ledger


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    return monkeypatch


def head(number: int, data: bytes = DATA, **fields: object) -> bytes:
    custody = Custody(number, 1, 1000 + number, 5, CT_CLASS, b"1.2.%d" % number, EXPLICIT, len(data), blake3(data).digest(),
                      SOURCE)
    return build_head(replace(custody, **fields))  # type: ignore[arg-type]


def left_behind(spool: Spool, ledger: Ledger, *contents: bytes | None) -> list[int]:
    """Numbers of a dead process, with these files; None for no file."""
    owner = ledger.register_owner("receiver")
    first = ledger.grant(owner, len(contents))
    for number, content in enumerate(contents, first):
        if content is not None:
            spool.object_path(number).write_bytes(content)
    return list(range(first, first + len(contents)))


def whole(number: int, data: bytes = DATA, **fields: object) -> bytes:
    return head(number, data, **fields) + data


VOID: dict[str, bytes | None] = {
    "never made": None,
    "empty": b"",
    "short and zero": bytes(100),
    "zero head": bytes(HEAD),
    "data without a head": bytes(HEAD) + DATA,
}
ADOPT: dict[str, bytes] = {
    "as recorded": whole(1),
    "no data set": whole(1, b""),
    "longer by a page": whole(1) + bytes(4096),
    "longer by a byte": whole(1) + b"\0",
    "longer by another patient's bytes": whole(1) + os.urandom(1 << 20),
}
REMNANT: dict[str, bytes] = {
    "cut short by a byte": whole(1)[:-1],
    "head only": head(1),
    "half a head": head(1)[:2000],
    "one bit of data": head(1) + bytes([DATA[0] ^ 1]) + DATA[1:],
    "last page lost": head(1) + DATA[:-4096] + bytes(4096),
    "longer, and data wrong": head(1) + bytes(len(DATA)) + b"more",
    "one bit of the head": head(1)[:3000] + b"\x01" + head(1)[3001:] + DATA,
    "torn head": head(1)[:512] + bytes(HEAD - 512) + DATA,
    "head without its first sector": bytes(512) + head(1)[512:] + DATA,
    "head of another number": whole(77),
    "not ours": os.urandom(20_000),
}


@pytest.mark.requirement("I2")
@pytest.mark.parametrize("content", VOID.values(), ids=VOID)
def test_blank_is_void(spool: Spool, ledger: Ledger, content: bytes | None) -> None:
    left_behind(spool, ledger, content)
    assert recover.recover(spool, ledger) == Recovery(owners=1, void=1)
    counts = ledger.counts()
    assert (counts.open, counts.void, counts.accepted) == (0, 1, 0)
    assert set(files(spool).values()) <= {0}
    assert quarantine.entries(spool) == []


@pytest.mark.requirement("I1")
@pytest.mark.parametrize("content", ADOPT.values(), ids=ADOPT)
def test_valid_is_cut_and_adopted(spool: Spool, ledger: Ledger, content: bytes) -> None:
    left_behind(spool, ledger, content)
    found = recover.recover(spool, ledger)
    assert (found.adopted, found.void, found.remnants) == (1, 0, 0)
    custody = verify(spool, 1)
    assert found.cut == (len(content) > HEAD + custody.length)
    row = ledger.object(1)
    assert row is not None and row.custody.digest == custody.digest and row.custody.sop_instance == b"1.2.1"
    counts = ledger.counts()
    assert (counts.open, counts.void, counts.accepted) == (0, 0, 1)


@pytest.mark.requirement("I2")
@pytest.mark.parametrize("content", REMNANT.values(), ids=REMNANT)
def test_anything_else_is_a_remnant(spool: Spool, ledger: Ledger, content: bytes) -> None:
    left_behind(spool, ledger, content)
    assert recover.recover(spool, ledger) == Recovery(owners=1, void=1, remnants=1)
    assert files(spool) == {}
    (entry,) = quarantine.entries(spool)
    assert entry.number == 1 and entry.remnant and entry.reason
    assert quarantine.path(spool, 1).read_bytes() == content
    assert ledger.counts().open == 0 and ledger.object(1) is None


def test_order_of_arrival_is_kept(spool: Spool, ledger: Ledger) -> None:
    left_behind(spool, ledger, *(whole(n, b"x", since_boot=5000 - n) for n in range(1, 6)))
    recover.recover(spool, ledger)
    assert [event.number for event in ledger.events() if event.kind == "accepted"] == [5, 4, 3, 2, 1]


@pytest.mark.requirement("I2")
def test_recovery_repeats_after_a_crash_at_any_row(spool: Spool, ledger: Ledger, patch: pytest.MonkeyPatch) -> None:
    numbers = left_behind(spool, ledger, whole(1), whole(2)[:-1], None, whole(4) + b"tail")

    class PulledPlug(BaseException):
        pass

    def pull(*_: object) -> None:
        raise PulledPlug

    for verb in ("accepted", "void"):
        with patch.context() as pulled:
            pulled.setattr(ledger, verb, pull)
            with pytest.raises(PulledPlug):
                recover.recover(spool, ledger)
    recover.recover(spool, ledger)
    counts = ledger.counts()
    assert (counts.open, counts.accepted, counts.void) == (0, 2, 2)
    assert ledger.object(numbers[0]) is not None and ledger.object(numbers[3]) is not None
    assert [entry.number for entry in quarantine.entries(spool)] == [numbers[1]]
    assert recover.recover(spool, ledger) == Recovery()


def test_crash_between_the_note_and_the_move(spool: Spool, ledger: Ledger, patch: pytest.MonkeyPatch) -> None:
    left_behind(spool, ledger, whole(1)[:-1])
    faulty = FaultyOs()
    faulty.fail("rename", errno.EIO)
    patch.setattr(quarantine, "os", faulty)
    with pytest.raises(SpoolFault):
        recover.recover(spool, ledger)
    assert list(files(spool)) == [1]
    faulty.heal()
    recover.recover(spool, ledger)
    assert files(spool) == {} and len(quarantine.entries(spool)) == 1


@pytest.mark.requirement("I6")
@pytest.mark.parametrize("call", ["ftruncate", "fsync", "fstat", "open"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS])
def test_a_failing_disk_opens_no_intake_and_loses_nothing(spool: Spool, ledger: Ledger, patch: pytest.MonkeyPatch,
                                                          call: str, code: int) -> None:
    left_behind(spool, ledger, whole(1) + b"tail", bytes(HEAD) + b"x")
    faulty = FaultyOs()
    faulty.fail(call, code)
    patch.setattr(recover, "os", faulty)
    with pytest.raises(SpoolFault):
        recover.recover(spool, ledger)
    assert ledger.counts().open == 2
    faulty.heal()
    assert recover.recover(spool, ledger).adopted == 1


def test_an_unreadable_object_is_a_remnant(spool: Spool, ledger: Ledger, patch: pytest.MonkeyPatch) -> None:
    left_behind(spool, ledger, whole(1))
    faulty = FaultyOs()
    faulty.fail("preadv", errno.EIO)
    patch.setattr(recover, "os", faulty)
    assert recover.recover(spool, ledger).remnants == 1
    assert "cannot be read" in quarantine.entries(spool)[0].reason


@pytest.mark.requirement("hazard: fsync forgets")
def test_recovery_reads_around_the_page_cache(spool: Spool, ledger: Ledger, patch: pytest.MonkeyPatch) -> None:
    """After a failed sync the cache shows what the disk never got: every byte that is judged is read with O_DIRECT."""
    import fcntl
    left_behind(spool, ledger, whole(1))
    seen: list[bool] = []
    faulty = FaultyOs()

    def preadv(fd: int, views: list[memoryview], offset: int) -> int:
        seen.append(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT))
        return os.preadv(fd, views, offset)

    faulty.stand_in("preadv", preadv)
    patch.setattr(recover, "os", faulty)
    assert recover.recover(spool, ledger).adopted == 1
    assert seen and all(seen)


def test_where_direct_reads_are_refused_the_cache_is_dropped(spool: Spool, ledger: Ledger, patch: pytest.MonkeyPatch) -> None:
    left_behind(spool, ledger, whole(1))

    class Fcntl:
        F_SETFL = 4

        def fcntl(self, *_: object) -> int:
            raise OSError(errno.EINVAL, "Invalid argument")

    faulty = FaultyOs("posix_fadvise", "preadv")
    patch.setattr(recover, "fcntl", Fcntl())
    patch.setattr(recover, "os", faulty)
    assert recover.recover(spool, ledger).adopted == 1
    assert faulty.names()[0] == "posix_fadvise"


def test_a_live_owner_is_left_alone(spool: Spool, ledger: Ledger) -> None:
    left_behind(spool, ledger, whole(1))
    with spool.lock_owner(1):
        assert recover.recover(spool, ledger) == Recovery()
    assert recover.recover(spool, ledger).adopted == 1


def test_two_that_recover_at_once_share_the_work(spool: Spool, ledger: Ledger, patch: pytest.MonkeyPatch) -> None:
    """Whoever looks while another is at it finds the owner taken."""
    left_behind(spool, ledger, whole(1))
    others: list[Recovery] = []
    real: Callable[..., recover.Judgement] = recover.judge

    def judge(*args: object) -> recover.Judgement:
        patch.undo()
        others.append(recover.recover(spool, ledger))
        return real(*args)

    patch.setattr(recover, "judge", judge)
    assert recover.recover(spool, ledger).adopted == 1
    assert others == [Recovery()]


def test_an_owner_that_another_just_took_is_left_to_it(spool: Spool, ledger: Ledger, patch: pytest.MonkeyPatch) -> None:
    left_behind(spool, ledger, whole(1))
    patch.setattr(spool, "is_alive", lambda owner: False)
    with spool.lock_owner(1):
        assert recover.recover(spool, ledger) == Recovery()
    assert ledger.counts().open == 1


@pytest.mark.requirement("hazard: directory sync")
def test_the_name_of_what_is_adopted_is_synced_before_its_row(spool: Spool, ledger: Ledger, patch: pytest.MonkeyPatch) -> None:
    left_behind(spool, ledger, whole(1))
    order: list[str] = []
    sync, accepted = recover.sync_folder, ledger.accepted
    patch.setattr(recover, "sync_folder", lambda path: (order.append(path.name), sync(path)))
    patch.setattr(ledger, "accepted", lambda rows: (order.append("row"), accepted(rows)))
    recover.recover(spool, ledger)
    assert order == ["00", "row"]


def test_only_open_numbers_are_looked_at(spool: Spool, ledger: Ledger, patch: pytest.MonkeyPatch) -> None:
    """Not a high-water mark, not a folder: the time depends on what was under way."""
    numbers = left_behind(spool, ledger, *(whole(n, b"x") for n in range(1, 50)), None)
    recover.recover(spool, ledger)
    left_behind(spool, ledger, None, None)
    looked: list[int] = []
    real = recover.judge

    def judge(spool: Spool, number: int, buffer: recover.Buffer) -> recover.Judgement:
        looked.append(number)
        return real(spool, number, buffer)

    patch.setattr(recover, "judge", judge)
    recover.recover(spool, ledger)
    assert looked == [numbers[-1] + 1, numbers[-1] + 2]


DYING = """
import os, sys
from pathlib import Path
from appliance.clock import SystemClock
from appliance.spool.intake import Intake
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from tests.support.spools import accept, SOURCE
spool = Spool.open(Path(sys.argv[1]))
intake = Intake(spool, Ledger.open(spool.ledger_path, SystemClock()), SystemClock())
intake.start()
for i in range(300):
    custody = accept(intake, os.urandom(5000 + 977 * i), b"1.9.%d" % i)
    print(custody.number, custody.digest.hex(), flush=True)
half = intake.take()
half.write(os.urandom(3 << 20))
os.kill(os.getpid(), 9)
"""


@pytest.mark.requirement("I1")
def test_a_killed_receiver_loses_nothing_it_acknowledged(spool: Spool) -> None:
    """The process dies with rows owed, an instance half written and slots unused; the next one accounts for all of it."""
    child = subprocess.run([sys.executable, "-c", DYING, str(spool.path)], stdout=subprocess.PIPE, text=True, timeout=60,
                           cwd=Path(__file__).parents[3], check=False)
    assert child.returncode == -9
    acknowledged = [line.split() for line in child.stdout.splitlines()]
    assert len(acknowledged) == 300
    with intake_of(spool) as intake:
        assert intake.recovery.owners == 1 and intake.recovery.remnants == 0
        for number, digest in acknowledged:
            assert verify(spool, int(number)).digest.hex() == digest
        with Ledger.open(spool.ledger_path, ManualClock(), read_only=True) as ledger:
            counts = ledger.counts()
            assert counts.accepted == 300
            assert counts.granted == counts.open + counts.void + counts.accepted
        assert accept(intake).number > max(int(number) for number, _ in acknowledged)
