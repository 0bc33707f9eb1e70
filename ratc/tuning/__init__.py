"""A study: which values are tried, as a spec's ``tuning`` says it; pure, as all before the command line is."""
