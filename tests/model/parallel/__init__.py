"""Tests of models on several devices."""
