"""Settings chosen for each method alike: a plan of trials, a choice on validation data, and what is trained then."""
