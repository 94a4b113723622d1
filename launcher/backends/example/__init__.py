"""A queue in a folder of this machine: the smallest whole backend, to be copied for another scheduler."""
