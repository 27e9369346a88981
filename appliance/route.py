"""Routing: from who sent an object and what it says of itself to where it goes (design, Routing).

A condition is true, false or *unknown* (a tag of an unreadable data set, the
time of day while the clock is not trusted); `all`, `any` and `not` combine the
three as Kleene's logic does. Only a rule that is true matches. An object that
no rule gives a destination, and every unreadable one, goes to the default
destinations: nothing is ever routed nowhere, and nothing here raises on what came from a peer.

AE titles and ids compare exactly; what an image says of itself compares without
regard to case, because people type it: `*STROKE*` means `Stroke protocol` too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.config.settings import Config, Rule
from appliance.model import Attributes, Custody, Priority, escape
from appliance.policy import canary
from appliance.policy.admission import address_of, inside
from appliance.schedule import hours, within

Truth = bool | None
"""True, False, or None: unknown."""

KeywordToTag = Callable[[str], int | None]
"""The tag (group << 16 | element) of a keyword of PS3.6, or None."""

_TAGS = {
    "ImageType": 0x00080008, "SOPClassUID": 0x00080016, "SOPInstanceUID": 0x00080018, "StudyDate": 0x00080020,
    "SeriesDate": 0x00080021, "AcquisitionDate": 0x00080022, "ContentDate": 0x00080023, "StudyTime": 0x00080030,
    "AccessionNumber": 0x00080050, "Modality": 0x00080060, "ModalitiesInStudy": 0x00080061, "ConversionType": 0x00080064,
    "PresentationIntentType": 0x00080068, "Manufacturer": 0x00080070, "InstitutionName": 0x00080080,
    "ReferringPhysicianName": 0x00080090, "StationName": 0x00081010, "StudyDescription": 0x00081030,
    "SeriesDescription": 0x0008103E, "InstitutionalDepartmentName": 0x00081040, "PerformingPhysicianName": 0x00081050,
    "OperatorsName": 0x00081070, "ManufacturerModelName": 0x00081090, "PatientName": 0x00100010, "PatientID": 0x00100020,
    "IssuerOfPatientID": 0x00100021, "PatientBirthDate": 0x00100030, "PatientSex": 0x00100040, "PatientAge": 0x00101010,
    "PatientComments": 0x00104000, "ContrastBolusAgent": 0x00180010, "BodyPartExamined": 0x00180015,
    "SliceThickness": 0x00180050, "DeviceSerialNumber": 0x00181000, "SoftwareVersions": 0x00181020, "ProtocolName": 0x00181030,
    "PatientPosition": 0x00185100, "StudyInstanceUID": 0x0020000D, "SeriesInstanceUID": 0x0020000E, "StudyID": 0x00200010,
    "SeriesNumber": 0x00200011, "InstanceNumber": 0x00200013, "Laterality": 0x00200060, "ImageComments": 0x00204000,
    "NumberOfFrames": 0x00280008, "BurnedInAnnotation": 0x00280301, "RequestedProcedureDescription": 0x00321060,
    "RequestedProcedurePriority": 0x00401003, "RequestingService": 0x00321033,
    "PerformedProcedureStepDescription": 0x00400254,
}
"""Keywords that rules use most; the whole of PS3.6 comes in by `compile(..., keyword_to_tag)`."""

_NAMED = {"modality": 0x00080060, "station": 0x00081010, "body_part": 0x00180015}

STUDY_UID = 0x0020000D
INDEX_TAGS = frozenset({0x00080020, 0x00080021, 0x00080030, 0x00080050, 0x00080060, 0x00081010, 0x00081030, 0x0008103E,
                        0x00100010, 0x00100020, 0x00100030, 0x00100040, STUDY_UID, 0x0020000E})
"""What people search by: read of every object, whatever the rules ask for."""

_CLASS_NAMES = {
    "1.1": "Computed Radiography Image Storage", "1.1.1": "Digital X-Ray Image Storage - For Presentation",
    "1.1.1.1": "Digital X-Ray Image Storage - For Processing",
    "1.1.2": "Digital Mammography X-Ray Image Storage - For Presentation",
    "1.2": "CT Image Storage", "1.2.1": "Enhanced CT Image Storage", "1.3.1": "Ultrasound Multi-frame Image Storage",
    "1.4": "MR Image Storage", "1.4.1": "Enhanced MR Image Storage", "1.6.1": "Ultrasound Image Storage",
    "1.7": "Secondary Capture Image Storage", "1.9.1.1": "12-lead ECG Waveform Storage",
    "1.11.1": "Grayscale Softcopy Presentation State Storage", "1.12.1": "X-Ray Angiographic Image Storage",
    "1.12.2": "X-Ray Radiofluoroscopic Image Storage", "1.13.1.3": "Breast Tomosynthesis Image Storage",
    "1.20": "Nuclear Medicine Image Storage", "1.77.1.4": "VL Photographic Image Storage",
    "1.77.1.6": "VL Whole Slide Microscopy Image Storage", "1.88.11": "Basic Text SR Storage", "1.88.22": "Enhanced SR Storage",
    "1.88.33": "Comprehensive SR Storage", "1.88.59": "Key Object Selection Document Storage",
    "1.88.67": "X-Ray Radiation Dose SR Storage", "1.104.1": "Encapsulated PDF Storage",
    "1.128": "Positron Emission Tomography Image Storage", "1.481.1": "RT Image Storage", "1.481.2": "RT Dose Storage",
    "1.481.3": "RT Structure Set Storage", "1.481.5": "RT Plan Storage",
}
_CLASS_ROOT = "1.2.840.10008.5.1.4.1."


@dataclass(frozen=True, slots=True)
class Decision:
    """Where an object goes. `rules` matched, in order; `why` has one line for each rule of the configuration."""

    rules: tuple[str, ...]
    destinations: tuple[str, ...]
    priority: Priority
    hold: bool
    flags: tuple[str, ...]
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Facts:
    custody: Custody
    attributes: Attributes
    minute: int | None


# --- values --------------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_RANGE = re.compile(r"\s*(-?\d+(?:\.\d+)?)?\s*\.\.\s*(-?\d+(?:\.\d+)?)?\s*", re.ASCII)
_AGE = re.compile(r"(\d{3})([DWMY])", re.ASCII)
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}


def _number(text: str) -> float | None:
    """The number that a text is, with dates as YYYYMMDD and ages (AS, PS3.5 6.2) in years; None if it is none."""
    text = text.strip()
    if age := _AGE.fullmatch(text):
        return int(age[1]) * _YEARS[age[2]]
    return float(text) if len(text) <= 64 and _NUMBER.fullmatch(text) else None


def glob(pattern: str, text: str) -> bool:
    """Whether the whole text fits a pattern of `*` and `?`. At most pattern times text steps, whatever a peer sends."""
    at = here = 0
    star, after_star = -1, 0
    while here < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, after_star = at, here
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", text[here]):
            at += 1
            here += 1
        elif star >= 0:
            after_star += 1
            at, here = star + 1, after_star
        else:
            return False
    return all(c == "*" for c in pattern[at:])


@dataclass(frozen=True, slots=True)
class _Value:
    """One value that a condition wants: a pattern, and the range of numbers that it may also be."""

    written: str
    pattern: str
    low: float | None = None
    high: float | None = None

    @property
    def is_range(self) -> bool:
        return self.low is not None

    def fits(self, text: str, exact: bool) -> bool:
        if self.low is not None and self.high is not None:
            number = _number(text)
            if number is not None and self.low <= number <= self.high:
                return True
        return glob(self.pattern, text if exact else text.casefold())


def _value(item: object, exact: bool) -> _Value:
    if isinstance(item, (int, float)) and not isinstance(item, bool) and abs(item) <= 1e15:
        return _Value(f"{item}", f"{item}", float(item), float(item))
    text = str(item)
    pattern = text.strip() if exact else text.strip().casefold()
    found = _RANGE.fullmatch(text)
    if found and (found[1] or found[2]):
        return _Value(text, pattern, float(found[1] or "-inf"), float(found[2] or "inf"))
    if (number := _number(text)) is not None and "e" not in text.casefold():
        return _Value(text, pattern, number, number)
    return _Value(text, pattern)


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


# --- conditions ----------------------------------------------------------------------------------------------------------

class _Condition:
    """Something that is true, false or unknown of an object. `why` says so in words after `truth` was not True."""

    __slots__ = ()

    def truth(self, facts: _Facts) -> Truth:
        raise NotImplementedError

    def why(self, facts: _Facts) -> str:
        raise NotImplementedError

    def tags(self) -> Iterable[int]:
        return ()


class _Text(_Condition):
    """One of the texts that the association showed fits one of the values."""

    __slots__ = ("exact", "name", "texts", "values")

    def __init__(self, name: str, texts: Callable[[_Facts], tuple[str, ...] | None], wanted: object, exact: bool) -> None:
        self.name = name
        self.texts = texts
        self.exact = exact
        self.values = tuple(_value(item, exact) for item in _as_list(wanted))

    def truth(self, facts: _Facts) -> Truth:
        texts = self.texts(facts)
        if texts is None:
            return None
        return any(value.fits(text.strip(" \0"), self.exact) for text in texts for value in self.values)

    def why(self, facts: _Facts) -> str:
        texts = self.texts(facts)
        if texts is None:
            return f"{self.name} cannot be read"
        wanted = " or ".join(f'"{_printable(value.written)}"' for value in self.values)
        return f"{self.name} is {' or '.join(_quoted(text) for text in texts)}, not {wanted}"


class _Tag(_Text):
    """The value of a tag, or one of its values, fits; a tag that is not there is an empty text."""

    __slots__ = ("tag",)

    def __init__(self, name: str, tag: int, wanted: object) -> None:
        super().__init__(name, self._read, wanted, exact=False)
        self.tag = tag

    def _read(self, facts: _Facts) -> tuple[str, ...] | None:
        if not facts.attributes.readable:
            return None
        text = facts.attributes.values.get(self.tag, "")
        return (text, *text.split("\\")) if "\\" in text else (text,)

    def tags(self) -> Iterable[int]:
        return (self.tag,)


class _NoSuchTag(_Condition):
    """A keyword that this release does not know: unknown for ever, so that its rule never matches by accident."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def truth(self, facts: _Facts) -> Truth:
        return None

    def why(self, facts: _Facts) -> str:
        return f"{_printable(self.name)} is no tag that this release knows"


