"""Structured distillation (section 3.3.1): a teacher's chains, and the student that learns to write such chains."""
