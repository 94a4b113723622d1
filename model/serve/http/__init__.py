"""A model behind HTTP: the routes of OpenAI and some simpler ones, over one engine in a thread of its own."""
