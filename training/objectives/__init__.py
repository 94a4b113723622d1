"""Objectives, a file each: what a step makes smaller."""
