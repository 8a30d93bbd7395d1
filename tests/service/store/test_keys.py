from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.store.keys import (
    RELEASE_POINTER,
    RELEASES,
    history_key,
    is_of_release,
    load_key,
    reasoning_key,
    steps_key,
    user_tag,
    users_key,
)

any_text = st.text(st.characters(codec=None), max_size=300)  # lone surrogates included


def hash_tag(key: bytes) -> bytes:
    """The part that Redis Cluster hashes."""
    return key[key.index(b"{") + 1 : key.index(b"}")]


@given(any_text)
def test_all_keys_of_a_user_share_a_slot_and_hide_the_user(user_id: str) -> None:
    tag = user_tag(user_id)
    keys = {history_key(tag), reasoning_key(tag, "ab" * 8, "scoter_h"), steps_key(tag, "ab" * 8)}
    assert len(keys) == 3
    assert {hash_tag(key) for key in keys} == {tag.encode()}
    assert len(tag) == 32
    assert all(key.isascii() and len(key) < 512 for key in keys)  # 511 bytes is LMDB's limit


@given(any_text, any_text)
def test_different_users_have_different_keys(one: str, other: str) -> None:
    assert (history_key(user_tag(one)) == history_key(user_tag(other))) == (one == other)


@given(any_text)
def test_no_user_can_reach_the_pointer(user_id: str) -> None:
    assert history_key(user_tag(user_id)) != RELEASE_POINTER


def test_keys_stay_what_they_are() -> None:
    # Data outlives deployments: a change here orphans every published user.
    tag = user_tag("user-1")
    assert tag == "d6fc1c4b4ddbb4e741457d1d873d0d46"
    assert history_key("t") == b"scoter:{t}:history"
    assert reasoning_key("t", "r", "n") == b"scoter:{t}:reasoning:r:n"
    assert steps_key("t", "r") == b"scoter:{t}:steps:r"
    assert RELEASE_POINTER == b"scoter:release"
    assert RELEASES == b"scoter:releases"
    assert load_key("r") == b"scoter:load:r"
    assert users_key("r", 3) == b"scoter:users:r:3"


def test_only_what_a_release_alone_writes_never_changes() -> None:
    assert is_of_release(reasoning_key("t", "r", "n"))
    assert is_of_release(steps_key("t", "r"))
    assert not any(map(is_of_release, (history_key("t"), RELEASE_POINTER, RELEASES, load_key("r"), users_key("r", 0))))
