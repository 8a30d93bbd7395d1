"""Who gets which arm: a pure function of the experiments, the user id and the request's attributes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Generic, TypeVar

from service.errors import ExperimentsInvalid, FieldError, HeaderInvalid
from service.experiments.arm import NO_ARM, Arm
from service.experiments.format import HOLDOUT, SHADOW, Feature, Payload, Range, Rule, Variation, feature_pointer, parse
from service.experiments.hashing import Bucketer, hashable_text
from service.experiments.targeting import Groups, Predicate, compile_condition

V = TypeVar("V")

FORCE_HEADER = "x-scoter-arm"
LABEL_CEILING = 64  # combinations of variations that get a label of their own
NOTHING_FORCED: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Assigned:
    """A user's part in one experiment. Who is not in an experiment has none."""

    experiment: str
    variation: str
    weight: float  # the variation's share of the users in the experiment; 0 if forced
    bucket: float | None  # the hash that decided, in [0, 1); None if forced
    forced: bool


@dataclass(frozen=True, slots=True)
class Assignment:
    """What experiments say about one request."""

    arm: Arm
    experiments: tuple[Assigned, ...]
    shadow: tuple[Arm, ...]  # to be computed and logged, never returned
    holdout: bool  # kept out of every experiment
    label: str  # for metrics: few values, whatever the users


UNASSIGNED = Assignment(NO_ARM, (), (), holdout=False, label="default")


class Experiments:
    """Compiled experiments. Assignment needs no lock and no clock, and is the same in every process that reads them."""

    def __init__(self, payload: Payload, version: str) -> None:
        """Compile a payload. Raises ExperimentsInvalid with the place of every condition that is none."""
        self.version = version
        self._models = payload.models()
        draft = _Draft(payload.groups)
        self._features = [_Feature(key, feature, draft) for key, feature in payload.arms.items()]
        holdout, shadow = payload.prefix + HOLDOUT, payload.prefix + SHADOW
        self._holdout: _Feature[bool] | None = None
        if payload.holdout is not None:
            self._holdout = _Feature(holdout, payload.holdout, draft)
        self._shadow: _Feature[tuple[Arm, ...]] | None = None
        if payload.shadow is not None:
            self._shadow = _Feature(shadow, payload.shadow, draft)
        if draft.wrong:
            raise ExperimentsInvalid(draft.wrong)
        self.variations: dict[str, tuple[str, ...]] = {}  # keys of each experiment's variations
        for feature in self._features:
            for rule in feature.rules:
                if rule.keys:
                    self.variations.setdefault(rule.experiment, rule.keys)
        self._spelt_out = prod(len(keys) + 1 for keys in self.variations.values()) <= LABEL_CEILING
        self._arms: dict[tuple[str | None, str | None, bool | None], Arm] = {}
        self._labels: dict[tuple[str, ...], str] = {}

    @classmethod
    def read(cls, content: bytes, prefix: str = "") -> Experiments:
        """Experiments from a file's content. Raises ExperimentsInvalid."""
        return cls(parse(content, prefix), hashlib.sha256(content).hexdigest()[:12])

    @classmethod
    def none(cls) -> Experiments:
        """No experiment: everybody gets the default."""
        return cls(Payload("", {}, None, None, {}), "none")

    def check(self, models: Collection[str]) -> None:
        """Raises ExperimentsInvalid with every place that names a model which is not among `models`."""
        wrong = [
            FieldError(place, f"the release holds no model {model!r}, only {', '.join(sorted(models))}")
            for place, model in self._models
            if model not in models
        ]
        if wrong:
            raise ExperimentsInvalid(wrong)

    def forced(self, header: str) -> dict[str, str]:
        """The variations that `experiment=variation, ...` asks for. Raises HeaderInvalid if there is no such one."""
        wanted: dict[str, str] = {}
        for part in filter(None, map(str.strip, header.split(","))):
            experiment, _, variation = (piece.strip() for piece in part.partition("="))
            known = self.variations.get(experiment)
            if known is None:
                names = ", ".join(self.variations) or "none"
                raise HeaderInvalid(f"{FORCE_HEADER}: no experiment {experiment[:128]!r}; there are: {names}")
            if variation not in known:
                names = ", ".join(known)
                raise HeaderInvalid(
                    f"{FORCE_HEADER}: experiment {experiment!r} has no variation {variation[:128]!r}, only {names}"
                )
            wanted[experiment] = variation
        return wanted

    def assign(
        self, user_id: str, attributes: Mapping[str, object], forced: Mapping[str, str] = NOTHING_FORCED
    ) -> Assignment:
        """Assign a request. Attributes may hold anything: what a condition cannot read does not meet it.

        The user id is attribute `id` (GrowthBook's name) and `user_id`, whatever the request says these are. A forced
        variation wins over targeting, traffic share and holdout; one that does not exist is passed over.
        """
        known = _known(user_id, attributes)
        holdout = self._held(known)
        assigned: list[Assigned] = []
        name: str | None = None
        model: str | None = None
        reasoning: bool | None = None
        for feature in self._features:
            arm = feature.default if holdout and not forced else feature.settle(known, forced, assigned, held=holdout)
            if arm is not None:
                name = arm.name if arm.name is not None else name
                model = arm.model if arm.model is not None else model
                reasoning = arm.reasoning if arm.reasoning is not None else reasoning
        merged = self._arms.get((name, model, reasoning))
        if merged is None:
            merged = self._arms[name, model, reasoning] = Arm(name=name, model=model, reasoning=reasoning)
        shadow = () if self._shadow is None else self._shadow.settle(known, {}, None) or ()
        return Assignment(merged, tuple(assigned), shadow, holdout, self._label(assigned, holdout=holdout))

    def pinned(self, user_id: str, attributes: Mapping[str, object]) -> Assignment:
        """What there is to say about a request that itself decides how it is ranked: no experiment may count it.

        Whether its user is held out is said all the same. It is a property of the user: who is held out and says
        otherwise now and then would look like someone who changed sides.
        """
        return replace(UNASSIGNED, holdout=self._held(_known(user_id, attributes)), label="request")

    def _held(self, known: Mapping[str, object]) -> bool:
        return self._holdout is not None and self._holdout.settle(known, {}, None) is True

    def _label(self, assigned: list[Assigned], *, holdout: bool) -> str:
        if any(one.forced for one in assigned):
            return "forced"
        if not assigned:
            return "holdout" if holdout else "default"
        if len(assigned) > 1 and not self._spelt_out:
            return "several"
        key = tuple(part for one in assigned for part in (one.experiment, one.variation))
        label = self._labels.get(key)
        if label is None:
            label = self._labels[key] = "+".join(f"{one.experiment}={one.variation}" for one in assigned)
        return label


