"""What learners of several families share."""
