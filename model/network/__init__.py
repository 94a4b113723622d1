"""The one decoder-only transformer and its parts."""
