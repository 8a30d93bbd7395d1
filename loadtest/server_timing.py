"""Reading the Server-Timing header (W3C): where the service says the time went."""

from __future__ import annotations


def durations(header: bytes) -> dict[str, float]:
    """Milliseconds by name: `store;dur=0.05, engine;desc="a, b";dur=4.31` gives {"store": 0.05, "engine": 4.31}.

    Metrics without a duration, or with one that is no number, are left out.
    """
    found: dict[str, float] = {}
    for metric in _split(header.decode("latin-1"), ","):
        name, *parameters = _split(metric, ";")
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "dur":
                try:
                    found[name.strip()] = float(value.strip().strip('"'))
                except ValueError:
                    continue
    return found


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator, but not inside quotes."""
    if '"' not in text:
        return text.split(separator)
    parts = [""]
    quoted = False
    for character in text:
        quoted ^= character == '"'
        if character == separator and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return parts
