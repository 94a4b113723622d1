"""The steps of a launch and of a resume, up to the backend."""
