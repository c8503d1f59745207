"""What is published: the nano checkpoint with its card, and the code that pushes a checkpoint folder to the Hub."""
