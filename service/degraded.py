"""Why an answer may be a lesser one than it should be."""

from __future__ import annotations

from typing import Literal

# No reasoning, and no stored history.
StoreFailure = Literal["store_timeout", "store_unavailable"]
# The engine failed, and the fallback engine ranked, or popular items are the answer.
EngineFailure = Literal["engine_timeout", "engine_unavailable", "engine_fallback"]
# Or nothing is known about the user, who gets popular items.
Degraded = Literal[StoreFailure, EngineFailure, "no_history"]
