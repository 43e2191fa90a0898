"""Generation: from raw text through batches and a search to written translations."""
