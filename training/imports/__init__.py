"""Imports of a worker, made before there is one: in the process that is forked into workers."""
