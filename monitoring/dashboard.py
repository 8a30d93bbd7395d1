"""The Grafana dashboard, as a table of rows and panels. Add a panel to ROWS and run `make monitoring`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard, stat, timeseries
from grafana_foundation_sdk.builders.common import GraphThresholdsStyleConfig, VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, Threshold, ThresholdsMode

from monitoring.objectives import FAULTS, SERVER_ERRORS, WITHIN
from service.metrics import SLO_SECONDS

UID = "scoter-serving"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WINDOW = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `queries` maps a legend to PromQL; `unit` is Grafana's (s, percentunit, reqps, short, ...)."""

    title: str
    unit: str
    queries: dict[str, str]
    about: str = ""
    threshold: float | None = None  # drawn as a line
    number: bool = False  # the last value instead of a graph


def rate(metric: str, by: str = "", where: str = "") -> str:
    """PromQL: a counter's increase per second, summed."""
    grouped = f" by ({by})" if by else ""
    selected = f"{{{where}}}" if where else ""
    return f"sum{grouped} (rate({metric}{selected}[{WINDOW}]))"


def share(part: str, whole: str) -> str:
    """PromQL: `part` of `whole`; no data while there is no traffic."""
    return f"({part}) / {whole}"


def events(metric: str, by: str = "", where: str = "") -> str:
    """PromQL: like `rate`, but a flat zero instead of an empty panel when nothing of the kind ever happened."""
    return f"{rate(metric, by, where)} or on() vector(0)"


def quantile(q: float, histogram: str, by: str = "") -> str:
    """PromQL: a quantile of a histogram, per value of the labels `by`."""
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', f'le, {by}' if by else 'le')})"


REQUESTS = "scoter_request_seconds"
REASONED = 'reasoning="used"'
ANSWERS = rate(f"{REQUESTS}_count")
ASKED = rate("scoter_recommendations_total")

