"""What `status` shows of tunnels: whether something went through each when it was last looked at, else where it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance.cli.text import safe, table, when

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.cli.context import Site
    from appliance.config.settings import Config


def facts(config: Config, run: Path, *, keeper: bool) -> list[dict[str, Any]]:
    """As JSON values; times are wall nanoseconds. Without a keeper nobody looks, and nothing is known."""
    if not config.tunnels:
        return []
    from dataclasses import asdict

    from appliance.tunnel import health
    known = {condition.tunnel: condition for condition in health.read(run)} if keeper else {}
    told = []
    for tunnel in config.tunnels:
        found = known.get(tunnel.id, health.Condition(tunnel.id))
        told.append({**asdict(found), "side": tunnel.side, "listen": tunnel.listen, "connect": tunnel.connect})
    return told


def lines(site: Site, tunnels: list[dict[str, Any]]) -> list[str]:
    """A table, and below each that is not up why."""
    if not tunnels:
        return []
    rows = [[t["tunnel"], t["state"], t["listen"], "→", t["connect"], "TLS there" if t["side"] == "client" else "TLS here",
             when(t["since"]), when(t["checked"])] for t in tunnels]
    shown = table(("TUNNEL", "STATE", "LISTENS", "", "LEADS TO", "", "SINCE", "LOOKED AT"), rows).split("\n")
    out = ["", site.dim(shown[0])]
    for line, t in zip(shown[1:], tunnels, strict=True):
        out.append(site.bad(line) if t["state"] == "down" else line)
        if t["state"] in ("down", "retrying"):
            out.append(f"  {t['hop']}: {safe(t['text'])}" + (f" — {safe(t['mend'])}" if t["mend"] else ""))
    return out
