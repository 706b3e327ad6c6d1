"""Strings to ids: tokens, BPE pieces, vocabulary; and the sources that the strings come from."""
