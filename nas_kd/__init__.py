"""nas_kd."""
