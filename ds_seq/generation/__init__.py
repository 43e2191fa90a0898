"""Search for translations, batches of raw text around it, and scores of the result."""
