import json
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from offline.chains.rationale import View
from offline.distill.students import fold_of
from offline.errors import LLMError, StageError
from offline.prepare import SPLITS, load_dataset
from offline.reason import chains, load_reasoning, load_steps, load_template, present
from offline.reason import stage as module
from offline.reason.engines import Local
from offline.stage import Stage
from tests.offline.reason.conftest import USERS, Sequences, sequences
from tests.offline.reason.scripted import TEMPLATE, Characters, D, Script, build, lines, vector

StageOf = Callable[..., Stage]
K = len(TEMPLATE)


class Run:
    """Builds with scripted parts, in one place, as often as asked to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.script = Script(folder / "questions")
        self.characters = Characters(folder / "texts")
        self._count = 0

    def __call__(self, prepared: Stage, **changes: Any) -> Path:
        """The output's folder; of a run that fails, the next one goes on there."""
        out = self.folder / f"reason-{self._count}"
        script = replace(self.script, **changes)
        build(out, self.folder / "kept", prepared.folder, script, self.characters, Local())
        self._count += 1
        return out

    def asked(self) -> list[str]:
        """The questions since the last call."""
        return _taken(self.script.log)

    def encoded(self) -> list[str]:
        """The texts encoded since the last call."""
        return _taken(self.characters.log)


def _taken(log: Path) -> list[str]:
    found = lines(log)
    log.unlink(missing_ok=True)
    return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(module, "TEXTS", 50)
    monkeypatch.setattr(module, "USERS", 8)
    return Run(tmp_path / "run")


def contents(folder: Path) -> dict[str, Any]:
    """Everything in a stage's folder but the times, and what had been there before."""
    files: dict[str, Any] = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".json"}
    files["summary"] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    for key in ("seconds", "users_per_second", "written", "encoded", "usage", "per_million_users"):
        del files["summary"][key]
    return files


def test_h_holds_the_embedding_of_every_step(prepared: Stage, run: Run) -> None:
    out = run(prepared)
    dataset = load_dataset(prepared.folder)
    for split in SPLITS:
        H, steps = load_reasoning(out, split), load_steps(out, split)
        assert isinstance(H, np.memmap)
        assert H.shape == (USERS, K, D)
        assert H.dtype == np.float16
        expected = np.stack([[vector(step) for step in chain] for chain in steps])
        np.testing.assert_array_equal(H, expected.astype(np.float16))
        rows = [json.loads(line) for line in lines(out / f"{split}.jsonl")]
        assert [row["user"] for row in rows] == dataset.users
        assert [row["history_length"] for row in rows] == [len(dataset.history(u, split)) for u in range(USERS)]
        assert [row["steps"] for row in rows] == steps
        assert present(H).all()
    encoded = run.encoded()
    assert len(encoded) == len(set(encoded))
    assert load_template(out) == list(TEMPLATE)
    assert (out / "failures.jsonl").read_text() == ""
    kinds = {f"{split}.{kind}" for split in SPLITS for kind in ("npy", "jsonl")}
    assert {p.name for p in out.iterdir()} == kinds | {"summary.json", "failures.jsonl"}


def test_the_summary_says_who_wrote_and_what_it_took(prepared: Stage, run: Run) -> None:
    out = run(prepared)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    asked, encoded = run.asked(), run.encoded()
    assert summary["backend"] == "a script (1 folds)"
    assert summary["encoder"] == "characters"
    assert (summary["K"], summary["D"], summary["users"], summary["chains"]) == (K, D, USERS, 4 * USERS)
    written = summary["written"]
    assert (written["reused"], written["asked"]) == (0, len(asked))
    assert written["shared"] == 4 * USERS - len(asked)
    assert summary["unique_texts"] == summary["encoded"]["texts"] == len(encoded)
    assert summary["absent"] == {**dict.fromkeys(SPLITS, 0), "share": 0.0}
    assert summary["usage"]["requests"] == len(asked)
    assert summary["usage"]["cost"] == 0.25 * len(asked)
    assert summary["per_million_users"]["cost"] == 1_000_000.0
    assert summary["per_million_users"]["completion_tokens"] == 40_000_000
    assert set(summary["seconds"]) == {"write", "encode", "assemble"}
    assert summary["users_per_second"] > 0


@pytest.mark.parametrize("cached", [1, 40])
def test_answers_from_a_cache_make_a_million_users_no_cheaper(prepared: Stage, run: Run, cached: int) -> None:
    summary = json.loads((run(prepared, cached=cached) / "summary.json").read_text(encoding="utf-8"))
    assert (summary["usage"]["cached"], summary["usage"]["requests"]) == (cached, len(run.asked()) - cached)
    assert summary["per_million_users"]["cost"] == 1_000_000.0
    assert summary["per_million_users"]["completion_tokens"] == 40_000_000


