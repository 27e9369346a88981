"""Figures for Prometheus, read by the library's own parser."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.telemetry.exposition import Exposition


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples}


def test_the_parser_reads_what_was_meant():
    out = Exposition()
    out.gauge("dcmgate_a_bytes", "Bytes, \\ and\nmore.", 5_000_000_000)
    out.gauge("dcmgate_b_seconds", "Seconds.", 0.25, destination='a "b"\\c\nd')
    out.counter("dcmgate_c_total", "Count.", 3, side="x")
    out.counter("dcmgate_c_total", "Count.", 4, side="y")
    out.gauge("dcmgate_d", "Not known.", None)
    out.gauge("dcmgate_e", "Yes.", True)
    assert samples(out.render()) == {
        ("dcmgate_a_bytes", ()): 5e9, ("dcmgate_b_seconds", (("destination", 'a "b"\\c\nd'),)): 0.25,
        ("dcmgate_c_total", (("side", "x"),)): 3, ("dcmgate_c_total", (("side", "y"),)): 4, ("dcmgate_e", ()): 1}
    kinds = {family.name: family.type for family in text_string_to_metric_families(out.render())}
    assert kinds == {"dcmgate_a_bytes": "gauge", "dcmgate_b_seconds": "gauge", "dcmgate_c": "counter", "dcmgate_e": "gauge"}


@pytest.mark.parametrize("wrong", [
    lambda out: out.counter("dcmgate_c", "", 1), lambda out: out.gauge("dcmgate-c", "", 1),
    lambda out: (out.gauge("dcmgate_x_total", "", 1), out.counter("dcmgate_x_total", "", 1))])
def test_a_name_that_is_none_is_a_fault_of_the_program(wrong):
    with pytest.raises(ValueError):
        wrong(Exposition())