ROWS: dict[str, list[Panel]] = {
    "At a glance": [
        Panel(
            f"Ready within {SLO_SECONDS * 1000:.0f} ms",
            "percentunit",
            {"": share(rate(f"{REQUESTS}_bucket", where=WITHIN), ANSWERS)},
            "Share of recommendations inside the objective.",
            number=True,
        ),
        Panel("Recommendations per second", "reqps", {"": ASKED}, number=True),
        Panel(
            "Server errors",
            "percentunit",
            {"": share(events("scoter_recommendations_total", where=SERVER_ERRORS), ASKED)},
            "Share of recommendations that met a 5xx, alone or in a batch, being turned away included.",
            number=True,
        ),
        Panel(
            "Degraded by a fault",
            "percentunit",
            {"": share(events("scoter_degraded_total", where=FAULTS), ANSWERS)},
            "Share of answers made worse by a part that failed; users without any history are not counted.",
            number=True,
        ),
        Panel(
            "Reasoning used",
            "percentunit",
            {"": share(events(f"{REQUESTS}_count", where=REASONED), ANSWERS)},
            number=True,
        ),
        Panel("Replicas by release", "short", {"{{release}}": "count by (release) (scoter_release_info)"}, number=True),
    ],
    "Latency": [
        Panel(
            "Time to answer",
            "s",
            {"p50": quantile(0.5, REQUESTS), "p95": quantile(0.95, REQUESTS), "p99": quantile(0.99, REQUESTS)},
            threshold=SLO_SECONDS,
        ),
        Panel(
            "p99 by arm and model",
            "s",
            {"{{arm}} {{model}}": quantile(0.99, REQUESTS, "arm, model")},
            threshold=SLO_SECONDS,
        ),
        Panel(
            f"Ready within {SLO_SECONDS * 1000:.0f} ms, by arm",
            "percentunit",
            {"{{arm}}": share(rate(f"{REQUESTS}_bucket", "arm", WITHIN), rate(f"{REQUESTS}_count", "arm"))},
        ),
        Panel("p50 by stage", "s", {"{{stage}}": quantile(0.5, "scoter_stage_seconds", "stage")}),
        Panel("p95 by stage", "s", {"{{stage}}": quantile(0.95, "scoter_stage_seconds", "stage")}),
        Panel("p99 by stage", "s", {"{{stage}}": quantile(0.99, "scoter_stage_seconds", "stage")}),
    ],
    "Responses": [
        Panel("Recommendations by status", "reqps", {"{{status}}": rate("scoter_recommendations_total", "status")}),
        Panel(
            "Errors by route and status",
            "reqps",
            {"{{route}} {{status}}": events("scoter_responses_total", "route, status", 'status=~"[45].."')},
        ),
        Panel(
            "Turned away, and callers who left",
            "reqps",
            {
                "{{reason}}": events("scoter_refused_total", "reason"),
                "caller left": events("scoter_callers_gone_total"),
            },
            "`overloaded`: more requests at once than allowed. `deadline`: no time left to rank.",
        ),
    ],
    "Reasoning and degradation": [
        Panel("Degradations by reason", "reqps", {"{{reason}}": events("scoter_degraded_total", "reason")}),
        Panel(
            "Reasoning used, by arm",
            "percentunit",
            # An arm that never used any has no such series: it is at 0 %, not gone.
            {
                "{{arm}}": share(
                    f"{rate(f'{REQUESTS}_count', 'arm', REASONED)} or 0 * {rate(f'{REQUESTS}_count', 'arm')}",
                    rate(f"{REQUESTS}_count", "arm"),
                )
            },
        ),
        Panel(
            "Answers without reasoning, by reason",
            "reqps",
            {"{{reason}}": events("scoter_reasoning_misses_total", "reason")},
        ),
        Panel(
            "History items that the catalogue does not hold",
            "short",
            {"items per second": events("scoter_unknown_history_items_total")},
            "A rise after a release: the catalogue lost items that users still have in their history.",
        ),
    ],
    "Engine": [
        Panel(
            "Requests run together",
            "short",
            {
                "mean {{model}}": " or ".join(
                    share(rate(requests, "model"), rate(runs, "model"))
                    for requests, runs in (
                        ("scoter_engine_batch_requests_sum", "scoter_engine_batch_requests_count"),
                        ("nv_inference_count", "nv_inference_exec_count"),
                    )
                ),
                "p95 {{model}}": quantile(0.95, "scoter_engine_batch_requests", "model"),
            },
            "By models in the service's own process, and by those of Triton, which tells their mean alone.",
        ),
        Panel(
            "Waiting and at work",
            "short",
            {
                "waiting for inference": "sum(scoter_engine_queue_requests)",
                "being answered": "sum(scoter_answering_requests) or vector(0)",
            },
        ),
        Panel(
            "Open circuit breakers",
            "short",
            {"replicas": "count(scoter_breakers_open > 0) or vector(0)"},
            "Replicas that leave an engine alone because it failed repeatedly, and use the next rung of the ladder.",
        ),
    ],
    "Releases and experiments": [
        Panel(
            "Replicas by release",
            "short",
            {"{{release}} {{dataset}}": "count by (release, dataset) (scoter_release_info)"},
        ),
        Panel("Swaps by outcome", "reqps", {"{{outcome}}": events("scoter_swaps_total", "outcome")}),
        Panel(
            "Looks at the experiments, by outcome",
            "reqps",
            {"{{outcome}}": events("scoter_experiments_reloads_total", "outcome")},
            "`refused`: the file is wrong and the last good one stays. `unavailable`: it could not be read.",
        ),
        Panel(
            "Shadow arms skipped",
            "reqps",
            {"arms": events("scoter_shadows_skipped_total")},
            "A shadow arm is computed only where no answer would wait for it.",
        ),
        Panel("Exposures written", "reqps", {"{{sink}}": events("scoter_exposures_written_total", "sink")}),
        Panel(
            "Exposures dropped",
            "reqps",
            {"{{sink}} {{reason}}": events("scoter_exposures_dropped_total", "sink, reason")},
            "An experiment that loses exposures under load compares unlike with unlike.",
        ),
    ],
}


def text() -> str:
    """The dashboard as JSON."""
    built = (
        dashboard.Dashboard("SCoTER Serving")
        .uid(UID)
        .tags(["scoter"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for title, panels in ROWS.items():
        built.with_row(dashboard.Row(title))
        for panel in panels:
            columns = len(panels) if panel.number else 3 if len(panels) % 3 == 0 or len(panels) > 4 else len(panels)
            built.with_panel(_panel(panel, 24 // columns))
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _panel(panel: Panel, width: int) -> stat.Panel | timeseries.Panel:
    drawn = stat.Panel() if panel.number else timeseries.Panel()
    drawn.title(panel.title).description(panel.about).unit(panel.unit).datasource(SOURCE)
    drawn.span(width).height(4 if panel.number else 8)
    for number, (legend, query) in enumerate(panel.queries.items()):
        drawn.with_target(Dataquery().expr(query).legend_format(legend or "__auto").ref_id(chr(ord("A") + number)))
    if isinstance(drawn, timeseries.Panel):
        drawn.min(0).tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI)).legend(
            VizLegendOptions()
            .show_legend(show_legend=True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
        if panel.threshold is not None:
            _draw_line(drawn, panel.threshold)
    return drawn


def _draw_line(drawn: timeseries.Panel, value: float) -> None:
    steps = [Threshold(value=None, color="transparent"), Threshold(value=value, color="red")]
    drawn.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    drawn.thresholds_style(GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
