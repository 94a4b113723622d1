"""Documents about other tools, each command typed as it is spelled here."""
