"""A queue in a folder of this machine: the smallest complete backend, to be copied for another scheduler."""
