"""Feature selection: candidates, scores by held-out information, and the search over them."""
