"""`/predict` and its batch beside the fast paths: the routes, and answers with their reasons."""
