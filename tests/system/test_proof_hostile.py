"""A sample of the hazards under load, and that the instrument sees a gateway that fails at them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.proof import hostile
from tests.proof.figures import Budget
from tests.support import gateway

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(280)]


def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *attacks: str) -> hostile.Figures:
    for name in ("work", "state"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(hostile, "ATTACKS", {name: hostile.ATTACKS[name] for name in attacks})
    return hostile.run(Budget(tmp_path / "work", tmp_path / "state", 3, True, 0, 1, "test", print))


@pytest.mark.requirement("hazard: silent socket")
@pytest.mark.requirement("hazard: more than 1,024 descriptors")
@pytest.mark.requirement("hazard: hostile UIDs")
@pytest.mark.requirement("hazard: decompression bomb")
@pytest.mark.requirement("hazard: executable preamble")
def test_real_peers_notice_nothing_of_the_attacks_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = _run(tmp_path, monkeypatch, "silent_sockets", "hostile_names", "mutated_inputs", "bombs", "polyglots",
                   "disconnects")
    assert figures.holds, figures
    assert figures.acknowledged > 100 and figures.counts["attacks"] == 6


def _broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *changes: tuple[str, str, str]) -> None:
    """Gateways run from a copy of the product with these changes (module, text, other text), each of which must be there."""
    root = tmp_path / "product"
    shutil.copytree(gateway.ROOT / "appliance", root / "appliance", ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, new in changes:
        path = root / "appliance" / name
        text = path.read_text()
        assert old in text, f"{name} has changed: give this breakage another place"
        path.write_text(text.replace(old, new, 1))
    monkeypatch.setattr(gateway, "ROOT", root)


def test_a_gateway_that_waits_in_its_accept_loop_turns_it_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the stock acceptor does with a TLS handshake."""
    monkeypatch.setattr(hostile, "LONG", {})         # it shows at once; what comes back, and when, is not asked here
    monkeypatch.setattr(hostile, "BACK", 3.0)
    monkeypatch.setattr(hostile, "ARRIVES", 5.0)
    _broken(tmp_path, monkeypatch, (
        "receive/front.py", "            self.accepted += 1\n",
        "            self.accepted += 1\n            threading.Event().wait(0.02 if 50 < self.accepted < 400 else 0)\n"))
    figures = _run(tmp_path, monkeypatch, "silent_sockets")
    assert any("an echo took" in failure or "echo: Lost" in failure for failure in figures.failures), figures


def test_a_gateway_that_leaks_and_lies_turns_it_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "BACK", 3.0)
    monkeypatch.setattr(hostile, "ARRIVES", 5.0)
    _broken(tmp_path, monkeypatch, (
        "receive/association.py", "            self._sock.close()\n\n\n__all__",
        "            self._sock.shutdown(socket.SHUT_RDWR)\n            LEAK.append(self._sock)\n\n\nLEAK = []\n__all__"), (
        "receive/services.py", "        try:\n            # The class is that",
        "        if request.message_id == 7:\n            self._writer.abandon('a lie')\n            return SUCCESS\n"
        "        try:\n            # The class is that"))
    figures = _run(tmp_path, monkeypatch, "disconnects")
    assert any("after 3 s" in failure for failure in figures.failures), figures
    assert figures.lost > 0, figures
