"""What is said and checked before a campaign costs anything: the campaign file, data and machine, and a rehearsal."""
