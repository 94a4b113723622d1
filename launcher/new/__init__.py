"""From a few answers to a recipe and a cluster file: sized by the machine and the plan, written, checked."""
