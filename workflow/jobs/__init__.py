"""Stages as batch jobs: requests, scripts, submission, outcome."""
