"""DCMTK as the scanner: echoscu, storescu and dcmsend against one process and several."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import objects
from tests.support.acceptor import receiving
from tests.support.peers import dcmsend, environment, files_of, program, storescu
from tests.support.waiting import wait_until

CORPUS = [objects.ct(1), objects.ct(2, side=64), objects.sr(1), objects.private(), objects.deflated(), objects.big_endian(),
          objects.implicit(), objects.encapsulated()]


@pytest.mark.requirement("conformance: storage classes")
@pytest.mark.requirement("I3")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("as_shipped", [False, True], ids=["no-delay", "as-shipped"])
def test_what_storescu_and_dcmsend_send_is_taken(tmp_path: Path, workers: int, as_shipped: bool):
    files = files_of(CORPUS, tmp_path / "files")
    with receiving(tmp_path, workers=workers) as box:
        done = storescu(box.port, files, tmp_path, as_shipped=as_shipped)
        assert done.returncode == 0, done.stderr
        assert {(c.uid_text, c.transfer_syntax, c.digest.hex()) for c, _ in box.held()} == {i.key for i in CORPUS}
        again = dcmsend(box.port, files, tmp_path, as_shipped=as_shipped)
        assert again.returncode == 0, again.stderr
        # dcmsend re-encodes what is uncompressed as it likes: the objects are the same, their bytes need not be.
        wait_until(lambda: len(box.held()) == 2 * len(CORPUS), 10, "both")
        assert sorted(c.uid_text for c, _ in box.held()) == sorted(2 * [i.sop_instance for i in CORPUS])


@pytest.mark.requirement("conformance: verification")
def test_echoscu_is_answered_and_hears_why_it_is_not(tmp_path: Path):
    from appliance.config.settings import Listener
    from tests.support.acceptor import config

    strict = Listener(id="strict", address="127.0.0.1", ports=(0,), titles=("DCMGATE",), unknown="admit")
    with receiving(tmp_path, config(strict)) as box:
        def run(title: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([program("echoscu"), "-v", "-aec", title, "127.0.0.1", str(box.port)], capture_output=True,
                                  text=True, env=environment(), timeout=30, check=False)

        assert run("DCMGATE").returncode == 0
        refused = run("dcmgate")
        assert refused.returncode != 0 and "Called AE Title Not Recognized" in refused.stderr + refused.stdout
