"""Who may send a request, how much it may ask for, and what becomes of it once that is checked: a job for `run`."""
