"""Plans the due cells on given devices before anything starts: memory, seconds, order, hours and
dollars."""
