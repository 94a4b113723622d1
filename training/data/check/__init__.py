"""The data doctor: what is in a corpus, before or after it is prepared. Changes nothing."""
