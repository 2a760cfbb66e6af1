"""What people bring to teach a pair: read, checked, described."""
