"""The release: the contract between `offline/`, which writes it, and the service, which reads it."""
