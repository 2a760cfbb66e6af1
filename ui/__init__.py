"""The page. It starts what it needs and shows what happens; it knows the engine, its events and options, and nothing below."""