class _Address(_Condition):
    __slots__ = ("values",)

    def __init__(self, wanted: object) -> None:
        self.values = tuple(str(item).strip() for item in _as_list(wanted))

    def truth(self, facts: _Facts) -> Truth:
        address = facts.custody.source.address
        parsed = address_of(address)
        plain = str(parsed) if parsed is not None else address
        return inside(address, self.values) or any(glob(value, plain) for value in self.values)

    def why(self, facts: _Facts) -> str:
        return f"address is {_quoted(facts.custody.source.address)}, not {' or '.join(map(_printable, self.values))}"


class _Hours(_Condition):
    __slots__ = ("windows", "written")

    def __init__(self, wanted: object) -> None:
        self.written = [str(item) for item in _as_list(wanted)]
        self.windows = tuple(window for text in self.written if (window := hours(text)) is not None)

    def truth(self, facts: _Facts) -> Truth:
        # A window that cannot be parsed is no window, and must not become "always".
        return within(self.windows, facts.minute) if self.windows else False

    def why(self, facts: _Facts) -> str:
        if facts.minute is None:
            return "the time of day is not known, because the clock is not trusted"
        return f"it is {facts.minute // 60:02d}:{facts.minute % 60:02d}, not {' or '.join(map(_printable, self.written))}"


