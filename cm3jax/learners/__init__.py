"""What can be trained: init, loss, logical axes and batches of each."""
