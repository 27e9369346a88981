"""Faults of confirming that the simulation found, each by its shortest way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from appliance.config.settings import Destination
from appliance.confirm.proof import Evidence, Verdict
from appliance.confirm.watch import ByEvidence
from appliance.errors import LedgerBusy
from appliance.spool.ledger import Ledger
from appliance.spool.rows import Sent
from tests.support.ledgers import Bench


class Says:
    """A proof with one answer for everything."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.looks = 0

    def look(self, sent: Sequence[Sent]) -> list[Evidence]:
        self.looks += 1
        return [Evidence(each.number, self.verdict, "said so") for each in sent]

    def close(self) -> None: ...


@pytest.mark.requirement("I4")
@pytest.mark.parametrize(("verdict", "verb"), [(Verdict.PRESENT, "confirm"), (Verdict.MISSING, "unconfirm")])
def test_what_was_looked_for_when_the_ledger_was_busy_is_looked_for_again(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: Verdict, verb: str) -> None:
    """It was forgotten until the next start of the keeper: neither confirmed, nor ever deleted, nor sent again."""
    bench = Bench(tmp_path)
    destination = Destination(id="pacs", proof="readback")
    number = bench.take("1.2", "x", destination)
    bench.send(number)
    proof = Says(verdict)
    watch = ByEvidence(destination, bench.ledger, bench.clock, proof, Random(1))
    plain = getattr(Ledger, verb)
    failures = [True]

    def busy(self: Ledger, what: Sequence[object], *more: object) -> int:
        if what and failures and failures.pop():
            raise LedgerBusy("not our turn")
        done: int = plain(self, what, *more)
        return done
    monkeypatch.setattr(Ledger, verb, busy)
    failed = 0
    for _ in range(12):
        bench.clock.advance(3600)  # type: ignore[attr-defined]
        try:
            watch.step()
        except LedgerBusy:
            failed += 1
    assert failed == 1
    assert bench.delivery(number) == ("confirmed" if verdict is Verdict.PRESENT else "waiting")
    assert proof.looks == (2 if verdict is Verdict.PRESENT else 6), "the look whose result was lost does not count"
    bench.ledger.close()


@pytest.mark.requirement("I4")
@pytest.mark.parametrize("confirmed_elsewhere", [False, True])
def test_other_content_that_was_sent_there_and_then_moved_elsewhere_counts_against_an_object(
        tmp_path: Path, confirmed_elsewhere: bool) -> None:
    """An archive that keeps the first content lists the UID: the second was taken for proved, and deleted, though only the
    first was there. The first had lost its row at that destination by `requeue --to`."""
    bench = Bench(tmp_path)
    first, second = bench.take("1.2", "before", "pacs"), bench.take("1.2", "corrected", "pacs")
    bench.send(first)
    assert bench.ledger.requeue([first], "anna", "other", "pacs") == 1
    if confirmed_elsewhere:
        bench.send(first, "other")
        bench.confirm(first, "other")
        bench.ledger.retired(bench.ledger.retiring([first]))
    bench.send(second)
    assert bench.ledger.rivalled(second, "pacs")
    bench.ledger.close()
