"""The pocket model: a world of small verifiable tasks, its tokenizer, its training examples and its evaluation."""
