"""What a hostile reviewer broke, one case a file: it must end well now."""
