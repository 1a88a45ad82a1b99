"""Documents as token ids, and the CM3 rows that they become."""
