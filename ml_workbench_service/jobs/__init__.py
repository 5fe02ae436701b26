"""Long work: the job folder and its event log, the processes that do the work, and those who watch over them."""
