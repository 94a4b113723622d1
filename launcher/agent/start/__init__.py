"""The start of torchrun and its workers, warm where it can be."""
