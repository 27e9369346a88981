"""What `status` shows of the box itself: degraded mode, why this boot began, and checks that did not go well.

All of it lies in `/run`, so that it can be shown where the spool cannot. Nothing is shown of a computer that keeps none of it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance.cli.context import Site
from appliance.cli.text import safe
from appliance.health.checks import State, verdict
from appliance.watchdog import boots, escalate

WATCH = Path("/run/dcmgate-watch")


def facts(run: Path = boots.RUN, watch: Path = WATCH) -> dict[str, Any]:
    """Values for JSON; empty values where nothing is known."""
    boot, (fault, why) = boots.read(run), escalate.told(run)
    return {"boot": {**asdict(boot), "bad": boots.is_bad(boot)} if boot is not None else None,
            "degraded": {"fault": fault, "why": why} if fault else None,
            "checks": [asdict(each) for each in verdict.read(watch)]}


def lines(site: Site, told: dict[str, Any]) -> list[str]:
    """Bad news only, but for what a person asks of a box that has come up: why it did."""
    out = []
    if told["degraded"]:
        out.append(site.bad(f"degraded mode: scanners are turned away — {safe(told['degraded']['why'])}"))
    if told["boot"]:
        text = f"boot {told['boot']['number']}: {safe(told['boot']['text'])}"
        out.append(site.warn(text) if told["boot"]["bad"] else site.dim(text))
    for check in told["checks"]:
        if check["state"] in (State.POOR, State.BAD):
            style = site.bad if check["state"] == State.BAD else site.warn
            mend = f" — {safe(check['mend'])}" if check["mend"] else ""
            out.append(style(f"{check['check']}: {safe(check['text'])}") + mend)
    return out


def is_known(told: dict[str, Any]) -> bool:
    return bool(told["boot"] or told["degraded"])
