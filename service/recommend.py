"""The path of one request: profile -> item indices -> model input -> engine -> items.

What fails on the way makes the answer a lesser one, and its `degraded` says why (`service.degraded`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice, repeat
from typing import Literal

import numpy as np

from service.context import Context
from service.degraded import Degraded
from service.engine.base import ModelInput, Ranking
from service.engine.ladder import Ladder
from service.errors import DeadlineExceeded, EngineUnavailable, FieldError, RequestInvalid
from service.experiments.arm import NO_ARM, Arm
from service.experiments.assignment import UNASSIGNED, Assignment
from service.filters import Filter, Filters
from service.metrics import Metrics
from service.profile import Profile, Profiles
from service.release.catalogue import Catalogue
from service.release.manifest import ModelEntry
from service.release.release import Release
from service.schemas import (
    ExperimentReport,
    FilterReport,
    HistoryReport,
    RankedItem,
    ReasoningReport,
    RecommendRequest,
    RecommendResponse,
    Step,
)
from service.settings import LimitSettings
from service.store.base import Store

_LAST_SECOND = int(datetime.max.replace(tzinfo=UTC).timestamp())
# More exclusions than these go into a mask over the trie, which is as long however many they are. The graph compares
# each of `exclude` with each candidate, and a batch is padded to its longest: one long list would slow all of it down.
EXCLUDED_SINGLY = 128
_RAREST = 1e-12  # stands for a popularity of zero, whose logarithm JSON cannot hold


@dataclass(frozen=True, slots=True)
class Prepared:
    """One request, ready for the engine."""

    request: RecommendRequest
    model: ModelEntry
    k: int
    profile: Profile
    known: list[int]  # indices of the history's known items, oldest first
    history: HistoryReport
    seen: list[int]  # indices of the history that are not recommended again
    blocked: list[int]  # indices that the request itself excludes
    filter: Filter | None
    input: ModelInput


@dataclass(frozen=True, slots=True)
class Ranked:
    """What an engine answered."""

    items: list[tuple[int, float]]  # index and score, best first
    attention: list[float] | None  # of each reasoning step


class Recommender:
    """Answers requests from one release."""

    def __init__(
        self,
        release: Release,
        filters: Filters,
        store: Store,
        ladder: Ladder,
        limits: LimitSettings,
        metrics: Metrics,
    ) -> None:
        self.release = release
        self._filters = filters
        self._profiles = Profiles(store, release.id)
        self._ladder = ladder
        self._limits = limits
        self._metrics = metrics

    async def recommend(
        self, request: RecommendRequest, context: Context, assignment: Assignment = UNASSIGNED
    ) -> RecommendResponse:
        """Rank items for one user, by the arm that was assigned where the request itself leaves the choice.

        Raises RequestInvalid, UnknownModel, EngineOverloaded or DeadlineExceeded; any other failure yields a labelled,
        lesser answer.
        """
        if context.deadline.left() <= 0:
            raise DeadlineExceeded("the time to answer was up before work on the request began")
        prepared = await self.prepare(request, context, assignment.arm)
        degraded: list[Degraded] = [] if prepared.profile.store_failure is None else [prepared.profile.store_failure]
        ranked: Ranked | None = None
        if prepared.known:
            with context.timings.stage("engine"):
                outcome = await self._ladder.infer(
                    prepared.model.name,
                    prepared.input,
                    context.deadline,
                    lambda ranking: _ranked(ranking, prepared.k, len(self.release.catalogue), prepared.input),
                )
            ranked = outcome.result
            degraded += outcome.reasons
        else:
            degraded.append("no_history")
        return self._response(prepared, ranked, degraded, context, assignment)

    async def prepare(self, request: RecommendRequest, context: Context, arm: Arm = NO_ARM) -> Prepared:
        """Check a request, fetch what is known about its user and build the model's input."""
        model = self.release.model(request.model or arm.model or self.release.manifest.default_model)
        k = self._checked(request, model)
        asked = request.filters
        chosen = None if asked is None else self._filters.resolve(asked.allow, asked.block)
        with context.timings.stage("store"):
            profile = await self._profiles.fetch(
                request.user_id,
                model.reasoning,
                history=request.history is None,
                reasoning=request.reasoning and arm.reasoning is not False,
                steps=request.explain,
                seconds=min(self._limits.store_ms / 1000, context.deadline.left() / 2),
            )
        ids = request.history if request.history is not None else profile.history
        source: Literal["request", "stored", "none"] = (
            "request" if request.history is not None else "stored" if profile.history is not None else "none"
        )
        known = _indices(self.release.catalogue, ids or [])
        distinct = dict.fromkeys(reversed(known))  # the most recent ones first
        context.history_length = len(distinct)
        seen = list(islice(distinct, self._limits.seen))
        blocked = _indices(self.release.catalogue, request.exclude)
        excluded = [*dict.fromkeys(seen + blocked)]
        masking = self._filters.resolve({}, {}) if chosen is None and len(excluded) > EXCLUDED_SINGLY else chosen
        recent = known[-model.history_length :]
        history = np.zeros(model.history_length, np.int64)
        history[model.history_length - len(recent) :] = recent
        return Prepared(
            request=request,
            model=model,
            k=k,
            profile=profile,
            known=known,
            history=HistoryReport(
                source=source, used=len(recent), unknown=len(ids or []) - len(known), excluded=len(seen)
            ),
            seen=seen,
            blocked=blocked,
            filter=chosen,
            input=ModelInput(
                history=history,
                reasoning=profile.reasoning.matrix if profile.reasoning else None,
                # A mask covers what is excluded as well.
                exclude=np.array(excluded if masking is None else [], np.int64),
                allowed=None if masking is None else masking.mask(excluded),
            ),
        )

    def _checked(self, request: RecommendRequest, model: ModelEntry) -> int:
        """The k of a request. Raises RequestInvalid with every bound that it breaks."""
        wrong: list[FieldError] = []
        if request.k is not None and request.k > model.beam:
            wrong.append(FieldError("/k", f"must be between 1 and {model.beam}, the beam of model {model.name}"))
        if request.history is not None and len(request.history) > self._limits.history:
            wrong.append(FieldError("/history", f"must hold at most {self._limits.history} items"))
        if len(request.exclude) > self._limits.exclude:
            wrong.append(FieldError("/exclude", f"must hold at most {self._limits.exclude} items"))
        if wrong:
            raise RequestInvalid(wrong)
        return request.k if request.k is not None else min(self._limits.k, model.beam)

    def _response(
        self,
        prepared: Prepared,
        ranked: Ranked | None,
        degraded: list[Degraded],
        context: Context,
        assignment: Assignment,
    ) -> RecommendResponse:
        catalogue = self.release.catalogue
        chosen = ranked.items if ranked is not None else _popular(catalogue, prepared)
        items = [
            RankedItem(rank=rank, id=item.id, title=item.title, score=score)
            for rank, (item, score) in enumerate(((catalogue.item(index), score) for index, score in chosen), start=1)
        ]
        response = RecommendResponse(
            request_id=context.request_id,
            release=self.release.id,
            model=prepared.model.name,
            source="popular" if ranked is None else "model",
            items=items,
            reasoning=self._reasoning(prepared, ranked, degraded),
            history=prepared.history,
            filters=None if prepared.filter is None else _filter_report(prepared.filter),
            experiments=[
                ExperimentReport(experiment=one.experiment, variation=one.variation, forced=one.forced)
                for one in assignment.experiments
            ],
            holdout=assignment.holdout,
            complete=len(items) == prepared.k,
            degraded=[*degraded],
        )
        self._count(response, prepared)
        context.timings.answered = (
            assignment.label,
            prepared.model.name,
            "none" if ranked is None else "used" if response.reasoning.used else "masked",
        )
        return response

    def _reasoning(self, prepared: Prepared, ranked: Ranked | None, degraded: list[Degraded]) -> ReasoningReport:
        """Report on the reasoning; if no model ranked, the last of `degraded` says why."""
        profile, explain = prepared.profile, prepared.request.explain
        if profile.reasoning is None or ranked is None:
            return ReasoningReport(
                used=False,
                reason=profile.miss or degraded[-1],
                written=None,
                history_length=None,
                age_seconds=None,
                behind=None,
                steps=[] if explain else None,
            )
        # Texts without a step of the template, or steps without a text, are not shown: they explain nothing.
        attention = ranked.attention or repeat(None)
        steps = [
            Step(step=step, text=text, attention=share)
            for step, text, share in zip(self.release.manifest.template, profile.steps, attention, strict=False)
        ]
        return ReasoningReport(
            used=True,
            reason=None,
            written=datetime.fromtimestamp(min(profile.reasoning.written, _LAST_SECOND), UTC),
            history_length=profile.reasoning.history_length,
            age_seconds=profile.age_seconds,
            behind=profile.behind,
            steps=steps if explain else None,
        )

    def _count(self, response: RecommendResponse, prepared: Prepared) -> None:
        if prepared.profile.miss is not None:
            self._metrics.reasoning_missed(prepared.profile.miss)
        if prepared.profile.history_miss is not None:
            self._metrics.history_missed(prepared.profile.history_miss)
        if prepared.history.unknown:
            self._metrics.unknown_items(prepared.history.unknown)
        for reason in response.degraded:
            self._metrics.degraded(reason)


