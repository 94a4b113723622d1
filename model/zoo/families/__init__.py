"""The families, a file each. To add one: its file, and its name in the list of model/zoo/__init__.py."""
