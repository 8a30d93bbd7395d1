"""`python -m service` is `scoter-serve`."""

from service.cli import app

app()
