"""Names of what a bench can change. Light: completion of the command line reads them."""

CHANGED_KINDS = ("micro-batch", "checkpointing", "workers", "precision", "compile")