def _indices(catalogue: Catalogue, ids: Iterable[str]) -> list[int]:
    """Model indices of the ids that the catalogue holds, in their order."""
    return [index for index in map(catalogue.index_of, ids) if index is not None]


def _ranked(ranking: Ranking, k: int, items: int, asked: ModelInput) -> Ranked:
    """The best k valid items with their scores. Raises EngineUnavailable if the model returned what cannot be."""
    best = [
        (index, score)
        for index, score, valid in zip(
            ranking.items.tolist(), ranking.scores.tolist(), ranking.valid.tolist(), strict=True
        )
        if valid
    ][:k]
    if not all(1 <= index <= items and math.isfinite(score) for index, score in best):
        raise EngineUnavailable("the model returned an item that is not in the catalogue, or a score that is no number")
    if not best and (len(asked.exclude) < items if asked.allowed is None else asked.allowed.any()):
        # The graph takes scores that are no numbers for items that are not there.
        raise EngineUnavailable("the model returned nothing although items are left")
    return Ranked(
        best, None if ranking.attention is None else [round(share, 4) for share in ranking.attention.tolist()]
    )


def _filter_report(chosen: Filter) -> FilterReport:
    return FilterReport(eligible=chosen.eligible, unknown=[f"{column}={value}" for column, value in chosen.unknown])


def _popular(catalogue: Catalogue, prepared: Prepared) -> list[tuple[int, float]]:
    """Popular items that may be recommended, scored by the logarithm of their share of interactions."""
    seen, filtered = {*prepared.seen, *prepared.blocked}, prepared.filter
    eligible, few = (None, None) if filtered is None else (filtered.passes, filtered.few)
    chosen = catalogue.popular(prepared.k, seen, eligible, few)
    return [(index, math.log(max(float(catalogue.popularity[index - 1]), _RAREST))) for index in chosen]
