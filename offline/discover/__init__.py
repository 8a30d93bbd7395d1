"""`scoter discover`: Generate-Validate-Mine, from a backend's answers to the template that chains are written in."""
