"""What every layer above uses: files, errors, settings, processes, the console. Nothing here knows the method."""
