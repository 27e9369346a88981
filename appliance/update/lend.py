"""Lend: what the process that fetches needs of the box's state, and no more: whom to trust, and the proxy's password.

The store of certificates holds private keys, and is for those who speak TLS in the
box's name. Who fetches only checks a server: it gets copies, in a folder of its own.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from appliance.config.settings import SYSTEM_TRUST, Config
from appliance.net import certstore
from appliance.net.proxy import FOLDER as PROXIES
from appliance.net.proxy import Proxy
from appliance.update.places import Places


def lend(places: Places, config: Config, uid: int, gid: int) -> Path:
    """Make the folder anew for that user; it takes the place of `[spool] state`. OSError."""
    state, folder = Path(config.spool.state), places.lent
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    wanted: list[Path] = []
    if config.update.trust not in ("", SYSTEM_TRUST):
        wanted += [Path(certstore.FOLDER, config.update.trust, name) for name in (certstore.TRUST, certstore.CRL)]
    if config.update.proxy:
        wanted.append(Path(PROXIES, Proxy(config.update.proxy, state).file.name))
    for path in wanted:
        with suppress(FileNotFoundError):
            data = (state / path).read_bytes()
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(folder / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as copy:
                copy.write(data)
    for made in (folder, *folder.rglob("*")):
        os.chown(made, uid, gid)
    return folder