class _All(_Condition):
    __slots__ = ("parts",)

    def __init__(self, parts: Iterable[_Condition]) -> None:
        self.parts = tuple(parts)

    def truth(self, facts: _Facts) -> Truth:
        result: Truth = True
        for part in self.parts:
            truth = part.truth(facts)
            if truth is False:
                return False
            if truth is None:
                result = None
        return result

    def why(self, facts: _Facts) -> str:
        truth = self.truth(facts)
        return next((part.why(facts) for part in self.parts if part.truth(facts) is truth), "everything holds")

    def tags(self) -> Iterable[int]:
        return (tag for part in self.parts for tag in part.tags())


class _Any(_All):
    __slots__ = ()

    def truth(self, facts: _Facts) -> Truth:
        result: Truth = False
        for part in self.parts:
            truth = part.truth(facts)
            if truth is True:
                return True
            if truth is None:
                result = None
        return result

    def why(self, facts: _Facts) -> str:
        return "none of: " + "; ".join(part.why(facts) for part in self.parts)


class _Not(_Condition):
    __slots__ = ("part",)

    def __init__(self, part: _Condition) -> None:
        self.part = part

    def truth(self, facts: _Facts) -> Truth:
        truth = self.part.truth(facts)
        return None if truth is None else not truth

    def why(self, facts: _Facts) -> str:
        return "`not` holds" if self.part.truth(facts) else f"in `not`: {self.part.why(facts)}"

    def tags(self) -> Iterable[int]:
        return self.part.tags()


