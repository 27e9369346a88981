"""The fuzzers' targets on everything that was worth keeping, structured inputs beside them; and that each of them can fail."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import seed

from appliance.dicom import charset, dimse, elements, part10, pdu, recode, upper
from appliance.dicom.indications import Event, Fragment
from appliance.receive.association import Association
from appliance.receive.services import SUCCESS, Storing
from tests.proof import fuzz, fuzz_seeds, fuzz_targets
from tests.proof.figures import Budget
from tests.proof.fuzz_live import Acceptor, acknowledged, live
from tests.proof.fuzz_meaning import MEANINGS
from tests.proof.fuzz_structured import STRUCTURED
from tests.proof.fuzz_targets import PURE, Wrong

TARGETS = {**PURE, **MEANINGS}
atheris = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has wheels for x86-64 only")


@pytest.mark.requirement("I8")
@pytest.mark.requirement("hazard: 1,500 mutated inputs")
@pytest.mark.parametrize("name", TARGETS)
def test_kept_and_damaged_inputs(name: str) -> None:
    for data in (*fuzz_seeds.kept(name), *fuzz_seeds.generated(name, 20)):
        TARGETS[name](data)


@pytest.mark.requirement("I8")
@pytest.mark.parametrize("name", STRUCTURED)
def test_structured_inputs(name: str) -> None:
    seed(5)(STRUCTURED[name])()
    for data in fuzz_seeds.kept(name):
        STRUCTURED[name].hypothesis.fuzz_one_input(data)


@pytest.mark.requirement("design: pynetdicom is the differential oracle")
@pytest.mark.parametrize("name", ["pdu_meaning", "messages", "commands", "element_meaning", "recoding_meaning"])
def test_the_oracle_accepts_what_is_valid(name: str) -> None:
    """A differential test whose oracle refuses everything compares nothing: so it was with pynetdicom's messages at first."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    before = fuzz_targets.compared[name]
    inputs = fuzz_seeds.generated(name, 20)
    for data in inputs:
        TARGETS[name](data)
    assert fuzz_targets.compared[name] - before > len(inputs) / 20


def test_every_target_has_its_seeds_and_its_share() -> None:
    assert set(fuzz.TARGETS) == {*TARGETS, *STRUCTURED, "live"} == set(fuzz_seeds._MADE)
    assert all(fuzz_seeds.generated(name) for name in fuzz.TARGETS)
    size = sum(path.stat().st_size for path in fuzz_seeds.KEPT.glob("*"))
    assert size < 200_000, "the corpora that are kept are small"


# --- the live acceptor ------------------------------------------------------------------------------------------------


@pytest.fixture
def acceptor(tmp_path: Path) -> Iterator[Acceptor]:
    made = Acceptor(tmp_path / "live")
    yield made
    made.listener.close()
    made.worker.stop(1.0)


@pytest.mark.requirement("I1")
@pytest.mark.requirement("hazard: 1,500 mutated inputs")
def test_live_acceptor_keeps_what_it_acknowledged(tmp_path: Path, acceptor: Acceptor) -> None:
    for data in (*fuzz_seeds.kept("live"), *fuzz_seeds.generated("live", 60)):
        acceptor.journal += acknowledged(data, acceptor.converse(data))
    assert len(acceptor.journal) > 50
    acceptor.close()


def test_live_target_notices_a_success_that_was_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                          acceptor: Acceptor) -> None:
    def end(self: Storing) -> object:
        self.abandon("a lie")
        return SUCCESS

    monkeypatch.setattr(Storing, "end", end)
    for data in fuzz_seeds.scans():
        acceptor.journal += acknowledged(data, acceptor.converse(data))
    with pytest.raises(Wrong, match="lost"):
        acceptor.close()


def test_live_target_notices_an_exception_that_nobody_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(self: Association, event: object) -> None:
        raise ZeroDivisionError("a slip")

    monkeypatch.setattr(Association, "_command", command)
    target = live(tmp_path / "live")
    with pytest.raises(Wrong, match="a slip"):
        target(fuzz_seeds.scans()[0])


# --- that it can fail -------------------------------------------------------------------------------------------------


def _swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = dimse._command

    def command(found: dict[int, bytes]) -> dimse.Command:
        made = decode(found)
        made.sop_instance = made.sop_instance[:-1]
        return made

    monkeypatch.setattr(dimse, "_command", command)


