"""What a run says of itself: a record a step, and where records go."""
