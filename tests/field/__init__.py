"""One test for each report from users of neighbouring projects: what they ran into must not happen here."""
