"""The limited child: right answers for real objects, and no harm from the others."""

from __future__ import annotations

import os
import signal
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from appliance.dicom.elements import reader
from appliance.dicom.part10 import HEAD
from appliance.errors import FormatError, SandboxError
from appliance.model import Attributes
from appliance.sandbox import frames, process
from appliance.sandbox.inflate import inflating
from appliance.sandbox.parent import Child, _attributes
from appliance.sandbox.process import Process
from tests.support import corpus
from tests.support.corpus import EXPLICIT_LE, IMPLICIT_LE
from tests.support.waiting import wait_until

DEFLATED = "1.2.840.10008.1.2.1.99"
WANTED = frozenset({0x00080005, 0x00080060, 0x00080050, 0x00100010, 0x00100020, 0x0020000D})
MEMORY = 64 << 20
UNREADABLE = Attributes(readable=False)

Put = Callable[[bytes], tuple[int, int, int]]


@pytest.fixture
def child() -> Iterator[Child]:
    with Child(MEMORY, 5.0) as child:
        yield child


@pytest.fixture
def put(tmp_path: Path) -> Iterator[Put]:
    """Puts a data set behind a head's worth of zeros; gives (descriptor, offset, length)."""
    opened: list[int] = []

    def put(data: bytes) -> tuple[int, int, int]:
        path = tmp_path / f"{len(opened)}.dcm"
        path.write_bytes(bytes(HEAD) + data)
        opened.append(os.open(path, os.O_RDONLY))
        return opened[-1], HEAD, len(data)

    yield put
    for descriptor in opened:
        os.close(descriptor)


def deflate(data: bytes) -> bytes:
    machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return machine.compress(data) + machine.flush()


GOOD = corpus.ct_header(100, pixels=70000)


def good(found: Attributes) -> bool:
    return found.readable and found.values.get(0x00100020) == "P-1" and found.values.get(0x00100010) == "Müller^Jörg"


def test_tags_of_a_batch_in_its_order(child: Child, put: Put) -> None:
    batch = [(*put(corpus.pieces([(0x00100020, b"LO", b"P%03d" % i)])), EXPLICIT_LE) for i in range(150)]
    assert [a.values[0x00100020] for a in child.tags(batch, WANTED)] == [f"P{i:03d}" for i in range(150)]
    assert child.starts == 1
    assert child.tags([], WANTED) == []


def test_deflated_and_implicit_and_unknown_syntaxes(child: Child, put: Put) -> None:
    implicit = corpus.pieces([(0x00100020, b"LO", b"P-1 "), (0x0020000D, b"UI", b"1.2\0")], implicit=True)
    found = child.tags([(*put(deflate(GOOD)), DEFLATED), (*put(zlib.compress(GOOD)), DEFLATED), (*put(implicit), IMPLICIT_LE),
                        (*put(GOOD), "1.2.840.10008.1.2.4.90"), (*put(GOOD), "nonsense")], WANTED)
    assert [good(a) for a in found] == [True, True, False, True, True]
    assert found[2].values == {0x00100020: "P-1", 0x0020000D: "1.2"}


def test_text_in_utf8(child: Child, put: Put) -> None:
    data = corpus.pieces([(0x00080005, b"CS", b"ISO_IR 192"), (0x00100010, b"PN", "Wang^小东".encode())])
    assert child.tags([(*put(data), EXPLICIT_LE)], WANTED)[0].values[0x00100010] == "Wang^小东"


def deflated_zeros(count: int, front: bytes = b"") -> bytes:
    """`front` and count MiB of zeros, deflated: one block made and repeated, so that the test is quick."""
    machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = machine.compress(front) + machine.flush(zlib.Z_FULL_FLUSH)
    block = machine.compress(bytes(1 << 20)) + machine.flush(zlib.Z_FULL_FLUSH)
    return start + block * count + machine.flush()


BOMB = deflated_zeros(790)


@pytest.mark.requirement("hazard: 796 KiB deflate bomb")
def test_deflate_bomb(child: Child, put: Put) -> None:
    big = b"\x09\x00\x01\x10UN\0\0" + (800_000_000).to_bytes(4, "little")
    assert 780_000 < len(BOMB) < 830_000
    batch = [(*put(GOOD), EXPLICIT_LE), (*put(BOMB), DEFLATED), (*put(deflated_zeros(790, big)), DEFLATED),
             (*put(GOOD), EXPLICIT_LE)]
    found = child.tags(batch, WANTED)
    assert [a.readable for a in found] == [True, False, False, True]
    assert good(found[0]) and good(found[3])
    if child.pid:
        assert psutil.Process(child.pid).memory_info().rss < MEMORY


