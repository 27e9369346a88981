"""Rows that no release wrote: bits of the file flipped, and what reads them says so with an error of ours.

Found by tests.proof.bit_flips: KeyError, UnicodeDecodeError and TypeError out of `spool check --deep`.
"""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from appliance.errors import LedgerDamaged
from tests.support.ledgers import Bench


def edited(bench: Bench, sql: str) -> None:
    """Change the file behind the ledger's back, past every constraint."""
    bench.ledger.close()
    db = apsw.Connection(str(bench.path))
    db.execute("PRAGMA ignore_check_constraints = ON")
    db.execute(sql)
    db.close()
    bench.reopen_closed()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.take()
    return bench


@pytest.mark.requirement("I2")
def test_an_event_without_what_its_kind_needs_is_damage(bench: Bench) -> None:
    edited(bench, "UPDATE events SET body = replace(body, 'priority', 'priorivy') WHERE kind = 'routed'")
    with pytest.raises(LedgerDamaged, match="cannot be applied"):
        bench.ledger.differences()


@pytest.mark.requirement("I2")
def test_a_text_that_is_none_any_more_is_damage(bench: Bench) -> None:
    edited(bench, "UPDATE events SET body = CAST(x'7bff7d' AS TEXT) WHERE kind = 'routed'")
    with pytest.raises(LedgerDamaged, match="damaged"):
        bench.ledger.verify_chain()
    with pytest.raises(LedgerDamaged, match="damaged"):
        bench.ledger.history(1)


@pytest.mark.requirement("I2")
def test_a_row_that_cannot_be_read_is_damage(bench: Bench) -> None:
    edited(bench, "UPDATE objects SET source = replace(source, 'raw_called\":\"', 'raw_called\":\"q')")
    for ask in (lambda: bench.ledger.object(1), bench.queue):
        with pytest.raises(LedgerDamaged, match="cannot be read"):
            ask()


@pytest.mark.requirement("I2")
def test_a_queue_in_no_known_state_is_damage(bench: Bench) -> None:
    edited(bench, "UPDATE queues SET state = 'waitinf'")
    with pytest.raises(LedgerDamaged, match="cannot be read"):
        bench.ledger.counts()


@pytest.mark.requirement("I2")
def test_a_hash_that_is_no_hash_breaks_the_chain(bench: Bench) -> None:
    edited(bench, "UPDATE events SET hash = x'' WHERE kind = 'accepted'")
    assert not bench.ledger.verify_chain().whole


@pytest.mark.requirement("I2")
def test_a_configuration_that_nobody_put_in_force_is_named(bench: Bench) -> None:
    bench.ledger.publish('address = "10.0.0.9"', "anna")
    assert bench.ledger.differences() == []
    edited(bench, "UPDATE configurations SET text = replace(text, '10.0.0.9', '10.0.0.8')")
    assert bench.ledger.differences() == ["configurations: generation 1 is not the one that was put in force"]


@pytest.mark.parametrize("change", ["SET key = 'wsiter' WHERE key = 'writer'", "SET value = 'q' WHERE key = 'writer'"])
def test_a_lost_note_of_the_writer_is_made_again(bench: Bench, change: str) -> None:
    edited(bench, f"UPDATE meta {change}")
    bench.check()
    assert bench.queue() == [1]
