"""Errors of the offline stages.

    OfflineError
    ├── RecipeError   a recipe names an unknown key, or a value outside its range
    ├── DataError     an input file is malformed; the message has file, line and reason
    ├── StageError    a stage cannot run: an earlier one has not, or its output does not fit
    ├── LLMError      a language model cannot be asked any more: refused key, dead endpoint, spent budget
    ├── AnswerError   one answer of a language model has not the format that was asked for
    └── TrainingError the loss is not finite, or nothing was learnt

Their messages say what is wrong, where, and what to do: the command line prints nothing else.
"""

from __future__ import annotations


class OfflineError(Exception):
    """Base of the offline errors; the command line prints it on one line and exits 1."""


class RecipeError(OfflineError):
    """The recipe is at fault."""


class DataError(OfflineError):
    """An input file is at fault."""


class StageError(OfflineError):
    """A stage cannot run on what is there."""


class LLMError(OfflineError):
    """A language model cannot be asked any more; what it has answered is kept."""


class AnswerError(OfflineError):
    """An answer cannot be read; whoever asked records the reason and goes on with the others."""


class TrainingError(OfflineError):
    """Training cannot go on."""
