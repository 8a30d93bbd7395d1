"""GrowthBook's targeting conditions, compiled once into predicates over a request's attributes."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, TypeGuard

from service.errors import ExperimentsInvalid, FieldError, pointer_to
from service.experiments.format import Scalar
from service.experiments.hashing import number_text

Attributes = Mapping[str, object]
Groups = Mapping[str, Sequence[Scalar]]
Predicate = Callable[[Any], bool]  # of the attributes, or of one attribute's value

DEPTH_CEILING = 32


def compile_condition(condition: object, groups: Groups, pointer: str) -> Predicate:
    """A predicate over attributes. Raises ExperimentsInvalid with the place of what is no condition."""
    return _Compiler(groups).condition(condition, pointer, 0)


class _Compiler:
    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    def condition(self, condition: object, pointer: str, depth: int) -> Predicate:
        """All entries must hold; each is about an attribute, or joins further conditions."""
        if not isinstance(condition, dict):
            raise _wrong(pointer, "a condition is an object")
        if depth > DEPTH_CEILING:
            raise _wrong(pointer, f"conditions nest more than {DEPTH_CEILING} deep")
        return _all([self._entry(key, value, pointer + pointer_to((key,)), depth) for key, value in condition.items()])

    def _entry(self, key: str, value: object, pointer: str, depth: int) -> Predicate:
        if key in {"$or", "$nor", "$and"}:
            if not isinstance(value, list):
                raise _wrong(pointer, f"{key} takes a list of conditions")
            parts = [self.condition(part, f"{pointer}/{place}", depth + 1) for place, part in enumerate(value)]
            if key == "$and":
                return _all(parts)
            either = _any(parts) if parts else _always  # GrowthBook: of no conditions, one holds
            return either if key == "$or" else _not(either)
        if key == "$not":
            return _not(self.condition(value, pointer, depth + 1))
        if key.startswith("$"):
            raise _wrong(pointer, f"{key} is no operator that joins conditions: know $and, $or, $nor and $not")
        test = self.value(value, pointer, depth + 1)
        if "." in key:
            return _Path(key.split("."), test)
        return lambda attributes: test(attributes.get(key))

    def value(self, wanted: object, pointer: str, depth: int) -> Predicate:
        """What an attribute's value must be: operators that must all hold, or a literal that it must equal."""
        if depth > DEPTH_CEILING:
            raise _wrong(pointer, f"conditions nest more than {DEPTH_CEILING} deep")
        if not is_operators(wanted):
            literal = canonical(wanted)
            return lambda value: canonical(value) == literal
        return _all(
            [self._operator(name, operand, pointer + pointer_to((name,)), depth) for name, operand in wanted.items()]
        )

    def _operator(self, name: str, operand: Any, pointer: str, depth: int) -> Predicate:  # noqa: ANN401 - from JSON
        if name in _SIMPLE:
            return _SIMPLE[name](operand)
        if name in _LISTS:
            if not isinstance(operand, list):
                raise _wrong(pointer, f"{name} takes a list")
            return _LISTS[name](operand)
        if name in _PATTERNS:
            return _pattern(name, operand, pointer)
        if name in {"$inGroup", "$notInGroup"}:
            if not isinstance(operand, str) or operand not in self._groups:
                raise _wrong(pointer, f"savedGroups holds no list {operand!r}")
            return (_in if name == "$inGroup" else _not_in)(self._groups[operand])
        if name in {"$all", "$alli"}:
            return self._each(name, operand, pointer, depth)
        if name == "$elemMatch":
            return self._element(operand, pointer, depth)
        if name in {"$not", "$size"}:
            test = self.value(operand, pointer, depth + 1)
            return _not(test) if name == "$not" else lambda value: isinstance(value, list) and test(len(value))
        raise _wrong(pointer, f"{name} is no operator that is known here")

    def _each(self, name: str, operand: object, pointer: str, depth: int) -> Predicate:
        """Whether every wanted value is in the list."""
        if not isinstance(operand, list):
            raise _wrong(pointer, f"{name} takes a list")
        tests: list[Predicate] = []
        for place, wanted in enumerate(operand):
            if name == "$alli" and isinstance(wanted, str):
                tests.append(partial(_same_folded, wanted.lower()))
            else:
                tests.append(self.value(wanted, f"{pointer}/{place}", depth + 1))
        return lambda value: isinstance(value, list) and all(any(map(test, value)) for test in tests)

    def _element(self, operand: object, pointer: str, depth: int) -> Predicate:
        """Whether one element fits: by operators on itself, or by a condition on its fields."""
        joined = isinstance(operand, dict) and any(key in {"$or", "$and", "$nor"} for key in operand)
        if is_operators(operand) and not joined:
            test = self.value(operand, pointer, depth + 1)
        else:
            fields = self.condition(operand, pointer, depth + 1)
            test = lambda element: isinstance(element, dict) and fields(element)  # noqa: E731 - one of two
        return lambda value: isinstance(value, list) and any(test(one) for one in value if one is not None)


