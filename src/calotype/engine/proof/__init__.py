"""Looking: what a disk shows, what was declared, and the signed report of both."""
