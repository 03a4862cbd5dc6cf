"""Learning from labelled answers: the table, the objectives, the steps of one rank."""
