"""Letters for the ways in which models were made, so that tables need not spell the ways out in every row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from offline.results.settings import BACKBONE, NAMES, TAKEN, Setting, Way


class Ways:
    """The ways of some models. One that a model and its backbone have in common is one letter."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        self._ways = list(dict.fromkeys(one.way for one in settings if one.way is not None and one.way.writer))
        covered = {way.alone for way in self._ways}
        rest = (one.way for one in settings if one.way is not None and not one.way.writer)
        self._ways += [way for way in dict.fromkeys(rest) if way not in covered]

    def __iter__(self) -> Iterator[Way]:
        """In the order of their letters."""
        return iter(self._ways)

    def letters(self, setting: Setting) -> str:
        """Of a model; of a backbone alone those of all built on it. Empty for what our recipes do not make."""
        way = setting.way
        return ", ".join(
            _letter(place)
            for place, one in enumerate(self._ways)
            if one == way or (way is not None and not way.writer and one.alone == way)
        )

    def name(self, setting: Setting) -> str:
        """What a table calls a model: `SCoTER-H [D], five-step, w/o position`."""
        name = NAMES.get(setting.model, f"{setting.model} (RecBole)")
        letters = self.letters(setting)
        taken = "" if setting.what == "full" else TAKEN.get(setting.what, setting.what)
        return ", ".join(part for part in (f"{name} [{letters}]" if letters else name, setting.template, taken) if part)

    def rows(self) -> list[list[str]]:
        """A line for each: letter, models, and what is switched how."""
        rows: list[list[str]] = []
        for place, way in enumerate(self._ways):
            told = [
                _models(way),
                " and ".join(way.features) or "–",
                (way.aligned or "–") if way.writer else "",
                ("its trained backbone" if way.stands else "scratch, jointly") if way.writer else "",
                way.search or "plain beam",
                way.writer,
            ]
            if any(row[1:] == told for row in rows):
                told[0] += ", of other sizes or training"
            rows.append([f"**{_letter(place)}**", *told])
        return rows


HEAD = ["way", "models", "item vectors also read", "text alignment", "fusion starts from", "search", "chains by"]


def _models(way: Way) -> str:
    backbone = NAMES[way.backbone]
    if not way.writer:
        return backbone
    fused = next(variant for variant, on in BACKBONE.items() if on == way.backbone and variant != on)
    return f"{NAMES[fused]} on {backbone}"


def _letter(place: int) -> str:
    """A to Z, then A2 and so on."""
    turn, letter = divmod(place, 26)
    return chr(ord("A") + letter) + (str(turn + 1) if turn else "")
