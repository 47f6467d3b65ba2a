"""Runs side by side and what may be concluded from them: pipeline, experiments, the frontier, export."""
