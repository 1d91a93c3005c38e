"""Stages with their keys, costs, memory levers and reasons to run."""
