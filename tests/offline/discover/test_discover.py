from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from offline.chains.explore import Explored, write
from offline.chains.template import MANUAL, Template
from offline.discover import stage as module
from offline.discover.report import page
from offline.discover.stage import discover
from offline.errors import LLMError, RecipeError, StageError
from offline.llm.base import Abstract, Explore, Prompt
from offline.prepare import load_dataset
from offline.recipe import DiscoverRecipe, Recipe, TeacherRecipe
from offline.stage import Stage
from tests.offline.discover.scripted import BAD, GOOD, Scripted, WordEncoder, make_data

RECIPE = Recipe(
    name="toy", discover=DiscoverRecipe(users=20, chains=2, clusters=[2, 3], candidates=4, path_users=20, shrinkage=10)
)


class Bench:
    """A data set, a backend, and the stage to run on them."""

    def __init__(self, folder: Path, users: int) -> None:
        self.work = folder / "work"
        self.prepared, self.tokens = make_data(folder, users)
        self.dataset = load_dataset(self.prepared.folder)
        self.backend = Scripted(self.dataset)

    def run(self, recipe: Recipe = RECIPE, also: tuple[Path, ...] = ()) -> Stage:
        return discover(self.work, self.prepared, self.tokens, recipe, also)

    def restart(self) -> None:
        self.backend = Scripted(self.dataset)

    @property
    def partial(self) -> Path:
        (folder,) = self.work.glob("discover-*.partial")
        return folder


@pytest.fixture
def make_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Bench]:
    def make(users: int) -> Bench:
        bench = Bench(tmp_path, users)

        @contextmanager
        def open_backend(recipe: TeacherRecipe, dataset: Any, cache: Path) -> Iterator[Scripted]:
            with bench.backend as backend:
                yield backend

        monkeypatch.setattr(module, "open_backend", open_backend)
        monkeypatch.setattr(module, "SentenceEncoder", WordEncoder)
        monkeypatch.setattr(WordEncoder, "texts", [])
        return bench

    return make


@pytest.fixture
def bench(make_bench: Callable[[int], Bench]) -> Bench:
    return make_bench(60)


def _json(stage: Stage, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stage.folder / name).read_text(encoding="utf-8"))
    return found


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def test_the_pattern_that_finds_more_becomes_the_template(bench: Bench) -> None:
    stage = bench.run()
    found = Template.load(stage.folder / "template.json")
    assert found.steps[:2] == GOOD[:2]
    body = _json(stage, "evidence.json")
    assert body["mine"]["k"] == 2
    winner = body["mine"]["clusters"][body["mine"]["winner"]]
    assert winner["typical"][0] == GOOD[0]
    mined, manual = body["templates"][0], body["templates"][2]
    assert [row["name"] for row in body["templates"]] == ["mined", "best single chains", *MANUAL]
    assert mined["recall@20"]["value"] > 0.3 > manual["recall@20"]["value"]
    assert manual["against"]["recall@20"]["low"] > 0
    assert [row["name"] for row in body["references"]] == ["co-occurrence kNN", "popular items"]
    assert body["backend"] == bench.backend.name
    assert bench.backend.closed


def test_everything_that_was_found_lies_in_the_folder(bench: Bench) -> None:
    stage = bench.run()
    assert {path.name for path in stage.folder.iterdir()} == {
        "template.json", "top-k.json", "evidence.json", "summary.json", "report.html", "chains.jsonl", "applied.jsonl",
        "rejected.jsonl", "answers", "stage.json",
    }  # fmt: skip
    body = _json(stage, "evidence.json")
    template = _json(stage, "template.json")
    assert template["steps"] == body["mined"]["steps"]
    assert Template.load(stage.folder / "top-k.json").steps == tuple(body["single"]["steps"])
    assert template["evidence"]["mine"]["clusters"] == body["mine"]["clusters"]
    chains = _rows(stage.folder, "chains.jsonl")
    assert len(chains) == body["generate"]["readable"] == 40
    assert sum(row["kept"] for row in chains) == body["generate"]["kept"]
    assert sum(row["rank"] > 0 for row in chains) == body["generate"]["hits"]
    applied = _rows(stage.folder, "applied.jsonl")
    judged = [row for row in applied if row["panel"] == "judge" and row["name"] == "mined"]
    assert len(judged) == 20
    assert sum(row["rank"] > 0 for row in judged) == body["templates"][0]["hits"]
    panels = [
        {row["user"] for row in rows} for rows in (chains, [r for r in applied if r["panel"] == "candidates"], judged)
    ]
    assert not panels[0] & panels[1] | panels[0] & panels[2] | panels[1] & panels[2]
    assert body["cost"]["requests"] == len(bench.backend.asked)


