from __future__ import annotations

import pytest

from offline.chains import mine
from offline.errors import AnswerError
from offline.llm.base import Abstract, Sampling

ANSWER = """### 1. Pattern Summary
- **Core Logic:** These paths look at the latest purchases.
- Key Steps: recency
### 2. Performance Assessment
- Why it works: people go on with what they began
- Limitations: new interests
### 3. Optimized Paths
- **Best Path (each step ≤ 8 words):** {path}
- Improvement Logic: goes on -> better"""


@pytest.mark.parametrize(
    "path",
    [
        "Look back -> Weigh recent ones -> Recommend items",
        "[Look back → **Weigh recent ones** → Recommend items]",
        "\n1. Look back\n2. Weigh recent ones\n3. Recommend items",
        "<cot_path>Look back -> Weigh recent ones -> Recommend items</cot_path>",
        "`Look back` -> `Weigh recent ones` -> `Recommend items`.",
    ],
)
def test_the_best_path_is_read_with_what_is_said_of_it(path: str) -> None:
    found = mine.parse("<think>Best Path: no</think>" + ANSWER.format(path=path))
    assert found.steps == ("Look back", "Weigh recent ones", "Recommend items")
    assert found.notes["core logic"] == "These paths look at the latest purchases."
    assert found.notes["limitations"] == "new interests"


def test_a_line_that_begins_with_it_goes_before_prose_that_speaks_of_it() -> None:
    text = ANSWER.format(path="Look back -> Recommend items").replace(
        "These paths", "The best path is: A -> B -> C, that"
    )
    assert mine.parse(text).steps == ("Look back", "Recommend items")
    assert mine.parse("I think the best path is: Look back -> Recommend items").steps == (
        "Look back",
        "Recommend items",
    )


@pytest.mark.parametrize(
    "text, reason",
    [
        ("no idea", "no `- Best Path:`"),
        ("<think>\n" + ANSWER.format(path="Look back -> Guess -> Recommend items"), "thinking that never ended"),
        (ANSWER.format(path="Step 1 -> Step 2 -> Item Recommendation"), "the format itself"),
        (ANSWER.format(path="Look back at all of the many things that were bought -> Recommend"), "more than 8 words"),
        (ANSWER.format(path="one").split("- Improvement")[0], "2 to 8 steps"),
    ],
)
def test_an_answer_that_is_no_template_is_refused(text: str, reason: str) -> None:
    with pytest.raises(AnswerError, match=reason):
        mine.parse(text)


def test_the_prompt_shows_the_exemplars() -> None:
    task = Abstract((("Look", "Recommend"), ("See", "Find", "Recommend")), 1, 4, 0.031)
    text = mine.prompt(task, Sampling()).messages[1].content
    assert "(2) See -> Find -> Recommend" in text
    assert "3.10% Recall@20" in text
