"""The local cache of chunks that lie in a store."""
