"""Training: of a teacher or a student, and the search of gates under a budget."""
