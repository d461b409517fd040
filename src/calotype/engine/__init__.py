"""What can be done with images and VMs: one job a file, in rooms of their own where a job has many parts."""
