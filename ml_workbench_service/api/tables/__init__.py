"""Tables: rows of versions, replays, trainings and searches, in whichever of the four formats is asked for."""
