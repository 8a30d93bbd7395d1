"""The online service: loads a release and answers `POST /recommend`, with no LLM and no torch."""
