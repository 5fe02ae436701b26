"""`/predict`: what a record means, and the ways by which a request reaches it."""
