"""The chat: its messages, its buttons, the answers under way and the list of conversations."""
