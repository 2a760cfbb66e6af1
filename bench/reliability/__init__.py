"""Long runs that kill, fill, fuzz and soak what a user trusts; their short forms are tests."""
