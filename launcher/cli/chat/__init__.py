"""`launch chat`: what is typed, what is answered, and the file that remembers it."""
