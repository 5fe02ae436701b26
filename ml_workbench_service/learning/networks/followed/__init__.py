"""Networks that follow another version: meta-labelling, with the primary's graph inside the follower's own."""
