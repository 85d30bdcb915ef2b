"""What is kept, and how much of it: quota, retention, garbage collection."""
