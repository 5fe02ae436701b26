"""`make chaos`: every fault against every promise of the queue, many times, at random moments with printed seeds."""