class _Draft:
    """What the parts of one set of experiments share while they are compiled."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.wrong: list[FieldError] = []
        self._bucketers: dict[tuple[str, int], Bucketer] = {}

    def bucketer(self, seed: str, version: int) -> Bucketer:
        """The one Bucketer of a seed and version."""
        return self._bucketers.setdefault((seed, version), Bucketer(seed, version))


class _Feature(Generic[V]):
    def __init__(self, key: str, feature: Feature[V], draft: _Draft) -> None:
        self.default = feature.defaultValue
        self.rules: list[_Rule[V]] = []
        for number, rule in enumerate(feature.rules):
            try:
                self.rules.append(_Rule(key, rule, draft, f"{feature_pointer(key)}/rules/{number}"))
            except ExperimentsInvalid as error:
                draft.wrong += error.fields

    def settle(
        self,
        known: Mapping[str, object],
        forced: Mapping[str, str],
        assigned: list[Assigned] | None,  # takes the parts in experiments; None: nobody asks
        *,
        held: bool = False,  # in the holdout: only what is forced applies
    ) -> V | None:
        """The value for one request."""
        if forced:
            for rule in self.rules:
                number = rule.number_of(forced.get(rule.experiment))
                if number is not None and rule.values is not None:
                    _note(assigned, rule.forced[number])
                    return rule.values[number]
        if held:
            return self.default
        for rule in self.rules:
            if not rule.admits(known):
                continue
            if rule.values is None:
                if rule.rolled_out(known):
                    return rule.value
                continue
            number, bucket = rule.draw(known)
            if number is None:
                continue
            if assigned is not None:
                _note(assigned, Assigned(rule.experiment, rule.keys[number], rule.weights[number], bucket, False))  # noqa: FBT003
            if not rule.passes[number]:
                return rule.values[number]
        return self.default


class _Rule(Generic[V]):
    def __init__(self, feature: str, rule: Rule[V], draft: _Draft, pointer: str) -> None:
        self._condition: Predicate | None = None
        if rule.condition:
            self._condition = compile_condition(rule.condition, draft.groups, f"{pointer}/condition")
        self._filters = [
            (draft.bucketer(one.seed, one.hashVersion), one.attribute, tuple(one.ranges)) for one in rule.filters or ()
        ]
        self._attribute = rule.hashAttribute
        self._fallback = rule.fallbackAttribute
        self.experiment = rule.key or feature
        self.value = rule.force
        # GrowthBook lets `force` win over `variations`.
        self.values = rule.variations if rule.force is None else None
        self._coverage, self._range = rule.coverage, rule.range
        seed = rule.seed or (feature if self.values is None else self.experiment)
        self._bucketer = draft.bucketer(seed, rule.hashVersion or 1)
        self._namespace: tuple[Bucketer, float, float] | None = None
        if rule.namespace is not None and not rule.filters:
            space, low, high = rule.namespace
            self._namespace = (draft.bucketer(f"__{space}", 1), low, high)
        self._ranges: list[Range] = [] if self.values is None else rule.bucket_ranges()
        # Weights may add up to a little more than 1, and nobody's bucket lies beyond it.
        shares = [min(high, 1.0) - min(low, 1.0) for low, high in self._ranges]
        self.weights = [round(share / sum(shares), 6) if share else 0.0 for share in shares]
        self.keys = () if self.values is None else tuple(rule.variation_keys())
        self.passes = [one.passthrough for one in rule.meta or [Variation()] * len(self.keys)]
        self.forced = [Assigned(self.experiment, key, 0.0, None, forced=True) for key in self.keys]

    def number_of(self, variation: str | None) -> int | None:
        """The place of a variation by its key."""
        return self.keys.index(variation) if variation in self.keys else None

    def admits(self, known: Mapping[str, object]) -> bool:
        """Whether the rule is about such a request."""
        if self._condition is not None:
            try:
                if not self._condition(known):
                    return False
            except Exception:  # noqa: BLE001 - attributes may hold anything, and what cannot be compared meets nothing
                return False
        for bucketer, attribute, ranges in self._filters:
            value = hashable_text(known.get(attribute))
            if not value:
                return False
            bucket = bucketer.bucket(value)
            if not any(low <= bucket < high for low, high in ranges):
                return False
        return True

    def rolled_out(self, known: Mapping[str, object]) -> bool:
        """Whether the user is within the share that gets `force`."""
        if self._coverage is None and self._range is None:
            return True
        if self._coverage == 0 and self._range is None:
            return False
        value = hashable_text(known.get(self._attribute))
        if not value and self._fallback:
            value = hashable_text(known.get(self._fallback))
        if not value:
            return False
        bucket = self._bucketer.bucket(value)
        if self._range is not None:
            return self._range[0] <= bucket < self._range[1]
        return self._coverage is None or bucket < self._coverage

    def draw(self, known: Mapping[str, object]) -> tuple[int | None, float]:
        """The variation that the user's hash draws, None outside the traffic share, and the bucket."""
        value = hashable_text(known.get(self._attribute))
        if not value:
            return None, 0.0
        if self._namespace is not None:
            bucketer, low, high = self._namespace
            if not low <= bucketer.bucket(value) < high:
                return None, 0.0
        bucket = self._bucketer.bucket(value)
        for number, (low, high) in enumerate(self._ranges):
            if low <= bucket < high:
                return number, bucket
        return None, bucket


def _known(user_id: str, attributes: Mapping[str, object]) -> dict[str, object]:
    return {**attributes, "id": user_id, "user_id": user_id}


def _note(assigned: list[Assigned] | None, one: Assigned) -> None:
    # Features that share an experiment put a user into the same variation: it is noted once.
    if assigned is not None and not any(before.experiment == one.experiment for before in assigned):
        assigned.append(one)
