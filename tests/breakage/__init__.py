"""Cases in which a hostile reviewer broke something: each must end well now."""
