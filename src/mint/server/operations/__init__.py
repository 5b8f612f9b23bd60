"""What each journaled operation means: from request to command, from result to answer."""
