"""The data of a recipe: what is prepared already, where the rest will be, and what is cached here."""
