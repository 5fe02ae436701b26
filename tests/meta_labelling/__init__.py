"""Meta-labelling: a primary gives the side, a follower learns when to take it."""
