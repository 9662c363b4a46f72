"""The base of all settings: strict sections, mistakes as sentences, and references to a user's own code."""
