"""Search for translations: beam search, sampling, and constraints on either."""