def test_ranks_are_those_of_the_unique_set(bench: Bench) -> None:
    stage = bench.run()
    users = {name: row for row, name in enumerate(bench.dataset.users)}
    items = {item.id: place for place, item in enumerate(bench.dataset.items, 1)}
    for row in _rows(stage.folder, "chains.jsonl"):
        predicted = [items[item] for item in row["predicted"]]
        assert len(set(predicted)) == len(predicted) <= 20
        target = bench.dataset.target(users[row["user"]], "train")
        assert row["rank"] == (predicted.index(target) + 1 if target in predicted else 0)


def test_the_same_recipe_finds_the_same_in_whatever_order_answers_come(bench: Bench) -> None:
    first = bench.run()
    bench.restart()
    plain = bench.backend.answer
    bench.backend.answer = lambda prompts: iter(sorted(plain(prompts), key=lambda a: a.index))  # type: ignore[method-assign]
    bench.work = bench.work.with_name("again")
    second = bench.run()
    for name in ("evidence.json", "template.json", "chains.jsonl", "applied.jsonl", "rejected.jsonl", "report.html"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_an_unchanged_recipe_asks_nobody(bench: Bench) -> None:
    bench.run()
    bench.restart()
    patient = RECIPE.model_copy(update={"teacher": TeacherRecipe(retries=9, budget=3.0, prompt_price=1.0)})
    bench.run(patient)
    assert not bench.backend.asked


@pytest.mark.parametrize("answers", [1, 13, 20, 47, 100, 101, 102, 150])
def test_an_endpoint_that_dies_loses_nothing_and_is_asked_nothing_twice(bench: Bench, answers: int) -> None:
    bench.backend.dies_after = answers
    with pytest.raises(LLMError):
        bench.run()
    asked = list(bench.backend.asked)
    assert len(asked) == answers
    bench.restart()
    stage = bench.run()
    assert not {repr(prompt) for prompt in asked} & {repr(prompt) for prompt in bench.backend.asked}
    resumed = {name: (stage.folder / name).read_bytes() for name in ("chains.jsonl", "applied.jsonl")}
    assert _json(stage, "evidence.json")["cost"]["requests"] == answers + len(bench.backend.asked)
    bench.restart()
    bench.work = bench.work.with_name("whole")
    whole = bench.run()
    assert len(bench.backend.asked) == _json(stage, "evidence.json")["cost"]["requests"]
    assert resumed == {name: (whole.folder / name).read_bytes() for name in resumed}


def test_what_was_used_is_on_disk_with_every_answer(bench: Bench) -> None:
    """Whoever is killed has no time to write it down."""
    told: list[tuple[int, int]] = []

    def explored(prompt: Prompt, task: Explore, draw: int) -> str:
        bills = [json.loads(path.read_text(encoding="utf-8")) for path in bench.work.glob("*.partial/usage.json")]
        told.append((bench.backend.usage.requests, sum(session["requests"] for bill in bills for session in bill)))
        return bench.backend.explored(prompt, task, draw)

    bench.backend.explore = explored
    bench.run()
    assert len(told) > 100
    assert all(noted == requests - 1 for requests, noted in told)


def test_nothing_is_encoded_twice_after_a_cut_or_under_another_recipe(bench: Bench) -> None:
    bench.backend.dies_after = 30
    with pytest.raises(LLMError):
        bench.run()
    before = set(WordEncoder.texts)
    assert len(before) > 10
    WordEncoder.texts.clear()
    bench.restart()
    bench.run()
    assert not before & {text for text in WordEncoder.texts if " -> " not in text}  # paths are few
    WordEncoder.texts.clear()
    bench.restart()
    bench.run(RECIPE.model_copy(update={"discover": RECIPE.discover.model_copy(update={"clusters": [4]})}))
    assert len(WordEncoder.texts) < len(before)


def test_a_backend_that_writes_nonsense_only_is_stopped_early_and_said_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EARLY", 10)
    bench.backend.explore = lambda prompt, task, draw: ["no idea", "<cot_path>x", ""][draw % 3]
    with pytest.raises(
        StageError, match=r"none of the backend's 10 answers .*no <recommendations> \(x10\).*max_tokens"
    ):
        bench.run()
    assert len(bench.backend.asked) == 5
    refused = _rows(bench.partial, "rejected.jsonl")
    assert len(refused) == 10
    assert {row["text"] for row in refused} == {"no idea", "<cot_path>x"}
    bench.restart()
    with pytest.raises(StageError):
        bench.run()
    assert not bench.backend.asked


def test_a_backend_without_any_answer_is_said_so(bench: Bench) -> None:
    bench.backend.answer = lambda prompts: iter(())  # type: ignore[method-assign]
    with pytest.raises(StageError, match="answered none of 20 prompts"):
        bench.run()


def test_answers_that_cannot_be_read_are_recorded_with_their_reason_and_count_as_misses(bench: Bench) -> None:
    plain = bench.backend.explored
    bench.backend.explore = lambda prompt, task, draw: (
        "x" * 3000 if (task.path is None) == (draw == 1) else plain(prompt, task, draw)
    )
    stage = bench.run()
    body = _json(stage, "evidence.json")
    assert (body["generate"]["readable"], body["generate"]["unreadable"]) == (20, 20)
    assert all(row["unreadable"] == 20 and row["hits"] == 0 and row["users"] == 20 for row in body["templates"])
    rows = _rows(stage.folder, "rejected.jsonl")
    assert {row["reason"] for row in rows} == {"no <recommendations>"}
    assert max(len(row["text"]) for row in rows) == 500


def test_users_without_an_answer_are_left_out_of_every_comparison_they_are_missing_in(bench: Bench) -> None:
    plain = bench.backend.answer
    two = MANUAL["two-step"].steps

    def answer(prompts: Any) -> Iterator[Any]:
        kept = [p for p in prompts if not (isinstance(p.task, Explore) and p.task.path == two and sum(p.task.own) % 2)]
        places = {id(prompt): index for index, prompt in enumerate(prompts)}
        for found in plain(kept):
            yield found.__class__(places[id(kept[found.index])], found.texts)

    bench.backend.answer = answer  # type: ignore[method-assign]
    row = next(r for r in _json(bench.run(), "evidence.json")["templates"] if r["name"] == "two-step")
    assert 0 < row["users"] < 20
    assert row["users"] + row["no_answer"] == 20
    assert row["against"]["recall@20"]["users"] == row["users"]


@pytest.mark.parametrize("count", [1, 7, 31])
def test_the_wrong_number_of_items_is_kept_or_cut_and_recorded(bench: Bench, count: int) -> None:
    bench.backend.explore = lambda prompt, task, draw: write(
        Explored(task.path or GOOD, "r", tuple(f"Product p{n + len(task.history)}" for n in range(count)))
    )
    stage = bench.run()
    found = _json(stage, "evidence.json")["generate"]
    assert found["recommendations"] == min(count, 20)
    assert list(found["repairs"]) == ["fewer than 20 recommendations" if count < 20 else "more than 20, cut"]


def test_identical_paths_are_one_pattern(bench: Bench) -> None:
    plain = bench.backend.explored
    bench.backend.explore = lambda prompt, task, draw: plain(prompt, Explore(task.history, task.own, GOOD), draw)
    stage = bench.run()
    body = _json(stage, "evidence.json")
    assert (body["generate"]["different_paths"], body["mine"]["k"], body["mine"]["silhouette"]) == (1, 1, {})
    assert Template.load(stage.folder / "template.json").steps == GOOD
    assert "There is one pattern" in (stage.folder / "report.html").read_text(encoding="utf-8")


def test_other_languages_reach_the_template(bench: Bench) -> None:
    path = ("分析购买记录", "识别兴趣", "推荐商品")
    bench.backend.explore = lambda prompt, task, draw: write(Explored(task.path or path, "理由", ("红色指甲油",)))
    stage = bench.run()
    assert Template.load(stage.folder / "template.json").steps == path
    assert "推荐商品" in (stage.folder / "report.html").read_text(encoding="utf-8")


def test_an_abstraction_that_cannot_be_read_leaves_the_most_typical_path_and_says_so(bench: Bench) -> None:
    bench.backend.abstract = lambda task: "I would rather not."
    stage = bench.run()
    mined = _json(stage, "template.json")["evidence"]["mined"]
    assert mined["by_backend"] is False
    assert mined["reasons"] == ["no `- Best Path:`"] * 3
    assert mined["steps"] == mined["exemplars"][0]
    assert "did not put the pattern into words" in (stage.folder / "report.html").read_text(encoding="utf-8")


def test_no_answer_to_the_mine_prompt_can_be_asked_for_again(bench: Bench) -> None:
    plain = bench.backend.answer

    def answer(prompts: Any) -> Iterator[Any]:
        return plain([]) if isinstance(prompts[0].task, Abstract) else plain(prompts)

    bench.backend.answer = answer  # type: ignore[method-assign]
    with pytest.raises(StageError, match="run again"):
        bench.run()
    asked = len(bench.backend.asked)
    bench.restart()
    bench.run()
    assert isinstance(bench.backend.asked[0].task, Abstract)
    assert len(bench.backend.asked) < asked + 150


def test_templates_from_elsewhere_are_compared_on_the_same_users(bench: Bench, tmp_path: Path) -> None:
    first = bench.run()
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"steps": list(BAD)}), encoding="utf-8")
    bench.restart()
    stage = bench.run(also=(first.folder / "template.json", other))
    body = _json(stage, "evidence.json")
    rows = {row["name"]: row for row in body["templates"]}
    assert rows["from other"]["steps"] == list(BAD)
    # The same template under two names: nobody is asked twice, and nothing differs.
    assert rows["from toy"]["hits"] == rows["mined"]["hits"]
    asked = [repr(p) for p in bench.backend.asked]
    assert len(set(asked)) == len(asked)
    with pytest.raises(RecipeError, match="cannot read a template"):
        bench.run(also=(tmp_path / "none.json",))


