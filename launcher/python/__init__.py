"""The product from Python: what `from launchyard import …` gives, in scripts, notebooks and unit tests."""
