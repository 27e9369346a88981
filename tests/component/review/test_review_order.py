"""One UID with several contents: the destination gets them in the order in which they came, the last one last."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.ledgers import Bench


@pytest.mark.requirement("Duplicates: order of arrival")
def test_content_that_comes_again_after_another_is_not_covered_by_its_first_coming(tmp_path: Path) -> None:
    """Corrected, and corrected back, while the destination is down: it must not be left with the version in between."""
    bench = Bench(tmp_path)
    first, other, again = bench.take("1.2", "x"), bench.take("1.2", "y"), bench.take("1.2", "x")
    assert [bench.delivery(n) for n in (first, other, again)] == ["waiting", "held", "held"]
    same = bench.take("1.2", "x")
    assert bench.delivery(same) == "covered"
    order = []
    while queue := bench.queue():
        order += queue
        for number in queue:
            bench.send(number)
    assert order == [first, other, again]
    for number in order:
        bench.confirm(number)
    assert bench.complete(same)
    bench.check()
    bench.ledger.close()
