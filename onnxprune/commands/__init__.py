"""What each command does, as a function: everything the command line can, Python can."""
