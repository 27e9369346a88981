"""What the entries of a configuration say of one another, and what a text may hold: titles, addresses, times, rules.

Everything here adds to the `Findings`; nothing raises. A setting that has been
found wrong already is left alone, so that one mistake is one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address, ip_network
from itertools import combinations
from typing import Any

from appliance.config.findings import Findings, did_you_mean
from appliance.config.hosts import host_port, is_host
from appliance.config.lines import Path
from appliance.config.secure import check_certificates, check_tls, remarks_on_tls
from appliance.config.settings import SYSTEM_TRUST, Config, Destination
from appliance.config.site import check_site

TagProblem = Callable[[str], str]
"""Judges the name of a tag in a rule: "" where there is such a tag, else a mend."""

CONDITIONS = ("calling", "called", "address", "port", "listener", "peer", "modality", "sop_class", "station", "body_part",
              "hours", "all", "any", "not")
"""What a rule can ask for besides tags."""

DEEPEST_MATCH = 8
"""Levels of `all`, `any` and `not` in one another."""

SOCKET_PATH = 107
"""Longest path of a Unix socket (unix(7)), which `[control] run` has to leave room for."""

_TIME = r"(?:[01]?[0-9]|2[0-3]):[0-5][0-9]"
_HOURS = re.compile(rf"({_TIME})-({_TIME}|24:00)")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MAIL = re.compile(r"[^@\s<>,;]+@[^@\s<>,;]+")
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})?\s*\.\.\s*({_NUMBER})?\s*")
_TAG_NUMBER = re.compile(r"\(?[0-9A-Fa-f]{4},\s?[0-9A-Fa-f]{4}\)?|[0-9A-Fa-f]{8}")
_KEYWORD = re.compile(r"[A-Z][A-Za-z0-9]{1,63}")
_LOOPBACK = {"localhost": "127.0.0.1", "*": "0.0.0.0", "any": "0.0.0.0", "all": "0.0.0.0"}


def plausible_tag(name: str) -> str:
    """Whether a name could be a tag at all, without a dictionary: a CamelCase keyword or `gggg,eeee`."""
    if _TAG_NUMBER.fullmatch(name) or _KEYWORD.fullmatch(name):
        return ""
    return 'a tag is written by its keyword (SeriesDescription) or its number ("0008,103E")'


def check_config(config: Config, findings: Findings, tag_problem: TagProblem) -> None:
    """Everything that can be said of the whole, once each value is of its type."""
    for table, entries in (("listener", config.listeners), ("peer", config.peers), ("destination", config.destinations),
                           ("rule", config.rules), ("tunnel", config.tunnels), ("certificate", config.certificates)):
        _ids(findings, table, [entry.id for entry in entries])
    _listeners(findings, config)
    _peers(findings, config)
    _destinations(findings, config)
    _failovers(findings, config.destinations)
    _rules(findings, config, tag_problem)
    check_certificates(findings, config)
    check_tls(findings, config)
    for nth, tunnel in enumerate(config.tunnels):
        for key in ("called", "calling"):
            if getattr(tunnel, key):
                _title(findings, ("tunnel", nth, key), getattr(tunnel, key))
    _spool(findings, config)
    _alarms(findings, config)
    _update(findings, config)
    check_site(findings, config)


def remarks(config: Config) -> list[str]:
    """What is allowed and yet perhaps not meant: one sentence each."""
    reached = {name for rule in config.rules for name in rule.destinations}
    reached |= {d.failover for d in config.destinations} | {d.id for d in config.destinations if d.default}
    said = [f'destination "{destination.id}" gets nothing: it is no default, no rule and no fail-over names it'
            for destination in config.destinations if destination.id not in reached]
    if not config.peers and all(listener.unknown == "refuse" for listener in config.listeners):
        said.append('nobody can send: there is no [[peer]], and every listener says unknown = "refuse"')
    if not any(d.required for d in config.destinations):
        said.append("no destination is required: an object may be retired before anybody has it")
    return said + remarks_on_tls(config)


# --- entries -------------------------------------------------------------------------------------------------------------

def _ids(findings: Findings, table: str, ids: list[str]) -> None:
    first: dict[str, int] = {}
    for nth, name in enumerate(ids):
        path = (table, nth, "id")
        if findings.is_wrong(path) or not findings.ids.get((table, nth)):
            if not name and not findings.is_wrong((table, nth)):
                findings.wrong(path, "is empty", f'give it a name for good, for example "{table}{nth + 1}"')
        elif not _ID.fullmatch(name):
            suggestion = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._")[:64] or f"{table}{nth + 1}"
            findings.wrong(path, "an id is 1 to 64 letters, digits, points, dashes and underscores", f'write "{suggestion}"')
        elif name in first:
            line = findings.line((table, first[name], "id"))
            findings.wrong(path, f'"{name}" is already the id of another {table} (line {line})', "give each its own")
        else:
            first[name] = nth


def _listeners(findings: Findings, config: Config) -> None:
    if not config.listeners and not findings.is_wrong(("listener",)):
        findings.wrong(("listener",), "there is none, so nobody can send", 'add [[listener]] with an id and ports = 11112')
    for nth, listener in enumerate(config.listeners):
        path: Path = ("listener", nth)
        try:
            ip_address(listener.address)
        except ValueError:
            findings.wrong((*path, "address"), f'"{listener.address[:60]}" is not an address of this box',
                           f'write "{_LOOPBACK.get(listener.address.lower(), "0.0.0.0")}"')
        _titles(findings, (*path, "titles"), listener.titles)
    for (a, one), (b, other) in combinations(enumerate(config.listeners), 2):
        shared = sorted(set(one.ports) & set(other.ports))
        if not shared or any(findings.is_wrong(("listener", n, key)) for n in (a, b) for key in ("address", "ports")):
            continue
        if one.address == other.address or ip_address(one.address).is_unspecified or ip_address(other.address).is_unspecified:
            findings.wrong(("listener", b, "ports"),
                           f'port {shared[0]} is already that of listener "{one.id}" on {one.address}',
                           "give one of them another port, or another address")


def _peers(findings: Findings, config: Config) -> None:
    listeners = [listener.id for listener in config.listeners]
    for nth, peer in enumerate(config.peers):
        path: Path = ("peer", nth)
        for i, address in enumerate(peer.addresses):
            _network(findings, (*path, "addresses", i), address)
        _titles(findings, (*path, "titles"), peer.titles, blank=True)
        _known(findings, (*path, "listeners"), peer.listeners, listeners, "listener")


def _network(findings: Findings, path: Path, text: str) -> None:
    try:
        ip_network(text)
    except ValueError:
        try:
            mend = f'write "{ip_network(text, strict=False)}" for the subnet, or "{text.split("/")[0]}" for the one address'
            message = f'"{text[:60]}" has bits set beyond the length of its subnet'
        except ValueError:
            mend = 'write an address "192.168.10.7" or a subnet "192.168.10.0/24"; names are not looked up'
            message = f'"{text[:60]}" is no address and no subnet'
        findings.wrong(path, message, mend)


def _titles(findings: Findings, path: Path, titles: Iterable[str], *, blank: bool = False) -> None:
    for i, title in enumerate(titles):
        if title or not blank:
            _title(findings, (*path, i), title)


def _title(findings: Findings, path: Path, title: str) -> None:
    """PS3.5 6.2, AE: 1 to 16 characters of the default repertoire, no backslash, outer spaces mean nothing."""
    if not title.strip(" "):
        findings.wrong(path, "an AE title is not blank", "leave it out to allow any title")
    elif title != title.strip(" "):
        findings.wrong(path, f'"{title[:40]}" begins or ends with a space, which means nothing in an AE title',
                       f'write "{title.strip(" ")[:40]}"')
    elif "\\" in title or not title.isascii():
        findings.wrong(path, f'"{title[:40]}" has a character that an AE title must not have',
                       "letters, digits, spaces and signs of ASCII but the backslash")
    elif len(title) > 16:
        findings.wrong(path, f'"{title[:40]}" has {len(title)} characters, an AE title has at most 16',
                       f'is it "{title[:16].strip()}"?')


def _known(findings: Findings, path: Path, names: Iterable[str], known: Iterable[str], what: str) -> None:
    for i, name in enumerate(names):
        if name not in known:
            _unknown(findings, (*path, i), name, known, what)


def _unknown(findings: Findings, path: Path, name: str, known: Iterable[str], what: str) -> None:
    findings.wrong(path, f'there is no {what} "{name[:64]}"', did_you_mean(name, [k for k in known if k]))


# --- destinations --------------------------------------------------------------------------------------------------------

_ONLY_DIMSE = ("address", "called", "calling")
_ONLY_FOLDER = ("path",)


def _destinations(findings: Findings, config: Config) -> None:
    for nth, destination in enumerate(config.destinations):
        path: Path = ("destination", nth)
        if not findings.is_wrong((*path, "type")):
            _of_its_type(findings, path, destination)
        for title in ("called", "calling"):
            if getattr(destination, title):
                _title(findings, (*path, title), getattr(destination, title))
        _windows(findings, (*path, "hours"), destination.hours)
        if destination.canary_minutes > 0 and destination.type == "dimse" and not (destination.called and destination.calling):
            findings.wrong((*path, "canary_minutes"), "a canary has titles of its own, and no scanner's",
                           "write `called` and `calling`, or leave it out")
        if destination.proof == "commitment":
            findings.wrong((*path, "proof"), "storage commitment comes with a later release", 'write "readback" or "status"')
    if config.destinations and any(d.default for d in config.destinations):
        return
    if any(findings.is_wrong(("destination", nth, "default")) for nth in range(len(config.destinations))):
        return
    if config.destinations:
        findings.wrong(("destination", 0, "default"), "no destination is a default: what no rule takes would go nowhere",
                       f'write default = true for "{config.destinations[0].id or "one of them"}"')
    elif not findings.is_wrong(("destination",)):
        findings.wrong(("destination",), "there is none, so nothing can be delivered",
                       "add [[destination]] with an id, an address, a port and default = true")


def _of_its_type(findings: Findings, path: Path, destination: Destination) -> None:
    folder = destination.type == "folder"
    for key in _ONLY_DIMSE if folder else _ONLY_FOLDER:
        if getattr(destination, key) and not findings.is_wrong((*path, key)):
            findings.wrong((*path, key), f"is not for a destination of type {destination.type}",
                           "leave it out" if folder else 'add type = "folder", or leave it out')
    needed = "path" if folder else "address"
    if findings.is_wrong((*path, needed)):
        return
    if not getattr(destination, needed):
        findings.wrong((*path, needed), f"is missing for a destination of type {destination.type}",
                       'give the folder: path = "/srv/archive"' if folder else 'give the host: address = "192.0.2.10"')
    elif folder:
        _absolute(findings, (*path, needed), destination.path)
    elif not is_host(destination.address):
        findings.wrong((*path, needed), f'"{destination.address[:60]}" is no host name and no address',
                       "write the host alone; the port has its own setting")


def _failovers(findings: Findings, destinations: tuple[Destination, ...]) -> None:
    after = {d.id: d.failover for d in destinations}
    told: set[str] = set()
    for nth, destination in enumerate(destinations):
        if not destination.failover:
            continue
        path = ("destination", nth, "failover")
        if destination.failover not in after:
            _unknown(findings, path, destination.failover, [k for k in after if k != destination.id], "destination")
            continue
        chain = [destination.id]
        while (following := after.get(chain[-1], "")) and following not in chain:
            chain.append(following)
        if following == destination.id and destination.id not in told:
            told.update(chain)
            findings.wrong(path, "the fail-over runs in a circle: " + " → ".join([*chain, following]),
                           "let the last of them have none")


# --- rules ---------------------------------------------------------------------------------------------------------------

def _rules(findings: Findings, config: Config, tag_problem: TagProblem) -> None:
    known = [d.id for d in config.destinations]
    for nth, rule in enumerate(config.rules):
        path: Path = ("rule", nth)
        _known(findings, (*path, "destinations"), rule.destinations, known, "destination")
        doing = rule.destinations or rule.priority or rule.hold or rule.last
        if not doing and not findings.is_wrong(path):
            findings.wrong(path, "does nothing: it names no destination and no priority, and neither holds nor is last",
                           "give it destinations = [\"...\"]")
        if not findings.is_wrong((*path, "match")):
            _Conditions(findings, config, tag_problem).check((*path, "match"), rule.match, 1)


class _Conditions:
    """The `match` of one rule."""

    def __init__(self, findings: Findings, config: Config, tag_problem: TagProblem) -> None:
        self.findings = findings
        self.tag_problem = tag_problem
        self.ids = {"listener": [e.id for e in config.listeners], "peer": [e.id for e in config.peers]}

    def check(self, path: Path, match: Mapping[str, Any], depth: int) -> None:
        if depth > DEEPEST_MATCH:
            self.findings.wrong(path, f"is nested deeper than {DEEPEST_MATCH} levels", "make two rules of it")
            return
        for key, value in match.items():
            here = (*path, key)
            if key in ("all", "any"):
                self.nested(here, value, depth)
            elif key == "not":
                if isinstance(value, dict):
                    self.check(here, value, depth + 1)
                else:
                    self.findings.wrong(here, "must be a table", 'write for example not = { modality = "SR" }')
            elif key in CONDITIONS or self.is_tag(here, key):
                self.values(here, key, value)

    def nested(self, path: Path, value: object, depth: int) -> None:
        if not isinstance(value, list) or not value:
            self.findings.wrong(path, "must be a list of tables",
                                f'write for example {path[-1]} = [{{ modality = "CT" }}, {{ modality = "MR" }}]')
            return
        for nth, item in enumerate(value):
            if isinstance(item, dict):
                self.check((*path, nth), item, depth + 1)
            else:
                self.findings.wrong((*path, nth), "must be a table", 'write for example { modality = "CT" }')

    def is_tag(self, path: Path, key: str) -> bool:
        plausible = plausible_tag(key)
        problem = plausible or self.tag_problem(key)
        if problem:
            mend = did_you_mean(key, CONDITIONS, problem) if plausible else problem
            self.findings.wrong(path, "is no condition and no tag", mend)
        return not problem

    def values(self, path: Path, key: str, value: object) -> None:
        if isinstance(value, list) and not value:
            self.findings.wrong(path, "is an empty list, which nothing matches", "give values, or leave the condition out")
        for nth, item in enumerate(value if isinstance(value, list) else [value]):
            place = (*path, nth) if isinstance(value, list) else path
            if isinstance(item, bool) or not isinstance(item, (str, int, float)):
                self.findings.wrong(place, "must be a text, a number, or a list of these",
                                    f'write for example {key} = "CT*" or {key} = ["CT", "MR"]')
            elif isinstance(item, str):
                self.text(place, key, item)
            elif key in ("calling", "called", "listener", "peer", "hours", "address"):
                self.findings.wrong(place, "must be a text", f'write {key} = "..."')
            elif item != item or abs(item) > 1e15:
                self.findings.wrong(place, "is not a number that could be compared", "write it as a text")

    def text(self, path: Path, key: str, text: str) -> None:
        plain = not any(c in text for c in "*?")
        if not text.isprintable():
            self.findings.wrong(path, "has a control character in it", "type it anew, without tabs and line ends")
        elif key == "hours":
            _window(self.findings, path, text)
        elif key in ("calling", "called") and plain and text:
            _title(self.findings, path, text)
        elif key in self.ids and plain and text not in self.ids[key] and (key == "listener" or text):
            _unknown(self.findings, path, text, self.ids[key], key)
        elif key == "address" and "/" in text:
            _network(self.findings, path, text)
        elif key == "port" and not re.fullmatch(r"[0-9]{1,5}", text) and not _RANGE.fullmatch(text):
            self.findings.wrong(path, f'"{text[:40]}" is no port', 'write a number, or a range "2104..2111"')
        elif (found := _RANGE.fullmatch(text)) and found[1] and found[2] and float(found[1]) > float(found[2]):
            self.findings.wrong(path, f'the range "{text[:40]}" runs backwards', f'write "{found[2]}..{found[1]}"')


def _windows(findings: Findings, path: Path, windows: Iterable[str]) -> None:
    for nth, window in enumerate(windows):
        _window(findings, (*path, nth), window)


def _window(findings: Findings, path: Path, text: str) -> None:
    match = _HOURS.fullmatch(text)
    if not match:
        findings.wrong(path, f'"{text[:40]}" is not a span of the day', 'write hours and minutes of both ends: "19:00-06:30"')
    elif match[1].zfill(5) == match[2].zfill(5):
        findings.wrong(path, f'"{text}" begins and ends at the same minute', "leave it out for the whole day")


# --- the rest ------------------------------------------------------------------------------------------------------------

def _absolute(findings: Findings, path: Path, text: str) -> bool:
    if text.startswith("/") and ".." not in text.split("/"):
        return True
    if not findings.is_wrong(path):
        findings.wrong(path, f'"{text[:60]}" is not a whole path', "write it from the root, without ..: it begins with /")
    return False


def _spool(findings: Findings, config: Config) -> None:
    spool = config.spool
    good = _absolute(findings, ("spool", "path"), spool.path) & _absolute(findings, ("spool", "state"), spool.state)
    if good and f"{spool.state.rstrip('/')}/".startswith(f"{spool.path.rstrip('/')}/"):
        findings.wrong(("spool", "state"), "lies within the spool, whose identity it is there to prove",
                       'name a folder on another file system, for example "/var/lib/dcmgate"')
    if spool.keep_max_days * 24 < spool.keep_min_hours:
        findings.wrong(("spool", "keep_max_days"), "is shorter than keep_min_hours",
                       f"write at least keep_max_days = {spool.keep_min_hours / 24:g}")
    if spool.uuid and not re.fullmatch(r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}", spool.uuid):
        findings.wrong(("spool", "uuid"), f'"{spool.uuid[:60]}" is not an identifier', "`dcmgate spool check` shows it")
    if _absolute(findings, ("control", "run"), config.control.run):
        longest = f"{config.control.run}/kick-forwarder"
        if len(longest.encode("utf-8", "surrogatepass")) > SOCKET_PATH:
            findings.wrong(("control", "run"), f"is too long for a socket in it ({SOCKET_PATH} bytes in all)",
                           'write a short one, for example "/run/dcmgate"')


def _alarms(findings: Findings, config: Config) -> None:
    alarm = config.alarm
    for nth, address in enumerate(alarm.mail_to):
        if not _MAIL.fullmatch(address):
            findings.wrong(("alarm", "mail_to", nth), f'"{address[:60]}" is not a mail address', "write name@host, one each")
    if not _MAIL.fullmatch(alarm.mail_from):
        findings.wrong(("alarm", "mail_from"), f'"{alarm.mail_from[:60]}" is not a mail address', "write name@host")
    if not host_port(alarm.mail_server):
        findings.wrong(("alarm", "mail_server"), f'"{alarm.mail_server[:60]}" is not host:port',
                       'write for example "127.0.0.1:25"')
    for nth, url in enumerate(alarm.webhooks):
        if not re.fullmatch(r"https?://[^\s/?#]+[^\s]*", url):
            findings.wrong(("alarm", "webhooks", nth), f'"{url[:60]}" is not a URL', "it begins with https:// or http://")
    ages = alarm.backlog_minutes
    if findings.is_wrong(("alarm", "backlog_minutes")):
        return
    if len(ages) != 3 or ages[0] <= 0 or not ages[0] < ages[1] < ages[2]:
        findings.wrong(("alarm", "backlog_minutes"), "must be three ages that grow: notice, warning, critical",
                       "write backlog_minutes = [15, 240, 1440]")


def _update(findings: Findings, config: Config) -> None:
    update = config.update
    if update.url and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", update.url):
        findings.wrong(("update", "url"), f'"{update.url[:60]}" is no URL of a folder',
                       'write for example "https://updates.example.org/dcmgate"')
    if update.channel and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", update.channel):
        findings.wrong(("update", "channel"), f'"{update.channel[:60]}" is no name of a folder', 'write for example "stable"')
    if update.trust not in ("", SYSTEM_TRUST) and config.certificate(update.trust) is None:
        findings.wrong(("update", "trust"), f'there is no [[certificate]] "{update.trust[:60]}"',
                       did_you_mean(update.trust, [*(c.id for c in config.certificates), SYSTEM_TRUST]))
    if update.proxy and not host_port(update.proxy):
        findings.wrong(("update", "proxy"), f'"{update.proxy[:60]}" is not host:port',
                       'write for example "proxy.example.org:3128"')
    _windows(findings, ("update", "window"), update.window)
