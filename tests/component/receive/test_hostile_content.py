"""The first table of hazards.md, content: what a hostile or broken peer says costs it alone.

Each row against a real receiver on a real spool, while a well-behaved peer's
echo is answered within a second.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import struct
import threading
import zlib
from pathlib import Path

import psutil
import pytest

from appliance.config.settings import Listener
from appliance.dicom.pdu import MAX_ASSOCIATION_PDU
from appliance.receive.limits import Limits
from tests.support import objects
from tests.support.acceptor import (
    OPEN,
    Box,
    aborted,
    associated,
    config,
    connect,
    descriptors,
    echo,
    echoing,
    read_to_end,
    receiving,
    session,
)
from tests.support.scu import (
    IMPLICIT,
    VERIFICATION,
    Lost,
    Scanner,
    associate_request,
    echo_command,
    fragments,
    pdata,
    store_command,
)
from tests.support.waiting import wait_until

SR = objects.SR
EXPLICIT = objects.EXPLICIT


# --- lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("hazard: PDU length 0xFFFFFFFF")
@pytest.mark.parametrize("length", [0xFFFFFFFF, MAX_ASSOCIATION_PDU + 1])
def test_an_absurd_length_before_associating_is_refused_before_anything_is_allocated(patient_box: Box, length: int):
    before = psutil.Process().memory_info().rss
    sent = 0
    with echoing(patient_box.port), connect(patient_box.port) as sock:
        block = bytes(1 << 20)
        sock.sendall(struct.pack(">BxL", 1, length))
        with contextlib.suppress(OSError):
            for _ in range(256):
                sent += sock.send(block)
        sock.settimeout(10)
        assert aborted(read_to_end(sock)) in ((2, 6), None)       # None: our own flood made the reset overtake it
    assert sent < 64 << 20
    assert psutil.Process().memory_info().rss - before < 32 << 20
    wait_until(patient_box.quiet, 10, "all gone")


@pytest.mark.requirement("hazard: PDU length 0xFFFFFFFF")
def test_the_peer_hears_why_when_it_only_announces_an_absurd_length(patient_box: Box):
    with connect(patient_box.port) as sock:
        sock.sendall(struct.pack(">BxL", 1, 0xFFFFFFFF))
        assert aborted(read_to_end(sock)) == (2, 6)


@pytest.mark.requirement("hazard: P-DATA larger than negotiated")
@pytest.mark.parametrize("length", [131073, 0x7FFFFFFF, 0xFFFFFFFF])
def test_p_data_larger_than_negotiated_ends_the_association(patient_box: Box, length: int):
    report = objects.sr(1)
    scanner = associated(patient_box.port, report)
    assert scanner.peer_max == 131072
    with echoing(patient_box.port):
        context = scanner.context(report)
        scanner.sock.sendall(pdata(context, 3, store_command(1, report.sop_class, report.sop_instance)))
        scanner.sock.sendall(struct.pack(">BxLLBB", 4, length, length - 4, context, 0))
        assert aborted(read_to_end(scanner.sock)) == (2, 6)
    scanner.close()
    wait_until(patient_box.quiet, 10, "all gone")
    assert patient_box.held() == []


@pytest.mark.requirement("hazard: fragments without end")
def test_a_data_set_without_end_is_written_out_and_never_kept_in_memory(patient_box: Box):
    report = objects.sr(1)
    scanner = associated(patient_box.port, report)
    before = psutil.Process().memory_info().rss
    with echoing(patient_box.port):
        context = scanner.context(report)
        scanner.sock.sendall(pdata(context, 3, store_command(1, report.sop_class, report.sop_instance)))
        block = pdata(context, 0, bytes(131066))
        for _ in range(800):                                       # 100 MB
            scanner.sock.sendall(block)
        assert psutil.Process().memory_info().rss - before < 16 << 20
        scanner.close()
    wait_until(patient_box.quiet, 10, "all gone")
    assert patient_box.held() == []


@pytest.mark.requirement("hazard: command set without end")
def test_a_command_set_without_end_ends_the_association(patient_box: Box):
    scanner = associated(patient_box.port)
    with echoing(patient_box.port):
        block = pdata(scanner.accepted[VERIFICATION, IMPLICIT], 1, bytes(4096))
        with contextlib.suppress(OSError):
            for _ in range(200):
                scanner.sock.sendall(block)
        assert aborted(read_to_end(scanner.sock)) in ((2, 6), None)
    scanner.close()
    wait_until(patient_box.quiet, 10, "all gone")


@pytest.mark.requirement("hazard: pipelined requests")
def test_pipelined_requests_are_answered_in_order_and_never_piled_up(patient_box: Box):
    reports = [objects.sr(n) for n in range(40)]
    with session(patient_box.port, *reports) as scanner:
        ahead = b"".join(bytes(part) for report in reports for part in scanner.prepare(report))
        ahead += pdata(scanner.accepted[VERIFICATION, IMPLICIT], 3, echo_command(77))
        writer = threading.Thread(target=scanner.sock.sendall, args=(ahead,))
        writer.start()
        assert [scanner._status() for _ in range(41)] == [0] * 41
        writer.join(10)
    assert {custody.uid_text for custody, _ in patient_box.held()} == {report.sop_instance for report in reports}


@pytest.mark.requirement("conformance: association policies")
@pytest.mark.requirement("hazard: advertised PDU bounded")
def test_the_advertised_pdu_is_bounded(tmp_path: Path):
    small = Listener(id="small", address="127.0.0.1", ports=(0,), unknown="admit", max_pdu=16384)
    with receiving(tmp_path, config(OPEN, small)) as box:
        sizes = {}
        for listener, _, port in box.receiver.addresses:
            with Scanner(port, [(VERIFICATION, IMPLICIT)]) as scanner:
                sizes[listener] = scanner.peer_max
        assert sizes == {"lan": 131072, "small": 16384}


@pytest.mark.requirement("hazard: 170 storage classes × 45 syntaxes")
def test_negotiation_looks_at_what_was_proposed_only(patient_box: Box):
    syntaxes = [f"1.2.840.10008.1.2.4.{n}" for n in range(50, 84)] + [IMPLICIT]
    item = b"".join(struct.pack(">BxH", 0x40, len(uid)) + uid.encode() for uid in syntaxes)
    contexts = b""
    for n in range(128):
        abstract = f"1.2.840.10008.5.1.4.1.1.{n + 1}".encode()
        names = struct.pack(">BxH", 0x30, len(abstract)) + abstract + item
        contexts += struct.pack(">BxHBxxx", 0x20, len(names) + 4, 2 * n + 1) + names
    plain = associate_request("DCMGATE", "GREEDY", [])
    body = plain[6:]
    application = 68 + 4 + struct.unpack_from(">H", body, 70)[0]
    body = body[:application] + contexts + body[application:]
    assert len(body) > 100_000
    with echoing(patient_box.port), connect(patient_box.port) as sock:
        sock.sendall(struct.pack(">BxL", 1, len(body)) + body)
        head = sock.recv(6, socket.MSG_WAITALL)
        assert head[0] == 2
        answer = sock.recv(struct.unpack(">L", head[2:])[0], socket.MSG_WAITALL)
        assert answer.count(b"1.2.840.10008.1.2.4.50") == 128


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("hazard: empty SOP Instance UID")
def test_an_empty_sop_instance_uid_gets_a_failure_status(patient_box: Box):
    report = objects.sr(1)
    with session(patient_box.port, report) as scanner:
        context = scanner.context(report)
        assert scanner.exchange([pdata(context, 3, store_command(1, report.sop_class, b"")), *fragments(
            report.parts, report.length, context, 16384)]) == 0x0117
        assert scanner.store(report) == 0                          # the association is still good
    assert len(patient_box.held()) == 1


HOSTILE = [b"../../x", b"/etc/cron.d/x", b"$(id)", b"a\0b", b"1" * 65, b"\xff\xfe\x1b[2J", b"'; DROP TABLE objects; --",
           b"%s%n", b"1.2.3\n0000000000000001 forged log line"]


def files(box: Box) -> set[str]:
    return {os.path.relpath(os.path.join(folder, name), box.spool.path) for folder, _, names in os.walk(box.spool.path)
            for name in names}


@pytest.mark.requirement("hazard: hostile UIDs")
@pytest.mark.parametrize("uid", HOSTILE, ids=lambda uid: ascii(uid[:12]))
def test_a_hostile_uid_is_taken_into_custody_and_never_part_of_a_path(patient_box: Box, uid: bytes,
                                                                      capfd: pytest.CaptureFixture[str]):
    report = objects.sr(1)
    before = files(patient_box)
    with session(patient_box.port, report) as scanner:
        context = scanner.context(report)
        assert scanner.exchange([pdata(context, 3, store_command(1, report.sop_class, uid)), *fragments(
            report.parts, report.length, context, 16384)]) == 0
    wait_until(patient_box.quiet, 10, "done")
    (custody, data), = patient_box.held()
    assert custody.sop_instance == uid
    assert data == b"".join(bytes(part) for part in report.parts)
    for name in files(patient_box) - before:
        assert re.fullmatch(r"objects/[0-9a-f]{2}/[0-9a-f]{16}\.dcm|ledger\.sqlite-(wal|shm)", name)
    logged = capfd.readouterr().err
    assert "\x1b" not in logged and "\0" not in logged


@pytest.mark.requirement("hazard: hostile UIDs")
def test_a_uid_without_end_is_refused(patient_box: Box):
    report = objects.sr(1)
    with session(patient_box.port, report) as scanner:
        context = scanner.context(report)
        assert scanner.exchange([pdata(context, 3, store_command(1, report.sop_class, b"1" * 5000)), *fragments(
            report.parts, report.length, context, 16384)]) == 0x0117
        assert scanner.store(report) == 0


@pytest.mark.requirement("hazard: hostile UIDs")
def test_hostile_titles_are_escaped_in_what_is_remembered(patient_box: Box):
    report = objects.sr(1)
    with Scanner(patient_box.port, [(SR, EXPLICIT)], called=b"../../\0x", calling=b"\x1b[2J$(id)\xff") as scanner:
        assert scanner.store(report) == 0
    with contextlib.closing(patient_box.ledger()) as ledger:
        knock = wait_until(lambda: next(iter(ledger.knocks()), None), 10, "remembered")
    assert "\x1b" not in knock.text
    (custody, _), = patient_box.held()
    assert custody.source.raw_calling == b"\x1b[2J$(id)\xff".ljust(16)


# --- content ----------------------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """A small deflated data set that would become 200 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    return raw + b"\0" * (len(raw) % 2)