def _quoted(text: str) -> str:
    shown = escape(text[:64].encode("utf-8", "surrogatepass"))
    return f'"{shown}"' if shown else "empty"


def _printable(text: str) -> str:
    """A text of the configuration, where letters of any script are as good as any."""
    return text if text.isprintable() else escape(text.encode("utf-8", "surrogatepass"))


def class_name(uid: str) -> str:
    """The name of a SOP class that rules use most, else empty."""
    return _CLASS_NAMES.get(uid.removeprefix(_CLASS_ROOT), "") if uid.startswith(_CLASS_ROOT) else ""


def _class_texts(facts: _Facts) -> tuple[str, ...]:
    uid = facts.custody.class_text
    name = class_name(uid)
    return (uid, name) if name else (uid,)


_ASSOCIATION: Mapping[str, tuple[Callable[[_Facts], tuple[str, ...]], bool]] = {
    "calling": (lambda facts: (facts.custody.source.calling,), True),
    "called": (lambda facts: (facts.custody.source.called,), True),
    "listener": (lambda facts: (facts.custody.source.listener,), True),
    "peer": (lambda facts: (facts.custody.source.peer,), True),
    "port": (lambda facts: (str(facts.custody.source.port),), True),
    "sop_class": (_class_texts, False),
}
"""What the association alone says: never unknown. For each, the texts and whether case counts."""

_TAG_NUMBER = re.compile(r"\(?([0-9A-Fa-f]{4}),?\s?([0-9A-Fa-f]{4})\)?", re.ASCII)


def tag_number(name: str) -> int | None:
    """The tag that "0008,103E", "(0008,103E)" or "0008103E" means, else None."""
    found = _TAG_NUMBER.fullmatch(name.strip())
    return int(found[1] + found[2], 16) if found else None


def _compile_match(match: Mapping[str, Any], tag_of: KeywordToTag) -> _Condition:
    parts: list[_Condition] = []
    for key, wanted in match.items():
        if key in ("all", "any"):
            nested = [_compile_match(item, tag_of) for item in _as_list(wanted) if isinstance(item, Mapping)]
            parts.append(_All(nested) if key == "all" else _Any(nested))
        elif key == "not" and isinstance(wanted, Mapping):
            parts.append(_Not(_compile_match(wanted, tag_of)))
        elif key == "hours":
            parts.append(_Hours(wanted))
        elif key == "address":
            parts.append(_Address(wanted))
        elif key in _ASSOCIATION:
            texts, exact = _ASSOCIATION[key]
            parts.append(_Text(key, texts, wanted, exact))
        else:
            tag = tag_of(key)
            parts.append(_NoSuchTag(key) if tag is None else _Tag(key, tag, wanted))
    return parts[0] if len(parts) == 1 else _All(parts)


# --- the router ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class _Rule:
    rule: Rule
    condition: _Condition
    priority: Priority | None