class _Path:
    """An attribute by a dotted path; of a list, the indices and the length can be read too."""

    def __init__(self, path: list[str], test: Predicate) -> None:
        self._path = path
        self._test = test

    def __call__(self, attributes: Attributes) -> bool:
        current: object = attributes
        for part in self._path:
            if isinstance(current, Mapping):
                current = current.get(part)
            elif isinstance(current, list) and part == "length":
                current = len(current)
            elif isinstance(current, list) and _is_index(part, len(current)):
                current = current[int(part)]
            else:
                current = None
        return self._test(current)


def is_operators(wanted: object) -> TypeGuard[dict[str, Any]]:
    """Whether a condition's value consists of operators; an empty object does, and holds for everything."""
    return isinstance(wanted, dict) and all(key.startswith("$") for key in wanted)


def canonical(value: object) -> object:
    """A value such that equal ones of the same JSON type, and no others, are equal in Python."""
    if isinstance(value, bool):
        return (bool, value)
    if isinstance(value, list):
        return tuple(map(canonical, value))
    if isinstance(value, dict):
        return (dict, tuple((key, canonical(one)) for key, one in value.items()))
    return value


def padded_version(version: object) -> str:
    """A version such that text order is version order: numbers padded, releases after their pre-releases."""
    if isinstance(version, int | float) and not isinstance(version, bool):
        return _padded(number_text(version) or "0")
    return _padded(version if isinstance(version, str) and version else "0")


@lru_cache(maxsize=1024)
def _padded(version: str) -> str:
    parts = re.split(r"[-.]", re.sub(r"(^v|\+.*$)", "", version))
    if len(parts) == 3:
        parts.append("~")  # after every letter: 1.0.0 comes after 1.0.0-beta
    return "-".join(part.rjust(5) if part.isdigit() else part for part in parts)


def _wrong(pointer: str, detail: str) -> ExperimentsInvalid:
    return ExperimentsInvalid([FieldError(pointer, detail)])


def _is_index(part: str, length: int) -> bool:
    return part.isascii() and part.isdigit() and (part == "0" or part[0] != "0") and int(part) < length


def _all(parts: Sequence[Predicate]) -> Predicate:
    if len(parts) == 1:
        return parts[0]
    return lambda subject: all(part(subject) for part in parts)


def _any(parts: Sequence[Predicate]) -> Predicate:
    return lambda subject: any(part(subject) for part in parts)


def _not(part: Predicate) -> Predicate:
    return lambda subject: not part(subject)


def _always(_subject: object) -> bool:
    return True


def _same_folded(wanted: str, value: object) -> bool:
    return isinstance(value, str) and value.lower() == wanted


