"""Language models, and what stands in for one, behind one protocol."""
