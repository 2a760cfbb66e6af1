"""What a user keeps: conversations and pictures on disk, and how they are exported."""
