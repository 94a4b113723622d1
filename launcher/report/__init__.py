"""Reports of a run for people: its last lines, charts, and one page of HTML."""
