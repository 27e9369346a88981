"""Every setting, in one table: name, type, default, unit and a sentence.

The classes are what the stages read; the loader (`load.py`), `config example`
and the configuration page are all made from the same fields. Units stand in
the name or in `unit`; durations are seconds, sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

REQUIRED: Any = object()
"""Default of a setting that the site must give."""


def setting(default: Any, text: str, *, unit: str = "", choices: tuple[str, ...] = (), low: float | None = None,
            high: float | None = None) -> Any:
    """A field with what a person needs to know of it. A tuple default is immutable, so it needs no factory."""
    meta = {"text": text, "unit": unit, "choices": choices, "low": low, "high": high, "required": default is REQUIRED}
    return field(default="" if default is REQUIRED else default, metadata=meta)


PRIORITIES = ("trauma", "stat", "routine", "backfill")

PROFILES = ("bcp195", "bcp195-modified")
"""Secure transport connection profiles of PS3.15: B.12 and B.13."""

LEGACY = "legacy"
"""The retired AES profile (PS3.15, B.3), for scanners that speak no other: never on the way out."""

SYSTEM_TRUST = "system"
"""In place of the id of a `[[certificate]]`: the certification authorities that the system trusts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """`[[listener]]`: ports on which scanners are answered."""

    table: ClassVar[str] = "listener"
    id: str = setting(REQUIRED, "Immutable name of this entry.")
    address: str = setting("0.0.0.0", "Local address to listen on.")
    ports: tuple[int, ...] = setting((11112,), "Ports: a number, a list, or a range such as \"2104-2111\".")
    titles: tuple[str, ...] = setting((), "Own AE titles that may be called here; empty: any.")
    unknown: str = setting("refuse", "What happens to a peer that no [[peer]] names.", choices=("refuse", "hold", "admit"))
    max_pdu: int = setting(131072, "Largest PDU that we advertise.", unit="bytes", low=4096, high=131072)
    max_associations: int = setting(128, "Associations at once on this listener. A quarter (at least 4, at most half) is kept "
                                    "for the addresses that a [[peer]] names.", low=1, high=4096)
    max_per_address: int = setting(32, "Associations at once from one address.", low=1, high=4096)
    tls: str = setting("off", "TLS profile; `legacy` is the retired AES profile, for scanners that speak no other.",
                       choices=("off", *PROFILES, LEGACY))
    certificate: str = setting("", "The [[certificate]] that we show, and whose trust anchors a scanner's must come from.")
    client_certificates: str = setting("required", "Whether a scanner has to show a certificate of its own (with TLS).",
                                       choices=("required", "optional", "off"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """`[[peer]]`: a scanner or other sender that is known."""

    table: ClassVar[str] = "peer"
    id: str = setting(REQUIRED, "Immutable name of this entry.")
    addresses: tuple[str, ...] = setting((), "Addresses or subnets it calls from; empty: any.")
    titles: tuple[str, ...] = setting((), "Calling AE titles; \"\" admits a blank title; empty list: any.")
    listeners: tuple[str, ...] = setting((), "Listeners it may use; empty: any.")
    priority: str = setting("routine", "Priority class of what it sends, unless a rule says otherwise.", choices=PRIORITIES)
    idle_seconds: float = setting(3600.0, "Idle time after which its association is ended.", unit="s", low=1)
    action: str = setting("admit", "Admit it, or accept and hold what it sends, or refuse it.",
                          choices=("admit", "hold", "refuse"))
    silence_alarm: bool = setting(True, "Whether an alarm rises when it is silent for longer than its habit.")
    certificates: tuple[str, ...] = setting((), "What its certificate must be, any of: \"sha256:\" and the fingerprint of the "
                                            "certificate, \"dns:\", \"uri:\" or \"email:\" and a subject alternative name; "
                                            "empty: whatever the listener trusts.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """`[[destination]]`: where images are delivered."""

    table: ClassVar[str] = "destination"
    id: str = setting(REQUIRED, "Immutable name of this entry.")
    type: str = setting("dimse", "Kind of transport.", choices=("dimse", "folder"))
    default: bool = setting(False, "Takes whatever no rule routes: at least one destination must be a default.")
    required: bool = setting(True, "Whether an object may be retired only when this destination has confirmed it.")
    address: str = setting("", "Host name or address (dimse).")
    port: int = setting(104, "Port (dimse).", low=1, high=65535)
    called: str = setting("", "Called AE title (dimse); empty: the title that the scanner called.")
    calling: str = setting("", "Calling AE title (dimse); empty: the scanner's own.")
    path: str = setting("", "Folder (folder); it must carry the marker made by `dcmgate archive init`.")
    proof: str = setting("status", "What counts as delivered for good.", choices=("status", "readback", "commitment"))
    status_days: float = setting(14.0, "Proof `status`: sent counts as confirmed after this time.", unit="days", low=0)
    resend: str = setting("always", "Whether a scanner's re-send of an object already sent is sent again.",
                          choices=("always", "never"))
    conflict: str = setting("forward", "Same UID with other content: forward it too, or hold it.",
                            choices=("forward", "hold"))
    failover: str = setting("", "Destination that takes over while this one is down.")
    failover_seconds: float = setting(300.0, "How long it must be down before the fail-over takes over.", unit="s", low=0)
    associations: int = setting(1, "Associations at once, at most (dimse): a further one is opened where more waits, and not "
                                "where the destination takes no more.", low=1, high=16)
    window: int = setting(32, "Objects claimed at once for one association.", low=1, high=1024)
    max_pdu: int = setting(131072, "Largest PDU that we send, whatever the peer allows.", unit="bytes", low=4096, high=131072)
    connect_seconds: float = setting(10.0, "Time for TCP and association to come up.", unit="s", low=0.1)
    progress_seconds: float = setting(60.0, "Longest time without any progress; there is no limit on the whole.",
                                      unit="s", low=0.1)
    linger_seconds: float = setting(2.0, "How long an idle association is kept for more objects.", unit="s", low=0)
    rate_bytes: int = setting(0, "Most bytes a second to this destination, trauma exempt; 0: no limit.", unit="bytes/s", low=0)
    hours: tuple[str, ...] = setting((), "Times of day in which it is sent to (\"19:00-06:30\"), trauma exempt; empty: always.")
    tls: str = setting("off", "TLS profile (dimse).", choices=("off", *PROFILES))
    certificate: str = setting("", "The [[certificate]] that we show; empty: none.")
    trust: str = setting("", "The [[certificate]] whose trust anchors its certificate must come from; empty: `certificate`; "
                         "\"system\": the authorities that the system trusts.")
    server_name: str = setting("", "Name that its certificate must carry; empty: `address`.")
    pins: tuple[str, ...] = setting((), "SHA-256 fingerprints (hex) of which its certificate must have one, besides being "
                                    "trusted; empty: any.")
    proxy: str = setting("", "HTTP proxy, host:port, through whose CONNECT it is reached; empty: none; its user name and "
                         "password are kept by `dcmgate proxy password`.")
    echo_minutes: float = setting(15.0, "A C-ECHO is sent this often (dimse); 0: never.", unit="min", low=0)
    canary_minutes: float = setting(0.0, "A marked test object is delivered this often, to prove the whole path; 0: never.",
                                    unit="min", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`[[rule]]`: first to last, every rule that matches adds its destinations unless one says `last`.

    `match` is a table; `all`, `any` and `not` nest. Each other key is a
    condition: `calling`, `called`, `address`, `port`, `listener`, `peer`,
    `modality`, `sop_class`, `station`, `body_part`, `hours`, or a tag by keyword
    (`SeriesDescription`) or number (`"0008,103E"`). A value is a text with `*`
    and `?`, a number, a range `"3..7"`, or a list of such (any of them).
    """

    table: ClassVar[str] = "rule"
    id: str = setting(REQUIRED, "Immutable name of this entry.")
    match: dict[str, Any] = field(default_factory=dict, metadata={
        "text": "Conditions, all of which must hold; empty: always.", "unit": "", "choices": (), "low": None,
        "high": None, "required": False})
    destinations: tuple[str, ...] = setting((), "Destinations that the object is delivered to.")
    priority: str = setting("", "Priority class; empty: that of the peer.", choices=("", *PRIORITIES))
    hold: bool = setting(False, "Whether the object waits for a person's `release`.")
    last: bool = setting(False, "Whether later rules are not looked at after this one matched.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """`[[certificate]]`: a key of this box with its certificate, and the authorities it goes with; files are in the store."""

    table: ClassVar[str] = "certificate"
    id: str = setting(REQUIRED, "Immutable name of this entry, and of its folder in `certificates` below [spool] state.")
    names: tuple[str, ...] = setting((), "Host names, addresses and URIs of this box that its certificate is asked for.")
    key_type: str = setting("ec-p256", "Kind of the key that `dcmgate cert request` makes.",
                            choices=("ec-p256", "ec-p384", "rsa-3072"))
    est_url: str = setting("", "Server that certificates are enrolled and renewed at (EST, RFC 7030), https://host:port; "
                           "empty: by hand.")
    est_label: str = setting("", "Label of the authority on that server; empty: its default.")
    est_user: str = setting("", "User name for the first enrolment; the password is the store's file `est-password`.")
    est_trust: str = setting("", "The [[certificate]] whose trust anchors that server's certificate must come from; empty: "
                             "this one; \"system\": the authorities that the system trusts.")
    renew_days: float = setting(0.0, "Renewed this long before it expires; 0: when a third of its life is left; never more "
                                "than half of it.", unit="days", low=0)
    crl_fetch: bool = setting(True, "Whether revocation lists are fetched, and kept fresh.")
    crl_urls: tuple[str, ...] = setting((), "Where revocation lists are fetched, besides the places that the certificates in "
                                        "the store name; http: or https:.")
    proxy: str = setting("", "HTTP proxy, host:port, through which that server and the lists are reached; empty: none.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """`[[tunnel]]`: a port carried over mutual TLS, for what the site needs besides storage."""

    table: ClassVar[str] = "tunnel"
    id: str = setting(REQUIRED, "Immutable name of this entry.")
    listen: str = setting("", "Local address:port.")
    connect: str = setting("", "Where it leads, host:port.")
    side: str = setting("client", "`client`: plain here, TLS to there; `server`: TLS here, plain to there.",
                        choices=("client", "server"))
    tls: str = setting("bcp195", "TLS profile.", choices=PROFILES)
    certificate: str = setting("", "The [[certificate]] that we show.")
    trust: str = setting("", "The [[certificate]] whose trust anchors the other end's must come from; empty: `certificate`; "
                         "\"system\": the authorities that the system trusts.")
    server_name: str = setting("", "Side `client`: name that the server's certificate must carry; empty: that in `connect`.")
    pins: tuple[str, ...] = setting((), "SHA-256 fingerprints (hex) of which the other end's certificate must have one, "
                                    "besides being trusted; empty: any. A server's certificate is fetched by it, a client's is "
                                    "given with `dcmgate tunnel ID --pin FILE`.")
    proxy: str = setting("", "Side `client`: HTTP proxy, host:port, through whose CONNECT it leads; empty: none; its user "
                         "name and password are kept by `dcmgate proxy password`.")
    check: str = setting("tcp", "What proves that it is up, every five minutes: a connection through it, or a C-ECHO.",
                         choices=("tcp", "echo"))
    called: str = setting("", "Called AE title of that C-ECHO.")
    calling: str = setting("DCMGATE", "Calling AE title of that C-ECHO.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spool:
    """`[spool]`: where objects are kept."""

    table: ClassVar[str] = "spool"
    path: str = setting("/var/spool/dcmgate", "Folder of the spool, made by `dcmgate spool init`.")
    uuid: str = setting("", "Expected identifier; empty: that in `state`, taken at `spool init`.")
    size: int = setting(0, "Quota; 0: the whole file system.", unit="bytes", low=0)
    keep_min_hours: float = setting(24.0, "A confirmed object is kept at least this long.", unit="h", low=0)
    keep_max_days: float = setting(30.0, "A confirmed object is deleted after this long.", unit="days", low=0)
    receivers: int = setting(0, "Receiver processes; 0: one a core, at most 4.", low=0, high=64)
    state: str = setting("/var/lib/dcmgate", "Folder outside the spool for the expected identifier.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarms:
    """`[alarm]`: who is told."""

    table: ClassVar[str] = "alarm"
    mail_to: tuple[str, ...] = setting((), "Addresses that get a mail for each alarm that rises or ends.")
    mail_from: str = setting("dcmgate@localhost", "Sender of these mails.")
    mail_server: str = setting("127.0.0.1:25", "Mail server, host:port.")
    webhooks: tuple[str, ...] = setting((), "URLs that get a JSON POST for each alarm that rises or ends.")
    backlog_minutes: tuple[float, ...] = setting((15.0, 240.0, 1440.0), "Ages of the oldest undelivered object: notice, "
                                                 "warning, critical.", unit="min")
    silence_minutes: float = setting(60.0, "A scanner is never called silent before this time.", unit="min", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """`[control]`: how the commands reach the keeper."""

    table: ClassVar[str] = "control"
    run: str = setting("/run/dcmgate", "Folder of the keeper's socket and of the kick sockets.")
    led: str = setting("", "Status light: a name in /sys/class/leds; empty: none.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`[limits]`: bounds of the whole box."""

    table: ClassVar[str] = "limits"
    rate_bytes: int = setting(0, "Most bytes a second to all destinations together, trauma exempt; 0: none.",
                              unit="bytes/s", low=0)
    child_memory: int = setting(268435456, "Address space of the limited child.", unit="bytes", low=67108864)
    child_seconds: float = setting(5.0, "Time for the limited child to read the tags of one object.", unit="s", low=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """`[update]`: where new versions come from, and when the box may take them."""

    table: ClassVar[str] = "update"
    url: str = setting("", "Folder on a web server that releases are fetched from, https: or http:; empty: none, only sticks.")
    channel: str = setting("", "Folder below `url`; empty: `url` itself.")
    trust: str = setting(SYSTEM_TRUST, "The [[certificate]] whose trust anchors that server's certificate must come from; "
                         "\"system\": the authorities that the system trusts.")
    proxy: str = setting("", "HTTP proxy, host:port, through which that server is reached; empty: none.")
    check_hours: float = setting(24.0, "How often the box looks for a new version; 0: never.", unit="h", low=0)
    approval: str = setting("person", "Whether a person has to approve each version (`dcmgate update approve`), or none.",
                            choices=("person", "none"))
    window: tuple[str, ...] = setting((), "Times of day in which the box installs and restarts by itself (\"02:00-04:30\"); "
                                      "empty: always. What a person installs does not wait.")
    drain_minutes: float = setting(15.0, "Before the restart, associations are waited for at most this long.", unit="min",
                                   low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """`[network]`: which side is where, for the firewall of the system image, and what of ours a person can look at there."""

    table: ClassVar[str] = "network"
    scanners: tuple[str, ...] = setting((), "Subnets from which scanners call; empty: any on the interfaces of that side.")
    uplink: tuple[str, ...] = setting((), "Subnets that may call tunnels of side `server`; empty: any on those interfaces.")
    management: tuple[str, ...] = setting((), "Subnets from which the box is administered; empty: any on those interfaces.")
    page_port: int = setting(80, "Port on the scanners' side of the page that says green, yellow or red; 0: none.", low=0,
                             high=65535)
    metrics_port: int = setting(9464, "Port on the management side of the figures for Prometheus; 0: none.", low=0, high=65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class Time:
    """`[time]`: where the box has the time from. The scanners' side may ask it for the time in any case."""

    table: ClassVar[str] = "time"
    servers: tuple[str, ...] = setting(("2.debian.pool.ntp.org",), "Time servers (NTP).")
    nts_servers: tuple[str, ...] = setting(("time.cloudflare.com", "nts.netnod.se", "ptbtime1.ptb.de"),
                                           "Time servers that prove who they are (NTS, RFC 8915).")


@dataclass(frozen=True, slots=True, kw_only=True)
class Logging:
    """`[log]`: where the system image sends its journal, over TLS; it is kept here in any case."""

    table: ClassVar[str] = "log"
    forward: str = setting("", "Collector that speaks systemd-journal-remote's protocol, https://host:port; empty: none.")
    certificate: str = setting("", "The [[certificate]] that we show there.")
    trust: str = setting("", "The [[certificate]] whose trust anchors the collector's must come from; empty: `certificate`; "
                         "\"system\": the authorities that the system trusts.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One whole, checked configuration. Cross references are valid: see `load.py`."""

    listeners: tuple[Listener, ...] = ()
    peers: tuple[Peer, ...] = ()
    destinations: tuple[Destination, ...] = ()
    rules: tuple[Rule, ...] = ()
    tunnels: tuple[Tunnel, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    spool: Spool = field(default_factory=Spool)
    alarm: Alarms = field(default_factory=Alarms)
    control: Control = field(default_factory=Control)
    limits: Limits = field(default_factory=Limits)
    update: Update = field(default_factory=Update)
    network: Network = field(default_factory=Network)
    time: Time = field(default_factory=Time)
    log: Logging = field(default_factory=Logging)
    generation: int = 0

    def destination(self, id: str) -> Destination | None:
        """The entry of that id, or None where it was removed."""
        return next((d for d in self.destinations if d.id == id), None)

    def peer(self, id: str) -> Peer | None:
        return next((p for p in self.peers if p.id == id), None)

    def certificate(self, id: str) -> Certificate | None:
        return next((c for c in self.certificates if c.id == id), None)

    def tunnel(self, id: str) -> Tunnel | None:
        return next((t for t in self.tunnels if t.id == id), None)
