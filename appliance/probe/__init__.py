"""Probe: walks the way to a destination hop by hop, and says at which one it ends, why, and what mends it.

    configuration → name → tcp → proxy → tls → association → service → path → storage → near

A library for the commands, the forwarder's health and the tunnels. It sends no
patient data, stores nothing anywhere, and is bounded: ten seconds a hop, a
minute in all.
"""

from appliance.probe.report import Hop, Report, State
from appliance.probe.target import Target, of_destination, of_tunnel
from appliance.probe.walk import walk

__all__ = ["Hop", "Report", "State", "Target", "of_destination", "of_tunnel", "walk"]
