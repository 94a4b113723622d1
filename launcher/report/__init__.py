"""What a run leaves for people: its last lines, charts, and one page of HTML."""
