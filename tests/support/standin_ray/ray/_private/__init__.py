"""What Ray does not promise to keep."""
