"""What the project set out to reach, and how far it got: history masked, labels of the training split alone."""

from __future__ import annotations

from dataclasses import dataclass

from offline.results.lines import Line, Lines, compare, gain, ranked, repeated, shared
from offline.results.markdown import chance, decimals, mixed

# R@10 of the paper's SCoTER-H over its HSTU (Table 1).
LIFT = {"beauty": 0.2763, "sports": 0.3190}
LIFTS = "lifts"  # the plot of them


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the table; `ours` is empty where there is no run."""

    what: str
    wanted: str
    ours: str
    verdict: str


def targets(lines: Lines) -> list[Target]:
    """All of them, in the order of the issue."""
    return [
        _reached(lines, "hstu", "recall@10", 0.0930),
        _reached(lines, "hstu", "ndcg@10", 0.0531),
        _reached(lines, "scoter_h", "recall@10", 0.1187),
        *(_lift(lines, dataset, wanted) for dataset, wanted in LIFT.items()),
        *(_gone(lines, dataset) for dataset in LIFT),
    ]


def _reached(lines: Lines, model: str, metric: str, wanted: float) -> Target:
    name = {"hstu": "HSTU", "scoter_h": "SCoTER-H"}[model]
    what, told = (
        f"{name} on beauty, {metric.replace('recall', 'Recall').replace('ndcg', 'NDCG')}",
        f"≥ {decimals(wanted)}",
    )
    best = _best(lines.full("beauty", model), metric)
    if best is None:
        return Target(what, told, "", "not measured yet")
    ours = best.mean(metric)
    verdict = "met" if ours >= wanted else f"missed by {decimals(wanted - ours)} ({(wanted - ours) / wanted:.1%})"
    return Target(what, told, f"{decimals(ours)} ({_made(lines, best)})", verdict)


def _lift(lines: Lines, dataset: str, wanted: float) -> Target:
    what, told = f"SCoTER-H over its own HSTU on {dataset}, relative Recall@10", f"≥ +{wanted:.1%}"
    found = _lifted(lines, dataset)
    if found is None:
        return Target(what, told, "", "not measured yet")
    line, ours = found
    verdict = "met" if ours >= wanted else f"missed by {(wanted - ours) * 100:.1f} points"
    return Target(what, told, f"{ours:+.1%} ({_made(lines, line)})", verdict)


def _lifted(lines: Lines, dataset: str) -> tuple[Line, float] | None:
    """The model with the largest lift over its own backbone, and that lift."""
    pairs = [(line, lines.backbone(line)) for line in repeated(lines.full(dataset, "scoter_h"))]
    lifts = [(line, gain(line, other)) for line, other in pairs if other is not None]
    return max(lifts, key=lambda lift: lift[1], default=None)


def _gone(lines: Lines, dataset: str) -> Target:
    """The control of the model whose lift stands above; where there is none, those of others, called so."""
    what, told = f"that lift with another user's H, on {dataset}", "gone: no gain at 5 %"
    shuffled = sorted(lines.having(dataset, "scoter_h", "shuffled"), key=lambda line: lines.ways.letters(line.setting))
    if not shuffled:
        return Target(what, told, "", "not measured yet")
    lifted = _lifted(lines, dataset)
    own = [line for line in shuffled if lifted is not None and line.setting.base == lifted[0].setting.base]
    if own or lifted is None:
        return Target(what, told, *_control(lines, (own or shuffled)[-1]))
    found = [(lines.ways.letters(line.setting), *_control(lines, line)) for line in shuffled]
    verdicts: dict[str, dict[str, None]] = {}
    for letters, _, verdict in found:
        verdicts.setdefault(verdict, {})[letters] = None
    ours = f"not measured for {lines.ways.letters(lifted[0].setting)}; {found[-1][1]}"
    return Target(what, told, ours, "; ".join(f"for {', '.join(who)}: {verdict}" for verdict, who in verdicts.items()))


def _control(lines: Lines, shuffled: Line) -> tuple[str, str]:
    """What is left of the lift over its backbone with another user's H, beside the lift on that draw; the verdict."""
    backbone = lines.backbone(shuffled)
    found = compare(shuffled, backbone) if backbone is not None else None
    if found is None or backbone is None:
        return decimals(shuffled.mean("recall@10")), "cannot be told: its backbone's ranks are missing"
    verdict = "met" if found.p > 0.05 or found.value <= 0 else "not met: a lift stays"
    made = _made(lines, shuffled.among(ranked(shuffled, backbone)))
    return f"{found.relative:+.1%}, p {chance(found.p)} ({made}{_own(lines, shuffled)})", verdict


def _own(lines: Lines, shuffled: Line) -> str:
    """What each user's own H is worth on the draws of a control, of which the lift has more; empty if not measured."""
    wholes = lines.full(shuffled.dataset, shuffled.setting.model)
    whole = next((line for line in wholes if line.setting.base == shuffled.setting.base), None)
    draws = shared([whole, shuffled]) if whole is not None else []
    backbone = lines.backbone(shuffled)
    if whole is None or backbone is None or not draws:
        return ""
    found = compare(whole.among(draws), backbone)
    return "" if found is None else f", where their own has {found.relative:+.1%}, p {chance(found.p)}"


def _best(found: list[Line], metric: str) -> Line | None:
    return max(repeated(found), key=lambda line: line.mean(metric), default=None)


def _made(lines: Lines, line: Line) -> str:
    """In which way, and how often: the best of several lines stands here."""
    runs = f"{line.trainings} run" + ("s" if line.trainings > 1 else "")
    return f"{lines.ways.letters(line.setting)}; {runs}{mixed(line)}"