def test_fewer_users_than_asked_for_are_shared_among_the_panels(make_bench: Callable[[int], Bench]) -> None:
    bench = make_bench(25)
    body = _json(bench.run(), "evidence.json")
    assert sum(body["panels"].values()) == len(bench.dataset.users)
    assert min(body["panels"].values()) >= 5


def test_no_prompt_shows_anything_but_the_training_split(bench: Bench) -> None:
    bench.run()
    by_history = {tuple(bench.dataset.history(u, "train").tolist()): u for u in range(len(bench.dataset.users))}
    for prompt in bench.backend.asked:
        if not isinstance(prompt.task, Explore):
            continue
        user = by_history[prompt.task.history]
        assert prompt.task.own == tuple(bench.dataset.training(user).tolist())
        said = "\n".join(message.content for message in prompt.messages)
        for hidden in bench.dataset.sequences[user][-3:].tolist():
            assert f"p{bench.dataset.items[hidden - 1].id} " not in said


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]


def test_the_report_shows_what_the_evidence_holds_and_nothing_runs_in_it(bench: Bench) -> None:
    plain = bench.backend.explored
    bench.backend.explore = lambda prompt, task, draw: plain(prompt, task, draw).replace(
        "because", "because <script>alert(1)</script> & so on"
    )
    stage = bench.run()
    body = _json(stage, "evidence.json")
    shown = (stage.folder / "report.html").read_text(encoding="utf-8")
    assert shown == page(body)
    tags = _Tags()
    tags.feed(shown)
    assert "script" not in tags.seen
    assert len(tags.sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in tags.sources)
    assert "scripted &lt;backend&gt;" in shown
    assert " b bold /b " in shown  # a title's own <b> is gone
    mined = body["templates"][0]
    assert f"{mined['recall@20']['value']:.2%}" in shown


def test_figures_of_the_report_bear_dollar_signs_and_no_hits(bench: Bench, tmp_path: Path) -> None:
    other = tmp_path / "$x_1$.json"
    other.write_text(json.dumps({"steps": ["Save $5", "Spend $6"]}), encoding="utf-8")
    bench.backend.explore = lambda prompt, task, draw: write(Explored(task.path or GOOD, "", ("Product p1",)))
    stage = bench.run(also=(other,))
    body = _json(stage, "evidence.json")
    assert 0 <= body["mine"]["mean"] < 0.5
    assert "too few to rank templates by" in (stage.folder / "report.html").read_text(encoding="utf-8")
