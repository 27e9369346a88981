"""The figures for Prometheus, out of what the observer has found. Units are seconds and bytes; names end with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.model import DeliveryState, Severity, SpaceState
from appliance.telemetry.exposition import Exposition

SECOND = 1_000_000_000


@dataclass(slots=True)
class Machine:
    """What is known besides the spool. `units`: state and restarts of each of our units; `refused`: packets by side;
    `certificates`: end of each certificate (wall ns); temperatures in °C by sensor."""

    version: str = ""
    units: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    certificates: Mapping[str, int] = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)
    memory_total: int = 0
    memory_available: int = 0
    boot_seconds: float = 0.0
    wall: int = 0
    clock_trusted: bool = True


def figures(facts: Mapping[str, Any] | None, machine: Machine) -> str:
    """`facts` are those of `status`; None where spool or ledger cannot be read: then only the machine is told of."""
    out = Exposition()
    out.gauge("dcmgate_build_info", "Version that runs.", 1, version=machine.version)
    out.gauge("dcmgate_spool_readable", "Whether spool and ledger can be read.", facts is not None)
    _machine(out, machine)
    if facts is not None:
        _spool(out, facts)
        _destinations(out, facts["destinations"], machine.wall)
        _alarms(out, facts["alarms"])
        for tunnel in facts["tunnels"]:
            out.gauge("dcmgate_tunnel_up", "Whether something went through a tunnel when it was last looked at.",
                      tunnel["state"] == "up", tunnel=tunnel["tunnel"])
    return out.render()


def _machine(out: Exposition, machine: Machine) -> None:
    out.gauge("dcmgate_uptime_seconds", "Time since the box was started.", round(machine.boot_seconds, 1))
    out.gauge("dcmgate_observed_timestamp_seconds", "When these figures were taken (Unix time).", machine.wall // SECOND)
    out.gauge("dcmgate_clock_trusted", "Whether the wall clock may decide anything.", machine.clock_trusted)
    out.gauge("dcmgate_memory_size_bytes", "Memory of the box.", machine.memory_total)
    out.gauge("dcmgate_memory_available_bytes", "Memory that is to be had.", machine.memory_available)
    for sensor, value in machine.temperatures.items():
        out.gauge("dcmgate_temperature_celsius", "Temperature by sensor.", round(value, 1), sensor=sensor)
    for unit, (state, restarts) in machine.units.items():
        out.gauge("dcmgate_unit_active", "Whether a unit of ours runs.", state == "active", unit=unit)
        out.counter("dcmgate_unit_restarts_total", "Restarts of a unit by the service manager since boot.", restarts, unit=unit)
    for side, count in machine.refused.items():
        out.counter("dcmgate_firewall_refused_packets_total", "Packets that the firewall has refused.", count, side=side)
    for name, end in machine.certificates.items():
        out.gauge("dcmgate_certificate_expiry_timestamp_seconds", "End of a certificate (Unix time).", end // SECOND,
                  certificate=name)
        out.gauge("dcmgate_certificate_remaining_seconds", "Time until a certificate ends; negative once it has.",
                  round((end - machine.wall) / SECOND), certificate=name)


def _spool(out: Exposition, facts: Mapping[str, Any]) -> None:
    for state in SpaceState:
        out.gauge("dcmgate_spool_state", "Room in the spool: 1 for the state that it is in.", facts["state"] == str(state),
                  state=str(state))
    out.gauge("dcmgate_spool_size_bytes", "Size of the spool.", facts["total"])
    out.gauge("dcmgate_spool_free_bytes", "Free room in the spool.", facts["free"])
    out.gauge("dcmgate_spool_objects", "Objects that are kept.", facts["held_objects"])
    out.gauge("dcmgate_spool_objects_bytes", "Bytes of the objects that are kept.", facts["held_bytes"])
    out.counter("dcmgate_accepted_objects_total", "Objects that were ever acknowledged.", facts["accepted"])
    out.gauge("dcmgate_unrouted_objects", "Objects that no rule has been applied to yet.", facts["unrouted"])
    out.gauge("dcmgate_configuration_generation", "Number of the configuration in force.", facts["generation"])


def _destinations(out: Exposition, destinations: Sequence[Mapping[str, Any]], wall: int) -> None:
    for told in destinations:
        name = told["destination"]
        for state in DeliveryState:
            out.gauge("dcmgate_queue_objects", "Objects of a destination by state.", told[str(state)], destination=name,
                      state=str(state))
        out.gauge("dcmgate_queue_owed_objects", "Objects that a destination is still owed.", told["owed"], destination=name)
        out.gauge("dcmgate_queue_owed_bytes", "Bytes that a destination is still owed.", told["owed_bytes"], destination=name)
        oldest = told["oldest"]
        out.gauge("dcmgate_backlog_age_seconds", "Age of the oldest object that a destination is owed; 0: none.",
                  max(0, round((wall - oldest) / SECOND)) if oldest and told["owed"] else 0, destination=name)
        out.gauge("dcmgate_destination_up", "Whether a destination takes what is sent.", told["state"] == "up",
                  destination=name)


def _alarms(out: Exposition, alarms: Sequence[Mapping[str, Any]]) -> None:
    count = Counter(alarm["severity"] for alarm in alarms)
    for severity in Severity:
        out.gauge("dcmgate_alarms", "Alarms by severity.", count[str(severity)], severity=str(severity))
    for alarm in alarms:
        out.gauge("dcmgate_alarm_active", "Each alarm that is up.", 1, key=alarm["key"], severity=alarm["severity"])
