"""Tests of how the next tokens are computed."""
