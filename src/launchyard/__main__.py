"""`python -m launchyard` is `launch`."""

from launchyard.launcher.cli.main import main

main()