def _unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items without a look at how many bytes are left."""
    def items(body: bytes, where: str) -> Iterator[tuple[int, bytes]]:
        position = 0
        while position < len(body):
            kind, length = pdu._ITEM.unpack_from(body, position)
            yield kind, body[position + 4:position + 4 + length]
            position += 4 + length

    monkeypatch.setattr(pdu, "_items", items)


def _ends_with_the_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fragment is taken for the last one where the bytes of a read end."""
    value = upper.UpperLayer._value

    def broken(self: upper.UpperLayer, staging: memoryview, count: int) -> Event | None:
        event = value(self, staging, count)
        if isinstance(event, Fragment):
            event.last = True
        return event

    monkeypatch.setattr(upper.UpperLayer, "_value", broken)


BREAKAGES = {
    "pdus": _unbounded,
    "pdu_meaning": lambda patch: patch.setattr(pdu, "_uid", lambda raw: raw.decode("latin-1")[:-1]),
    "acceptor": _ends_with_the_read,
    "messages": _swapped,
    "requestor": _unbounded,
    "commands": _swapped,
    "heads": lambda patch: patch.setattr(part10, "_raw", lambda record, key: record[key].encode("ascii")),
    "elements": lambda patch: patch.setattr(elements, "MAX_VALUE", 10_000) or patch.setattr(elements, "_text", lambda *a: 7),
    "element_meaning": lambda patch: patch.setattr(charset, "codec", lambda raw: "cp437"),
    "deflated": lambda patch: patch.setattr(elements, "_found_layout", lambda data, layout: 1 // 0),
    "recoding": lambda patch: patch.setattr(recode._Recoder, "_close", lambda self, level: self._stack.pop()),
    "recoding_meaning": lambda patch: patch.setattr(recode._Recoder, "_decide", lambda self, level, tag, length: b"OB"),
    "text": lambda patch: patch.setattr(charset, "_ESCAPES", {b"$B": "no_such_codec"}),
    "replies": lambda patch: patch.setattr(fuzz_targets, "_attributes", lambda reply, count: __import__("json").loads(reply)),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_breakage_of_the_product_turns_the_target_red(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BREAKAGES[name](monkeypatch)
    with pytest.raises(Exception):  # noqa: B017 - whatever the breakage makes of it; our own errors never reach here
        for data in (*fuzz_seeds.kept(name), *fuzz_seeds.generated(name, 40)):
            TARGETS[name](data)


# --- the instrument ---------------------------------------------------------------------------------------------------


def _budget(tmp_path: Path, said: list[str]) -> Budget:
    (tmp_path / "work").mkdir(exist_ok=True)
    (tmp_path / "state").mkdir(exist_ok=True)
    return Budget(tmp_path / "work", tmp_path / "state", 1, True, 0, 1, "test", said.append)


@atheris
def test_coverage_guides_it_and_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "TARGETS", {"pdus": fuzz.TARGETS["pdus"]})
    first = fuzz.run(_budget(tmp_path, []))
    again = fuzz.run(_budget(tmp_path, []))
    assert first.holds and again.holds
    assert again.counts["chunks"] == 2 and again.counts["cpu_seconds"] >= first.counts["cpu_seconds"]
    assert first.counts["inputs"] > 1000 and first.counts["features"] > 100, "instrumented, and new ways are found"
    assert len(list((tmp_path / "state" / "corpus" / "pdus").iterdir())) > len(fuzz_seeds.generated("pdus", 3))


@atheris
def test_what_crashed_once_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "TARGETS", {"text": fuzz.TARGETS["text"]})
    state = fuzz.State(tmp_path)
    (state.crashes("text") / "crash-1").write_bytes(b"ISO_IR 192\nharmless")
    assert fuzz.replay(state, "text", tmp_path / "scratch") == []
    monkeypatch.setattr(fuzz, "_child", lambda target, scratch, *options: [
        fuzz.sys.executable, "-c", "raise SystemExit(77)"])
    failure, = fuzz.replay(state, "text", tmp_path / "scratch")
    assert "crash-1" in failure and "77" in failure


def test_a_chunk_on_other_code_does_not_count(tmp_path: Path) -> None:
    lines = [{"target": "pdus", "version": version, "seed": 1, "cpu": 50.0, "inputs": 1, "features": 1, "corpus": 1,
              "peak_mb": 1, "result": "done"} for version in (fuzz.code_of("pdus"), "other")]
    (tmp_path / "chunks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"target": "pd')
    assert fuzz.State(tmp_path).seconds("pdus") == 50.0
