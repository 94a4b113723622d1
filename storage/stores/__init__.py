"""Object stores behind one interface, a file each."""
