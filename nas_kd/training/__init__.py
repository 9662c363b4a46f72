"""Training: of a teacher or a student, and the search of gates under a budget."""

import nas_kd.search_spaces.cpu_convolutions  # noqa: F401  (no net may be trained with torch's own faulty gradient)
