"""Bundles, exports and the streaming runtime of trained students."""
