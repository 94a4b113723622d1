"""The commands of `launch`, one file for each group: they parse, call and print."""
