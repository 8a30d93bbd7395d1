"""What is watched: the dashboard, the objectives and the alerts. `python -m monitoring` writes the files from the code."""
