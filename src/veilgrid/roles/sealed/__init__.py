"""`sealed`: exchange coordination whose network step, checks and settlement run on shares."""
