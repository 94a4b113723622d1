"""Imported first by the server that forks workers: it ends when torchrun does, and so do they.

By itself it would wait for its last worker, each of which could still ask it for processes.
"""

from launchyard.host.processes import die_with_parent

die_with_parent()