def test_a_run_whose_answers_were_all_there_does_not_say_that_a_million_users_are_free(
    prepared: Stage, run: Run
) -> None:
    summary = json.loads((run(prepared, cached=10_000) / "summary.json").read_text(encoding="utf-8"))
    assert (summary["usage"]["cost"], summary["per_million_users"]) == (0.0, None)


def test_everybody_is_asked_once_for_each_history(prepared: Stage, run: Run) -> None:
    run(prepared)
    asked = run.asked()
    assert len(asked) == len(set(asked)) > USERS


def test_another_run_of_the_same_asks_and_encodes_nothing(prepared: Stage, run: Run) -> None:
    first = run(prepared)
    run.asked(), run.encoded()
    second = run(prepared)
    assert (run.asked(), run.encoded()) == ([], [])
    assert contents(second) == contents(first)
    summary = json.loads((second / "summary.json").read_text(encoding="utf-8"))
    assert (summary["written"]["reused"], summary["per_million_users"]) == (4 * USERS, None)


def test_one_purchase_more_is_one_chain_more(stage_of: StageOf, run: Run) -> None:
    """What was the history to serve is the test's now, the test's is validation's, and so on."""
    bought = sequences()
    run(stage_of(bought))
    run.asked(), run.encoded()
    bought["user-4"].append(next(item for item in range(20) if item not in bought["user-4"]))
    out = run(stage_of(bought))
    assert len(run.asked()) == 1
    assert len(run.encoded()) <= K
    fresh = Run(run.folder.parent / "fresh")
    assert contents(fresh(stage_of(bought))) == contents(out)


def test_another_text_of_an_item_asks_for_those_who_have_it(stage_of: StageOf, run: Run) -> None:
    bought = sequences()
    dataset = load_dataset(stage_of(bought).folder)
    run(stage_of(bought))
    run.asked()
    changed = stage_of(bought, {7: "another title of item 7"})
    index = next(place for place, item in enumerate(dataset.items, 1) if item.id == "7")
    having = {
        tuple(history.tolist())
        for user in range(USERS)
        for split in SPLITS
        if index in (history := dataset.history(user, split))
    }
    out = run(changed)
    assert len(run.asked()) == len(having)
    assert contents(Run(run.folder.parent / "fresh")(changed)) == contents(out)


@pytest.mark.parametrize("change", [{"identity": "somebody else"}, {"view": View(items=3)}])
def test_another_writer_or_another_view_writes_anew(prepared: Stage, run: Run, change: dict[str, Any]) -> None:
    run(prepared)
    run.asked()
    run(prepared, **change)
    assert len(run.asked()) > USERS


def test_statistics_of_other_data_are_written_anew_and_equal_texts_encoded_once(stage_of: StageOf, run: Run) -> None:
    bought = sequences()
    run(stage_of(bought), view=None)
    first, texts = run.asked(), run.encoded()
    assert len(first) == 4 * USERS
    assert not (run.folder / "kept" / "chains.sqlite").exists()
    bought["user-4"].append(next(item for item in range(20) if item not in bought["user-4"]))
    out = run(stage_of(bought), view=None)
    assert len(run.asked()) == 4 * USERS
    assert len(run.encoded()) < len(texts) / 3
    assert contents(Run(run.folder.parent / "fresh")(stage_of(bought), view=None)) == contents(out)


@pytest.mark.parametrize("count", [1, 5, 6, 40])
def test_a_dead_endpoint_costs_nothing_that_was_answered(prepared: Stage, run: Run, count: int) -> None:
    whole = Run(run.folder.parent / "whole")
    expected = contents(whole(prepared))
    with pytest.raises(LLMError, match="the endpoint is dead"):
        run(prepared, dead_after=count)
    out = run(prepared)
    asked = run.asked()
    assert len(asked) == len(set(asked)) == len(whole.asked())
    assert contents(out) == expected
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["usage"]["completion_tokens"] == 10 * len(asked)
    assert summary["written"]["asked"] == len(asked)


