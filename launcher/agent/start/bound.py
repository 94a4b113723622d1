"""Imported first by the server that forks workers: it ends when torchrun does, and so do they.

By itself it would wait for its last worker, each of which could still ask it for processes. It collects no garbage
while it imports: there is none, and looking for it takes a seventh of the time.
"""

import gc

from launchyard.host.processes import die_with_parent

die_with_parent()
gc.disable()
