"""Where things are in a store.

    scoter:{<user>}:history                    recent items, shared by all releases
    scoter:{<user>}:reasoning:<release>:<name> the H blob of one release and projection
    scoter:{<user>}:steps:<release>            the reasoning steps as text
    scoter:release                             id of the live release
    scoter:releases                            which releases are in the store, and which were live
    scoter:load:<release>                      how far a release has been loaded
    scoter:users:<release>:<n>                 a part of the release's users, so that nobody has to scan for them

`<user>` is blake2b-128 of the user id in hex: fixed length, safe for any id, and no user id appears in a key.
The braces make it Redis Cluster's hash tag, so that all keys of one user are in one slot and one round trip.
"""

from __future__ import annotations

import hashlib

RELEASE_POINTER = b"scoter:release"
RELEASES = b"scoter:releases"


def user_tag(user_id: str) -> str:
    """The part of a key that stands for a user, 32 hex digits."""
    return hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def history_key(tag: str) -> bytes:
    """Key of a user's recent items; `tag` from `user_tag`."""
    return f"scoter:{{{tag}}}:history".encode()


def reasoning_key(tag: str, release_id: str, name: str) -> bytes:
    """Key of a user's H blob for one release and one `ReasoningEntry.name`."""
    return f"scoter:{{{tag}}}:reasoning:{release_id}:{name}".encode()


def steps_key(tag: str, release_id: str) -> bytes:
    """Key of a user's reasoning steps as text."""
    return f"scoter:{{{tag}}}:steps:{release_id}".encode()


def is_of_release(key: bytes) -> bool:
    """Whether a key is of a user and one release, so that what it holds never changes."""
    return b"}:reasoning:" in key or b"}:steps:" in key


def load_key(release_id: str) -> bytes:
    """Key of how far a release has been loaded."""
    return f"scoter:load:{release_id}".encode()


def users_key(release_id: str, part: int) -> bytes:
    """Key of one part of a release's user tags."""
    return f"scoter:users:{release_id}:{part}".encode()
