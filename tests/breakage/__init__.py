"""What a hostile reviewer did to runs, the explorer and the files they read: a test for each case that once lost."""
