import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from offline.errors import LLMError, StageError
from offline.reason import stage as module
from offline.reason.chains import Asking
from offline.reason.chunks import Chunks
from offline.reason.cluster import Ray
from offline.reason.engines import Job, Local
from offline.stage import Stage
from tests.offline.reason.scripted import Characters, Niceness, Script, build, lines
from tests.offline.reason.test_stage import contents

# Ray uses what Ray has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A small Ray on this machine; three logical cores hold two actors and whatever Ray itself runs."""
    import ray

    ray.init(
        num_cpus=3,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield ray
    ray.shutdown()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEXTS", 50)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    (tmp_path / "cluster").mkdir()
    return Script(tmp_path / "cluster" / "questions", folds=2)


def _expected(prepared: Stage, script: Script) -> Any:
    place = script.log.parent.with_name("here")
    place.mkdir()
    here = replace(script, log=place / "questions")
    build(place / "out", place / "kept", prepared.folder, here, Characters(place / "texts"), Local())
    return contents(place / "out")


def _built(prepared: Stage, script: Script, texts: int = sys.maxsize) -> Any:
    place = script.log.parent
    characters = Characters(place / "texts", killed_after=texts)
    build(place / "out", place / "kept", prepared.folder, script, characters, Ray(workers=2))
    return contents(place / "out")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cluster_of_its_own_does_not_wait_for_other_work(prepared: Stage, script: Script, tmp_path: Path) -> None:
    """The first test here, while no cluster runs: Ray would have its workers give way to everything else."""
    chunks = Chunks(tmp_path / "chunks")
    chunks.cut(((0, text) for text in ("one", "two")), 2)
    job = Job(prepared.folder, chunks.folder, script.writer(), Asking(("A", "B"), 10), Niceness())
    ((_, found),) = Ray(workers=1).encode(job, chunks.names())
    assert found.shape[0] == 2
    assert (found == os.nice(0)).all()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_several_workers_write_the_same_bytes_as_one_process(ray: Any, prepared: Stage, script: Script) -> None:
    expected = _expected(prepared, script)
    assert _built(prepared, script) == expected
    asked, encoded = lines(script.log), lines(script.log.with_name("texts"))
    assert len(asked) == len(set(asked))
    assert len(encoded) == len(set(encoded))
    assert str(os.getpid()) not in lines(script.log.with_name("opened"))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("questions, texts", [(9, sys.maxsize), (sys.maxsize, 60)])
def test_a_worker_that_is_killed_is_made_up_for(
    ray: Any, prepared: Stage, script: Script, questions: int, texts: int
) -> None:
    expected = _expected(prepared, script)
    assert _built(prepared, replace(script, killed_after=questions), texts) == expected
    assert script.log.with_name("killed").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_dead_endpoint_is_said_to_be_one_and_the_next_run_goes_on(ray: Any, prepared: Stage, script: Script) -> None:
    expected = _expected(prepared, script)
    with pytest.raises(LLMError, match=r"^the endpoint is dead$"):
        _built(prepared, replace(script, dead_after=20))
    assert _built(prepared, script) == expected


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_who_keeps_a_budget_is_asked_by_one_process(ray: Any, prepared: Stage, script: Script) -> None:
    expected = _expected(prepared, script)
    assert _built(prepared, replace(script, alone=True)) == expected
    assert set(lines(script.log.with_name("opened"))) == {str(os.getpid())}


def test_without_ray_it_is_said_how_to_come_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StageError, match=r"pip install -e '\.\[ray\]'"):
        Ray()
