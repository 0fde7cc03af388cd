"""What rewards trained by gradient share: a text network with a linear head, and the task of comparing pairs."""
