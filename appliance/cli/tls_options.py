"""Options by which a command speaks TLS: `--tls PROFILE --certificate ID --trust FILE|ID --server-name NAME`.

The same profiles and the same checks as for a `[[destination]]`; only the trust anchors may come from a file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli.context import Site
from appliance.config.settings import PROFILES, SYSTEM_TRUST
from appliance.errors import UsageError

if TYPE_CHECKING:
    from appliance.net.tls import Client


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tls", choices=PROFILES, default="", metavar="PROFILE",
                        help="speak TLS by that profile: bcp195 or bcp195-modified")
    parser.add_argument("--certificate", default="", metavar="ID", help="the [[certificate]] of the store that we show")
    parser.add_argument("--trust", default="", metavar="FILE|ID", help="whose certificates are trusted: a file in PEM, a "
                        '[[certificate]], or "system" (default: what --certificate trusts)')
    parser.add_argument("--server-name", default="", metavar="NAME", help="name in its certificate (default: HOST)")


def client(site: Site, arguments: argparse.Namespace, host: str) -> Client | None:
    """TLS as the options want it; None without `--tls`. UsageError where they do not go together."""
    if not arguments.tls:
        for option in ("certificate", "trust", "server_name"):
            if getattr(arguments, option):
                raise UsageError(f"--{option.replace('_', '-')} is for TLS", mend="add --tls bcp195")
        return None
    from appliance.cli.services import locate
    from appliance.config.settings import Destination
    from appliance.net.certstore import Material, Store
    from appliance.net.tls import Client

    file: Path | None = None

    class WithFile(Store):
        """The store, and one file of trust anchors beside it."""

        def material(self, id: str) -> Material:
            return Material(id, file.parent, trust=file) if file is not None and id == arguments.trust else super().material(id)

    store = WithFile(locate(site.config_path).spool.state)
    if arguments.trust not in ("", SYSTEM_TRUST) and store.material(arguments.trust).trust is None:
        file = Path(arguments.trust)
    if not arguments.trust and not arguments.certificate:
        raise UsageError("nothing says whose certificates are trusted", mend="add --trust with a file of authorities in PEM")
    if file is not None and not file.is_file():
        raise UsageError(f'--trust: there is no file "{file}", and the certificate store has no trust anchors of that name',
                         mend="give the authorities' certificates as a file in PEM")
    if arguments.certificate and store.material(arguments.certificate).key is None:
        raise UsageError(f'--certificate: the certificate store has no key and certificate "{arguments.certificate}"',
                         mend="`dcmgate cert show` names what there is")
    return Client(store, Destination(id=arguments.place, tls=arguments.tls, certificate=arguments.certificate,
                                     trust=arguments.trust, server_name=arguments.server_name), host)


def facts(tls: Client | None) -> dict[str, Any]:
    """What was spoken, as JSON values; nothing without TLS."""
    if tls is None:
        return {}
    version, suite = tls.spoken
    return {"tls": {"version": version, "suite": suite, "certificate": f"sha256:{tls.shown.fingerprint}" if tls.shown else ""}}


def say(site: Site, tls: Client | None) -> None:
    """The same for people."""
    if tls is not None and tls.shown is not None:
        version, suite = tls.spoken
        site.say(f"{version} {suite}, its certificate: {tls.shown.subject}, sha256:{tls.shown.fingerprint}")