@pytest.mark.requirement("hazard: 796 KiB deflate bomb")
def test_no_more_is_inflated_than_the_bound() -> None:
    with pytest.raises(FormatError, match="inflated"):
        inflating(reader(BOMB))(600 << 20, 16)
    assert inflating(reader(BOMB))(100 << 20, 16) == bytes(16)


@pytest.mark.requirement("hazard: 2,000-deep sequence")
def test_deep_sequence(child: Child, put: Put) -> None:
    found = child.tags([(*put(corpus.nested(2000)), IMPLICIT_LE), (*put(corpus.nested(2000, implicit=False)), EXPLICIT_LE),
                        (*put(GOOD), EXPLICIT_LE)], WANTED)
    assert [a.readable for a in found] == [False, False, True]


@pytest.mark.requirement("hazard: truncated data set")
@pytest.mark.requirement("hazard: garbage data set")
def test_truncated_and_garbage(child: Child, put: Put) -> None:
    descriptor, offset, length = put(GOOD[:200])
    batch = [(descriptor, offset, length - 3, EXPLICIT_LE), (descriptor, offset, length + 1000, EXPLICIT_LE),
             (*put(os.urandom(5000)), DEFLATED), (*put(b"\xaa" * 5000), EXPLICIT_LE), (*put(b""), EXPLICIT_LE),
             (*put(b"<html>no image here</html>"), IMPLICIT_LE), (*put(GOOD), EXPLICIT_LE)]
    found = child.tags(batch, WANTED)
    assert [a.readable for a in found] == [False] * 6 + [True]
    assert child.starts == 1, "none of these needs a new child"


@pytest.mark.requirement("I8")
def test_a_child_that_dies_costs_nothing_but_a_new_one(child: Child, put: Put) -> None:
    place = (*put(GOOD), EXPLICIT_LE)
    assert good(child.tags([place], WANTED)[0])
    os.kill(child.pid, signal.SIGKILL)
    assert all(good(a) for a in child.tags([place] * 3, WANTED))
    assert child.starts == 2


class Stubborn(Child):
    """A child that hangs on objects of one length, as on an object that a parser never gets done with."""

    def _ask(self, batch, wanted):  # type: ignore[no-untyped-def]
        if any(place[2] == 66 for place in batch) and self._process.pid:
            os.kill(self._process.pid, signal.SIGSTOP)
        return super()._ask(batch, wanted)


@pytest.mark.requirement("hazard: object that a parser never gets done with")
def test_a_child_that_hangs_is_killed_and_the_rest_of_the_batch_is_read(put: Put) -> None:
    with Stubborn(MEMORY, 0.3) as child:
        place = (*put(GOOD), EXPLICIT_LE)
        assert good(child.tags([place], WANTED)[0])
        hang = (place[0], HEAD, 66, EXPLICIT_LE)
        # alone on a fresh child it is only cut short; the first child is stopped by it and has to be killed
        found = child.tags([place, hang, place], WANTED)
        assert good(found[0]) and good(found[2])
        assert not found[1].readable
        assert child.starts >= 2


@pytest.mark.requirement("hazard: memory growth on parse")
def test_address_space_is_limited(child: Child, put: Put) -> None:
    assert good(child.tags([(*put(GOOD), EXPLICIT_LE)], WANTED)[0])
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines() if ":\t" in line)
    assert status["NoNewPrivs"].strip() == "1"
    limits = Path(f"/proc/{child.pid}/limits").read_text()
    by_name = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()[1:]}
    assert by_name["Max address space"] == [str(MEMORY)] * 2
    assert by_name["Max core file size"] == ["0", "0"]
    assert by_name["Max file size"] == ["0", "0"]
    assert int(by_name["Max open files"][0]) < 100
    assert Path(f"/proc/{child.pid}/environ").read_bytes().strip(b"\0") == b""
    assert not any("pydicom" in m.path or "ssl" in m.path for m in psutil.Process(child.pid).memory_maps())


