"""C-STORE against a spool that fails, stalls or is full: a failure status in time or an abort, never silence (I1, I6)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from appliance.config.settings import Peer
from appliance.errors import FormatError, LedgerFault, SpoolFault
from appliance.receive import services
from appliance.receive.limits import Limits
from appliance.spool import writer
from tests.support import objects
from tests.support.acceptor import (
    SLOW,
    Box,
    aborted,
    ask,
    associated,
    config,
    echo,
    echoing,
    last_words,
    read_to_end,
    receiving,
    session,
)
from tests.support.disk import FaultyOs
from tests.support.scu import (
    IMPLICIT,
    VERIFICATION,
    Lost,
    Scanner,
    contexts_of,
    echo_command,
    fragments,
    pdata,
    store_command,
)
from tests.support.waiting import wait_until

LOCAL_LIMIT = (2, 3, 2)
REPORT = objects.sr(1)


@pytest.fixture
def box(patient_box: Box) -> Box:
    return patient_box


@pytest.mark.requirement("conformance: statuses")
@pytest.mark.requirement("I1")
@pytest.mark.parametrize(("call", "size"), [("pwrite", 20_000), ("fdatasync", 20_000), ("pwrite", 2_500_000),
                                            ("fdatasync", 2_500_000), ("ftruncate", 2_500_000)])
def test_an_io_error_is_a700_and_closes_the_door_to_storage(box: Box, monkeypatch: pytest.MonkeyPatch, call: str, size: int):
    disk = FaultyOs()
    monkeypatch.setattr(writer, "os", disk)
    instance = objects.sr(1, size=size)
    with session(box.port, instance) as scanner:
        disk.fail(call, errno.EIO)
        assert scanner.store(instance) == 0xA700
        disk.heal()
        assert scanner.store(instance) == 0xA700                  # out of intake until restart: nothing is tried again (I6)
        assert scanner.echo() == 0
        assert ask(box.port, contexts_of([instance])) == LOCAL_LIMIT
        echo(box.port)
    assert box.intake.out_of_intake
    assert box.receiver.progress()                                # a dead disk is no reason to reboot


@pytest.mark.requirement("I1")
@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_full_disk_is_a700_and_mends_itself(box: Box, monkeypatch: pytest.MonkeyPatch, call: str):
    disk = FaultyOs()
    monkeypatch.setattr(writer, "os", disk)
    with session(box.port, REPORT) as scanner:
        disk.fail(call, errno.ENOSPC)
        assert scanner.store(REPORT) == 0xA700
        disk.heal()
        assert scanner.store(REPORT) == 0
    assert len(box.held()) == 1


@pytest.mark.requirement("I1")
def test_a_ledger_that_cannot_be_written_is_a700(box: Box, monkeypatch: pytest.MonkeyPatch):
    def refuse(rows: object) -> None:
        raise LedgerFault("injected")

    monkeypatch.setattr(box.worker.ledger, "accepted", refuse)
    with session(box.port, REPORT) as scanner:
        # The debt is bounded: sooner or later a status has to wait for the ledger, and hears of its fault.
        statuses = [scanner.store(objects.sr(1)) for _ in range(400)]
    assert statuses[-1] == 0xA700 and set(statuses) == {0, 0xA700}
    assert box.intake.out_of_intake


@pytest.mark.requirement("I1")
def test_success_is_said_only_after_finish_has_returned(box: Box, monkeypatch: pytest.MonkeyPatch):
    at_it, go_on = threading.Event(), threading.Event()
    real = os.fdatasync

    def wait(fd: int) -> None:
        at_it.set()
        assert go_on.wait(10)
        real(fd)

    disk = FaultyOs()
    disk.stand_in("fdatasync", wait)
    monkeypatch.setattr(writer, "os", disk)
    with session(box.port, REPORT) as scanner:
        for piece in scanner.prepare(REPORT):
            scanner.sock.sendall(piece)
        assert at_it.wait(10)
        scanner.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            scanner.sock.recv(1)
        go_on.set()
        scanner.sock.settimeout(10)
        assert scanner._status() == 0


@pytest.mark.requirement("I1")
@pytest.mark.parametrize("when", ["at the end", "in mid-object", "behind us"])
def test_a_disk_that_hangs_is_answered_for_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str):
    hangs, go_on = threading.Event(), threading.Event()
    disk = FaultyOs()
    size, call = {"at the end": (20_000, "fdatasync"), "in mid-object": (8_000_000, "pwrite"),
                  "behind us": (3_000_000, "pwrite")}[when]
    real = getattr(os, call)

    def hang(*args: object) -> object:
        hangs.set()
        assert go_on.wait(30)
        return real(*args)

    instance = objects.dx(1, size=size)
    with receiving(tmp_path) as box:
        echo(box.port)
        monkeypatch.setattr(writer, "os", disk)
        disk.stand_in(call, hang)
        scanner = associated(box.port, instance)
        begin = time.monotonic()
        try:
            with echoing(box.port):
                if when != "in mid-object":
                    assert scanner.store(instance) == 0xA700
                    assert aborted(last_words(scanner)) == (2, 0)
                else:
                    with pytest.raises(Lost):
                        scanner.store(instance)
                assert time.monotonic() - begin < 25
                assert box.receiver.progress()                    # the disk does not gate the watchdog
        finally:
            go_on.set()
        scanner.close()
        wait_until(box.quiet, 10, "the disk is back")
        disk.stand_in(call, real)
        with session(box.port, REPORT) as again:
            assert again.store(REPORT) == 0


@pytest.mark.requirement("I1")
def test_the_product_answers_for_the_disk_within_25_seconds_of_the_last_byte():
    limits = Limits()
    assert limits.store + 2 * limits.scan < 25


@pytest.mark.requirement("hazard: handler raises")
@pytest.mark.parametrize(("error", "status"), [
    (SpoolFault("injected"), 0xA700), (LedgerFault("injected"), 0xA700), (OSError(errno.EIO, "injected"), 0xA700),
    (FormatError("injected"), 0x0110)])
def test_errors_of_the_handler_are_mapped_on_purpose(box: Box, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int):
    def fail(self: writer.SlotWriter, *args: object) -> None:
        self.abandon("injected")                                  # as `finish` does on every error
        raise error

    with session(box.port, REPORT) as scanner:
        with monkeypatch.context() as patch:
            patch.setattr(writer.SlotWriter, "finish", fail)
            assert scanner.store(REPORT) == status
        assert scanner.store(REPORT) == 0


@pytest.mark.requirement("conformance: statuses")
@pytest.mark.requirement("hazard: handler raises")
def test_a_handler_that_raises_what_nobody_expected_is_a_failure_and_an_abort(box: Box, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object) -> None:
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(services.Storing, "end", fail)
    scanner = associated(box.port, REPORT)
    with echoing(box.port):
        assert scanner.store(REPORT) == 0x0110
        assert aborted(last_words(scanner)) == (2, 0)
    scanner.close()
    wait_until(box.quiet, 10, "nothing is left")


@pytest.mark.requirement("hazard: handler raises")
def test_no_slot_is_a700_and_the_data_set_is_read_first(box: Box, monkeypatch: pytest.MonkeyPatch):
    large = objects.dx(1, size=5_000_000)

    def fail() -> None:
        raise SpoolFault("injected")

    with session(box.port, large, REPORT) as scanner:
        with monkeypatch.context() as patch:
            patch.setattr(box.intake, "take", fail)
            assert scanner.store(large) == 0xA700
        assert scanner.store(REPORT) == 0


def test_a_refused_data_set_without_end_is_not_read_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with receiving(tmp_path, limits=Limits(scan=0.05, drain=1 << 20, closing=0.3)) as box:
        def fail() -> None:
            raise SpoolFault("injected")

        monkeypatch.setattr(box.intake, "take", fail)
        scanner = associated(box.port, REPORT)
        context = scanner.context(REPORT)
        with contextlib.suppress(OSError):
            scanner.sock.sendall(pdata(context, 3, store_command(1, REPORT.sop_class, REPORT.sop_instance)))
            for _ in range(1000):
                scanner.sock.sendall(pdata(context, 0, bytes(100_000)))
        assert aborted(last_words(scanner)) in ((2, 0), None)
        scanner.close()
        wait_until(box.quiet, 10, "ended")


@pytest.mark.requirement("conformance: statuses")
def test_operations_that_a_service_does_not_know_get_a_status(box: Box):
    find = store_command(7, REPORT.sop_class, REPORT.sop_instance).replace(
        b"\x00\x01\x02\0\0\0\x01\0", b"\x00\x01\x02\0\0\0\x20\0")
    with session(box.port, REPORT) as scanner:
        context = scanner.context(REPORT)
        assert scanner.exchange([pdata(context, 3, find), *fragments(REPORT.parts, REPORT.length, context, 16384)]) == 0x0211
        # C-STORE where only Verification was agreed on
        echo_context = scanner.accepted[VERIFICATION, IMPLICIT]
        assert scanner.exchange([pdata(echo_context, 3, store_command(8, VERIFICATION, "1.2.3")), *fragments(
            [b"12"], 2, echo_context, 16384)]) == 0x0211
        assert scanner.store(REPORT) == 0
    assert len(box.held()) == 1


def test_a_store_that_announces_no_data_set_is_refused(box: Box):
    empty = store_command(7, REPORT.sop_class, REPORT.sop_instance).replace(
        b"\x00\x08\x02\0\0\0\x01\0", b"\x00\x08\x02\0\0\0\x01\x01")
    with session(box.port, REPORT) as scanner:
        assert scanner.exchange([pdata(scanner.context(REPORT), 3, empty)]) == 0xC000
        assert scanner.store(REPORT) == 0


def test_a_cancel_for_nothing_is_ignored(box: Box):
    cancel = b"".join(struct.pack("<HHLH", 0, element, 2, value) for element, value in (
        (0x0100, 0x0FFF), (0x0120, 1), (0x0800, 0x0101)))
    with session(box.port, REPORT) as scanner:
        scanner.sock.sendall(pdata(scanner.context(REPORT), 3, struct.pack("<HHLL", 0, 0, 4, len(cancel)) + cancel))
        assert scanner.echo() == 0


@pytest.mark.parametrize("elements", [
    ((0x0100, 0x8001), (0x0120, 1), (0x0800, 0x0101), (0x0900, 0)), ((0x0100, 0x8001), (0x0110, 1), (0x0120, 1), (0x0800, 1), (
        0x0900, 0)), ((0x0100, 0x0FFF), (0x0120, 1), (0x0800, 1)), ((0x0100, 0x0FFF), (0x0110, 1), (0x0120, 1), (0x0800, 1))],
    ids=["response", "response with data", "cancel with data", "cancel with data and a message ID"])
def test_what_is_no_request_ends_the_association(box: Box, elements: tuple[tuple[int, int], ...],
                                                 caplog: pytest.LogCaptureFixture):
    body = b"".join(struct.pack("<HHLH", 0, element, 2, value) for element, value in elements)
    scanner = associated(box.port, REPORT)
    scanner.sock.sendall(pdata(scanner.context(REPORT), 3, struct.pack("<HHLL", 0, 0, 4, len(body)) + body))
    scanner.sock.sendall(pdata(scanner.context(REPORT), 2, b"12"))
    assert aborted(last_words(scanner)) == (2, 5)
    scanner.close()
    wait_until(box.quiet, 10, "ended")
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.requirement("I3")
@pytest.mark.parametrize("chunk", [1, 7, 1460, 16384, 131066])
def test_any_fragmentation_arrives_byte_for_byte(box: Box, chunk: int):
    instance = objects.sr(3) if chunk < 100 else objects.ct(3)
    with session(box.port, instance) as scanner:
        context = scanner.context(instance)
        views = [pdata(context, 3, store_command(1, instance.sop_class, instance.sop_instance)),
                 *fragments(instance.parts, instance.length, context, chunk + 6)]
        assert scanner.exchange([b"".join(bytes(view) for view in views)]) == 0
    (custody, data), = box.held()
    assert (custody.digest, data) == (instance.digest(), b"".join(bytes(part) for part in instance.parts))


def test_an_empty_data_set_is_an_object_too(box: Box):
    with session(box.port, REPORT) as scanner:
        context = scanner.context(REPORT)
        assert scanner.exchange([pdata(context, 3, store_command(1, REPORT.sop_class, REPORT.sop_instance)), pdata(
            context, 2, b"")]) == 0
    (custody, data), = box.held()
    assert (custody.length, data) == (0, b"")


@pytest.mark.requirement("conformance: deadlines")
def test_an_idle_association_is_ended_after_its_peers_limit(tmp_path: Path):
    peers = (Peer(id="short", titles=("SHORT",), idle_seconds=1),)
    with receiving(tmp_path, config(peers=peers)) as box, session(box.port) as other, Scanner(
            box.port, [(VERIFICATION, IMPLICIT)], calling="SHORT") as scanner:
        assert scanner.echo() == 0
        begin = time.monotonic()
        assert aborted(last_words(scanner)) == (2, 0)
        assert 0.8 <= time.monotonic() - begin <= 10
        assert other.echo() == 0                                  # 60 minutes unless set


def test_stopping_ends_idle_associations_and_lets_an_object_finish(tmp_path: Path):
    with receiving(tmp_path, limits=SLOW) as box:
        idle = associated(box.port)
        busy = associated(box.port, REPORT)
        pieces = [bytes(piece) for piece in busy.prepare(REPORT)]
        busy.sock.sendall(b"".join(pieces[:-1]))
        wait_until(lambda: box.intake.in_flight == 1, 10, "in flight")
        stopped: list[bool] = []
        thread = threading.Thread(target=lambda: stopped.append(box.receiver.stop(5)))
        thread.start()
        assert aborted(read_to_end(idle.sock)) == (2, 0)
        busy.sock.sendall(pieces[-1])
        assert busy._status() == 0
        assert aborted(last_words(busy)) == (2, 0)
        thread.join(10)
        assert stopped == [True]
        assert len(box.held()) == 1
        for scanner in (idle, busy):
            scanner.close()


@pytest.mark.requirement("hazard: Nagle")
def test_nagle_on_the_other_side_is_not_waited_for(box: Box):
    """As DCMTK ships: header and body in two writes, Nagle on. The first is acknowledged at once, so the second comes."""
    scanner = associated(box.port, REPORT)
    scanner.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    message = pdata(scanner.accepted[VERIFICATION, IMPLICIT], 3, echo_command(1))
    times = []
    for _ in range(20):
        begin = time.monotonic()
        scanner.sock.sendall(message[:12])
        scanner.sock.sendall(message[12:])
        assert scanner._status() == 0
        times.append(time.monotonic() - begin)
    scanner.close()
    assert sorted(times)[10] < 0.03                               # a delayed acknowledgement costs 40 ms

