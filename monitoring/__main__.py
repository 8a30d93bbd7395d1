"""Write the generated files of this folder again: `python -m monitoring`, or `make monitoring`."""

from pathlib import Path

from monitoring import dashboard, rules

FOLDER = Path(__file__).parent


def files() -> dict[Path, str]:
    """Every generated file and its text."""
    return {
        FOLDER / "dashboard.json": dashboard.text(),
        FOLDER / "rules.yaml": rules.text(),
        FOLDER / "prometheus-rule.yaml": rules.resource(),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
