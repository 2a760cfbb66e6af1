"""The data engine: saved pages in, illustrated dialogues out (DuoGen, section 4)."""