def _folded(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _equals(wanted: object) -> Predicate:
    if isinstance(wanted, list | dict):
        return lambda _value: False  # GrowthBook compares these by identity, and no two are one
    literal = canonical(wanted)
    return lambda value: canonical(value) == literal


def _differs(wanted: object) -> Predicate:
    return _not(_equals(wanted))


def _in(wanted: Sequence[object]) -> Predicate:
    scalars = frozenset(canonical(one) for one in wanted if not isinstance(one, list | dict))

    def test(value: object) -> bool:
        if isinstance(value, list):
            return any(canonical(one) in scalars for one in value if not isinstance(one, list | dict))
        return not isinstance(value, dict) and canonical(value) in scalars

    return test


def _not_in(wanted: Sequence[object]) -> Predicate:
    return _not(_in(wanted))


def _in_folded(wanted: Sequence[object]) -> Predicate:
    test = _in([_folded(one) for one in wanted])
    return lambda value: test([_folded(one) for one in value] if isinstance(value, list) else _folded(value))


def _not_in_folded(wanted: Sequence[object]) -> Predicate:
    return _not(_in_folded(wanted))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(compare: Callable[[Any, Any], bool], wanted: object) -> Predicate:
    if _is_number(wanted):
        return lambda value: _is_number(value) and compare(value, wanted)
    if isinstance(wanted, str):
        units = _utf16(wanted)
        return lambda value: isinstance(value, str) and compare(_utf16(value), units)
    return lambda _value: False


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-be", "surrogatepass")  # JavaScript orders texts by these units


def _version_order(compare: Callable[[Any, Any], bool], wanted: object) -> Predicate:
    padded = padded_version(wanted)

    def test(value: object) -> bool:
        if (_is_number(value) and _is_number(wanted)) or (isinstance(value, str) and isinstance(wanted, str)):
            return compare(padded_version(value), padded)
        return compare is operator.ne  # what is no version differs from every one

    return test


def _pattern(name: str, operand: object, pointer: str) -> Predicate:
    flags, found = _PATTERNS[name]
    try:
        pattern = re.compile(operand, flags) if isinstance(operand, str) else None
    except (re.error, RecursionError, OverflowError) as error:
        raise _wrong(pointer, f"{name} takes a regular expression: {error}") from error
    if pattern is None:
        raise _wrong(pointer, f"{name} takes a regular expression")
    return lambda value: (isinstance(value, str) and pattern.search(value) is not None) is found


def _exists(wanted: object) -> Predicate:
    return lambda value: (value is not None) is bool(wanted)


def _type(wanted: object) -> Predicate:
    return lambda value: _type_of(value) == wanted


def _type_of(value: object) -> str:
    if value is None:
        return "null"
    for kinds, name in (
        (bool, "boolean"),
        ((int, float), "number"),
        (str, "string"),
        (list, "array"),
        (dict, "object"),
    ):
        if isinstance(value, kinds):
            return name
    return "unknown"


_SIMPLE: dict[str, Callable[[Any], Predicate]] = {
    "$eq": _equals,
    "$ne": _differs,
    "$lt": partial(_order, operator.lt),
    "$lte": partial(_order, operator.le),
    "$gt": partial(_order, operator.gt),
    "$gte": partial(_order, operator.ge),
    "$veq": partial(_version_order, operator.eq),
    "$vne": partial(_version_order, operator.ne),
    "$vlt": partial(_version_order, operator.lt),
    "$vlte": partial(_version_order, operator.le),
    "$vgt": partial(_version_order, operator.gt),
    "$vgte": partial(_version_order, operator.ge),
    "$exists": _exists,
    "$type": _type,
}
_LISTS: dict[str, Callable[[Sequence[object]], Predicate]] = {
    "$in": _in,
    "$nin": _not_in,
    "$ini": _in_folded,
    "$nini": _not_in_folded,
}
_PATTERNS: dict[str, tuple[re.RegexFlag, bool]] = {
    "$regex": (re.NOFLAG, True),
    "$regexi": (re.IGNORECASE, True),
    "$notRegex": (re.NOFLAG, False),
    "$notRegexi": (re.IGNORECASE, False),
}
