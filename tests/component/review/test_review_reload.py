"""SIGHUP while the ledger cannot be had: what works goes on working."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.cli import exits, services, stage_commands
from appliance.errors import LedgerBusy
from appliance.telemetry import log


@pytest.mark.requirement("Configuration: a bad reload changes nothing")
def test_a_reload_that_fails_does_not_end_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    reloaded = threading.Event()

    class Box:
        config = SimpleNamespace(generation=7)

        def __init__(self, path: str, stages: Any) -> None: ...

        def start(self) -> None:
            threading.Thread(target=after_start).start()

        def reload(self) -> None:
            said.append("reload")
            reloaded.set()
            raise LedgerBusy("the ledger cannot be written now")

        def stop(self) -> None:
            said.append("stop")

    def after_start() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        reloaded.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(services, "Box", Box)
    monkeypatch.setattr(log, "set_up", lambda level: None)
    interval = sys.getswitchinterval()
    site: Any = SimpleNamespace(config_path="", line=lambda value: None)
    try:
        assert stage_commands.run(site, argparse.Namespace(log="info", stages=("receiver",), stage="receiver")) == exits.OK
    finally:
        sys.setswitchinterval(interval)
    assert said == ["reload", "stop"]