class Router:
    """The compiled rules of one configuration. `generation` is that configuration's, `wanted` the tags to read."""

    def __init__(self, config: Config, tag_of: KeywordToTag) -> None:
        self.generation = config.generation
        self._rules = tuple(_Rule(rule, _compile_match(rule.match, tag_of), priority_of(rule.priority))
                            for rule in config.rules)
        self._defaults = tuple(d.id for d in config.destinations if d.default) or tuple(d.id for d in config.destinations)
        self._peers = {peer.id: peer for peer in config.peers}
        self._listeners = {listener.id: listener for listener in config.listeners}
        self._canaries = {canary.title_of(d.id): d.id for d in config.destinations}
        self.wanted: frozenset[int] = INDEX_TAGS.union(*(rule.condition.tags() for rule in self._rules))

    def route(self, custody: Custody, attributes: Attributes, now_of_day: int | None,
              admitted: Collection[tuple[str, str]] = ()) -> Decision:
        """Decide on one object. Never raises.

        `now_of_day` is minutes since midnight, None while the clock is not
        trusted. `admitted` are the (title, address) pairs that a person let in:
        what they sent is not held for being unknown. A canary goes to its own
        destination and nowhere else, whatever the rules say.
        """
        if canary.is_canary(custody.source):
            its_own = self._canaries.get(custody.source.called)
            return Decision((), (its_own,) if its_own is not None else (), Priority.ROUTINE, False, (canary.FLAG,),
                            ("a canary: no rule is looked at",))
        facts = _Facts(custody, attributes, now_of_day)
        matched: list[_Rule] = []
        why: list[str] = []
        last = ""
        for compiled in self._rules:
            name = compiled.rule.id
            if last:
                why.append(f"{name}: not looked at, {last} is the last one")
                continue
            truth = compiled.condition.truth(facts)
            if truth:
                matched.append(compiled)
                why.append(f"{name}: matches")
                last = name if compiled.rule.last else ""
            else:
                why.append(f"{name}: {'unknown' if truth is None else 'no'}, {compiled.condition.why(facts)}")
        destinations = dict.fromkeys(d for compiled in matched for d in compiled.rule.destinations)
        if not destinations or not attributes.readable:
            destinations.update(dict.fromkeys(self._defaults))
        priorities = [compiled.priority for compiled in matched if compiled.priority is not None]
        return Decision(
            rules=tuple(compiled.rule.id for compiled in matched),
            destinations=tuple(destinations),
            priority=min(priorities) if priorities else self._peer_priority(custody),
            hold=any(compiled.rule.hold for compiled in matched) or self._held(custody, admitted),
            flags=() if attributes.readable else ("unreadable",),
            why=tuple(why),
        )

    def _peer_priority(self, custody: Custody) -> Priority:
        peer = self._peers.get(custody.source.peer)
        priority = priority_of(peer.priority) if peer else None
        return Priority.ROUTINE if priority is None else priority

    def _held(self, custody: Custody, admitted: Collection[tuple[str, str]]) -> bool:
        source = custody.source
        if source.peer:
            peer = self._peers.get(source.peer)
            return peer is not None and peer.action == "hold"
        listener = self._listeners.get(source.listener)
        return listener is not None and listener.unknown == "hold" and (source.calling, source.address) not in admitted


def priority_of(name: str) -> Priority | None:
    """The class of that name; None for an empty or unknown one."""
    return Priority.__members__.get(name.upper())


def compile(config: Config, keyword_to_tag: KeywordToTag | None = None) -> Router:
    """The router of a checked configuration.

    Tags stand by number, or by keyword: those in the built-in table are known at
    once, all others are asked of `keyword_to_tag`. A keyword that nobody knows
    makes its condition unknown for ever rather than stop the routing of everything else.
    """
    def tag_of(name: str) -> int | None:
        tag = _NAMED.get(name) or _TAGS.get(name) or tag_number(name)
        return keyword_to_tag(name) if tag is None and keyword_to_tag is not None else tag

    return Router(config, tag_of)
