"""What a model is written against: `Family`, `Task`, `Checkpoint` and the data set they are given."""
