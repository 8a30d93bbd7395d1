"""From interactions and item texts to a release: every stage is one module and one command."""
