"""Bytes by path or URL: files, stores, retries, the format of tensors in files. Knows no model and no run."""
