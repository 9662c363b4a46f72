"""What the trials of a campaign share: the teacher and its answers, the search, what trials may propose."""