NESTED = struct.pack("<HHL", 0x0040, 0xA730, 0xFFFFFFFF) + (
    struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + struct.pack("<HHL", 0x0040, 0xA730, 0xFFFFFFFF)) * 2000


@pytest.mark.requirement("I8")
@pytest.mark.requirement("hazard: decompression bomb")
@pytest.mark.parametrize(("syntax", "content"), [
    (objects.DEFLATED, bomb()), (IMPLICIT, NESTED), (EXPLICIT, b"MZ no DICOM at all")], ids=["deflated", "nested", "nonsense"])
def test_nothing_is_decoded_before_custody(patient_box: Box, syntax: str, content: bytes):
    evil = objects.Instance(SR, objects.uid("evil"), syntax, (content,))
    before = psutil.Process().memory_info().rss
    with echoing(patient_box.port), session(patient_box.port, evil) as scanner:
        assert scanner.store(evil) == 0
    assert psutil.Process().memory_info().rss - before < 16 << 20
    (custody, data), = patient_box.held()
    assert data == content and custody.transfer_syntax == syntax


@pytest.mark.requirement("hazard: executable preamble")
def test_a_polyglot_preamble_has_no_way_in(patient_box: Box):
    """DIMSE carries no preamble; what pretends to be one is data, and ours is 128 zero bytes (CVE-2019-11687)."""
    evil = objects.Instance(SR, objects.uid("polyglot"), EXPLICIT, (b"MZ" + bytes(126) + b"DICM" + bytes(64),))
    with session(patient_box.port, evil) as scanner:
        assert scanner.store(evil) == 0
    number, = [n for n in patient_box.spool.object_numbers() if patient_box.spool.object_path(n).stat().st_size]
    assert patient_box.spool.object_path(number).read_bytes()[:132] == bytes(128) + b"DICM"


