"""This machine: processes, ports, locks, folders, environment. Knows no run and no store."""
