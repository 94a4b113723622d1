"""Instruction data: from files of any usual shape to rows of tokens, of which some are trained for."""