# --- anything ---------------------------------------------------------------------------------------------------------


def conversation() -> bytes:
    report = objects.sr(1, size=2000)
    return (associate_request("DCMGATE", "FUZZ", [(VERIFICATION, IMPLICIT), (SR, EXPLICIT)]) + pdata(1, 3, echo_command(1))
            + pdata(3, 3, store_command(2, SR, report.sop_instance)) + b"".join(
                bytes(piece) for piece in fragments(report.parts, report.length, 3, 512)) + struct.pack(">BxLL", 5, 4, 0))


def mutated(seed: int, whole: bytes) -> bytes:
    """The conversation with a few bytes changed, cut out, repeated, or made absurd."""
    dice = random.Random(seed)
    data = bytearray(whole)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(data))
        match dice.randrange(6):
            case 0:
                data[at] = dice.randrange(256)
            case 1:
                del data[at:at + dice.randint(1, 40)]
            case 2:
                data[at:at] = dice.randbytes(dice.randint(1, 40))
            case 3:
                data[at:at] = data[at:at + dice.randint(1, 200)]
            case 4:
                data[at:at + 4] = dice.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\0\2\0\0"])
            case _:
                del data[at:]
                data += b"\0"
    return bytes(data)


@pytest.mark.requirement("hazard: 1,500 mutated inputs")
@pytest.mark.slow
def test_1500_mutated_inputs_leave_threads_and_descriptors_as_they_were(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    whole = conversation()
    with receiving(tmp_path, limits=Limits(first_pdu=2, pdu=2, progress=2, closing=0.3, scan=0.1, tick=1)) as box:
        echo(box.port)
        threads, fds = threading.active_count(), descriptors()
        with echoing(box.port):
            for seed in range(1500):
                with connect(box.port) as sock, contextlib.suppress(OSError):
                    sock.sendall(mutated(seed, whole))
                    sock.shutdown(socket.SHUT_WR)
                    if seed % 10 == 0:
                        read_to_end(sock)
        wait_until(box.quiet, 30, "all gone")
        wait_until(lambda: threading.active_count() <= threads, 10, "threads are back")
        assert descriptors() <= fds + 64                           # slots that were made ahead keep theirs
        assert not box.intake.out_of_intake
        assert not [record.getMessage() for record in caplog.records if record.exc_info]    # nothing nobody expected
        report = objects.sr(2)
        with session(box.port, report) as scanner:
            assert scanner.store(report) == 0


@pytest.mark.requirement("hazard: speaks something else")
@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"\0", b"\x04\0\0\0\0\6", b"SSH"])
def test_a_first_byte_that_is_no_association_request_closes_at_once(patient_box: Box, first: bytes):
    with echoing(patient_box.port), connect(patient_box.port) as sock:
        sock.sendall(first)
        assert read_to_end(sock) == b""
        assert patient_box.receiver._front.alive


@pytest.mark.requirement("hazard: repeated A-ASSOCIATE-RQ")
def test_a_second_association_request_ends_the_association(patient_box: Box):
    scanner = associated(patient_box.port)
    scanner.sock.sendall(associate_request("DCMGATE", "TWICE", [(VERIFICATION, IMPLICIT)]))
    assert aborted(read_to_end(scanner.sock)) == (2, 2)
    with pytest.raises((Lost, OSError)):
        scanner.echo()
    scanner.close()