def test_it_is_handed_descriptors_and_keeps_none(child: Child, put: Put) -> None:
    place = (*put(GOOD), EXPLICIT_LE)
    child.tags([place] * 64, WANTED)
    child.tags([place], WANTED)
    wait_until(lambda: len(os.listdir(f"/proc/{child.pid}/fd")) == 3, 10, "descriptors are closed behind the answer")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        child.close()
        child.tags([place], WANTED)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_child_that_does_not_start_is_an_error_of_its_own(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START_SECONDS", 0.001)
    with Child(MEMORY, 5.0) as child, pytest.raises(SandboxError, match=r"does not start.*child_memory"):
        child.tags([(*put(GOOD), EXPLICIT_LE)], WANTED)


def test_a_closed_descriptor_is_the_callers_mistake_not_an_endless_wait(child: Child) -> None:
    with pytest.raises((SandboxError, OSError)):
        child.tags([(9999, 0, 10, EXPLICIT_LE)], WANTED)


def test_recode_streams(child: Child, put: Put) -> None:
    data = corpus.ct_header(50, pixels=3_000_000)
    place = put(data)
    implicit = b"".join(child.recode(*place, EXPLICIT_LE, IMPLICIT_LE))
    explicit = b"".join(child.recode(*put(implicit), IMPLICIT_LE, EXPLICIT_LE))
    assert explicit != implicit
    assert b"".join(child.recode(*put(explicit), EXPLICIT_LE, IMPLICIT_LE)) == implicit
    sizes = [len(p) for p in child.recode(*place, EXPLICIT_LE, IMPLICIT_LE)]
    assert len(sizes) > 5 and max(sizes) <= 2 * 131072
    assert child.starts == 1


def test_recode_of_nonsense_is_an_error_and_the_child_lives(child: Child, put: Put) -> None:
    for data in (b"\xaa" * 300, GOOD[:-5], corpus.nested(2000, implicit=False)):
        with pytest.raises(SandboxError, match="cannot be recoded"):
            list(child.recode(*put(data), EXPLICIT_LE, IMPLICIT_LE))
    with pytest.raises(SandboxError, match="cannot be recoded"):
        list(child.recode(*put(GOOD), "1.2.840.10008.1.2.4.90", IMPLICIT_LE))
    assert child.starts == 1


def test_a_recoding_that_is_given_up_does_not_mix_with_the_next_job(child: Child, put: Put) -> None:
    place = put(corpus.ct_header(50, pixels=3_000_000))
    pieces = child.recode(*place, EXPLICIT_LE, IMPLICIT_LE)
    next(pieces)
    with pytest.raises(SandboxError, match="busy"):
        child.tags([(*place, EXPLICIT_LE)], WANTED)
    pieces.close()  # type: ignore[attr-defined]
    assert good(child.tags([(*place, EXPLICIT_LE)], WANTED)[0])


def test_a_child_killed_while_recoding_is_an_error(child: Child, put: Put) -> None:
    pieces = child.recode(*put(corpus.ct_header(50, pixels=5_000_000)), EXPLICIT_LE, IMPLICIT_LE)
    next(pieces)
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(SandboxError):
        list(pieces)


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    one = Process("appliance.sandbox.child", MEMORY)
    ended = threading.Event()

    def start() -> None:
        one.answer(100, one.ask(b'{"job":"tags","objects":[],"wanted":[]}', [], 5.0))
        ended.wait(30)

    thread = threading.Thread(target=start)
    thread.start()
    ended.set()
    thread.join()
    psutil.Process(one.pid).wait(10)         # PDEATHSIG is bound to the thread that started it
    one.kill()


@pytest.mark.parametrize("reply", [
    b"[]", b"{}", b"[1]", b'[{"a":"b"}]', b'[{"1":2}]', b'[{"1":"' + b"x" * 1025 + b'"}]', b"\xff", b"[" * 9999,
])
@pytest.mark.requirement("hazard: child taken over by an object")
def test_nonsense_from_a_child_is_not_believed(reply: bytes) -> None:
    assert _attributes(reply, 1) is None


@pytest.mark.requirement("hazard: child taken over by an object")
def test_a_message_without_end_is_cut_off() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"\xff\xff\xff\xff" + bytes(1000))
    with pytest.raises(SandboxError, match="at most"):
        frames.receive(ours, 1 << 20)
    ours.close()
    theirs.close()
