"""Tests of monitoring, from the directory of a run to a Prometheus that has seen it."""