@pytest.mark.parametrize("questions, texts", [(1, 10**6), (77, 10**6), (10**6, 1), (10**6, 120)])
def test_a_killed_process_is_gone_on_from(
    prepared: Stage, run: Run, tmp_path: Path, questions: int, texts: int
) -> None:
    whole = Run(tmp_path / "whole")
    expected = contents(whole(prepared))
    code = (
        "import sys; from pathlib import Path; from tests.offline.reason.scripted import build_and_die\n"
        "build_and_die(*map(Path, sys.argv[1:4]), *map(int, sys.argv[4:]))"
    )
    arguments = [run.folder / "reason-0", prepared.folder, run.folder, questions, texts, 50]
    cut = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=Path(__file__).parents[3], check=False)
    assert cut.returncode == -signal.SIGKILL
    assert contents(run(prepared)) == expected
    asked, encoded = run.asked(), run.encoded()
    assert sorted(set(asked)) == sorted(whole.asked())
    assert len(asked) - len(set(asked)) <= 1  # the answer that was on its way
    assert sorted(encoded) == sorted(whole.encoded())


def test_a_run_cut_off_while_assembling_asks_and_encodes_nothing_again(
    prepared: Stage, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(Run(run.folder.parent / "whole")(prepared))
    real = module._Run._vectors
    calls = iter(range(1000))

    def stopping(self: Any, texts: list[str]) -> Any:
        if next(calls) == 9:
            raise KeyboardInterrupt
        return real(self, texts)

    monkeypatch.setattr(module._Run, "_vectors", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(prepared)
    monkeypatch.setattr(module._Run, "_vectors", real)
    run.asked(), run.encoded()
    assert contents(run(prepared)) == whole
    assert (run.asked(), run.encoded()) == ([], [])


def test_a_clumsy_answer_is_asked_for_once_more(prepared: Stage, run: Run) -> None:
    out = run(prepared, clumsy="no 3")
    again = [line for line in run.asked() if " again " in line]
    assert again
    assert (out / "failures.jsonl").read_text() == ""
    assert contents(out) == contents(Run(run.folder.parent / "whole")(prepared))


def test_users_whose_chain_is_nonsense_have_no_h_and_are_named(
    prepared: Stage, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(prepared, nonsense="no 3")
    dataset = load_dataset(prepared.folder)
    index = next(place for place, item in enumerate(dataset.items, 1) if item.id == "3")
    failures = [json.loads(line) for line in lines(out / "failures.jsonl")]
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    for split in SPLITS:
        H, steps = load_reasoning(out, split), load_steps(out, split)
        without = [index in dataset.history(user, split) for user in range(USERS)]
        assert 0 < sum(without) < USERS
        assert [not chain for chain in steps] == without
        np.testing.assert_array_equal(present(H), ~np.array(without))
        assert [dataset.users.index(row["user"]) for row in failures if row["split"] == split] == list(
            np.flatnonzero(without)
        )
        assert summary["absent"][split] == sum(without)
    assert all(row["fault"] for row in failures)
    assert summary["absent"]["share"] == round(len(failures) / (4 * USERS), 4)
    assert "of the chains are absent" in capsys.readouterr().out
    run.asked()
    run(prepared, nonsense="no 3")
    assert run.asked() == []  # it is kept that there is none: nobody pays for it twice


def test_who_got_no_answer_is_asked_again_by_the_next_run(prepared: Stage, run: Run) -> None:
    out = run(prepared, silent="no 3")
    assert json.loads(lines(out / "failures.jsonl")[0])["fault"] == "no answer: it timed out"
    first = run.asked()
    second = run(prepared)
    asked = run.asked()
    assert 0 < len(asked) < len(first) / 2
    assert contents(second) == contents(Run(run.folder.parent / "whole")(prepared))


def test_who_got_no_answer_before_a_run_was_cut_off_is_asked_again_when_it_goes_on(prepared: Stage, run: Run) -> None:
    with pytest.raises(LLMError):
        run(prepared, silent="no 3", dead_after=60)
    out = run(prepared)
    assert not lines(out / "failures.jsonl")
    whole = Run(run.folder.parent / "whole")(prepared)
    assert contents(out) == contents(whole)


def test_those_who_get_no_answer_again_do_not_end_the_next_run(
    prepared: Stage, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are all that it asks, and others' chains by the same writer are there."""
    first = run(prepared, silent="no 3")
    run.asked()
    monkeypatch.setattr(module, "TRIAL", 5)
    second = run(prepared, silent="no 3")
    assert len(set(run.asked())) > 5
    assert contents(second) == contents(first)


def test_when_nobody_answered_the_next_try_asks_anew(stage_of: StageOf, run: Run) -> None:
    few = stage_of(dict(list(sequences().items())[:3]))
    with pytest.raises(StageError, match="no answer: it timed out"):
        run(few, silent="Purchase history")
    assert not lines(run(few) / "failures.jsonl")


def test_a_writer_of_nothing_but_nonsense_is_stopped_early(prepared: Stage, run: Run) -> None:
    with pytest.raises(StageError, match=r"none of 5\d chains by a script \(1 folds\) follows the template.*no "):
        run(prepared, nonsense="Purchase history")
    assert len(run.asked()) <= 2 * (module.TRIAL + run.script.chunk)


def test_nonsense_for_all_of_a_few_users(stage_of: StageOf, run: Run) -> None:
    few = dict(list(sequences().items())[:3])
    for _ in range(2):
        with pytest.raises(StageError, match="follows the template"):
            run(stage_of(few), nonsense="Purchase history")


def test_a_user_is_written_for_by_the_student_of_his_fold(prepared: Stage, run: Run) -> None:
    out = run(prepared, folds=3)
    users = load_dataset(prepared.folder).users
    assert {fold_of(user, 3) for user in users} == {0, 1, 2}
    for split in SPLITS:
        for user, steps in zip(users, load_steps(out, split), strict=True):
            assert all(f"by writer {fold_of(user, 3)} " in step for step in steps[:-1])


def test_vectors_of_an_encoder_that_changed_under_its_name_are_refused(
    stage_of: StageOf, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    bought = sequences()
    run(stage_of(bought))
    monkeypatch.setattr("tests.offline.reason.scripted.D", D + 1)
    bought["user-4"].append(next(item for item in range(20) if item not in bought["user-4"]))
    with pytest.raises(StageError, match="characters are of different lengths"):
        run(stage_of(bought))


def test_chains_that_were_removed_meanwhile_are_written_by_the_next_run(prepared: Stage, run: Run) -> None:
    run(prepared)
    with pytest.raises(LLMError):
        run(prepared, identity="other", dead_after=20)
    for path in (run.folder / "kept").iterdir():
        path.unlink()
    out = run(prepared, identity="other")
    assert contents(out) == contents(Run(run.folder.parent / "whole")(prepared, identity="other"))


def test_chains_that_are_gone_are_missed_before_texts_are_encoded(
    stage_of: StageOf, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    bought = sequences()
    run(stage_of(bought))
    bought["user-4"].append(next(item for item in range(20) if item not in bought["user-4"]))
    prepared = stage_of(bought)
    with monkeypatch.context() as cut:
        cut.setattr(module._Run, "_encode", _failing)
        with pytest.raises(LLMError):
            run(prepared)
    run.encoded()
    (run.folder / "kept" / "chains.sqlite").unlink()
    with pytest.raises(StageError, match=r"chains are gone .* run it again"):
        run(prepared)
    assert run.encoded() == []
    assert contents(run(prepared)) == contents(Run(run.folder.parent / "whole")(prepared))


@pytest.mark.parametrize("questions", [20, 10**6])
def test_a_run_of_a_version_with_other_keys_is_gone_on_from_under_todays(
    prepared: Stage, run: Run, monkeypatch: pytest.MonkeyPatch, questions: int
) -> None:
    whole = Run(run.folder.parent / "whole")
    expected = contents(whole(prepared))
    with monkeypatch.context() as earlier:
        earlier.setattr(chains, "_drawn", repr)
        earlier.setattr(module._Run, "_encode", _failing)
        with pytest.raises(LLMError):
            run(prepared, dead_after=questions)
    run.asked()
    assert contents(run(prepared)) == expected
    assert sorted(run.asked()) == sorted(whole.asked())


def _failing(*_: object) -> NoReturn:
    raise LLMError("the encoder is gone")


def _measure(users: int, folder: Path, out: Any) -> None:
    import resource

    rng = np.random.default_rng(1)
    bought: Sequences = {f"u{user}": rng.permutation(200)[:6].tolist() for user in range(users)}
    data = folder / "data"
    data.mkdir(parents=True)
    rows = (f"{user}\t{item}\t{time}\n" for user, items in bought.items() for time, item in enumerate(items))
    (data / "toy.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "".join(rows))
    from offline.prepare import prepare
    from offline.recipe import PrepareRecipe

    prepared = prepare(folder / "work", data, PrepareRecipe(min_interactions=1))
    load_dataset(prepared.folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    script = Script(folder / "questions", view=None, chunk=512)
    build(folder / "out", folder / "kept", prepared.folder, script, Characters(folder / "texts"), Local())
    out.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


@pytest.mark.slow
def test_memory_does_not_grow_with_users(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    grown = []
    for users in (400, 4000):
        out = context.Queue()
        process = context.Process(target=_measure, args=(users, tmp_path / str(users), out))
        process.start()
        grown.append(out.get(timeout=100))
        process.join()
    assert grown[1] - grown[0] < 12  # MiB; the texts alone are 4 MB more, as Python objects 10, vectors in RAM 20
