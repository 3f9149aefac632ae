"""A recorded run, run again, compared and judged."""
