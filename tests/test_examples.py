"""The examples of the documentation are what the product reads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from service.experiments.arm import Arm
from service.experiments.assignment import Experiments

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def test_the_example_of_experiments_does_what_its_descriptions_say() -> None:
    experiments = Experiments.read((EXAMPLES / "experiments.json").read_bytes())
    experiments.check(["hstu", "scoter_h"])
    assert experiments.variations == {"model": ("control", "scoter"), "reasoning": ("control", "withheld")}
    assert experiments.assign("u00001", {}).arm == Arm(name="staff", model="scoter_h")

    attributes = {"country": "DE", "app": "2.10.1"}
    found = [experiments.assign(f"user-{number}", attributes) for number in range(20_000)]
    labels = Counter(one.label for one in found)
    expected = {
        "holdout": 0.05,
        "model=control": 0.95 * 0.6 / 2,
        "model=scoter": 0.95 * 0.6 / 2,
        "reasoning=control": 0.95 * 0.4 * 0.5 * 0.8,
        "reasoning=withheld": 0.95 * 0.4 * 0.5 * 0.2,
        "default": 0.95 * 0.4 * 0.5,
    }
    assert set(labels) == set(expected)
    for label, share in expected.items():
        assert abs(labels[label] / len(found) - share) < 0.02
    assert 0.005 < sum(bool(one.shadow) for one in found) / len(found) < 0.015
    # Elsewhere, and in an old version of the app, nobody is in `model`.
    for other in ({"country": "US", "app": "2.10.1"}, {"country": "DE", "app": "2.2.9"}, {}):
        assert not any("model=" in experiments.assign(f"user-{n}", other).label for n in range(500))
