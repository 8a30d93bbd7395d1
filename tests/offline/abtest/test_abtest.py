from __future__ import annotations

import gzip
import json
import re
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from redis import Redis

from offline.abtest.attribution import Attribution
from offline.abtest.logs import Outcome, Rejected, read_exposures, read_outcomes
from offline.cli import main
from service.exposures.event import ExposedItem, Exposure, encode
from service.exposures.sinks import FIELD
from service.store.keys import user_tag
from tests.offline.abtest.simulate import EXPERIMENTS, START, Traffic, simulate
from tests.service.exposures.test_exposures import exposure


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str | Path, columns: int = 120
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["scoter", "abtest", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0), *capsys.readouterr()


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The JSON report on simulated traffic."""

    def make(traffic: Traffic, *more: str) -> dict[str, Any]:
        exposures, outcomes = simulate(tmp_path, traffic)
        code, out, _ = run(capsys, monkeypatch, exposures, "--outcomes", outcomes, "--json", *more)
        assert code == 0
        found: dict[str, Any] = json.loads(out)
        return found

    return make


def effect_of(report: dict[str, Any], metric: str, stratum: str = "all") -> dict[str, Any]:
    (one,) = report["experiments"]
    (found,) = [row for row in one["effects"] if row["metric"] == metric and row["stratum"].startswith(stratum)]
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
def test_a_known_lift_is_found_with_all_its_parts(report: Any) -> None:
    found = report(Traffic(users=4000, lift=0.05, sparse_lift=0.6, seed=1))
    (one,) = found["experiments"]
    assert (one["experiment"], one["control"], one["warnings"]) == ("model", "control", [])
    assert one["split"]["mismatch"] is False
    assert [arm["reasoning_used"] for arm in one["arms"]] == [0.0, 1.0]
    assert sum(arm["users"] for arm in one["arms"]) == 4000
    assert sum(arm["answers"] for arm in one["arms"]) == found["counts"]["used"]
    assert found["counts"]["attributed"] == found["counts"]["outcomes"]
    ctr = effect_of(found, "ctr")
    assert ctr["lift_low"] < 0.3 < ctr["lift_high"]
    assert ctr["p"] < 0.001
    assert ctr["q"] >= ctr["p"]
    sparse, dense = effect_of(found, "ctr", "sparse"), effect_of(found, "ctr", "dense")
    assert sparse["lift_low"] < 0.6 < sparse["lift_high"]
    assert dense["lift_low"] < 0.05 < dense["lift_high"]
    assert sparse["lift"] > dense["lift"]
    assert sum(stratum["users"] for stratum in one["strata"]) == 4000


def test_no_lift_is_found_where_there_is_none(report: Any) -> None:
    ctr = effect_of(report(Traffic(users=1500, seed=2)), "ctr")
    assert ctr["lift_low"] < 0 < ctr["lift_high"]
    assert ctr["p"] > 0.01


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize("by_request", [True, False])
def test_outcomes_are_joined_by_request_or_by_user_and_item(report: Any, tagged: bool, by_request: bool) -> None:
    found = report(Traffic(users=300, tagged=tagged, by_request=by_request))
    assert found["counts"]["attributed"] == found["counts"]["outcomes"] > 50


def test_users_missing_from_an_arm_are_a_loud_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exposures, outcomes = simulate(tmp_path, Traffic(users=2500, lost=0.25))
    page = tmp_path / "page.html"
    code, out, _ = run(capsys, monkeypatch, exposures, "--outcomes", outcomes, "--html", page)
    assert code == 0
    assert "SAMPLE RATIO MISMATCH" in out
    assert "Do not act on the figures below" in out
    text = page.read_text(encoding="utf-8")
    assert "Sample ratio mismatch" in text
    assert "data:image/png;base64," in text
    assert "http://" not in text


@pytest.mark.parametrize("columns", [80, 50])
def test_no_figure_and_no_name_is_cut_short_where_there_is_little_room(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, columns: int
) -> None:
    exposures, outcomes = simulate(tmp_path, Traffic(users=300))
    exposures.write_text(exposures.read_text().replace('"scoter"', '"scoter_h_withheld"'))
    rows = [json.loads(line) for line in outcomes.read_text().splitlines()]
    outcomes.write_text("\n".join(json.dumps(row) for one in rows for row in (one, {**one, "event": "negative"})))
    code, out, _ = run(capsys, monkeypatch, exposures, "--outcomes", outcomes, columns=columns)
    assert code == 0
    assert "…" not in out
    figures = [line for line in out.splitlines() if " all " in line and "%" in line]
    assert len(figures) == 4
    for line in figures:
        assert re.search(r"[+-][\d.]+% +[+-][\d.]+%, [+-][\d.]+% +[\d.e-]+\*? +[\d.e-]+ *$", line)
    assert out.count("variat") == 2  # both tables name the arms


def test_rows_that_cannot_be_read_are_counted_and_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exposures, outcomes = simulate(tmp_path, Traffic(users=50))
    with exposures.open("a") as stream:
        stream.write('\n{"request_id": 7}\n{"half')
    orders = tmp_path / "orders.csv"
    orders.write_text(
        "event,ts,user_id,item_id,value\nclick,yesterday,u1,i1,\n,5,u1,i1,\npurchase,5,u1,i1,-2\nclick,5,,i1,\n"
    )
    code, out, _ = run(capsys, monkeypatch, exposures, "--outcomes", outcomes, "--outcomes", orders, "--json")
    assert code == 0
    rejected = json.loads(out)["rejected"]
    assert rejected["count"] == 6
    places = {Path(row["place"]).name: row["reason"] for row in rejected["rows"]}
    lines = len(exposures.read_text().splitlines())
    assert list(places) == [
        *(f"orders.csv, line {n}" for n in (2, 3, 4, 5)),
        f"exposures.jsonl, line {lines - 1}",
        f"exposures.jsonl, line {lines}",
    ]
    assert "ts: Input should be a valid datetime" in places["orders.csv, line 2"]
    assert "event: Field required" in places["orders.csv, line 3"]
    assert "greater than or equal to 0" in places["orders.csv, line 4"]
    assert "no request_id, user_id or user_tag" in places["orders.csv, line 5"]
    assert "Invalid JSON" in places[f"exposures.jsonl, line {lines}"]
    _, shown, _ = run(capsys, monkeypatch, exposures, "--outcomes", orders)
    assert "6 rows could not be read" in shown


def attributed(exposures: list[Exposure], outcomes: list[dict[str, Any]], window: float = 3600) -> list[int]:
    """The rows of the answers that outcomes go to, -1 for none."""
    joined = Attribution([Outcome.model_validate(one) for one in outcomes], window)
    for one in exposures:
        joined.add(one)
    return joined.credited()


def answer(number: int, ts: float, *items: str, user: str = "u") -> Exposure:
    shown = tuple(ExposedItem(item, place, 0.0) for place, item in enumerate(items, start=1))
    return replace(exposure(number, user), ts=ts, items=shown)


def test_the_latest_answer_that_held_the_item_gets_the_credit_within_the_window() -> None:
    answers = [answer(0, 100, "a"), answer(2, 300, "b"), answer(1, 200, "a", "b"), answer(3, 250, "a", user="other")]
    click = {"event": "click", "user_id": "u", "item_id": "a"}
    cases = [(99, -1), (100, 0), (199, 0), (250, 2), (3800, 2), (3801, -1)]
    assert attributed(answers, [{**click, "ts": ts} for ts, _ in cases]) == [row for _, row in cases]
    assert attributed(answers, [{**click, "ts": 310, "item_id": "c"}]) == [-1]
    by_tag = {"event": "click", "user_tag": user_tag("u"), "item_id": "b", "ts": "1970-01-01T00:05:10Z"}
    assert attributed(answers, [by_tag]) == [1]


def test_a_user_who_is_everybody_that_has_not_logged_in_takes_no_longer_than_many_users() -> None:
    count = 6000
    clicks = [Outcome(event="click", ts=n, user_id="anonymous", item_id=f"i{n % 2000}") for n in range(count)]
    begun = process_time()
    joined = Attribution(clicks, 100)
    for n in range(2 * count):
        joined.add(answer(n, n / 2, f"i{n // 2 % 2000}", user="anonymous"))
    assert joined.credited() == [2 * n for n in range(count)]
    assert process_time() - begun < 4  # every answer held against every click took three times as long


def test_millions_of_outcomes_fit_into_memory() -> None:
    count = 5000
    clicks = (Outcome(event="click", ts=n, user_id=f"u{n // 5}", item_id=f"i{n % 500}") for n in range(count))
    tracemalloc.start()
    try:
        joined = Attribution(clicks, 100)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert joined.credited() == [-1] * count
    assert held / count < 600  # bytes; the rows themselves took twice as much


def test_a_request_id_decides_and_needs_no_item() -> None:
    answers = [answer(0, 100, "a"), answer(1, 200, "a")]
    late = {"event": "purchase", "request_id": "r0", "ts": 300, "value": 2.5}
    assert attributed(answers, [late, {**late, "item_id": "a"}, {**late, "item_id": "z"}]) == [0, 0, -1]
    # Whoever stamped it has a clock of his own, or whole seconds: the name says which came first.
    assert attributed(answers, [{**late, "ts": ts} for ts in (99, 40, 39)]) == [0, 0, -1]


def test_answers_with_one_request_id_are_told_apart_by_their_users() -> None:
    answers = [answer(0, 100, "a"), answer(0, 100, "a", user="other")]
    click = {"event": "click", "request_id": "r0", "item_id": "a", "ts": 200}
    assert attributed(answers, [{**click, "user_id": "u"}, {**click, "user_id": "other"}]) == [0, 1]


def test_shadow_forced_and_repeated_exposures_are_left_out() -> None:
    joined = Attribution([], 1)
    plain = exposure()
    forced = replace(plain, experiments=tuple(replace(one, forced=True) for one in plain.experiments))
    for one in (plain, plain, replace(plain, shadow=True), forced, replace(plain, ts=plain.ts + 1)):
        joined.add(one)
    found = {"read": 5, "used": 2, "shadow": 1, "forced": 1, "repeated": 1}
    assert joined.counts == {**found, "outcomes_repeated": 0, "alike": 0}


def test_an_outcome_that_is_sent_again_is_left_out_by_its_event_id_or_told_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exposures, outcomes = simulate(tmp_path, Traffic(users=200))
    rows = [json.loads(line) for line in outcomes.read_text().splitlines()]
    sales = sum(row["event"] == "purchase" for row in rows)
    named = tmp_path / "named.jsonl"
    named.write_text("\n".join(json.dumps({**row, "event_id": n}) for n, row in enumerate(rows)))
    gmv: dict[str, float] = {}
    said: dict[str, str] = {}
    for name, files in {"once": [named], "named": [named, named], "unnamed": [outcomes, outcomes]}.items():
        options = [part for file in files for part in ("--outcomes", file)]
        _, out, _ = run(capsys, monkeypatch, exposures, *options, "--json")
        found = json.loads(out)
        gmv[name] = found["experiments"][0]["arms"][0]["metrics"]["gmv_per_user"]["value"]
        _, said[name], _ = run(capsys, monkeypatch, exposures, *options)
    assert gmv["named"] == gmv["once"]
    assert gmv["unnamed"] == pytest.approx(2 * gmv["once"])
    assert "warning" not in said["once"]
    assert f"{len(rows):,} outcomes bear an event_id that came before" in said["named"]
    assert f"{sales:,} purchases are like another one" in said["unnamed"]


def test_users_seen_in_two_variations_are_left_out_of_both(report: Any, tmp_path: Path) -> None:
    simulate(tmp_path, Traffic(users=200))
    path = tmp_path / "exposures.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for one in rows[:3]:
        other = "scoter" if one["experiments"][0]["variation"] == "control" else "control"
        moved = {**one, "ts": one["ts"] + 1, "experiments": [{**one["experiments"][0], "variation": other}]}
        rows.append(moved)
    joined = Attribution([], 1)
    (tmp_path / "crossed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for one in read_exposures([tmp_path / "crossed.jsonl"], Rejected()):
        joined.add(one)
    from offline.abtest.attribution import experiments

    (found,) = experiments(joined.answers({}))
    crossed = len({row["user_tag"] for row in rows[-3:]})
    assert found.crossed == crossed
    assert sum(len(arm.answers) for arm in found.arms) == 200 - crossed


def test_several_experiments_and_the_holdout_are_reported_side_by_side(report: Any) -> None:
    model: Any = EXPERIMENTS["features"]["model"]
    (rule,) = model["rules"]
    features = {
        "holdout": {"defaultValue": False, "rules": [{"force": True, "coverage": 0.2, "seed": "h", "hashVersion": 2}]},
        "model": model,
        "reasoning": {"rules": [{**rule, "key": "reasoning", "variations": [{}, {"reasoning": False}]}]},
    }
    found = report(Traffic(users=500, experiments={"features": features}))
    assert [one["experiment"] for one in found["experiments"]] == ["model", "reasoning", "(holdout)"]
    held, free = (arm["users"] for arm in reversed(found["experiments"][2]["arms"]))
    assert held + free == 500
    assert held == sum(arm["users"] for arm in found["experiments"][0]["arms"]) or free == sum(
        arm["users"] for arm in found["experiments"][0]["arms"]
    )
    assert found["experiments"][2]["control"] == "holdout"
    assert found["comparisons"] == 9


@pytest.mark.slow
def test_users_who_name_their_model_now_and_then_stay_on_their_side_of_the_holdout(report: Any) -> None:
    features = {
        "holdout": {"defaultValue": False, "rules": [{"force": True, "coverage": 0.2, "seed": "h", "hashVersion": 2}]},
        "model": EXPERIMENTS["features"]["model"],
    }
    found = report(Traffic(users=4000, pinning=0.3, seed=4, experiments={"features": features}))
    model, holdout = found["experiments"]
    assert (model["experiment"], holdout["experiment"]) == ("model", "(holdout)")
    assert not [warning for warning in model["warnings"] + holdout["warnings"] if "several variations" in warning]
    assert sum(arm["users"] for arm in holdout["arms"]) == 4000
    assert sum(arm["answers"] for arm in holdout["arms"]) == found["counts"]["used"]
    free = next(arm["answers"] for arm in holdout["arms"] if arm["variation"] == "experiments")
    assert sum(arm["answers"] for arm in model["arms"]) < free  # what was pinned is in no ordinary experiment
    assert all(effect["p"] > 0.01 for effect in holdout["effects"] if effect["stratum"] == "all")


def test_shares_that_change_are_warned_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exposures, outcomes = simulate(tmp_path, Traffic(users=100))
    rows = [json.loads(line) for line in exposures.read_text().splitlines()]
    rows[0]["experiments"][0]["weight"] = 0.9
    exposures.write_text("\n".join(map(json.dumps, rows)))
    code, out, _ = run(capsys, monkeypatch, exposures, "--outcomes", outcomes)
    assert code == 0
    assert "the shares of the variations changed" in out


def test_a_control_that_was_guessed_is_said_to_be(report: Any) -> None:
    model: Any = EXPERIMENTS["features"]["model"]
    (rule,) = model["rules"]
    for names, options, base, warned in (
        (("without", "with"), (), "with", True),
        (("without", "with"), ("--control", "without"), "without", False),
        (("a", "control"), (), "control", False),
        (("0", "1"), (), "0", False),
    ):
        metas = [{"key": name} for name in names]
        features = {"model": {**model, "rules": [{**rule, "meta": metas}]}}
        (one,) = report(Traffic(users=60, experiments={"features": features}), *options)["experiments"]
        assert one["control"] == base
        assert any("stands for it, as the first by name" in warning for warning in one["warnings"]) is warned


def test_history_lengths_may_come_from_a_file(report: Any, tmp_path: Path) -> None:
    users = tmp_path / "users.csv"
    users.write_text("user_id,history_length\n" + "".join(f"s0-{n},{1 if n < 100 else 50}\n" for n in range(200)))
    found = report(Traffic(users=200), "--users", str(users))
    assert found["experiments"][0]["strata"] == [
        {"stratum": "sparse (≤ 1)", "users": 100},
        {"stratum": "dense (≥ 2)", "users": 100},
    ]


def test_logs_may_be_compressed_and_kept_in_a_redis_stream(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis_port: int
) -> None:
    exposures, outcomes = simulate(tmp_path, Traffic(users=600))
    packed = tmp_path / "exposures.jsonl.gz"
    packed.write_bytes(gzip.compress(exposures.read_bytes()))
    admin = Redis(port=redis_port)
    admin.delete("abtest")
    for line in exposures.read_bytes().splitlines():
        admin.xadd("abtest", {FIELD: line})
    admin.xadd("abtest", {"other": b"x"})
    url = f"redis://127.0.0.1:{redis_port}/0"
    reports = []
    for place, more in ((exposures, ()), (packed, ()), (url, ("--stream", "abtest"))):
        code, out, _ = run(capsys, monkeypatch, place, "--outcomes", outcomes, "--json", *more)
        assert code == 0
        reports.append(json.loads(out))
    assert reports[0]["counts"]["used"] > 1000  # more than one page of the stream
    assert reports[2]["rejected"]["count"] == 1
    assert reports[0]["experiments"] == reports[1]["experiments"] == reports[2]["experiments"]
    admin.delete("abtest")
    admin.close()


def test_what_cannot_be_analysed_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exposures, outcomes = simulate(tmp_path, Traffic(users=20))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(b"event,ts,user_id\n" + b"click,1,u\n" * 1000)[:-20])
    open_quote = tmp_path / "quote.csv"
    open_quote.write_text('event,ts,user_id\nclick,1,"' + "u" * 200_000)
    shadow = tmp_path / "shadow.jsonl"
    shadow.write_bytes(encode(replace(exposure(), shadow=True), tagged=True))
    for arguments, said in (
        ((tmp_path / "none.jsonl", "--outcomes", outcomes), "cannot read"),
        ((exposures, "--outcomes", tmp_path / "none.csv"), "No such file"),
        ((exposures, "--outcomes", cut), "Compressed file ended"),
        ((exposures, "--outcomes", open_quote), "field larger than field limit"),
        ((empty, "--outcomes", outcomes), "no exposure can be used: 0 read"),
        ((shadow, "--outcomes", outcomes), "of which 1 shadow"),
        ((exposures, "--outcomes", outcomes, "--experiment", "x"), "no experiment 'x'"),
        ((exposures, "--outcomes", outcomes, "--control", "x"), "has a variation 'x'"),
        ((exposures, "--outcomes", outcomes, "--html", tmp_path), "cannot write"),
        (("redis://127.0.0.1:1/0", "--outcomes", outcomes), "cannot read the stream"),
    ):
        code, _, err = run(capsys, monkeypatch, *arguments)
        assert code == 1
        assert said in err
        assert err.startswith("scoter: ")


def test_a_table_may_begin_with_a_byte_order_mark_and_quote_its_cells(tmp_path: Path) -> None:
    path = tmp_path / "o.csv"
    path.write_bytes(
        b'\xef\xbb\xbfevent,ts,user_id,item_id,value\r\npurchase,2025-11-22T10:00:00+02:00,"u,1",i1,"1.5"\r\n'
    )
    rejected = Rejected()
    (one,) = read_outcomes([path], rejected)
    assert (one.user_id, one.value, one.seconds()) == ("u,1", 1.5, 1763798400.0)
    assert rejected.count == 0
    assert one.seconds() < START


@pytest.mark.parametrize("ts", ["1763872086250", "1e999", "-5", "NaN"])
def test_an_exposure_at_no_time_costs_its_row_alone(tmp_path: Path, ts: str) -> None:
    path = tmp_path / "e.jsonl"
    line = encode(exposure(), tagged=True).decode()
    path.write_text(line.replace('"ts":1763872086.25', f'"ts":{ts}') + "\n" + line)
    rejected = Rejected()
    assert [one.ts for one in read_exposures([path], rejected)] == [1763872086.25]
    assert [Path(place).name for place, _ in rejected.rows] == ["e.jsonl, line 1"]


def test_a_comma_that_is_not_quoted_makes_no_other_value(tmp_path: Path) -> None:
    path = tmp_path / "o.csv"
    path.write_text("event,ts,user_id,item_id,value\npurchase,5,u1,i1,12,90\npurchase,6,u1,i1,3,\npurchase,7,u1,i1\n")
    rejected = Rejected()
    assert [one.value for one in read_outcomes([path], rejected)] == [3.0, 0.0]
    assert [(Path(place).name, reason.partition(":")[0]) for place, reason in rejected.rows] == [
        ("o.csv, line 2", "more cells than the first line has columns")
    ]


def test_null_is_a_value_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text(
        '{"event": "click", "ts": 5, "user_id": "u1", "item_id": "i1", "request_id": null, "value": null}\n'
    )
    rejected = Rejected()
    (one,) = read_outcomes([path], rejected)
    assert (one.request_id, one.value, rejected.count) == (None, 0.0, 0)
