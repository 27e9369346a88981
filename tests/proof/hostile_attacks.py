"""What hostile and broken peers do, row by row: `python -m tests.proof.hostile_attacks NAME PORT SECONDS SEED JOURNAL`.

In a process of its own, so that its work slows nobody's echo but the gateway's.
It prints what it did as JSON; what it was told success for goes to the journal.
The attackers call from 127.0.0.2 and up, as other devices of the network would.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import socket
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.proof import fuzz_seeds
from tests.proof.oracle import Journal
from tests.support import corpus, objects
from tests.support.acceptor import connect
from tests.support.dicom_mutations import mutate
from tests.support.objects import Instance
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

MIB = 1 << 20
RESET = struct.pack("ii", 1, 0)
POLYGLOTS = {
    "PE": b"MZ\x90\0" + bytes(56) + b"\x80\0\0\0", "ELF": b"\x7fELF\2\1\1" + bytes(57), "PDF": b"%PDF-1.7\n%\xe2\xe3\n",
    "ZIP": b"PK\3\4\x14\0\0\0\0\0", "script": b"#!/bin/sh\nid > /tmp/owned\n", "HTML": b"<script>alert(1)</script>"}
UIDS = (b"../../x", b"/etc/cron.d/x", b"$(id)", b"a\0b", b"1" * 65, b"\xff\xfe\x1b[2J", b"'; DROP TABLE objects; --", b"%s%n",
        b"1.2.3\n0000000000000001 forged log line", b"`reboot`", b"", b"1" * 5000)


class Peer:
    """One attacker: where it attacks, until when, what dice it throws, and what it counts."""

    def __init__(self, port: int, seconds: float, seed: int, journal: Journal) -> None:
        self.port = port
        self.end = time.monotonic() + seconds
        self.dice = random.Random(seed)
        self.seed = seed
        self.journal = journal
        self.done: Counter[str] = Counter()

    def going(self) -> bool:
        return time.monotonic() < self.end

    def times(self) -> Iterator[int]:
        """0, 1, 2 … for as long as the attack lasts; at least once."""
        number = 0
        while number == 0 or self.going():
            yield number
            number += 1

    def wait(self, seconds: float) -> None:
        time.sleep(max(0.0, min(seconds, self.end - time.monotonic())))

    def connect(self, host: int = 2, timeout: float = 15.0) -> socket.socket:
        return connect(self.port, source=f"127.0.0.{host}", timeout=timeout)

    def many(self, count: int, stack: contextlib.ExitStack, per_address: int = 60) -> list[socket.socket]:
        """As many connections as can be had, from one address after the other."""
        made = []
        for number in range(count):
            with contextlib.suppress(OSError):
                made.append(stack.enter_context(self.connect(2 + number // per_address)))
        return made

    def associated(self, *instances: Instance, calling: str | bytes = "HOSTILE") -> Scanner:
        """An association for Verification and these objects."""
        return Scanner(self.port, [(VERIFICATION, IMPLICIT), *dict.fromkeys((i.sop_class, i.syntax) for i in instances)],
                       calling=calling, timeout=15).open()

    def store(self, *instances: Instance) -> None:
        """Objects sent as any scanner would; what is acknowledged goes to the journal."""
        with contextlib.suppress(Lost), self.associated(*instances) as scanner:
            for instance in instances:
                self.journal.offer(instance)
                status = scanner.store(instance)
                self.done[f"status {status:04X}"] += 1
                if status == 0:
                    self.journal.acknowledge(instance)


def begun(peer: Peer, report: Instance) -> Scanner:
    """An association with a C-STORE-RQ under way."""
    scanner = peer.associated(report)
    scanner.sock.sendall(pdata(scanner.context(report), 3, store_command(1, report.sop_class, report.sop_instance)))
    return scanner


# --- silence and slowness ---------------------------------------------------------------------------------------------


def silent_sockets(peer: Peer) -> None:
    """More silent connections than a process once had descriptors for, some of which have begun to speak, or speak TLS."""
    with contextlib.ExitStack() as stack:
        socks = peer.many(1300, stack)
        for number, sock in enumerate(socks):
            with contextlib.suppress(OSError):
                sock.sendall((b"", b"", b"\1\0\0", b"\1", b"\x16\x03\x01\2\0\1")[number % 5])
        peer.done["connections"] = len(socks)
        while peer.going():
            peer.wait(0.2)
            for sock in peer.dice.sample(socks, min(len(socks), 20)):    # those that were closed come again
                with contextlib.suppress(OSError):
                    sock.settimeout(0)
                    if sock.recv(1) == b"":
                        sock.close()
                        socks[socks.index(sock)] = stack.enter_context(peer.connect(40))
                        peer.done["again"] += 1


def one_byte_at_a_time(peer: Peer) -> None:
    """Association requests and data sets a byte at a time."""
    report = objects.sr(1, "slow")
    with contextlib.ExitStack() as stack:
        speaking = [(sock, associate_request("DCMGATE", "SLOW", [(VERIFICATION, IMPLICIT)])) for sock in peer.many(40, stack)]
        for _ in range(8):
            with contextlib.suppress(Lost, OSError):
                speaking.append((begun(peer, report).sock, pdata(3, 0, bytes(4000))))
        at = 0
        while peer.going():
            for sock, data in speaking:
                with contextlib.suppress(OSError):
                    sock.send(data[at:at + 1])
            at += 1
            peer.wait(0.1)
        peer.done["connections"] = len(speaking)


def idle_associations(peer: Peer) -> None:
    """Sixteen associations that do nothing, as scanners keep them over night."""
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            with contextlib.suppress(Lost):
                stack.callback(peer.associated().close)
                peer.done["associations"] += 1
        peer.wait(1e9)


def never_reads(peer: Peer) -> None:
    """Requests sent ahead, and no answer read; in the end the peer is gone."""
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(8):
            with contextlib.suppress(Lost):
                scanner = peer.associated()
                stack.callback(scanner.close)
                scanner.sock.settimeout(0.05)
                socks.append(scanner)
        ahead = pdata(1, 3, echo_command(1)) * 200
        while peer.going():
            for scanner in socks:
                with contextlib.suppress(OSError, Lost):
                    peer.done["bytes"] += scanner.sock.send(ahead)
            peer.wait(0.01)


# --- lengths ----------------------------------------------------------------------------------------------------------


def absurd_lengths(peer: Peer) -> None:
    """PDUs of 4 GiB before an association and on one, and the bytes to go with them."""
    block, report = bytes(MIB), objects.sr(1, "absurd")
    for number in peer.times():
        with contextlib.suppress(OSError, Lost):
            length = peer.dice.choice((0xFFFFFFFF, 131073, 0x7FFFFFFF, 200_000_000))
            if number % 2:
                scanner = begun(peer, report)
                sock = scanner.sock
                sock.sendall(struct.pack(">BxLLBB", 4, length, length - 4, 3, 0))
            else:
                sock = peer.connect()
                sock.sendall(struct.pack(">BxL", 1, length))
            with sock:
                for _ in range(64):
                    peer.done["bytes"] += sock.send(block)
        peer.done["connections"] += 1


def fragments_without_end(peer: Peer) -> None:
    """Data sets that never end, a few at once, and command sets as well; at most 1 GB in all."""
    report = objects.sr(1, "endless")
    with contextlib.ExitStack() as stack:
        senders = []
        for number in range(4):
            with contextlib.suppress(Lost):
                scanner = begun(peer, report)
                stack.callback(scanner.close)
                senders.append((scanner, pdata(3, 0, bytes(131066)) if number else pdata(1, 1, bytes(4096))))
        while peer.going() and peer.done["bytes"] < 1 << 30:
            for scanner, block in senders:
                with contextlib.suppress(OSError, Lost):
                    scanner.sock.sendall(block)
                    peer.done["bytes"] += len(block)


def pipelined(peer: Peer) -> None:
    """Forty objects and an echo sent ahead of every answer; each must be answered, in order."""
    for number in peer.times():
        reports = [objects.sr(n, ("pipe", peer.seed, number), size=3000) for n in range(40)]
        with contextlib.suppress(Lost, OSError), peer.associated(*reports) as scanner:
            for report in reports:
                peer.journal.offer(report)
            scanner.sock.sendall(b"".join(bytes(part) for report in reports for part in scanner.prepare(report)))
            for report in reports:
                if scanner._status() == 0:
                    peer.journal.acknowledge(report)
                    peer.done["stored"] += 1


# --- connections ------------------------------------------------------------------------------------------------------


def connects_and_closes(peer: Peer) -> None:
    """A port scan: connections that are closed or reset at once."""
    for number in peer.times():
        with contextlib.suppress(OSError), peer.connect(2 + number % 5) as sock:
            if number % 3 == 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.done["connections"] += 1


def sixty_four_at_once(peer: Peer) -> None:
    """Sixty-four scanners that are switched on at the same moment, and off as they should be: beside them half the places of
    the listener (max_associations) are free, and nobody may be turned away."""
    for _ in peer.times():
        with contextlib.ExitStack() as stack:
            socks = peer.many(64, stack, per_address=16)
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.sendall(associate_request("DCMGATE", "MANY", [(VERIFICATION, IMPLICIT)]))
            for sock in socks:
                with contextlib.suppress(OSError):
                    peer.done[f"answer {sock.recv(10_000)[:1].hex()}"] += 1
                    sock.sendall(struct.pack(">BxLL", 5, 4, 0))
            for sock in socks:
                with contextlib.suppress(OSError):
                    while sock.recv(10_000):
                        pass


def every_place(peer: Peer) -> None:
    """Associations from two hundred addresses, held for as long as they last: all the places that the listener gives them, and
    again where they were turned away."""
    request = associate_request("DCMGATE", "EVERYBODY", [(VERIFICATION, IMPLICIT)])
    with contextlib.ExitStack() as stack:
        held: list[socket.socket] = []
        while peer.going():
            for number in range(200 - len(held)):
                with contextlib.suppress(OSError):
                    sock = peer.connect(2 + number)
                    sock.sendall(request)
                    answer = sock.recv(10_000)[:1].hex()
                    peer.done[f"answer {answer}"] += 1
                    if answer == "02":
                        held.append(stack.enter_context(sock))
                    else:
                        sock.close()
            peer.wait(0.2)


def disconnects(peer: Peer) -> None:
    """Gone in the middle of an object: closed, reset, aborted, released."""
    report = objects.sr(1, "gone")
    for number in peer.times():
        with contextlib.suppress(Lost, OSError):
            scanner = begun(peer, report)
            for _ in range(peer.dice.choice((0, 1, 40))):
                scanner.sock.sendall(pdata(3, 0, bytes(50_000)))
            how = number % 4
            if how == 0:
                scanner.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            elif how < 3:
                scanner.sock.sendall(struct.pack(">BxLL", (7, 5)[how - 1], 4, 0))
            scanner.close()
            peer.done["objects"] += 1


def greedy_negotiation(peer: Peer) -> None:
    """A hundred and twenty-eight contexts with thirty-five transfer syntaxes each."""
    syntaxes = [f"1.2.840.10008.1.2.4.{n}" for n in range(50, 84)] + [IMPLICIT]
    item = b"".join(struct.pack(">BxH", 0x40, len(uid)) + uid.encode() for uid in syntaxes)
    contexts = b""
    for n in range(128):
        abstract = f"1.2.840.10008.5.1.4.1.1.{n + 1}".encode()
        names = struct.pack(">BxH", 0x30, len(abstract)) + abstract + item
        contexts += struct.pack(">BxHBxxx", 0x20, len(names) + 4, 2 * n + 1) + names
    body = associate_request("DCMGATE", "GREEDY", [])[6:]
    at = 68 + 4 + struct.unpack_from(">H", body, 70)[0]
    request = struct.pack(">BxL", 1, len(body) + len(contexts)) + body[:at] + contexts + body[at:]
    for _ in peer.times():
        with contextlib.suppress(OSError), peer.connect() as sock:
            sock.sendall(request)
            peer.done[f"answer {sock.recv(1).hex()}"] += 1


# --- what they say ----------------------------------------------------------------------------------------------------


def hostile_names(peer: Peer) -> None:
    """UIDs and titles that are paths, commands, escape sequences, or far too long."""
    for number in peer.times():
        report = objects.sr(number, ("names", peer.seed), size=2000)
        titles = (b"../../\0x", b"\x1b[2J$(id)\xff", b"`reboot`", b"")
        with contextlib.suppress(Lost, OSError), peer.associated(report, calling=titles[number % 4]) as scanner:
            for uid in UIDS:
                named = Instance(report.sop_class, uid.decode("latin-1").rstrip("\0 "), report.syntax, report.parts)
                command = pdata(scanner.context(report), 3, store_command(1, report.sop_class, uid))
                peer.journal.offer(named)
                status = scanner.exchange([command, *fragments(report.parts, report.length, scanner.context(report), 16384)])
                peer.done[f"status {status:04X}"] += 1
                if status == 0:
                    peer.journal.acknowledge(named)


def other_protocols(peer: Peer) -> None:
    """HTTP, TLS, SSH, a second association request, queries, and commands that no scanner sends."""
    first = (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\2\0\1\0\1\xfc\3\3" + bytes(500), b"SSH-2.0-x\r\n",
             b"\0" * 100, b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>")
    request = associate_request("DCMGATE", "TWICE", [(VERIFICATION, IMPLICIT), (objects.SR, objects.EXPLICIT)])
    for number in peer.times():
        with contextlib.suppress(OSError), peer.connect() as sock:
            if number % 8 < len(first):
                sock.sendall(first[number % 8])
            else:
                field = peer.dice.choice((0x20, 0x21, 0x10, 0x100, 0x130, 0xFFF, 0x8001, 0x7777))
                query = pdata(3, 3, store_command(1, objects.SR, "1.2").replace(b"\1\0", struct.pack("<H", field), 1))
                sock.sendall(request + (request if number % 8 == 5 else query + pdata(3, 2, b"\xff" * 300)))
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1000)
        peer.done["connections"] += 1


def mutated_inputs(peer: Peer) -> None:
    """Conversations with something wrong in them, and what the fuzzers found worth keeping."""
    whole = fuzz_seeds.scans() + fuzz_seeds.kept("live")
    for number in peer.times():
        data = mutate(1_000_003 * peer.seed + number, peer.dice.choice(whole) or b"\1")
        with contextlib.suppress(OSError), peer.connect(2 + number % 9) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            if number % 20 == 0:
                sock.settimeout(5)
                sock.recv(10_000)
        peer.done["inputs"] += 1


# --- what they send ---------------------------------------------------------------------------------------------------


def deflated_zeros(mebibytes: int, front: bytes = b"") -> bytes:
    """`front` and so many MiB of zeros, deflated (PS3.5 A.5)."""
    machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = machine.compress(front) + machine.flush(zlib.Z_FULL_FLUSH)
    block = machine.compress(bytes(MIB)) + machine.flush(zlib.Z_FULL_FLUSH)
    raw = start + block * mebibytes + machine.flush()
    return raw + b"\0" * (len(raw) % 2)


def bombs(peer: Peer) -> None:
    """Objects that a decoder dies of: 796 KiB that become 790 MB, sequences 2,000 deep, a million elements, false lengths.

    Each keeps the limited child busy for a second or two, and what came after it waits to be routed: not more than fifty.
    """
    big = b"\x09\0\x01\x10UN\0\0" + struct.pack("<L", 800_000_000)
    item = b"\x08\0\x40\x11SQ\0\0" + struct.pack("<L", 0xFFFFFFFF)
    contents = ((objects.DEFLATED, deflated_zeros(790)), (objects.DEFLATED, deflated_zeros(790, big)),
                (IMPLICIT, corpus.nested(2000)), (objects.EXPLICIT, corpus.nested(2000, implicit=False)),
                (objects.EXPLICIT, item + struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 1_100_000),
                (objects.DEFLATED, b"\xff" * 5000), (objects.EXPLICIT, b"\x08\0\x05\0UT\0\0\xf0\xff\xff\xff" + b"x" * 100),
                (IMPLICIT, b"\xff" * 70_000), (objects.EXPLICIT, b"\x08\0\x60\0CS\2\0CT" * 100_000))
    for number in itertools.islice(peer.times(), 6):
        peer.store(*(Instance(objects.SR, objects.uid("bomb", peer.seed, number, n), syntax, (content,))
                     for n, (syntax, content) in enumerate(contents)))


def polyglots(peer: Peer) -> None:
    """Objects that begin as programs and documents do, alone, as Part 10 files and inside of data sets."""
    for number in peer.times():
        made = []
        for name, start in POLYGLOTS.items():
            report = objects.sr(number, (name, peer.seed), size=2000)
            body = b"".join(bytes(part) for part in report.parts)
            inside = objects.element(0x00080005, "CS", "ISO_IR 192") + objects.element(0x00091001, "OB", start) + body
            for n, content in enumerate((start + bytes(200), start.ljust(128, b"\0") + b"DICM" + body, inside)):
                uid = objects.uid("polyglot", name, peer.seed, number, n)
                made.append(Instance(objects.SR, uid, objects.EXPLICIT, (content + b"\0" * (len(content) % 2),)))
        peer.store(*made)


ATTACKS: dict[str, Callable[[Peer], None]] = {attack.__name__: attack for attack in (
    silent_sockets, one_byte_at_a_time, idle_associations, never_reads, absurd_lengths, fragments_without_end, pipelined,
    connects_and_closes, sixty_four_at_once, every_place, disconnects, greedy_negotiation, hostile_names, other_protocols,
    mutated_inputs, bombs, polyglots)}


def main() -> None:
    name, port, seconds, seed, journal = sys.argv[1:]
    peer = Peer(int(port), float(seconds), int(seed), Journal(Path(journal)))
    ATTACKS[name](peer)
    print(json.dumps(dict(peer.done)))


if __name__ == "__main__":
    main()
