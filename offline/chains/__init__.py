"""What is asked of a reasoner and how it has to answer: prompts, their formats, and strict readers of both."""
