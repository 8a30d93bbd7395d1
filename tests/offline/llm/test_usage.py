from offline.llm.base import Usage


def test_uses_add_up_and_the_model_is_the_one_named_last() -> None:
    first = Usage(requests=2, cached=1, prompt_tokens=10, cost=0.5, seconds=2.0, model="old")
    second = Usage(requests=3, failed=1, completion_tokens=7, cost=0.25, seconds=1.0, model="new")
    both = Usage(
        requests=5, cached=1, failed=1, prompt_tokens=10, completion_tokens=7, cost=0.75, seconds=3.0, model="new"
    )
    assert first + second == both
    assert sum([first, second], Usage()) == both
    assert (first + Usage()).model == "old"  # it was asked nothing, and told no name
    assert first == Usage(requests=2, cached=1, prompt_tokens=10, cost=0.5, seconds=2.0, model="old")


def test_between_two_readings_is_what_the_later_has_more() -> None:
    before = Usage(requests=2, retries=1, cost=0.5)
    after = Usage(requests=5, retries=1, estimated=2, cost=1.5, model="m")
    assert after - before == Usage(requests=3, estimated=2, cost=1.0, model="m")
