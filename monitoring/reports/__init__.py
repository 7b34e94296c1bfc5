"""What a run leaves in a folder: its result, Evidently's reports, and the index page over all runs."""
