"""Processes around a stage: batch job, ranks, local launcher, container."""
