"""A server of trained models: HTTP, dynamic batches, and a page to look at translations."""
