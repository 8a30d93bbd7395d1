"""GrowthBook's feature format, as far as it can be honoured here; what cannot be is refused, not passed over.

    {"features": {KEY: {"defaultValue": ARM, "rules": [RULE, ...]}}, "savedGroups": {ID: [VALUE, ...]}}

Two keys have a meaning of their own: `holdout`, whose value is true for users kept out of every experiment, and
`shadow`, whose value is a list of arms to compute and log but never to return. Every other feature's value is an arm.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import ExperimentsInvalid, FieldError, pointer_to
from service.experiments.arm import Arm, ShortText

HOLDOUT = "holdout"
SHADOW = "shadow"
WEIGHT_TOLERANCE = 0.01  # GrowthBook's: weights that add up to less or more are none to it
SHADOW_CEILING = 4  # each is an inference on top of the answer's own

ShadowArms = Annotated[tuple[Arm, ...], Field(max_length=SHADOW_CEILING)]

V = TypeVar("V")
Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[Share, Share]
Scalar = str | float | bool | None


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Variation(_Part):
    """What a variation is called. With `passthrough` the user is counted and the next rule decides."""

    key: ShortText | None = None
    name: str | None = None
    passthrough: bool = False


class Filter(_Part):
    """Who may enter: users whose bucket under `seed` lies in one of `ranges`."""

    ranges: list[Range]
    seed: str = ""
    hashVersion: Literal[1, 2] = 2  # noqa: N815 - the format's names
    attribute: str = "id"

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        _upright(self.ranges)
        return self


class Rule(_Part, Generic[V]):
    """One rule of a feature: `force`, a value for a share of users, or an experiment between `variations`."""

    # Who may meet this rule.
    condition: dict[str, Any] | None = None
    filters: list[Filter] | None = None
    namespace: tuple[str, Share, Share] | None = None
    coverage: Share | None = None
    # How users are told apart.
    hashAttribute: str = "id"  # noqa: N815
    fallbackAttribute: str | None = None  # noqa: N815 - read for `force` alone, as by GrowthBook without sticky buckets
    hashVersion: Literal[1, 2] | None = None  # noqa: N815 - None is 1
    seed: str | None = None
    # What they get.
    force: V | None = None
    range: Range | None = None
    key: ShortText | None = None
    variations: Annotated[list[V], Field(min_length=2, max_length=20)] | None = None
    weights: list[Share] | None = None
    ranges: list[Range] | None = None
    meta: list[Variation] | None = None
    # For people, and for what GrowthBook does elsewhere: sticky buckets need a store of their own.
    id: str | None = None
    name: str | None = None
    phase: str | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None
    disableStickyBucketing: bool | None = None  # noqa: N815
    bucketVersion: int | None = None  # noqa: N815
    minBucketVersion: int | None = None  # noqa: N815

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if self.force is None and self.variations is None:
            raise ValueError("needs `force` or `variations`")
        _upright([*(self.ranges or ()), *([self.range] if self.range else ())])
        if self.namespace is not None:
            _upright([self.namespace[1:]])
        if self.variations is None:
            return self
        for name, given in (("weights", self.weights), ("ranges", self.ranges), ("meta", self.meta)):
            if given is not None and len(given) != len(self.variations):
                raise ValueError(f"{len(self.variations)} variations, but {len(given)} {name}")
        if self.weights is not None and abs(sum(self.weights) - 1) > WEIGHT_TOLERANCE:
            raise ValueError(f"the weights add up to {sum(self.weights):g}, not to 1")
        if any(before[1] > after[0] for before, after in pairwise(sorted(self.ranges or ()))):
            raise ValueError("the ranges overlap")
        if twice := [key for key, count in Counter(self.variation_keys()).items() if count > 1]:
            raise ValueError(f"two variations are called {twice[0]!r}")
        return self

    def variation_keys(self) -> list[str]:
        """Keys of the variations: those in `meta`, or else their numbers."""
        metas = self.meta or [Variation()] * len(self.variations or ())
        return [meta.key or str(number) for number, meta in enumerate(metas)]

    def bucket_ranges(self) -> list[Range]:
        """The buckets of each variation."""
        if self.ranges is not None:
            return self.ranges
        count = len(self.variations or ())
        weights = self.weights if self.weights is not None else [1 / count] * count
        coverage = 1.0 if self.coverage is None else self.coverage
        ranges: list[Range] = []
        start = 0.0
        for weight in weights:
            ranges.append((start, start + coverage * weight))
            start += weight
        return ranges


def _upright(ranges: list[Range]) -> None:
    """Raises ValueError if a range ends before it begins: nobody would be in it."""
    for low, high in ranges:
        if low > high:
            raise ValueError(f"the range [{low}, {high}] is upside down")


class Feature(_Part, Generic[V]):
    """A value, and the rules that give some users another; the first rule that applies decides."""

    defaultValue: V | None = None  # noqa: N815
    rules: list[Rule[V]] = []
    description: str | None = None
    metadata: dict[str, Any] | None = None


class _List(_Part):
    type: Literal["list"]
    values: list[Scalar]
    attributeKey: str | None = None  # noqa: N815


class _Envelope(BaseModel):
    # What else GrowthBook sends beside the features is not about us.
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    features: dict[str, dict[str, Any]]
    savedGroups: dict[str, list[Scalar] | _List] | None = None  # noqa: N815


@dataclass(frozen=True, slots=True)
class Payload:
    """All features of ours, by key, in the order of the file."""

    prefix: str
    arms: dict[str, Feature[Arm]]
    holdout: Feature[bool] | None
    shadow: Feature[tuple[Arm, ...]] | None
    groups: dict[str, list[Scalar]]

    def models(self) -> list[tuple[str, str]]:
        """Every model that an arm names, after the pointer to where it does."""
        found: list[tuple[str, str]] = []
        for key, feature in self.arms.items():
            for place, arm in _values(feature, feature_pointer(key)):
                found += _named(place, arm)
        if self.shadow is not None:
            for place, arms in _values(self.shadow, feature_pointer(self.prefix + SHADOW)):
                for number, arm in enumerate(arms):
                    found += _named(f"{place}/{number}", arm)
        return found


def parse(content: bytes, prefix: str = "") -> Payload:
    """The features whose key begins with `prefix`. Raises ExperimentsInvalid with every place that is wrong."""
    wrong: list[FieldError] = []
    envelope = _validated(_Envelope, _json(content), "", wrong)
    if envelope is None:
        raise ExperimentsInvalid(wrong)
    arms: dict[str, Feature[Arm]] = {}
    holdout: Feature[bool] | None = None
    shadow: Feature[tuple[Arm, ...]] | None = None
    for key, feature in envelope.features.items():
        pointer = feature_pointer(key)
        if not key.startswith(prefix):
            continue
        if key == prefix + HOLDOUT:
            holdout = _validated(Feature[bool], feature, pointer, wrong)
        elif key == prefix + SHADOW:
            shadow = _validated(Feature[ShadowArms], feature, pointer, wrong)
        elif arm := _validated(Feature[Arm], feature, pointer, wrong):
            arms[key] = arm
    wrong += _disagreements(arms)
    if wrong:
        raise ExperimentsInvalid(wrong)
    groups = {
        key: group if isinstance(group, list) else group.values for key, group in (envelope.savedGroups or {}).items()
    }
    return Payload(prefix, arms, holdout, shadow, groups)


def feature_pointer(key: str) -> str:
    """The JSON pointer (RFC 6901) to a feature."""
    return "/features" + pointer_to((key,))


M = TypeVar("M", bound=BaseModel)


def _json(content: bytes) -> object:
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        raw: object = json.loads(content, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # JSONDecodeError says line and column
        raise ExperimentsInvalid([FieldError("", f"not JSON in UTF-8: {error}")]) from error
    if repeated:
        raise ExperimentsInvalid([FieldError("", f"the key {repeated[0]!r} stands twice in one object")])
    if isinstance(raw, dict) and "encryptedFeatures" in raw:
        detail = "encrypted payloads are not read: turn encryption off for this SDK connection"
        raise ExperimentsInvalid([FieldError("/encryptedFeatures", detail)])
    return raw


def _validated(kind: type[M], raw: object, pointer: str, wrong: list[FieldError]) -> M | None:
    try:
        # As JSON once more: read strictly, its arrays are tuples, and its integers are numbers too.
        return kind.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        wrong += [
            FieldError(pointer + pointer_to(one["loc"]), one["msg"].removeprefix("Value error, "))
            for one in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        return None


def _disagreements(arms: dict[str, Feature[Arm]]) -> list[FieldError]:
    """Rules that bear one experiment's name and would yet put a user into different variations of it."""
    first: dict[str, tuple[str, object]] = {}
    wrong: list[FieldError] = []
    for key, feature in arms.items():
        for number, rule in enumerate(feature.rules):
            if rule.variations is None:
                continue
            name = rule.key or key
            place = f"{feature_pointer(key)}/rules/{number}"
            version = rule.hashVersion or 1
            cut = (rule.variation_keys(), rule.bucket_ranges(), rule.seed or name, version, rule.hashAttribute)
            where, before = first.setdefault(name, (place, cut))
            if cut != before:
                detail = f"experiment {name!r} divides users otherwise than at {where}: give it another key"
                wrong.append(FieldError(place, detail))
    return wrong


def _values(feature: Feature[V], pointer: str) -> Iterator[tuple[str, V]]:
    if feature.defaultValue is not None:
        yield f"{pointer}/defaultValue", feature.defaultValue
    for number, rule in enumerate(feature.rules):
        if rule.force is not None:
            yield f"{pointer}/rules/{number}/force", rule.force
        for place, value in enumerate(rule.variations or ()):
            yield f"{pointer}/rules/{number}/variations/{place}", value


def _named(place: str, arm: Arm) -> list[tuple[str, str]]:
    return [] if arm.model is None else [(f"{place}/model", arm.model)]
