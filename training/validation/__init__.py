"""What is measured between steps: the loss on held-out data, and tasks."""
