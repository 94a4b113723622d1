"""Tests of what ends or narrows a run: its length, and the batches that it reads again and again."""
