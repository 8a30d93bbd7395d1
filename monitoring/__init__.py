"""What is watched: dashboard, objectives and alerts. `python -m monitoring` writes the files from the code."""
